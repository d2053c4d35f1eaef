//! Changes, watched after every single step.

use std::net::IpAddr;

use ebpf_filter_common::Verdict;
use proptest::prelude::*;

use super::*;
use crate::store::{PolicyTable, decide_in_userspace};

const PREFIXES: [&str; 2] = ["198.51.100.0/24", "2001:db8::/32"];

/// A table that looks at itself after every step, and may fail once.
struct Watched<'a> {
    table: PolicyTable,
    after: &'a mut dyn FnMut(&PolicyTable),
    /// Puts until one fails.
    fails_in: Option<usize>,
}

impl Watched<'_> {
    fn put(&mut self) -> Result<(), FilterError> {
        if let Some(left) = &mut self.fails_in {
            if *left == 0 {
                self.fails_in = None;
                return Err(FilterError::Full { map: "a map", capacity: 0 });
            }
            *left -= 1;
        }
        Ok(())
    }
}

impl Store for Watched<'_> {
    fn put_ports(&mut self, blocks: &[(PortBlock, u64)]) -> Result<(), FilterError> {
        for block in blocks {
            self.put()?;
            self.table.put_ports(&[*block])?;
            (self.after)(&self.table);
        }
        Ok(())
    }

    fn remove_ports(&mut self, blocks: &[PortBlock]) -> Result<(), FilterError> {
        for block in blocks {
            self.table.remove_ports(&[*block])?;
            (self.after)(&self.table);
        }
        Ok(())
    }

    fn policy(&self, net: &IpNet) -> Result<Option<Policy>, FilterError> {
        self.table.policy(net)
    }

    fn put_policies(&mut self, policies: &[(IpNet, Policy)]) -> Result<(), FilterError> {
        for policy in policies {
            self.put()?;
            self.table.put_policies(&[*policy])?;
            (self.after)(&self.table);
        }
        Ok(())
    }

    fn remove_policies(&mut self, nets: &[IpNet]) -> Result<(), FilterError> {
        for net in nets {
            self.table.remove_policies(&[*net])?;
            (self.after)(&self.table);
        }
        Ok(())
    }

    fn visit_policies(&self, each: &mut dyn FnMut(IpNet, Policy)) -> Result<(), FilterError> {
        self.table.visit_policies(each)
    }

    fn visit_ports(&self, each: &mut dyn FnMut(PortBlock)) -> Result<(), FilterError> {
        self.table.visit_ports(each)
    }

    fn reset_counters(&mut self, _app: AppIndex) -> Result<(), FilterError> {
        Ok(())
    }
}

/// What an address answers at every port of interest.
type Answers = Vec<bool>;

const ADDRESSES: [&str; 8] = [
    "198.51.100.1",
    "198.51.100.2",
    "198.51.100.65",
    "198.51.100.200",
    "2001:db8::1",
    "2001:db8:1::1",
    "2001:db8:ffff::1",
    "198.51.101.1",
];

fn answers(table: &PolicyTable, address: &str) -> Answers {
    let address: IpAddr = address.parse().unwrap();
    let ports = (0..=64).chain([443, 8079, 8080, 8143, 8144, u16::MAX]);
    ports.map(|port| decide_in_userspace(table, address, port).verdict.passes()).collect()
}

fn all_answers(table: &PolicyTable) -> Vec<Answers> {
    ADDRESSES.iter().map(|address| answers(table, address)).collect()
}

fn app(name: &str, addresses: &[&str], tcp: &[u16]) -> AppPolicy {
    AppPolicy {
        app: name.to_owned(),
        addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
        shared: false,
        tcp: tcp.iter().map(|port| *port..=*port).collect(),
        udp: vec![],
    }
}

fn prefixes() -> Vec<IpNet> {
    PREFIXES.iter().map(|net| net.parse().unwrap()).collect()
}

fn table(apps: &[AppPolicy]) -> PolicyTable {
    PolicyTable::new(&prefixes(), apps.iter().cloned())
}

fn entries(table: &PolicyTable) -> (usize, usize) {
    let (mut policies, mut ports) = (0, 0);
    table.visit_policies(&mut |_, _| policies += 1).unwrap();
    table.visit_ports(&mut |_| ports += 1).unwrap();
    (policies, ports)
}

