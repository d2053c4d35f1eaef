//! Which response heads an HTTP/1 instance may send: those with one reading of where the body ends.

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};

/// Why a head was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ambiguous {
    #[error("a transfer coding other than chunked")]
    TransferCoding,
    #[error("a transfer coding and a content length")]
    CodingAndLength,
    #[error("content lengths that differ or are no numbers")]
    Length,
    #[error("too many header fields")]
    Fields,
}

/// Refuses what two readers could frame differently; equal content lengths become one.
///
//= https://www.rfc-editor.org/rfc/rfc9112#section-6.3
//# If a message is received without Transfer-Encoding and with either
//# multiple Content-Length header fields having differing field-values or
//# a single Content-Length header field having an invalid value, then the
//# message framing is invalid
pub(crate) fn check(headers: &mut HeaderMap, fields_max: usize) -> Result<(), Ambiguous> {
    if headers.len() > fields_max {
        return Err(Ambiguous::Fields);
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
            return Err(Ambiguous::TransferCoding);
        }
        if headers.contains_key(CONTENT_LENGTH) {
            return Err(Ambiguous::CodingAndLength);
        }
        return Ok(());
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return Ok(()) };
    let is_single = lengths.next().is_none();
    if is_single && number(first.as_bytes()).is_some() {
        return Ok(());
    }
    let same = all_same(headers).ok_or(Ambiguous::Length)?;
    headers.insert(CONTENT_LENGTH, HeaderValue::from(same));
    Ok(())
}

fn all_same(headers: &HeaderMap) -> Option<u64> {
    let mut numbers = headers
        .get_all(CONTENT_LENGTH)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|part| number(part.trim_ascii()));
    let first = numbers.next()??;
    numbers.all(|number| number == Some(first)).then_some(first)
}

/// Digits and nothing else: no sign, no space.
fn number(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn check(fields: &[(&'static str, &'static str)]) -> Result<Option<String>, Ambiguous> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        super::check(&mut headers, 4)?;
        assert!(headers.get_all(CONTENT_LENGTH).iter().count() <= 1);
        Ok(headers.get(CONTENT_LENGTH).map(|value| value.to_str().unwrap().to_owned()))
    }

    #[test]
    fn a_head_has_one_reading_or_none() {
        use Ambiguous::{CodingAndLength, Fields, Length, TransferCoding};
        const CL: &str = "content-length";
        const TE: &str = "transfer-encoding";
        let length = |n: &str| Ok(Some(n.to_owned()));
        for (fields, expected) in [
            (&[][..], Ok(None)),
            (&[(CL, "5")], length("5")),
            (&[(CL, "5"), (CL, "5")], length("5")),
            (&[(CL, "5, 5")], length("5")),
            (&[(CL, "5"), (CL, "6")], Err(Length)),
            (&[(CL, "5, 6")], Err(Length)),
            (&[(CL, "+5")], Err(Length)),
            (&[(CL, "")], Err(Length)),
            (&[(CL, "5,")], Err(Length)),
            (&[(CL, "99999999999999999999")], Err(Length)),
            (&[(TE, "chunked")], Ok(None)),
            (&[(TE, "Chunked")], Ok(None)),
            (&[(TE, "gzip, chunked")], Err(TransferCoding)),
            (&[(TE, "chunked, chunked")], Err(TransferCoding)),
            (&[(TE, "chunked"), (TE, "identity")], Err(TransferCoding)),
            (&[(TE, "identity")], Err(TransferCoding)),
            (&[(TE, "chunked"), (CL, "5")], Err(CodingAndLength)),
            (&[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")], Ok(None)),
            (&[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1"), ("e", "1")], Err(Fields)),
        ] {
            assert_eq!(check(fields), expected, "{fields:?}");
        }
    }
}
