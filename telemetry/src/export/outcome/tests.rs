use super::*;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&'static str, &str)| {
        (http::HeaderName::from_static(name), value.parse().expect("a header's value"))
    };
    pairs.iter().map(pair).collect()
}

fn http(status: u16, pairs: &[(&'static str, &str)], body: &[u8]) -> Outcome {
    let status = StatusCode::from_u16(status).expect("a status");
    let now = httpdate::parse_http_date("Fri, 20 Nov 2026 12:00:00 GMT").expect("a date");
    Outcome::of_http(status, &headers(pairs), &Bytes::copy_from_slice(body), now)
}

fn grpc(pairs: &[(&'static str, &str)], body: &[u8]) -> Outcome {
    Outcome::of_grpc(StatusCode::OK, &headers(pairs), body)
}

fn after(outcome: Outcome) -> Option<u64> {
    match outcome {
        Outcome::Again { after, .. } => after.map(|after| after.as_secs()),
        other => panic!("{other:?}"),
    }
}

/// `partial_success { rejected: 3, error_message: "no" }`.
const PARTIAL: &[u8] = b"\x0a\x06\x08\x03\x12\x02no";

#[test]
fn only_the_four_statuses_of_the_protocol_are_tried_again() {
    for status in 300..600 {
        let again = matches!(http(status, &[], b""), Outcome::Again { .. });
        assert_eq!(again, matches!(status, 429 | 502 | 503 | 504), "{status}");
    }
}

#[test]
fn a_success_may_be_partial() {
    assert_eq!(http(200, &[], b""), Outcome::Delivered { rejected: 0 });
    assert_eq!(http(200, &[], PARTIAL), Outcome::Delivered { rejected: 3 });
    assert_eq!(http(202, &[], b"<html>"), Outcome::Delivered { rejected: 0 });
    // -1, as some collectors write "unknown".
    let negative = b"\x0a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
    assert_eq!(http(200, &[], negative), Outcome::Delivered { rejected: 0 });
}

#[test]
fn a_wait_is_seconds_or_a_date_and_bounded() {
    let wait = |text| after(http(503, &[("retry-after", text)], b""));
    assert_eq!(wait("7"), Some(7));
    assert_eq!(wait("Fri, 20 Nov 2026 12:00:09 GMT"), Some(9));
    assert_eq!(wait("Fri, 20 Nov 2026 11:00:00 GMT"), Some(0));
    assert_eq!(wait("86400"), Some(60));
    assert_eq!(wait("99999999999999999999"), None);
    assert_eq!(wait("soon"), None);
}

#[test]
fn a_call_is_delivered_only_with_status_zero_and_one_message() {
    let framed = [&[0, 0, 0, 0, PARTIAL.len() as u8], PARTIAL].concat();
    let ok = [("grpc-status", "0")];
    assert_eq!(grpc(&ok, &framed), Outcome::Delivered { rejected: 3 });
    let protocol = Failure::Protocol;
    assert_eq!(grpc(&ok, b""), Outcome::Never { failure: protocol });
    assert_eq!(grpc(&[("grpc-status", "x")], b""), Outcome::Never { failure: protocol });
    assert_eq!(grpc(&[], b""), Outcome::Again { failure: protocol, after: None });
}

#[test]
fn only_the_codes_of_the_protocol_are_tried_again() {
    for code in 1..=17_u16 {
        let outcome = grpc(&[("grpc-status", &code.to_string())], b"");
        let again = matches!(outcome, Outcome::Again { .. });
        assert_eq!(again, matches!(code, 1 | 4 | 10 | 11 | 14 | 15), "{code}");
    }
}

#[test]
fn an_exhausted_collector_is_tried_again_when_it_says_when() {
    // What gRPC calls richer errors.
    let info = RetryInfo { delay: Some(RpcDuration { seconds: 5, nanos: 0 }) };
    let type_url = "type.googleapis.com/google.rpc.RetryInfo".to_owned();
    let details = vec![Any { type_url, value: info.encode_to_vec() }];
    let details = STANDARD_NO_PAD.encode(RpcStatus { details }.encode_to_vec());
    let exhausted = ("grpc-status", "8");
    assert_eq!(after(grpc(&[exhausted, ("grpc-status-details-bin", &details)], b"")), Some(5));
    assert!(matches!(
        grpc(&[exhausted, ("grpc-status-details-bin", "!")], b""),
        Outcome::Never { failure: Failure::Grpc(8) }
    ));
}

#[test]
fn a_proxy_before_a_grpc_collector_is_understood() {
    let of = |status| Outcome::of_grpc(status, &HeaderMap::new(), b"");
    assert!(matches!(of(StatusCode::BAD_GATEWAY), Outcome::Again { .. }));
    assert!(matches!(of(StatusCode::NOT_FOUND), Outcome::Never { .. }));
}

proptest::proptest! {
    #[test]
    fn no_answer_is_too_odd(
        status in 200_u16..600,
        code in "\\PC{0,4}",
        details in "\\PC{0,64}",
        body in proptest::collection::vec(proptest::num::u8::ANY, 0..64),
    ) {
        let mut trailers = HeaderMap::new();
        for (name, value) in [("grpc-status", &code), ("grpc-status-details-bin", &details)] {
            if let Ok(value) = http::HeaderValue::from_str(value) {
                trailers.insert(name, value.clone());
                trailers.insert(http::header::RETRY_AFTER, value);
            }
        }
        let status = StatusCode::from_u16(status).expect("a status");
        Outcome::of_grpc(status, &trailers, &body);
        Outcome::of_http(status, &trailers, &body.into(), SystemTime::now());
    }
}
