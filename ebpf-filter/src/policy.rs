//! What an app asks for, and how its ports are laid out for the kernel.

use std::ops::RangeInclusive;

use ebpf_filter_common::{AppIndex, Policy, PortBlock, PortRange, Protocol};
use ipnet::IpNet;

/// What one app asks for at the edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppPolicy {
    /// The app's name: what it is replaced, removed and counted by.
    pub app: String,
    /// Its dedicated addresses (whole-length networks) and prefixes. What lies outside the anycast
    /// prefixes is left to others: the filter has no opinion there.
    pub addresses: Vec<IpNet>,
    /// Whether its ports are open on the shared addresses, that is on all that are nobody's.
    pub shared: bool,
    /// TCP ports. Ranges may overlap; port 0 is ignored.
    pub tcp: Vec<RangeInclusive<u16>>,
    /// UDP ports.
    pub udp: Vec<RangeInclusive<u16>>,
}

/// Ports of both protocols: merged, sorted, without port 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ports {
    tcp: Box<[PortRange]>,
    udp: Box<[PortRange]>,
}

// === impl Ports ===

impl Ports {
    pub(crate) fn of(app: &AppPolicy) -> Self {
        let ranges = |list: &[RangeInclusive<u16>]| {
            let ranges = list.iter().filter(|range| !range.is_empty());
            merge(ranges.map(|range| PortRange { first: *range.start(), last: *range.end() }))
        };
        Self { tcp: ranges(&app.tcp), udp: ranges(&app.udp) }
    }

    /// All ports of several lists together.
    pub(crate) fn union(lists: impl IntoIterator<Item = (Protocol, PortRange)>) -> Self {
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        for (protocol, range) in lists {
            match protocol {
                Protocol::Tcp => tcp.push(range),
                Protocol::Udp => udp.push(range),
            }
        }
        Self { tcp: merge(tcp), udp: merge(udp) }
    }

    /// The ports of a policy that needs no blocks.
    pub(crate) fn inside(policy: &Policy) -> Self {
        let used =
            |ranges: &[PortRange]| ranges.iter().copied().filter(|range| range.last != 0).collect();
        Self { tcp: used(&policy.tcp), udp: used(&policy.udp) }
    }

    pub(crate) fn ranges(&self) -> impl Iterator<Item = (Protocol, PortRange)> {
        let tcp = self.tcp.iter().map(|range| (Protocol::Tcp, *range));
        tcp.chain(self.udp.iter().map(|range| (Protocol::Udp, *range)))
    }

    /// Whether some ports need blocks, and with them a set of their own.
    pub(crate) fn overflow(&self) -> bool {
        self.tcp.len() > Policy::TCP_RANGES || self.udp.len() > Policy::UDP_RANGES
    }

    /// The policy, with as much in it as fits. `set` names the blocks; 0 where there are none.
    pub(crate) fn policy(&self, app: AppIndex, set: u32) -> Policy {
        debug_assert_eq!(set != 0, self.overflow(), "a set exactly where there are blocks");
        let mut policy = Policy { app, set, ..Policy::default() };
        fill(&mut policy.tcp, &self.tcp);
        fill(&mut policy.udp, &self.udp);
        policy
    }

    /// The blocks for what does not fit.
    pub(crate) fn blocks(&self, set: u32) -> Vec<(PortBlock, u64)> {
        let mut blocks = Vec::new();
        let tcp = split::<{ Policy::TCP_RANGES }>(&self.tcp).1;
        let udp = split::<{ Policy::UDP_RANGES }>(&self.udp).1;
        for (protocol, ranges) in [(Protocol::Tcp, tcp), (Protocol::Udp, udp)] {
            for range in ranges {
                for port in range.first..=range.last {
                    let block = PortBlock::of(set, protocol, port);
                    // Ranges are sorted, so a block's ports come one after the other.
                    match blocks.last_mut() {
                        Some((last, bits)) if *last == block => *bits |= PortBlock::bit(port),
                        _ => blocks.push((block, PortBlock::bit(port))),
                    }
                }
            }
        }
        blocks
    }

    /// Memory on the heap.
    pub(crate) fn bytes(&self) -> usize {
        (self.tcp.len() + self.udp.len()) * size_of::<PortRange>()
    }
}

