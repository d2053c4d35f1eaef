use super::*;
use crate::ledger::{Ledger, Unit};
use crate::metrics::Registry;

struct Fixture {
    rules: Rules,
    audit: Audit,
    ledger: Ledger,
    start: Now,
}

fn fixture() -> Fixture {
    let ledger = Ledger::new(Registry::new(1, 10));
    let rules = Rules::new(ledger.open("trace_rules", Unit::Entries, RULES_MAX as u64));
    let audit = Audit::new(ledger.open("trace_audit", Unit::Entries, 256));
    let start = Now { instant: Instant::now(), unix: Duration::from_secs(1_700_000_000) };
    Fixture { rules, audit, ledger, start }
}

fn of_app(app: &str) -> NewRule {
    let scope = Scope { app: Some(app.to_owned()), ..Scope::default() };
    NewRule { scope, why: "a test".to_owned(), ..NewRule::default() }
}

fn facts(app: &'static str) -> Facts<'static> {
    Facts { app, host: "shop.example", path: "/", client: [198, 51, 100, 9].into() }
}

impl Fixture {
    fn add(&self, rule: NewRule) -> Result<u64, RuleError> {
        self.rules.add(rule, "uid 7", self.start, &self.audit)
    }

    fn at(&self, seconds: f64) -> Now {
        let after = Duration::from_secs_f64(seconds);
        Now { instant: self.start.instant + after, unix: self.start.unix + after }
    }

    fn find(&self, app: &'static str, seconds: f64) -> Option<Result<u64, Refused>> {
        let found = self.rules.find(&facts(app), self.at(seconds).instant, || true)?;
        Some(found.map(|rule| rule.id))
    }

    fn told(&self) -> Vec<(What, Option<u64>, String)> {
        self.audit.read().into_iter().map(|entry| (entry.what, entry.rule, entry.who)).collect()
    }
}

#[test]
fn a_rule_matches_until_its_time_is_up() {
    let fixture = fixture();
    assert!(!fixture.rules.any());
    let id = fixture.add(of_app("shop")).expect("there is room");
    assert!(fixture.rules.any());
    assert_eq!(fixture.find("shop", 0.0), Some(Ok(id)));
    assert_eq!(fixture.find("shop", 599.9), Some(Ok(id)));
    assert_eq!(fixture.find("shop", 600.0), None, "before anybody has swept");
    assert_eq!(fixture.find("blog", 0.0), None);
    fixture.rules.sweep(fixture.at(599.9), &fixture.audit);
    assert_eq!(fixture.rules.len(), 1);
    fixture.rules.sweep(fixture.at(600.0), &fixture.audit);
    assert!(!fixture.rules.any() && fixture.rules.len() == 0);
    let told = fixture.told();
    assert_eq!(told[0], (What::Added, Some(id), "uid 7".to_owned()));
    assert_eq!(told[1], (What::Expired, Some(id), "the node".to_owned()));
    assert_eq!(fixture.ledger.read()[0].current, 0);
}

#[test]
fn a_rule_is_used_as_often_as_it_says_and_noted_once() {
    let fixture = fixture();
    let id = fixture.add(NewRule { uses: 2, ..of_app("shop") }).expect("there is room");
    assert_eq!(fixture.find("shop", 0.0), Some(Ok(id)));
    assert_eq!(fixture.rules.live(), 1);
    assert_eq!(fixture.find("shop", 0.0), Some(Ok(id)));
    assert_eq!(fixture.find("shop", 0.0), Some(Err(Refused::UsedUp)));
    assert_eq!(fixture.rules.live(), 0);
    for _ in 0..3 {
        fixture.rules.sweep(fixture.at(1.0), &fixture.audit);
    }
    assert_eq!(fixture.told().len(), 2);
    assert_eq!(fixture.told()[1].0, What::UsedUp);
    let listed = fixture.rules.list(fixture.at(1.0).instant).remove(0);
    assert_eq!((listed.state, listed.uses, listed.uses_max), (State::UsedUp, 2, 2));
    assert_eq!(listed.expires_in_seconds, 599.0);
}

#[test]
fn a_rule_whose_bytes_are_spent_matches_no_more() {
    let fixture = fixture();
    let rule = NewRule { bytes: 1_000, ..of_app("shop") };
    fixture.add(rule).expect("there is room");
    let found = fixture.rules.find(&facts("shop"), fixture.start.instant, || true);
    let rule = found.expect("it matches").expect("it has bytes");
    rule.spend_bytes(999);
    assert!(matches!(fixture.find("shop", 0.0), Some(Ok(_))));
    rule.spend_bytes(1);
    assert_eq!(fixture.find("shop", 0.0), Some(Err(Refused::UsedUp)));
}

#[test]
fn what_cannot_be_afforded_costs_the_rule_nothing() {
    let fixture = fixture();
    fixture.add(NewRule { uses: 1, ..of_app("shop") }).expect("there is room");
    for _ in 0..3 {
        let found = fixture.rules.find(&facts("shop"), fixture.start.instant, || false);
        assert!(matches!(found, Some(Err(Refused::Unaffordable))));
    }
    assert!(matches!(fixture.find("shop", 0.0), Some(Ok(_))));
    let found = fixture.rules.find(&facts("shop"), fixture.start.instant, || unreachable!());
    assert!(matches!(found, Some(Err(Refused::UsedUp))), "and a spent rule costs the node nothing");
}

#[test]
fn the_most_verbose_rule_that_has_something_left_counts() {
    let fixture = fixture();
    let normal = NewRule { level: Level::Normal, ..of_app("shop") };
    let first = fixture.add(normal.clone()).expect("there is room");
    let verbose = fixture.add(NewRule { uses: 1, ..of_app("shop") }).expect("there is room");
    let _last = fixture.add(normal).expect("there is room");
    assert_eq!(fixture.find("shop", 0.0), Some(Ok(verbose)));
    assert_eq!(fixture.find("shop", 0.0), Some(Ok(first)), "the other is used up");
    let ids: Vec<_> =
        fixture.rules.list(fixture.start.instant).iter().map(|rule| rule.id).collect();
    assert_eq!(ids, [1, 2, 3], "listed by age");
}

#[test]
fn clients_match_by_prefix() {
    let fixture = fixture();
    let check = |net: &str, client: &str, expected: bool| {
        let net: IpNet = net.parse().expect("a prefix");
        let client = client.parse().expect("an address");
        assert_eq!(contains(&net, client), expected, "{client} in {net}");
    };
    check("198.51.100.0/24", "198.51.100.9", true);
    check("198.51.100.0/24", "::ffff:198.51.100.9", true);
    check("198.51.100.0/24", "198.51.101.9", false);
    check("198.51.100.9/32", "198.51.100.9", true);
    check("0.0.0.0/0", "198.51.100.9", true);
    check("0.0.0.0/0", "2001:db8::1", false);
    check("2001:db8::/32", "2001:db8::1", true);
    check("2001:db8::/32", "2001:db9::1", false);
    let client = Some("198.51.100.7/24".parse().expect("a prefix"));
    let rule = NewRule { scope: Scope::default(), client, ..of_app("") };
    fixture.add(rule).expect("a client is enough");
    assert!(matches!(fixture.find("any", 0.0), Some(Ok(_))));
    let listed = fixture.rules.list(fixture.start.instant).remove(0);
    assert_eq!(listed.client.as_deref(), Some("198.51.100.0/24"));
}

#[test]
fn a_share_is_what_it_says_from_the_first_request_on() {
    for percent in [0.1, 1.0, 33.0, 99.9, 100.0] {
        let fixture = fixture();
        let rule = NewRule { percent: Some(percent), uses: USES_MAX, ..of_app("shop") };
        fixture.add(rule).expect("there is room");
        assert!(matches!(fixture.find("shop", 0.0), Some(Ok(_))), "{percent}");
        let found = (1..10_000).filter(|_| fixture.find("shop", 0.0).is_some()).count() + 1;
        let share = found as f64 / 100.0;
        assert!((share - percent).abs() <= 0.03, "{percent} became {share}");
    }
}

#[test]
fn there_are_as_many_rules_as_there_may_be() {
    let fixture = fixture();
    for _ in 0..RULES_MAX {
        fixture.add(of_app("shop")).expect("there is room");
    }
    assert_eq!(fixture.add(of_app("shop")), Err(RuleError::Full));
    let line = fixture.ledger.read().remove(0);
    assert_eq!((line.current, line.cap, line.drops), (64, 64, 1));
    let remove = |id| fixture.rules.remove(id, "uid 7", fixture.start, &fixture.audit);
    assert_eq!(remove(Some(99)), 0);
    assert_eq!(remove(Some(7)), 1);
    assert_eq!(remove(Some(7)), 0);
    assert_eq!(fixture.add(of_app("shop")), Ok(65), "an id is never given twice");
    assert_eq!(remove(None), 64);
    assert!(!fixture.rules.any());
    assert_eq!(fixture.told().iter().filter(|(what, ..)| *what == What::Removed).count(), 65);
}

#[test]
fn a_rule_without_bounds_is_refused() {
    let fixture = fixture();
    let check = |change: fn(&mut NewRule), expected: Result<(), RuleError>| {
        let mut rule = of_app("shop");
        change(&mut rule);
        assert_eq!(fixture.add(rule).map(drop), expected);
    };
    let second = Duration::from_secs(1);
    assert_eq!(TTL_MAX, 3_600 * second);
    check(|rule| rule.ttl = TTL_MAX, Ok(()));
    check(|rule| rule.ttl = TTL_MAX + Duration::from_secs(1), Err(RuleError::Ttl));
    check(|rule| rule.ttl = Duration::ZERO, Err(RuleError::Ttl));
    check(|rule| rule.uses = 0, Err(RuleError::Uses));
    check(|rule| rule.uses = USES_MAX + 1, Err(RuleError::Uses));
    check(|rule| rule.bytes = 0, Err(RuleError::Bytes));
    check(|rule| rule.bytes = BYTES_MAX + 1, Err(RuleError::Bytes));
    check(|rule| rule.level = Level::Wide, Err(RuleError::Level));
    check(|rule| rule.why = "  ".to_owned(), Err(RuleError::Why));
    check(|rule| rule.why = "w".repeat(257), Err(RuleError::Why));
    check(|rule| rule.scope = Scope::default(), Err(RuleError::Everything));
    check(|rule| rule.scope.path = Some("api".to_owned()), Err(ScopeError::Path.into()));
    for percent in [0.0, -1.0, 100.1, f64::NAN, f64::INFINITY] {
        let rule = NewRule { percent: Some(percent), ..of_app("shop") };
        assert_eq!(fixture.add(rule), Err(RuleError::Percent), "{percent}");
    }
    let of_everyone = NewRule { scope: Scope::default(), percent: Some(5.0), ..of_app("") };
    assert_eq!(fixture.add(of_everyone).map(drop), Ok(()));
}

#[test]
fn uses_are_counted_once_however_many_workers_ask() {
    let fixture = fixture();
    fixture.add(NewRule { uses: 1_000, ..of_app("shop") }).expect("there is room");
    let granted = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1_000 {
                    if matches!(fixture.find("shop", 0.0), Some(Ok(_))) {
                        granted.fetch_add(1, Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(granted.into_inner(), 1_000);
}

#[test]
fn rules_of_another_process_go_on_with_what_they_have_left() {
    let (old, new) = (fixture(), fixture());
    let client = Some("198.51.100.0/24".parse().expect("a prefix"));
    let asked = NewRule { client, percent: Some(100.0), uses: 2, ..of_app("shop") };
    let id = old.add(asked).expect("there is room");
    assert_eq!(old.find("shop", 0.0), Some(Ok(id)));
    let listed = old.rules.list(old.at(599.5).instant);
    let written = serde_json::to_string(&listed).expect("it is JSON");
    let read: Vec<Listed> = serde_json::from_str(&written).expect("the same");
    assert_eq!(new.rules.carry(read.clone(), new.start.instant), 1);
    assert_eq!(new.rules.carry(read, new.start.instant), 0, "it is there");
    assert_eq!(new.find("shop", 0.6), None, "its time is up");
    assert_eq!(new.find("shop", 0.4), Some(Ok(id)));
    assert_eq!(new.find("shop", 0.4), Some(Err(Refused::UsedUp)), "one was used before");
    assert_eq!(new.add(of_app("blog")), Ok(id + 1), "an id is never given twice");
    assert_eq!(new.ledger.read()[0].current, 2);
}

#[test]
fn rules_of_another_process_that_are_not_bounded_are_left_out() {
    let (old, new) = (fixture(), fixture());
    old.add(of_app("shop")).expect("there is room");
    let listed = old.rules.list(old.start.instant).remove(0);
    let check = |change: fn(&mut Listed)| {
        let mut listed = listed.clone();
        change(&mut listed);
        assert_eq!(new.rules.carry(vec![listed], new.start.instant), 0);
    };
    check(|rule| rule.uses_max = USES_MAX + 1);
    check(|rule| rule.scope = Scope::default());
    check(|rule| rule.client = Some("nobody".to_owned()));
    check(|rule| rule.expires_in_seconds = f64::NAN);
    assert!(!new.rules.any());
}
