//! No span is opened around what lives long: accept loops, connections, pools.
//!
//! A span of a connection lives as long as it does, and whatever collects under it with it. Spans of
//! `tracing` are therefore opened nowhere; spans of a record, which collect nothing, only where a
//! request is.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tests::need::workspace;

/// Everything that is compiled into the node.
const SOURCES: [&str; 4] = ["proxy/src", "telemetry/src", "control/src", "ebpf-filter/src"];

/// What opens a span of `tracing`, or keeps one.
const TRACING: [&str; 11] = [
    "trace_span!",
    "debug_span!",
    "info_span!",
    "warn_span!",
    "error_span!",
    "tracing::span",
    "tracing::Span",
    "tracing::instrument",
    "#[instrument",
    "tracing::Instrument",
    "Span::current()",
];

/// What opens a span of a record.
const RECORD: [&str; 5] =
    [".open_span(", ".enter_span", ".spanned(", ".spanned_with(", "SpanGuard"];

/// Where a request is, and no more than that.
const REQUESTS: [&str; 5] = [
    "proxy/src/dispatch.rs",
    "proxy/src/dispatch/",
    "proxy/src/trace.rs",
    "proxy/src/tcp.rs", // a raw connection is its own request
    "telemetry/src/record",
];

/// `file:line` of every violation below `root`.
fn violations(root: &Path) -> Vec<String> {
    let mut files = Vec::new();
    SOURCES.iter().for_each(|source| collect(&root.join(source), &mut files));
    let mut found = Vec::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap().to_str().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let may_open = REQUESTS.iter().any(|request| name.starts_with(request));
        for (number, line) in code(&text) {
            let opens = |words: &[&str]| words.iter().any(|word| line.contains(word));
            if opens(&TRACING) || opens(&RECORD) && !may_open {
                found.push(format!("{name}:{number}"));
            }
        }
    }
    found.sort();
    found
}

/// Lines that are neither a comment nor a test, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate();
    let code = lines.take_while(|(_, line)| !line.starts_with("mod tests {"));
    code.filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(index, line)| (index + 1, line))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        // Tests and benchmarks may open spans, and the builds that leak on purpose do nothing else.
        let exempt = ["tests", "tests.rs", "micro.rs", "leaky", "leaky.rs", "seeded", "seeded.rs"];
        if path.file_name().is_some_and(|name| exempt.iter().any(|exempt| name == *exempt)) {
            continue;
        }
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn no_span_is_around_what_lives_long() {
    let mut files = Vec::new();
    SOURCES.iter().for_each(|source| collect(&workspace().join(source), &mut files));
    assert!(files.len() > 100, "the sources are looked at: {}", files.len());
    assert_eq!(violations(workspace()), Vec::<String>::new());
}

#[test]
fn a_span_that_is_planted_is_found() {
    let root = TempDir::new().unwrap();
    let plant = |file: &str, text: &str| {
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    for (index, word) in TRACING.iter().enumerate() {
        plant(
            &format!("proxy/src/planted_{index:02}.rs"),
            &format!("fn f() {{\n    {word};\n}}\n"),
        );
    }
    plant("proxy/src/listener.rs", "record.spanned(site!(\"accept\"), accept())\n");
    // What may be.
    plant("proxy/src/dispatch.rs", "record.spanned(site!(\"balance\"), assign())\n");
    plant(
        "telemetry/src/log.rs",
        "// info_span! in a comment\nfn f() {}\nmod tests {\ninfo_span!\n",
    );
    plant("telemetry/src/log/tests.rs", "info_span!\n");
    let planted = (0..TRACING.len()).map(|index| format!("proxy/src/planted_{index:02}.rs:2"));
    let expected: Vec<String> =
        ["proxy/src/listener.rs:1".to_owned()].into_iter().chain(planted).collect();
    assert_eq!(violations(root.path()), expected);
}
