use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::*;

/// What `read` makes of `text`, and every problem as it is shown.
fn read<T>(text: &str, read: impl FnOnce(&mut Table<'_>) -> T) -> (Option<T>, Vec<String>) {
    let mut problems = Vec::new();
    let value = Document::parse("a.toml", text, &mut problems).map(|document| {
        let mut root = document.root();
        let value = read(&mut root);
        root.finish();
        value
    });
    (value, problems.iter().map(Problem::to_string).collect())
}

#[test]
fn every_problem_is_found_at_once_in_the_order_of_the_file() {
    let text = r#"
app = 7
[http_service]
  [http_service.concurrency]
  hard_limit = 0
  soft_limit = "abc"
  soft_limt = 3
[[instances]]
address = "127.0.0.1"
[[instances]]
address = "here"
"#;
    let (_, problems) = read(text, |root| {
        for mut instance in root.tables("instances") {
            instance.ip("address");
            instance.finish();
        }
        let mut service = root.table("http_service");
        let mut concurrency = service.table("concurrency");
        concurrency.integer("soft_limit", 1..=1_000_000_u32);
        concurrency.integer("hard_limit", 1..=1_000_000_u32);
        concurrency.finish();
        service.required_string("internal_port");
        service.finish();
        root.string("app");
    });
    assert_eq!(
        problems,
        [
            "a.toml:2:7: app: must be a string, not 7",
            "a.toml:3:1: http_service.internal_port: is missing",
            "a.toml:5:16: http_service.concurrency.hard_limit: must be a number from 1 to 1000000, not 0",
            "a.toml:6:16: http_service.concurrency.soft_limit: must be a number from 1 to 1000000, not \"abc\"",
            "a.toml:7:3: http_service.concurrency.soft_limt: unknown key \"soft_limt\"; did you mean \"soft_limit\"?",
            "a.toml:11:11: instances[1].address: must be an IP address, not \"here\"",
        ]
    );
}

#[test]
fn syntax_errors_have_a_place() {
    let check = |text, place: &str| {
        let (value, problems) = read(text, |_| ());
        assert!(value.is_none(), "{text:?}");
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with(place), "{text:?}: {}", problems[0]);
        assert!(!problems[0].contains('\n'), "{}", problems[0]);
    };
    check("a = 1\nb = \n", "a.toml:2:");
    check("a = 1\na = 2\n", "a.toml:2:1: not valid TOML: duplicate key");
    check("é = 1", "a.toml:1:1:");
    check("a = \"é\" x", "a.toml:1:9:");
    check("[a]\n[a]", "a.toml:2:1:");
    check("a = \"", "a.toml:1:");
}

#[test]
fn values_are_read_as_the_type_that_is_asked_for() {
    let text = r#"
string = "s"
integer = 42
bool = true
duration = "500ms"
bare = 3
bytes = "64KiB"
plain_bytes = 10
ip = "::1"
socket = "127.0.0.1:80"
relative = "apps"
absolute = "/apps"
choice = "b"
ips = ["127.0.0.1", "::1"]
strings = []
"#;
    let (_, problems) = read(text, |root| {
        let long = Duration::ZERO..=Duration::from_secs(60);
        assert_eq!(root.string("string").as_deref(), Some("s"));
        assert_eq!(root.integer("integer", 0..=42_u16), Some(42));
        assert_eq!(root.bool("bool"), Some(true));
        assert_eq!(root.duration("duration", long.clone()), Some(Duration::from_millis(500)));
        let seconds = Some(Duration::from_secs(3));
        assert_eq!(root.duration_or("bare", Bare::Seconds, long.clone()), seconds);
        let milliseconds = Some(Duration::from_millis(3));
        assert_eq!(root.duration_or("bare", Bare::Milliseconds, long), milliseconds);
        assert_eq!(root.bytes("bytes", 0..=1_000_000_usize), Some(65_536));
        assert_eq!(root.bytes("plain_bytes", 0..=10_u64), Some(10));
        assert_eq!(root.ip("ip"), "::1".parse().ok());
        assert_eq!(root.socket_address("socket"), "127.0.0.1:80".parse().ok());
        assert_eq!(root.path("relative"), Some("apps".into()));
        assert_eq!(root.path("absolute"), Some("/apps".into()));
        assert_eq!(root.choice("choice", &[("a", 1), ("b", 2)]), Some(2));
        assert_eq!(root.ips("ips").map(|ips| ips[0]), Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert_eq!(root.strings("strings"), Some(vec![]));
        assert_eq!(root.string("absent"), None);
        assert!(!root.table("absent_table").is_present());
    });
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn values_of_another_type_or_out_of_range_are_named() {
    let check = |value: &str, read_one: fn(&mut Table<'_>), message: &str| {
        let (_, problems) = read(&format!("k = {value}"), read_one);
        assert_eq!(problems, [format!("a.toml:1:5: k: {message}")], "{value}");
    };
    let seconds = |table: &mut Table<'_>| {
        table.duration("k", Duration::from_millis(100)..=Duration::from_secs(7200));
    };
    check("\"10\"", seconds, "must be a duration from \"100ms\" to \"2h\", not \"10\"");
    check("10", seconds, "must be a duration from \"100ms\" to \"2h\", not 10");
    check("\"3h\"", seconds, "must be a duration from \"100ms\" to \"2h\", not \"3h\"");
    let port = |table: &mut Table<'_>| {
        table.integer("k", 1..=65_535_u16);
    };
    check("65536", port, "must be a number from 1 to 65535, not 65536");
    check("-1", port, "must be a number from 1 to 65535, not -1");
    check("1.5", port, "must be a number from 1 to 65535, not 1.5");
    check("[]", port, "must be a number from 1 to 65535, not a list");
    check(
        "\"yes\"",
        |table| assert!(table.bool("k").is_none()),
        "must be true or false, not \"yes\"",
    );
    let choose = |table: &mut Table<'_>| {
        table.choice("k", &[("requests", 1), ("connections", 2)]);
    };
    check(
        "\"request\"",
        choose,
        "must be one of \"requests\", \"connections\", not \"request\"; did you mean \"requests\"?",
    );
    check("\"x\"", choose, "must be one of \"requests\", \"connections\", not \"x\"");
    check("1", |table| table.table("k").finish(), "must be a table, not 1");
    check(
        "\"a\\nb\"",
        |table| assert!(table.parsed("k", |_| Err::<(), _>("is no good")).is_none()),
        "is no good",
    );
    check(
        "\"a\\nb\\\"\"",
        |table| assert!(table.ip("k").is_none()),
        "must be an IP address, not \"a\\nb\\\"\"",
    );
}

