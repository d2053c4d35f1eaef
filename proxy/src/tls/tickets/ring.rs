//! Two keys and when they change: one seals, both open. Pure but for randomness; `now` is an
//! argument.
//!
//! ```text
//!             0 h        6 h        12 h       18 h
//! first key   seals ──── opens ──── gone
//! second key             seals ──── opens ──── gone
//! ```
//!
//! A ticket is the key's name, a nonce, and the session sealed by AES-256-GCM with the name as
//! associated data. Nonces are 96 random bits, so a key must not seal more than 2³² times (NIST SP
//! 800-38D, section 8.3): in six hours that is 198,000 handshakes a second.

use std::ops::{Deref, DerefMut};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::rand;
use zeroize::Zeroizing;

pub(super) struct Ring {
    pub(super) current: Key,
    pub(super) previous: Option<Key>,
    /// When `current` began to seal, in seconds.
    pub(super) began: u64,
}

pub(super) struct Key {
    /// To be handed over. The library wipes its own copy when it frees it.
    pub(super) bytes: KeyBytes,
    key: RandomizedNonceKey,
}

/// The name of a key and its secret: wiped when dropped, and boxed, because a move would leave a
/// copy on the stack.
#[derive(Clone, PartialEq)]
pub(super) struct KeyBytes(Box<Zeroizing<[u8; NAME_BYTES + SECRET_BYTES]>>);

const NAME_BYTES: usize = 16;

const SECRET_BYTES: usize = 32;

const TAG_BYTES: usize = 16;

/// Seconds for which a key seals.
pub(super) const ROTATION: u64 = 6 * 60 * 60;

/// Seconds after which a ticket opens no more: it was sealed at the beginning at the earliest, and
/// the key opens for as long again as it sealed.
pub(super) const TICKET_LIFE: u64 = 2 * ROTATION;

/// Bytes of a session, which without client certificates are a few hundred: a name and a protocol
/// of at most 255 each, and secrets.
const SESSION_BYTES_MAX: usize = 2 * 1024;

const TICKET_BYTES_MAX: usize = NAME_BYTES + NONCE_LEN + SESSION_BYTES_MAX + TAG_BYTES;

// === impl Ring ===

impl Ring {
    /// One new key; `None` without randomness.
    pub(super) fn generate(now: u64) -> Option<Self> {
        Some(Self { current: Key::generate()?, previous: None, began: now })
    }

    /// Whether another key should seal by now.
    pub(super) fn is_over(&self, now: u64) -> bool {
        now.saturating_sub(self.began) >= ROTATION
    }

    /// The keys after this; `None` without randomness.
    ///
    /// Keeps to the schedule however late it is called, so that a key that nobody needed for long
    /// opens nothing after its time.
    pub(super) fn next(&self, now: u64) -> Option<Self> {
        let since = now.saturating_sub(self.began);
        let began = now - since % ROTATION;
        let previous = (since < TICKET_LIFE).then(|| self.current.again());
        Some(Self { current: Key::generate()?, previous, began })
    }

    /// The session of a ticket; `None` for anything that was not sealed by one of these keys.
    pub(super) fn open(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        if ticket.len() > TICKET_BYTES_MAX {
            return None;
        }
        let (name, rest) = ticket.split_first_chunk::<NAME_BYTES>()?;
        let keys = [Some(&self.current), self.previous.as_ref()];
        keys.into_iter().flatten().find(|key| key.name() == name)?.open(rest)
    }
}

// === impl Key ===

impl Key {
    fn generate() -> Option<Self> {
        let mut bytes = KeyBytes::default();
        rand::fill(&mut bytes[..]).ok()?;
        Some(Self::new(bytes))
    }

    pub(super) fn new(bytes: KeyBytes) -> Self {
        let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes[NAME_BYTES..]);
        Self { key: key.expect("AES-256 takes any 32 bytes"), bytes }
    }

    fn again(&self) -> Self {
        Self::new(self.bytes.clone())
    }

    fn name(&self) -> &[u8] {
        &self.bytes[..NAME_BYTES]
    }

    /// A ticket; `None` when the session is too long for one, or cannot be sealed.
    pub(super) fn seal(&self, session: &[u8]) -> Option<Vec<u8>> {
        if session.len() > SESSION_BYTES_MAX {
            return None;
        }
        // Room for all of it at once: what is sealed in place would leave a copy behind when it
        // grows, in clear.
        let head = NAME_BYTES + NONCE_LEN;
        let mut ticket = Vec::with_capacity(head + session.len() + TAG_BYTES);
        ticket.extend_from_slice(self.name());
        ticket.resize(head, 0);
        ticket.extend_from_slice(session);
        let (start, sealed) = ticket.split_at_mut(head);
        let (nonce, tag) =
            self.key.seal_in_place_separate_tag(Aad::from(self.name()), sealed).ok()?;
        start[NAME_BYTES..].copy_from_slice(nonce.as_ref());
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    /// What follows the name in a ticket.
    fn open(&self, rest: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let mut session = sealed.to_vec();
        let length =
            self.key.open_in_place(nonce, Aad::from(self.name()), &mut session).ok()?.len();
        session.truncate(length);
        Some(session)
    }
}

