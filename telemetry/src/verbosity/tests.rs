use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

struct Node {
    verbosity: Verbosity,
    ledger: Ledger,
    registry: Registry,
    start: Now,
}

fn node(config: &Config) -> Node {
    let registry = Registry::new(1, 100);
    let ledger = Ledger::new(registry.clone());
    let keys = Keys::random().expect("random bytes");
    let verbosity = Verbosity::new(config, keys, &registry, &ledger);
    let start = Now { instant: verbosity.started, unix: Duration::from_secs(1_700_000_000) };
    Node { verbosity, ledger, registry, start }
}

const SHOP: Facts<'_> = Facts {
    app: "shop",
    host: "shop.example",
    path: "/cart",
    client: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
};

fn for_shop() -> NewToken {
    NewToken {
        level: Level::Verbose,
        scope: Scope { app: Some("shop".to_owned()), ..Scope::default() },
        ttl: Duration::from_secs(300),
        uses: 2,
        report: true,
    }
}

fn rule_for_shop() -> NewRule {
    let scope = Scope { app: Some("shop".to_owned()), ..Scope::default() };
    NewRule { scope, why: "a test".to_owned(), ..NewRule::default() }
}

impl Node {
    fn at(&self, seconds: f64) -> Now {
        let after = Duration::from_secs_f64(seconds);
        Now { instant: self.start.instant + after, unix: self.start.unix + after }
    }

    fn token(&self, token: &NewToken) -> String {
        self.verbosity.sign(token, "uid 7", self.start).expect("within the bounds").token
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.verbosity.outcomes[outcome as usize].value()
    }

    /// Uses a token and says what was counted.
    #[track_caller]
    fn outcome(&self, token: &str, facts: &Facts<'_>, now: Now) -> Outcome {
        let counts = || Outcome::ALL.map(|outcome| self.count(outcome));
        let before = counts();
        let grant = self.verbosity.from_token(token.as_bytes(), facts, now);
        let mut counted = counts().into_iter().zip(before).zip(Outcome::ALL);
        let ((after, before), outcome) =
            counted.find(|((after, before), _)| after != before).expect("one is counted");
        assert!(after == before + 1 && counted.all(|((after, before), _)| after == before));
        assert_eq!(grant.is_some(), outcome == Outcome::Granted);
        outcome
    }
}

#[test]
fn a_genuine_token_is_granted_what_it_says() {
    let node = node(&Config::default());
    let token = node.token(&for_shop());
    let grant = node.verbosity.from_token(token.as_bytes(), &SHOP, node.start).expect("genuine");
    assert_eq!((grant.level, grant.report), (Level::Verbose, true));
    let modest = NewToken { level: Level::Normal, report: false, ..for_shop() };
    let token = node.token(&modest);
    let grant = node.verbosity.from_token(token.as_bytes(), &SHOP, node.start).expect("genuine");
    assert_eq!((grant.level, grant.report), (Level::Normal, false));
}

#[test]
fn every_other_token_is_ignored_and_counted_by_reason() {
    let node = node(&Config::default());
    let token = node.token(&for_shop());
    let late = Now { unix: node.at(300.0).unix, ..node.start };
    let blog = Facts { app: "blog", ..SHOP };
    let check = |token: &str, facts: &Facts<'_>, now: Now, expected: Outcome| {
        assert_eq!(node.outcome(token, facts, now), expected, "{token}");
    };
    check("", &SHOP, node.start, Outcome::Malformed);
    check("1", &SHOP, node.start, Outcome::Malformed);
    check(&"v1.".repeat(400), &SHOP, node.start, Outcome::Malformed);
    let (signed, _) = token.rsplit_once('.').expect("a token has dots");
    check(&format!("{signed}.{}", "A".repeat(43)), &SHOP, node.start, Outcome::Forged);
    let foreign = Keys::random().expect("random bytes");
    let foreign = for_shop().sign(&foreign, node.start.unix).expect("within the bounds").token;
    check(&foreign, &SHOP, node.start, Outcome::UnknownKey);
    check(&token, &blog, node.start, Outcome::OutOfScope);
    check(&token, &SHOP, late, Outcome::Expired);
    let before = Now { unix: node.start.unix - Duration::from_secs(900), ..node.start };
    check(&token, &SHOP, before, Outcome::LongLived);
    check(&token, &SHOP, node.start, Outcome::Granted);
    check(&token, &SHOP, node.start, Outcome::Granted);
    check(&token, &SHOP, node.start, Outcome::UsedUp);
    let another = node.token(&for_shop());
    check(&another, &SHOP, node.start, Outcome::Granted);
    let text = node.registry.render();
    assert!(text.contains("ferrule_trace_tokens_total{outcome=\"granted\"} 3\n"), "{text}");
}

