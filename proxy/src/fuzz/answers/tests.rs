use super::*;

/// One of each part, put together in every way.
const STATUS_LINES: [&str; 16] = [
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 200 Fine\r\n",
    "HTTP/1.1 200\r\n",
    "HTTP/1.1 200 \r\n",
    "HTTP/1.1 200 OK\n",
    "\r\n\nHTTP/1.1 200 OK\r\n",
    "HTTP/1.1 204 No Content\r\n",
    "HTTP/1.1 205 Reset Content\r\n",
    "HTTP/1.1 304 Not Modified\r\n",
    "HTTP/1.0 304 Not Modified\r\n",
    "HTTP/1.1 999 \u{e9}\r\n",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
    "HTTP/1.1 103 Early Hints\r\nlink: x\r\ncontent-length: 3\r\n\r\nHTTP/1.1 404 Not Found\r\n",
    "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 500 No\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n",
];

const FRAMINGS: [&str; 25] = [
    "",
    "content-length: 5\r\n",
    "Content-Length:5\r\n",
    "content-length:\t5 \t\r\n",
    "content-length: 0\r\n",
    "content-length: 005\r\n",
    "content-length: 5\r\ncontent-length: 5\r\n",
    "content-length: 5\r\ncontent-length: 6\r\n",
    "content-length: 5, 5\r\n",
    "content-length: 5, 6\r\n",
    "content-length: 5,\r\n",
    "content-length: +5\r\n",
    "content-length: -5\r\n",
    "content-length: 0x5\r\n",
    "content-length: 5 5\r\n",
    "content-length:\r\n",
    "content-length: 18446744073709551616\r\n",
    "transfer-encoding: chunked\r\n",
    "Transfer-Encoding: CHUNKED\r\n",
    "transfer-encoding: gzip, chunked\r\n",
    "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
    "transfer-encoding: identity\r\n",
    "transfer-encoding: xchunked\r\n",
    "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
    "content-length: 5\r\ntransfer-encoding: chunked\r\n",
];

const CONNECTIONS: [&str; 7] = [
    "",
    "connection: close\r\n",
    "connection: keep-alive\r\n",
    "Connection: foo, Close\r\n",
    "connection: close\r\nconnection: keep-alive\r\n",
    "connection: keep-alive\r\nconnection: close\r\n",
    "connection: closed\r\n",
];

const BODIES: [&str; 29] = [
    "",
    "hello",
    "hell",
    "hello!",
    "helloHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
    "0\r\n\r\n",
    "5\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\r\n\r\nmore",
    "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    "00005\r\nhello\r\n0000\r\n\r\n",
    "A\r\n0123456789\r\n0\r\n\r\n",
    "a;name=value;\"q\"\r\n0123456789\r\n0;last\r\n\r\n",
    "5 \t\r\nhello\r\n0 \r\n\r\n",
    "5\r\nhello\r\n0\r\nsum: 1\r\n\r\n",
    "5\r\nhello\r\n0\r\nSum:  1\t\r\nother: \r\n\r\n",
    "5\r\nhello\r\n0\r\nsum: 1\r\n",
    "5\r\nhello\r\n0\r\nsum 1\r\n\r\n",
    "5\r\nhello\r\n0\r\nsum: 1\n\r\n",
    "5\r\nhello\r\n0\r\n sum: 1\r\n\r\n",
    "5\r\nhello\r\n0\r\n\n",
    "5\r\nhell\r\n0\r\n\r\n",
    "5\r\nhello!\r\n0\r\n\r\n",
    "5\nhello\n0\n\n",
    "5\r\nhello\r\n",
    "5\r\nhe",
    "\r\n",
    "x\r\nhello\r\n0\r\n\r\n",
    "-5\r\nhello\r\n0\r\n\r\n",
    "ffffffffffffffff1\r\nhello\r\n0\r\n\r\n",
];

