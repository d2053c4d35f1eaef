use std::path::Path;

use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::catalog;

/// A node's disk: its storage and its folder of apps.
struct Disk {
    folder: TempDir,
}

/// A node that follows its folder of apps.
struct Node {
    restored: Vec<String>,
    changes: mpsc::UnboundedReceiver<Change>,
    status: Arc<Status>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Disk {
    fn new() -> Self {
        let disk = Self { folder: TempDir::new().expect("a folder") };
        std::fs::create_dir(disk.apps()).expect("created");
        disk
    }

    fn apps(&self) -> PathBuf {
        self.folder.path().join("apps")
    }

    fn storage(&self) -> PathBuf {
        self.folder.path().join("storage")
    }

    /// Writes an app file the way a careful program does.
    fn write(&self, file: &str, text: &str) {
        let aside = self.apps().join(format!(".{file}"));
        std::fs::write(&aside, text).expect("written");
        std::fs::rename(aside, self.apps().join(file)).expect("renamed");
    }

    fn remove(&self, file: &str) {
        std::fs::remove_file(self.apps().join(file)).expect("removed");
    }

    fn start(&self) -> Node {
        let config = Config { storage: self.storage(), apps: self.apps(), shared: false };
        let (control, restored) = Control::open(config).expect("opens");
        let (sender, changes) = mpsc::unbounded_channel();
        let (status, stop) = (control.status(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        let apply = move |change| {
            sender.send(change).unwrap_or_default(); // a test that has seen enough
        };
        tasks.spawn(control.run(apply, stop.clone()));
        let restored = restored.iter().map(|app| app.name.to_string()).collect();
        Node { restored, changes, status, stop, tasks }
    }

    /// What `ferrule check` would say, without the folder's own path.
    fn check(&self) -> (Vec<String>, Vec<String>) {
        let mut problems = Vec::new();
        let apps = check_directory(&self.apps(), &mut problems);
        let apps = apps.iter().map(|app| app.name.to_string()).collect();
        let folder = format!("{}/", self.apps().display());
        let problems = problems.iter().map(|p| p.to_string().replace(&folder, "")).collect();
        (apps, problems)
    }
}

impl Node {
    /// The next change as `+name: hostname` or `-name`.
    async fn change(&mut self) -> String {
        self.change_within(Duration::from_secs(20)).await
    }

    async fn change_within(&mut self, patience: Duration) -> String {
        let change = timeout(patience, self.changes.recv()).await;
        match change.expect("a change in time").expect("still running") {
            Change::Upsert(app) => format!("+{}: {}", app.name, app.hostnames[0]),
            Change::Remove(name) => format!("-{name}"),
        }
    }

    async fn synced(&self) {
        self.until(|status| status.is_synced()).await;
    }

    /// Waits until the status is as it should be.
    async fn until(&self, condition: impl Fn(&Status) -> bool) {
        let wait = async {
            while !condition(&self.status) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let status = &self.status;
        assert!(timeout(Duration::from_secs(20), wait).await.is_ok(), "{status:?}");
    }

    fn nothing_more(&mut self) {
        assert!(self.changes.try_recv().is_err());
    }

    async fn stop(mut self) {
        self.stop.cancel();
        let stopped = timeout(Duration::from_secs(10), self.tasks.join_next()).await;
        stopped.expect("stops in time").expect("one task").expect("no panic");
    }
}

fn app(name: &str, hostname: &str) -> String {
    format!("app = \"{name}\"\nhostnames = [\"{hostname}\"]\n[http_service]\n")
}

#[tokio::test]
async fn a_change_on_disk_is_visible_in_under_a_second() {
    const SECOND: Duration = Duration::from_secs(1);
    let disk = Disk::new();
    let mut node = disk.start();
    node.synced().await;
    disk.write("a.toml", &app("a", "one.example"));
    assert_eq!(node.change_within(SECOND).await, "+a: one.example");
    disk.write("a.toml", &app("a", "two.example"));
    assert_eq!(node.change_within(SECOND).await, "+a: two.example");
    disk.remove("a.toml");
    assert_eq!(node.change_within(SECOND).await, "-a");
    node.stop().await;
}

#[tokio::test]
async fn a_bad_file_leaves_the_last_good_version_and_other_apps_alone() {
    let disk = Disk::new();
    disk.write("a.toml", &app("a", "a.example"));
    disk.write("b.toml", &app("b", "b.example"));
    let mut node = disk.start();
    assert_eq!(node.change().await, "+a: a.example");
    assert_eq!(node.change().await, "+b: b.example");
    disk.write("a.toml", "app = \"a\"\n[http_service]\ninternal_port = 0\n");
    node.until(|status| status.quarantined_total() == 1).await;
    let quarantined = node.status.quarantined();
    assert_eq!(quarantined[0].what, "a.toml");
    assert!(quarantined[0].problems[0].contains("a.toml:3:17: http_service.internal_port"));
    node.nothing_more();
    assert_eq!(node.status.apps(), 2);
    disk.write("b.toml", &app("b", "c.example"));
    assert_eq!(node.change().await, "+b: c.example");
    disk.write("a.toml", &app("a", "d.example"));
    assert_eq!(node.change().await, "+a: d.example");
    node.until(|status| status.quarantined().is_empty()).await;
    node.stop().await;
}

#[tokio::test]
async fn the_catalog_serves_while_there_is_no_source() {
    let disk = Disk::new();
    disk.write("a.toml", &app("a", "a.example"));
    let mut node = disk.start();
    assert!(node.restored.is_empty());
    assert_eq!(node.change().await, "+a: a.example");
    node.synced().await;
    node.stop().await;
    std::fs::rename(disk.apps(), disk.folder.path().join("aside")).expect("renamed");
    let mut node = disk.start();
    assert_eq!(node.restored, ["a"]);
    assert!(node.status.age().expect("the last run synced") < Duration::from_secs(60));
    node.until(|status| status.quarantined_total() == 1).await;
    assert!(!node.status.is_synced());
    assert_eq!(node.status.apps(), 1);
    node.nothing_more();
    node.stop().await;
}

#[tokio::test]
async fn what_has_not_changed_since_the_last_run_is_no_change() {
    let disk = Disk::new();
    for name in ["a", "b", "c"] {
        disk.write(&format!("{name}.toml"), &app(name, &format!("{name}.example")));
    }
    let mut node = disk.start();
    for name in ["a", "b", "c"] {
        assert_eq!(node.change().await, format!("+{name}: {name}.example"));
    }
    node.stop().await;
    disk.remove("b.toml");
    disk.write("c.toml", "this is no TOML");
    let mut node = disk.start();
    assert_eq!(node.restored.len(), 3);
    // The file of `a` says the same, that of `b` is gone, that of `c` cannot be used.
    assert_eq!(node.change().await, "-b");
    node.synced().await;
    node.nothing_more();
    assert_eq!(node.status.apps(), 2);
    node.stop().await;
    assert_eq!(disk.start().restored, ["a", "c"]);
}

#[tokio::test]
async fn a_corrupt_catalog_is_replaced_and_filled_again() {
    let disk = Disk::new();
    disk.write("a.toml", &app("a", "a.example"));
    let mut node = disk.start();
    assert_eq!(node.change().await, "+a: a.example");
    node.stop().await;
    std::fs::write(disk.storage().join(catalog::FILE), vec![7; 9_000]).expect("written");
    let mut node = disk.start();
    assert!(node.restored.is_empty());
    assert_eq!(node.status.catalog_errors(), 1);
    assert_eq!(node.change().await, "+a: a.example");
    node.stop().await;
    let node = disk.start();
    assert_eq!((node.restored.len(), node.status.catalog_errors()), (1, 0));
}

#[tokio::test]
async fn a_row_that_does_not_decode_is_named_until_the_source_has_spoken() {
    let disk = Disk::new();
    disk.write("a.toml", &app("a", "a.example"));
    disk.write("b.toml", &app("b", "b.example"));
    let mut node = disk.start();
    node.change().await;
    node.change().await;
    node.stop().await;
    let damage = "UPDATE hostname SET name = ''";
    let connection = rusqlite::Connection::open(disk.storage().join(catalog::FILE));
    connection.expect("opens").execute_batch(damage).expect("valid SQL");
    disk.remove("b.toml");
    let config = Config { storage: disk.storage(), apps: disk.apps(), shared: false };
    let (control, restored) = Control::open(config).expect("opens");
    assert!(restored.is_empty());
    assert_eq!(control.status().quarantined_total(), 2);
    drop(control);
    let mut node = disk.start();
    assert_eq!(node.change().await, "+a: a.example");
    node.until(|status| status.quarantined_total() == 0).await;
    node.stop().await;
    assert_eq!(disk.start().restored, ["a"]);
}

#[tokio::test]
async fn of_two_apps_that_contradict_the_newcomer_waits_until_the_holder_lets_go() {
    let disk = Disk::new();
    disk.write("b.toml", &app("b", "www.example"));
    let mut node = disk.start();
    assert_eq!(node.change().await, "+b: www.example");
    disk.write("a.toml", &app("a", "www.example"));
    node.until(|status| status.quarantined_total() == 1).await;
    let quarantined = node.status.quarantined();
    let reason = "app \"a\" claims the hostname www.example, which app \"b\" has";
    assert_eq!(
        (quarantined[0].what.as_str(), &*quarantined[0].problems),
        ("a", &[reason.to_owned()][..])
    );
    node.nothing_more();
    disk.write("b.toml", &app("b", "b.example"));
    assert_eq!(node.change().await, "+b: b.example");
    assert_eq!(node.change().await, "+a: www.example");
    node.until(|status| status.quarantined_total() == 0).await;
    node.stop().await;
    assert_eq!(disk.start().restored.len(), 2);
}

#[tokio::test]
async fn revisions_rise_from_run_to_run_even_without_a_catalog() {
    let disk = Disk::new();
    let mut last = 0;
    for round in 0..3 {
        disk.write("a.toml", &app("a", &format!("{round}.a.example")));
        let mut node = disk.start();
        let change = timeout(Duration::from_secs(20), node.changes.recv()).await;
        let Ok(Some(Change::Upsert(app))) = change else { panic!("{change:?}") };
        assert!(app.revision > last);
        last = app.revision;
        node.stop().await;
        if round == 1 {
            std::fs::remove_dir_all(disk.storage()).expect("removed");
        }
    }
}

#[test]
fn a_check_finds_every_problem_of_every_file_and_between_them() {
    let disk = Disk::new();
    disk.write("a.toml", &app("a", "www.example"));
    disk.write(
        "b.toml",
        "app = \"b\"\nhostnames = [\"b.example\", \"www.example\"]\n[http_service]\n",
    );
    disk.write("c.toml", &app("a", "c.example"));
    disk.write(
        "d.toml",
        "app = \"d\"\n[[services]]\nports = [{ port = 1 }, { start_port = 440, end_port = 450 }]\n",
    );
    disk.write("e.toml", "app = \"e\"\nhostname = 1\n[http_service]\ninternal_port = \"x\"\n");
    disk.write("f.toml", "app = ");
    let (apps, problems) = disk.check();
    assert_eq!(apps, ["a"]);
    let whole = "and without the \"http\" handler a connection does not say which one it means; \
                 give one of them an address of its own";
    assert_eq!(
        problems,
        [
            "b.toml:2:27: hostnames[1]: app \"b\" claims the hostname www.example, which app \"a\" has".to_owned(),
            "c.toml:1:7: app: app \"a\" is in a.toml already".to_owned(),
            format!("d.toml:3:39: services[0].ports[1].start_port: app \"d\" and app \"a\" both claim shared port 443, {whole}"),
            "e.toml:1:1: warning: hostnames: no hostnames and no addresses: no HTTP request can mean this app".to_owned(),
            "e.toml:2:1: hostname: unknown key \"hostname\"; did you mean \"hostnames\"?".to_owned(),
            "e.toml:4:17: http_service.internal_port: must be a number from 1 to 65535, not \"x\"".to_owned(),
            "f.toml:1:7: not valid TOML: unexpected eof encountered".to_owned(),
        ]
    );
}

#[test]
fn a_folder_that_is_not_there_is_a_problem() {
    let disk = Disk::new();
    std::fs::remove_dir(disk.apps()).expect("removed");
    let (apps, problems) = disk.check();
    assert!(apps.is_empty());
    assert!(problems[0].contains("the folder of apps cannot be read"), "{problems:?}");
}

#[test]
fn the_example_apps_have_no_problems() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/apps");
    let mut problems = Vec::new();
    let apps = check_directory(&examples, &mut problems);
    let problems: Vec<_> = problems.iter().map(Problem::to_string).collect();
    assert!(problems.is_empty(), "{problems:?}");
    assert!(!apps.is_empty());
}