#[test]
fn only_so_many_tokens_are_verified_in_a_second() {
    let node = node(&Config { tokens_per_second_max: 20, ..Config::default() });
    let token = node.token(&for_shop());
    let (signed, _) = token.rsplit_once('.').expect("a token has dots");
    let forged = format!("{signed}.{}", "A".repeat(43));
    for _ in 0..20 {
        assert_eq!(node.outcome(&forged, &SHOP, node.start), Outcome::Forged);
    }
    for _ in 0..100 {
        assert_eq!(node.outcome(&token, &SHOP, node.start), Outcome::RateLimited);
    }
    // Nonsense costs nothing and takes nothing.
    for _ in 0..100 {
        assert_eq!(node.outcome("v1.x", &SHOP, node.at(0.04)), Outcome::Malformed);
        let stranger = format!("v1.x.y.{}", "A".repeat(43));
        assert_eq!(node.outcome(&stranger, &SHOP, node.at(0.04)), Outcome::UnknownKey);
    }
    assert_eq!(node.outcome(&token, &SHOP, node.at(0.051)), Outcome::Granted);
    assert_eq!(node.outcome(&token, &SHOP, node.at(0.06)), Outcome::RateLimited);
}

#[test]
fn above_the_nodes_budget_requests_stay_normal() {
    let node = node(&Config::default());
    let token = node.token(&NewToken { uses: 100, ..for_shop() });
    for _ in 0..10 {
        assert_eq!(node.outcome(&token, &SHOP, node.start), Outcome::Granted);
    }
    assert_eq!(node.outcome(&token, &SHOP, node.start), Outcome::Suppressed);
    node.verbosity.add_rule(rule_for_shop(), "uid 7", node.start).expect("there is room");
    assert!(node.verbosity.from_rules(&SHOP, node.start.instant).is_none());
    assert_eq!(node.verbosity.suppressed.value(), 2);
    let listed = &node.verbosity.list(node.start.instant).rules[0];
    assert_eq!(listed.uses, 0, "it has lost nothing");
    assert!(node.verbosity.from_rules(&SHOP, node.at(1.0).instant).is_some());
    // A node with traffic affords more.
    node.verbosity.tick(node.at(2.0), 0);
    node.verbosity.tick(node.at(3.0), 100_000);
    let now = node.at(3.0).instant;
    let more = (0..50).filter(|_| node.verbosity.from_rules(&SHOP, now).is_some()).count();
    assert_eq!(more, 50);
}

