//! The gate on a small internet: who reaches which node while nodes drain, die and come back.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::lab::anycast::{ADDRESSES, Anycast, Patience, Site};
use tests::wait;

const PATIENCE: Patience =
    Patience { interval_ms: 250, rise_ms: 1_500, fall: 12, settle_ms: 1_000 };

/// What a client's new connections reached while something was done.
struct Watched {
    reached: Vec<(Instant, Option<String>)>,
}

// === impl Watched ===

impl Watched {
    /// The last new connection that reached `region`, from `since`.
    fn last_at(&self, region: &str, since: Instant) -> Duration {
        let at = |(_, reached): &&(Instant, Option<String>)| reached.as_deref() == Some(region);
        let last = self.reached.iter().rev().find(at).map_or(since, |(began, _)| *began);
        last.saturating_duration_since(since)
    }

    /// The first new connection that reached `region`, from `since`.
    fn first_at(&self, region: &str, since: Instant) -> Option<Duration> {
        let mut after = self.reached.iter().filter(|(began, _)| *began >= since);
        let first = after.find(|(_, reached)| reached.as_deref() == Some(region));
        first.map(|(began, _)| *began - since)
    }

    /// Connections without an answer, all of which must have been under way when the path changed:
    /// their packets went to a node that does not know them, which is what a router does. One client
    /// has one at a time. From the first that reached `region` on, none fails.
    #[track_caller]
    fn failed_on_the_way_to(&self, region: &str) -> usize {
        let is_there =
            |(_, reached): &(Instant, Option<String>)| reached.as_deref() == Some(region);
        let moved = self.reached.iter().position(is_there).expect("they moved");
        let failed = |(_, reached): &&(Instant, Option<String>)| reached.is_none();
        let (before, after) = self.reached.split_at(moved);
        assert_eq!(
            after.iter().filter(failed).count(),
            0,
            "new connections after the path changed"
        );
        before.iter().filter(failed).count()
    }
}

/// Does `work` while the client of `site` keeps connecting, in both families.
fn while_asking<T>(lab: &Anycast, site: &Site, work: impl FnOnce() -> T) -> (T, [Watched; 2]) {
    let (client, stop) = (lab.client(site), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let ask = |address: &str| {
            let (client, stop) = (client.clone(), &stop);
            let address = address.parse().unwrap();
            scope.spawn(move || client.keep_asking(address, stop))
        };
        let asking = ADDRESSES.map(ask);
        let ended = StopOnDrop(&stop);
        let happened = work();
        drop(ended);
        let watched = asking.map(|asking| Watched { reached: asking.join().unwrap() });
        (happened, watched)
    })
}

/// Ends what else runs in a scope, however it is left.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// How long a new connection may take to move when something is done to a node: what the gate's
/// rules say, and two seconds for a busy machine.
const SLACK: Duration = Duration::from_secs(2);

