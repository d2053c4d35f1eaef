use std::path::PathBuf;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

/// A folder of apps inside a folder of its own, so that it can be taken away.
struct Folder {
    outer: TempDir,
}

impl Folder {
    fn new() -> Self {
        let outer = TempDir::new().expect("a folder");
        std::fs::create_dir(outer.path().join("apps")).expect("created");
        Self { outer }
    }

    fn path(&self) -> PathBuf {
        self.outer.path().join("apps")
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.path().join(file), text).expect("written");
    }

    fn remove(&self, file: &str) {
        std::fs::remove_file(self.path().join(file)).expect("removed");
    }

    fn watch(&self) -> Directory {
        Directory::watch(&self.path(), []).expect("starts")
    }
}

fn app(name: &str) -> String {
    format!("app = \"{name}\"\nhostnames = [\"{name}.example\"]\n[http_service]\n")
}

/// What is said until and including what begins with `last`, without `synced` in between.
async fn until(source: &mut Directory, last: &str) -> Vec<String> {
    let mut said = Vec::new();
    let search = async {
        loop {
            let line = shown(source.next().await.expect("still watching"));
            let found = line.starts_with(last);
            if found || line != "synced" {
                said.push(line);
            }
            if found {
                break;
            }
        }
    };
    let found = timeout(Duration::from_secs(20), search).await.is_ok();
    assert!(found, "{last:?} was not said, but {said:?}");
    said
}

fn shown(notice: Notice) -> String {
    match notice {
        Notice::App { origin, app } => format!("{origin}: {}", app.hostnames[0]),
        Notice::Gone(app) => format!("gone: {app}"),
        Notice::Bad { origin, problems } => format!("{origin} bad: {}", problems[0].message),
        Notice::Healed { origin } => format!("{origin} healed"),
        Notice::Synced => "synced".to_owned(),
        Notice::Unavailable(problem) => format!("unavailable: {}", problem.message),
    }
}

#[tokio::test]
async fn everything_that_is_there_is_said_at_the_start() {
    let folder = Folder::new();
    folder.write("b.toml", &app("b"));
    folder.write("a.toml", &app("a"));
    folder.write("bad.toml", "app = 1\n[http_service]");
    let mut source = folder.watch();
    let said = until(&mut source, "synced").await;
    let expected = [
        "a.toml: a.example",
        "b.toml: b.example",
        "bad.toml bad: must be a string, not 1",
        "synced",
    ];
    assert_eq!(said, expected);
}

