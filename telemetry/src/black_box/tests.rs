use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;

use tempfile::TempDir;

use super::layout::{FILE_BYTES, WORDS};
use super::*;
use crate::clock;

fn begin(directory: &Path) -> Opened {
    open(directory, "ams-1", "1.2.3").expect("a black box can be had here")
}

/// What the next start of a node says.
fn next_start(directory: &Path) -> Report {
    begin(directory).last
}

fn file(directory: &TempDir) -> PathBuf {
    directory.path().join(FILE)
}

#[test]
fn what_is_written_is_read_again() {
    let directory = TempDir::new().unwrap();
    let Opened { black_box, .. } = begin(directory.path());
    let now = clock::now();
    for tick in 0..3_000 {
        let tick = Tick { time: now + tick, used: tick, limit: 4_000, ..Tick::default() };
        black_box.tick(&tick);
    }
    let second =
        Second { time: now, allocated: 1, cgroup_peak: 77, pressure: 21, ..Second::default() };
    black_box.second(&second);
    for line in 0..300 {
        black_box.line(now + line, Level::Error, &format!("{line} {}", "é".repeat(200)));
    }
    let request = |bytes| Request {
        id: "01J-ams".to_owned(),
        app: "shop".to_owned(),
        state: "response".to_owned(),
        bytes,
        age_ms: 1_500,
    };
    black_box.largest_requests(&[request(1), request(2), request(3)]);
    black_box.largest_requests(&[request(9), request(8)]);
    let stack = |bytes| OldStack { bytes, objects: 2, oldest_seconds: 3, pcs: vec![1, 2, 3] };
    black_box.old_stacks(&(0..40).map(stack).collect::<Vec<_>>());
    black_box.limit(4_000, crate::sampler::Source::Config);

    let Found { contents, is_live } = read(&file(&directory)).unwrap();
    assert!(is_live);
    assert_eq!((contents.node.as_str(), contents.program.as_str()), ("ams-1", "1.2.3"));
    assert_eq!(contents.pid, u64::from(std::process::id()));
    let used: Vec<_> = contents.ticks.iter().map(|tick| tick.used).collect();
    assert_eq!(used, (3_000 - 1_024..3_000).collect::<Vec<_>>(), "the last ones, in order");
    assert_eq!(contents.heartbeat, now + 2_999);
    assert_eq!(contents.seconds, [second]);
    assert_eq!(contents.cgroup_peak, Some(77));
    assert_eq!(contents.lines.len(), 256);
    let last = contents.lines.last().unwrap();
    assert!(last.text.starts_with("299 éé") && last.text.len() <= 240, "{last:?}");
    assert_eq!(contents.requests, [request(9), request(8)], "replaced");
    assert_eq!(contents.stacks, (0..32).map(stack).collect::<Vec<_>>(), "the first");
    assert!(contents.modules.iter().any(|module| module.path.contains("telemetry")));
    assert_eq!(fs::metadata(file(&directory)).unwrap().len(), FILE_BYTES as u64);
}

#[test]
fn the_first_start_and_clean_and_sudden_ends_are_told_apart() {
    let directory = TempDir::new().unwrap();
    let Opened { black_box, last } = begin(directory.path());
    assert_eq!((last.verdict, last.life), (Verdict::FirstStart, None));
    black_box.end(Ended::Clean);
    drop(black_box);
    let Opened { black_box, last } = begin(directory.path());
    assert_eq!(last.verdict, Verdict::Clean);
    black_box.end(Ended::Panicked);
    drop(black_box);
    let Opened { black_box, last } = begin(directory.path());
    assert_eq!(last.verdict, Verdict::Panic);
    drop(black_box);
    assert_eq!(next_start(directory.path()).verdict, Verdict::Killed);
}

#[test]
fn a_process_that_lives_is_not_judged() {
    let directory = TempDir::new().unwrap();
    let first = begin(directory.path());
    let second = begin(directory.path());
    assert_eq!(second.last.verdict, Verdict::Running);
    assert_eq!(postmortem(&file(&directory)).unwrap().verdict, Verdict::Running);
    // It writes on to what is now the file before, and is judged by that.
    first.black_box.end(Ended::Clean);
    drop(first.black_box);
    let before = directory.path().join("blackbox.1");
    assert_eq!(postmortem(&before).unwrap().verdict, Verdict::Clean);
}

#[test]
fn a_start_that_fails_leaves_everything_as_it_was() {
    let directory = TempDir::new().unwrap();
    let first = begin(directory.path());
    first.black_box.end(Ended::Panicked);
    drop(first);
    for _ in 0..6 {
        let Opened { black_box, last } = begin(directory.path());
        assert_eq!(last.verdict, Verdict::Panic);
        black_box.withdraw();
    }
    let live = begin(directory.path());
    begin(directory.path()).black_box.withdraw();
    assert_eq!(postmortem(&file(&directory)).unwrap().verdict, Verdict::Running);
    drop(live);
    assert_eq!(next_start(directory.path()).verdict, Verdict::Killed);
}

#[test]
fn a_process_takes_its_place_back_from_one_that_was_to_take_over_and_died() {
    let directory = TempDir::new().unwrap();
    let live = begin(directory.path());
    live.black_box.reclaim();
    assert_eq!(postmortem(&file(&directory)).unwrap().verdict, Verdict::Running, "it has it");
    drop(begin(directory.path()));
    assert_eq!(postmortem(&file(&directory)).unwrap().verdict, Verdict::Killed);
    live.black_box.reclaim();
    assert_eq!(postmortem(&file(&directory)).unwrap().verdict, Verdict::Running);
    assert!(!directory.path().join("blackbox.1").exists());
}

