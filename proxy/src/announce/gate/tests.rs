use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn rules() -> Rules {
    Rules {
        rise: 10 * SECOND,
        fall: 3,
        settle: 5 * SECOND,
        drain_max: 60 * SECOND,
        peers_min: 1,
        gap_max: 5 * SECOND,
    }
}

/// A gate that is looked through once a second.
struct Watched {
    gate: Gate,
    now: Instant,
    peers: Option<usize>,
}

impl Watched {
    fn from(state: State) -> Self {
        let now = Instant::now();
        let mut gate = Gate::new(rules(), now);
        gate.adopt(state, now);
        Self { gate, now, peers: Some(2) }
    }

    fn look(&mut self, sight: &Sight) -> Verdict {
        self.now += SECOND;
        self.gate.look(sight, self.peers, self.now)
    }

    /// Looks so often, at most, until something changes: how often that was, and what changed.
    fn until_change(&mut self, sight: &Sight, looks_max: u32) -> Option<(u32, Change)> {
        (1..=looks_max).find_map(|look| match self.look(sight) {
            Verdict::Change(change) => Some((look, change)),
            Verdict::Stay | Verdict::Hold(_) => None,
        })
    }

    #[track_caller]
    fn stays(&mut self, sight: &Sight, looks: u32) {
        assert_eq!(self.until_change(sight, looks), None);
    }
}

const FULL: Sight = Sight::Draining { by: Asker::Operator, left: 12 };
const EMPTY: Sight = Sight::Draining { by: Asker::Operator, left: 0 };
const STOPPING: Sight = Sight::Draining { by: Asker::Stop, left: 12 };
const STOPPED: Sight = Sight::Draining { by: Asker::Stop, left: 0 };

fn failing() -> Sight {
    Sight::Failing(Fault::Silent("connection refused".to_owned()))
}

#[test]
fn a_node_is_announced_when_it_has_served_for_the_whole_rise() {
    for state in [State::Unknown, State::Withdrawn, State::Draining] {
        let mut watched = Watched::from(state);
        let (looks, change) = watched.until_change(&Sight::Serving, 60).expect("it rises");
        assert_eq!((looks, change.from, change.to), (11, state, State::Announced));
        assert_eq!(change.why.to_string(), "has served for 10.0 s");
    }
}

#[test]
fn one_failure_begins_the_rise_anew() {
    let mut watched = Watched::from(State::Withdrawn);
    watched.stays(&Sight::Serving, 10);
    watched.stays(&failing(), 1);
    let (looks, _) = watched.until_change(&Sight::Serving, 60).expect("it rises");
    assert_eq!(looks, 11);
}

#[test]
fn a_rise_with_a_hole_that_nobody_saw_begins_anew() {
    let mut watched = Watched::from(State::Withdrawn);
    watched.stays(&Sight::Serving, 3);
    watched.now += 30 * SECOND;
    let (looks, _) = watched.until_change(&Sight::Serving, 60).expect("it rises");
    assert_eq!(looks, 11);
}

#[test]
fn a_node_is_withdrawn_after_as_many_failures_as_it_falls_by() {
    let mut watched = Watched::from(State::Announced);
    let (looks, change) = watched.until_change(&failing(), 60).expect("it falls");
    assert_eq!((looks, change.to), (3, State::Withdrawn));
    let why = change.why.to_string();
    assert!(why.starts_with("failed 3 times in a row: ") && why.contains("refused"), "{why}");
}

#[test]
fn what_is_shorter_than_the_fall_changes_nothing_however_often() {
    let mut watched = Watched::from(State::Announced);
    for _ in 0..50 {
        watched.stays(&failing(), 2);
        watched.stays(&Sight::Serving, 1);
    }
    assert_eq!(watched.gate.state(), State::Announced);
}

#[test]
fn a_node_that_is_stopped_and_started_again_within_the_fall_changes_nothing() {
    let mut watched = Watched::from(State::Announced);
    for _ in 0..10 {
        watched.stays(&STOPPING, 2);
        watched.stays(&failing(), 2);
        watched.stays(&Sight::Serving, 2);
    }
}

#[test]
fn a_node_that_stops_for_longer_is_left_like_one_that_is_drained() {
    let mut watched = Watched::from(State::Announced);
    let (looks, change) = watched.until_change(&STOPPING, 60).expect("it stops");
    assert_eq!((looks, change.to), (3, State::Draining));
    let (_, change) = watched.until_change(&STOPPED, 60).expect("it has stopped");
    assert_eq!((change.to, change.why), (State::Withdrawn, Why::Empty));
}

#[test]
fn the_last_announcer_is_not_withdrawn_because_it_is_stopped() {
    for sight in [STOPPED, STOPPING, failing()] {
        let mut watched = Watched::from(State::Announced);
        watched.until_change(&STOPPING, 60).expect("it stops");
        watched.peers = Some(0);
        watched.stays(&sight, 100);
        assert!(watched.gate.is_held(), "{sight:?}");
    }
}

#[test]
fn a_drain_is_announced_first_and_withdrawn_when_nobody_is_left() {
    let mut watched = Watched::from(State::Announced);
    let (looks, change) = watched.until_change(&FULL, 60).expect("it drains");
    let why = Why::Drains { by: Asker::Operator };
    assert_eq!((looks, change.to, change.why), (1, State::Draining, why));
    watched.stays(&FULL, 20);
    let (looks, change) = watched.until_change(&EMPTY, 60).expect("it is empty");
    assert_eq!((looks, change.to, change.why), (2, State::Withdrawn, Why::Empty));
    watched.stays(&EMPTY, 60);
}

