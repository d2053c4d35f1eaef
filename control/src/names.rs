//! The alphabets of names, checked where a name is read.
//!
//! Names end up in metrics, headers, certificates and file names, so each is a short run of
//! harmless characters. The errors are what the author of a file is told.

use std::net::IpAddr;
use std::sync::Arc;

use crate::snapshot::{AppName, Hostname, InstanceId, NodeId, Region};

/// Longest host name in presentation form, without the trailing dot (RFC 1035 §2.3.4).
const HOSTNAME_LENGTH_MAX: usize = 253;

pub fn app(text: &str) -> Result<AppName, String> {
    let alphabet = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if within(text, 63, alphabet) && !text.starts_with('-') {
        Ok(AppName::new(text))
    } else {
        Err("must be 1 to 63 of a-z, 0-9 and -, not starting with -".to_owned())
    }
}

pub fn instance(text: &str) -> Result<InstanceId, String> {
    id(text).map(InstanceId::new)
}

pub fn node(text: &str) -> Result<NodeId, String> {
    id(text).map(NodeId::new)
}

pub fn region(text: &str) -> Result<Region, String> {
    let alphabet = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if within(text, 16, alphabet) {
        Ok(Region::new(text))
    } else {
        Err("must be 1 to 16 of a-z, 0-9 and -".to_owned())
    }
}

/// A name an app answers to; `*.` in front makes it a wildcard. Case and a trailing dot are dropped.
pub fn hostname(text: &str) -> Result<Hostname, String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    match name.strip_prefix("*.") {
        Some(parent) => dns_name(parent).map(Hostname::Wildcard),
        None => dns_name(&name).map(Hostname::Exact),
    }
}

fn id(text: &str) -> Result<&str, String> {
    if within(text, 64, |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
        Ok(text)
    } else {
        Err("must be 1 to 64 of A-Z, a-z, 0-9, -, _ and .".to_owned())
    }
}

fn within(text: &str, length_max: usize, alphabet: impl Fn(char) -> bool) -> bool {
    (1..=length_max).contains(&text.len()) && text.chars().all(alphabet)
}

fn dns_name(name: &str) -> Result<Arc<str>, String> {
    if !name.is_ascii() {
        return Err("must be written in ASCII (the xn-- form of an international name)".to_owned());
    }
    if name.parse::<IpAddr>().is_ok() {
        return Err("is an address, not a name; addresses go into \"addresses\"".to_owned());
    }
    if name.contains('*') {
        return Err(
            "may have a * only as its whole first label, as in \"*.example.org\"".to_owned()
        );
    }
    // A numeric last label is taken for an IPv4 address by URL parsers (WHATWG URL §3.5).
    let numeric_end = name.rsplit('.').next().is_some_and(|end| within(end, 63, is_digit));
    if name.len() > HOSTNAME_LENGTH_MAX || numeric_end || !name.split('.').all(label) {
        return Err("is not a DNS name".to_owned());
    }
    Ok(name.into())
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

//= https://www.rfc-editor.org/rfc/rfc1123#section-2.1
//# One aspect of host name syntax is hereby changed: the restriction on the first character is
//# relaxed to allow either a letter or a digit.
fn label(label: &str) -> bool {
    let alphabet = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    within(label, 63, alphabet) && !label.starts_with('-') && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_kept_in_lower_case_without_a_trailing_dot() {
        let check = |text, kept: &str| {
            assert_eq!(hostname(text).map(|name| name.to_string()).as_deref(), Ok(kept), "{text}");
        };
        check("hello.example", "hello.example");
        check("Hello.EXAMPLE.", "hello.example");
        check("*.Hello.example", "*.hello.example");
        check("localhost", "localhost");
        check("1.2.3.4.example", "1.2.3.4.example");
        check("xn--bcher-kva.example", "xn--bcher-kva.example");
        assert_eq!(hostname("*.a.example"), Ok(Hostname::Wildcard("a.example".into())));
    }

    #[test]
    fn what_is_no_host_name_is_refused() {
        let long_label = format!("{}.example", "a".repeat(64));
        let long_name = ["a".repeat(63).as_str(); 4].join(".");
        for text in [
            "",
            ".",
            "*",
            "*.",
            "a..b",
            ".a",
            "a b",
            "-a.example",
            "a-.example",
            "a_b.example",
            "*.*.example",
            "a.*.example",
            "a*.example",
            "127.0.0.1",
            "::1",
            "1.2.3",
            "hello.example:443",
            "https://hello.example",
            "bücher.example",
            "a\0.example",
            &long_label,
            &long_name,
        ] {
            assert!(hostname(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn names_have_their_alphabets() {
        assert!(app("hello-2").is_ok());
        for bad in ["", "-a", "A", "a_b", "a.b", &"a".repeat(64)] {
            assert!(app(bad).is_err(), "{bad:?}");
        }
        assert!(app(&"a".repeat(63)).is_ok());
        assert!(instance("Hello-1_a.b").is_ok());
        for bad in ["", "a b", "a/b", "é", &"a".repeat(65)] {
            assert!(instance(bad).is_err() && node(bad).is_err(), "{bad:?}");
        }
        assert!(region("ams").is_ok());
        for bad in ["", "AMS", &"a".repeat(17)] {
            assert!(region(bad).is_err(), "{bad:?}");
        }
    }
}
