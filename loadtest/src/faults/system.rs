//! What the machine and the neighbourhood withhold: collector, disk, descriptors, memory, time.

use std::cell::RefCell;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::net::sockopt::set_socket_recv_buffer_size;

use super::{Bar, Fault, Phases, RATE};
use crate::beside::Beside;
use crate::client::h2::{H2, WINDOW_SIZE, WINDOW_UPDATE, frame, request};
use crate::client::{Stream, connect};
use crate::machine;
use crate::node::Node;
use crate::node::config::{App, DOMAIN, Setup};
use crate::options::Common;
use crate::origin::{Collector, Origin, Takes};
use crate::process::find;
use crate::sampler::{RESIDENT, Sampler};
use crate::suite::Part;
use crate::verdict::Check;

pub(super) const ALL: &[Fault] = &[
    Fault {
        name: "collector-hangs",
        in_short: true,
        run: |common, part| collector(common, part, Takes::Nothing),
        about: "The collector takes connections and answers nothing.",
    },
    Fault {
        name: "collector-closes",
        in_short: false,
        run: |common, part| collector(common, part, Takes::Closed),
        about: "The collector closes every connection.",
    },
    Fault {
        name: "disk-full",
        in_short: true,
        run: disk_full,
        about: "The file system of storage and access log (12 MiB, mounted for the node alone) is filled, \
         and an app changes meanwhile.",
    },
    Fault {
        name: "descriptors",
        in_short: true,
        run: descriptors,
        about: "A node that may open 300 files, and 400 connections that do nothing. Clients that have a \
         connection must not notice; the others can only wait.",
    },
    Fault {
        name: "memory-limit",
        in_short: true,
        run: memory,
        about: "A memory cgroup of 128 MiB, and clients who ask for much on many streams and read nothing, \
         each of whom could hold 15 MiB.",
    },
    Fault {
        name: "bad-handshakes",
        in_short: true,
        run: handshakes,
        about: "A thousand connections per second whose first bytes are no TLS.",
    },
    Fault { name: "clock-steps", in_short: true, run: clock, about: "The time of day jumps." },
];

const UNNOTICED: Bar =
    Bar { errors_share_max: 0.0, errors_end: None, why: "no request waits for it" };

fn host() -> String {
    format!("web.{DOMAIN}")
}

fn node(common: &Common, origin: &Origin, change: impl FnOnce(Setup) -> Setup) -> Result<Node> {
    let setup = change(Setup::new(&common.ferrule)?);
    let app = App::web("web", &setup.ports, origin.address());
    Node::start(&setup.app(app))
}

fn beside(node: &Node) -> Result<Beside> {
    Beside::start(node, &host(), "/", RATE)
}

fn collector(common: &Common, part: &mut Part, takes: Takes) -> Result<()> {
    let origin = Origin::start()?;
    let collector = Collector::start(Takes::Everything)?;
    let node = node(common, &origin, |setup| {
        setup
            .exports_to(&collector.endpoint())
            .set("telemetry.records", "sample_percent", "100.0")
            .set("telemetry.records", "exports_per_second_max", 100_000)
            .set("telemetry.records", "app_exports_per_second_max", 100_000)
    })?;
    let sampler = Sampler::start(&node)?;
    Phases::of(common).run(
        part,
        &UNNOTICED,
        &|| beside(&node),
        || {
            collector.becomes(takes);
            Ok(())
        },
        || {
            collector.becomes(Takes::Everything);
            Ok(())
        },
    )?;
    part.plots.push(sampler.end().memory("Memory"));
    Ok(())
}

