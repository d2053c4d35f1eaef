//! The child that reads debug information, and how it is asked.
//!
//! One address in hexadecimal per line goes in. Out come, for each, a line `@ address` and below it
//! one line `function TAB file:line` per call, innermost first. The child limits itself before it
//! reads a byte: 1 GiB of address space, the lowest priority.

use std::collections::HashMap;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use addr2line::Loader;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, nice, setrlimit};

use super::{BATCH_MAX, quick};
use crate::heapwatch::report::Call;

/// The command of ours that is the child.
pub const COMMAND: &str = "symbolize";

/// From start to last byte. Debug information of 100 MB takes a few seconds on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

const ADDRESS_SPACE_MAX: u64 = 1 << 30;

/// What is believed of an answer.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Of one name; generic code has longer ones.
const NAME_BYTES_MAX: usize = 400;

/// Calls at one address.
const CALLS_MAX: usize = 16;

/// Why there are no names.
#[derive(Debug, thiserror::Error)]
pub enum SymbolError {
    #[error("the child cannot be started")]
    Start(#[source] io::Error),
    #[error("the child cannot be asked")]
    Ask(#[source] io::Error),
    #[error("the child's answer cannot be read")]
    Answer(#[source] io::Error),
    #[error("the child did not answer within {} s", DEADLINE.as_secs())]
    Late,
    #[error("the child's answer is too long")]
    Long,
    #[error("the child failed: {0}")]
    Failed(String),
    #[error("the child cannot limit itself")]
    Limit(#[source] rustix::io::Errno),
    #[error("the debug information cannot be read: {0}")]
    Load(String),
}

/// How much is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Names of the symbol table, at the priority of the caller.
    Quick,
    /// What was inlined too, with files and lines, whenever nobody else wants the processor.
    Full,
}

/// Begins a question that wants names quickly.
const QUICK: &str = "quick\n";

/// Asks a child for all there is to know of `offsets`. Blocks for up to 20 s.
///
/// # Errors
///
/// When the child cannot be started, fails, or says too much or too late. It is gone by then.
pub fn ask(
    program: &Path,
    arguments: &[&str],
    offsets: &[usize],
) -> Result<HashMap<usize, Vec<Call>>, SymbolError> {
    ask_for(Form::Full, program, arguments, offsets)
}

/// As [`ask`].
///
/// # Errors
///
/// As there.
pub fn ask_for(
    form: Form,
    program: &Path,
    arguments: &[&str],
    offsets: &[usize],
) -> Result<HashMap<usize, Vec<Call>>, SymbolError> {
    let child = Command::new(program)
        .arg0("ferrule")
        .args(arguments)
        // Nothing of our surroundings concerns it, and the guard against backtraces must not start it again.
        .env_clear()
        .envs([("RUST_BACKTRACE", "0"), ("RUST_LIB_BACKTRACE", "0")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(SymbolError::Start)?;
    let mut child = Reaped(child);
    let deadline = Instant::now() + DEADLINE;
    {
        let mut stdin = child.0.stdin.take().expect("it was piped");
        // The child reads all of it before anything else.
        let addresses = offsets.iter().take(BATCH_MAX).map(|offset| format!("{offset:x}\n"));
        let begin = if form == Form::Quick { QUICK } else { "" };
        let question: String = std::iter::once(begin.to_owned()).chain(addresses).collect();
        stdin.write_all(question.as_bytes()).map_err(SymbolError::Ask)?;
    }
    let mut stdout = child.0.stdout.take().expect("it was piped");
    let answer = read_until(&mut stdout, deadline)?;
    let status = child.0.wait().map_err(SymbolError::Answer)?;
    if !status.success() {
        let mut complaint = String::new();
        if let Some(stderr) = child.0.stderr.take() {
            stderr.take(500).read_to_string(&mut complaint).map_err(SymbolError::Answer)?;
        }
        return Err(SymbolError::Failed(format!("{status} {}", complaint.trim())));
    }
    Ok(parse(&String::from_utf8_lossy(&answer)))
}

/// A child that ends with us, whatever happens.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is what is wanted.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn read_until(
    from: &mut (impl Read + std::os::fd::AsFd),
    deadline: Instant,
) -> Result<Vec<u8>, SymbolError> {
    let (mut answer, mut buffer) = (Vec::new(), [0; 16 << 10]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(SymbolError::Late);
        }
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let ready = poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&timeout));
        match ready {
            Ok(0) => return Err(SymbolError::Late),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(SymbolError::Answer(error.into())),
        }
        match from.read(&mut buffer).map_err(SymbolError::Answer)? {
            0 => return Ok(answer),
            n if answer.len() + n > ANSWER_BYTES_MAX => return Err(SymbolError::Long),
            n => answer.extend_from_slice(&buffer[..n]),
        }
    }
}

fn parse(answer: &str) -> HashMap<usize, Vec<Call>> {
    let mut found = HashMap::new();
    let mut calls: Option<&mut Vec<Call>> = None;
    for line in answer.lines() {
        if let Some(offset) = line.strip_prefix("@ ") {
            calls = usize::from_str_radix(offset, 16)
                .ok()
                .map(|offset| found.entry(offset).or_insert_with(Vec::new));
        } else if let Some((function, place)) = line.split_once('\t')
            && let Some(calls) = &mut calls
            && calls.len() < CALLS_MAX
        {
            calls.push(Call { function: function.to_owned(), place: place.to_owned() });
        }
    }
    found
}

/// What the child does: limits itself, reads addresses, writes names.
///
/// # Errors
///
/// When it cannot limit itself, or its own file has no debug information that can be read.
pub fn serve(input: impl Read, output: impl Write) -> Result<(), SymbolError> {
    let limit = Rlimit { current: Some(ADDRESS_SPACE_MAX), maximum: Some(ADDRESS_SPACE_MAX) };
    setrlimit(Resource::As, limit).map_err(SymbolError::Limit)?;
    let question = question(input)?;
    let program = Path::new("/proc/self/exe");
    if let Some(question) = question.strip_prefix(QUICK) {
        return answer_quickly(program, question, output);
    }
    nice(19).map_err(SymbolError::Limit)?;
    answer(program, &question, output)
}

fn question(input: impl Read) -> Result<String, SymbolError> {
    let mut question = String::new();
    input.take(BATCH_MAX as u64 * 20).read_to_string(&mut question).map_err(SymbolError::Ask)?;
    Ok(question)
}

fn addresses(question: &str) -> impl Iterator<Item = u64> {
    question.lines().filter_map(|line| u64::from_str_radix(line.trim(), 16).ok())
}

fn answer_quickly(
    program: &Path,
    question: &str,
    mut output: impl Write,
) -> Result<(), SymbolError> {
    let offsets: Vec<u64> = addresses(question).collect();
    // As below.
    let probes: Vec<u64> = offsets.iter().map(|offset| offset.saturating_sub(1)).collect();
    let names = quick::names(program, &probes);
    let names = names.map_err(|error| SymbolError::Load(error.to_string()))?;
    let mut answer = String::new();
    for (offset, name) in offsets.iter().zip(names) {
        answer.push_str(&format!("@ {offset:x}\n"));
        if let Some(name) = name {
            answer.push_str(&format!("{}\t\n", short(&name)));
        }
    }
    output.write_all(answer.as_bytes()).map_err(SymbolError::Answer)
}

fn answer(program: &Path, question: &str, output: impl Write) -> Result<(), SymbolError> {
    let loader = Loader::new(program).map_err(|error| SymbolError::Load(error.to_string()))?;
    let mut output = BufWriter::new(output);
    for offset in addresses(question) {
        writeln!(output, "@ {offset:x}").map_err(SymbolError::Answer)?;
        for Call { function, place } in calls(&loader, offset) {
            writeln!(output, "{function}\t{place}").map_err(SymbolError::Answer)?;
        }
    }
    output.flush().map_err(SymbolError::Answer)
}

/// The calls at a return address, innermost first.
fn calls(loader: &Loader, offset: u64) -> Vec<Call> {
    // The address is that of the instruction after the call.
    let probe = offset.saturating_sub(1);
    // With line tables only, what was inlined has its name in the debug information, and the function
    // that it was inlined into has it in the symbol table.
    let symbol = || {
        let symbol = loader.find_symbol(probe)?;
        Some(short(&addr2line::demangle_auto(symbol.into(), None)))
    };
    let mut calls = Vec::new();
    if let Ok(mut frames) = loader.find_frames(probe) {
        while let Ok(Some(frame)) = frames.next() {
            let place = frame.location.as_ref().map_or_else(String::new, |location| {
                let file = location.file.unwrap_or_default();
                format!("{}:{}", relative(file), location.line.unwrap_or_default())
            });
            let named = frame.function.and_then(|name| Some(short(&name.demangle().ok()?)));
            let Some(function) = named.or_else(symbol) else { continue };
            calls.push(Call { function: qualified(function, &place), place });
        }
    }
    if calls.is_empty() {
        let call = |function| Call { function, place: String::new() };
        calls.extend(symbol().map(call));
    }
    calls
}

/// The name of an inlined function comes without its path; that of its file says nearly the same.
fn qualified(function: String, place: &str) -> String {
    let bare =
        function.split('<').next().is_some_and(|name| !name.is_empty() && !name.contains("::"));
    let inside = place.rsplit_once(':').and_then(|(file, _)| file.strip_suffix(".rs"));
    let Some((home, path)) = inside.filter(|_| bare).and_then(|file| file.split_once("/src/"))
    else {
        return function;
    };
    // `h2-0.4.20` is at home in `h2`.
    let home = home.rsplit('/').next().unwrap_or(home);
    let version = home.rfind(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+'));
    let home = match version {
        Some(dash) if home[dash..].len() > 1 && home[dash..].starts_with('-') => &home[..dash],
        _ => home,
    };
    let modules: Vec<&str> =
        path.split('/').filter(|part| !["lib", "main", "mod"].contains(part)).collect();
    let path = [&[home][..], &modules, &[&function]].concat();
    path.join("::").replace('-', "_")
}

fn short(name: &str) -> String {
    let name = name.replace(['\t', '\n'], " ");
    match name.char_indices().nth(NAME_BYTES_MAX) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name,
    }
}

/// The part of a path that says something: below the registry, the toolchain or the workspace.
fn relative(file: &str) -> &str {
    if let Some((_, rest)) = file.split_once("/registry/src/") {
        return rest.split_once('/').map_or(rest, |(_, rest)| rest);
    }
    if let Some((_, rest)) = file.split_once("/library/") {
        return rest;
    }
    // A crate of the workspace is named after its folder; C code that was built for a crate, after
    // the crate's build.
    match file.find("/src/").map(|src| file[..src].rfind('/')) {
        Some(Some(slash)) => &file[slash + 1..],
        _ => file,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_noise_is_not() {
        let call = |function: &str, place: &str| Call {
            function: function.to_owned(),
            place: place.to_owned(),
        };
        let answer = "running\n@ 1f\na::b\tsrc/a.rs:3\nmain\t\n@ 20\n@ zz\nlost\tx:1\nok.\n";
        let found = parse(answer);
        assert_eq!(found[&0x1f], [call("a::b", "src/a.rs:3"), call("main", "")]);
        assert_eq!((found[&0x20].len(), found.len()), (0, 2));
    }

    #[test]
    fn a_child_that_fails_hangs_or_babbles_is_reported_and_gone() {
        let ask = |script: &str| ask(Path::new("/bin/sh"), &["-c", script], &[1, 2]);
        assert!(matches!(ask("cat; exit 3"), Err(SymbolError::Failed(_))));
        assert!(matches!(ask("cat >/dev/null; yes"), Err(SymbolError::Long)));
        assert!(matches!(super::ask(Path::new("/nowhere"), &[], &[]), Err(SymbolError::Start(_))));
        assert_eq!(ask("echo '@ 1'; printf 'f\\tg\\n'; cat").expect("an answer")[&1].len(), 1);
        let (mut reader, _writer) = io::pipe().expect("a pipe");
        let late = read_until(&mut reader, Instant::now() + Duration::from_millis(10));
        assert!(matches!(late, Err(SymbolError::Late)));
    }

    #[test]
    fn paths_lose_what_is_the_same_everywhere() {
        let registry = "/home/a/.cargo/registry/src/index-1949cf8c6b5b557f/h2-0.4.20/src/lib.rs";
        assert_eq!(relative(registry), "h2-0.4.20/src/lib.rs");
        assert_eq!(relative("/rustc/abc/library/alloc/src/vec/mod.rs"), "alloc/src/vec/mod.rs");
        assert_eq!(relative("proxy/src/tls.rs"), "proxy/src/tls.rs");
        assert_eq!(relative("/home/a/ferrule/proxy/src/tls.rs"), "proxy/src/tls.rs");
        assert_eq!(relative("/usr/include/x.h"), "/usr/include/x.h");
        assert_eq!(short(&"é".repeat(500)).chars().count(), NAME_BYTES_MAX + 1);
    }

    #[test]
    fn a_bare_name_gets_the_path_of_its_file() {
        for (function, place, expected) in [
            (
                "poll<T>",
                "tokio-1.54.1/src/runtime/task/raw.rs:267",
                "tokio::runtime::task::raw::poll<T>",
            ),
            ("push<u8>", "alloc/src/vec/mod.rs:9", "alloc::vec::push<u8>"),
            ("start", "/w/telemetry/src/heapwatch.rs:153", "telemetry::heapwatch::start"),
            ("new", "hyper-util-0.1.21/src/lib.rs:1", "hyper_util::new"),
            ("a::b", "alloc/src/vec/mod.rs:9", "a::b"),
            ("<A as B>::c", "alloc/src/vec/mod.rs:9", "<A as B>::c"),
            ("memcpy", "../string/memcpy.c:12", "memcpy"),
            ("main", "", "main"),
        ] {
            assert_eq!(qualified(function.to_owned(), place), expected);
        }
    }

    #[test]
    fn our_own_functions_are_found_by_address() {
        let image = crate::stack::image().expect("the program is mapped");
        let address = our_own_functions_are_found_by_address as fn() as usize - image.base;
        let question = format!("{:x}\n{:x}\nrubbish\n", address + 2, usize::MAX >> 8);
        let mut output = Vec::new();
        answer(Path::new("/proc/self/exe"), &question, &mut output).expect("it is readable");
        let found = parse(&String::from_utf8_lossy(&output));
        let calls = &found[&(address + 2)];
        assert!(
            calls.last().is_some_and(|call| {
                call.function.contains("our_own_functions_are_found_by_address")
                    && call.place.contains("symbols/child.rs:")
            }),
            "{calls:?}"
        );
        assert!(found[&(usize::MAX >> 8)].is_empty());
    }
}
