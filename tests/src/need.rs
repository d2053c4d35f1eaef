//! What a test needs from the machine. A missing tool is a reason that is written down, and in
//! continuous integration (`CI=true`) a failure.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Where `name` is installed, or `None` after noting that the test is skipped for it.
///
/// # Panics
/// With `CI=true` when it is not installed.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = workspace().join("target/tools/bin");
    let places = std::env::split_paths(&path).chain([own, "/usr/sbin".into(), "/sbin".into()]);
    let found = places.map(|place| place.join(name)).find(|path| path.is_file());
    if found.is_none() {
        skip(&format!("{name} is not installed (make install-tools)"));
    }
    found
}

/// Notes that the current test does not run, and why.
///
/// # Panics
/// With `CI=true`.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let line = format!("skipped: {}: {reason}\n", thread.name().unwrap_or("a test"));
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{line}nothing may be skipped with CI=true"
    );
    eprint!("{line}");
    let Some(file) = std::env::var_os("FERRULE_SKIPPED") else { return };
    let file = OpenOptions::new().create(true).append(true).open(file);
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("FERRULE_SKIPPED is writable");
}

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the workspace")
}
