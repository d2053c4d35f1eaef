//! What a client wrote, and the one way for it to leave the process.
//!
//! A [`Sensitive`] has no `Display` and no `Serialize`, and its `Debug` is the name of its type, so
//! that it can be carried through any code and reach no log, metric or export by accident. It leaves
//! through [`Sensitive::expose`], for the fields that `telemetry.expose` of the configuration names.

use std::fmt;
use std::net::IpAddr;

use crate::record::model::Exposed;

/// A value that a client wrote or that tells who the client is.
///
/// ```
/// use telemetry::sensitive::{Field, Policy, Sensitive};
///
/// let path = Sensitive::new("/account/4711");
/// assert_eq!(path.expose(&Policy::none(), Field::UrlPath), None);
/// assert_eq!(format!("{path:?}"), "Sensitive<&str>");
/// ```
///
/// It cannot be printed, and it cannot be serialised:
///
/// ```compile_fail,E0277
/// println!("{}", telemetry::sensitive::Sensitive::new("/account/4711"));
/// ```
/// ```compile_fail,E0277
/// serde_json::to_string(&telemetry::sensitive::Sensitive::new("/account/4711"));
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Sensitive<T>(T);

/// Client text that may be exposed, by OpenTelemetry's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// The client's address.
    ClientAddress,
    /// The name it asked for: SNI or authority.
    ServerAddress,
    UrlPath,
    UrlQuery,
    UserAgent,
}

/// Which fields may leave. Default: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// One bit for each of [`Field::ALL`].
    fields: u8,
}

/// Client text of one request, before anybody decided what of it may leave.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClientText<'a> {
    pub client: Option<Sensitive<IpAddr>>,
    pub host: Option<Sensitive<&'a str>>,
    pub path: Option<Sensitive<&'a str>>,
    pub query: Option<Sensitive<&'a str>>,
    pub user_agent: Option<Sensitive<&'a [u8]>>,
}

/// A name in `telemetry.expose` that is none of the fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is none of client.address, server.address, url.path, url.query, user_agent.original")]
pub struct UnknownField;

/// What can be made fit to leave.
pub trait Leave {
    type Left;

    fn leave(&self) -> Self::Left;
}

/// Bytes of one exposed text, after escaping; cut at a character.
pub const EXPOSED_BYTES_MAX: usize = 256;

// === impl Sensitive ===

impl<T> Sensitive<T> {
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    pub const fn as_ref(&self) -> Sensitive<&T> {
        Sensitive(&self.0)
    }
}

impl<T: Leave> Sensitive<T> {
    /// The value, if `policy` lets `field` leave: text as at most [`EXPOSED_BYTES_MAX`] bytes on
    /// one line.
    pub fn expose(&self, policy: &Policy, field: Field) -> Option<T::Left> {
        policy.exposes(field).then(|| self.0.leave())
    }
}

impl<T> fmt::Debug for Sensitive<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sensitive<{}>", std::any::type_name::<T>())
    }
}

// === impl Leave ===

impl Leave for IpAddr {
    type Left = Self;

    fn leave(&self) -> Self {
        *self
    }
}

impl Leave for str {
    type Left = Box<Self>;

    fn leave(&self) -> Box<Self> {
        let mut left = String::with_capacity(self.len().min(EXPOSED_BYTES_MAX));
        let mut buffer = [0; 12]; // \u{10ffff} is ten
        for character in self.chars() {
            let piece = if moves_the_reader(character) {
                escaped(character, &mut buffer)
            } else {
                character.encode_utf8(&mut buffer)
            };
            if left.len() + piece.len() > EXPOSED_BYTES_MAX {
                break;
            }
            left.push_str(piece);
        }
        left.into()
    }
}

impl Leave for String {
    type Left = Box<str>;

    fn leave(&self) -> Box<str> {
        self.as_str().leave()
    }
}

/// A header's value; what is not UTF-8 is replaced.
impl Leave for [u8] {
    type Left = Box<str>;

    fn leave(&self) -> Box<str> {
        // Each byte becomes at least one, so there is nothing to read beyond; three more, for a
        // character must not look broken because it was cut.
        let head = &self[..self.len().min(EXPOSED_BYTES_MAX + 3)];
        String::from_utf8_lossy(head).leave()
    }
}

impl<T: Leave + ?Sized> Leave for &T {
    type Left = T::Left;

    fn leave(&self) -> T::Left {
        (**self).leave()
    }
}

/// Control characters, line separators, and those that turn the direction of text around: they
/// could forge a line or drive the terminal of whoever reads the log.
fn moves_the_reader(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

fn escaped(character: char, buffer: &mut [u8; 12]) -> &str {
    let mut len = 0;
    for (slot, byte) in buffer.iter_mut().zip(character.escape_unicode()) {
        *slot = byte as u8; // hexadecimal digits and braces
        len += 1;
    }
    std::str::from_utf8(&buffer[..len]).unwrap_or_default()
}

// === impl Field ===

impl Field {
    pub const ALL: [Self; 5] =
        [Self::ClientAddress, Self::ServerAddress, Self::UrlPath, Self::UrlQuery, Self::UserAgent];

    /// As OpenTelemetry's semantic conventions call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientAddress => "client.address",
            Self::ServerAddress => "server.address",
            Self::UrlPath => "url.path",
            Self::UrlQuery => "url.query",
            Self::UserAgent => "user_agent.original",
        }
    }
}

// === impl Policy ===

