//! `ferrule trace`: makes single requests verbose, by rules or tokens, and shows their records.

mod token;

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use control::document;
use http::Method;
use ipnet::IpNet;
use serde_json::json;
use telemetry::verbosity::{Listing, Scope, audit, level, rules};

use super::table::{columns, counted, joined, span};
use super::{Exit, Failure, Node, answer, client};
use crate::admin::trace::{self as admin, Made, Removed};

#[derive(Debug, Subcommand)]
pub(super) enum Trace {
    /// Make a rule: requests it matches are verbose until its time or budget is spent.
    On(On),
    /// Remove a rule, or all of them.
    Off(Off),
    /// List rules, and what became of the last ones.
    List(List),
    /// Sign a token that makes the requests that carry it verbose.
    Token(token::Token),
    /// Show the record of a request by the trace id that its answer carries.
    Show(Show),
}

/// Which requests are meant; what is left out is not looked at.
#[derive(Debug, Default, Args)]
struct Which {
    /// Requests of this app.
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// Requests for exactly this host name.
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Requests below this path, by whole segments.
    #[arg(long, value_name = "PREFIX")]
    path: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct On {
    #[command(flatten)]
    which: Which,
    /// Requests of clients with this address or prefix.
    #[arg(long, value_name = "PREFIX", value_parser = client)]
    client: Option<String>,
    /// This share of what matches, in percent.
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    percent: Option<f64>,
    /// `verbose`, or `normal` to keep the usual record whatever the end of the request.
    #[arg(long, value_parser = ["normal", "verbose"], default_value = "verbose")]
    level: String,
    /// How long, up to 1h.
    #[arg(long, value_name = "TIME", value_parser = rule_ttl, default_value = "10m")]
    ttl: Duration,
    /// How many requests.
    #[arg(long, value_name = "COUNT", default_value_t = rules::USES_DEFAULT)]
    uses: u64,
    /// How many bytes of records.
    #[arg(long, value_name = "BYTES", value_parser = bytes, default_value = "16MiB")]
    bytes: u64,
    /// Why, for those who read the audit.
    #[arg(long, value_name = "TEXT")]
    why: String,
    #[command(flatten)]
    node: Node,
}

#[derive(Debug, Args)]
pub(super) struct Off {
    /// The rule.
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    id: Option<u64>,
    /// Every rule.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    node: Node,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Show who changed what, when and why, too; with --json it is always there.
    #[arg(long)]
    audit: bool,
    #[command(flatten)]
    node: Node,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// Trace id: 32 hexadecimal digits.
    #[arg(value_name = "ID", value_parser = trace_id)]
    id: String,
    #[command(flatten)]
    node: Node,
}

// === impl Trace ===

impl Trace {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        match self {
            Self::On(command) => command.run(),
            Self::Off(command) => command.run(),
            Self::List(command) => command.run(),
            Self::Token(command) => command.run(),
            Self::Show(command) => command.run(),
        }
    }
}

// === impl Which ===

impl Which {
    fn scope(self) -> Scope {
        let Self { app, host, path } = self;
        Scope { app, host, path }
    }
}

// === impl On ===

impl On {
    fn run(self) -> Result<Exit, Failure> {
        let Self { which, client, percent, level, ttl, uses, bytes, why, node } = self;
        let ask = admin::On {
            scope: which.scope(),
            client,
            percent,
            level: Some(level),
            ttl_seconds: Some(ttl.as_secs()),
            uses: Some(uses),
            bytes: Some(bytes),
            why,
        };
        let (json, made) = client::command(&node.socket()?, Method::POST, "/trace", &ask)?;
        if node.json { answer(&json) } else { answer(made_text(&made)) }
    }
}

fn made_text(made: &Made) -> String {
    let Made { id, ttl_seconds, uses, bytes } = made;
    let (ttl, uses) = (span(*ttl_seconds as f64), counted(*uses, "request"));
    let bytes = mebibytes(*bytes);
    format!("rule {id}: for {ttl}, at most {uses} and {bytes}; `ferrule trace off {id}` ends it\n")
}

// === impl Off ===

impl Off {
    fn run(self) -> Result<Exit, Failure> {
        let Self { id, all: _, node } = self;
        let path = id.map_or_else(|| "/trace".to_owned(), |id| format!("/trace/{id}"));
        let (json, Removed { removed }) =
            client::command(&node.socket()?, Method::DELETE, &path, &json!({}))?;
        if node.json {
            answer(&json)
        } else {
            answer(format!("{} removed\n", counted(removed as u64, "rule")))
        }
    }
}

