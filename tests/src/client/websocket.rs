//! As much of RFC 6455 as a test needs: the handshake, and small frames.

use std::io;

use super::Raw;

/// Appended to the key before hashing (RFC 6455, section 1.3).
const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The client's end of a WebSocket.
pub struct WebSocket {
    raw: Raw,
}

impl WebSocket {
    /// Asks for an upgrade of an HTTP/1.1 connection.
    ///
    /// # Panics
    /// When the answer is not a sound 101.
    #[track_caller]
    pub fn upgrade(mut raw: Raw, host: &str, path: &str) -> Self {
        let key = base64(b"sixteen bytes !!");
        raw.send(format!(
            "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n\r\n"
        ));
        let response = raw.response();
        assert_eq!(response.status, 101, "{response:?}");
        assert_eq!(response.header("sec-websocket-accept"), Some(accept_key(&key).as_str()));
        assert_eq!(response.header("upgrade").map(str::to_lowercase).as_deref(), Some("websocket"));
        Self { raw }
    }

    /// Sends one masked frame with this opcode.
    ///
    /// # Panics
    /// When the connection is gone.
    #[track_caller]
    pub fn send(&mut self, opcode: u8, payload: &[u8]) {
        self.raw.send(frame(opcode, payload, Some([1, 2, 3, 4])));
    }

    /// Reads one frame: opcode and payload.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn receive(&mut self) -> (u8, Vec<u8>) {
        let reader = self.raw.reader();
        let mut exactly =
            |count| reader.exactly(count).unwrap_or_else(|error| panic!("no frame: {error}"));
        let head = exactly(2);
        let length = match head[1] & 0x7f {
            126 => {
                let bytes = exactly(2);
                usize::from(u16::from_be_bytes([bytes[0], bytes[1]]))
            }
            127 => panic!("a frame larger than a test sends"),
            small => usize::from(small),
        };
        (head[0] & 0x0f, exactly(length))
    }

    /// The connection below.
    pub fn raw(&mut self) -> &mut Raw {
        &mut self.raw
    }
}

/// One final frame.
///
/// # Panics
/// When the payload is longer than 65,535 bytes.
pub(crate) fn frame(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut frame = vec![0x80 | opcode];
    match u8::try_from(payload.len()) {
        Ok(length @ ..126) => frame.push(masked | length),
        _ => {
            let length = u16::try_from(payload.len()).expect("a small payload");
            frame.push(masked | 126);
            frame.extend(length.to_be_bytes());
        }
    }
    let mask = mask.inspect(|mask| frame.extend(mask)).unwrap_or_default();
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Reads one masked frame of a client: opcode and payload.
///
/// # Errors
/// When there is none.
pub(crate) fn read_frame(
    mut exactly: impl FnMut(usize) -> io::Result<Vec<u8>>,
) -> io::Result<(u8, Vec<u8>)> {
    let head = exactly(2)?;
    let length = match head[1] & 0x7f {
        126 => {
            let bytes = exactly(2)?;
            usize::from(u16::from_be_bytes([bytes[0], bytes[1]]))
        }
        127 => return Err(io::Error::other("a frame larger than a test sends")),
        small => usize::from(small),
    };
    let mask = if head[1] & 0x80 == 0 { vec![0; 4] } else { exactly(4)? };
    let payload = exactly(length)?;
    let payload = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    Ok((head[0] & 0x0f, payload.collect()))
}

/// What `sec-websocket-accept` must be for this key.
pub fn accept_key(key: &str) -> String {
    base64(&sha1(format!("{key}{MAGIC}").as_bytes()))
}

/// Base64 with padding.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0; 4];
        group[1..=chunk.len()].copy_from_slice(chunk);
        let group = u32::from_be_bytes(group);
        for position in 0..4 {
            let index = (group >> (18 - 6 * position)) & 63;
            let letter = if position <= chunk.len() { ALPHABET[index as usize] } else { b'=' };
            text.push(char::from(letter));
        }
    }
    text
}

/// SHA-1 (FIPS 180-4), which RFC 6455 wants for no security at all.
fn sha1(message: &[u8]) -> [u8; 20] {
    let mut state: [u32; 5] = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476, 0xC3D2_E1F0];
    let mut padded = message.to_vec();
    padded.push(0x80);
    padded.resize(padded.len().next_multiple_of(64), 0);
    if padded.len() - message.len() < 9 {
        padded.resize(padded.len() + 64, 0);
    }
    let end = padded.len() - 8;
    padded[end..].copy_from_slice(&(message.len() as u64 * 8).to_be_bytes());
    for block in padded.chunks_exact(64) {
        let mut words = [0; 80];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        for t in 16..80 {
            words[t] = (words[t - 3] ^ words[t - 8] ^ words[t - 14] ^ words[t - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (t, word) in words.into_iter().enumerate() {
            let (f, k): (u32, u32) = match t {
                0..20 => ((b & c) | (!b & d), 0x5A82_7999),
                20..40 => (b ^ c ^ d, 0x6ED9_EBA1),
                40..60 => ((b & c) | (b & d) | (c & d), 0x8F1B_BCDC),
                _ => (b ^ c ^ d, 0xCA62_C1D6),
            };
            let sum = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, sum.wrapping_add(word));
        }
        for (held, new) in state.iter_mut().zip([a, b, c, d, e]) {
            *held = held.wrapping_add(new);
        }
    }
    let mut digest = [0; 20];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_key_is_the_one_of_the_rfc() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_masked_frame_is_read_back() {
        for length in [0, 5, 125, 126, 1000] {
            let payload = vec![7; length];
            let mut bytes = frame(2, &payload, Some([9, 8, 7, 6])).into_iter();
            let read = read_frame(|count| Ok(bytes.by_ref().take(count).collect())).unwrap();
            assert_eq!(read, (2, payload));
        }
    }
}