impl Policy {
    pub const fn none() -> Self {
        Self { fields: 0 }
    }

    /// Lets the fields with these names leave.
    ///
    /// # Errors
    ///
    /// When one is the name of no field.
    pub fn exposing<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, UnknownField> {
        names.into_iter().try_fold(Self::none(), |policy, name| {
            let field = Field::ALL.into_iter().find(|field| field.as_str() == name);
            field.map(|field| policy.and(field)).ok_or(UnknownField)
        })
    }

    /// Lets one more field leave.
    #[must_use]
    pub const fn and(self, field: Field) -> Self {
        Self { fields: self.fields | 1 << field as u8 }
    }

    pub const fn exposes(self, field: Field) -> bool {
        self.fields & 1 << field as u8 != 0
    }

    /// What of a request may leave, for its record. Costs nothing when nothing may.
    pub fn of(self, text: &ClientText<'_>) -> Option<Box<Exposed>> {
        if self.is_empty() {
            return None;
        }
        let ClientText { client, host, path, query, user_agent } = text;
        Some(Box::new(Exposed {
            client: client.and_then(|it| it.expose(&self, Field::ClientAddress)),
            host: host.and_then(|it| it.expose(&self, Field::ServerAddress)),
            path: path.and_then(|it| it.expose(&self, Field::UrlPath)),
            query: query.and_then(|it| it.expose(&self, Field::UrlQuery)),
            user_agent: user_agent.and_then(|it| it.expose(&self, Field::UserAgent)),
        }))
    }

    /// Whether nothing leaves, so that nothing need be gathered.
    pub const fn is_empty(self) -> bool {
        self.fields == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_unless_it_is_named() {
        let path = Sensitive::new("/account/4711");
        assert_eq!(path.expose(&Policy::default(), Field::UrlPath), None);
        let policy = Policy::exposing(["url.path", "client.address"]).unwrap();
        assert_eq!(path.expose(&policy, Field::UrlPath).as_deref(), Some("/account/4711"));
        assert_eq!(path.expose(&policy, Field::UrlQuery), None);
        let client = Sensitive::new(IpAddr::from([198, 51, 100, 7]));
        assert_eq!(client.expose(&policy, Field::ClientAddress), Some([198, 51, 100, 7].into()));
        assert!(!policy.is_empty() && Policy::none().is_empty());
    }

    #[test]
    fn every_field_has_a_name_that_configuration_may_use() {
        for field in Field::ALL {
            let policy = Policy::exposing([field.as_str()]).unwrap();
            assert_eq!(
                Field::ALL.map(|other| policy.exposes(other)),
                Field::ALL.map(|f| f == field)
            );
        }
        assert_eq!(Policy::exposing(["url.path", "cookie"]), Err(UnknownField));
    }

    #[test]
    fn a_record_gets_what_is_named_and_nothing_else() {
        let text = ClientText {
            client: Some(Sensitive::new([198, 51, 100, 7].into())),
            host: Some(Sensitive::new("canary.example")),
            path: Some(Sensitive::new("/canary")),
            query: Some(Sensitive::new("canary=1")),
            user_agent: Some(Sensitive::new(b"canary/1")),
        };
        assert!(Policy::none().of(&text).is_none());
        assert!(!format!("{text:?}").contains("canary"));
        for field in Field::ALL {
            let exposed = Policy::none().and(field).of(&text).unwrap();
            let there = [
                exposed.client.is_some(),
                exposed.host.is_some(),
                exposed.path.is_some(),
                exposed.query.is_some(),
                exposed.user_agent.is_some(),
            ];
            assert_eq!(there, Field::ALL.map(|other| other == field));
        }
        assert_eq!(all().of(&text).unwrap().query.as_deref(), Some("canary=1"));
        let nothing = all().of(&ClientText::default()).unwrap();
        assert!(nothing.client.is_none() && nothing.host.is_none());
    }

    #[test]
    fn debugging_shows_the_type_only() {
        let secret = Sensitive::new("canary".to_owned());
        assert_eq!(format!("{secret:?}"), "Sensitive<alloc::string::String>");
        assert_eq!(format!("{:#?}", Some(secret.as_ref())).find("canary"), None);
    }

    #[test]
    fn exposed_text_is_bounded_and_on_one_line() {
        let left = |text: &str| Sensitive::new(text).expose(&all(), Field::UrlPath).unwrap();
        assert_eq!(
            &*left("a\nb\r\x1b[31m\0\u{202e}\u{9b}"),
            r"a\u{a}b\u{d}\u{1b}[31m\u{0}\u{202e}\u{9b}"
        );
        assert_eq!(left(&"x".repeat(1000)).len(), EXPOSED_BYTES_MAX);
        assert_eq!(&*left(&format!("x{}", "ä".repeat(200))), format!("x{}", "ä".repeat(127)));
        // An escape is whole or not there.
        assert_eq!(left(&format!("{}\n", "x".repeat(252))).len(), 252);
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        let value = Sensitive::new(&b"curl/\xff8"[..]);
        assert_eq!(value.expose(&all(), Field::UserAgent).as_deref(), Some("curl/\u{fffd}8"));
        let long = "ä".repeat(500);
        let value = Sensitive::new(long.as_bytes());
        assert_eq!(value.expose(&all(), Field::UserAgent).as_deref(), Some(&long[..256]));
    }

    fn all() -> Policy {
        Field::ALL.into_iter().fold(Policy::none(), Policy::and)
    }
}