/// Heads by hand, each with an empty body behind it.
const HEADS: &[&str] = &[
    "",
    "\r\n",
    "nonsense\r\n\r\n",
    "SSH-2.0-OpenSSH\r\n",
    "HTTP",
    "HTTP/1.1 2",
    "HTTP/1.1 200 O",
    "HTTP/1.1 200 OK\r",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 200 OK\r\nname",
    "HTTP/1.1 200 OK\r\nbad name",
    "HTTP/1.1 200 OK\r\nname\r",
    "HTTP/1.1 20\r",
    "HTTP/1.1 200 OK\r\nname: val",
    "HTTP/1.1 200 OK\r\nname: v\x01",
    "HTTP/1.1 200 OK\r\nname: v\r\n",
    "HTTP/1.1 200 OK\r\nname: v\r\n\r",
    "HTTP/0.9 200 OK\r\n\r\n",
    "HTTP/1.2 200 OK\r\n\r\n",
    "HTTP/2 200 OK\r\n\r\n",
    "HTTP/2.0 200 OK\r\n\r\n",
    "http/1.1 200 OK\r\n\r\n",
    "HTTP/1.1  200 OK\r\n\r\n",
    "HTTP/1.1\t200 OK\r\n\r\n",
    " HTTP/1.1 200 OK\r\n\r\n",
    "HTTP/1.1 20 OK\r\n\r\n",
    "HTTP/1.1 2000 OK\r\n\r\n",
    "HTTP/1.1 099 Low\r\n\r\n",
    "HTTP/1.1 000 Low\r\n\r\n",
    "HTTP/1.1 2a0 OK\r\n\r\n",
    "HTTP/1.1 200OK\r\n\r\n",
    "HTTP/1.1 200\tOK\r\n\r\n",
    "HTTP/1.1 200 O\x00K\r\n\r\n",
    "HTTP/1.1 200 O\rK\r\n\r\n",
    "HTTP/1.1 200 \tO K\r\n\r\n",
    "HTTP/1.1 200 OK\r\r\n\r\n",
    "HTTP/1.1 200 OK\r\n\n",
    "HTTP/1.1 200 OK\n\r\n",
    "HTTP/1.1 200 OK\r\nname : value\r\n\r\n",
    "HTTP/1.1 200 OK\r\nname\t: value\r\n\r\n",
    "HTTP/1.1 200 OK\r\n name: value\r\n\r\n",
    "HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n",
    "HTTP/1.1 200 OK\r\na: b\r\n\tfolded\r\n\r\n",
    "HTTP/1.1 200 OK\r\na: b\r\n \r\n\r\n",
    "HTTP/1.1 200 OK\r\n: value\r\n\r\n",
    "HTTP/1.1 200 OK\r\nname\r\n\r\n",
    "HTTP/1.1 200 OK\r\nname:\r\n\r\n",
    "HTTP/1.1 200 OK\r\nname: \t \r\n\r\n",
    "HTTP/1.1 200 OK\r\nname: a:b\r\n\r\n",
    "HTTP/1.1 200 OK\r\nname: a\tb\r\n\r\n",
    "HTTP/1.1 200 OK\r\nname: a\x0bb\r\n\r\n",
    "HTTP/1.1 200 OK\r\nname: a\x7fb\r\n\r\n",
    "HTTP/1.1 200 OK\r\nname: a\rb\r\n\r\n",
    "HTTP/1.1 200 OK\r\nname: a\x00b\r\n\r\n",
    "HTTP/1.1 200 OK\r\nname: \u{e9}\r\n\r\n",
    "HTTP/1.1 200 OK\r\nn\u{e9}me: x\r\n\r\n",
    "HTTP/1.1 200 OK\r\nna\"me: x\r\n\r\n",
    "HTTP/1.1 200 OK\r\nna(me: x\r\n\r\n",
    "HTTP/1.1 200 OK\r\n!#$%&'*+-.^_`|~09azAZ: x\r\n\r\n",
    "HTTP/1.1 200 OK\r\nset-cookie: a\r\nset-cookie: b\r\nSet-Cookie: c\r\n\r\n",
    "HTTP/1.1 200 OK\r\na: b\nc: d\n\n",
    "HTTP/1.1 200 OK\r\na: b\r\r\n\r\n",
    "HTTP/1.1 200 OK\r\nconnection: close\u{e9}, close\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1",
    "HTTP/1.1 100 Continue\r\n\r\nnonsense\r\n\r\n",
    "HTTP/1.1 199 Odd\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\ncontent-length: 100\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
];

/// Why ours refuses what hyper takes.
fn is_stricter(case: &[u8]) -> bool {
    let text = String::from_utf8_lossy(case).to_ascii_lowercase();
    let has = |part: &str| text.contains(part);
    // RFC 9112 §6.1: faulty framing, with and without a body.
    let old_coding = has("http/1.0") && has("transfer-encoding");
    // A trailer's line ends with CR and LF.
    let bare_lf = has("sum: 1\n\r\n") && has("chunked");
    // A list with something in it that is not ASCII is read all the same.
    let odd_list = has("close\u{e9}, close");
    old_coding || bare_lf || odd_list
}

/// Compares the two; whether they say the same.
#[track_caller]
fn compare(case: &[u8], method: &Method) -> bool {
    let mut ours = Read::ours(&mut std::iter::once(case), method);
    let is_reused = ours.is_reused();
    let shown = || format!("{method} {:?}", String::from_utf8_lossy(case));
    for piece in [usize::MAX, 1] {
        let Some(hypers) = hypers::read(case, piece, method) else { continue };
        assert!(ours.is_at_least_as_strict_as(&hypers), "{}\n{ours:?}\n{hypers:?}", shown());
    }
    assert_eq!(is_reused, hypers::is_reused(case, method) && !is_stricter(case), "{}", shown());
    if let Read::Answer(answer) = &mut ours {
        answer.is_reused = false;
    }
    hypers::read(case, usize::MAX, method).is_none_or(|hypers| hypers == ours)
}