/// Makes one change and checks that at every step every address answers as before or as after.
fn change(
    book: &mut Book,
    old: &mut PolicyTable,
    after: &[AppPolicy],
    app: Option<&AppPolicy>,
    name: &str,
) {
    let (before, expected) = (all_answers(old), all_answers(&table(after)));
    let mut steps = 0;
    let mut check = |now: &PolicyTable| {
        steps += 1;
        for (at, address) in ADDRESSES.iter().enumerate() {
            let now = answers(now, address);
            assert!(now == before[at] || now == expected[at], "{address} is half applied");
        }
    };
    let mut store = Watched { table: old.clone(), after: &mut check, fails_in: None };
    match app {
        Some(app) => book.apply(&mut store, app).unwrap(),
        None => book.remove(&mut store, name).unwrap(),
    }
    *old = store.table;
    assert_eq!(all_answers(old), expected);
    assert_eq!(entries(old), entries(&table(after)), "nothing is left behind");
}

/// The networks that each of three apps may have.
const OWN: [[&str; 3]; 3] = [
    ["198.51.100.1/32", "2001:db8::1/128", "10.0.0.1/32"],
    ["198.51.100.2/32", "198.51.100.64/26", "2001:db8:1::/48"],
    ["198.51.100.65/32", "2001:db8:ffff::1/128", "fd00::/8"],
];

