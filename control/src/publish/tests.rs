use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::app_file;

/// The app `name` from the rest of its file.
fn app(name: &str, rest: &str) -> App {
    let mut problems = Vec::new();
    let text = format!("app = \"{name}\"\n{rest}");
    let app = app_file::parse(Path::new("a.toml"), &text, &mut problems);
    app.unwrap_or_else(|| panic!("{problems:?}"))
}

fn web(name: &str, hostname: &str) -> App {
    app(name, &format!("hostnames = [\"{hostname}\"]\n[http_service]\n"))
}

fn raw(name: &str, port: u16) -> App {
    app(name, &format!("[[services]]\nports = [{{ port = {port} }}]"))
}

fn instance(name: &str, id: &str) -> App {
    let head = format!("hostnames = [\"{name}.example\"]\n[http_service]\n");
    app(name, &format!("{head}[[instances]]\nid = \"{id}\"\nnode = \"n\"\naddress = \"::1\""))
}

/// A change as `+name` or `-name`.
fn shown(changes: &[Change]) -> Vec<String> {
    let show = |change: &Change| match change {
        Change::Upsert(app) => format!("+{}", app.name),
        Change::Remove(name) => format!("-{name}"),
    };
    changes.iter().map(show).collect()
}

fn upsert(publisher: &mut Publisher, app: App) -> Vec<String> {
    let mut changes = Vec::new();
    publisher.upsert(app, &mut changes);
    shown(&changes)
}

fn remove(publisher: &mut Publisher, name: &str) -> Vec<String> {
    let mut changes = Vec::new();
    publisher.remove(&AppName::new(name), &mut changes);
    shown(&changes)
}

/// `second` must wait for `first`, for the reason given.
#[track_caller]
fn contradict(first: App, second: App, reason: &str) {
    let mut publisher = Publisher::new(0);
    let name = second.name.clone();
    assert_eq!(upsert(&mut publisher, first.clone()).len(), 1);
    assert!(upsert(&mut publisher, second.clone()).is_empty(), "{reason}");
    assert_eq!(publisher.contradictions(&name)[0].to_string(), reason);
    // The control: alone, it is published.
    let published = remove(&mut publisher, first.name.as_str());
    assert_eq!(published, [format!("-{}", first.name), format!("+{}", second.name)]);
    assert!(publisher.contradictions(&name).is_empty());
}

#[track_caller]
fn agree(first: App, second: App) {
    let mut publisher = Publisher::new(0);
    assert_eq!(upsert(&mut publisher, first).len(), 1);
    let second_name = second.name.clone();
    let published = upsert(&mut publisher, second).len();
    assert_eq!(published, 1, "{:?}", publisher.contradictions(&second_name));
}

#[test]
fn a_hostname_belongs_to_the_first_app_that_claims_it() {
    contradict(
        web("a", "www.example"),
        web("b", "WWW.example."),
        "app \"b\" claims the hostname www.example, which app \"a\" has",
    );
    contradict(
        web("a", "*.example"),
        app("b", "hostnames = [\"*.example\"]\naddresses = [\"::2\"]\n[http_service]\n"),
        "app \"b\" claims the hostname *.example, which app \"a\" has",
    );
    agree(web("a", "*.example"), web("b", "www.example"));
}

#[test]
fn an_instance_id_belongs_to_one_app() {
    contradict(
        instance("a", "one"),
        instance("b", "one"),
        "app \"b\" claims the instance id one, which app \"a\" has",
    );
    agree(instance("a", "one"), instance("b", "two"));
}

#[test]
fn a_port_of_a_dedicated_address_belongs_to_one_app() {
    let on = |name, address: &str, ports: &str| {
        let head = format!("addresses = [\"{address}\"]\nhostnames = [\"{name}.example\"]");
        app(name, &format!("{head}\n[[services]]\nports = [{{ {ports}, handlers = [\"http\"] }}]"))
    };
    let range = "start_port = 1000, end_port = 2000";
    contradict(
        on("a", "::2", range),
        on("b", "::2", "port = 1500"),
        "app \"b\" claims port 1500 of ::2, which app \"a\" has",
    );
    contradict(
        on("a", "::2", "port = 1500"),
        on("b", "::2", range),
        "app \"b\" claims port 1500 of ::2, which app \"a\" has",
    );
    contradict(
        on("a", "198.51.100.7", range),
        on("b", "::ffff:198.51.100.7", "start_port = 2000, end_port = 3000"),
        "app \"b\" claims port 2000 of 198.51.100.7, which app \"a\" has",
    );
    agree(on("a", "::2", range), on("b", "::2", "port = 999"));
    agree(on("a", "::2", range), on("b", "::2", "port = 2001"));
    agree(on("a", "::2", range), on("b", "::3", range));
    agree(on("a", "::2", "port = 80"), web("b", "b.example"));
}

