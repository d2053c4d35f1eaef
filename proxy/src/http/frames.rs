//! Follows the frames of an HTTP/2 connection as its bytes pass by: their headers, and no payload.
//= https://www.rfc-editor.org/rfc/rfc9113#section-4.1
//# All frames begin with a fixed 9-octet header followed by a variable-length frame payload.

pub(crate) const HEADER_BYTES: usize = 9;

/// Where in a frame one direction of a connection is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Frames {
    /// Bytes to skip: the preface first, then payloads.
    skip: usize,
    header: [u8; HEADER_BYTES],
    header_len: usize,
}

/// What a frame says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes of payload.
    pub length: usize,
    pub kind: u8,
    pub flags: u8,
}

pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const CONTINUATION: u8 = 9;
}

pub(crate) mod flag {
    pub(crate) const ACK: u8 = 1;
    pub(crate) const END_STREAM: u8 = 1;
    pub(crate) const END_HEADERS: u8 = 4;
}

// === impl Frames ===

impl Frames {
    /// The first frame comes after so many bytes.
    pub(crate) fn after(preface_bytes: usize) -> Self {
        Self { skip: preface_bytes, ..Self::default() }
    }

    /// The next bytes of the connection; `each` sees every header that ends in them.
    pub(crate) fn read(&mut self, mut bytes: &[u8], mut each: impl FnMut(Header)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let take = (HEADER_BYTES - self.header_len).min(bytes.len());
            self.header[self.header_len..self.header_len + take].copy_from_slice(&bytes[..take]);
            self.header_len += take;
            bytes = &bytes[take..];
            if self.header_len == HEADER_BYTES {
                self.header_len = 0;
                let [a, b, c, kind, flags, ..] = self.header;
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                each(Header { length: self.skip, kind, flags });
            }
        }
    }
}