fn any_app() -> impl Strategy<Value = (usize, Option<AppPolicy>)> {
    let ports = proptest::collection::vec(
        prop_oneof![0_u16..=64, Just(443), Just(8080), Just(8144), Just(u16::MAX)],
        0..9,
    );
    let addresses = proptest::collection::vec(any::<bool>(), 3);
    (0..3_usize, addresses, any::<bool>(), ports, 0..5).prop_map(
        |(which, addresses, shared, ports, gone)| {
            let own = OWN[which].iter().zip(addresses).filter(|(_, has)| *has);
            let own: Vec<_> = own.map(|(net, _)| *net).collect();
            let policy = AppPolicy { shared, ..app(&which.to_string(), &own, &ports) };
            (which, (gone != 0).then_some(policy))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn at_no_step_of_any_change_an_address_is_half_applied(
        changes in proptest::collection::vec(any_app(), 1..12)
    ) {
        let mut apps: [Option<AppPolicy>; 3] = Default::default();
        let mut book = Book::new(&prefixes());
        let mut now = PolicyTable::default();
        book.replace_all(&mut now, std::iter::empty()).unwrap();
        for (which, app) in changes {
            apps[which] = app.clone();
            let after: Vec<_> = apps.iter().flatten().cloned().collect();
            change(&mut book, &mut now, &after, app.as_ref(), &which.to_string());
        }
    }

    #[test]
    fn a_change_that_fails_at_any_step_leaves_the_maps_as_they_were(
        first in any_app(), second in any_app(), third in any_app(), fails_in in 0..20_usize
    ) {
        let mut book = Book::new(&prefixes());
        let mut now = PolicyTable::default();
        let start = [first.1, second.1].into_iter().flatten();
        book.replace_all(&mut now, start).unwrap();
        let Some(app) = third.1 else { return Ok(()) };
        let before = (all_answers(&now), entries(&now));
        let mut store = Watched { table: now, after: &mut |_| {}, fails_in: Some(fails_in) };
        let result = book.apply(&mut store, &app);
        if result.is_err() {
            prop_assert_eq!((all_answers(&store.table), entries(&store.table)), before);
            // The book knows it as well: the same change, without a failure, works.
            book.apply(&mut store, &app).unwrap();
        }
        let mut expected = PolicyTable::default();
        Book::new(&prefixes()).replace_all(&mut expected, std::iter::once(app.clone())).unwrap();
        for net in &app.addresses {
            let address = net.addr().to_string();
            prop_assert_eq!(answers(&store.table, &address), answers(&expected, &address));
        }
    }

    #[test]
    fn replacing_all_leaves_nothing_of_before(
        old in proptest::collection::vec(any_app(), 0..4),
        new in proptest::collection::vec(any_app(), 0..4),
    ) {
        let latest = |changes: Vec<(usize, Option<AppPolicy>)>| {
            let mut apps: [Option<AppPolicy>; 3] = Default::default();
            changes.into_iter().for_each(|(which, app)| apps[which] = app);
            apps.into_iter().flatten().collect::<Vec<_>>()
        };
        let (old, new) = (latest(old), latest(new));
        let mut now = table(&old);
        // Another process, whose book is empty.
        let mut book = Book::new(&prefixes());
        let (before, expected) = (all_answers(&now), all_answers(&table(&new)));
        let mut check = |now: &PolicyTable| {
            for (at, address) in ADDRESSES.iter().enumerate() {
                let now = answers(now, address);
                let whole = now == before[at] || now == expected[at];
                // Between the steps an address that leaves an app may have the policy of the prefix
                // around it already, or still; each of them is a whole one.
                assert!(whole || is_some_policy(&now, &[&old, &new]), "{address} is half applied");
            }
        };
        let mut store = Watched { table: now.clone(), after: &mut check, fails_in: None };
        book.replace_all(&mut store, new.iter().cloned()).unwrap();
        now = store.table;
        prop_assert_eq!(all_answers(&now), expected);
        prop_assert_eq!(entries(&now), entries(&table(&new)));
    }
}

/// Whether these are the answers of one app's ports, or of the shared ones, as a whole.
fn is_some_policy(answers_now: &Answers, inventories: &[&Vec<AppPolicy>]) -> bool {
    let whole = |apps: &[AppPolicy]| {
        let table = table(apps);
        answers(&table, "198.51.100.1") == *answers_now
    };
    inventories.iter().any(|apps| {
        let alone = apps.iter().any(|app| {
            let addresses = vec!["198.51.100.1/32".parse().unwrap()];
            whole(&[AppPolicy { addresses, shared: false, ..app.clone() }])
        });
        let shared: Vec<_> =
            apps.iter().cloned().map(|app| AppPolicy { addresses: vec![], ..app }).collect();
        alone || whole(&shared)
    })
}

#[test]
fn an_address_that_moved_is_not_taken_from_its_new_app() {
    let mut book = Book::new(&prefixes());
    let mut now = PolicyTable::default();
    book.replace_all(&mut now, std::iter::empty()).unwrap();
    book.apply(&mut now, &app("old", &["198.51.100.1/32"], &[80])).unwrap();
    book.apply(&mut now, &app("new", &["198.51.100.1/32"], &[443])).unwrap();
    // Only now the one that had it hears that it has not.
    book.apply(&mut now, &app("old", &[], &[80])).unwrap();
    let address = "198.51.100.1".parse().unwrap();
    assert_eq!(decide_in_userspace(&now, address, 443).verdict, Verdict::PassAllowed);
    assert_eq!(decide_in_userspace(&now, address, 80).verdict, Verdict::DropPort);
    book.remove(&mut now, "new").unwrap();
    assert_eq!(decide_in_userspace(&now, address, 443).verdict, Verdict::DropAddress);
}

#[test]
fn an_anycast_prefix_that_one_app_has_as_a_whole_is_everybodys_again_afterwards() {
    let mut book = Book::new(&prefixes());
    let mut now = PolicyTable::default();
    let shared = AppPolicy { shared: true, ..app("shared", &[], &[80]) };
    book.replace_all(&mut now, std::iter::once(shared)).unwrap();
    let address = "198.51.100.9".parse().unwrap();
    let at = |now: &PolicyTable, port| decide_in_userspace(now, address, port).verdict;
    // Wider than the prefix: the part inside counts.
    book.apply(&mut now, &app("whole", &["198.51.0.0/16"], &[443])).unwrap();
    assert_eq!((at(&now, 443), at(&now, 80)), (Verdict::PassAllowed, Verdict::DropPort));
    let outside = "198.51.101.9".parse().unwrap();
    assert_eq!(decide_in_userspace(&now, outside, 80).verdict, Verdict::PassOutside);
    book.remove(&mut now, "whole").unwrap();
    assert_eq!((at(&now, 443), at(&now, 80)), (Verdict::DropPort, Verdict::PassAllowed));
}

#[test]
fn a_number_is_used_again_only_when_its_app_is_gone() {
    let mut book = Book::new(&prefixes());
    let mut now = PolicyTable::default();
    book.replace_all(&mut now, [app("a", &[], &[1]), app("b", &[], &[2])].into_iter()).unwrap();
    book.remove(&mut now, "a").unwrap();
    book.apply(&mut now, &app("b", &[], &[3])).unwrap();
    book.apply(&mut now, &app("c", &[], &[4])).unwrap();
    book.apply(&mut now, &app("d", &[], &[4])).unwrap();
    let names: Vec<_> = book.names().collect();
    assert_eq!(names, [(1, "c"), (2, "b"), (3, "d")]);
}

#[test]
fn a_shared_port_stays_open_until_the_last_app_that_asks_for_it_is_gone() {
    let mut book = Book::new(&prefixes());
    let mut now = PolicyTable::default();
    let shared = |name| AppPolicy { shared: true, ..app(name, &[], &[443]) };
    book.replace_all(&mut now, [shared("a"), shared("b"), shared("a")].into_iter()).unwrap();
    let address = "2001:db8::5".parse().unwrap();
    book.remove(&mut now, "a").unwrap();
    assert_eq!(decide_in_userspace(&now, address, 443).verdict, Verdict::PassAllowed);
    book.remove(&mut now, "b").unwrap();
    assert_eq!(decide_in_userspace(&now, address, 443).verdict, Verdict::DropAddress);
}