fn disk_full(common: &Common, part: &mut Part) -> Result<()> {
    if !rustix::process::geteuid().is_root() || find("unshare").is_none() {
        part.check(Check::skipped(
            "the disk is full",
            "needs root and unshare, to mount a small one",
        ));
        return Ok(());
    }
    let origin = Origin::start()?;
    let mount = "mkdir -p \"$0\" && mount -t tmpfs -o size=12m tmpfs \"$0\" && exec \"$@\"";
    let node = node(common, &origin, |mut setup| {
        setup.wrapper =
            ["unshare", "--mount", "sh", "-c", mount, "{home}/storage"].map(str::to_owned).into();
        setup.set("telemetry.access_log", "path", "\"storage/access.log\"")
    })?;
    let inside = |file: &str| -> PathBuf {
        let storage = node.home().join("storage").join(file);
        Path::new("/proc")
            .join(node.first_pid().to_string())
            .join("root")
            .join(storage.strip_prefix("/").unwrap_or(&storage))
    };
    let change = |hard_limit: u32| {
        let mut app = App::web("web", node.ports(), origin.address());
        app.hard_limit = hard_limit;
        node.write_app(&app)
    };
    let during = RefCell::new(None);
    Phases::of(common).run(
        part,
        &UNNOTICED,
        &|| beside(&node),
        || {
            let mut file = fs::File::create(inside("fill"))?;
            while file.write_all(&[0; 4096]).is_ok() {}
            change(4_000)?;
            Ok(())
        },
        || {
            *during.borrow_mut() = Some(node.scrape()?);
            fs::remove_file(inside("fill"))?;
            change(3_000)
        },
    )?;
    let during = during.into_inner().context("it was read")?;
    let lost = during.value("ferrule_access_log_dropped_total")
        + during.value("ferrule_access_log_errors_total");
    part.check(Check::that(
        "lines of the access log that were lost are counted",
        "> 0",
        lost,
        lost > 0.0,
    ));
    part.check(Check::told(
        "changes that could not be written",
        during.value("ferrule_catalog_errors_total"),
    ));
    let before = node.scrape()?.value("ferrule_catalog_errors_total");
    change(2_000)?;
    thread::sleep(Duration::from_secs(2));
    let more = node.scrape()?.value("ferrule_catalog_errors_total") - before;
    part.check(Check::that("changes that could not be written afterwards", "0", more, more == 0.0));
    Ok(())
}

fn descriptors(common: &Common, part: &mut Part) -> Result<()> {
    if find("prlimit").is_none() {
        part.check(Check::skipped("descriptors run out", "prlimit is not installed"));
        return Ok(());
    }
    let origin = Origin::start()?;
    let node = node(common, &origin, |mut setup| {
        setup.wrapper = ["prlimit", "--nofile=300:300"].map(str::to_owned).into();
        setup
    })?;
    let held: RefCell<Vec<TcpStream>> = RefCell::default();
    let cpu = RefCell::new((Duration::ZERO, Instant::now()));
    let used = RefCell::new(0.0);
    let errors =
        |node: &Node| Ok::<_, anyhow::Error>(node.scrape()?.value("ferrule_accept_errors_total"));
    let before = errors(&node)?;
    let counted = RefCell::new(0.0);
    Phases::of(common).run(
        part,
        &UNNOTICED,
        &|| Beside::lasting(&node, &host(), "/", RATE),
        || {
            // Clients that are there have their connections first.
            thread::sleep(Duration::from_millis(500));
            for _ in 0..400 {
                held.borrow_mut().push(connect(node.http())?);
            }
            *cpu.borrow_mut() = (machine::cpu_of(node.first_pid())?, Instant::now());
            Ok(())
        },
        || {
            let (was, since) = *cpu.borrow();
            let spent = machine::cpu_of(node.first_pid())? - was;
            *used.borrow_mut() = spent.as_secs_f64() / since.elapsed().as_secs_f64();
            held.borrow_mut().clear();
            *counted.borrow_mut() = wait_for(|| errors(&node))?;
            Ok(())
        },
    )?;
    let counted = *counted.borrow() - before;
    part.check(Check::that("failed accepts are counted", "> 0", counted, counted > 0.0));
    part.check(
        Check::at_most("CPUs while nothing can be accepted", "", 0.5, *used.borrow(), 2)
            .because("an accept loop that spins takes a whole one")
            .timed(),
    );
    Ok(())
}

/// Whoever is out of descriptors cannot answer a scrape at once either.
fn wait_for<T>(mut what: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match what() {
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(100)),
            result => return result,
        }
    }
}

/// A memory cgroup, version 1 or 2, which is removed in the end.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(bytes: u64) -> Result<Self> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let is_v1 = v1.join("memory.limit_in_bytes").exists();
        let root = if is_v1 { v1 } else { Path::new("/sys/fs/cgroup") };
        let group = Self(root.join(format!("ferrule-proof-{}", std::process::id())));
        fs::create_dir(&group.0)?;
        let limit = if is_v1 { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(group.0.join(limit), bytes.to_string())?;
        Ok(group)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let gone = || fs::remove_dir(&self.0).is_ok();
        if !crate::process::wait_until(Duration::from_secs(10), gone) {
            eprintln!("{} could not be removed", self.0.display());
        }
    }
}

