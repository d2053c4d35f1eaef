use super::super::record::{Panic, Spike, Tick};
use super::*;

const SECOND: u64 = 1_000_000_000;

fn surroundings() -> Surroundings {
    Surroundings {
        boot_id: "boot-1".to_owned(),
        cgroup: Some(7),
        oom_kills: Some(2),
        machine_kills: Some(5),
    }
}

/// A process that was last seen at second 100, with memory at half of its limit.
fn old() -> Contents {
    let tick = Tick { time: 100 * SECOND, used: 50, limit: 100, ..Tick::default() };
    Contents {
        heartbeat: 100 * SECOND,
        last_seen: surroundings(),
        ticks: vec![tick],
        ..Contents::default()
    }
}

fn short(percent: u64) -> Contents {
    let mut old = old();
    old.ticks[0].used = percent;
    old
}

#[track_caller]
fn check(old: &Contents, now: &Surroundings, expected: Verdict) {
    let judgement = judge(old, now);
    assert_eq!(judgement.verdict, expected, "{}", judgement.why);
}

#[test]
fn what_the_process_said_itself_holds() {
    let reboot = Surroundings { boot_id: "boot-2".to_owned(), ..surroundings() };
    for (ended, verdict) in [
        (Ended::Clean, Verdict::Clean),
        (Ended::Panicked, Verdict::Panic),
        (Ended::Unsaid, Verdict::Reboot),
    ] {
        check(&Contents { ended, ..old() }, &reboot, verdict);
    }
}

#[test]
fn a_kill_that_the_cgroup_counts_is_out_of_memory() {
    let now = Surroundings { oom_kills: Some(3), ..surroundings() };
    check(&old(), &now, Verdict::OutOfMemory);
    check(&old(), &surroundings(), Verdict::Killed);
}

#[test]
fn a_counter_of_another_cgroup_says_nothing() {
    let now = Surroundings { cgroup: Some(8), oom_kills: Some(90), ..surroundings() };
    check(&old(), &now, Verdict::Killed);
}

#[test]
fn a_kill_on_the_machine_convinces_only_when_memory_was_short() {
    let now = Surroundings { cgroup: None, machine_kills: Some(6), ..surroundings() };
    check(&old(), &now, Verdict::Killed);
    check(&short(85), &now, Verdict::OutOfMemory);
}

#[test]
fn memory_at_the_limit_and_no_counter_is_out_of_memory() {
    let blind = Surroundings { oom_kills: None, machine_kills: None, ..surroundings() };
    check(&short(95), &blind, Verdict::OutOfMemory);
    check(&short(85), &blind, Verdict::Killed);
    // The kernel would have counted: somebody else killed it (earlyoom, an operator).
    check(&short(95), &surroundings(), Verdict::Killed);
}

#[test]
fn a_spike_that_no_tick_saw_counts_as_well_unless_it_is_old() {
    let blind = Surroundings { cgroup: None, machine_kills: None, ..surroundings() };
    let spike = Spike { time: 100 * SECOND, used: 92, limit: 100, ..Spike::default() };
    let now = Contents { spikes: vec![spike.clone()], ..old() };
    check(&now, &blind, Verdict::OutOfMemory);
    let before = Spike { time: 90 * SECOND, ..spike };
    check(&Contents { spikes: vec![before], ..old() }, &blind, Verdict::Killed);
}

#[test]
fn a_contained_panic_does_not_explain_a_later_kill() {
    let at = |file: &str| Panic { time: 100 * SECOND, file: file.to_owned(), ..Panic::default() };
    let contained = Contents { panics: vec![at("proxy/src/answer.rs")], ..old() };
    check(&contained, &surroundings(), Verdict::Killed);
    let panics = vec![at("proxy/src/answer.rs"), at("/rustc/1/library/core/src/panicking.rs")];
    check(&Contents { panics, ..old() }, &surroundings(), Verdict::Panic);
}

#[test]
fn every_verdict_has_a_label_of_its_own() {
    let labels: std::collections::BTreeSet<_> = Verdict::ALL.map(Verdict::label).into();
    assert_eq!(labels.len(), Verdict::ALL.len());
}
