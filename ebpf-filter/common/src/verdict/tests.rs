//! The verdict on what was read, for every kind and every policy.

use proptest::prelude::*;

use super::*;
use crate::PortRange;

/// One policy for every address, or none, and blocks by a rule.
struct One {
    policy: Option<Policy>,
    block: Option<(PortBlock, u64)>,
}

impl Policies for One {
    fn v4(&self, _address: &[u8; 4]) -> Option<&Policy> {
        self.policy.as_ref()
    }

    fn v6(&self, _address: &[u8; 16]) -> Option<&Policy> {
        self.policy.as_ref()
    }

    fn ports(&self, block: &PortBlock) -> Option<u64> {
        self.block.filter(|(at, _)| at == block).map(|(_, bits)| bits)
    }
}

const HERE: Destination = Destination::V4([198, 51, 100, 7]);
const KINDS: [Kind; 8] = [
    Kind::NotIp,
    Kind::Malformed,
    Kind::Fragment,
    Kind::Icmp,
    Kind::OtherProtocol,
    Kind::Syn,
    Kind::Segment,
    Kind::Datagram,
];

fn verdict(kind: Kind, port: u16, policies: &One) -> Verdict {
    decide(&Parsed { destination: HERE, kind, port }, policies).verdict
}

fn web() -> Policy {
    let mut policy = Policy { app: 3, ..Policy::default() };
    policy.tcp[0] = PortRange { first: 443, last: 443 };
    policy
}

#[test]
fn outside_the_prefixes_nothing_is_dropped_that_has_a_destination() {
    let nowhere = One { policy: None, block: None };
    for kind in KINDS {
        assert!(verdict(kind, 22, &nowhere).passes(), "{kind:?}");
    }
}

#[test]
fn inside_them_only_what_begins_nothing_or_was_asked_for_passes() {
    let inside = One { policy: Some(web()), block: None };
    for kind in KINDS {
        let expected = matches!(kind, Kind::NotIp | Kind::Icmp | Kind::Segment);
        assert_eq!(verdict(kind, 22, &inside).passes(), expected, "{kind:?}");
    }
    assert_eq!(verdict(Kind::Syn, 443, &inside), Verdict::PassAllowed);
    assert_eq!(verdict(Kind::Datagram, 443, &inside), Verdict::DropPort);
}

#[test]
fn without_a_destination_it_cannot_be_anybodys() {
    let nowhere = One { policy: None, block: None };
    let parsed = Parsed { destination: Destination::Unknown, kind: Kind::Malformed, port: 0 };
    assert_eq!(decide(&parsed, &nowhere).verdict, Verdict::DropMalformed);
}

#[test]
fn nobodys_address_is_told_from_nobodys_port() {
    let nobody = One { policy: Some(Policy::default()), block: None };
    assert_eq!(verdict(Kind::Syn, 443, &nobody), Verdict::DropAddress);
    let shared = One { policy: Some(Policy { app: NOBODY, ..web() }), block: None };
    assert_eq!(verdict(Kind::Syn, 443, &shared), Verdict::PassAllowed);
    assert_eq!(verdict(Kind::Syn, 22, &shared), Verdict::DropPort);
}

#[test]
fn a_block_of_another_set_or_protocol_says_nothing() {
    let policy = Some(Policy { set: 5, ..web() });
    let block = |set, protocol| {
        let block = PortBlock::of(set, protocol, 8080);
        One { policy, block: Some((block, PortBlock::bit(8080))) }
    };
    assert_eq!(verdict(Kind::Syn, 8080, &block(5, Protocol::Tcp)), Verdict::PassAllowed);
    assert_eq!(verdict(Kind::Syn, 8081, &block(5, Protocol::Tcp)), Verdict::DropPort);
    assert_eq!(verdict(Kind::Syn, 8080, &block(4, Protocol::Tcp)), Verdict::DropPort);
    assert_eq!(verdict(Kind::Syn, 8080, &block(5, Protocol::Udp)), Verdict::DropPort);
    assert_eq!(verdict(Kind::Datagram, 8080, &block(5, Protocol::Udp)), Verdict::PassAllowed);
}

#[test]
fn numbers_and_names_of_verdicts_are_one_to_one() {
    for (number, verdict) in (0..).zip(Verdict::ALL) {
        assert_eq!(verdict as u8, number);
        assert_eq!(Verdict::of(number), Some(verdict));
        assert_eq!(verdict.as_str().starts_with("pass_"), verdict.passes());
        let same = Verdict::ALL.iter().filter(|other| other.as_str() == verdict.as_str());
        assert_eq!(same.count(), 1);
    }
    assert_eq!(Verdict::of(10), None);
}

proptest! {
    #[test]
    fn port_0_is_never_allowed(first in any::<u16>(), last in any::<u16>(), set in any::<u32>()) {
        let mut policy = Policy { app: 1, set, ..Policy::default() };
        policy.tcp = [PortRange { first, last }; 4];
        let all = One { policy: Some(policy), block: Some((PortBlock::of(set, Protocol::Tcp, 0), !0)) };
        prop_assert_eq!(verdict(Kind::Syn, 0, &all), Verdict::DropPort);
    }

    #[test]
    fn a_range_allows_its_ports_and_no_other(a in 1_u16.., b in 1_u16.., port in any::<u16>()) {
        let mut policy = Policy { app: 1, ..Policy::default() };
        policy.tcp[3] = PortRange { first: a.min(b), last: a.max(b) };
        let one = One { policy: Some(policy), block: None };
        let inside = (a.min(b)..=a.max(b)).contains(&port);
        prop_assert_eq!(verdict(Kind::Syn, port, &one).passes(), inside);
    }
}
