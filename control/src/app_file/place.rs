//! The place in a file of what is wrong only beside other files.

use std::path::Path;

use crate::document::{Document, Problem, Table};
use crate::names;
use crate::publish::{Claim, Contradiction};

/// Reports `message` at the app's name in a file that was read before.
pub(crate) fn report_at_name(file: &Path, text: &str, message: &str, problems: &mut Vec<Problem>) {
    if let Some(document) = Document::parse(file, text, problems) {
        document.root().error("app", message);
    }
}

/// Reports each contradiction where a file that was read before makes the claim.
pub(crate) fn report_contradictions(
    file: &Path,
    text: &str,
    contradictions: &[Contradiction],
    problems: &mut Vec<Problem>,
) {
    let Some(document) = Document::parse(file, text, problems) else { return };
    for contradiction in contradictions {
        report(document.root(), contradiction);
    }
}

fn report(mut root: Table<'_>, contradiction: &Contradiction) {
    let message = contradiction.to_string();
    match &contradiction.claim {
        Claim::Hostname(claimed) => {
            let claims = |text: &str| names::hostname(text).is_ok_and(|name| name == *claimed);
            let items = root.list("hostnames").unwrap_or_default();
            match items.iter().find(|item| item.string().is_some_and(claims)) {
                Some(item) => item.error(message),
                None => root.error("hostnames", message),
            }
        }
        Claim::Instance(id) => {
            let claims = |table: &mut Table<'_>| table.string("id").as_deref() == Some(id.as_str());
            match root.tables("instances").iter_mut().find_map(|t| claims(t).then_some(t)) {
                Some(table) => table.error("id", message),
                None => root.error("instances", message),
            }
        }
        Claim::Address(_, port) | Claim::WholePort(port) | Claim::PortHandlers(port) => {
            report_at_port(root, *port, message);
        }
    }
}

fn report_at_port(mut root: Table<'_>, claimed: u16, message: String) {
    for mut service in root.tables("services") {
        for mut port in service.tables("ports") {
            let one = port.integer("port", 1..=u16::MAX);
            let start = port.integer("start_port", 1..=u16::MAX).or(one).unwrap_or(1);
            let end = port.integer("end_port", 1..=u16::MAX).or(one).unwrap_or(u16::MAX);
            if (start..=end).contains(&claimed) {
                return port.error(if one.is_some() { "port" } else { "start_port" }, message);
            }
        }
    }
    root.error("http_service", message);
}
