//! Which file speaks for which app. Pure: what was read goes in, notices come out.
//!
//! An app belongs to the first file that names it; another file that names it too waits until that
//! one lets go. A file that cannot be used changes nothing: what it last said holds.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::document::Problem;
use crate::snapshot::{App, AppName};
use crate::source::Notice;

/// Every app file that is there.
pub(super) struct Files {
    folder: PathBuf,
    files: BTreeMap<Arc<str>, File>,
    owners: HashMap<AppName, Arc<str>>,
    /// Files that wait for an app, in the order of their names.
    queues: HashMap<AppName, BTreeSet<Arc<str>>>,
}

/// One file.
#[derive(Default)]
struct File {
    /// The app that its last good version is about.
    owned: Option<AppName>,
    /// Good in itself, but about an app that another file has.
    waiting: Option<Box<App>>,
    /// Something was said to be wrong with it.
    bad: bool,
}

/// What reading a file gave.
pub(super) type Read = Result<Box<App>, Vec<Problem>>;

impl Files {
    /// Starts with what files are known to have said before.
    pub(super) fn new(folder: &Path, known: impl IntoIterator<Item = (Arc<str>, AppName)>) -> Self {
        let folder = folder.to_owned();
        let mut files =
            Self { folder, files: BTreeMap::new(), owners: HashMap::new(), queues: HashMap::new() };
        for (name, app) in known {
            files.owners.insert(app.clone(), name.clone());
            files.files.entry(name).or_default().owned = Some(app);
        }
        files
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.files.keys()
    }

    /// A file is new or has changed.
    pub(super) fn changed(&mut self, name: &str, read: Read, notices: &mut Vec<Notice>) {
        let name: Arc<str> = match self.files.get_key_value(name) {
            Some((name, _)) => name.clone(),
            None => name.into(),
        };
        self.stop_waiting(&name);
        match read {
            Ok(app) => self.settle(VecDeque::from([(name, app)]), notices),
            Err(problems) => self.bad(name, problems, notices),
        }
    }

    /// A file is gone.
    pub(super) fn gone(&mut self, name: &str, notices: &mut Vec<Notice>) {
        self.stop_waiting(name);
        let Some((origin, file)) = self.files.remove_entry(name) else { return };
        if file.bad {
            notices.push(Notice::Healed { origin });
        }
        if let Some(app) = file.owned {
            let next = self.release(&app, notices);
            self.settle(next.into_iter().collect(), notices);
        }
    }

    /// Apps that are said to come from a file which by now speaks for another app.
    ///
    /// A process that is killed between two commits leaves such a pair behind.
    pub(super) fn orphans(&mut self, notices: &mut Vec<Notice>) {
        let speaks = |app: &AppName, name: &Arc<str>| {
            self.files.get(name).is_some_and(|file| file.owned.as_ref() == Some(app))
        };
        let orphans = self.owners.iter().filter(|(app, name)| !speaks(app, name));
        let orphans: Vec<AppName> = orphans.map(|(app, _)| app.clone()).collect();
        for app in orphans {
            let next = self.release(&app, notices);
            self.settle(next.into_iter().collect(), notices);
        }
    }

    /// Lets each file speak for its app, or wait for it; ends because each step empties one wait.
    fn settle(&mut self, mut next: VecDeque<(Arc<str>, Box<App>)>, notices: &mut Vec<Notice>) {
        while let Some((name, app)) = next.pop_front() {
            if let Some(owner) = self.owners.get(&app.name)
                && *owner != name
            {
                let owner = self.folder.join(&**owner);
                let message = format!("app \"{}\" is in {} already", app.name, owner.display());
                let problem = Problem::with_file(self.folder.join(&*name), message);
                self.queues.entry(app.name.clone()).or_default().insert(name.clone());
                self.files.entry(name.clone()).or_default().waiting = Some(app);
                self.bad(name, vec![problem], notices);
                continue;
            }
            self.owners.insert(app.name.clone(), name.clone());
            let file = self.files.entry(name.clone()).or_default();
            let former = file.owned.replace(app.name.clone()).filter(|former| *former != app.name);
            if std::mem::take(&mut file.bad) {
                notices.push(Notice::Healed { origin: name.clone() });
            }
            if let Some(former) = former {
                next.extend(self.release(&former, notices));
            }
            notices.push(Notice::App { origin: name, app });
        }
    }

