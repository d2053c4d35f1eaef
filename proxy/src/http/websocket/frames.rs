//! Follows the frames of one direction of a WebSocket (RFC 6455 §5.2) as its bytes pass by, as far as
//! is needed to know where one ends: headers are read, payloads are skipped.

/// Where in the stream of frames a direction is.
#[derive(Debug, Default)]
pub struct Frames {
    header: [u8; HEADER_BYTES_MAX],
    /// Bytes of `header` that have come.
    have: usize,
    /// Bytes of the payload that have not, once the header is complete.
    left: Option<u64>,
    closed: bool,
    lost: bool,
}

/// Two bytes, the longest length, a mask.
const HEADER_BYTES_MAX: usize = 2 + 8 + 4;

const CLOSE: u8 = 0x8;
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// RFC 6455 §7.4.1: "an endpoint is going away, such as a server going down".
const GOING_AWAY: u16 = 1001;

/// The frame that tells a client of going away.
pub fn close() -> [u8; 4] {
    let [high, low] = GOING_AWAY.to_be_bytes();
    [FIN | CLOSE, 2, high, low]
}

/// The same for an instance.
pub fn masked_close(mask: [u8; 4]) -> [u8; 8] {
    let [high, low] = GOING_AWAY.to_be_bytes();
    let [first, second, third, fourth] = mask;
    //= https://www.rfc-editor.org/rfc/rfc6455#section-5.1
    //# a client MUST mask all frames that it sends to the server
    [FIN | CLOSE, MASKED | 2, first, second, third, fourth, high ^ first, low ^ second]
}

// === impl Frames ===

impl Frames {
    /// Follows all of `bytes`.
    pub fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = self.to_boundary(bytes);
            bytes = &bytes[taken..];
        }
    }

    /// Follows `bytes` to the end of the frame that is under way or, without one, of the next; says how
    /// many that were, which is all of them if it does not end in here.
    pub fn to_boundary(&mut self, bytes: &[u8]) -> usize {
        if self.lost || self.closed {
            return bytes.len();
        }
        let mut taken = 0;
        let left = loop {
            if let Some(left) = self.left {
                break left;
            }
            let Some(byte) = bytes.get(taken) else { return taken };
            self.header[self.have] = *byte;
            self.have += 1;
            taken += 1;
            self.left = self.length();
            if self.lost {
                return bytes.len();
            }
        };
        let skipped = left.min((bytes.len() - taken) as u64);
        taken += skipped as usize;
        self.left = Some(left - skipped);
        if left == skipped {
            self.closed = self.header[0] & 0xf == CLOSE;
            (self.have, self.left) = (0, None);
        }
        taken
    }

    /// Whether a frame may be put in here: between two others, which may be fragments of one message
    /// (RFC 6455 §5.4), and not after the last.
    pub fn is_at_boundary(&self) -> bool {
        self.have == 0 && !self.closed && !self.lost
    }

    /// Whether a close frame has passed: nothing may follow it.
    pub fn has_closed(&self) -> bool {
        self.closed
    }

    /// The payload's length, once the header is complete.
    fn length(&mut self) -> Option<u64> {
        let header = &self.header[..self.have];
        let [first, second, rest @ ..] = header else { return None };
        // What the two sides may have agreed on beyond the RFC is not interfered with.
        self.lost = matches!(first & 0xf, 0x3..=0x7 | 0xb..=0xf);
        let extended = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if second & MASKED == 0 { 0 } else { 4 };
        if rest.len() < extended + mask {
            return None;
        }
        if extended == 0 {
            return Some(u64::from(second & 0x7f));
        }
        let length = rest[..extended].iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
        self.lost |= length >> 63 == 1;
        Some(length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(first: u8, payload: usize, mask: bool) -> Vec<u8> {
        let masked = if mask { MASKED } else { 0 };
        let mut frame = vec![first];
        match payload {
            0..126 => frame.push(masked | payload as u8),
            126..65_536 => {
                frame.push(masked | 126);
                frame.extend((payload as u16).to_be_bytes());
            }
            _ => {
                frame.push(masked | 127);
                frame.extend((payload as u64).to_be_bytes());
            }
        }
        frame.extend(mask.then_some([0x88, 0x02, 0x03, 0xe9]).into_iter().flatten());
        // A payload that looks like frames itself.
        frame.extend(std::iter::repeat_n(FIN | CLOSE, payload));
        frame
    }

    #[test]
    fn a_close_is_what_the_rfc_says() {
        assert_eq!(close(), [0x88, 0x02, 0x03, 0xe9]);
        let masked = masked_close([1, 2, 3, 4]);
        assert_eq!(masked[..6], [0x88, 0x82, 1, 2, 3, 4]);
        assert_eq!([masked[6] ^ 1, masked[7] ^ 2], [0x03, 0xe9]);
        for bytes in [&close()[..], &masked] {
            let mut frames = Frames::default();
            frames.follow(bytes);
            assert!(frames.has_closed() && !frames.is_at_boundary());
        }
    }

    #[test]
    fn a_boundary_may_be_between_fragments_and_never_within_one() {
        let (first, last) = (frame(0x01, 300, true), frame(0x80, 3, true));
        let mut frames = Frames::default();
        for byte in &first[..first.len() - 1] {
            frames.follow(&[*byte]);
            assert!(!frames.is_at_boundary());
        }
        frames.follow(&first[first.len() - 1..]);
        assert!(frames.is_at_boundary(), "between two fragments of a message");
        frames.follow(&last);
        assert!(frames.is_at_boundary() && !frames.has_closed());
    }

    #[test]
    fn the_first_boundary_of_many_is_found() {
        let bytes = [frame(0x82, 10, false), frame(0x82, 20, false)].concat();
        let mut frames = Frames::default();
        frames.follow(&bytes[..4]);
        assert_eq!(frames.to_boundary(&bytes[4..]), 12 - 4);
        assert!(frames.is_at_boundary());
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        for nonsense in [&frame(0x83, 1, false)[..], &[0x82, 0x7f, 0x80, 0, 0, 0, 0, 0, 0, 0]] {
            let mut frames = Frames::default();
            frames.follow(nonsense);
            assert!(!frames.is_at_boundary() && !frames.has_closed());
            frames.follow(&close());
            assert!(!frames.is_at_boundary() && !frames.has_closed());
        }
    }

    proptest! {
        #[test]
        fn boundaries_do_not_depend_on_how_bytes_arrive(
            payloads in prop::collection::vec((0_usize..70_000, any::<bool>()), 1..6),
            cuts in prop::collection::vec(1_usize..40_000, 1..20),
        ) {
            let whole: Vec<Vec<u8>> =
                payloads.iter().map(|(length, mask)| frame(0x82, *length, *mask)).collect();
            let ends: Vec<usize> = whole
                .iter()
                .scan(0, |end, frame| { *end += frame.len(); Some(*end) })
                .collect();
            let bytes = whole.concat();
            let (mut frames, mut at, mut found) = (Frames::default(), 0, Vec::new());
            for cut in cuts.iter().cycle() {
                if at == bytes.len() { break }
                let mut piece = &bytes[at..bytes.len().min(at + cut)];
                while !piece.is_empty() {
                    let taken = frames.to_boundary(piece);
                    (at, piece) = (at + taken, &piece[taken..]);
                    if frames.is_at_boundary() { found.push(at) }
                }
            }
            prop_assert_eq!(found, ends);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut frames = Frames::default();
            frames.follow(&bytes);
        }
    }
}
