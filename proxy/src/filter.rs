//! The kernel's filter: what apps ask for goes in as the inventory changes, counters come out.
//!
//! It is an optimisation: every connection is judged again after accept ([`crate::connection`]), so
//! a policy that is not in the kernel yet, or still is, costs time or work and no more. All of this
//! runs on the control thread.

mod export;
mod follow;
pub mod pins;
mod policy;

use std::sync::Arc;
use std::time::Duration;

use control::snapshot::AppName;
use ebpf_filter::{AppPolicy, FilterError};
use rustix::time::{ClockId, clock_gettime};
use telemetry::ledger::Ledger;
use telemetry::lock::Mutex;
use telemetry::metrics::Registry;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::export::Export;
use self::follow::{Follower, Table};
use self::policy::Shared;
use crate::admin::filter as page;
use crate::config::{self, Config, FilterMode};
use crate::inventory::Inventory;

/// The filter of a node, whatever it amounts to on this machine.
pub struct Filter {
    mode: &'static str,
    reasons: Vec<String>,
    dry_run: bool,
    /// Under which name addresses that are no app's own are counted.
    nobody: &'static str,
    inventory: Arc<Inventory>,
    kernel: Mutex<Kernel>,
    fell_behind: Notify,
}

struct Kernel {
    table: ebpf_filter::Filter,
    follower: Follower,
    export: Export,
}

/// How often reports of drops are fetched, so that the kernel has room for the next.
const TICK: Duration = Duration::from_secs(1);

// === impl Filter ===

impl Filter {
    /// Loads and attaches what the configuration asks for, and takes over what is pinned. The maps
    /// stay as they are until [`start`](Self::start).
    ///
    /// # Errors
    ///
    /// When a mode that was named cannot be had.
    pub fn open(
        config: &Config,
        inventory: Arc<Inventory>,
        registry: &Registry,
        ledger: &Ledger,
    ) -> Result<Self, FilterError> {
        pins::detach_other_layouts(&config.filter.pins);
        let table = ebpf_filter::Filter::open(&kernel_config(config))?;
        let (mode, mut reasons) = (table.mode(), table.reasons().to_vec());
        if mode == ebpf_filter::ActiveMode::Userspace {
            // What an earlier process left would go on judging by maps that nobody keeps.
            pins::try_detach(&config.filter.pins);
        }
        for reason in &reasons {
            tracing::warn!(
                mode = mode.as_str(),
                reason,
                "not every place of the filter is possible"
            );
        }
        if config.listen.prefixes.is_empty() && config.filter.mode != FilterMode::Off {
            reasons.push("listen.prefixes is empty: there is nothing to filter".to_owned());
        }
        let shared = Shared::new(&config.listen);
        let nobody = shared.name_of_the_rest();
        let export = Export::new(registry, ledger, &table);
        let kernel = Kernel { table, follower: Follower::new(shared), export };
        Ok(Self {
            mode: mode.as_str(),
            reasons,
            dry_run: config.filter.dry_run,
            nobody,
            inventory,
            kernel: Mutex::new("filter", kernel),
            fell_behind: Notify::new(),
        })
    }

