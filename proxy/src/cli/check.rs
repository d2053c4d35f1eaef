//! `ferrule check`: a configuration and everything it names, as the node would read it at start.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use control::document::{Problem, Severity};
use telemetry::verbosity::{KeyError, Keys};

use super::table::counted;
use super::{Exit, Failure, answer, chain};
use crate::config::{self, Config};
use crate::tls::{Certificates, MeshTls};

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Configuration of the node.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

// === impl Check ===

impl Check {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let Self { config } = self;
        let problems = problems(&config);
        answer(report(&problems))?;
        Ok(if Problem::any_error(&problems) { Exit::Usage } else { Exit::Success })
    }
}

/// Every problem of the file and of what it names, warnings too.
pub(super) fn problems(file: &Path) -> Vec<Problem> {
    match config::read::read(file) {
        Ok((config, mut problems)) => {
            let Config { node, inventory, certificates, mesh, telemetry, .. } = &config;
            control::inventory::check_directory(&inventory.directory, &mut problems);
            self::certificates(&certificates.directory, &mut problems);
            if let Some(mesh) = mesh
                && let Err(error) = MeshTls::load(mesh, &node.id)
            {
                problems.push(Problem::with_file(file, format!("mesh: {}", chain(&error))));
            }
            keys(&telemetry.verbosity.key_file, &mut problems);
            problems
        }
        Err(mut problems) => {
            if let Some(folder) = config::read::app_folder(file) {
                control::inventory::check_directory(&folder, &mut problems);
            }
            problems
        }
    }
}

fn certificates(directory: &Path, problems: &mut Vec<Problem>) {
    let certificates = match Certificates::open(directory) {
        Ok(certificates) => certificates,
        Err(error) => {
            problems.push(Problem::with_file(directory, chain(&error)));
            return;
        }
    };
    for pair in certificates.list() {
        let file = directory.join(&pair.name).with_extension("pem");
        if let Some(problem) = pair.problem {
            problems.push(Problem::with_file(file, problem));
        } else if pair.not_after.is_some_and(|end| end < SystemTime::now()) {
            let expired = Problem::with_file(file, "has expired");
            problems.push(Problem { severity: Severity::Warning, ..expired });
        }
    }
}

/// The keys of verbosity tokens. Where there are none yet the node makes one, and not everybody who
/// checks a configuration may read what only the node has to.
fn keys(file: &Path, problems: &mut Vec<Problem>) {
    let Err(error) = Keys::load(file) else { return };
    let problem = Problem::with_file(file, chain(&error));
    match &error {
        KeyError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {}
        KeyError::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            problems.push(Problem { severity: Severity::Warning, ..problem });
        }
        _ => problems.push(problem),
    }
}

