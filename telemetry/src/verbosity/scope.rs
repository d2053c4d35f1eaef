//! What a token or a rule is about, and whether a request is that.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Bytes of an app's name.
const APP_BYTES_MAX: usize = 63;

/// Bytes of a host name in presentation form (RFC 1035 §2.3.4).
const HOST_BYTES_MAX: usize = 253;

/// Bytes of a path prefix.
const PATH_BYTES_MAX: usize = 256;

/// What is known of a request when its verbosity is decided.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub app: &'a str,
    /// Without the port.
    pub host: &'a str,
    /// With or without the query, which is not looked at.
    pub path: &'a str,
    pub client: IpAddr,
}

/// Requests by what they are for. What is absent is not looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Exactly this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// By whole segments: `/api` is `/api` and `/api/v1`, not `/apis`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Why no request can be meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    #[error("app must be 1 to 63 of a-z, 0-9 and -")]
    App,
    #[error("host must be a name or an address without a port, of at most 253 bytes")]
    Host,
    #[error("path must start with / and have at most 256 bytes, without a query")]
    Path,
}

// === impl Scope ===

impl Scope {
    /// As it is kept: checked, the host in lower case without its last dot.
    ///
    /// # Errors
    ///
    /// When no request could be in it.
    pub fn checked(&self) -> Result<Self, ScopeError> {
        let Self { app, host, path } = self;
        if app.as_deref().is_some_and(|app| !is_app(app)) {
            return Err(ScopeError::App);
        }
        if host.as_deref().is_some_and(|host| !is_host(host)) {
            return Err(ScopeError::Host);
        }
        if path.as_deref().is_some_and(|path| !is_path(path)) {
            return Err(ScopeError::Path);
        }
        Ok(Self {
            app: app.clone(),
            host: host.as_deref().map(|host| without_dot(host).to_ascii_lowercase()),
            path: path.clone(),
        })
    }

    /// Whether nothing is asked of a request.
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a request is meant.
    pub fn holds(&self, facts: &Facts<'_>) -> bool {
        let Self { app, host, path } = self;
        app.as_deref().is_none_or(|app| app == facts.app)
            && host
                .as_deref()
                .is_none_or(|host| without_dot(host).eq_ignore_ascii_case(without_dot(facts.host)))
            && path.as_deref().is_none_or(|path| is_below(path, facts.path))
    }
}

/// As the command line would say it.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { app, host, path } = self;
        let mut separator = "";
        for (name, value) in [("app", app), ("host", host), ("path", path)] {
            if let Some(value) = value {
                write!(f, "{separator}{name} {value}")?;
                separator = " ";
            }
        }
        if separator.is_empty() { f.write_str("everything") } else { Ok(()) }
    }
}

fn is_below(prefix: &str, path: &str) -> bool {
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let Some(rest) = path.strip_prefix(prefix) else { return false };
    rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/')
}

fn without_dot(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

fn is_app(app: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=APP_BYTES_MAX).contains(&app.len()) && app.bytes().all(allowed)
}

fn is_host(host: &str) -> bool {
    let host = without_dot(host);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_name = (1..=HOST_BYTES_MAX).contains(&host.len()) && host.bytes().all(allowed);
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    is_name || in_brackets.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok())
}

fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= PATH_BYTES_MAX
        && !path.contains(|c: char| c == '?' || c == '#' || c == ' ' || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(app: &str, host: &str, path: &str) -> Scope {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Scope { app: some(app), host: some(host), path: some(path) }
    }

    const FACTS: Facts<'_> = Facts {
        app: "shop",
        host: "shop.example",
        path: "/api/v1/carts?id=7",
        client: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    };

    #[test]
    fn a_request_is_in_scope_when_everything_named_fits() {
        let check = |scope: Scope, holds| assert_eq!(scope.holds(&FACTS), holds, "{scope:?}");
        check(scope("", "", ""), true);
        check(scope("shop", "", ""), true);
        check(scope("shop2", "", ""), false);
        check(scope("Shop", "", ""), false);
        check(scope("", "shop.example", ""), true);
        check(scope("", "SHOP.example.", ""), true);
        check(scope("", "example", ""), false);
        check(scope("", "www.shop.example", ""), false);
        check(scope("", "", "/"), true);
        check(scope("", "", "/api"), true);
        check(scope("", "", "/api/"), true);
        check(scope("", "", "/api/v1/carts"), true);
        check(scope("", "", "/ap"), false);
        check(scope("", "", "/api/v"), false);
        check(scope("", "", "/API"), false);
        check(scope("", "", "/api/v1/carts/"), false);
        check(scope("", "", "/api/v1/carts?id=7"), false);
        check(scope("", "", "api"), false);
        check(scope("shop", "shop.example", "/api/v1"), true);
        check(scope("shop", "shop.example", "/admin"), false);
        check(scope("blog", "shop.example", "/api/v1"), false);
    }

    #[test]
    fn what_no_request_can_be_is_refused() {
        let check = |scope: Scope, expected| {
            assert_eq!(scope.checked().err(), expected, "{scope:?}");
        };
        check(scope("shop", "shop.example", "/"), None);
        check(scope("", "[2001:db8::1]", ""), None);
        check(scope("", "198.51.100.7", ""), None);
        check(scope("Shop", "", ""), Some(ScopeError::App));
        check(scope(&"a".repeat(64), "", ""), Some(ScopeError::App));
        check(scope("", "shop.example:443", ""), Some(ScopeError::Host));
        check(scope("", "*.example", ""), Some(ScopeError::Host));
        check(scope("", &"a".repeat(254), ""), Some(ScopeError::Host));
        check(scope("", "", "api"), Some(ScopeError::Path));
        check(scope("", "", "/a?b"), Some(ScopeError::Path));
        check(scope("", "", "/a\nb"), Some(ScopeError::Path));
        check(scope("", "", &format!("/{}", "a".repeat(256))), Some(ScopeError::Path));
        let empty = Scope { app: Some(String::new()), ..Scope::default() };
        assert_eq!(empty.checked(), Err(ScopeError::App));
    }

    #[test]
    fn a_host_is_kept_in_its_normal_form() {
        let kept = scope("", "Shop.Example.", "").checked().expect("a name");
        assert_eq!(kept.host.as_deref(), Some("shop.example"));
    }
}