#[tokio::test]
async fn a_change_is_said_in_well_under_a_second() {
    let folder = Folder::new();
    let mut source = folder.watch();
    until(&mut source, "synced").await;
    let started = Instant::now();
    folder.write("a.toml", &app("a"));
    assert_eq!(until(&mut source, "a.toml").await, ["a.toml: a.example"]);
    folder.write("a.toml", &app("b"));
    assert_eq!(until(&mut source, "a.toml").await, ["gone: a", "a.toml: b.example"]);
    folder.remove("a.toml");
    assert_eq!(until(&mut source, "gone").await, ["gone: b"]);
    // Three changes; the slow look at everything alone would take seconds for each.
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_file_that_is_written_aside_and_renamed_is_one_change() {
    let folder = Folder::new();
    folder.write("a.toml", &app("a"));
    let mut source = folder.watch();
    until(&mut source, "synced").await;
    folder.write(".a.toml.swp", "not TOML");
    folder.write("a.toml.new", &app("a").replace("a.example", "new.example"));
    std::fs::rename(folder.path().join("a.toml.new"), folder.path().join("a.toml"))
        .expect("renamed");
    assert_eq!(until(&mut source, "a.toml").await, ["a.toml: new.example"]);
}

#[tokio::test]
async fn a_file_with_a_new_name_leaves_its_app_in_place() {
    let folder = Folder::new();
    folder.write("a.toml", &app("a"));
    let mut source = folder.watch();
    until(&mut source, "synced").await;
    std::fs::rename(folder.path().join("a.toml"), folder.path().join("b.toml")).expect("renamed");
    let said = until(&mut source, "b.toml: ").await;
    assert!(!said.iter().any(|line| line.starts_with("gone")), "{said:?}");
}

#[tokio::test]
async fn a_change_of_the_same_length_at_once_is_seen() {
    let folder = Folder::new();
    folder.write("a.toml", &app("a"));
    let mut source = folder.watch();
    until(&mut source, "a.toml").await;
    for name in ["b", "c", "d"] {
        folder.write("a.toml", &app(name));
        until(&mut source, &format!("a.toml: {name}.example")).await;
    }
}

#[tokio::test]
async fn a_folder_that_vanishes_takes_no_app_with_it() {
    let folder = Folder::new();
    folder.write("a.toml", &app("a"));
    folder.write("b.toml", &app("b"));
    let mut source = folder.watch();
    until(&mut source, "synced").await;
    let aside = folder.outer.path().join("aside");
    std::fs::rename(folder.path(), &aside).expect("renamed");
    let said = until(&mut source, "unavailable").await;
    assert_eq!(said.len(), 1, "{said:?}");
    // Another folder comes in its place: what it has holds at once, what it lacks only a while later.
    std::fs::create_dir(folder.path()).expect("created");
    folder.write("b.toml", &app("c"));
    let said = until(&mut source, "b.toml").await;
    let said: Vec<_> = said.iter().filter(|line| !line.starts_with("unavailable")).collect();
    assert_eq!(said, ["gone: b", "b.toml: c.example"]);
    folder.write("d.toml", &app("d"));
    assert_eq!(until(&mut source, "d.toml").await, ["d.toml: d.example"]);
    assert_eq!(until(&mut source, "gone").await, ["gone: a"]);
}

#[tokio::test]
async fn a_folder_that_does_not_exist_yet_is_waited_for() {
    let folder = Folder::new();
    std::fs::remove_dir(folder.path()).expect("removed");
    let known = [("a.toml".into(), AppName::new("a"))];
    let mut source = Directory::watch(&folder.path(), known).expect("starts");
    let said = until(&mut source, "unavailable").await;
    assert!(said[0].contains("the folder of apps cannot be read"), "{said:?}");
    std::fs::create_dir(folder.path()).expect("created");
    folder.write("b.toml", &app("b"));
    let said = until(&mut source, "b.toml").await;
    assert!(!said.iter().any(|line| line.starts_with("gone")), "{said:?}");
}

#[tokio::test]
async fn an_app_whose_file_went_while_nobody_watched_is_gone() {
    let folder = Folder::new();
    folder.write("b.toml", "this is no TOML");
    let known = ["a", "b"].map(|name| (format!("{name}.toml").into(), AppName::new(name)));
    let mut source = Directory::watch(&folder.path(), known).expect("starts");
    let said = until(&mut source, "synced").await;
    assert!(said[0].starts_with("b.toml bad: not valid TOML"), "{said:?}");
    assert_eq!(said[1..], ["gone: a", "synced"]);
}

#[tokio::test]
async fn files_beyond_the_limits_are_refused() {
    let folder = Folder::new();
    let limits = Limits { file_bytes_max: 100, files_max: 2 };
    folder.write("large.toml", &format!("{}{}", app("a"), "#".repeat(100)));
    std::fs::write(folder.path().join("text.toml"), [0xff, 0xfe]).expect("written");
    let mut source = Directory::watch_limited(&folder.path(), limits, []).expect("starts");
    let said = until(&mut source, "synced").await;
    let large = "large.toml bad: is larger than 100 bytes";
    assert_eq!(said, [large, "text.toml bad: is not UTF-8", "synced"]);
    folder.write("one-too-many.toml", &app("b"));
    let said = until(&mut source, "unavailable").await;
    assert_eq!(said, ["unavailable: has more than 2 app files"]);
    folder.remove("large.toml");
    // The folder was out of reach, so what it lacks is believed a while later.
    let said = until(&mut source, "large.toml healed").await;
    assert!(said.contains(&"one-too-many.toml: b.example".to_owned()), "{said:?}");
}

#[tokio::test]
async fn what_is_no_app_file_is_left_alone() {
    let folder = Folder::new();
    for name in [".hidden.toml", "a.toml~", "#a.toml#", "4913", "a.toml.swp", "a.json"] {
        folder.write(name, "this is no TOML");
    }
    std::fs::create_dir(folder.path().join("folder.toml")).expect("created");
    let mut source = folder.watch();
    assert_eq!(until(&mut source, "synced").await, ["synced"]);
    // The control: the watch works.
    folder.write(".b.toml", &app("b"));
    folder.write("a.toml", &app("a"));
    assert_eq!(until(&mut source, "a.toml").await, ["a.toml: a.example"]);
}

#[tokio::test]
async fn a_storm_of_changes_ends_with_the_newest_version_of_each_file() {
    let folder = Folder::new();
    let mut source = folder.watch();
    until(&mut source, "synced").await;
    let files = 3 * TOUCHED_MAX / 2;
    for round in ["old", "new"] {
        for number in 0..files {
            let text = app(&format!("app-{number}"));
            let text = text.replace("example", round);
            folder.write(&format!("{number}.toml"), &text);
        }
    }
    let mut newest = BTreeSet::new();
    let search = async {
        while newest.len() < files {
            match source.next().await.expect("still watching") {
                Notice::App { origin, app } if app.hostnames[0].to_string().ends_with("new") => {
                    newest.insert(origin);
                }
                Notice::Gone(app) => panic!("{app} is gone"),
                _ => {}
            }
            assert!(source.signals.lock().touched.len() <= TOUCHED_MAX);
        }
    };
    assert!(timeout(Duration::from_secs(30), search).await.is_ok());
}

#[tokio::test]
async fn a_listener_that_stopped_listening_can_leave() {
    let folder = Folder::new();
    for number in 0..2 * NOTICES_MAX {
        folder.write(&format!("{number}.toml"), &app(&format!("app-{number}")));
    }
    let mut source = folder.watch();
    until(&mut source, "0.toml").await;
    // The thread waits for room by now, or will; dropping joins it.
    drop(source);
}

#[tokio::test]
async fn a_folder_that_is_swapped_by_a_link_is_followed() {
    let folder = Folder::new();
    let outer = folder.outer.path();
    std::fs::rename(folder.path(), outer.join("one")).expect("renamed");
    std::fs::create_dir(outer.join("two")).expect("created");
    std::os::unix::fs::symlink("one", folder.path()).expect("linked");
    folder.write("a.toml", &app("a"));
    std::fs::write(outer.join("two/a.toml"), app("a").replace("a.example", "two.example"))
        .expect("written");
    let mut source = folder.watch();
    assert_eq!(until(&mut source, "a.toml").await, ["a.toml: a.example"]);
    std::os::unix::fs::symlink("two", outer.join("next")).expect("linked");
    std::fs::rename(outer.join("next"), folder.path()).expect("swapped");
    // Nothing in the old folder tells: the slow look finds it, and from then on the watch does.
    assert_eq!(until(&mut source, "a.toml").await, ["a.toml: two.example"]);
    until(&mut source, "synced").await;
    let started = Instant::now();
    folder.write("b.toml", &app("b"));
    until(&mut source, "b.toml").await;
    assert!(started.elapsed() < RESCAN / 2, "{:?}", started.elapsed());
}

#[test]
fn only_events_that_can_change_a_file_are_signals() {
    let touched = |kind, path: &str| {
        let signals = Signals::default();
        signals.event(Ok(notify::Event::new(kind).add_path(path.into())));
        let state = signals.lock();
        (state.touched.iter().cloned().collect::<Vec<_>>(), state.everything)
    };
    let access = |kind| EventKind::Access(kind);
    let (write, read) = (AccessMode::Write, AccessMode::Read);
    let seen = (vec!["a.toml".to_owned()], false);
    assert_eq!(touched(access(AccessKind::Close(write)), "/apps/a.toml"), seen);
    assert_eq!(touched(EventKind::Create(notify::event::CreateKind::File), "/apps/a.toml"), seen);
    assert_eq!(touched(EventKind::Remove(notify::event::RemoveKind::File), "/apps/a.toml"), seen);
    // Reading a file ourselves must not make us read it again.
    assert_eq!(touched(access(AccessKind::Open(AccessMode::Any)), "/apps/a.toml"), (vec![], false));
    assert_eq!(touched(access(AccessKind::Close(read)), "/apps/a.toml"), (vec![], false));
    assert_eq!(touched(access(AccessKind::Close(write)), "/apps/.a.toml"), (vec![], false));
    // The kernel's queue overflowed.
    let signals = Signals::default();
    let flag = notify::event::Flag::Rescan;
    signals.event(Ok(notify::Event::new(EventKind::Other).set_flag(flag)));
    assert!(signals.lock().everything);
}
