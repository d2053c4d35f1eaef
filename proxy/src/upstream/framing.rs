//! Which response heads an HTTP/1 instance may send: those with one reading of where the body ends.

/// Why a head was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ambiguous {
    #[error("a transfer coding other than chunked")]
    TransferCoding,
    #[error("a transfer coding and a content length")]
    CodingAndLength,
    #[error("content lengths that differ or are no numbers")]
    Length,
}

/// What the fields of one head say of the length of its body.
#[derive(Debug, Default)]
pub(crate) struct Framing {
    codings: usize,
    is_chunked: bool,
    lengths: usize,
    length: Option<u64>,
    /// The one length is written in one field, as digits.
    is_plain: bool,
    differ: bool,
}

/// How the body is framed, as far as the fields decide it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framed {
    Chunked,
    Length {
        bytes: u64,
        /// It was said more than once, or in a list.
        is_repeated: bool,
    },
    /// By the end of the connection.
    Open,
}

// === impl Framing ===

impl Framing {
    /// Notes one `Transfer-Encoding` field.
    pub(crate) fn coding(&mut self, value: &[u8]) {
        self.codings += 1;
        self.is_chunked = value.eq_ignore_ascii_case(b"chunked");
    }

    /// Notes one `Content-Length` field.
    pub(crate) fn length(&mut self, value: &[u8]) {
        self.lengths += 1;
        if let Some(length) = number(value) {
            self.is_plain = self.lengths == 1;
            self.add_length(Some(length));
            return;
        }
        self.is_plain = false;
        for part in value.split(|byte| *byte == b',') {
            self.add_length(number(part.trim_ascii()));
        }
    }

    fn add_length(&mut self, length: Option<u64>) {
        self.differ |= length.is_none() || self.length.is_some_and(|first| Some(first) != length);
        self.length = self.length.or(length);
    }

    /// Refuses what two readers could frame differently.
    ///
    //= https://www.rfc-editor.org/rfc/rfc9112#section-6.3
    //# If a message is received without Transfer-Encoding and with either
    //# multiple Content-Length header fields having differing field-values or
    //# a single Content-Length header field having an invalid value, then the
    //# message framing is invalid
    pub(crate) fn verdict(&self) -> Result<Framed, Ambiguous> {
        match (self.codings, self.lengths) {
            (0, 0) => Ok(Framed::Open),
            (0, _) => match self.length {
                Some(bytes) if !self.differ => {
                    Ok(Framed::Length { bytes, is_repeated: !self.is_plain })
                }
                _ => Err(Ambiguous::Length),
            },
            (1, 0) if self.is_chunked => Ok(Framed::Chunked),
            (1, _) if self.is_chunked => Err(Ambiguous::CodingAndLength),
            _ => Err(Ambiguous::TransferCoding),
        }
    }
}

/// Digits and nothing else: no sign, no space.
pub(crate) fn number(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_has_one_reading_or_none() {
        use Ambiguous::{CodingAndLength, Length, TransferCoding};
        const CL: &str = "content-length";
        const TE: &str = "transfer-encoding";
        let length = |bytes, is_repeated| Ok(Framed::Length { bytes, is_repeated });
        for (fields, expected) in [
            (&[][..], Ok(Framed::Open)),
            (&[(CL, "5")], length(5, false)),
            (&[(CL, "5"), (CL, "5")], length(5, true)),
            (&[(CL, "5, 5")], length(5, true)),
            (&[(CL, "5, 5"), (CL, "5")], length(5, true)),
            (&[(CL, "5"), (CL, "6")], Err(Length)),
            (&[(CL, "5, 6")], Err(Length)),
            (&[(CL, "x"), (CL, "6")], Err(Length)),
            (&[(CL, "+5")], Err(Length)),
            (&[(CL, "")], Err(Length)),
            (&[(CL, "5,")], Err(Length)),
            (&[(CL, "99999999999999999999")], Err(Length)),
            (&[(TE, "chunked")], Ok(Framed::Chunked)),
            (&[(TE, "Chunked")], Ok(Framed::Chunked)),
            (&[(TE, "gzip, chunked")], Err(TransferCoding)),
            (&[(TE, "chunked, chunked")], Err(TransferCoding)),
            (&[(TE, "chunked"), (TE, "identity")], Err(TransferCoding)),
            (&[(TE, "identity"), (TE, "chunked")], Err(TransferCoding)),
            (&[(TE, "identity")], Err(TransferCoding)),
            (&[(TE, "chunked"), (CL, "5")], Err(CodingAndLength)),
        ] {
            let mut framing = Framing::default();
            for (name, value) in fields {
                match *name {
                    CL => framing.length(value.as_bytes()),
                    _ => framing.coding(value.as_bytes()),
                }
            }
            assert_eq!(framing.verdict(), expected, "{fields:?}");
        }
    }
}
