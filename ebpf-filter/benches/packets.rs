//! What a packet costs: nanoseconds in the XDP program above a program that only passes, by what is in
//! the maps. And how long the maps take to fill.
//!
//! `cargo bench -p ebpf-filter` (as root); the numbers are medians of runs that alternate with the
//! empty program, so that a busy machine slows both. The packet is the same a million times: caches
//! are warm, which is what a flood makes them.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program that measures and prints")]

use std::time::{Duration, Instant};

use ebpf_filter::{AppPolicy, Config, Filter, Limits, Mode};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::UnshareFlags;

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/it/packet.rs"]
mod packet;
#[path = "../tests/it/run.rs"]
mod run;

use packet::{ACK, syn, tcp};
use run::Program;

const SIZES: [u32; 3] = [10, 10_000, 1_000_000];
const REPEAT: u32 = 1_000_000;
const ROUNDS: usize = 9;

/// What an app of the table has: its `number`th address or prefix of both families.
#[derive(Clone, Copy)]
enum Entries {
    Exact,
    Prefixes,
}

fn main() {
    // What `cargo test --benches` would do: nothing that takes minutes.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    #[allow(unsafe_code, reason = "namespaces of our own")]
    // SAFETY: this is the only thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWNET) }.unwrap();
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
    let directory = tempfile::tempdir().unwrap();
    mount("bpf", directory.path(), "bpf", MountFlags::empty(), None::<&std::ffi::CStr>).unwrap();
    let config = Config {
        mode: Mode::XdpGeneric,
        interfaces: vec![String::from("lo")],
        prefixes: ["10.0.0.0/8", "2001:db8::/32"].map(|net| net.parse().unwrap()).to_vec(),
        pins: directory.path().join("pins"),
        limits: Limits { prefixes_max: 1 << 20, ..Limits::default() },
        ..Config::default()
    };
    let mut filter = Filter::open(&config).unwrap();
    let program = Program::pinned(&config.pins.join("program-admit_xdp"));
    let empty = empty();

    println!("ns per packet above an empty XDP program (median of {ROUNDS} times {REPEAT})\n");
    println!("{:<34} {:>9} {:>9} {:>9}", "packet", "10", "10,000", "1,000,000");
    let mut table: Vec<(String, Vec<String>)> = Vec::new();
    let mut filled = Vec::new();
    for entries in [Entries::Exact, Entries::Prefixes] {
        for size in SIZES {
            let (started, cpu) = (Instant::now(), cpu_time());
            filter.replace_all((0..size).map(|number| app(entries, number))).unwrap();
            filled.push((entries, size, started.elapsed(), cpu_time() - cpu, filter.bytes()));
            for (name, frame) in packets(entries, size) {
                let ns = median(&program, &empty, &frame);
                match table.iter_mut().find(|(row, _)| *row == name) {
                    Some((_, row)) => row.push(ns),
                    None => table.push((name, vec![ns])),
                }
            }
        }
    }
    for (name, row) in table {
        println!("{name:<34} {:>9} {:>9} {:>9}", row[0], row[1], row[2]);
    }
    println!("\nfilling the maps (apps with one entry of each family), and the book of it\n");
    for (entries, size, took, cpu, bytes) in filled {
        let (took, cpu) = (took.as_secs_f64(), cpu.as_secs_f64());
        println!(
            "{:<10} {size:>9} apps {took:>8.3} s ({cpu:>6.3} s of CPU) {:>8} KiB",
            entries.name(),
            bytes / 1024
        );
    }
    rustix::mount::unmount(directory.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
}

/// Of this process, in user space and in the kernel.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(now).unwrap()
}

fn app(entries: Entries, number: u32) -> AppPolicy {
    AppPolicy {
        app: number.to_string(),
        addresses: entries.networks(number).to_vec(),
        shared: false,
        tcp: vec![80..=80, 443..=443],
        udp: vec![],
    }
}

fn packets(entries: Entries, size: u32) -> Vec<(String, Vec<u8>)> {
    let middle = entries.networks(size / 2).map(|net| net.network().to_string());
    let nobody = entries.networks(size + 1).map(|net| net.network().to_string());
    let mut packets = Vec::new();
    for (family, (somebody, nobody)) in ["v4", "v6"].into_iter().zip(middle.iter().zip(&nobody)) {
        let name = |what: &str| format!("{family} {}: {what}", entries.name());
        packets.push((name("SYN allowed"), syn(somebody, 443).build()));
        packets.push((name("SYN to another port"), syn(somebody, 22).build()));
        packets.push((name("SYN to nobody"), syn(nobody, 443).build()));
        if matches!(entries, Entries::Exact) {
            packets.push((name("ACK"), tcp(somebody, 443, ACK).build()));
        }
    }
    packets
}

/// Nanoseconds above the empty program.
fn median(program: &Program, empty: &Program, frame: &[u8]) -> String {
    let once = |program: &Program| {
        i64::try_from(program.run(frame, REPEAT).unwrap().1.as_nanos()).unwrap()
    };
    let mut above: Vec<i64> = (0..ROUNDS).map(|_| once(program) - once(empty)).collect();
    above.sort_unstable();
    above[ROUNDS / 2].to_string()
}

/// `r0 = XDP_PASS; exit`
fn empty() -> Program {
    #[repr(C)]
    struct Attr {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        rest: [u64; 12],
    }
    let code: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
    let mut attr = Attr {
        kind: 6,
        instructions: 2,
        code: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        rest: [0; 12],
    };
    const BPF_PROG_LOAD: libc::c_long = 5;
    Program::own(run::bpf(BPF_PROG_LOAD, &mut attr).unwrap())
}

// === impl Entries ===

impl Entries {
    fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Prefixes => "prefix",
        }
    }

    fn networks(self, number: u32) -> [IpNet; 2] {
        let (v4, v6) = (u32::from_be_bytes([10, 0, 0, 0]), 0x2001_0db8_u128 << 96);
        let (shift4, shift6): (u8, u8) = match self {
            Self::Exact => (0, 0),
            Self::Prefixes => (4, 72),
        };
        // The numbers are spread, so that a trie is as deep as it would be.
        let number = number.reverse_bits() >> 12;
        let v4 = Ipv4Net::new((v4 + (number << u32::from(shift4))).into(), 32 - shift4).unwrap();
        let v6 = v6 + (u128::from(number) << u32::from(shift6));
        let v6 = Ipv6Net::new(v6.into(), 128 - shift6).unwrap();
        [v4.into(), v6.into()]
    }
}
