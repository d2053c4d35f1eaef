//! What is expected of which packet.

use ebpf_filter::{AppPolicy, Verdict};
use ipnet::IpNet;

use crate::packet::{ACK, CWR, ECE, FIN, Frame, PSH, RST, SYN, URG, ethernet, ip, syn, tcp, udp};

pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) frame: Vec<u8>,
    pub(crate) expected: Verdict,
}

pub(crate) fn prefixes() -> Vec<IpNet> {
    ["198.51.100.0/24", "2001:db8::/32"].map(|net| net.parse().unwrap()).to_vec()
}

/// Apps with addresses of their own.
pub(crate) fn dedicated() -> Vec<AppPolicy> {
    let odd = (1001..1021).step_by(2).map(|port| port..=port);
    let many = odd.chain([5000..=6000, 20_000..=65_535]).collect();
    vec![
        AppPolicy {
            tcp: vec![80..=80, 443..=443, 8000..=8100],
            udp: vec![443..=443],
            ..app("web", &["198.51.100.7/32", "2001:db8::7/128"])
        },
        AppPolicy { tcp: vec![22..=22], ..app("block", &["198.51.100.128/28", "2001:db8:2::/48"]) },
        AppPolicy {
            tcp: vec![25..=25],
            ..app("inside-block", &["198.51.100.130/32", "2001:db8:2::25/128"])
        },
        AppPolicy {
            tcp: many,
            udp: vec![53..=53, 500..=500, 4500..=4500],
            ..app("many", &["198.51.100.9/32", "2001:db8::9/128"])
        },
        // Not the filter's business.
        AppPolicy { tcp: vec![443..=443], ..app("outside", &["10.0.0.1/32", "fd00::1/128"]) },
    ]
}

/// Apps on shared addresses.
pub(crate) fn shared() -> Vec<AppPolicy> {
    let one = AppPolicy { shared: true, tcp: vec![80..=80, 443..=443], ..app("one", &[]) };
    let two = AppPolicy {
        shared: true,
        tcp: vec![443..=443, 5432..=5432],
        udp: vec![443..=443],
        ..app("two", &[])
    };
    vec![one, two]
}

fn app(name: &str, addresses: &[&str]) -> AppPolicy {
    AppPolicy {
        app: name.to_owned(),
        addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
        shared: false,
        tcp: vec![],
        udp: vec![],
    }
}

/// Addresses of the same meaning in both families.
struct Side {
    name: &'static str,
    web: &'static str,
    many: &'static str,
    block: &'static str,
    inside_block: &'static str,
    nobody: &'static str,
    outside: &'static str,
    outside_app: &'static str,
}

const SIDES: [Side; 2] = [
    Side {
        name: "v4",
        web: "198.51.100.7",
        many: "198.51.100.9",
        block: "198.51.100.129",
        inside_block: "198.51.100.130",
        nobody: "198.51.100.200",
        outside: "198.51.101.7",
        outside_app: "10.0.0.1",
    },
    Side {
        name: "v6",
        web: "2001:db8::7",
        many: "2001:db8::9",
        block: "2001:db8:2:3::4",
        inside_block: "2001:db8:2::25",
        nobody: "2001:db8::200",
        outside: "2001:db9::7",
        outside_app: "fd00::1",
    },
];

const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;

/// Rows for [`dedicated`].
pub(crate) fn dedicated_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for side in &SIDES {
        both_families(&mut rows, side);
        truncated(&mut rows, side.name, &syn(side.web, 443));
        truncated(
            &mut rows,
            &format!("{} two tags", side.name),
            &syn(side.web, 443).tag(VLAN).tag(QINQ),
        );
    }
    only_v4(&mut rows);
    only_v6(&mut rows);
    not_ip(&mut rows);
    rows
}

/// Rows for [`shared`].
pub(crate) fn shared_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for side in &SIDES {
        let mut row = |name: &str, frame: Frame, expected| {
            push(&mut rows, &format!("{} shared {name}", side.name), &frame, expected);
        };
        row("port of both", syn(side.nobody, 443), Verdict::PassAllowed);
        row("port of one", syn(side.nobody, 80), Verdict::PassAllowed);
        row("port of the other", syn(side.nobody, 5432), Verdict::PassAllowed);
        row("port of nobody", syn(side.nobody, 22), Verdict::DropPort);
        row("datagram", udp(side.nobody, 443), Verdict::PassAllowed);
        row("datagram to a TCP port", udp(side.nobody, 80), Verdict::DropPort);
        row("outside", syn(side.outside, 22), Verdict::PassOutside);
    }
    rows
}