#[test]
fn a_shared_port_without_http_belongs_to_one_app() {
    let whole = |port| {
        format!(
            "app \"b\" and app \"a\" both claim shared port {port}, and without the \"http\" \
             handler a connection does not say which one it means; give one of them an address \
             of its own"
        )
    };
    let tls = |name| app(name, "[[services]]\nports = [{ port = 443, handlers = [\"tls\"] }]");
    contradict(raw("a", 25), raw("b", 25), &whole(25));
    contradict(raw("a", 443), web("b", "b.example"), &whole(443));
    contradict(web("a", "a.example"), raw("b", 443), &whole(443));
    contradict(tls("a"), tls("b"), &whole(443));
    contradict(web("a", "a.example"), tls("b"), &whole(443));
    agree(raw("a", 25), raw("b", 26));
    agree(web("a", "a.example"), web("b", "b.example"));
}

#[test]
fn a_shared_port_with_http_has_the_same_handlers_for_all() {
    let swapped = app(
        "b",
        "hostnames = [\"b.example\"]\n[[services]]\nports = [{ port = 443, handlers = [\"http\"] }]",
    );
    contradict(
        web("a", "a.example"),
        swapped,
        "app \"b\" and app \"a\" claim shared port 443 with different handlers",
    );
}

#[test]
fn a_version_that_contradicts_leaves_the_former_one_in_place() {
    let mut publisher = Publisher::new(0);
    upsert(&mut publisher, web("a", "a.example"));
    upsert(&mut publisher, web("b", "b.example"));
    assert!(upsert(&mut publisher, web("b", "a.example")).is_empty());
    let b = AppName::new("b");
    let kept = publisher.app(&b).expect("still published").hostnames[0].to_string();
    assert_eq!(kept, "b.example");
    // The holder takes another name, so the version that waited is published.
    assert_eq!(upsert(&mut publisher, web("a", "c.example")), ["+a", "+b"]);
    assert_eq!(publisher.app(&b).expect("published").hostnames[0].to_string(), "a.example");
}

#[test]
fn going_back_to_what_is_published_ends_the_wait() {
    let mut publisher = Publisher::new(0);
    upsert(&mut publisher, web("a", "a.example"));
    upsert(&mut publisher, web("b", "b.example"));
    upsert(&mut publisher, web("b", "a.example"));
    assert_eq!(publisher.waiting().count(), 1);
    assert!(upsert(&mut publisher, web("b", "b.example")).is_empty());
    assert_eq!(publisher.waiting().count(), 0);
    assert_eq!(remove(&mut publisher, "a"), ["-a"]);
}

#[test]
fn those_that_wait_are_considered_in_the_order_they_came() {
    let mut publisher = Publisher::new(0);
    for name in ["d", "c", "b", "a"] {
        upsert(&mut publisher, web(name, "www.example"));
    }
    assert_eq!(remove(&mut publisher, "d"), ["-d", "+c"]);
    assert_eq!(remove(&mut publisher, "c"), ["-c", "+b"]);
    assert_eq!(remove(&mut publisher, "a"), [""; 0]);
    assert_eq!(remove(&mut publisher, "b"), ["-b"]);
}

#[test]
fn two_apps_can_change_places() {
    let mut publisher = Publisher::new(0);
    upsert(&mut publisher, web("a", "1.a.example"));
    upsert(&mut publisher, web("b", "1.b.example"));
    // Each waits for the other: nothing moves until one of them lets go.
    assert!(upsert(&mut publisher, web("a", "1.b.example")).is_empty());
    assert!(upsert(&mut publisher, web("b", "1.a.example")).is_empty());
    assert_eq!(publisher.waiting().count(), 2);
    assert_eq!(upsert(&mut publisher, web("b", "free.example")), ["+b", "+a"]);
}

#[test]
fn an_unchanged_app_is_no_change_and_a_changed_one_has_a_higher_revision() {
    let mut publisher = Publisher::new(0);
    assert_eq!(upsert(&mut publisher, web("a", "a.example")), ["+a"]);
    let revision = |publisher: &Publisher| {
        publisher.app(&AppName::new("a")).map(|app| app.revision).expect("published")
    };
    let first = revision(&publisher);
    assert!(upsert(&mut publisher, web("a", "a.example")).is_empty());
    assert_eq!(revision(&publisher), first);
    upsert(&mut publisher, web("a", "b.example"));
    let second = revision(&publisher);
    assert!(second > first);
    remove(&mut publisher, "a");
    upsert(&mut publisher, web("a", "a.example"));
    assert!(revision(&publisher) > second);
}

