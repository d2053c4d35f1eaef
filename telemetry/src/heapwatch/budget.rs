//! Owners that said how much they will hold: caches, pools, rings.
//!
//! A cache that fills looks like a leak until it is full. What is allocated inside [`budget!`] is
//! charged to its owner, and no verdict is given on it while the owner is under its cap.
//!
//! [`budget!`]: macro@crate::budget

use std::sync::OnceLock;
use std::sync::atomic::{
    AtomicU8, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};

use super::tag::{self, Charge};

/// Owners that can be told apart; later ones are charged to nobody, so they can alarm.
pub(super) const OWNERS_MAX: usize = 63;

/// Names by number - 1.
static NAMES: [OnceLock<&'static str>; OWNERS_MAX] = [const { OnceLock::new() }; OWNERS_MAX];
static CAPS: [AtomicU64; OWNERS_MAX] = [const { AtomicU64::new(0) }; OWNERS_MAX];

/// One owner, declared by the macro as a static beside its use.
pub struct Budget {
    name: &'static str,
    /// 0: not registered yet; [`NOBODY`]: there was no room.
    number: AtomicU8,
}

const NOBODY: u8 = u8::MAX;

/// What one owner said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) name: &'static str,
    pub(super) cap: u64,
}

/// Until the guard is dropped, what this thread allocates belongs to the owner `$name`, which holds
/// at most `$cap` bytes: `let _owner = telemetry::budget!("dns_cache", config.cache_bytes);`
#[macro_export]
macro_rules! budget {
    ($name:literal, $cap:expr) => {{
        static OWNER: $crate::heapwatch::Budget = $crate::heapwatch::Budget::new($name);
        OWNER.enter($cap)
    }};
}

// === impl Budget ===

impl Budget {
    pub const fn new(name: &'static str) -> Self {
        Self { name, number: AtomicU8::new(0) }
    }

    /// Charges this thread's allocations to the owner, whose cap is `cap` bytes from now on.
    #[inline]
    pub fn enter(&self, cap: u64) -> Charge {
        let before = tag::current();
        let number = match self.number.load(Acquire) {
            0 => self.register(),
            number => number,
        };
        if number == NOBODY {
            return before.enter(before);
        }
        CAPS[usize::from(number) - 1].store(cap, Relaxed);
        before.with_owner(number).enter(before)
    }

    /// The same name in two places is one owner.
    #[cold]
    fn register(&self) -> u8 {
        let mut number = NOBODY;
        for (index, name) in NAMES.iter().enumerate() {
            if *name.get_or_init(|| self.name) == self.name {
                number = u8::try_from(index + 1).unwrap_or(NOBODY);
                break;
            }
        }
        self.number.store(number, Release);
        number
    }
}

/// What the owner with this number said.
pub(super) fn declared(number: u8) -> Option<Declared> {
    let index = usize::from(number).checked_sub(1)?;
    let name = NAMES.get(index)?.get().copied()?;
    Some(Declared { name, cap: CAPS[index].load(Relaxed) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_is_one_owner_and_its_last_cap_counts() {
        let number = |cap| {
            let _owner = crate::budget!("a cache of the test", cap);
            tag::current().owner()
        };
        let other = {
            let _owner = crate::budget!("another cache", 5);
            tag::current().owner()
        };
        assert_eq!(number(10), number(20));
        assert_ne!(number(20), other);
        let expected = Declared { name: "a cache of the test", cap: 20 };
        assert_eq!(declared(number(20)), Some(expected));
        assert_eq!((tag::current().owner(), declared(0), declared(200)), (0, None, None));
    }
}