#[test]
fn bytes_are_paid_by_the_rule_and_the_node() {
    let node = node(&Config::default());
    let rule = NewRule { bytes: 4 << 20, ..rule_for_shop() };
    node.verbosity.add_rule(rule, "uid 7", node.start).expect("there is room");
    let ask = |seconds| node.verbosity.from_rules(&SHOP, node.at(seconds).instant);
    let grant = ask(0.0).expect("it matches");
    grant.spend_bytes(2 << 20, node.start.instant);
    assert!(ask(0.0).is_none(), "the node has spent its second");
    let grant = ask(1.1).expect("the next one has begun");
    grant.spend_bytes(2 << 20, node.at(1.1).instant);
    assert!(ask(9.0).is_none(), "the rule is used up");
    assert_eq!(node.verbosity.list(node.at(9.0).instant).rules[0].bytes, 4 << 20);
    let text = node.registry.render();
    for line in [
        "ferrule_trace_rule_matches_total{outcome=\"granted\"} 2\n",
        "ferrule_trace_rule_matches_total{outcome=\"used_up\"} 1\n",
        "ferrule_trace_rule_matches_total{outcome=\"suppressed\"} 1\n",
        "ferrule_verbose_suppressed_total 1\n",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}

#[test]
fn libraries_are_listened_to_while_something_is_live_and_a_minute_longer() {
    let node = node(&Config::default());
    let verbosity = &node.verbosity;
    let wants = |seconds| {
        verbosity.tick(node.at(seconds), 0);
        verbosity.wants_libraries()
    };
    assert!(!wants(0.0) && verbosity.armed() == 0);
    let id = verbosity.add_rule(rule_for_shop(), "uid 7", node.at(1.0)).expect("there is room");
    assert_eq!(verbosity.armed(), 1);
    assert!(wants(1.0));
    let grant = verbosity.from_rules(&SHOP, node.at(2.0).instant).expect("it matches");
    assert_eq!(verbosity.armed(), 2);
    assert!(verbosity.remove_rule(id, "uid 7", node.at(2.0)));
    assert!(wants(100.0), "a request is still verbose");
    drop(grant);
    assert_eq!(verbosity.armed(), 0);
    assert!(wants(159.0));
    assert!(!wants(160.0));
    // One that came and went between two looks counts as well.
    drop(verbosity.from_peer(Level::Verbose));
    assert!(wants(161.0));
    assert!(!wants(221.0));
}

#[tokio::test]
async fn control_is_woken_when_it_has_to_listen() {
    let node = node(&Config::default());
    let quiet = tokio::time::timeout(Duration::from_millis(20), node.verbosity.woken()).await;
    assert!(quiet.is_err());
    drop(node.verbosity.from_peer(Level::Verbose));
    node.verbosity.woken().await;
    node.verbosity.tick(node.start, 0);
    drop(node.verbosity.from_peer(Level::Verbose));
    let quiet = tokio::time::timeout(Duration::from_millis(20), node.verbosity.woken()).await;
    assert!(quiet.is_err(), "it listens already");
}

#[test]
fn keys_are_read_again_when_their_file_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = Config { key_file: folder.path().join("trace.key"), ..Config::default() };
    let registry = Registry::new(1, 100);
    let verbosity = Verbosity::open(&config, &registry, &Ledger::new(registry.clone()))
        .expect("the folder is ours");
    let now = Now::read();
    let ids = || verbosity.list(now.instant).keys;
    let made = ids();
    let token = verbosity.sign(&for_shop(), "uid 7", now).expect("within the bounds").token;
    let replace = |text: &str, mode: u32| {
        let draft = folder.path().join("draft");
        fs::write(&draft, text).expect("the folder is ours");
        fs::set_permissions(&draft, fs::Permissions::from_mode(mode)).expect("it is ours");
        fs::rename(draft, &config.key_file).expect("the folder is ours");
        verbosity.tick(now, 0);
    };
    let old = fs::read_to_string(&config.key_file).expect("it was made");
    let new = format!("new:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=\n{old}");
    replace(&new, 0o644);
    assert_eq!(ids(), made, "others could read it");
    replace("nonsense", 0o600);
    assert_eq!(ids(), made);
    replace(&new, 0o600);
    assert_eq!(ids(), ["new", &made[0]]);
    assert!(verbosity.from_token(token.as_bytes(), &SHOP, now).is_some(), "old ones still count");
    fs::remove_file(&config.key_file).expect("the folder is ours");
    verbosity.tick(now, 0);
    assert_eq!(ids(), ["new", &made[0]]);
}

#[test]
fn what_operators_do_is_remembered_with_who_and_why() {
    let node = node(&Config::default());
    let id = node.verbosity.add_rule(rule_for_shop(), "uid 7", node.start).expect("room");
    node.token(&for_shop());
    assert_eq!(node.verbosity.remove_all_rules("uid 8", node.at(5.0)), 1);
    let told: Vec<_> = node
        .verbosity
        .list(node.start.instant)
        .audit
        .into_iter()
        .map(|audit::Entry { at_unix_ms, what, rule, who, why }| (at_unix_ms, what, rule, who, why))
        .collect();
    let entry = |at, what, rule, who: &str, why: &str| (at, what, rule, who.into(), why.into());
    let expected = [
        entry(1_700_000_000_000, What::Added, Some(id), "uid 7", "a test"),
        entry(1_700_000_000_000, What::TokenSigned, None, "uid 7", "app shop, 2 uses, 300 s"),
        entry(1_700_000_005_000, What::Removed, Some(id), "uid 8", "a test"),
    ];
    assert_eq!(told, expected);
    let lines: Vec<_> = node.ledger.read().iter().map(|line| (line.name, line.current)).collect();
    assert_eq!(lines, [("trace_tokens", 0), ("trace_rules", 0), ("trace_audit", 3)]);
}