/// A line per problem, then how many there are.
fn report(problems: &[Problem]) -> String {
    let mut text: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
    let errors = problems.iter().filter(|problem| problem.is_error()).count();
    let warnings = problems.len() - errors;
    let (errors, warnings) = (counted(errors as u64, "error"), counted(warnings as u64, "warning"));
    text.push_str(&format!("{errors}, {warnings}\n"));
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use tempfile::TempDir;

    use super::*;
    use crate::tls::DevCa;

    const APP: &str = "app = \"hello\"\nhostnames = [\"hello.example\"]\n\
        [http_service]\ninternal_port = 8080\n";

    /// A folder with a configuration, an app and a certificate.
    struct Edge {
        folder: TempDir,
        ca: DevCa,
    }

    impl Edge {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let ca = DevCa::new().expect("a CA");
            let edge = Self { folder, ca };
            for folder in ["apps", "certificates"] {
                fs::create_dir(edge.path(folder)).expect("the folder is ours");
            }
            edge.write("edge.toml", "[node]\nid = \"ams-1\"\nregion = \"ams\"\n");
            edge.write("apps/hello.toml", APP);
            let (chain, key) = edge.ca.issue(&["hello.example"]).expect("a certificate");
            edge.write("certificates/hello.pem", &chain);
            edge.write("certificates/hello.key", &key);
            edge
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).expect("the folder is ours");
        }

        /// What the check prints, with the folder left out.
        fn report(&self) -> String {
            let folder = format!("{}/", self.folder.path().display());
            report(&problems(&self.path("edge.toml"))).replace(&folder, "")
        }
    }

    #[test]
    fn a_complete_configuration_has_no_problem() {
        assert_eq!(Edge::new().report(), "0 errors, 0 warnings\n");
    }

    #[test]
    fn the_configuration_that_is_shipped_has_no_problem() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/edge.toml");
        assert_eq!(problems(&file), []);
    }

    #[test]
    fn problems_of_every_file_are_listed() {
        let edge = Edge::new();
        edge.write(
            "edge.toml",
            "[node]\nid = \"ams-1\"\nregion = \"ams\"\n[inventory.nats]\nservers = [\"tls://n:1\"]\n",
        );
        edge.write("apps/broken.toml", "app = \"Broken\"\n");
        edge.write("apps/notes.txt", "not an app");
        edge.write("certificates/lonely.pem", "");
        let report = edge.report();
        let lines: Vec<_> = report.lines().collect();
        assert_eq!(
            lines[0],
            "edge.toml:5:11: warning: inventory.nats.servers: is understood, but not acted on yet"
        );
        let name = "apps/broken.toml:1:7: app: must be 1 to 63";
        assert!(lines.iter().any(|line| line.starts_with(name)), "{report}");
        assert!(lines.iter().any(|line| line.starts_with("certificates/lonely.pem: ")), "{report}");
        assert!(!report.contains("notes.txt"), "{report}");
        assert!(report.ends_with(" errors, 1 warning\n"), "{report}");
    }

    #[test]
    fn what_two_apps_claim_is_a_problem_of_the_second() {
        let edge = Edge::new();
        edge.write("apps/shop.toml", &APP.replace("app = \"hello\"", "app = \"shop\""));
        edge.write("apps/twin.toml", &APP.replace("hello.example", "twin.example"));
        let report = edge.report();
        let lines: Vec<_> = report.lines().collect();
        let claim = "app \"shop\" claims the hostname hello.example, which app \"hello\" has";
        assert_eq!(lines[0], format!("apps/shop.toml:2:14: hostnames[0]: {claim}"));
        let again = "apps/twin.toml:1:7: app: app \"hello\" is in apps/hello.toml already";
        assert_eq!(lines[1..], [again, "2 errors, 0 warnings"]);
    }

    #[test]
    fn missing_folders_are_problems() {
        let edge = Edge::new();
        fs::remove_dir_all(edge.path("apps")).expect("the folder is ours");
        fs::remove_dir_all(edge.path("certificates")).expect("the folder is ours");
        let report = edge.report();
        assert!(
            report.starts_with("apps: the folder of apps cannot be read: No such file"),
            "{report}"
        );
        assert!(report.contains("\ncertificates: "), "{report}");
        assert!(report.ends_with("\n2 errors, 0 warnings\n"), "{report}");
    }

    #[test]
    fn a_key_file_is_for_its_owner_and_may_be_missing() {
        let edge = Edge::new();
        let text = "[node]\nid = \"ams-1\"\nregion = \"ams\"\n[storage]\ndirectory = \".\"\n";
        edge.write("edge.toml", text);
        assert_eq!(edge.report(), "0 errors, 0 warnings\n");
        Keys::load_or_create(&edge.path("trace.key")).expect("the folder is ours");
        assert_eq!(edge.report(), "0 errors, 0 warnings\n");
        let public = fs::Permissions::from_mode(0o644);
        fs::set_permissions(edge.path("trace.key"), public).expect("the file is ours");
        assert!(
            edge.report().contains("has mode 0644; others than its owner"),
            "{}",
            edge.report()
        );
        assert!(edge.report().ends_with("\n1 error, 0 warnings\n"), "{}", edge.report());
    }

    #[test]
    fn the_mesh_certificate_must_name_this_node() {
        let edge = Edge::new();
        let mesh = "[mesh]\naddress = \"127.0.0.1:7443\"\ncertificate = \"mesh.pem\"\n\
            key = \"mesh.key\"\nca = \"ca.pem\"\n";
        edge.write("edge.toml", &format!("[node]\nid = \"ams-1\"\nregion = \"ams\"\n{mesh}"));
        edge.write("ca.pem", &edge.ca.ca_pem());
        let issue = |node: &str| {
            let node = control::snapshot::NodeId::new(node);
            let (chain, key) = edge.ca.issue_node("ferrule", &node).expect("a certificate");
            edge.write("mesh.pem", &chain);
            edge.write("mesh.key", &key);
        };
        assert!(edge.report().starts_with("edge.toml: mesh: cannot read "), "{}", edge.report());
        issue("fra-1");
        assert!(edge.report().ends_with("\n1 error, 0 warnings\n"), "{}", edge.report());
        issue("ams-1");
        assert_eq!(edge.report(), "0 errors, 0 warnings\n");
    }
}
