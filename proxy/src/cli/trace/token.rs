//! `ferrule trace token`: signed by the node, or here with the node's key.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use http::Method;
use serde_json::json;
use telemetry::verbosity::{FIELD, KeyError, Keys, Scope, token};

use super::{Which, ttl};
use crate::admin::trace::{AskToken, Signed};
use crate::cli::{Exit, Failure, Node, answer, client, read, run};

#[derive(Debug, Args)]
pub(in crate::cli) struct Token {
    #[command(flatten)]
    which: Which,
    /// `verbose`, or `normal` to keep the usual record whatever the end of the request.
    #[arg(long, value_parser = ["normal", "verbose"], default_value = "verbose")]
    level: String,
    /// How long, up to 15m.
    #[arg(long, value_name = "TIME", value_parser = token_ttl, default_value = "10m")]
    ttl: Duration,
    /// How many requests, on each node.
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    uses: u32,
    /// The answer carries a report: where the request went, and what took how long.
    #[arg(long)]
    report: bool,
    #[command(flatten)]
    node: Node,
}

// === impl Token ===

impl Token {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let Self { which, level, ttl, uses, report, node } = self;
        let scope = which.scope();
        let ask = AskToken {
            scope: scope.clone(),
            level: Some(level),
            ttl_seconds: Some(ttl.as_secs()),
            uses: Some(uses),
            report,
        };
        // The key is beside the node's other state: whoever may read it need not ask the node.
        let signed = match &node.config {
            Some(file) => sign(&read(file)?.0.telemetry.verbosity.key_file, ask)?,
            None => client::command(&node.socket()?, Method::POST, "/trace/token", &ask)?.1,
        };
        let Signed { token, expires_unix_seconds } = signed;
        let curl = curl(&token, &scope);
        if node.json {
            let fields = json!({
                "token": token, "expires_unix_seconds": expires_unix_seconds, "curl": curl,
            });
            return answer(format!("{fields}\n"));
        }
        answer(format!("{token}\n{curl}\n"))
    }
}

fn sign(key_file: &Path, ask: AskToken) -> Result<Signed, Failure> {
    let keys = Keys::load(key_file).map_err(|error| match &error {
        KeyError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            let message = format!(
                "there is no key at {}; a node makes one when it starts",
                key_file.display()
            );
            Failure { exit: Exit::Unavailable, message }
        }
        _ => run::failure(&error),
    })?;
    let wrong = |message| Failure { exit: Exit::Usage, message };
    // A clock before 1970 signs what has expired, which the node says.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let token = ask.token().map_err(wrong)?;
    let issued = token.sign(&keys, now).map_err(|error| wrong(error.to_string()))?;
    Ok(Signed { token: issued.token, expires_unix_seconds: issued.expires })
}

/// What to type to use it. A token is letters, digits, dots, dashes and underscores; a host has been
/// checked by whoever signed, and a path is quoted.
fn curl(token: &str, scope: &Scope) -> String {
    let host = scope.host.as_deref().unwrap_or("HOST");
    let path = scope.path.as_deref().unwrap_or("/").replace('\'', "%27");
    format!("curl -i -H '{FIELD}: {token}' 'https://{host}{path}'")
}

fn token_ttl(text: &str) -> Result<Duration, String> {
    ttl(text, token::TTL_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_to_type_is_one_word_a_quote() {
        let scope = |host: Option<&str>, path: Option<&str>| Scope {
            app: Some("shop".to_owned()),
            host: host.map(str::to_owned),
            path: path.map(str::to_owned),
        };
        assert_eq!(
            curl("v1.k.p.m", &scope(None, None)),
            "curl -i -H 'ferrule-trace: v1.k.p.m' 'https://HOST/'"
        );
        assert_eq!(
            curl("v1.k.p.m", &scope(Some("shop.example"), Some("/it's"))),
            "curl -i -H 'ferrule-trace: v1.k.p.m' 'https://shop.example/it%27s'"
        );
    }

    #[test]
    fn a_token_is_signed_without_a_node() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("trace.key");
        let ask = AskToken::default();
        let missing = sign(&file, ask.clone()).expect_err("there is no key yet");
        assert_eq!(missing.exit, Exit::Unavailable);
        assert!(missing.message.contains("a node makes one when it starts"), "{}", missing.message);
        Keys::load_or_create(&file).expect("the folder is ours");
        let signed = sign(&file, ask.clone()).expect("there is one");
        assert!(signed.token.starts_with("v1.k"), "{}", signed.token);
        let too_much = AskToken { uses: Some(0), ..ask.clone() };
        assert_eq!(sign(&file, too_much).expect_err("no uses").exit, Exit::Usage);
        std::fs::write(&file, "nonsense").expect("the file is ours");
        assert_eq!(sign(&file, ask).expect_err("no key").exit, Exit::Usage);
    }
}
