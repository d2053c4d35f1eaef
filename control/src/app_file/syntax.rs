//! HTTP's own alphabets, for what a file puts into heads.

use std::sync::Arc;

/// Longest header name and value a file may set; both are sent with every response.
const NAME_LENGTH_MAX: usize = 128;
const VALUE_LENGTH_MAX: usize = 4096;

/// Headers that belong to one connection or to framing: whoever could set them could desynchronise it.
const NOT_THE_APPS: &[&str] = &[
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A header name in lower case.
pub(super) fn header_name(text: &str) -> Result<Arc<str>, String> {
    let name = text.to_ascii_lowercase();
    if !is_token(&name) || name.len() > NAME_LENGTH_MAX {
        return Err("is not a header name".to_owned());
    }
    if NOT_THE_APPS.contains(&name.as_str()) {
        return Err("belongs to the connection; an app cannot set or remove it".to_owned());
    }
    Ok(name.into())
}

/// A header value: visible ASCII and spaces, none around it.
pub(super) fn header_value(text: &str) -> Result<Arc<str>, &'static str> {
    let clean = text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if clean && text.trim() == text && text.len() <= VALUE_LENGTH_MAX {
        Ok(text.into())
    } else {
        Err("must be a header value: ASCII without control characters and surrounding spaces")
    }
}

//= https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2
//# token = 1*tchar
pub(super) fn is_token(text: &str) -> bool {
    let tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(tchar)
}