// === impl List ===

impl List {
    fn run(self) -> Result<Exit, Failure> {
        let Self { audit, node } = self;
        let (json, listing): (_, Listing) =
            client::command(&node.socket()?, Method::GET, "/trace", &json!({}))?;
        if node.json {
            return answer(&json);
        }
        let mut text = rules_text(&listing);
        if audit {
            // A clock before 1970 makes everything recent, which is no worse than the clock.
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            text.push('\n');
            text.push_str(&audit_text(&listing, now));
        }
        answer(text)
    }
}

fn rules_text(listing: &Listing) -> String {
    let row = |rule: &rules::Listed| {
        [
            rule.id.to_string(),
            matches(rule),
            level::name(rule.level).to_owned(),
            match rule.state {
                rules::State::Live => span(rule.expires_in_seconds),
                rules::State::UsedUp => "used up".to_owned(),
            },
            format!("{}/{}", rule.uses, rule.uses_max),
            format!("{}/{}", mebibytes(rule.bytes), mebibytes(rule.bytes_max)),
            rule.who.clone(),
            rule.why.clone(),
        ]
    };
    let rows: Vec<_> = listing.rules.iter().map(row).collect();
    columns(["RULE", "MATCHES", "LEVEL", "LEFT", "USES", "BYTES", "WHO", "WHY"], &rows)
}

fn matches(rule: &rules::Listed) -> String {
    let mut parts = Vec::new();
    if !rule.scope.is_everything() {
        parts.push(rule.scope.to_string());
    }
    parts.extend(rule.client.iter().map(|client| format!("client {client}")));
    parts.extend(rule.percent.map(|percent| format!("{percent} %")));
    joined(&parts).replace(',', " ")
}

fn audit_text(listing: &Listing, now: Duration) -> String {
    let row = |entry: &audit::Entry| {
        let age = now.saturating_sub(Duration::from_millis(entry.at_unix_ms));
        [
            format!("{} ago", span(age.as_secs_f64())),
            entry.rule.map_or_else(|| "-".to_owned(), |id| id.to_string()),
            entry.what.as_str().to_owned(),
            entry.who.clone(),
            entry.why.clone(),
        ]
    };
    let rows: Vec<_> = listing.audit.iter().map(row).collect();
    columns(["WHEN", "RULE", "WHAT", "WHO", "WHY"], &rows)
}

// === impl Show ===

impl Show {
    fn run(self) -> Result<Exit, Failure> {
        let Self { id, node } = self;
        answer(client::text(&node.socket()?, &format!("/trace/{id}"), node.json)?)
    }
}

// Values as people write them.

fn rule_ttl(text: &str) -> Result<Duration, String> {
    ttl(text, rules::TTL_MAX)
}

fn ttl(text: &str, max: Duration) -> Result<Duration, String> {
    let whole = |time: &Duration| time.subsec_nanos() == 0;
    let time = document::duration(text).filter(whole);
    let range = Duration::from_secs(1)..=max;
    time.filter(|time| range.contains(time)).ok_or_else(|| {
        let minutes = max.as_secs() / 60;
        format!("must be a time from 1s to {minutes}m, in whole seconds")
    })
}

fn bytes(text: &str) -> Result<u64, String> {
    let bytes = text.parse().ok().or_else(|| document::bytes(text));
    let bytes = bytes.and_then(|bytes: i64| u64::try_from(bytes).ok());
    bytes.filter(|bytes| (1..=rules::BYTES_MAX).contains(bytes)).ok_or_else(|| {
        format!("must be a number of bytes up to {}, such as 65536 or 1MiB", rules::BYTES_MAX)
    })
}

fn percent(text: &str) -> Result<f64, String> {
    let percent = text.strip_suffix('%').unwrap_or(text).trim_end().parse().ok();
    percent
        .filter(|percent| *percent > 0.0 && *percent <= 100.0)
        .ok_or_else(|| "must be above 0 and at most 100".to_owned())
}

fn client(text: &str) -> Result<String, String> {
    if text.parse::<IpNet>().is_ok() || text.parse::<IpAddr>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err("must be an address or a prefix, such as 198.51.100.0/24".to_owned())
    }
}

fn trace_id(text: &str) -> Result<String, String> {
    match admin::trace_id(text) {
        Some(_) => Ok(text.to_ascii_lowercase()),
        None => Err("must be 32 hexadecimal digits, not all of them 0".to_owned()),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

#[cfg(test)]
mod tests;