fn both_families(rows: &mut Vec<Row>, side: &Side) {
    use Verdict::*;
    let mut row = |name: &str, frame: Frame, expected| {
        push(rows, &format!("{} {name}", side.name), &frame, expected);
    };
    let Side { web, many, block, inside_block, nobody, outside, outside_app, .. } = *side;
    row("SYN to a port", syn(web, 443), PassAllowed);
    row("SYN to another port", syn(web, 80), PassAllowed);
    row("SYN to a range's first port", syn(web, 8000), PassAllowed);
    row("SYN to a range's last port", syn(web, 8100), PassAllowed);
    row("SYN before a range", syn(web, 7999), DropPort);
    row("SYN behind a range", syn(web, 8101), DropPort);
    row("SYN to port 0", syn(web, 0), DropPort);
    row("SYN to port 65535", syn(web, 65_535), DropPort);
    row("SYN to a prefix", syn(block, 22), PassAllowed);
    row("SYN to a prefix, wrong port", syn(block, 25), DropPort);
    row("SYN to an address inside another's prefix", syn(inside_block, 25), PassAllowed);
    row("SYN there to the prefix's port", syn(inside_block, 22), DropPort);
    row("SYN to a port in a block", syn(many, 1001), PassAllowed);
    row("SYN to the last port in a block", syn(many, 1019), PassAllowed);
    row("SYN between ports in a block", syn(many, 1002), DropPort);
    row("SYN to a wide range", syn(many, 65_535), PassAllowed);
    row("SYN to nobody", syn(nobody, 443), DropAddress);
    row("SYN outside", syn(outside, 22), PassOutside);
    row("SYN to an app's address outside", syn(outside_app, 22), PassOutside);
    row("SYN with congestion flags", tcp(web, 443, SYN | ECE | CWR), PassAllowed);
    row("SYN-ACK", tcp(web, 9, SYN | ACK), PassEstablished);
    row("SYN-ACK to nobody", tcp(nobody, 9, SYN | ACK), PassEstablished);
    row("ACK", tcp(web, 9, ACK), PassEstablished);
    row("ACK to nobody", tcp(nobody, 9, ACK), PassEstablished);
    row("data", tcp(web, 9, PSH | ACK), PassEstablished);
    row("FIN", tcp(web, 9, FIN | ACK), PassEstablished);
    row("RST", tcp(web, 9, RST), PassEstablished);
    row("RST-ACK", tcp(web, 9, RST | ACK), PassEstablished);
    row("SYN-FIN", tcp(web, 443, SYN | FIN), DropMalformed);
    row("SYN-RST", tcp(web, 443, SYN | RST), DropMalformed);
    row("no flags", tcp(web, 443, 0), DropMalformed);
    row("every strange flag", tcp(web, 443, FIN | PSH | URG), DropMalformed);
    row("no flags outside", tcp(outside, 443, 0), PassOutside);
    row("TCP header too short by its own word", syn(web, 443).poke(12, 4 << 4), DropMalformed);
    row("datagram", udp(web, 443), PassAllowed);
    row("datagram to a TCP port", udp(web, 80), DropPort);
    row("datagram in a range", udp(many, 4500), PassAllowed);
    row("datagram to a port in a block", udp(many, 53), PassAllowed);
    row("datagram between", udp(many, 54), DropPort);
    row("datagram to nobody", udp(nobody, 443), DropAddress);
    row("datagram outside", udp(outside, 53), PassOutside);
    row("ICMP", ip(web, 1, vec![8, 0, 0, 0]), PassIcmp);
    row("ICMPv6", ip(nobody, 58, vec![128, 0, 0, 0]), PassIcmp);
    row("SCTP", ip(web, 132, vec![0; 12]), DropProtocol);
    row("GRE to nobody", ip(nobody, 47, vec![0; 8]), DropProtocol);
    row("GRE outside", ip(outside, 47, vec![0; 8]), PassOutside);
    row("one tag", syn(web, 443).tag(VLAN), PassAllowed);
    row("one tag, wrong port", syn(web, 22).tag(VLAN), DropPort);
    row("provider tag", syn(web, 443).tag(QINQ), PassAllowed);
    row("two tags", syn(web, 443).tag(VLAN).tag(QINQ), PassAllowed);
    row("two tags, wrong port", syn(web, 22).tag(VLAN).tag(QINQ), DropPort);
    row("three tags", syn(web, 443).tag(VLAN).tag(VLAN).tag(QINQ), PassOther);
    row("wrong version", syn(web, 443).version(5), DropMalformed);
    row("wrong version outside", syn(outside, 443).version(5), PassOutside);
}

/// Every frame shorter than the last byte that is needed is malformed.
fn truncated(rows: &mut Vec<Row>, name: &str, frame: &Frame) {
    for bytes in 0..frame.build().len() {
        push(
            rows,
            &format!("{name} cut at {bytes}"),
            &frame.clone().cut(bytes),
            Verdict::DropMalformed,
        );
    }
}

