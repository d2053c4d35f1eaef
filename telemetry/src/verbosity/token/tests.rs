use proptest::prelude::*;

use super::*;

/// Key `test` is the bytes 0 to 31, `other` is another one.
fn keys() -> Keys {
    keys_of(
        "test:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\
             other:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=\n",
    )
}

fn keys_of(text: &str) -> Keys {
    use std::os::unix::fs::PermissionsExt as _;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("the file is ours");
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(file.path(), private).expect("the file is ours");
    Keys::load(file.path()).expect("the test's keys are right")
}

fn verify(field: &[u8], keys: &Keys) -> Result<Claims, Outcome> {
    Parts::of(field).ok_or(Outcome::Malformed)?.verify(keys)
}

fn new_token() -> NewToken {
    NewToken {
        level: Level::Verbose,
        scope: Scope { app: Some("shop".to_owned()), ..Scope::default() },
        ttl: Duration::from_secs(600),
        uses: 3,
        report: true,
    }
}

const NOW: Duration = Duration::from_secs(1_700_000_000);

/// Made by Python's hmac and json.
const FOREIGN: &str = "v1.test.eyJleHAiOjE3MDAwMDA2MDAsImxldmVsIjoidmVyYm9zZSIsInNjb3BlIjp7ImFwcCI6InNob3AiL\
     CJwYXRoIjoiL2FwaSJ9LCJyZXBvcnQiOnRydWUsInVzZXMiOjMsIm5vbmNlIjoiQUFFQ0F3UUZCZ2NJQ1FvTE\
     RBME9EdyJ9.oxtR4PHFbmogYSakFYnYb0TVBFEq9JXhO3Fa6hk_v1s";

#[test]
fn a_token_of_other_tools_is_understood() {
    let claims = verify(FOREIGN.as_bytes(), &keys()).expect("it is genuine");
    assert_eq!(claims.expires, 1_700_000_600);
    assert_eq!(claims.level, Level::Verbose);
    assert_eq!(claims.scope.to_string(), "app shop path /api");
    assert_eq!((claims.report, claims.uses), (true, 3));
    assert_eq!(claims.nonce, Nonce(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f));
    assert_eq!(claims.sign(&keys()), FOREIGN, "and ours are the same");
}

#[test]
fn what_is_signed_is_what_is_read() {
    let issued = new_token().sign(&keys(), NOW).expect("within the bounds");
    assert_eq!(issued.expires, NOW.as_secs() + 600);
    let claims = verify(issued.token.as_bytes(), &keys()).expect("it is genuine");
    assert_eq!(claims.scope, new_token().scope);
    assert_eq!((claims.expires, claims.uses, claims.report), (issued.expires, 3, true));
    let again = new_token().sign(&keys(), NOW).expect("within the bounds");
    assert_ne!(again.token, issued.token, "each has a nonce of its own");
}

