//! What a panic leaves: where it was and the return addresses, in the black box and in the log.
//!
//! The standard hook symbolises, which costs 140 MB that never come back (see
//! [`crate::backtrace_guard`]), and it writes the message, which may hold what a client sent. This
//! one does neither. Containing the panic is the business of whoever awaits the task.

use std::fmt::{self, Write as _};
use std::io;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;

use crate::black_box::{self, FRAMES_MAX};
use crate::clock;

/// Return addresses are told relative to this, so that they mean something in another process.
static ORIGIN: OnceLock<Origin> = OnceLock::new();

struct Origin {
    build_id: String,
    start: u64,
    end: u64,
    bias: u64,
}

/// Replaces the hook of the process. Called once, before threads are started.
pub fn install() {
    let (build_id, program) = black_box::program();
    let program = program.unwrap_or_default();
    let origin = Origin { build_id, start: program.start, end: program.end, bias: program.bias };
    drop(ORIGIN.set(origin));
    std::panic::set_hook(Box::new(hook));
}

fn hook(info: &PanicHookInfo<'_>) {
    let place = info.location().map_or(("unknown", 0, 0), |location| {
        (location.file(), location.line(), location.column())
    });
    let frames = black_box::installed().map(|black_box| black_box.panic(clock::now(), place));
    let mut stack = Text::default();
    for pc in frames.iter().flat_map(|frames| frames.pcs()) {
        stack.frame(*pc); // full: the outermost frames are left out
    }
    let (file, line, column) = place;
    let build = ORIGIN.get().map_or("", |origin| &origin.build_id);
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    if tracing::dispatcher::has_been_set() {
        let location = format_args!("{file}:{line}:{column}");
        tracing::error!(%location, thread, build, stack = stack.as_str(), "panicked");
    } else {
        let stderr = &mut io::stderr();
        // A closed stderr leaves nobody to tell.
        drop(io::Write::write_fmt(
            stderr,
            format_args!(
                "panicked at {file}:{line}:{column}, thread {thread}, build {build}, stack {}\n",
                stack.as_str()
            ),
        ));
    }
}

/// Room for every frame as `0x` and twelve digits.
const STACK_BYTES: usize = FRAMES_MAX * 16;

/// Addresses on the stack of the thread that panics.
struct Text {
    bytes: [u8; STACK_BYTES],
    length: usize,
}

impl Text {
    fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..self.length]).unwrap_or_default().trim_end()
    }

    /// An address of the program's file, or of memory where it is in another.
    fn frame(&mut self, pc: u64) {
        let within = ORIGIN.get().filter(|origin| (origin.start..origin.end).contains(&pc));
        match within {
            Some(origin) => write!(self, "+{:#x} ", pc - origin.bias),
            None => write!(self, "{pc:#x} "),
        }
        .ok(); // full
    }
}

impl Default for Text {
    fn default() -> Self {
        Self { bytes: [0; STACK_BYTES], length: 0 }
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.length..).and_then(|room| room.get_mut(..text.len()));
        room.ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}
