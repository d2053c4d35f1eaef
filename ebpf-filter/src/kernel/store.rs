//! The kernel's maps of addresses and ports, as a [`Store`].

use std::cell::Cell;
use std::io;

use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use ebpf_filter_common::{AppIndex, Policy, PortBlock, V4Prefix, V6Prefix, map};
use ipnet::IpNet;

use crate::counters::Counted;
use crate::error::FilterError;
use crate::object::Object;
use crate::store::{Key, Store, net};
use crate::sys::{Plain, Table};

/// The maps of a filter whose programs are loaded.
pub(crate) struct KernelStore {
    pub(crate) exact_v4: Bounded<[u8; 4], Policy>,
    pub(crate) exact_v6: Bounded<[u8; 16], Policy>,
    pub(crate) prefix_v4: Bounded<V4Prefix, Policy>,
    pub(crate) prefix_v6: Bounded<V6Prefix, Policy>,
    pub(crate) ports: Bounded<PortBlock, u64>,
    pub(crate) apps: PerCpuArray<MapData, Counted>,
    /// Possible ones: as many values has an entry of `apps`.
    pub(crate) cpus: usize,
}

/// Entries by map.
struct Sorted<V> {
    exact_v4: Vec<([u8; 4], V)>,
    exact_v6: Vec<([u8; 16], V)>,
    prefix_v4: Vec<(V4Prefix, V)>,
    prefix_v6: Vec<(V6Prefix, V)>,
}

/// A table, its name for errors, and how full it is.
pub(crate) struct Bounded<K, V> {
    table: Table<K, V>,
    name: &'static str,
    capacity: u32,
    /// Counted here, because the kernel does not tell; `None` after a batch, until somebody asks.
    entries: Cell<Option<usize>>,
}

/// From so many entries on, a batch and a count afterwards cost less than a question before each.
const BATCH_FROM: usize = 256;

// === impl Bounded ===

impl<K: Plain, V: Plain> Bounded<K, V> {
    pub(crate) fn open(name: &'static str, object: &Object) -> Result<Self, FilterError> {
        let (table, capacity) = object.table(name)?;
        Ok(Self { table, name, capacity, entries: Cell::new(None) })
    }

    /// Name, entries, capacity.
    fn occupancy(&self) -> (&'static str, usize, usize) {
        if self.entries.get().is_none()
            && let Err(error) = self.visit(|_, _| {})
        {
            tracing::warn!(%error, "the filter's entries cannot be counted");
        }
        (self.name, self.entries.get().unwrap_or_default(), self.capacity as usize)
    }

    fn visit(&self, mut each: impl FnMut(K, V)) -> Result<(), FilterError> {
        let mut entries = 0;
        let visited = self.table.visit(|keys, values| {
            entries += keys.len();
            keys.iter().zip(values).for_each(|(key, value)| each(*key, *value));
        });
        visited.map_err(|source| self.failed("read", source))?;
        self.entries.set(Some(entries));
        Ok(())
    }

    fn get(&self, key: &K) -> Result<Option<V>, FilterError> {
        self.table.get(key).map_err(|source| self.failed("read", source))
    }

    fn put(&self, entries: &[(K, V)]) -> Result<(), FilterError> {
        let failed = |source| self.failed("written", source);
        if entries.len() < BATCH_FROM {
            for (key, value) in entries {
                let new = self.get(key)?.is_none();
                self.table.put(key, value).map_err(failed)?;
                self.entries.set(self.entries.get().map(|entries| entries + usize::from(new)));
            }
            return Ok(());
        }
        self.entries.set(None);
        let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
        self.table.put_all(&keys, &values).map_err(failed)
    }

    fn remove(&self, keys: &[K]) -> Result<(), FilterError> {
        let failed = |source| self.failed("written", source);
        if keys.len() < BATCH_FROM {
            for key in keys {
                let gone = self.table.remove(key).map_err(failed)?;
                self.entries.set(self.entries.get().map(|entries| entries - usize::from(gone)));
            }
            return Ok(());
        }
        self.entries.set(None);
        self.table.remove_all(keys).map_err(failed)
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> FilterError {
        match source.raw_os_error() {
            // A hash says the first, a trie the second.
            Some(libc::E2BIG | libc::ENOSPC) if operation == "written" => {
                FilterError::Full { map: self.name, capacity: self.capacity }
            }
            _ => FilterError::Map { map: self.name, operation, source: source.into() },
        }
    }
}

// === impl KernelStore ===

impl KernelStore {
    /// Map, entries, capacity.
    pub(crate) fn occupancy(&self) -> Vec<(&'static str, usize, usize)> {
        vec![
            self.exact_v4.occupancy(),
            self.exact_v6.occupancy(),
            self.prefix_v4.occupancy(),
            self.prefix_v6.occupancy(),
            self.ports.occupancy(),
        ]
    }
}

impl Store for KernelStore {
    fn put_ports(&mut self, blocks: &[(PortBlock, u64)]) -> Result<(), FilterError> {
        self.ports.put(blocks)
    }

