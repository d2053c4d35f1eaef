use telemetry::verbosity::Level;

use super::*;

fn listing() -> Listing {
    let rule = |id: u64, state, scope: Scope| rules::Listed {
        id,
        scope,
        client: None,
        percent: None,
        level: Level::Verbose,
        state,
        expires_in_seconds: 534.0,
        uses: 3,
        uses_max: 100,
        bytes: 1 << 19,
        bytes_max: 16 << 20,
        who: "uid 0 (pid 71)".to_owned(),
        why: "slow carts".to_owned(),
    };
    let shop =
        Scope { app: Some("shop".to_owned()), path: Some("/cart".to_owned()), ..Scope::default() };
    let some = rules::Listed {
        client: Some("198.51.100.0/24".to_owned()),
        percent: Some(2.5),
        level: Level::Normal,
        ..rule(12, rules::State::UsedUp, Scope::default())
    };
    let entry = |at: u64, what, rule, who: &str| audit::Entry {
        at_unix_ms: at,
        what,
        rule,
        who: who.to_owned(),
        why: "slow carts".to_owned(),
    };
    Listing {
        rules: vec![rule(7, rules::State::Live, shop), some],
        audit: vec![
            entry(1_000_000, audit::What::Added, Some(7), "uid 0"),
            entry(1_061_000, audit::What::UsedUp, Some(12), "the node"),
            entry(1_062_000, audit::What::TokenSigned, None, "uid 0"),
        ],
        keys: vec!["k1".to_owned()],
    }
}

#[test]
fn rules_are_listed() {
    let expected = "\
RULE  MATCHES                       LEVEL    LEFT        USES   BYTES             WHO             WHY
7     app shop path /cart           verbose  8 min 54 s  3/100  0.5 MiB/16.0 MiB  uid 0 (pid 71)  slow carts
12    client 198.51.100.0/24 2.5 %  normal   used up     3/100  0.5 MiB/16.0 MiB  uid 0 (pid 71)  slow carts
";
    assert_eq!(rules_text(&listing()), expected);
}

#[test]
fn the_audit_is_listed() {
    let expected = "\
WHEN           RULE  WHAT          WHO       WHY
1 min 2 s ago  7     added         uid 0     slow carts
1.0 s ago      12    used up       the node  slow carts
0.0 s ago      -     token signed  uid 0     slow carts
";
    assert_eq!(audit_text(&listing(), Duration::from_millis(1_062_000)), expected);
}

#[test]
fn a_new_rule_says_its_bounds_and_how_to_end_it() {
    let made = Made { id: 7, ttl_seconds: 600, uses: 1, bytes: 16 << 20 };
    assert_eq!(
        made_text(&made),
        "rule 7: for 10 min 0 s, at most 1 request and 16.0 MiB; `ferrule trace off 7` ends it\n"
    );
}

#[test]
fn values_are_read_as_people_write_them() {
    let check = |text, seconds| assert_eq!(rule_ttl(text).ok(), seconds, "{text}");
    check("1s", Some(Duration::from_secs(1)));
    check("1h", Some(Duration::from_secs(3_600)));
    check("61m", None);
    check("0s", None);
    check("1500ms", None);
    check("60", None);
    let check = |text, number| assert_eq!(bytes(text).ok(), number, "{text}");
    check("65536", Some(65_536));
    check("1MiB", Some(1 << 20));
    check("0", None);
    check("-1", None);
    check("2GiB", None);
    let check = |text, number| assert_eq!(percent(text).ok(), number, "{text}");
    check("0.5", Some(0.5));
    check("5%", Some(5.0));
    check("100", Some(100.0));
    check("0", None);
    check("101", None);
    check("NaN", None);
    check("half", None);
    assert!(client("198.51.100.0/24").is_ok() && client("2001:db8::1").is_ok());
    assert!(client("example.com").is_err());
    let id = "0123456789ABCDEF0123456789abcdef";
    assert_eq!(trace_id(id), Ok(id.to_ascii_lowercase()));
    assert!(trace_id(&id[1..]).is_err() && trace_id(&"0".repeat(32)).is_err());
    assert!(trace_id("+123456789abcdef0123456789abcdef").is_err());
}