    /// Where packets are dropped.
    pub fn mode(&self) -> &'static str {
        self.mode
    }

    /// Why not earlier, a sentence for each way that was tried.
    pub fn reasons(&self) -> &[String] {
        &self.reasons
    }

    /// Puts the whole inventory into the kernel in place of what is there. Until then changes are
    /// not followed.
    pub fn start(&self) {
        let Kernel { table, follower, .. } = &mut *self.kernel.lock();
        follower.replace_all(table, &self.inventory);
        if follower.is_behind() {
            self.fell_behind.notify_one();
        }
    }

    /// Another process keeps the maps from now on, whatever this one still wanted to write there.
    pub fn give_away(&self) {
        self.kernel.lock().follower.stop_following();
    }

    /// Puts programs and maps back to what this process wants, after another one may have replaced
    /// them.
    ///
    /// # Errors
    ///
    /// When the kernel does not take them; the maps are followed as they are then.
    pub fn take_back(&self, config: &Config) -> Result<(), FilterError> {
        pins::detach_other_layouts(&config.filter.pins);
        let opened = ebpf_filter::Filter::open(&kernel_config(config));
        let failed = opened.map(|table| self.kernel.lock().table = table);
        self.start();
        failed
    }

    /// An app changed; the inventory has the change already.
    pub fn changed(&self, app: &AppName) {
        let Kernel { table, follower, export } = &mut *self.kernel.lock();
        follower.changed(table, &self.inventory, app);
        if self.inventory.by_name(app.as_str()).is_none() {
            export.forget(app.as_str());
        }
        if follower.is_behind() {
            self.fell_behind.notify_one();
        }
    }

    /// Until `stop`: tries again what failed, ever more patiently, and fetches reports of drops.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut failures = 0;
        loop {
            let behind = self.kernel.lock().follower.is_behind();
            let wait = if behind { follow::pause(failures) } else { TICK };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.fell_behind.notified(), if !behind => continue,
                () = tokio::time::sleep(wait) => {}
            }
            self.kernel.lock().table.drops();
            failures = if behind && !self.catch_up() { failures.saturating_add(1) } else { 0 };
        }
    }

    /// Brings the series of the filter to what the kernel says now.
    pub fn export(&self) {
        let Kernel { table, follower, export } = &mut *self.kernel.lock();
        export.counters(&table.counters(), self.nobody);
        export.occupancy(table, follower.behind(&self.inventory));
    }

    /// Everything an operator may ask about it.
    pub fn page(&self) -> page::Filter {
        let Kernel { table, follower, .. } = &mut *self.kernel.lock();
        let counters = table.counters();
        let named = |app: String| if app.is_empty() { self.nobody.to_owned() } else { app };
        let interface = |(name, mode): &(String, ebpf_filter::ActiveMode)| page::Interface {
            name: name.clone(),
            mode: mode.as_str().to_owned(),
        };
        let verdict = |(verdict, packets): &(ebpf_filter::Verdict, u64)| page::Packets {
            verdict: verdict.as_str().to_owned(),
            packets: *packets,
        };
        let map = |(name, entries, capacity): (&str, usize, usize)| page::Map {
            name: name.to_owned(),
            entries: entries as u64,
            capacity: capacity as u64,
        };
        let now = monotonic();
        page::Filter {
            mode: self.mode.to_owned(),
            reasons: self.reasons.clone(),
            interfaces: table.interfaces().iter().map(interface).collect(),
            dry_run: self.dry_run,
            behind: follower.behind(&self.inventory) as u64,
            packets: counters.verdicts.iter().map(verdict).collect(),
            apps: counters
                .apps
                .into_iter()
                .filter(|(_, counted)| counted.allowed > 0 || counted.dropped > 0)
                .map(|(app, counted)| page::App {
                    app: named(app),
                    allowed: counted.allowed,
                    dropped: counted.dropped,
                })
                .collect(),
            maps: table.occupancy().into_iter().map(map).collect(),
            drops: table.drops().into_iter().map(|drop| told(drop, now)).collect(),
        }
    }

    fn catch_up(&self) -> bool {
        let Kernel { table, follower, .. } = &mut *self.kernel.lock();
        follower.catch_up(table, &self.inventory);
        !follower.is_behind()
    }
}

fn told(drop: ebpf_filter::Drop, now: Duration) -> page::Drop {
    let ebpf_filter::Drop { verdict, destination, port, app, interface, at } = drop;
    page::Drop {
        seconds_ago: now.saturating_sub(at).as_secs_f64(),
        verdict: verdict.as_str().to_owned(),
        destination,
        port,
        app,
        interface: interface_name(interface),
    }
}

/// Its name now; an interface that went has only its number.
fn interface_name(index: u32) -> Option<String> {
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};
    let name = |index| {
        let any = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
        netdevice::index_to_name(any, index)
    };
    match index {
        0 => None,
        _ => Some(name(index).unwrap_or_else(|_| format!("interface {index}"))),
    }
}

/// The clock of the kernel's reports.
fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |number: i64| u64::try_from(number).unwrap_or_default();
    Duration::from_secs(part(now.tv_sec)) + Duration::from_nanos(part(now.tv_nsec))
}

/// What the loader is told; steering has the same prefixes and pins.
pub(crate) fn kernel_config(config: &Config) -> ebpf_filter::Config {
    let config::Filter { mode, interfaces, cgroup, pins, dry_run, sample_drops_every } =
        config.filter.clone();
    ebpf_filter::Config {
        mode: match mode {
            // Outside the prefixes it has no opinion, so without any there is nothing to load.
            _ if config.listen.prefixes.is_empty() => ebpf_filter::Mode::Off,
            FilterMode::Auto => ebpf_filter::Mode::Auto,
            FilterMode::Xdp => ebpf_filter::Mode::Xdp,
            FilterMode::XdpGeneric => ebpf_filter::Mode::XdpGeneric,
            FilterMode::Tcx => ebpf_filter::Mode::Tcx,
            FilterMode::Cgroup => ebpf_filter::Mode::Cgroup,
            FilterMode::Off => ebpf_filter::Mode::Off,
        },
        interfaces,
        cgroup,
        prefixes: config.listen.prefixes.clone(),
        pins: pins::of_this_layout(&pins),
        dry_run,
        sample_drops_every,
        limits: ebpf_filter::Limits::default(),
    }
}

impl Table for ebpf_filter::Filter {
    fn replace_all(
        &mut self,
        policies: &mut dyn Iterator<Item = AppPolicy>,
    ) -> Result<(), FilterError> {
        Self::replace_all(self, policies)
    }

    fn apply(&mut self, policy: &AppPolicy) -> Result<(), FilterError> {
        Self::apply(self, policy)
    }

    fn remove(&mut self, app: &str) -> Result<(), FilterError> {
        Self::remove(self, app)
    }
}
