//! No backtrace is symbolised in the process: its memory, its sources, and what it is linked with.

use std::path::{Path, PathBuf};
use std::process::Command;

use tests::lint;
use tests::need::workspace;
use tests::process::run;

const MIB: u64 = 1 << 20;

fn storm(how: &str) -> String {
    let program: PathBuf = env!("CARGO_BIN_EXE_storm").into();
    let mut command = Command::new(program);
    let done = run(command.arg(how).env("RUST_BACKTRACE", "1").env("RUST_LIB_BACKTRACE", "1"));
    assert_eq!(done.code, 0, "{done:?}");
    done.stdout
}

fn grown(how: &str) -> u64 {
    let said = storm(how);
    said.trim().strip_prefix("grown ").and_then(|bytes| bytes.parse().ok()).expect("a number")
}

#[test]
fn a_storm_of_errors_and_a_panic_leave_memory_as_it_was() {
    let grown = grown("ours");
    assert!(grown <= 2 * MIB, "{:.1} MiB", grown as f64 / MIB as f64);
}

/// The control: what happens without the guard.
#[test]
fn one_error_with_a_backtrace_takes_memory_that_never_comes_back() {
    let grown = grown("naive");
    assert!(grown >= 20 * MIB, "{:.1} MiB", grown as f64 / MIB as f64);
}

#[test]
fn a_process_that_captures_backtraces_is_told_so() {
    assert_eq!(storm("unguarded").trim(), "errors capture backtraces in this process");
}

/// What becomes part of the binary. `loadtest` and the harness are programs for developers.
const CRATES: [&str; 4] = ["control", "ebpf-filter", "proxy", "telemetry"];

/// Looks whether capturing is off, and has to name what it looks for.
const GUARD: &str = "telemetry/src/backtrace_guard.rs";

#[test]
fn no_source_of_ours_writes_an_error_by_its_debug_form() {
    let mut findings = Vec::new();
    let mut files = 0;
    for name in CRATES {
        sources(&workspace().join(name).join("src"), &mut |path| {
            let source = std::fs::read_to_string(path).unwrap();
            files += 1;
            let place = path.strip_prefix(workspace()).unwrap().display().to_string();
            let found = lint::findings(&source).into_iter();
            let found = found.filter(|found| place != GUARD || found.what != "Backtrace");
            findings.extend(found.map(|found| format!("{place}:{}: {}", found.line, found.what)));
        });
    }
    assert!(files > 100, "{files} files were looked at");
    assert!(findings.is_empty(), "write errors with %, or telemetry::error::chain:\n{findings:#?}");
}

/// Every `.rs` file that is no test.
fn sources(folder: &Path, look: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_test =
            ["tests", "tests.rs", "fuzz", "fuzz.rs", "stress.rs"].contains(&name.as_str());
        match (path.is_dir(), is_test) {
            (_, true) => {}
            (true, _) => sources(&path, look),
            (false, _) if name.ends_with(".rs") => look(&path),
            (false, _) => {}
        }
    }
}

/// Crates that capture a backtrace for every error, or symbolise in the process.
const CAPTURING: [&str; 8] =
    ["anyhow", "backtrace", "color-eyre", "error-stack", "eyre", "failure", "miette", "snafu"];

/// The packages that a package of the workspace is linked with, and where their sources are.
fn linked(package: &str) -> Vec<String> {
    let done = run(Command::new(env!("CARGO")).args([
        "tree",
        "-p",
        package,
        "-e",
        "normal,no-proc-macro",
        "--prefix",
        "none",
        "--format",
        "{p}",
        "--offline",
        "--locked",
    ]));
    assert_eq!(done.code, 0, "{}", done.stderr);
    let names = done.stdout.lines().filter_map(|line| line.split_once(' '));
    names.map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn the_binary_is_linked_with_no_crate_that_captures_backtraces() {
    let capturing = |package: &str| -> Vec<String> {
        let linked = linked(package).into_iter();
        linked.filter(|name| CAPTURING.contains(&name.as_str())).collect()
    };
    assert_eq!(capturing("proxy"), [""; 0]);
    // The control: these programs for developers are linked with one.
    assert!(capturing("loadtest").contains(&"anyhow".to_owned()));
}

#[test]
fn no_crate_of_the_binary_captures_a_backtrace_that_was_turned_off() {
    let done = run(Command::new(env!("CARGO")).args([
        "metadata",
        "--format-version",
        "1",
        "--offline",
        "--locked",
    ]));
    let metadata: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let linked = linked("proxy");
    let mut searched = 0;
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let ours = package["source"].is_null(); // looked at above
        if ours || !linked.iter().any(|linked| linked == name) {
            continue;
        }
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        let folder = manifest.parent().unwrap().join("src");
        if folder.is_dir() {
            sources(&folder, &mut |path| {
                let source = std::fs::read(path).unwrap();
                let source = String::from_utf8_lossy(&source);
                assert!(!source.contains("force_capture"), "{} forces one", path.display());
                searched += 1;
            });
        }
    }
    assert!(searched > 1_000, "{searched} files were searched");
}
