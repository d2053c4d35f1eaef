//! Frames of RFC 6455 §5.2, from clients and back.

use bytes::{Buf as _, Bytes, BytesMut};

/// One frame; a message may be several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    /// FIN and the reserved bits, as they came.
    flags: u8,
    pub(super) opcode: Opcode,
    payload: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opcode(u8);

/// Not a frame this side takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Malformed {
    Unmasked,
    TooLong,
}

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const OPCODE: u8 = 0x0f;

const PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// Takes one whole frame; `None` until there is one.
pub(super) fn take(received: &mut BytesMut) -> Result<Option<Frame>, Malformed> {
    let Some((&[first, second], rest)) = received.split_first_chunk() else { return Ok(None) };
    //= https://www.rfc-editor.org/rfc/rfc6455#section-5.1
    //# The server MUST close the connection upon receiving a frame that is not masked.
    if second & MASKED == 0 {
        return Err(Malformed::Unmasked);
    }
    let (length, rest) = match second & !MASKED {
        126 => match rest.split_first_chunk() {
            Some((length, rest)) => (usize::from(u16::from_be_bytes(*length)), rest),
            None => return Ok(None),
        },
        127 => match rest.split_first_chunk() {
            // What does not fit is too long as well.
            Some((length, rest)) => (u64::from_be_bytes(*length) as usize, rest),
            None => return Ok(None),
        },
        length => (usize::from(length), rest),
    };
    if length > PAYLOAD_BYTES_MAX {
        return Err(Malformed::TooLong);
    }
    let Some((&mask, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    if rest.len() < length {
        return Ok(None);
    }
    received.advance(received.len() - rest.len());
    let mut payload = received.split_to(length);
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    let (flags, opcode) = (first & !OPCODE, Opcode(first & OPCODE));
    Ok(Some(Frame { flags, opcode, payload: payload.freeze() }))
}

// === impl Frame ===

impl Frame {
    pub(super) fn close(code: u16) -> Self {
        let payload = Bytes::copy_from_slice(&code.to_be_bytes());
        Self { flags: FIN, opcode: Opcode::CLOSE, payload }
    }

    pub(super) fn into_pong(self) -> Self {
        Self { opcode: Opcode::PONG, ..self }
    }

    /// Writes it as servers do: not masked.
    pub(super) fn put(&self, to: &mut Vec<u8>) {
        let Self { flags, opcode, payload } = self;
        to.push(flags | opcode.0);
        match payload.len() {
            length @ 0..126 => to.push(length as u8),
            length @ 126..=0xffff => {
                to.push(126);
                to.extend((length as u16).to_be_bytes());
            }
            length => {
                to.push(127);
                to.extend((length as u64).to_be_bytes());
            }
        }
        to.extend_from_slice(payload);
    }
}

// === impl Opcode ===

impl Opcode {
    pub(super) const CLOSE: Self = Self(0x8);
    pub(super) const PING: Self = Self(0x9);
    pub(super) const PONG: Self = Self(0xa);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text frame of a client, its payload made of zeros.
    fn sent(length: usize, head: &[u8]) -> BytesMut {
        let mut frame = BytesMut::from(&[0x81][..]);
        frame.extend_from_slice(head);
        frame.extend_from_slice(&[1, 2, 3, 4]);
        // Zeros, masked.
        frame.extend([1, 2, 3, 4].iter().cycle().take(length));
        frame
    }

    #[test]
    fn the_example_of_the_rfc_is_read() {
        let frame = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        let mut received = BytesMut::from(&frame[..]);
        let taken = take(&mut received).expect("it is masked").expect("it is whole");
        assert_eq!(taken.payload, "Hello");
        assert!(received.is_empty());
        for whole in 0..frame.len() {
            assert_eq!(take(&mut BytesMut::from(&frame[..whole])), Ok(None), "{whole}");
        }
    }

    #[test]
    fn lengths_have_three_forms() {
        let check = |length: usize, received: &[u8], written: &[u8]| {
            let taken = take(&mut sent(length, received)).expect("it is masked");
            let frame = taken.expect("it is whole");
            assert_eq!(frame.payload, vec![0; length]);
            let mut answer = Vec::new();
            frame.put(&mut answer);
            assert_eq!(answer[1..answer.len() - length], *written, "{length}");
        };
        check(125, &[0x80 | 125], &[125]);
        check(126, &[0x80 | 126, 0, 126], &[126, 0, 126]);
        check(65536, &[0x80 | 127, 0, 0, 0, 0, 0, 1, 0, 0], &[127, 0, 0, 0, 0, 0, 1, 0, 0]);
        let too_long = sent(0, &[0x80 | 127, 0, 0, 0, 0, 0, 1, 0, 1]);
        assert_eq!(take(&mut too_long.clone()), Err(Malformed::TooLong));
    }
}
