//! Commands about verbosity: what they take and what they say, for both ends of the socket.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use telemetry::record::model::TraceId;
use telemetry::verbosity::{NewRule, NewToken, RuleError, Scope, level, rules};

use super::control::{Call, Control, Refusal, Reply};

/// `POST /trace`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct On {
    #[serde(default)]
    pub scope: Scope,
    /// An address or a prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
    /// Default: `verbose`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Default: 600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u64>,
    /// Default: 16 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    pub why: String,
}

/// What `POST /trace` answers: the rule as it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Made {
    pub id: u64,
    pub ttl_seconds: u64,
    pub uses: u64,
    pub bytes: u64,
}

/// What `DELETE /trace` and `DELETE /trace/{}` answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    pub removed: usize,
}

/// `POST /trace/token`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskToken {
    #[serde(default)]
    pub scope: Scope,
    /// Default: `verbose`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Default: 600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// On each node. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    #[serde(default)]
    pub report: bool,
}

/// What `POST /trace/token` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    pub token: String,
    pub expires_unix_seconds: u64,
}

/// Life of a token that names none.
const TOKEN_TTL_DEFAULT: u64 = 600;

/// Uses of a token that names none, on each node.
const TOKEN_USES_DEFAULT: u32 = 10;

pub(super) fn on(control: &dyn Control, call: &Call) -> Result<Reply, Refusal> {
    let rule = call.body::<On>()?.rule().map_err(Refusal::bad)?;
    let (ttl_seconds, uses, bytes) = (rule.ttl.as_secs(), rule.uses, rule.bytes);
    let id = control.trace_on(rule, &call.caller).map_err(|error| match error {
        RuleError::Full => Refusal::conflict(error),
        _ => Refusal::bad(error),
    })?;
    Reply::json(Made { id, ttl_seconds, uses, bytes })
}

pub(super) fn list(control: &dyn Control) -> Result<Reply, Refusal> {
    Reply::json(control.trace_list())
}

pub(super) fn all_off(control: &dyn Control, call: &Call) -> Result<Reply, Refusal> {
    Reply::json(Removed { removed: control.trace_off(None, &call.caller) })
}

pub(super) fn off(control: &dyn Control, call: &Call) -> Result<Reply, Refusal> {
    let id: u64 = call.last().parse().map_err(|_| Refusal::bad("the id of a rule is a number"))?;
    match control.trace_off(Some(id), &call.caller) {
        0 => Err(Refusal::not_found(format!(
            "there is no rule {id}; it may have expired (`ferrule trace list --audit`)"
        ))),
        removed => Reply::json(Removed { removed }),
    }
}

pub(super) fn token(control: &dyn Control, call: &Call) -> Result<Reply, Refusal> {
    let token = call.body::<AskToken>()?.token().map_err(Refusal::bad)?;
    let issued = control.trace_token(&token, &call.caller).map_err(Refusal::bad)?;
    Reply::json(Signed { token: issued.token, expires_unix_seconds: issued.expires })
}

pub(super) fn record(control: &dyn Control, call: &Call) -> Result<Reply, Refusal> {
    let id = trace_id(call.last())
        .ok_or_else(|| Refusal::bad("a trace id is 32 hexadecimal digits, not all of them 0"))?;
    let gone = || {
        Refusal::not_found(
            "the node has no record of this request: it was not kept here, or is over for long \
             enough that others have taken its place",
        )
    };
    control.trace_record(id, call.form).map(|text| Reply::Ready(call.form, text)).ok_or_else(gone)
}

/// As W3C trace context writes it (in any case, for people copy what they see).
pub fn trace_id(text: &str) -> Option<TraceId> {
    let in_form = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = u128::from_str_radix(text, 16).ok().filter(|id| in_form && *id != 0)?;
    Some(TraceId(id))
}

// === impl On ===

impl On {
    fn rule(self) -> Result<NewRule, String> {
        let Self { scope, client, percent, level, ttl_seconds, uses, bytes, why } = self;
        let default = NewRule::default();
        Ok(NewRule {
            scope,
            client: client.as_deref().map(net).transpose()?,
            percent,
            level: level.as_deref().map(level_of).transpose()?.unwrap_or(default.level),
            ttl: ttl_seconds.map_or(default.ttl, Duration::from_secs),
            uses: uses.unwrap_or(rules::USES_DEFAULT),
            bytes: bytes.unwrap_or(rules::BYTES_DEFAULT),
            why,
        })
    }
}

// === impl AskToken ===

impl AskToken {
    /// The token that is asked for, with defaults where nothing is said.
    ///
    /// # Errors
    ///
    /// When a value is none, in a sentence.
    pub fn token(self) -> Result<NewToken, String> {
        let Self { scope, level, ttl_seconds, uses, report } = self;
        Ok(NewToken {
            scope,
            level: level_of(level.as_deref().unwrap_or("verbose"))?,
            ttl: Duration::from_secs(ttl_seconds.unwrap_or(TOKEN_TTL_DEFAULT)),
            uses: uses.unwrap_or(TOKEN_USES_DEFAULT),
            report,
        })
    }
}

fn level_of(name: &str) -> Result<telemetry::verbosity::Level, String> {
    level::parse(name).ok_or_else(|| "level must be normal or verbose".to_owned())
}

/// A prefix, or an address, which is a prefix of its full length.
fn net(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>().or_else(|_| address()).map_err(|_| {
        "client must be an address or a prefix, such as \"198.51.100.0/24\"".to_owned()
    })
}
