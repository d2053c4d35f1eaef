//! What all shared apps ask for together.

use std::collections::BTreeMap;

use ebpf_filter_common::{PortRange, Protocol};

use crate::policy::Ports;

/// How many shared apps ask for each range. Most ask for the same few, so this stays small whatever
/// their number.
#[derive(Clone, Default)]
pub(super) struct SharedRanges(BTreeMap<Key, (PortRange, usize)>);

/// Protocol, first and last port.
type Key = (u16, u16, u16);

// === impl SharedRanges ===

impl SharedRanges {
    pub(super) fn count(&mut self, ports: &Ports) {
        for (protocol, range) in ports.ranges() {
            self.0.entry(key(protocol, range)).or_insert((range, 0)).1 += 1;
        }
    }

    pub(super) fn uncount(&mut self, ports: &Ports) {
        for (protocol, range) in ports.ranges() {
            let key = key(protocol, range);
            let (_, count) = self.0.get_mut(&key).expect("it was counted");
            *count -= 1;
            if *count == 0 {
                self.0.remove(&key);
            }
        }
    }

    pub(super) fn ports(&self) -> Ports {
        let ranges = self.0.iter().map(|((protocol, ..), (range, _))| {
            let udp = *protocol == Protocol::Udp as u16;
            (if udp { Protocol::Udp } else { Protocol::Tcp }, *range)
        });
        Ports::union(ranges)
    }
}

fn key(protocol: Protocol, range: PortRange) -> Key {
    (protocol as u16, range.first, range.last)
}
