//! `ferrule requests`: what is going on in a running node, and what it waits for.

use clap::Args;

use super::table::{columns, span};
use super::{Exit, Failure, Node, answer, client};
use crate::admin::requests;

#[derive(Debug, Args)]
pub(super) struct Requests {
    /// Only what waits for longer than it should.
    #[arg(long)]
    stuck: bool,
    #[command(flatten)]
    node: Node,
}

// === impl Requests ===

impl Requests {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let Self { stuck, node } = self;
        let (json, mut page): (_, requests::Requests) = client::page(&node.socket()?, "/requests")?;
        if !stuck {
            return if node.json { answer(&json) } else { answer(text(&page)) };
        }
        page.lines.retain(|line| line.stuck);
        if node.json {
            let json = serde_json::to_string(&page).expect("it was JSON before");
            return answer(json + "\n");
        }
        answer(text(&page))
    }
}

fn text(page: &requests::Requests) -> String {
    let requests::Requests { lines, more, unlisted } = page;
    let rows: Vec<_> = lines.iter().map(row).collect();
    let header = ["KIND", "APP", "WAITS FOR", "SINCE", "AGE", "LAST POLL", "WORKER", "TRACE"];
    let mut text = columns(header, &rows);
    if *more > 0 {
        text.push_str(&format!("\n{more} more, which waited less\n"));
    }
    if *unlisted > 0 {
        text.push_str(&format!("\n{unlisted} since the start found the list full\n"));
    }
    text
}

fn row(line: &requests::Line) -> [String; 8] {
    let state = if line.stuck { format!("{} (stuck)", line.state) } else { line.state.clone() };
    [
        line.kind.clone(),
        line.app.clone().unwrap_or_else(|| "-".to_owned()),
        state,
        span(line.waiting_seconds),
        span(line.age_seconds),
        span(line.quiet_seconds),
        line.worker.to_string(),
        line.trace.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_too_long_is_marked() {
        let line = requests::Line {
            kind: "request".to_owned(),
            app: Some("hello".to_owned()),
            state: "upstream".to_owned(),
            waiting_seconds: 75.0,
            age_seconds: 75.5,
            quiet_seconds: 75.0,
            stuck: true,
            worker: 1,
            trace: None,
        };
        let page = requests::Requests { lines: vec![line], more: 0, unlisted: 2 };
        let expected = "\
KIND     APP    WAITS FOR         SINCE       AGE         LAST POLL   WORKER  TRACE
request  hello  upstream (stuck)  1 min 15 s  1 min 15 s  1 min 15 s  1       -

2 since the start found the list full
";
        assert_eq!(text(&page), expected);
    }
}
