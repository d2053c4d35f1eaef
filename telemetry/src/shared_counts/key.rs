//! What names a count in both processes.

use aws_lc_rs::digest::{Context, SHA256};

/// What is counted: a 128-bit hash of its names.
///
/// SHA-256 of [`DOMAIN`] and of each part behind its length (8 bytes, little-endian), cut to the
/// first 16 bytes. No seed: both processes come to the same key without a word, also when they are
/// of different versions. Names are what app files say, and finding two with the same key takes
/// 2⁶⁴ attempts; what a tenant can do is to fill a window of rows, after which somebody's limit
/// holds per process during an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(pub(super) [u64; 2]);

/// Of the form of keys; another form would need another one.
const DOMAIN: &[u8] = b"ferrule shared counts 1";

// === impl Key ===

impl Key {
    /// The key of what these parts name together. The first should say what kind of thing it is.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(DOMAIN);
        for part in parts {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let hash = hash.finish();
        let (words, _) = hash.as_ref().as_chunks::<8>();
        // Zero is a free row, and no key.
        Self([u64::from_le_bytes(words[0]) | 1, u64::from_le_bytes(words[1])])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_same_in_every_version() {
        // From `printf 'ferrule shared counts 1\x01\0\0\0\0\0\0\0a' | sha256sum`; the lowest bit of
        // the first word is set.
        let Key(words) = Key::of(&[b"a"]);
        assert_eq!(words, [0xd7b8_8778_ee63_8513, 0xa269_600d_5210_84c4]);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let keys = [
            Key::of(&[b"ab", b"c"]),
            Key::of(&[b"a", b"bc"]),
            Key::of(&[b"abc"]),
            Key::of(&[b"abc", b""]),
            Key::of(&[]),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key), "{index}");
        }
    }
}