#[test]
fn what_is_read_is_what_hyper_reads() {
    let (mut cases, mut stricter) = (0, 0);
    let mut check = |case: &str| {
        for method in [Method::GET, Method::HEAD] {
            cases += 1;
            if !compare(case.as_bytes(), &method) {
                stricter += 1;
                assert!(is_stricter(case.as_bytes()), "{method} {case:?}");
            }
        }
    };
    for status_line in STATUS_LINES {
        for framing in FRAMINGS {
            for body in BODIES {
                check(&format!("{status_line}{framing}x-other: 1\r\n\r\n{body}"));
            }
        }
    }
    for status_line in ["HTTP/1.1 200 OK\r\n", "HTTP/1.0 200 OK\r\n"] {
        for connection in CONNECTIONS {
            for framing in ["", "content-length: 5\r\n", "transfer-encoding: chunked\r\n"] {
                for body in BODIES {
                    check(&format!("{status_line}{connection}{framing}\r\n{body}"));
                }
            }
        }
    }
    for head in HEADS {
        check(head);
    }
    assert!(cases > 20_000 && stricter > 0, "{stricter} of {cases}");
}

#[test]
fn what_is_read_does_not_depend_on_how_it_was_cut() {
    let check = |case: &str| {
        for method in [Method::GET, Method::HEAD] {
            let bytes = case.as_bytes();
            let whole = Read::ours(&mut std::iter::once(bytes), &method);
            for place in 0..=bytes.len() {
                let (first, second) = bytes.split_at(place);
                let cut = Read::ours(&mut [first, second].into_iter(), &method);
                assert_eq!(cut, whole, "{method} {case:?} cut at {place}");
            }
            let crumbs = Read::ours(&mut bytes.chunks(1), &method);
            assert_eq!(crumbs, whole, "{method} {case:?} in single bytes");
        }
    };
    for head in HEADS {
        check(head);
    }
    for status_line in STATUS_LINES {
        check(&format!("{status_line}content-length: 5\r\n\r\nhello"));
    }
    for framing in FRAMINGS {
        for body in BODIES {
            check(&format!("HTTP/1.1 200 OK\r\n{framing}\r\n{body}"));
        }
    }
}

#[test]
fn what_has_no_bound_in_hyper_has_one() {
    let answer = |interim: usize| {
        let interim = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(interim);
        format!("{interim}HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    };
    let chunk = |zeros: usize| {
        let zeros = "0".repeat(zeros);
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{zeros}1\r\na\r\n0\r\n\r\n")
    };
    let extension = |byte: char| {
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;{byte}\r\na\r\n0\r\n\r\n")
    };
    for (case, is_taken) in [
        (answer(32), true),
        (answer(33), false),
        (chunk(1000), true),
        (chunk(1100), false),
        (extension('a'), true),
        (extension('\x01'), false),
    ] {
        let is_whole = |read: Read| matches!(read, Read::Answer(answer) if answer.is_whole);
        let ours = Read::ours(&mut std::iter::once(case.as_bytes()), &Method::GET);
        assert_eq!(is_whole(ours), is_taken, "{:.100}", case);
        let hypers = hypers::read(case.as_bytes(), usize::MAX, &Method::GET);
        assert!(hypers.is_some_and(is_whole), "hyper takes all of them");
    }
}

#[test]
fn bounds_of_heads_and_trailers_are_those_hyper_had() {
    let with = |fields: usize, size: usize| {
        let field = |n| format!("x-{n}: {}\r\n", "a".repeat(size));
        (0..fields).map(field).collect::<String>()
    };
    let mut refused = 0;
    for (fields, size) in
        [(99, 10), (100, 10), (101, 10), (3, 10_000), (4, 10_000), (1, 32_600), (1, 32_900)]
    {
        let fields = with(fields, size);
        for case in [
            format!("HTTP/1.1 200 OK\r\n{fields}\r\n"),
            format!("HTTP/1.1 200 OK\r\n{fields}"),
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n{fields}\r\n"),
        ] {
            assert!(compare(case.as_bytes(), &Method::GET), "{:.100}", case);
            let read = Read::ours(&mut std::iter::once(case.as_bytes()), &Method::GET);
            refused += usize::from(!matches!(read, Read::Answer(answer) if answer.is_whole));
        }
    }
    assert!((7..14).contains(&refused), "{refused}");
}
