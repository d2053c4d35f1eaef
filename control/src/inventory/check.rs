//! Everything that is wrong with a folder of app files, at once and without serving it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::app_file;
use crate::document::Problem;
use crate::publish::Publisher;
use crate::snapshot::{App, AppName};
use crate::source::directory::scan::{self, Limits};

/// Reads every app file in `folder`; every problem of each, and every contradiction between them,
/// goes to `problems`. Returns the apps that would be served.
pub fn check_directory(folder: &Path, problems: &mut Vec<Problem>) -> Vec<App> {
    let limits = Limits::default();
    let names = match scan::list(folder, limits) {
        Ok(names) if names.len() <= limits.files_max => names,
        Ok(_) => {
            let message = format!("has more than {} app files", limits.files_max);
            problems.push(Problem::with_file(folder, message));
            return Vec::new();
        }
        Err(error) => {
            let message = format!("the folder of apps cannot be read: {error}");
            problems.push(Problem::with_file(folder, message));
            return Vec::new();
        }
    };
    let mut checked = Checked::default();
    for name in names {
        let path = folder.join(name);
        // As when it runs: a folder with such a name is none of ours, a broken link is a mistake.
        if !path.is_dir() {
            checked.file(path, limits, problems);
        }
    }
    checked.served
}

#[derive(Default)]
struct Checked {
    files: HashMap<AppName, PathBuf>,
    publisher: Publisher,
    served: Vec<App>,
}

impl Checked {
    fn file(&mut self, path: PathBuf, limits: Limits, problems: &mut Vec<Problem>) {
        let text = match scan::read(&path, limits) {
            Ok(text) => text,
            Err(problem) => return problems.push(problem),
        };
        let Some(app) = app_file::parse(&path, &text, problems) else { return };
        if let Some(other) = self.files.get(&app.name) {
            let message = format!("app \"{}\" is in {} already", app.name, other.display());
            return app_file::report_at_name(&path, &text, &message, problems);
        }
        self.files.insert(app.name.clone(), path.clone());
        self.publisher.upsert(app.clone(), &mut Vec::new());
        let contradictions = self.publisher.contradictions(&app.name);
        if contradictions.is_empty() {
            self.served.push(app);
        } else {
            app_file::report_contradictions(&path, &text, contradictions, problems);
        }
    }
}