#[test]
fn only_the_key_that_signed_it_verifies_it() {
    let signed_by_other = keys_of("other:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=");
    let issued = new_token().sign(&signed_by_other, NOW).expect("within the bounds");
    assert!(verify(issued.token.as_bytes(), &keys()).is_ok(), "all keys verify");
    let unknown = keys_of("test:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
    let outcome = verify(issued.token.as_bytes(), &unknown).err();
    assert_eq!(outcome, Some(Outcome::UnknownKey));
    let renamed = issued.token.replacen(".other.", ".test.", 1);
    assert_eq!(verify(renamed.as_bytes(), &keys()).err(), Some(Outcome::Forged));
}

#[test]
fn a_token_lives_for_a_quarter_of_an_hour_at_most() {
    let keys = keys();
    let check = |expires: u64, expected: Result<(), Outcome>| {
        let claims = Claims { expires, ..verify(FOREIGN.as_bytes(), &keys).expect("genuine") };
        assert_eq!(claims.check_time(1_000_000), expected, "{expires}");
    };
    check(999_999, Err(Outcome::Expired));
    check(1_000_000, Err(Outcome::Expired));
    check(1_000_001, Ok(()));
    check(1_000_900, Ok(()));
    check(1_000_930, Ok(())); // the signer's clock may be ahead
    check(1_000_931, Err(Outcome::LongLived));
    check(u64::MAX, Err(Outcome::LongLived));
}

#[test]
fn a_token_is_not_signed_for_more_than_it_may_say() {
    let check = |change: fn(&mut NewToken), expected| {
        let mut token = new_token();
        change(&mut token);
        assert_eq!(token.sign(&keys(), NOW).err(), expected);
    };
    check(|_| {}, None);
    check(|token| token.ttl = TTL_MAX, None);
    check(|token| token.ttl = TTL_MAX + Duration::from_secs(1), Some(TokenError::Ttl));
    check(|token| token.ttl = Duration::from_millis(999), Some(TokenError::Ttl));
    check(|token| token.uses = 0, Some(TokenError::Uses));
    check(|token| token.uses = USES_MAX + 1, Some(TokenError::Uses));
    check(|token| token.level = Level::Wide, Some(TokenError::Level));
    check(|token| token.level = Level::Normal, None);
    check(|token| token.scope.app = Some("Shop".to_owned()), Some(ScopeError::App.into()));
    check(
        |token| {
            token.scope.host = Some("h".repeat(253));
            token.scope.path = Some(format!("/{}", "\"".repeat(255)));
        },
        Some(TokenError::Long),
    );
    check(
        |token| {
            token.scope.host = Some("h".repeat(253));
            token.scope.path = Some(format!("/{}", "p".repeat(255)));
        },
        None,
    );
}

#[test]
fn genuine_is_not_enough_when_it_is_not_understood() {
    let check = |payload: &str| {
        let keys = keys();
        let signed = format!("v1.test.{}", URL_SAFE_NO_PAD.encode(payload));
        let mac = URL_SAFE_NO_PAD.encode(keys.first().sign(signed.as_bytes()));
        verify(format!("{signed}.{mac}").as_bytes(), &keys).map(|claims| claims.uses)
    };
    let sound = r#"{"exp":9,"level":"normal","uses":1,"nonce":"AAECAwQFBgcICQoLDA0ODw"}"#;
    assert_eq!(check(sound), Ok(1));
    for wrong in [
        "{}",
        "[]",
        "null",
        r#"{"exp":9,"level":"normal","uses":1}"#,
        r#"{"exp":9,"level":"wide","uses":1,"nonce":"AAECAwQFBgcICQoLDA0ODw"}"#,
        r#"{"exp":-9,"level":"normal","uses":1,"nonce":"AAECAwQFBgcICQoLDA0ODw"}"#,
        r#"{"exp":9,"level":"normal","uses":1,"nonce":"AAECAwQFBgcICQoLDA0O"}"#,
        r#"{"exp":9,"level":"normal","uses":1,"nonce":"AAECAwQFBgcICQoLDA0ODxAR"}"#,
        r#"{"exp":9,"level":"normal","uses":1,"nonce":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"}"#,
        r#"{"exp":9,"level":"normal","uses":1,"nonce":"!!!!"}"#,
        // A restriction of a later version must not be ignored.
        r#"{"exp":9,"level":"normal","uses":1,"nonce":"AAECAwQFBgcICQoLDA0ODw","client":"::1"}"#,
        r#"{"exp":9,"level":"normal","uses":1,"nonce":"AAECAwQFBgcICQoLDA0ODw","scope":{"a":1}}"#,
        r#"{"exp":9,"level":"normal","uses":1,"nonce":"AAECAwQFBgcICQoLDA0ODw"} "x""#,
    ] {
        assert_eq!(check(wrong), Err(Outcome::Malformed), "{wrong}");
    }
    let deep = "[".repeat(600);
    assert_eq!(check(&deep), Err(Outcome::Malformed));
}

#[test]
fn a_field_has_the_form_of_a_token_or_not() {
    let mac = "A".repeat(43);
    let check = |field: &str, in_form| {
        assert_eq!(Parts::of(field.as_bytes()).is_some(), in_form, "{field}");
    };
    check(&format!("v1.k.p.{mac}"), true);
    check(&format!("v1.{}.p.{mac}", "k".repeat(16)), true);
    check(&format!("v1.{}.p.{mac}", "k".repeat(17)), false);
    check(&format!("v1..p.{mac}"), false);
    check(&format!("v1.k..{mac}"), false);
    check(&format!("v2.k.p.{mac}"), false);
    check(&format!("V1.k.p.{mac}"), false);
    check(&format!("v1.k.p.p.{mac}"), false);
    check(&format!("v1.k.{mac}"), false);
    check(&format!(" v1.k.p.{mac}"), false);
    check(&format!("v1.k.p.{mac}="), false);
    check(&format!("v1.k.p.{mac}A"), false);
    check(&format!("v1.k.p.{}B", &mac[1..]), false); // bits that mean nothing
    check(&format!("v1.k.p.{}", &mac[1..]), false);
    check("v1.k.p.", false);
    check("...", false);
    check("", false);
    let longest = TOKEN_BYTES_MAX - "v1.k..".len() - mac.len();
    check(&format!("v1.k.{}.{mac}", "p".repeat(longest)), true);
    check(&format!("v1.k.{}.{mac}", "p".repeat(longest + 1)), false);
}

proptest! {
    #[test]
    fn no_bytes_are_taken_for_a_token(field in proptest::collection::vec(any::<u8>(), 0..1200)) {
        prop_assert!(verify(&field, &keys()).is_err());
    }

    #[test]
    fn nothing_in_the_form_of_a_token_is_taken_for_one(
        payload in "[A-Za-z0-9_-]{0,200}", mac in "[A-Za-z0-9_-]{43}"
    ) {
        let field = format!("v1.test.{payload}.{mac}");
        prop_assert!(verify(field.as_bytes(), &keys()).is_err());
    }

    #[test]
    fn a_changed_token_is_none(
        places in proptest::collection::vec((0..FOREIGN.len(), any::<u8>()), 1..4)
    ) {
        let mut field = FOREIGN.as_bytes().to_vec();
        for (place, byte) in places {
            field[place] = byte;
        }
        prop_assume!(field != FOREIGN.as_bytes());
        prop_assert!(verify(&field, &keys()).is_err());
    }

    #[test]
    fn a_piece_of_a_token_is_none(from in 0..FOREIGN.len(), to in 0..FOREIGN.len()) {
        prop_assume!(from < to);
        prop_assert!(verify(&FOREIGN.as_bytes()[from..to], &keys()).is_err());
    }
}