fn memory(common: &Common, part: &mut Part) -> Result<()> {
    const LIMIT: u64 = 128 << 20;
    const CLIENTS: usize = 20;
    let group = match Cgroup::make(LIMIT) {
        Ok(group) => group,
        Err(error) => {
            part.check(Check::skipped("memory is short", format!("no memory cgroup: {error:#}")));
            return Ok(());
        }
    };
    let origin = Origin::start()?;
    let enter = "echo $$ > \"$0\" && exec \"$@\"";
    let procs = group.0.join("cgroup.procs").display().to_string();
    let mut node = node(common, &origin, |mut setup| {
        setup.wrapper = ["sh", "-c", enter, &procs].map(str::to_owned).into();
        let greedy = App::web("greedy", &setup.ports, origin.address());
        setup.app(greedy)
    })?;
    let config = node.tls(&["h2"])?;
    let sampler = Sampler::start(&node)?;
    let held: RefCell<Vec<H2>> = RefCell::default();
    // Whoever asks for too much may be refused; others may be told to come again while it is short.
    let bar = Bar {
        errors_share_max: 0.05,
        errors_end: None,
        why: "who holds less than its share is served",
    };
    let greedy = format!("greedy.{DOMAIN}");
    let phases = Phases::of(common).run(
        part,
        &bar,
        &|| beside(&node),
        || {
            for _ in 0..CLIENTS {
                // Turned away is what many of them should be.
                let Ok(stream) = Stream::tls(node.https(), &greedy, &config) else { continue };
                set_socket_recv_buffer_size(stream.socket(), 4 << 10)?;
                let Ok(mut client) = H2::start(stream, &[(WINDOW_SIZE, 1 << 30)]) else { continue };
                drop(client.send(&frame(WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes())));
                for _ in 0..100 {
                    let id = client.open();
                    drop(client.send(&request(id, "GET", &greedy, "/bytes/4000000", &[], true)));
                }
                held.borrow_mut().push(client);
            }
            Ok(())
        },
        || {
            held.borrow_mut().clear();
            Ok(())
        },
    );
    let samples = sampler.end();
    part.plots.push(samples.memory("Memory").mark(0.0, "limit 128 MiB"));
    let lives = node.lives();
    part.check(Check::that(
        "the node lives",
        "yes",
        if lives { "yes" } else { "it was killed" },
        lives,
    ));
    part.check(Check::told("resident at most", format!("{:.0} MiB", samples.max(RESIDENT))));
    phases?;
    let scrape = node.scrape()?;
    let acted = scrape.sum("ferrule_pressure_actions_total");
    part.check(Check::told("given up for memory", acted));
    Ok(())
}

fn handshakes(common: &Common, part: &mut Part) -> Result<()> {
    const THREADS: u64 = 20;
    const EACH: u64 = 50;
    let origin = Origin::start()?;
    let node = node(common, &origin, |setup| setup)?;
    let stop = Arc::<AtomicBool>::default();
    let done = Arc::<AtomicU64>::default();
    let began = RefCell::new(Instant::now());
    let before = node.scrape()?;
    let rate = RefCell::new(0.0);
    let address = node.https();
    let bar =
        Bar { errors_share_max: 0.0, errors_end: None, why: "each costs its own connection only" };
    let during = Phases::of(common).run(
        part,
        &bar,
        &|| beside(&node),
        || {
            *began.borrow_mut() = Instant::now();
            for _ in 0..THREADS {
                let (stop, done) = (stop.clone(), done.clone());
                thread::spawn(move || {
                    let mut due = Instant::now();
                    while !stop.load(SeqCst) {
                        if bad_handshake(address).is_ok() {
                            done.fetch_add(1, SeqCst);
                        }
                        due += Duration::from_secs(1) / EACH as u32;
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                    }
                });
            }
            Ok(())
        },
        || {
            stop.store(true, SeqCst);
            *rate.borrow_mut() = done.load(SeqCst) as f64 / began.borrow().elapsed().as_secs_f64();
            Ok(())
        },
    )?;
    part.check(Check::told("bad handshakes per second", format!("{:.0}", *rate.borrow())));
    let after = node.scrape()?;
    let failed = "ferrule_tls_handshakes_total{result=\"failed\"}";
    let counted = after.value(failed) - before.value(failed);
    let sent = done.load(SeqCst) as f64;
    part.check(Check::that(
        "each is counted",
        format!("{sent}"),
        counted,
        counted >= sent && sent > 0.0,
    ));
    part.check(Check::at_most("p99 of others", "ms", 250.0, during.latency().p99, 1).timed());
    Ok(())
}

fn bad_handshake(address: std::net::SocketAddr) -> Result<()> {
    let mut stream = connect(address)?;
    stream.write_all(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00")?;
    // An alert, and then the end.
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}

fn clock(_: &Common, part: &mut Part) -> Result<()> {
    part.check(Check::skipped(
        "the time of day jumps",
        "a time namespace moves the monotonic clock and that since boot, and only for processes that \
         are started in it; the time of day is the machine's, and is left alone",
    ));
    Ok(())
}