#[test]
fn what_is_missing_inside_something_broken_is_not_reported_twice() {
    let (_, problems) = read("node = 1", |root| {
        let mut node = root.table("node");
        node.required_string("id");
        node.table("deeper").required_string("id");
        node.finish();
    });
    assert_eq!(problems, ["a.toml:1:8: node: must be a table, not 1"]);
    let (_, problems) = read("", |root| {
        root.table("node").required_string("id");
    });
    assert_eq!(problems, ["a.toml:1:1: node.id: is missing"]);
}

#[test]
fn a_suggestion_is_made_only_when_one_is_near() {
    let check = |written: &str, near: Option<&str>| {
        let (_, problems) = read(&format!("{written} = 1"), |root| {
            for key in ["soft_limit", "internal_port", "id", "app"] {
                root.item(key);
            }
        });
        let near = near.map_or(String::new(), |near| format!("; did you mean \"{near}\"?"));
        assert!(problems[0].ends_with(&format!("unknown key \"{written}\"{near}")), "{problems:?}");
    };
    check("sotf_limit", Some("soft_limit"));
    check("internalport", Some("internal_port"));
    check("apps", Some("app"));
    check("ip", None);
    check("colour", None);
}

#[test]
fn the_readers_own_keys_are_never_unknown() {
    let (entries, problems) = read("[headers]\nX-B = 1\n\"a b\" = 2\nX-A = 3", |root| {
        let mut headers = root.table("headers");
        let entries = headers.entries();
        entries[1].1.string();
        let names: Vec<String> = entries.iter().map(|(name, _)| (*name).to_owned()).collect();
        headers.finish();
        names
    });
    assert_eq!(entries.as_deref(), Some(&["X-B".into(), "a b".into(), "X-A".into()][..]));
    assert_eq!(problems, ["a.toml:3:9: headers.\"a b\": must be a string, not 2"]);
}

#[test]
fn a_key_without_effect_is_a_warning() {
    let mut problems = Vec::new();
    {
        let document = Document::parse("a.toml", "env = 1", &mut problems).expect("valid");
        let mut root = document.root();
        root.without_effect(&["env", "build"]);
        root.finish();
    }
    assert!(!Problem::any_error(&problems));
    assert_eq!(
        problems[0].to_string(),
        "a.toml:1:7: warning: env: is understood, but not acted on"
    );
}

#[test]
fn the_list_of_problems_has_an_end() {
    let text: String = (0..10 * PROBLEMS_MAX).map(|n| format!("key{n} = 1\n")).collect();
    let (_, problems) = read(&text, |_| ());
    assert_eq!(problems.len(), PROBLEMS_MAX + 1);
    assert!(problems.iter().any(|problem| problem.contains("not listed")));
}

proptest::proptest! {
    #[test]
    fn no_text_can_make_it_panic(text in r#"([a-c\[\]{}.,="' \n0-9é#-]|\[\[a\.?b?\]\]|\[a\.b\]){0,80}"#) {
        read(&text, |root| {
            for (_, item) in root.entries() {
                item.table().finish();
            }
        });
    }
}