// === impl KeyBytes ===

impl Default for KeyBytes {
    fn default() -> Self {
        Self(Box::new(Zeroizing::new([0; NAME_BYTES + SECRET_BYTES])))
    }
}

impl Deref for KeyBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0[..]
    }
}

impl DerefMut for KeyBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0[..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &[u8] = b"a session";

    /// What a ring that is asked at each of these times opens of what was sealed at the first.
    fn opens_at(times: &[u64]) -> bool {
        let mut ring = Ring::generate(0).unwrap();
        let mut ticket = None;
        for now in times {
            while ring.is_over(*now) {
                ring = ring.next(*now).unwrap();
            }
            ticket.get_or_insert_with(|| ring.current.seal(SESSION).unwrap());
        }
        ring.open(&ticket.unwrap()).is_some_and(|session| session == SESSION)
    }

    #[test]
    fn a_ticket_opens_after_one_rotation_and_not_after_two_however_often_keys_are_asked_for() {
        let cases: [(&[u64], bool); 9] = [
            (&[0], true),
            (&[0, ROTATION - 1], true),
            (&[0, ROTATION], true),
            (&[0, 2 * ROTATION - 1], true),
            (&[0, ROTATION, 2 * ROTATION - 1], true),
            (&[0, 2 * ROTATION], false),
            (&[0, ROTATION, 2 * ROTATION], false),
            // Sealed a second before the rotation: it lives little more than six hours.
            (&[ROTATION - 1, 2 * ROTATION - 1], true),
            (&[ROTATION - 1, 2 * ROTATION], false),
        ];
        for (times, expected) in cases {
            assert_eq!(opens_at(times), expected, "{times:?}");
        }
    }

    #[test]
    fn rotations_keep_to_their_schedule() {
        let mut ring = Ring::generate(100).unwrap();
        for (now, began) in [
            (100 + ROTATION, 100 + ROTATION),
            (150 + 2 * ROTATION, 100 + 2 * ROTATION),
            (99 + 9 * ROTATION, 100 + 8 * ROTATION),
        ] {
            assert!(ring.is_over(now));
            ring = ring.next(now).unwrap();
            assert_eq!(ring.began, began);
            assert!(!ring.is_over(now));
        }
        // A clock that goes back changes nothing.
        assert!(!ring.is_over(0));
    }

    #[test]
    fn what_was_not_sealed_here_opens_as_nothing() {
        let ring = Ring::generate(0).unwrap();
        let ticket = ring.current.seal(SESSION).unwrap();
        assert_eq!(ring.open(&ticket).as_deref(), Some(SESSION)); // the control
        for length in 0..ticket.len() {
            assert_eq!(ring.open(&ticket[..length]), None, "cut to {length}");
        }
        for bit in 0..ticket.len() * 8 {
            let mut ticket = ticket.clone();
            ticket[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(ring.open(&ticket), None, "bit {bit}");
        }
        let mut longer = ticket.clone();
        longer.push(0);
        assert_eq!(ring.open(&longer), None);
        assert_eq!(ring.open(&[0xff; 4096]), None);
        assert_eq!(Ring::generate(0).unwrap().open(&ticket), None, "sealed with another key");
        let mut huge = ticket;
        huge.resize(TICKET_BYTES_MAX + 1, 0);
        assert_eq!(ring.open(&huge), None);
    }

    #[test]
    fn a_ticket_says_nothing_and_two_of_one_session_have_the_key_name_in_common_only() {
        let ring = Ring::generate(0).unwrap();
        let [a, b] = [(); 2].map(|()| ring.current.seal(SESSION).unwrap());
        assert_eq!(a.len(), NAME_BYTES + NONCE_LEN + SESSION.len() + TAG_BYTES);
        assert_eq!(a[..NAME_BYTES], b[..NAME_BYTES]);
        assert_ne!(a[NAME_BYTES..][..NONCE_LEN], b[NAME_BYTES..][..NONCE_LEN]);
        assert!(!a.windows(SESSION.len()).any(|bytes| bytes == SESSION));
        assert!(ring.current.seal(&[1; SESSION_BYTES_MAX]).is_some());
        assert!(ring.current.seal(&[1; SESSION_BYTES_MAX + 1]).is_none());
        let longest = ring.current.seal(&[1; SESSION_BYTES_MAX]).unwrap();
        assert_eq!(ring.open(&longest).unwrap().len(), SESSION_BYTES_MAX);
    }
}