fn only_v4(rows: &mut Vec<Row>) {
    use Verdict::*;
    let to = SIDES[0].web;
    let mut row = |name: &str, frame: Frame, expected| {
        push(rows, &format!("v4 {name}"), &frame, expected);
    };
    row("one word of options", syn(to, 443).options(1), PassAllowed);
    row("all options", syn(to, 443).options(10), PassAllowed);
    row("options, wrong port", syn(to, 22).options(10), DropPort);
    row("options, cut", syn(to, 443).options(10).cut(14 + 60 + 19), DropMalformed);
    row("header shorter than a header", syn(to, 443).header_words(4), DropMalformed);
    row("header longer than the packet", syn(to, 443).header_words(15), DropMalformed);
    row("do not fragment", syn(to, 443).fragment(0x4000), PassAllowed);
    row("reserved flag", syn(to, 443).fragment(0x8000), PassAllowed);
    row("first fragment", syn(to, 443).fragment(0x2000), DropFragment);
    row("middle fragment", syn(to, 443).fragment(0x2001), DropFragment);
    row("last fragment", udp(to, 443).fragment(0x00b9), DropFragment);
    row("fragment of ICMP", ip(to, 1, vec![8, 0, 0, 0]).fragment(0x2000), DropFragment);
    row("fragment to nobody", syn(SIDES[0].nobody, 443).fragment(0x2000), DropFragment);
    row("fragment outside", syn(SIDES[0].outside, 443).fragment(0x2000), PassOutside);
}

fn only_v6(rows: &mut Vec<Row>) {
    use Verdict::*;
    let to = SIDES[1].web;
    let mut row = |name: &str, frame: Frame, expected| {
        push(rows, &format!("v6 {name}"), &frame, expected);
    };
    let padding = [0, 1, 4, 0, 0, 0, 0]; // length 8, PadN
    let long = [&[2][..], &[1; 22]].concat(); // length 24
    let atomic = [0, 0, 0, 0, 0, 0, 9];
    let routing = [0, 2, 0, 0, 0, 0, 0];
    let source_route = [0, 0, 1, 0, 0, 0, 0];
    let authentication = [&[4][..], &[0; 22]].concat(); // (4 + 2) words
    row("hop by hop", syn(to, 443).extension(0, &padding), PassAllowed);
    row("hop by hop, wrong port", syn(to, 22).extension(0, &padding), DropPort);
    row("long options", syn(to, 443).extension(60, &long), PassAllowed);
    row("routing, none left", syn(to, 443).extension(43, &routing), PassAllowed);
    row("routing, one left", syn(to, 443).extension(43, &source_route), DropMalformed);
    row("authentication", syn(to, 443).extension(51, &authentication), PassAllowed);
    row("atomic fragment", syn(to, 443).extension(44, &atomic), PassAllowed);
    row("first fragment", syn(to, 443).extension(44, &[0, 0, 1, 0, 0, 0, 9]), DropFragment);
    row("last fragment", syn(to, 443).extension(44, &[0, 5, 0xa8, 0, 0, 0, 9]), DropFragment);
    let outside = SIDES[1].outside;
    row("fragment outside", syn(outside, 443).extension(44, &[0, 0, 1, 0, 0, 0, 9]), PassOutside);
    let chain = |frame: Frame, headers: usize| {
        (0..headers).fold(frame, |frame, _| frame.extension(60, &padding))
    };
    row("six headers", chain(syn(to, 443), 6), PassAllowed);
    row("six headers, wrong port", chain(syn(to, 22), 6), DropPort);
    row("seven headers", chain(syn(to, 443), 7), DropMalformed);
    row("datagram behind headers", chain(udp(to, 443), 3), PassAllowed);
    row("ICMPv6 behind headers", chain(ip(to, 58, vec![143, 0, 0, 0]), 1), PassIcmp);
    row("encrypted", ip(to, 50, vec![0; 16]), DropProtocol);
    row("no next header", ip(to, 59, vec![]), DropProtocol);
    row(
        "header longer than the packet",
        syn(to, 443).extension(60, &[255, 1, 4, 0, 0, 0, 0]),
        DropMalformed,
    );
    truncated(
        rows,
        "v6 behind two headers",
        &syn(to, 443).extension(0, &padding).extension(60, &long),
    );
}

fn not_ip(rows: &mut Vec<Row>) {
    let mut row = |name: &str, frame, expected| {
        rows.push(Row { name: name.to_owned(), frame, expected });
    };
    row("ARP", ethernet(0x0806, &[0; 28]), Verdict::PassOther);
    row("LLDP", ethernet(0x88cc, &[0; 20]), Verdict::PassOther);
    row("a length instead of a type", ethernet(64, &[0; 64]), Verdict::PassOther);
    row("IPv4 without a byte of it", ethernet(0x0800, &[]), Verdict::DropMalformed);
}

fn push(rows: &mut Vec<Row>, name: &str, frame: &Frame, expected: Verdict) {
    rows.push(Row { name: name.to_owned(), frame: frame.build(), expected });
}