    /// Nobody speaks for `app` any more, unless a file waits for it: that one is returned.
    fn release(
        &mut self,
        app: &AppName,
        notices: &mut Vec<Notice>,
    ) -> Option<(Arc<str>, Box<App>)> {
        self.owners.remove(app);
        let Some(name) = self.queues.get(app).and_then(BTreeSet::first).cloned() else {
            notices.push(Notice::Gone(app.clone()));
            return None;
        };
        let waiting = self.stop_waiting(&name).expect("a queue names only files that wait");
        Some((name, waiting))
    }

    fn bad(&mut self, origin: Arc<str>, problems: Vec<Problem>, notices: &mut Vec<Notice>) {
        self.files.entry(origin.clone()).or_default().bad = true;
        notices.push(Notice::Bad { origin, problems });
    }

    fn stop_waiting(&mut self, name: &str) -> Option<Box<App>> {
        let app = self.files.get_mut(name)?.waiting.take()?;
        if let Some(queue) = self.queues.get_mut(&app.name) {
            queue.remove(name);
            if queue.is_empty() {
                self.queues.remove(&app.name);
            }
        }
        Some(app)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::app_file;

    fn app(name: &str) -> Box<App> {
        let text = format!("app = \"{name}\"\nhostnames = [\"{name}.example\"]\n[http_service]\n");
        Box::new(app_file::parse(Path::new("a.toml"), &text, &mut Vec::new()).expect("valid"))
    }

    fn files() -> Files {
        Files::new(Path::new("apps"), [])
    }

    fn shown(notices: &[Notice]) -> Vec<String> {
        let show = |notice: &Notice| match notice {
            Notice::App { origin, app } => format!("{origin}: {}", app.name),
            Notice::Gone(app) => format!("gone: {app}"),
            Notice::Bad { origin, problems } => format!("{origin} bad: {}", problems[0]),
            Notice::Healed { origin } => format!("{origin} healed"),
            Notice::Synced | Notice::Unavailable(_) => unreachable!("not said by files"),
        };
        notices.iter().map(show).collect()
    }

    fn changed(files: &mut Files, name: &str, read: Read) -> Vec<String> {
        let mut notices = Vec::new();
        files.changed(name, read, &mut notices);
        shown(&notices)
    }

    fn gone(files: &mut Files, name: &str) -> Vec<String> {
        let mut notices = Vec::new();
        files.gone(name, &mut notices);
        shown(&notices)
    }

    fn broken() -> Read {
        Err(vec![Problem::with_file("apps/x.toml", "is broken")])
    }

    #[test]
    fn a_file_speaks_for_its_app_until_it_is_gone() {
        let mut files = files();
        assert_eq!(changed(&mut files, "a.toml", Ok(app("a"))), ["a.toml: a"]);
        assert_eq!(changed(&mut files, "a.toml", Ok(app("a"))), ["a.toml: a"]);
        assert_eq!(gone(&mut files, "a.toml"), ["gone: a"]);
        assert_eq!(gone(&mut files, "a.toml"), [""; 0]);
    }

    #[test]
    fn a_bad_file_changes_nothing_until_it_is_good_again() {
        let mut files = files();
        changed(&mut files, "a.toml", Ok(app("a")));
        let bad = "a.toml bad: apps/x.toml: is broken";
        assert_eq!(changed(&mut files, "a.toml", broken()), [bad]);
        assert_eq!(changed(&mut files, "a.toml", broken()), [bad]);
        assert_eq!(changed(&mut files, "a.toml", Ok(app("a"))), ["a.toml healed", "a.toml: a"]);
        changed(&mut files, "a.toml", broken());
        assert_eq!(gone(&mut files, "a.toml"), ["a.toml healed", "gone: a"]);
    }

    #[test]
    fn a_file_can_be_about_another_app() {
        let mut files = files();
        changed(&mut files, "a.toml", Ok(app("a")));
        assert_eq!(changed(&mut files, "a.toml", Ok(app("b"))), ["gone: a", "a.toml: b"]);
        assert_eq!(gone(&mut files, "a.toml"), ["gone: b"]);
    }

    #[test]
    fn the_second_file_of_an_app_waits_for_the_first() {
        let mut files = files();
        changed(&mut files, "b.toml", Ok(app("a")));
        let bad = "bad: apps/a.toml: app \"a\" is in apps/b.toml already";
        assert_eq!(changed(&mut files, "a.toml", Ok(app("a"))), [format!("a.toml {bad}")]);
        // The app is never gone in between.
        assert_eq!(gone(&mut files, "b.toml"), ["a.toml healed", "a.toml: a"]);
        assert_eq!(gone(&mut files, "a.toml"), ["gone: a"]);
    }

    #[test]
    fn a_file_that_waits_keeps_what_it_said_before() {
        let mut files = files();
        changed(&mut files, "a.toml", Ok(app("a")));
        changed(&mut files, "b.toml", Ok(app("b")));
        changed(&mut files, "b.toml", Ok(app("a")));
        assert_eq!(files.owners[&AppName::new("b")], "b.toml".into());
        let expected = ["gone: b", "b.toml: a"];
        let notices = gone(&mut files, "a.toml");
        assert_eq!(notices[1..], expected, "{notices:?}");
    }

    #[test]
    fn what_an_earlier_run_knew_holds_until_its_file_is_good_or_gone() {
        let known = [("a.toml".into(), AppName::new("a")), ("b.toml".into(), AppName::new("b"))];
        let mut files = Files::new(Path::new("apps"), known);
        assert_eq!(changed(&mut files, "a.toml", broken()).len(), 1);
        assert_eq!(changed(&mut files, "a.toml", Ok(app("c")))[1..], ["gone: a", "a.toml: c"]);
        assert_eq!(gone(&mut files, "b.toml"), ["gone: b"]);
    }

    #[test]
    fn of_two_apps_that_one_file_is_known_for_one_is_an_orphan() {
        let known = [("a.toml".into(), AppName::new("a")), ("a.toml".into(), AppName::new("b"))];
        let mut files = Files::new(Path::new("apps"), known);
        assert_eq!(changed(&mut files, "a.toml", Ok(app("b"))), ["a.toml: b"]);
        let mut notices = Vec::new();
        files.orphans(&mut notices);
        assert_eq!(shown(&notices), ["gone: a"]);
        notices.clear();
        files.orphans(&mut notices);
        assert_eq!(shown(&notices), [""; 0]);
    }

    proptest! {
        #[test]
        fn whatever_happens_each_app_named_by_a_good_file_is_said_and_no_other(
            steps in prop::collection::vec((0..4_u8, 0..6_u8), 0..60)
        ) {
            let mut files = files();
            // The last good version of each file that is there, and what the notices add up to.
            let mut last_read: BTreeMap<String, Option<String>> = BTreeMap::new();
            let mut said: BTreeMap<String, Arc<str>> = BTreeMap::new();
            let mut bad = BTreeSet::new();
            for (file, what) in steps {
                let file = format!("{file}.toml");
                let mut notices = Vec::new();
                match what {
                    0 => {
                        files.gone(&file, &mut notices);
                        last_read.remove(&file);
                    }
                    1 => {
                        files.changed(&file, broken(), &mut notices);
                        last_read.insert(file, None);
                    }
                    app_number => {
                        let name = format!("app{app_number}");
                        files.changed(&file, Ok(app(&name)), &mut notices);
                        last_read.insert(file, Some(name));
                    }
                }
                for notice in notices {
                    match notice {
                        Notice::App { origin, app } => {
                            said.insert(app.name.to_string(), origin);
                        }
                        Notice::Gone(app) => prop_assert!(said.remove(app.as_str()).is_some()),
                        Notice::Bad { origin, .. } => {
                            bad.insert(origin);
                        }
                        Notice::Healed { origin } => prop_assert!(bad.remove(&origin)),
                        Notice::Synced | Notice::Unavailable(_) => {}
                    }
                }
                // Every app that a good file names is said, and each file says at most one app.
                for app in last_read.values().flatten() {
                    prop_assert!(said.contains_key(app), "{} of {:?}", app, last_read);
                }
                let origins: BTreeSet<_> = said.values().collect();
                prop_assert_eq!(origins.len(), said.len());
                for (file, app) in &last_read {
                    let speaks = app.as_ref().and_then(|app| said.get(app));
                    let good = speaks.is_some_and(|origin| **origin == **file);
                    prop_assert_eq!(bad.contains(file.as_str()), !good, "{}", file);
                }
                prop_assert!(origins.iter().all(|origin| last_read.contains_key(&***origin)));
            }
        }
    }
}
