//! The numbers of one series: a row of cells for each shard, on cache lines of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use crossbeam_utils::CachePadded;

use super::Exemplar;
use super::exemplar::Slot;
use crate::ledger::scope::moved;
use crate::record::model::TraceId;
use crate::shard::{self, Shard};

/// Cells of one line: 128 bytes, so that the prefetcher's pairs of lines are not shared either.
const LINE: usize = 16;

pub(super) struct Block {
    shards: usize,
    width: usize,
    lines: Box<[CachePadded<[AtomicI64; LINE]>]>,
    /// One for each shard and bucket, or none.
    exemplars: Box<[Slot]>,
    /// Bytes of all blocks.
    bytes: Arc<AtomicU64>,
}

// === impl Block ===

impl Block {
    /// `width` cells per shard, `exemplars` of which remember a trace; booked in `bytes`.
    pub(super) fn new(
        shards: usize,
        width: usize,
        exemplars: usize,
        bytes: Arc<AtomicU64>,
    ) -> Self {
        let lines = shards * width.div_ceil(LINE);
        let block = Self {
            shards,
            width,
            lines: (0..lines).map(|_| CachePadded::default()).collect(),
            exemplars: (0..shards * exemplars).map(|_| Slot::default()).collect(),
            bytes,
        };
        block.bytes.fetch_add(block.size(), Relaxed);
        moved(block.size() as i64); // it has a line of its own
        block
    }

    fn size(&self) -> u64 {
        (size_of_val(self) + size_of_val(&*self.lines) + size_of_val(&*self.exemplars)) as u64
    }

    pub(super) fn add(&self, cell: usize, n: i64) {
        match shard::current(self.shards) {
            // The only writer: no locked instruction is needed.
            Shard::Own(shard) => {
                let cell = self.cell(shard, cell);
                cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
            }
            Shard::Common(shard) => {
                self.cell(shard, cell).fetch_add(n, Relaxed);
            }
        }
    }

    /// Remembers an observation that fell into `bucket`, unless somebody writes that slot just now.
    pub(super) fn remember(&self, bucket: usize, trace: TraceId, micros: u64, unix_ms: u64) {
        let shard = shard::current(self.shards);
        let Some(slot) = self.exemplars.get(self.exemplar(shard.index(), bucket)) else { return };
        match shard {
            Shard::Own(_) => slot.write(trace, micros, unix_ms),
            Shard::Common(_) => slot.try_write(trace, micros, unix_ms),
        }
    }

    /// The sum of a cell over all shards.
    ///
    /// Shards are read one after the other while they go on counting, so the sum is one that was
    /// true at some moment for each shard, not for all at once. A counter never reads lower than
    /// before, for no shard does; a gauge that rose on one shard and fell on another may be off by
    /// what moved during the reading.
    pub(super) fn sum(&self, cell: usize) -> i64 {
        let shards = (0..self.shards).map(|shard| self.cell(shard, cell).load(Relaxed));
        shards.fold(0, i64::wrapping_add)
    }

    /// The newest exemplar of each bucket that has one.
    pub(super) fn exemplars(&self) -> Vec<Exemplar> {
        let buckets = self.exemplars.len() / self.shards;
        let newest = |bucket| {
            let slots = (0..self.shards).map(|shard| &self.exemplars[self.exemplar(shard, bucket)]);
            slots.filter_map(|slot| slot.read(bucket)).max_by_key(|exemplar| exemplar.unix_ms)
        };
        (0..buckets).filter_map(newest).collect()
    }

    fn cell(&self, shard: usize, cell: usize) -> &AtomicI64 {
        &self.lines[shard * self.width.div_ceil(LINE) + cell / LINE][cell % LINE]
    }

    fn exemplar(&self, shard: usize, bucket: usize) -> usize {
        shard * (self.exemplars.len() / self.shards) + bucket
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.size(), Relaxed);
        moved(-(self.size() as i64));
    }
}
