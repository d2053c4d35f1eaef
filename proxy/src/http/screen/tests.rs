use proptest::prelude::*;

use super::*;

fn screen() -> Screen {
    Screen::new(HeadLimits {
        target_bytes_max: 64,
        field_bytes_max: 128,
        head_bytes_max: 512,
        fields_max: 8,
    })
}

/// What the screen says of `bytes`, shown at once; the same must hold at every split.
#[track_caller]
fn check(bytes: &str, expected: Result<(), Code>) {
    let whole = screen().admit(bytes.as_bytes()).map_err(|violation| violation.code);
    assert_eq!(whole, expected, "{bytes:?}");
    for split in 0..bytes.len() {
        let mut screen = screen();
        let (first, second) = bytes.as_bytes().split_at(split);
        let halves = screen.admit(first).and_then(|()| screen.admit(second));
        assert_eq!(halves.map_err(|violation| violation.code), expected, "{bytes:?} at {split}");
    }
}

#[test]
fn plain_requests_pass() {
    check("GET / HTTP/1.1\r\nhost: a\r\n\r\n", Ok(()));
    check("\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", Ok(()));
    check("GET / HTTP/1.0\r\n\r\n", Ok(()));
    check("M-SEARCH /a?b=c;d HTTP/1.1\r\nhost: a\r\nx:\r\ny: \x09 z\r\n\r\n", Ok(()));
    check("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello", Ok(()));
    check(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nt: 1\r\n\r\n",
        Ok(()),
    );
}

#[test]
fn ambiguous_framing_is_refused() {
    for fields in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "content-length: 5\r\ncontent-length: 5",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5, 5",
        "content-length: +5",
        "content-length: 0x5",
        "content-length: 99999999999999999999",
        "content-length:",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: xchunked",
        "transfer-encoding: identity",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: ,chunked",
        "transfer-encoding : chunked",
        " transfer-encoding: chunked",
        "x: y\r\n folded",
        "x: y\r\n\tfolded",
        "x: y\nz: w",
        "x: y\rz: w",
        "x: a\0b",
        "x y: z",
        ": z",
        "no-colon",
        "host: b",
    ] {
        check(&format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n"), Err(Code::PP02));
    }
}

#[test]
fn odd_request_lines_are_refused() {
    for line in [
        "GET /",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /a b HTTP/1.1",
        "GET /\tb HTTP/1.1",
        "G@T / HTTP/1.1",
        "GET / HTTP/2.0",
        "GET / http/1.1",
        "PRI * HTTP/2.0",
    ] {
        check(&format!("{line}\r\nhost: a\r\n\r\n"), Err(Code::PP02));
    }
    check("GET / HTTP/1.1\r\n\r\n", Err(Code::PP02));
    check("POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n", Err(Code::PP02));
}

#[test]
fn broken_chunks_are_refused() {
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n",
        "5;a\nb\r\nhello\r\n",
        "ffffffffffffffffff\r\n",
        "0\r\nbad trailer\r\n\r\n",
    ] {
        let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        check(&format!("{head}{body}"), Err(Code::PP02));
        let violation = screen().admit(format!("{head}{body}").as_bytes()).unwrap_err();
        assert!(violation.in_body);
    }
}

#[test]
fn sizes_are_bounded_before_the_line_ends() {
    let long = "a".repeat(200);
    check(&format!("GET /{long} HTTP/1.1\r\n"), Err(Code::PP03));
    check(&format!("GET / HTTP/1.1\r\nhost: {long}\r\n"), Err(Code::PP04));
    check(&format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(9)), Err(Code::PP04));
    let mut endless = screen();
    let refused = (0..1000).find_map(|_| endless.admit(b"GET /aaaaaaaaaa").err());
    assert_eq!(refused.map(|violation| violation.code), Some(Code::PP03));
    assert!(endless.partial.len() < 512);
}

