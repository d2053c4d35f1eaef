//! The reader on bytes that nobody would send. What well-formed packets give is in the table of the
//! loader's tests, which the kernel's programs have to match as well.

use core::cell::Cell;

use proptest::prelude::*;

use super::*;

/// Bytes that notice a read outside of them.
struct Guarded<'a> {
    bytes: &'a [u8],
    furthest: Cell<usize>,
}

impl Packet for Guarded<'_> {
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.furthest.set(self.furthest.get().max(offset + N));
        self.bytes.bytes(offset)
    }
}

/// Six extension headers of the greatest length, behind two tags.
const FURTHEST: usize = 14 + 2 * 4 + 40 + EXTENSION_HEADERS_MAX * 256 * 8 + 20;

fn read(bytes: &[u8], start: Start) -> Parsed {
    let guarded = Guarded { bytes, furthest: Cell::new(0) };
    let parsed = parse(&guarded, start);
    assert!(guarded.furthest.get() <= FURTHEST, "{}", guarded.furthest.get());
    parsed
}

/// Random bytes are hardly ever IP; these are, with random headers.
fn almost_ip() -> impl Strategy<Value = std::vec::Vec<u8>> {
    let tags = proptest::collection::vec(prop_oneof![Just(0x8100_u16), Just(0x88a8)], 0..4);
    let kind = prop_oneof![Just(0x0800_u16), Just(0x86dd)];
    let body = proptest::collection::vec(
        prop_oneof![
            3 => any::<u8>(),
            // Values that lead deeper: protocols, extension headers, versions.
            4 => prop_oneof![Just(0_u8), Just(6), Just(17), Just(43), Just(44), Just(51), Just(60)],
        ],
        0..200,
    );
    (tags, kind, body).prop_map(|(tags, kind, mut body)| {
        let mut frame = std::vec![0; 12];
        for tag in tags {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, 1]);
        }
        frame.extend(kind.to_be_bytes());
        if let Some(first) = body.first_mut() {
            *first = if kind == 0x0800 { 0x40 | (*first & 0xf) } else { 0x60 };
        }
        frame.extend(body);
        frame
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_read_within_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for start in [Start::Ethernet, Start::Network] {
            let parsed = read(&bytes, start);
            prop_assert!(parsed.port == 0 || matches!(parsed.kind, Kind::Syn | Kind::Datagram));
        }
    }

    #[test]
    fn almost_ip_is_read_within_bounds_and_cut_shorter_never_says_more(frame in almost_ip()) {
        let whole = read(&frame, Start::Ethernet);
        for bytes in 0..frame.len() {
            let cut = read(&frame[..bytes], Start::Ethernet);
            prop_assert!(cut == whole || cut.kind == Kind::Malformed, "{cut:?}, whole {whole:?}");
            prop_assert!(
                cut.destination == whole.destination || cut.destination == Destination::Unknown
            );
        }
    }
}

#[test]
fn what_a_destination_is_given_for_has_one() {
    assert_eq!(read(&[], Start::Ethernet), Parsed::lost(Kind::Malformed));
    assert_eq!(read(&[], Start::Network), Parsed::lost(Kind::Malformed));
    assert_eq!(read(&[0x50; 60], Start::Network), Parsed::lost(Kind::Malformed));
}