#[test]
fn a_restored_app_keeps_its_revision_and_later_ones_are_higher() {
    let mut publisher = Publisher::new(0);
    let mut old = web("a", "a.example");
    old.revision = 41;
    assert_eq!(publisher.restore(old).map(|app| app.revision), Some(41));
    assert!(publisher.restore(web("b", "a.example")).is_none());
    upsert(&mut publisher, web("c", "c.example"));
    assert_eq!(publisher.app(&AppName::new("c")).map(|app| app.revision), Some(42));
}

/// Few names, few ports, few ids: most of what is drawn collides.
fn any_app() -> impl Strategy<Value = App> {
    let port = (0..6_u16, 0..3_u16, 0..4_u8).prop_map(|(start, length, handlers)| {
        let handlers = ["", "\"tls\"", "\"http\"", "\"tls\", \"http\""][usize::from(handlers)];
        let (start, end) = (start + 1, start + 1 + length);
        format!("[[services]]\nports = [{{ start_port = {start}, end_port = {end}, handlers = [{handlers}] }}]\n")
    });
    let drawn = (0..5_u8, 0..4_u8, 0..3_u8, port, prop::collection::btree_set(0..6_u8, 0..3));
    drawn.prop_map(|(name, host, address, port, ids)| {
        let address = if address == 0 { String::new() } else { format!("\"::{address}\"") };
        let mut rest =
            format!("hostnames = [\"h{host}.example\"]\naddresses = [{address}]\n{port}");
        for id in ids {
            rest += &format!("[[instances]]\nid = \"i{id}\"\nnode = \"n\"\naddress = \"::1\"\n");
        }
        app(&format!("app{name}"), &rest)
    })
}

/// Checked the slow way, without the index that is under test.
fn compatible(a: &App, b: &App) -> bool {
    let names = a.hostnames.iter().any(|name| b.hostnames.contains(name));
    let ids = a.instances.iter().any(|one| b.instances.iter().any(|other| one.id == other.id));
    let dedicated = a.addresses.iter().any(|address| b.addresses.contains(address));
    let shared = a.addresses.is_empty() && b.addresses.is_empty();
    let ports = a.ports().any(|(_, _, one)| {
        b.ports().any(|(_, _, other)| {
            let overlap = one.range.clone().any(|port| other.range.contains(&port));
            let beside = one.handlers.http && one.handlers == other.handlers;
            overlap && (dedicated || (shared && !beside))
        })
    });
    !names && !ids && !ports
}

proptest! {
    #[test]
    fn whatever_the_order_of_changes_no_two_published_apps_contradict_each_other(
        steps in prop::collection::vec(prop_oneof![4 => any_app().prop_map(Ok), 1 => (0..5_u8).prop_map(Err)], 0..60)
    ) {
        let mut publisher = Publisher::new(0);
        // What somebody who only sees the changes believes, and the newest version of each app.
        let mut seen: BTreeMap<AppName, Arc<App>> = BTreeMap::new();
        let mut wanted: BTreeMap<AppName, App> = BTreeMap::new();
        for step in steps {
            let mut changes = Vec::new();
            match step {
                Ok(app) => {
                    wanted.insert(app.name.clone(), app.clone());
                    publisher.upsert(app, &mut changes);
                }
                Err(number) => {
                    let name = AppName::new(format!("app{number}"));
                    wanted.remove(&name);
                    publisher.remove(&name, &mut changes);
                }
            }
            for change in changes {
                match change {
                    Change::Upsert(app) => {
                        // Not even between two changes may there be a contradiction.
                        for other in seen.values().filter(|other| other.name != app.name) {
                            prop_assert!(compatible(&app, other), "{app:?}\n{other:?}");
                        }
                        seen.insert(app.name.clone(), app);
                    }
                    Change::Remove(name) => prop_assert!(seen.remove(&name).is_some()),
                }
            }
            prop_assert_eq!(publisher.apps(), seen.len());
            let instances: usize = seen.values().map(|app| app.instances.len()).sum();
            prop_assert_eq!(publisher.instances(), instances);
            for (name, app) in &wanted {
                let published = seen.get(name).is_some_and(|seen| same(seen, app));
                let waits = !publisher.contradictions(name).is_empty();
                prop_assert!(published != waits, "either published or waiting: {}", name);
                // Nobody waits without a reason.
                let blocked = seen.values().any(|other| other.name != *name && !compatible(app, other));
                prop_assert_eq!(waits, blocked, "{:?}", app);
            }
        }
    }
}