#[test]
fn a_line_at_its_bound_passes_and_one_byte_more_does_not() {
    let field =
        |bytes: usize| format!("GET / HTTP/1.1\r\nhost: a\r\nx:{}\r\n\r\n", "y".repeat(bytes - 2));
    check(&field(128), Ok(()));
    check(&field(129), Err(Code::PP04));
    let method = |bytes: usize| format!("{} / HTTP/1.1\r\nhost: a\r\n\r\n", "A".repeat(bytes));
    check(&method(64 + AROUND_TARGET_BYTES_MAX - 12), Ok(()));
    check(&method(64 + AROUND_TARGET_BYTES_MAX - 11), Err(Code::PP03));
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = |bytes: usize| format!("{head}1;{}\r\na\r\n0\r\n\r\n", "x".repeat(bytes - 2));
    check(&chunk(CHUNK_LINE_BYTES_MAX), Ok(()));
    check(&chunk(CHUNK_LINE_BYTES_MAX + 1), Err(Code::PP02));
}

#[test]
fn what_precedes_a_bad_message_is_admitted() {
    let good = "GET /1 HTTP/1.1\r\nhost: a\r\n\r\nPOST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nok";
    let bytes = format!("{good}GET /3 HTTP/1.1\r\n\r\n");
    let violation = screen().admit(bytes.as_bytes()).unwrap_err();
    assert_eq!(violation, Violation { admitted: good.len(), code: Code::PP02, in_body: false });
}

#[test]
fn boundaries_are_known() {
    let mut screen = screen();
    assert!(screen.at_boundary());
    for (bytes, at_boundary, in_head) in [
        ("POST / HT", false, true),
        ("TP/1.1\r\nhost: a\r\ncontent-length: 3\r\n", false, true),
        ("\r\n", false, false),
        ("ab", false, false),
        ("c", true, false),
    ] {
        screen.admit(bytes.as_bytes()).unwrap();
        assert_eq!((screen.at_boundary(), screen.in_head()), (at_boundary, in_head), "{bytes:?}");
    }
    assert_eq!(screen.heads(), 1);
}

proptest! {
    /// However the bytes are cut, the verdict and the number of admitted messages are the same.
    #[test]
    fn splits_do_not_matter(
        bytes in proptest::collection::vec(
            prop_oneof![
                Just("GET / HTTP/1.1\r\n"), Just("host: a\r\n"), Just("\r\n"), Just("content-length: 3\r\n"),
                Just("transfer-encoding: chunked\r\n"), Just("3\r\nabc\r\n"), Just("0\r\n"), Just("abc"),
                Just("\n"), Just("x : y\r\n"), Just(" z\r\n"),
            ],
            0..12,
        ),
        cuts in proptest::collection::vec(0usize..200, 0..8),
    ) {
        let bytes = bytes.concat();
        let mut whole = screen();
        let expected = whole.admit(bytes.as_bytes()).map_err(|violation| violation.code);
        let mut pieces = screen();
        let mut cuts: Vec<_> = cuts.into_iter().filter(|cut| *cut <= bytes.len()).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let found = cuts
            .windows(2)
            .try_for_each(|cut| pieces.admit(&bytes.as_bytes()[cut[0]..cut[1]]))
            .map_err(|violation| violation.code);
        prop_assert_eq!(expected, found);
        prop_assert_eq!(whole.heads(), pieces.heads());
    }

    /// A message the screen lets pass is one that an independent parser reads the same way.
    #[test]
    fn what_passes_is_what_httparse_reads(bytes in "[A-Z]{3,4} /[ -~]{0,8} HTTP/1\\.1\r\nhost: a\r\n([a-z-]{1,8} ?: ?[ -~\t]{0,8}\r\n){0,3}\r\n") {
        if screen().admit(bytes.as_bytes()).is_ok() {
            let mut fields = [httparse::EMPTY_HEADER; 16];
            let mut request = httparse::Request::new(&mut fields);
            let parsed = request.parse(bytes.as_bytes());
            prop_assert_eq!(parsed, Ok(httparse::Status::Complete(bytes.len())));
        }
    }
}
