//! What is read once a second, from a thread of its own because some of it may wait: the allocator's
//! totals take its locks, and the kernel sums `memory.stat` up over all cores.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use super::meter::Meter;
use super::readings::Readings;
use crate::black_box::{BlackBox, Second};
use crate::cgroup::Cgroup;
use crate::clock;
use crate::memory::{self, Memory};
use crate::process::Counts;

pub(super) struct Seconds {
    readings: Arc<Readings>,
    meter: Arc<Meter>,
    black_box: Option<Arc<BlackBox>>,
}

const PAUSE: Duration = Duration::from_secs(1);

impl Seconds {
    pub(super) fn new(
        readings: Arc<Readings>,
        meter: Arc<Meter>,
        black_box: Option<Arc<BlackBox>>,
    ) -> Self {
        Self { readings, meter, black_box }
    }

    pub(super) fn run(&self, stop: &AtomicBool) {
        while !stop.load(Relaxed) {
            self.look(clock::now());
            thread::park_timeout(PAUSE);
        }
    }

    pub(super) fn look(&self, now: u64) {
        self.meter.refresh();
        let Some(black_box) = &self.black_box else { return };
        let cgroup = self.meter.cgroup();
        let kills = cgroup.and_then(Cgroup::events).map(|events| events.oom_kill);
        black_box.kills(kills, self.meter.process().oom_kills_of_machine());
        black_box.limit(self.meter.limit(), self.meter.source());
        let Memory { allocated, active, resident, mapped, retained, metadata } = memory::read();
        let counts = self.meter.process().counts();
        let Counts { descriptors, threads, sockets, time_wait, tcp_bytes } = counts;
        let traffic = self.readings.traffic();
        black_box.second(&Second {
            time: now,
            allocated: allocated as u64,
            active: active as u64,
            allocator_resident: resident as u64,
            mapped: mapped as u64,
            retained: retained as u64,
            metadata: metadata as u64,
            resident: self.readings.resident(),
            used: self.readings.used(),
            limit: self.readings.limit(),
            cgroup_usage: cgroup.and_then(Cgroup::usage).unwrap_or(0),
            cgroup_cache: self.meter.cache(),
            cgroup_peak: cgroup.and_then(Cgroup::peak).unwrap_or(0),
            descriptors,
            threads,
            sockets,
            time_wait,
            tcp_bytes,
            connections: traffic.connections,
            in_flight: traffic.requests,
            pressure: self.readings.pressure_thousandths(),
        });
    }
}