/// Disjoint, sorted, as few as possible.
fn merge(ranges: impl IntoIterator<Item = PortRange>) -> Box<[PortRange]> {
    let mut ranges: Vec<PortRange> = ranges
        .into_iter()
        .map(|range| PortRange { first: range.first.max(1), last: range.last })
        .filter(|range| range.first <= range.last)
        .collect();
    ranges.sort_unstable_by_key(|range| range.first);
    let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged.into()
}

/// The ranges that go into a policy and those that go into blocks: the widest inside, because they
/// would be the most blocks. Both parts stay sorted.
fn split<const N: usize>(ranges: &[PortRange]) -> (Vec<PortRange>, Vec<PortRange>) {
    let mut by_width: Vec<usize> = (0..ranges.len()).collect();
    by_width.sort_by_key(|&at| std::cmp::Reverse(ranges[at].last - ranges[at].first));
    let inside = &by_width[..N.min(by_width.len())];
    let pick = |wanted: bool| {
        let picked = (0..ranges.len()).filter(|at| inside.contains(at) == wanted);
        picked.map(|at| ranges[at]).collect()
    };
    (pick(true), pick(false))
}

fn fill<const N: usize>(slots: &mut [PortRange; N], ranges: &[PortRange]) {
    for (slot, range) in slots.iter_mut().zip(split::<N>(ranges).0) {
        *slot = range;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(tcp: &[RangeInclusive<u16>]) -> AppPolicy {
        let name = String::from("app");
        AppPolicy { app: name, addresses: vec![], shared: false, tcp: tcp.to_vec(), udp: vec![] }
    }

    fn allowed(ports: &Ports, set: u32) -> Vec<u16> {
        let policy = ports.policy(1, set);
        let blocks = ports.blocks(set);
        let has = |port: u16| {
            let block = PortBlock::of(set, Protocol::Tcp, port);
            policy.has_inline(Protocol::Tcp, port)
                || blocks.iter().any(|(at, bits)| *at == block && bits & PortBlock::bit(port) != 0)
        };
        (0..=u16::MAX).filter(|port| has(*port)).collect()
    }

    #[test]
    fn overlapping_and_neighbouring_ranges_become_one() {
        let ports = Ports::of(&app(&[443..=443, 80..=90, 85..=100, 101..=110, 0..=0]));
        assert!(!ports.overflow());
        let expected: Vec<u16> = (80..=110).chain([443]).collect();
        assert_eq!(allowed(&ports, 0), expected);
    }

    #[test]
    fn more_ranges_than_fit_allow_exactly_the_same_ports() {
        let list = [1..=1, 80..=80, 443..=443, 8000..=8100, 9000..=9000, 20_000..=65_535, 63..=65];
        let ports = Ports::of(&app(&list));
        assert!(ports.overflow());
        let mut expected: Vec<u16> = list.iter().cloned().flatten().collect();
        expected.sort_unstable();
        assert_eq!(allowed(&ports, 7), expected);
        assert!(ports.blocks(7).len() <= 5, "the wide ranges are in the policy");
    }

    #[test]
    fn every_second_port_is_a_thousand_blocks_and_no_more() {
        let list: Vec<_> = (1..=u16::MAX).step_by(2).map(|port| port..=port).collect();
        let ports = Ports::of(&app(&list));
        assert_eq!(ports.blocks(1).len(), 1024);
        assert_eq!(allowed(&ports, 1).len(), list.len());
    }

    #[test]
    fn an_empty_range_asks_for_nothing() {
        #[allow(clippy::reversed_empty_ranges, reason = "the case under test")]
        let ports = Ports::of(&app(&[90..=80]));
        assert!(ports.policy(1, 0).asks_for_nothing());
    }

    proptest::proptest! {
        #[test]
        fn any_list_allows_what_it_says(list in proptest::collection::vec((0_u16.., 0_u16..300), 0..12)) {
            let list: Vec<_> = list.into_iter().map(|(at, n)| at..=at.saturating_add(n)).collect();
            let ports = Ports::of(&app(&list));
            let set = u32::from(ports.overflow());
            let mut expected: Vec<u16> = list.iter().cloned().flatten().filter(|p| *p != 0).collect();
            expected.sort_unstable();
            expected.dedup();
            proptest::prop_assert_eq!(allowed(&ports, set), expected);
        }
    }
}