#[test]
fn clients_take_the_shortest_path_and_leave_a_node_that_drains() {
    let Some(lab) = Anycast::start(PATIENCE) else { return };
    let [ams, fra, sin] = lab.sites() else { panic!("three regions") };
    for site in [ams, fra, sin] {
        assert!(site.router_prefers_own_node(), "{}", site.region());
    }
    let (asked, watched) = while_asking(&lab, ams, || {
        let asked = Instant::now();
        let outcome = ams.command(&["drain"]);
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        ams.announcer().comes_to("draining");
        lab.reaches(ams, "fra");
        asked
    });
    for (family, watched) in ["IPv4", "IPv6"].into_iter().zip(&watched) {
        let last = watched.last_at("ams", asked);
        let failed = watched.failed_on_the_way_to("fra");
        eprintln!(
            "{family}: last new connection at the old node {last:?} after the drain; {failed} under way failed"
        );
        assert!(last < SLACK, "{last:?}");
        assert!(failed <= 1, "a drain refuses nobody: {failed}");
    }
    // The others' clients stayed where they were.
    lab.reaches(fra, "fra");
    lab.reaches(sin, "sin");
    ams.announcer().comes_to("withdrawn");
    assert!(!ams.router_prefers_own_node());
    let route = ams.router_bird().ask("show route for 198.51.100.0/24 all");
    assert!(!route.contains("[node4 "), "{route}");

    let outcome = ams.command(&["undrain"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    ams.announcer().comes_to("announced");
    lab.reaches(ams, "ams");
}

#[test]
fn a_node_that_dies_is_left_and_one_that_only_blinks_is_not() {
    let Some(lab) = Anycast::start(PATIENCE) else { return };
    let [ams, fra, sin] = lab.sites() else { panic!("three regions") };

    // An upgrade: BGP hears nothing of it, and clients notice nothing.
    let before = ams.heard();
    let ((), watched) = while_asking(&lab, ams, || {
        ams.upgrade_node();
        ams.announcer().looks(5);
    });
    for watched in &watched {
        let elsewhere =
            |(_, reached): &&(Instant, Option<String>)| reached.as_deref() != Some("ams");
        let elsewhere: Vec<_> = watched.reached.iter().filter(elsewhere).collect();
        assert!(elsewhere.is_empty(), "of {}: {elsewhere:?}", watched.reached.len());
    }
    assert_eq!(ams.heard(), before, "updates and withdrawals at the router");
    let status = ams.announcer().status();
    assert_eq!(
        (&status["node"]["generation"], &status["totals"]["changes"]),
        (&2.into(), &1.into())
    );

    // A flap that is shorter than the fall: the same.
    for _ in 0..3 {
        ams.signal_node(Signal::STOP);
        ams.announcer().looks(1);
        ams.signal_node(Signal::CONT);
        wait::until("the node serves again", || ams.announcer().status()["sight"] == "serving");
    }
    let faults = ams.announcer().status()["totals"]["faults"].as_u64();
    assert!(faults >= Some(3), "the control: it did see them: {faults:?}");
    assert_eq!(ams.heard(), before, "updates and withdrawals at the router");

    // The announcer dies: nothing changes.
    ams.announcer().kill();
    assert_eq!(ams.heard(), before);
    lab.reaches(ams, "ams");
    ams.announcer().start_again();
    ams.announcer().looks(5);
    assert_eq!(ams.heard(), before, "an announcer that comes back goes on from what it finds");

    // The node dies: its clients move within the fall.
    let fall = Duration::from_millis(u64::from(PATIENCE.interval_ms * (PATIENCE.fall + 1)));
    let (killed, watched) = while_asking(&lab, ams, || {
        let killed = Instant::now();
        ams.kill_node();
        lab.reaches(ams, "fra");
        killed
    });
    for (family, watched) in ["IPv4", "IPv6"].into_iter().zip(&watched) {
        let moved = watched.first_at("fra", killed).expect("they moved");
        let failed = watched.failed_on_the_way_to("fra");
        eprintln!(
            "{family}: {moved:?} from the node's death to the first answer of another; {failed} failed"
        );
        assert!(moved < fall + SLACK, "{moved:?}");
    }
    ams.start_node_again();
    ams.announcer().comes_to("announced");
    lab.reaches(ams, "ams");

    // Its BIRD dies, and then one that only freezes: BFD finds it, long before the hold time.
    for (signal, what, within) in [
        (Signal::KILL, "was killed", SLACK),
        (Signal::STOP, "froze", Duration::from_secs(3) + SLACK),
    ] {
        let (done, watched) = while_asking(&lab, ams, || {
            let done = Instant::now();
            ams.node_bird().signal(signal);
            lab.reaches(ams, "fra");
            done
        });
        for (family, watched) in ["IPv4", "IPv6"].into_iter().zip(&watched) {
            let last = watched.last_at("ams", done);
            let failed = watched.failed_on_the_way_to("fra");
            eprintln!(
                "{family}: last new connection {last:?} after BIRD {what}; {failed} under way failed"
            );
            assert!(last < within, "{last:?}");
            assert!(failed <= 1, "the node served all the while: {failed}");
        }
        match signal {
            Signal::KILL => {
                ams.node_bird().kill();
                ams.node_bird().start_again();
            }
            _ => ams.node_bird().signal(Signal::CONT),
        }
        lab.reaches(ams, "ams");
    }

    // All but one die; the last is kept, well or not.
    ams.kill_node();
    fra.kill_node();
    lab.reaches(ams, "sin");
    lab.reaches(fra, "sin");
    let before = sin.heard();
    sin.kill_node();
    wait::until("it is held", || sin.announcer().status()["held"] == true);
    assert_eq!(sin.heard(), before);
    assert!(sin.router_prefers_own_node());
    let log = sin.announcer().log();
    assert!(log.contains("NOT withdrawn"), "{log}");
}
