//! Which shard of every sharded value the current thread writes.
//!
//! A worker says its index once, when its thread starts; every other thread shares the last shard.
//! So a counter on the request path is a plain load and store of a cache line nobody else writes.

use std::cell::Cell;

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Claims shard `index` for this thread; called once by each worker.
pub fn claim(index: usize) {
    CURRENT.set(index);
}

/// The shard of this thread among `shards`, of which the last belongs to everyone else.
pub(crate) fn current(shards: usize) -> Shard {
    let index = CURRENT.get();
    if index < shards - 1 { Shard::Own(index) } else { Shard::Common(shards - 1) }
}

/// Whether a shard has one writer or many.
#[derive(Clone, Copy)]
pub(crate) enum Shard {
    Own(usize),
    Common(usize),
}

impl Shard {
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Own(index) | Self::Common(index) => index,
        }
    }
}