#[test]
fn four_files_are_kept() {
    let directory = TempDir::new().unwrap();
    (0..7).for_each(|_| drop(begin(directory.path())));
    let mut names: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["blackbox", "blackbox.1", "blackbox.2", "blackbox.3", "blackbox.4"]);
}

#[test]
fn a_file_that_was_judged_is_judged_the_same_way_later() {
    let directory = TempDir::new().unwrap();
    drop(begin(directory.path()));
    // As if it had been written before the machine was started anew.
    change(&directory, header::BOOT.0 + 1, 0x4141_4141_4141_4141);
    assert_eq!(next_start(directory.path()).verdict, Verdict::Reboot);
    let kept = directory.path().join("blackbox.1");
    let judged = read(&kept).unwrap().contents.judged.expect("it was signed");
    assert_eq!(
        judged,
        Surroundings {
            boot_id: judged.boot_id.clone(),
            ..Surroundings::now(crate::cgroup::Cgroup::find().as_ref())
        }
    );
    assert_eq!(postmortem(&kept).unwrap().verdict, Verdict::Reboot);
}

/// Overwrites one word of the file of a process that is gone.
fn change(directory: &TempDir, word: usize, value: u64) {
    let file = OpenOptions::new().write(true).open(file(directory)).unwrap();
    file.write_all_at(&value.to_ne_bytes(), word as u64 * 8).unwrap();
}

#[test]
fn what_cannot_be_understood_is_said_to_be_and_why() {
    type Spoil = fn(&TempDir);
    let cases: [(Spoil, &str); 6] = [
        (|directory| fs::write(file(directory), b"PNG and so on").unwrap(), "not a black box"),
        (|directory| fs::write(file(directory), b"").unwrap(), "not a black box"),
        (|directory| change(directory, header::MAGIC, 0), "never begun"),
        (|directory| change(directory, header::LAYOUT, 1), "another version"),
        (|directory| change(directory, header::VERSION, 2), "another version"),
        (
            |directory| {
                let file = OpenOptions::new().write(true).open(file(directory)).unwrap();
                file.set_len(WORDS as u64 * 8 - 8).unwrap();
            },
            "cut short",
        ),
    ];
    for (spoil, reason) in cases {
        let directory = TempDir::new().unwrap();
        drop(begin(directory.path()));
        spoil(&directory);
        let last = next_start(directory.path());
        assert_eq!(last.verdict, Verdict::Unreadable, "{reason}");
        assert!(last.why.contains(reason), "{reason:?} in {:?}", last.why);
    }
}

#[test]
fn nonsense_in_a_file_of_the_right_layout_is_read_without_harm() {
    let directory = TempDir::new().unwrap();
    drop(begin(directory.path()));
    let path = file(&directory);
    let mut bytes = fs::read(&path).unwrap();
    let start = header::ENDED * 8;
    bytes[start..].iter_mut().for_each(|byte| *byte = 0xfe);
    fs::write(&path, &bytes).unwrap();
    let report = postmortem(&path).unwrap();
    let text = story(&report, &|_| None);
    assert!(text.contains("limit"), "{text}");
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text}");
    serde_json::to_string(&report).unwrap();
}

#[test]
fn a_half_written_record_is_left_out() {
    let directory = TempDir::new().unwrap();
    let Opened { black_box, .. } = begin(directory.path());
    let tick = |used| Tick { time: 1, used, ..Tick::default() };
    [1, 2, 3].map(tick).iter().for_each(|tick| black_box.tick(tick));
    drop(black_box);
    change(&directory, layout::TICKS.slot(1), 0);
    let contents = read(&file(&directory)).unwrap().contents;
    assert_eq!(contents.ticks.iter().map(|tick| tick.used).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn the_story_tells_who_allocated_and_what_was_logged() {
    let directory = TempDir::new().unwrap();
    let Opened { black_box, .. } = begin(directory.path());
    let now = clock::now();
    let frames = black_box.frames();
    black_box.limit(100 << 20, crate::sampler::Source::Cgroup);
    let tick = Tick { time: now, used: 97 << 20, limit: 100 << 20, ..Tick::default() };
    for (crossed, time) in [(true, now - 20_000_000), (false, now - 10_000_000)] {
        let spike = RawSpike {
            time,
            bytes: 4 << 20,
            used: 93 << 20,
            limit: 100 << 20,
            percent: 90,
            tid: 1,
            thread: "worker-1",
            pcs: frames.pcs(),
        };
        black_box.spike(crossed, &spike);
    }
    black_box.line(now - 1_204_000_000, Level::Warn, "proxy::probe: node does not answer");
    black_box.tick(&tick);
    drop(black_box);
    let report = postmortem(&file(&directory)).unwrap();
    let text = story(&report, &|_| None);
    for part in [
        "97.0 MiB used at the end, at most 97.0 MiB, of 100.0 MiB (cgroup)",
        "8.0 MiB in 2 records, by thread worker-1, last 10 ms before the end, at up to 93 %",
        "      telemetry-",
        "  -1.204 s WARN  proxy::probe: node does not answer",
        "█|",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let named = story(&report, &|frame| Some(format!("fn_at_{:x}", frame.address)));
    assert!(named.contains("      fn_at_"), "{named}");
}
