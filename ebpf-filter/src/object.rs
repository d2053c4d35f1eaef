//! The built programs, and how they get into the kernel.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::maps::{Map, MapError};
use aya::programs::{CgroupSkb, ProgramError, SchedClassifier, SkLookup, Xdp};
use aya::{Ebpf, EbpfLoader};
use ebpf_filter_common::map;

use crate::config::Limits;
use crate::error::FilterError;
use crate::sys::{Plain, Table};

/// Built from `program/` by `make bpf`; `make bpf-check` compares the bytes.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../program/ferrule.bpf.o");

/// The programs of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Xdp,
    Tcx,
    Cgroup,
    Steer,
}

/// The object with its maps made, or found where they are pinned; no program is loaded yet.
pub(crate) struct Object(Ebpf);

// === impl Object ===

impl Object {
    /// With the maps that admission needs pinned in this directory.
    pub(crate) fn admission(pins: &Path, limits: &Limits) -> Result<Self, FilterError> {
        let sizes = [
            (map::EXACT_V4, limits.addresses_max),
            (map::EXACT_V6, limits.addresses_max),
            (map::PREFIX_V4, limits.prefixes_max),
            (map::PREFIX_V6, limits.prefixes_max),
            (map::PORTS, limits.port_blocks_max),
        ];
        let pinned = [map::SETTINGS, map::VERDICTS, map::APPS, map::TOKEN, map::DROPS];
        let pinned = sizes.into_iter().map(|(name, _)| name).chain(pinned);
        Self::load(pins, pinned, sizes.into_iter())
    }

    /// With the maps that steering needs pinned in this directory.
    pub(crate) fn steering(pins: &Path) -> Result<Self, FilterError> {
        let pinned = [map::STEER_V4, map::STEER_V6, map::SOCKETS];
        // The maps of admission are made with the object and dropped with it.
        let sizes = [(map::APPS, 1), (map::PORTS, 1), (map::DROPS, 4096)];
        Self::load(pins, pinned.into_iter(), sizes.into_iter())
    }

    fn load(
        pins: &Path,
        pinned: impl Iterator<Item = &'static str>,
        sizes: impl Iterator<Item = (&'static str, u32)>,
    ) -> Result<Self, FilterError> {
        let mut loader = EbpfLoader::new();
        // No program reads a structure of the kernel's own, so there is nothing to relocate.
        loader.btf(None);
        for name in pinned {
            loader.map_pin_path(name, pins.join(name));
        }
        for (name, entries) in sizes {
            loader.map_max_entries(name, entries);
        }
        let object = loader.load(OBJECT);
        object.map(Self).map_err(|error| refused("the filter's maps", error))
    }

    /// A hash or trie and its size. The map itself stays here: programs are loaded with the
    /// descriptors that maps had when the object was read.
    pub(crate) fn table<K: Plain, V: Plain>(
        &self,
        name: &'static str,
    ) -> Result<(Table<K, V>, u32), FilterError> {
        let map = self.0.map(name).expect("the object has this map");
        let (Map::HashMap(data) | Map::LpmTrie(data)) = map else {
            unreachable!("{name} is declared as a hash or a trie")
        };
        Table::of(data).map_err(|source| FilterError::Map {
            map: name,
            operation: "opened",
            source: source.into(),
        })
    }

    /// A map of a kind that aya has a type for, to keep for at least as long as programs are loaded.
    pub(crate) fn typed<T: TryFrom<Map, Error = MapError>>(
        &mut self,
        name: &'static str,
    ) -> Result<T, FilterError> {
        let failed = |error: MapError| FilterError::Map {
            map: name,
            operation: "opened",
            source: error.into(),
        };
        let map = self.0.take_map(name).expect("the object has this map, and it is taken once");
        T::try_from(map).map_err(failed)
    }

    /// Loads a program: the kernel's verifier reads it now.
    pub(crate) fn program(&mut self, program: Program) -> Result<OwnedFd, FilterError> {
        let name = program.as_str();
        let found = self.0.program_mut(name).expect("the object has this program");
        let loaded: Result<OwnedFd, ProgramError> = (|| {
            // An earlier place took it and could not be had.
            if let Ok(loaded) = found.fd() {
                return Ok(loaded.as_fd().try_clone_to_owned()?);
            }
            match program {
                Program::Xdp => <&mut Xdp>::try_from(&mut *found)?.load()?,
                Program::Tcx => <&mut SchedClassifier>::try_from(&mut *found)?.load()?,
                Program::Cgroup => <&mut CgroupSkb>::try_from(&mut *found)?.load()?,
                Program::Steer => <&mut SkLookup>::try_from(&mut *found)?.load()?,
            }
            found.fd()?.as_fd().try_clone_to_owned().map_err(ProgramError::IOError)
        })();
        loaded.map_err(|error| refused(name, error))
    }
}

fn refused(
    what: &'static str,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> FilterError {
    FilterError::Load { what, source: error.into() }
}

// === impl Program ===

impl Program {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Xdp => "admit_xdp",
            Self::Tcx => "admit_tcx",
            Self::Cgroup => "admit_cgroup",
            Self::Steer => "steer",
        }
    }
}
