//! The `traceparent` header (W3C Trace Context, <https://www.w3.org/TR/trace-context/>).

use super::model::{Remote, SpanId, TraceId};

/// `00-` trace id `-` span id `-` flags: the whole of version 00.
pub(super) const LEN: usize = 55;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Writes the header of version 00.
pub(super) fn write(trace: TraceId, span: SpanId, sampled: bool) -> [u8; LEN] {
    let mut out = *b"00-00000000000000000000000000000000-0000000000000000-00";
    hex(&mut out[3..35], &trace.0.to_be_bytes());
    hex(&mut out[36..52], &span.0.to_be_bytes());
    out[54] = DIGITS[usize::from(sampled)];
    out
}

fn hex(out: &mut [u8], bytes: &[u8]) {
    for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
}

/// The caller's span and whether it was sampled; nothing when the header is not valid.
///
/// A version above 00 is read as far as version 00 goes (section 2.2.1 of the specification): it may
/// be longer, when a dash follows. Capital digits, version `ff` and ids of zeros are invalid.
pub fn parse_traceparent(value: &[u8]) -> Option<(Remote, bool)> {
    let (head, rest) = value.split_at_checked(LEN)?;
    let version = number(&head[..2])?;
    let length_fits = rest.is_empty() || (version > 0 && rest[0] == b'-');
    if version == 0xff || !length_fits || [head[2], head[35], head[52]] != [b'-'; 3] {
        return None;
    }
    let trace = TraceId(number(&head[3..35])?);
    let span = SpanId(number(&head[36..52])? as u64);
    let flags = number(&head[53..])?;
    (trace.0 != 0 && span.0 != 0).then_some((Remote { trace, span }, flags & 1 == 1))
}

fn number(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(value: &str, expected: Option<bool>) {
        let parsed = parse_traceparent(value.as_bytes()).map(|(_, sampled)| sampled);
        assert_eq!(parsed, expected, "{value}");
    }

    #[test]
    fn only_what_the_specification_allows_is_read() {
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Some(true));
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", Some(false));
        // Other flags are ignored.
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff", Some(true));
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-02", Some(false));
        // A later version may be longer, after a dash.
        check("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Some(true));
        check("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what", Some(true));
        check("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what", None);
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what", None);
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-", None);
        check("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None);
        check("00-00000000000000000000000000000000-00f067aa0ba902b7-01", None);
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", None);
        check("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", None);
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0", None);
        check("00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None);
        check("0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None);
        check("", None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(trace in 1u128.., span in 1u64.., sampled: bool) {
            let (trace, span) = (TraceId(trace), SpanId(span));
            let written = write(trace, span, sampled);
            prop_assert_eq!(parse_traceparent(&written), Some((Remote { trace, span }, sampled)));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, text in "[0-9a-f-]{50,60}") {
            parse_traceparent(&bytes);
            parse_traceparent(text.as_bytes());
        }
    }
}
