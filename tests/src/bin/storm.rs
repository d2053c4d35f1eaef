//! What errors cost in a process whose environment asks for backtraces: `storm ours` or `storm naive`.
//!
//! It prints how many bytes of resident memory the storm took and did not give back.

#![allow(clippy::unwrap_used, reason = "a program of the tests")]
#![allow(clippy::print_stdout, reason = "what it prints is what the test reads")]

use std::env;
use std::error::Error;
use std::hint::black_box;
use std::io;
use std::thread;

use anyhow::Context as _;
use proxy::admin::BindError;
use proxy::app::StartError;
use proxy::error::{Code, Failure};
use telemetry::error::chain;
use telemetry::process::Process;
use telemetry::{backtrace_guard, log, panic};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const ERRORS: usize = 100_000;

fn main() {
    match env::args().nth(1).as_deref() {
        Some("ours") => {
            backtrace_guard::arm().unwrap();
            log::open("off", log::Format::Text).unwrap();
            panic::install();
            measure(ours);
        }
        Some("naive") => measure(naive),
        Some("unguarded") => println!("{}", chain(&backtrace_guard::verify().unwrap_err())),
        other => panic!("cannot {other:?}"),
    }
}

fn measure(storm: impl FnOnce()) {
    let process = Process::open();
    let before = process.resident().unwrap();
    storm();
    println!("grown {}", process.resident().unwrap().saturating_sub(before));
}

/// Errors of every layer with their causes, in every form they could be written, and a panic.
fn ours() {
    for number in 0..ERRORS {
        let refused = io::Error::new(io::ErrorKind::ConnectionRefused, "refused");
        let inner = Failure::new(Code::PC01).because(refused);
        let failure = Failure::new(Code::PR03).because(inner);
        black_box(format!("{failure:?} {failure} {}", chain(&failure)));
        let address = ([127, 0, 0, 1], (number % 65_536) as u16).into();
        let source = io::ErrorKind::AddrInUse.into();
        let start = StartError::Admin(BindError::Address { address, source });
        let boxed: Box<dyn Error> = Box::new(start);
        black_box(format!("{boxed:?} {boxed:#?} {}", chain(&*boxed)));
    }
    panics();
}

/// One error is enough.
fn naive() {
    let refused = io::Error::new(io::ErrorKind::ConnectionRefused, "refused");
    let error = Err::<(), _>(refused).context("cannot connect").unwrap_err();
    black_box(format!("{error:?}"));
}

/// In a thread, where it is contained.
fn panics() {
    let stumble = || panic!("what a client sent");
    thread::spawn(stumble).join().unwrap_err();
}
