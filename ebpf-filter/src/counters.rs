//! What the programs counted and reported.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use aya::Pod;
use ebpf_filter_common::{AppCounters, DropEvent, Settings, Verdict};

/// Packets since the maps were made, which may be before this process began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Per verdict, in the order of [`Verdict::ALL`]. In a dry run a drop is counted as one, and
    /// passes.
    pub verdicts: Vec<(Verdict, u64)>,
    /// Per app, for those that have counters of their own: the first 4,094. Addresses of nobody are
    /// `""`, all other apps together [`Counters::OTHER`].
    pub apps: Vec<(String, AppCounters)>,
}

/// A drop that was sampled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drop {
    /// Why.
    pub verdict: Verdict,
    /// Destination, where it could be read.
    pub destination: Option<IpAddr>,
    /// Destination port of a SYN or a datagram.
    pub port: Option<u16>,
    /// Whose address it is.
    pub app: Option<String>,
    /// The interface's index.
    pub interface: u32,
    /// When, by `CLOCK_MONOTONIC`.
    pub at: Duration,
}

/// [`AppCounters`], readable from a map.
#[repr(transparent)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Counted(pub(crate) AppCounters);

/// [`Settings`], writable to a map.
#[repr(transparent)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Switches(pub(crate) Settings);

#[allow(unsafe_code, reason = "aya asks for the promise that a type is only its bytes")]
// SAFETY: two integers, no padding (asserted in common).
unsafe impl Pod for Counted {}
#[allow(unsafe_code, reason = "as above")]
// SAFETY: four integers, no padding (asserted in common).
unsafe impl Pod for Switches {}

/// The last drops, oldest first.
#[derive(Default)]
pub(crate) struct Recent {
    drops: VecDeque<Drop>,
}

// === impl Counters ===

impl Counters {
    /// The name under which apps without counters of their own are counted.
    pub const OTHER: &str = "__other__";

    /// Packets with this verdict.
    pub fn of(&self, verdict: Verdict) -> u64 {
        let found = self.verdicts.iter().find(|(of, _)| *of == verdict);
        found.map_or(0, |(_, count)| *count)
    }
}

// === impl Drop ===

impl Drop {
    /// Reads a report. `name` knows the apps.
    pub(crate) fn read(bytes: &[u8], name: impl FnOnce(u32) -> Option<String>) -> Option<Self> {
        // Field by field in the order of the structure: whatever comes out of the ring, nothing here
        // depends on its alignment.
        let (destination, rest) = bytes.split_first_chunk::<16>()?;
        let (app, rest) = rest.split_first_chunk::<4>()?;
        let (port, rest) = rest.split_first_chunk::<2>()?;
        let (&[family, verdict], rest) = rest.split_first_chunk::<2>()?;
        let (interface, rest) = rest.split_first_chunk::<4>()?;
        let (_reserved, rest) = rest.split_first_chunk::<4>()?;
        let (at_ns, rest) = rest.split_first_chunk::<8>()?;
        if !rest.is_empty() {
            return None;
        }
        let [a, b, c, d, ..] = *destination;
        Some(Self {
            verdict: Verdict::of(verdict)?,
            destination: match family {
                4 => Some(IpAddr::from([a, b, c, d])),
                6 => Some(IpAddr::from(*destination)),
                _ => None,
            },
            port: Some(u16::from_ne_bytes(*port)).filter(|port| *port != 0),
            app: name(u32::from_ne_bytes(*app)),
            interface: u32::from_ne_bytes(*interface),
            at: Duration::from_nanos(u64::from_ne_bytes(*at_ns)),
        })
    }
}

const _: () = assert!(size_of::<DropEvent>() == 16 + 4 + 2 + 2 + 4 + 4 + 8);

// === impl Recent ===

impl Recent {
    /// Drops that are kept; each is about 100 bytes.
    const MAX: usize = 256;

    pub(crate) fn push(&mut self, drop: Drop) {
        if self.drops.len() == Self::MAX {
            self.drops.pop_front();
        }
        self.drops.push_back(drop);
    }

    pub(crate) fn list(&self) -> Vec<Drop> {
        self.drops.iter().cloned().collect()
    }
}
