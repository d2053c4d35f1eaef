use super::*;

const LIMITS: Limits = Limits { bytes_max: 256, fields_max: 4 };

/// The head that `bytes` begin with, and what is behind it.
fn read(bytes: &str) -> Result<Option<(Head, &str)>, Malformed> {
    match HeadReader::new(LIMITS).read(bytes.as_bytes())? {
        Found::Head(head, end) => Ok(Some((head, &bytes[end..]))),
        Found::Interim(_) | Found::Partial => Ok(None),
    }
}

#[test]
fn a_head_is_read_and_what_follows_is_left() {
    let answer = "HTTP/1.1 404 Not Found\r\nA: b\r\na:  c d \r\nempty:\r\n\r\nbody";
    let (head, rest) = read(answer).unwrap().unwrap();
    assert_eq!((head.status.as_u16(), head.version, rest), (404, Version::HTTP_11, "body"));
    assert!(head.reason.is_none() && head.keeps_alive);
    assert_eq!(head.headers.get_all("a").iter().collect::<Vec<_>>(), ["b", "c d"]);
    assert_eq!(head.headers["empty"], "");
    assert_eq!(head.headers.len(), 3);
}

#[test]
fn values_keep_alive_their_head_and_nothing_behind_it() {
    let answer = format!("HTTP/1.1 200 OK\r\na: b\r\n\r\n{}", "x".repeat(1000));
    let (head, _) = read(&answer).unwrap().unwrap();
    let (start, value) = (answer.as_ptr() as usize, head.headers["a"].as_bytes().as_ptr() as usize);
    assert!(!(start..start + answer.len()).contains(&value), "a copy");
}

#[test]
fn words_of_its_own_are_kept() {
    for (line, expected) in [
        ("HTTP/1.1 200 OK", None),
        ("HTTP/1.1 200 Fine", Some("Fine")),
        ("HTTP/1.1 200", Some("")),
        ("HTTP/1.1 599 Odd", Some("Odd")),
        ("HTTP/1.1 200 \u{e9}", Some("")),
    ] {
        let answer = format!("{line}\r\n\r\n");
        let (head, _) = read(&answer).unwrap().unwrap();
        let reason = head.reason.map(|reason| reason.as_bytes().to_vec());
        assert_eq!(reason.as_deref(), expected.map(str::as_bytes), "{line}");
    }
}

#[test]
fn a_connection_is_kept_as_its_version_and_its_options_say() {
    for (head, expected) in [
        ("HTTP/1.1 200 OK\r\n", true),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\n", false),
        ("HTTP/1.1 200 OK\r\nconnection: x, CLOSE\r\n", false),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\nconnection: keep-alive\r\n", false),
        ("HTTP/1.1 200 OK\r\nconnection: closed\r\n", true),
        ("HTTP/1.0 200 OK\r\n", false),
        ("HTTP/1.0 200 OK\r\nconnection: Keep-Alive\r\n", true),
        ("HTTP/1.0 200 OK\r\nconnection: keep-alive, close\r\n", false),
    ] {
        let answer = format!("{head}\r\n");
        let (read, _) = read(&answer).unwrap().unwrap();
        assert_eq!(read.keeps_alive, expected, "{head}");
    }
}

#[test]
fn a_repeated_length_becomes_one() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n";
    let (mut head, _) = read(answer).unwrap().unwrap();
    assert_eq!(head.framed().unwrap(), Framed::Length { bytes: 5, is_repeated: true });
    assert_eq!(head.headers.get_all("content-length").iter().collect::<Vec<_>>(), ["5"]);
}

#[test]
fn the_bounds_are_kept_to_the_byte_and_the_field() {
    let with = |fields: usize, size: usize| {
        let fields = "a: b\r\n".repeat(fields);
        let start = format!("HTTP/1.1 200 OK\r\n{fields}");
        let padding = "x".repeat(size.saturating_sub(start.len() + 9));
        if size == 0 { format!("{start}\r\n") } else { format!("{start}pad: {padding}\r\n\r\n") }
    };
    for (answer, is_read) in
        [(with(4, 0), true), (with(5, 0), false), (with(1, 256), true), (with(1, 257), false)]
    {
        assert_eq!(read(&answer).is_ok_and(|head| head.is_some()), is_read, "{}", answer.len());
    }
    let endless = "HTTP/1.1 200 OK\r\na: b";
    assert!(read(endless).unwrap().is_none());
    let endless = format!("{endless}{}", "b".repeat(256 - endless.len()));
    assert!(matches!(read(&endless), Err(Malformed::TooLong)), "no end may follow");
}

#[test]
fn who_speaks_another_protocol_is_not_waited_for() {
    for bytes in
        ["SSH-2.0-x\r\n", "\x15\x03\x01", "220 smtp", "HTTP/2", "HTTP/1.1 200 OK\r\nno field"]
    {
        assert!(read(bytes).is_err(), "{bytes:?}");
    }
    for bytes in
        ["", "\r\n", "H", "HTTP/1.1 200 O", "HTTP/1.1 200 OK\r\nname", "HTTP/1.0 404\r\na: b\r\n"]
    {
        assert!(read(bytes).unwrap().is_none(), "{bytes:?}");
    }
}

#[test]
fn interim_answers_are_skipped_up_to_a_number() {
    let interim = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
    let mut reader = HeadReader::new(LIMITS);
    for _ in 0..INTERIM_MAX {
        let found = reader.read(interim).unwrap();
        assert!(matches!(found, Found::Interim(bytes) if bytes == interim.len()));
    }
    let Found::Head(head, _) = reader.read(b"HTTP/1.1 200 OK\r\n\r\n").unwrap() else {
        panic!("the answer itself")
    };
    assert!(head.headers.is_empty(), "nothing of the interim ones is in it");
    assert!(matches!(reader.read(interim), Err(Malformed::Interim)));
}

#[test]
fn a_head_that_trickles_in_is_searched_once() {
    let answer = b"\r\nHTTP/1.1 200 OK\r\na: b\r\n\r\n";
    let mut reader = HeadReader::new(LIMITS);
    for end in 1..answer.len() {
        assert!(matches!(reader.read(&answer[..end]), Ok(Found::Partial)));
        assert_eq!(reader.searched, end);
    }
    assert!(matches!(reader.read(answer), Ok(Found::Head(..))));
}
