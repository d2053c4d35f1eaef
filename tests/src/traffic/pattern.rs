//! Bytes that a receiver knows without having been told, so that every one of a transfer is checked.

use std::sync::LazyLock;

use bytes::Bytes;

/// A prime, so that no chunk, frame or buffer size divides it and a piece that is missing or comes
/// twice shifts everything after it.
const PERIOD: usize = 65_521;

/// Longest piece that is taken or checked at once.
pub(super) const PIECE_MAX: usize = 64 * 1024;

static TABLE: LazyLock<Bytes> = LazyLock::new(|| {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let random = std::iter::repeat_with(|| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    });
    let period: Vec<u8> = random.take(PERIOD).collect();
    period.iter().copied().cycle().take(PERIOD + PIECE_MAX).collect()
});

/// `length` bytes from `offset` on, at most [`PIECE_MAX`].
pub(super) fn piece(offset: u64, length: usize) -> Bytes {
    let at = usize::try_from(offset % PERIOD as u64).expect("below the period");
    TABLE.slice(at..at + length.min(PIECE_MAX))
}

/// Whether `bytes` are what is at `offset`.
pub(super) fn is_at(mut offset: u64, bytes: &[u8]) -> bool {
    bytes.chunks(PIECE_MAX).all(|chunk| {
        let right = piece(offset, chunk.len()) == chunk;
        offset += chunk.len() as u64;
        right
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_that_is_missing_or_changed_is_found() {
        let far = 100_000_000;
        let bytes = piece(far, 1_000);
        assert!(is_at(far, &bytes));
        assert!(!is_at(far, &bytes[1..]), "one is missing");
        let mut changed = bytes.to_vec();
        changed[999] ^= 1;
        assert!(!is_at(far, &changed));
        assert!(!is_at(far + PIECE_MAX as u64, &bytes), "a whole buffer is missing");
    }

    #[test]
    fn more_than_a_piece_is_checked_to_its_end() {
        let mut bytes = [piece(7, PIECE_MAX), piece(7 + PIECE_MAX as u64, 100)].concat();
        assert!(is_at(7, &bytes));
        *bytes.last_mut().unwrap() ^= 1;
        assert!(!is_at(7, &bytes));
    }
}
