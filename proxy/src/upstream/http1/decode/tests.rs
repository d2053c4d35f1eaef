use super::*;

const LIMITS: Limits = Limits { bytes_max: 64, fields_max: 2 };

fn chunked() -> Decoder {
    Decoder::Chunked(Chunked::new(LIMITS))
}

/// What is read of `bytes` at once, and how it ends.
fn read(mut decoder: Decoder, bytes: &str) -> (String, &'static str) {
    let part = decoder.read(bytes.as_bytes());
    let end = match part.end {
        None if decoder.end().is_ok() => "may end here",
        None => "goes on",
        Some(End::Whole { trailers: Some(_), .. }) => "trailers",
        Some(End::Whole { is_clean: true, .. }) => "clean",
        Some(End::Whole { .. }) => "surplus",
        Some(End::Broken(_)) => "broken",
    };
    (String::from_utf8(part.data.to_vec()).unwrap(), end)
}

#[test]
fn a_body_of_known_length_ends_with_its_last_byte() {
    for (bytes, body, end) in [
        ("", "", "goes on"),
        ("hell", "hell", "goes on"),
        ("hello", "hello", "clean"),
        ("hello!", "hello", "surplus"),
    ] {
        assert_eq!(read(Decoder::Length(5), bytes), (body.to_owned(), end));
    }
    assert_eq!(read(Decoder::Length(0), ""), (String::new(), "clean"));
    assert_eq!(read(Decoder::Length(0), "!"), (String::new(), "surplus"));
    assert_eq!(read(Decoder::Open, "all"), ("all".to_owned(), "may end here"));
}

#[test]
fn chunks_are_one_body() {
    for (bytes, body, end) in [
        ("5\r\nhello\r\n0\r\n\r\n", "hello", "clean"),
        ("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "hello", "clean"),
        ("A;x=y\r\n0123456789\r\n0;z\r\n\r\n!", "0123456789", "surplus"),
        ("1 \t\r\na\r\n00\r\n\r\n", "a", "clean"),
        ("1\r\na\r\n0\r\nsum: 1\r\n\r\n", "a", "trailers"),
        ("1\r\na\r\n0\r\nsum: 1\r\n", "a", "goes on"),
        ("5\r\nhe", "he", "goes on"),
        ("", "", "goes on"),
    ] {
        assert_eq!(read(chunked(), bytes), (body.to_owned(), end), "{bytes:?}");
    }
}

#[test]
fn what_is_no_chunk_breaks_the_body_where_it_is() {
    for (bytes, body) in [
        ("\r\n", ""),
        ("x\r\n", ""),
        ("-1\r\n", ""),
        ("0x1\r\n", ""),
        (" 1\r\na\r\n", ""),
        ("1\na\n", ""),
        ("1 1\r\na", ""),
        ("1;\n\r\na", ""),
        ("1;\x01\r\na", ""),
        ("11111111111111111\r\n", ""),
        ("1\r\na!\n", "a"),
        ("1\r\na\n0\r\n\r\n", "a"),
        ("1\r\nab\r\n0\r\n\r\n", "a"),
        ("1\r\na\r\n0\r\nsum 1\r\n\r\n", "a"),
        ("1\r\na\r\n0\r\nsum: 1\n\r\n", "a"),
        ("1\r\na\r\n0\r\n\n", "a"),
        ("1\r\na\r\n0\r\n folded: 1\r\n\r\n", "a"),
    ] {
        assert_eq!(read(chunked(), bytes), (body.to_owned(), "broken"), "{bytes:?}");
    }
}

#[test]
fn what_is_beside_the_data_is_bounded() {
    let line = |bytes: usize| format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(bytes));
    assert_eq!(read(chunked(), &line(SIZE_LINE_BYTES_MAX - 4)).1, "clean");
    assert_eq!(read(chunked(), &line(SIZE_LINE_BYTES_MAX - 3)).1, "broken");
    let chunks = |n: usize| format!("1;{}\r\na\r\n", "x".repeat(100)).repeat(n);
    assert_eq!(read(chunked(), &chunks(163)).1, "goes on");
    assert_eq!(read(chunked(), &chunks(164)).1, "broken");
}

#[test]
fn trailers_are_bounded_in_bytes_and_fields() {
    let trailers = |fields: &str| format!("0\r\n{fields}\r\n");
    assert_eq!(read(chunked(), &trailers("a: 1\r\nb: 2\r\n")).1, "trailers");
    assert_eq!(read(chunked(), &trailers("a: 1\r\nb: 2\r\nc: 3\r\n")).1, "broken");
    let long = |bytes: usize| trailers(&format!("a: {}\r\n", "x".repeat(bytes)));
    assert_eq!(read(chunked(), &long(56)).1, "trailers");
    assert_eq!(read(chunked(), &long(57)).1, "broken");
    let endless = format!("0\r\n{}", "x".repeat(64));
    assert_eq!(read(chunked(), &endless).1, "broken", "also before a line ends");
}
