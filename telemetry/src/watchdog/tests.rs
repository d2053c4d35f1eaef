use super::*;

const TICK: Duration = Duration::from_millis(10);

/// Feeds one worker's pulses, a tick apart, and returns what was found and when.
fn found(config: Config, pulses: impl IntoIterator<Item = Pulse>) -> Vec<(u64, Finding)> {
    let start = Instant::now();
    let mut watchdog = Watchdog::new(config, 1, start);
    let observe = |(tick, pulse): (u32, Pulse)| {
        let now = start + TICK * tick;
        let finding = watchdog.observe(0, pulse, now)?;
        Some(((now - start).as_millis() as u64, finding))
    };
    (1..).zip(pulses).filter_map(observe).collect()
}

fn awake(parks: u64, busy: u64) -> Pulse {
    Pulse { parked: false, parks, busy: Duration::from_millis(busy) }
}

fn milliseconds(finding: Finding) -> (&'static str, u128) {
    match finding {
        Finding::Blocked { lasted, .. } => ("blocked", lasted.as_millis()),
        Finding::Recovered { lasted, .. } => ("recovered", lasted.as_millis()),
        Finding::Drain { lasted, .. } => ("drain", lasted.as_millis()),
        Finding::Abort { lasted, .. } => ("abort", lasted.as_millis()),
    }
}

fn ladder(config: Config, pulses: impl IntoIterator<Item = Pulse>) -> Vec<(u64, &'static str)> {
    found(config, pulses).into_iter().map(|(at, finding)| (at, milliseconds(finding).0)).collect()
}

#[test]
fn a_poll_that_does_not_end_is_reported_once_and_again_when_it_has() {
    let stuck = std::iter::repeat_n(awake(2, 5), 150);
    let pulses = stuck.chain([awake(2, 1500), awake(3, 1500)]);
    let found = found(Config::default(), pulses);
    let found: Vec<_> = found.into_iter().map(|(at, f)| (at, milliseconds(f))).collect();
    // The first tick shows the pulse for the first time, at 10 ms.
    assert_eq!(found, [(210, ("blocked", 200)), (1510, ("recovered", 1500))]);
}

#[test]
fn a_saturated_worker_that_never_sleeps_is_well() {
    let busy = (0..1_000).map(|tick| awake(2, tick / 5 * 50));
    assert_eq!(ladder(Config::default(), busy), []);
}

#[test]
fn a_worker_that_sleeps_is_well_however_long() {
    let asleep = Pulse { parked: true, parks: 3, busy: Duration::ZERO };
    assert_eq!(ladder(Config::default(), std::iter::repeat_n(asleep, 10_000)), []);
}

#[test]
fn the_ladder_is_climbed_step_by_step() {
    let stuck = || std::iter::repeat_n(awake(2, 5), 7_000);
    let all = [(210, "blocked"), (10_010, "drain"), (60_010, "abort")];
    assert_eq!(ladder(Config::default(), stuck()), all);
    let neither = Config { drain: None, abort: None, ..Config::default() };
    assert_eq!(ladder(neither, stuck()), all[..1]);
}

#[test]
fn a_second_block_is_reported_like_the_first() {
    let stuck = |parks| std::iter::repeat_n(awake(parks, 0), 30);
    let found = ladder(Config::default(), stuck(2).chain(stuck(4)).chain(stuck(6)));
    let names: Vec<_> = found.into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["blocked", "recovered", "blocked", "recovered", "blocked"]);
}

/// The pulse of a real runtime, whose thread sleeps inside a poll: the control is that the same
/// runtime, saturated with short polls, is never reported.
#[test]
fn a_runtime_that_blocks_is_told_from_one_that_is_busy() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let worker = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        sender.send(runtime.metrics()).unwrap();
        runtime.block_on(async {
            let end = Instant::now() + Duration::from_millis(600);
            while Instant::now() < end {
                tokio::task::yield_now().await;
            }
            std::thread::sleep(Duration::from_millis(600));
        });
    });
    let metrics = receiver.recv().unwrap();
    let start = Instant::now();
    let mut watchdog = Watchdog::new(Config::default(), 1, start);
    let mut blocked = Vec::new();
    while !worker.is_finished() {
        if let Some(Finding::Blocked { .. }) =
            watchdog.observe(0, Pulse::of(&metrics), Instant::now())
        {
            blocked.push(start.elapsed());
        }
        std::thread::sleep(TICK);
    }
    worker.join().unwrap();
    let [at] = blocked[..] else { panic!("reported at {blocked:?}") };
    assert!(at >= Duration::from_millis(600), "the busy half was taken for blocked: {at:?}");
}