#[test]
fn a_drain_without_connections_waits_until_routers_have_learnt_of_it() {
    let mut watched = Watched::from(State::Announced);
    watched.until_change(&EMPTY, 60).expect("it drains");
    let (looks, change) = watched.until_change(&EMPTY, 60).expect("it is empty");
    assert_eq!((looks, change.why), (5, Why::Empty));
}

#[test]
fn connections_that_do_not_end_hold_a_drain_only_so_long() {
    let mut watched = Watched::from(State::Announced);
    watched.until_change(&FULL, 60).expect("it drains");
    let (looks, change) = watched.until_change(&FULL, 100).expect("it is overdue");
    assert_eq!((looks, change.why), (60, Why::Overdue { after: 60 * SECOND }));
}

#[test]
fn a_connection_between_two_empty_looks_is_one() {
    let mut watched = Watched::from(State::Announced);
    watched.until_change(&FULL, 60).expect("it drains");
    for _ in 0..20 {
        watched.stays(&EMPTY, 1);
        watched.stays(&FULL, 1);
    }
}

#[test]
fn an_undrained_node_comes_back_after_a_rise() {
    let mut watched = Watched::from(State::Announced);
    watched.until_change(&FULL, 60).expect("it drains");
    let (looks, change) = watched.until_change(&Sight::Serving, 60).expect("it rises");
    assert_eq!((looks, change.to), (11, State::Announced));
}

#[test]
fn a_node_that_dies_while_it_is_drained_is_withdrawn_even_if_it_is_the_last() {
    let mut watched = Watched::from(State::Announced);
    watched.until_change(&FULL, 60).expect("it drains");
    watched.peers = Some(0);
    let (looks, change) = watched.until_change(&failing(), 60).expect("it is gone");
    assert_eq!((looks, change.to), (3, State::Withdrawn));
}

#[test]
fn the_last_announcer_is_not_withdrawn_and_it_is_said_once() {
    for peers in [Some(0), None] {
        let mut watched = Watched::from(State::Announced);
        watched.peers = peers;
        let verdicts: Vec<_> = (0..20).map(|_| watched.look(&failing())).collect();
        let held = |verdict: &&Verdict| matches!(verdict, Verdict::Hold(Why::Failed { .. }));
        assert_eq!(verdicts.iter().filter(held).count(), 1);
        assert!(matches!(verdicts[2], Verdict::Hold(_)), "{verdicts:?}");
        assert!(watched.gate.is_held());
        watched.peers = Some(1);
        let (looks, change) = watched.until_change(&failing(), 60).expect("another serves");
        assert_eq!((looks, change.to), (1, State::Withdrawn));
        assert!(!watched.gate.is_held());
    }
}

#[test]
fn a_last_announcer_that_recovers_is_held_no_more() {
    let mut watched = Watched::from(State::Announced);
    watched.peers = Some(0);
    watched.stays(&failing(), 10);
    watched.stays(&Sight::Serving, 1);
    assert!(!watched.gate.is_held());
}

#[test]
fn without_a_guard_the_last_is_withdrawn_like_others() {
    let mut watched = Watched::from(State::Announced);
    watched.gate.rules.peers_min = 0;
    watched.peers = None;
    let (looks, change) = watched.until_change(&failing(), 60).expect("it falls");
    assert_eq!((looks, change.to), (3, State::Withdrawn));
}

#[test]
fn a_drain_that_was_asked_for_is_not_guarded() {
    let mut watched = Watched::from(State::Announced);
    watched.peers = Some(0);
    let (_, change) = watched.until_change(&EMPTY, 60).expect("it drains");
    assert_eq!(change.to, State::Draining);
    let (_, change) = watched.until_change(&EMPTY, 60).expect("it is empty");
    assert_eq!(change.to, State::Withdrawn);
}

#[test]
fn what_is_found_in_force_is_kept_for_a_healthy_node() {
    for (state, sight) in [(State::Announced, Sight::Serving), (State::Withdrawn, failing())] {
        let mut watched = Watched::from(state);
        watched.stays(&sight, 100);
    }
}

#[test]
fn a_withdrawn_node_that_drains_stays_withdrawn() {
    let mut watched = Watched::from(State::Withdrawn);
    watched.stays(&EMPTY, 100);
}

proptest::proptest! {
    /// However the node behaves: no two changes are nearer than they may be, a withdrawal for health
    /// has its failures behind it and another node beside it, and an announcement its rise.
    #[test]
    fn every_change_has_its_reason(
        steps in proptest::collection::vec((0_u8..4, 0_usize..3), 1..400)
    ) {
        let mut watched = Watched::from(State::Unknown);
        let (mut failures, mut served, mut asked) = (0, 0, false);
        for (sight, peers) in steps {
            watched.peers = Some(peers);
            let sight = match sight {
                0 | 1 => Sight::Serving,
                2 => failing(),
                _ => FULL,
            };
            asked = sight == FULL || asked && sight != Sight::Serving;
            failures = if matches!(sight, Sight::Failing(_)) { failures + 1 } else { 0 };
            served = if sight == Sight::Serving { served + 1 } else { 0 };
            if let Verdict::Change(change) = watched.look(&sight) {
                proptest::prop_assert_ne!(change.from, change.to);
                match change.why {
                    Why::Served { .. } => proptest::prop_assert!(served > 10),
                    Why::Failed { .. } => {
                        proptest::prop_assert!(failures >= 3);
                        proptest::prop_assert!(peers >= 1 || asked);
                    }
                    Why::Drains { .. } | Why::Empty | Why::Overdue { .. } => {
                        proptest::prop_assert!(asked);
                    }
                }
            }
        }
    }
}
