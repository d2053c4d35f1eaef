//! The filter's maps as this process holds them: who may write them, and what the programs wrote.

mod store;

use std::path::PathBuf;

use aya::maps::{Array, MapData, MapError, PerCpuArray, RingBuf};
use ebpf_filter_common::{AppCounters, NOBODY, Settings, Verdict, counter_slot, map};

use crate::book::Book;
use crate::config::Config;
use crate::counters::{Counted, Counters, Drop, Recent, Switches};
use crate::error::FilterError;
use crate::object::Object;
use store::{Bounded, KernelStore};

/// The maps, what is in them, and what came out of them.
pub(crate) struct Kernel {
    pub(crate) book: Book,
    pub(crate) store: KernelStore,
    settings: Array<MapData, Switches>,
    verdicts: PerCpuArray<MapData, u64>,
    reports: RingBuf<MapData>,
    recent: Recent,
    /// Our number as a writer; `None` until everything was replaced.
    writer: Option<u32>,
}

// === impl Kernel ===

impl Kernel {
    pub(crate) fn new(object: &mut Object, config: &Config) -> Result<Self, FilterError> {
        let store = KernelStore {
            exact_v4: Bounded::open(map::EXACT_V4, object)?,
            exact_v6: Bounded::open(map::EXACT_V6, object)?,
            prefix_v4: Bounded::open(map::PREFIX_V4, object)?,
            prefix_v6: Bounded::open(map::PREFIX_V6, object)?,
            ports: Bounded::open(map::PORTS, object)?,
            apps: object.typed(map::APPS)?,
            cpus: aya::util::nr_cpus().map_err(|(file, source)| {
                let path = PathBuf::from(file);
                FilterError::Pins { path, reason: "cannot be read", source }
            })?,
        };
        let mut settings: Array<MapData, Switches> = object.typed(map::SETTINGS)?;
        let before = settings.get(&0, 0).map_err(|error| failed(map::SETTINGS, "read", error))?;
        let now = Settings {
            dry_run: u32::from(config.dry_run),
            sample_drops_every: config.sample_drops_every,
            reports_per_second: config.limits.reports_per_second,
            writer: before.0.writer,
        };
        let set = settings.set(0, Switches(now), 0);
        set.map_err(|error| failed(map::SETTINGS, "written", error))?;
        Ok(Self {
            book: Book::new(&config.prefixes),
            store,
            settings,
            verdicts: object.typed(map::VERDICTS)?,
            reports: object.typed(map::DROPS)?,
            recent: Recent::default(),
            writer: None,
        })
    }

    fn settings(&self) -> Result<Settings, FilterError> {
        let settings = self.settings.get(&0, 0);
        settings.map(|read| read.0).map_err(|error| failed(map::SETTINGS, "read", error))
    }

    pub(crate) fn take_over(&mut self) -> Result<(), FilterError> {
        let mut settings = self.settings()?;
        if self.writer != Some(settings.writer) {
            settings.writer = settings.writer.wrapping_add(1);
            let set = self.settings.set(0, Switches(settings), 0);
            set.map_err(|error| failed(map::SETTINGS, "written", error))?;
            self.writer = Some(settings.writer);
        }
        Ok(())
    }

    pub(crate) fn still_writer(&self) -> Result<(), FilterError> {
        let writer = self.settings()?.writer;
        if self.writer == Some(writer) { Ok(()) } else { Err(FilterError::Superseded) }
    }

    pub(crate) fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        for verdict in Verdict::ALL {
            let cpus = self.verdicts.get(&u32::from(verdict as u8), 0);
            let Some(cpus) = read(map::VERDICTS, cpus) else { continue };
            counters.verdicts.push((verdict, cpus.iter().sum()));
        }
        let other = map::APP_COUNTERS - 1;
        let own = self.book.names().take_while(|(app, _)| counter_slot(*app) != other);
        let shown = [(NOBODY, "")].into_iter().chain(own).chain([(other, Counters::OTHER)]);
        for (app, name) in shown {
            let Some(cpus) = read(map::APPS, self.store.apps.get(&app, 0)) else { continue };
            let mut sum = AppCounters::default();
            for Counted(cpu) in cpus.iter() {
                sum.allowed += cpu.allowed;
                sum.dropped += cpu.dropped;
            }
            counters.apps.push((name.to_owned(), sum));
        }
        counters
    }

    pub(crate) fn drops(&mut self) -> Vec<Drop> {
        // The ring has one reader: whoever took over last.
        if self.still_writer().is_ok() {
            while let Some(report) = self.reports.next() {
                let name = |app| self.book.name(app).map(str::to_owned);
                if let Some(drop) = Drop::read(&report, name) {
                    self.recent.push(drop);
                }
            }
        }
        self.recent.list()
    }
}

fn read<T>(map: &'static str, value: Result<T, MapError>) -> Option<T> {
    value
        .inspect_err(|error| tracing::warn!(map, %error, "a map of the filter cannot be read"))
        .ok()
}

fn failed(map: &'static str, operation: &'static str, source: MapError) -> FilterError {
    FilterError::Map { map, operation, source: source.into() }
}
