//! A map that is read by every worker without a lock and changed by one thread.
//!
//! 1,024 shards, each an immutable list sorted by hash behind an `ArcSwap`: a lookup is one hash,
//! one load and a binary search; a change copies one shard (a thousand rows at a million apps).
//! An empty table costs 8 bytes per shard.

use std::borrow::Borrow;
use std::hash::{BuildHasher as _, Hash};
use std::sync::Arc;

use arc_swap::ArcSwap;
use foldhash::quality::RandomState;

use super::Entry;

pub(super) struct Table<K> {
    shards: Box<[ArcSwap<Vec<Row<K>>>]>,
    hasher: RandomState,
}

/// Where the newest version of one app is.
pub(super) struct Slot {
    pub(super) entry: ArcSwap<Entry>,
}

#[derive(Clone)]
struct Row<K> {
    hash: u64,
    key: K,
    slot: Arc<Slot>,
}

/// Changes to be made together. What is dropped is dropped before anything is put.
pub(super) struct Edits<K> {
    puts: Vec<(K, Arc<Slot>)>,
    /// Only if it still leads to this slot.
    drops: Vec<(K, Arc<Slot>)>,
}

const SHARDS: usize = 1 << SHARD_BITS;
const SHARD_BITS: u32 = 10;

// === impl Table ===

impl<K: Hash + Eq + Clone> Table<K> {
    pub(super) fn new() -> Self {
        let empty = Arc::default();
        let shards = (0..SHARDS).map(|_| ArcSwap::new(Arc::clone(&empty))).collect();
        Self { shards, hasher: RandomState::default() }
    }

    pub(super) fn get<Q>(&self, key: &Q) -> Option<Arc<Entry>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let rows = self.shards[shard(hash)].load();
        Some(find(&rows, hash, key)?.slot.entry.load_full())
    }

    pub(super) fn slot<Q>(&self, key: &Q) -> Option<Arc<Slot>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let rows = self.shards[shard(hash)].load();
        Some(find(&rows, hash, key)?.slot.clone())
    }

    pub(super) fn all(&self) -> Vec<Arc<Entry>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.load().iter().map(|row| row.slot.entry.load_full()));
        }
        all
    }

    /// Makes the changes; requests see each shard before or after, never in between.
    pub(super) fn edit(&self, edits: Edits<K>) {
        let row = |(key, slot): (K, Arc<Slot>)| Row { hash: self.hasher.hash_one(&key), key, slot };
        let mut puts: Vec<_> = edits.puts.into_iter().map(row).collect();
        let mut drops: Vec<_> = edits.drops.into_iter().map(row).collect();
        // Stable, so that of two claims to one key the later stays the later.
        puts.sort_by_key(|row| row.hash);
        drops.sort_by_key(|row| row.hash);
        let (mut puts, mut drops) = (&puts[..], &drops[..]);
        while let Some(first) =
            [puts, drops].iter().filter_map(|rows| rows.first()).map(Row::shard).min()
        {
            let (put, drop);
            (put, puts) = puts.split_at(puts.partition_point(|row| row.shard() == first));
            (drop, drops) = drops.split_at(drops.partition_point(|row| row.shard() == first));
            let shard = &self.shards[first];
            shard.store(Arc::new(edited(&shard.load(), put, drop)));
        }
    }
}

fn find<'a, K, Q>(rows: &'a [Row<K>], hash: u64, key: &Q) -> Option<&'a Row<K>>
where
    K: Borrow<Q>,
    Q: Eq + ?Sized,
{
    let start = rows.partition_point(|row| row.hash < hash);
    let mut same_hash = rows[start..].iter().take_while(|row| row.hash == hash);
    same_hash.find(|row| row.key.borrow() == key)
}

fn edited<K: Eq + Clone>(rows: &[Row<K>], puts: &[Row<K>], drops: &[Row<K>]) -> Vec<Row<K>> {
    let is_dropped = |row: &Row<K>| {
        find(drops, row.hash, &row.key).is_some_and(|drop| Arc::ptr_eq(&drop.slot, &row.slot))
    };
    let mut new = Vec::with_capacity(rows.len() + puts.len());
    new.extend(rows.iter().filter(|row| !is_dropped(row)).cloned());
    new.extend_from_slice(puts);
    new.sort_by_key(|row| row.hash);
    new.dedup_by(|later, earlier| {
        let same = later.hash == earlier.hash && later.key == earlier.key;
        if same {
            std::mem::swap(later, earlier);
        }
        same
    });
    new.shrink_to_fit();
    new
}

// === impl Row ===

impl<K> Row<K> {
    fn shard(&self) -> usize {
        shard(self.hash)
    }
}

fn shard(hash: u64) -> usize {
    (hash >> (u64::BITS - SHARD_BITS)) as usize
}

// === impl Edits ===

impl<K> Edits<K> {
    pub(super) fn put(&mut self, key: K, slot: Arc<Slot>) {
        self.puts.push((key, slot));
    }

    pub(super) fn drop(&mut self, key: K, slot: Arc<Slot>) {
        self.drops.push((key, slot));
    }
}

impl<K> Default for Edits<K> {
    fn default() -> Self {
        Self { puts: Vec::new(), drops: Vec::new() }
    }
}
