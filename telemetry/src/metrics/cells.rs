//! One number, kept as one cell per shard on cache lines of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use crossbeam_utils::CachePadded;

use crate::shard::{self, Shard};

#[derive(Clone)]
pub(super) struct Cells(Arc<[CachePadded<AtomicI64>]>);

impl Cells {
    pub(super) fn new(shards: usize) -> Self {
        Self((0..shards).map(|_| CachePadded::default()).collect())
    }

    pub(super) fn add(&self, n: i64) {
        match shard::current(self.0.len()) {
            // The only writer: no locked instruction is needed.
            Shard::Own(index) => {
                let cell = &self.0[index];
                cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
            }
            Shard::Common(index) => {
                self.0[index].fetch_add(n, Relaxed);
            }
        }
    }

    pub(super) fn sum(&self) -> i64 {
        self.0.iter().map(|cell| cell.load(Relaxed)).fold(0, i64::wrapping_add)
    }
}