    fn remove_ports(&mut self, blocks: &[PortBlock]) -> Result<(), FilterError> {
        self.ports.remove(blocks)
    }

    fn policy(&self, net: &IpNet) -> Result<Option<Policy>, FilterError> {
        match Key::of(net) {
            Key::ExactV4(key) => self.exact_v4.get(&key),
            Key::ExactV6(key) => self.exact_v6.get(&key),
            Key::PrefixV4(key) => self.prefix_v4.get(&key),
            Key::PrefixV6(key) => self.prefix_v6.get(&key),
        }
    }

    fn put_policies(&mut self, policies: &[(IpNet, Policy)]) -> Result<(), FilterError> {
        let sorted = Sorted::of(policies.iter().map(|(net, policy)| (net, *policy)));
        self.exact_v4.put(&sorted.exact_v4)?;
        self.exact_v6.put(&sorted.exact_v6)?;
        self.prefix_v4.put(&sorted.prefix_v4)?;
        self.prefix_v6.put(&sorted.prefix_v6)
    }

    fn remove_policies(&mut self, nets: &[IpNet]) -> Result<(), FilterError> {
        fn keys<K: Copy>(entries: &[(K, ())]) -> Vec<K> {
            entries.iter().map(|(key, ())| *key).collect()
        }
        let sorted = Sorted::of(nets.iter().map(|net| (net, ())));
        self.exact_v4.remove(&keys(&sorted.exact_v4))?;
        self.exact_v6.remove(&keys(&sorted.exact_v6))?;
        self.prefix_v4.remove(&keys(&sorted.prefix_v4))?;
        self.prefix_v6.remove(&keys(&sorted.prefix_v6))
    }

    fn visit_policies(&self, each: &mut dyn FnMut(IpNet, Policy)) -> Result<(), FilterError> {
        self.exact_v4.visit(|key, policy| each(net(key, 32), policy))?;
        self.exact_v6.visit(|key, policy| each(net(key, 128), policy))?;
        // The kernel gives back the length that it was given, which was a network's.
        self.prefix_v4.visit(|key, policy| each(net(key.address, length(key.bits)), policy))?;
        self.prefix_v6.visit(|key, policy| each(net(key.address, length(key.bits)), policy))
    }

    fn visit_ports(&self, each: &mut dyn FnMut(PortBlock)) -> Result<(), FilterError> {
        self.ports.visit(|block, _| each(block))
    }

    fn reset_counters(&mut self, app: AppIndex) -> Result<(), FilterError> {
        // The last one is shared by all that have none of their own.
        if app >= map::APP_COUNTERS - 1 {
            return Ok(());
        }
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| FilterError::Map {
            map: map::APPS,
            operation: "written",
            source,
        };
        let zero = PerCpuValues::try_from(vec![Counted::default(); self.cpus]);
        let zero = zero.map_err(|error| failed(error.into()))?;
        self.apps.set(app, zero, 0).map_err(|error| failed(error.into()))
    }
}

// === impl Sorted ===

impl<V> Sorted<V> {
    fn of<'a>(entries: impl Iterator<Item = (&'a IpNet, V)>) -> Self {
        let mut sorted =
            Self { exact_v4: vec![], exact_v6: vec![], prefix_v4: vec![], prefix_v6: vec![] };
        for (net, value) in entries {
            match Key::of(net) {
                Key::ExactV4(key) => sorted.exact_v4.push((key, value)),
                Key::ExactV6(key) => sorted.exact_v6.push((key, value)),
                Key::PrefixV4(key) => sorted.prefix_v4.push((key, value)),
                Key::PrefixV6(key) => sorted.prefix_v6.push((key, value)),
            }
        }
        sorted
    }
}

fn length(bits: u32) -> u8 {
    u8::try_from(bits).expect("at most 128")
}
