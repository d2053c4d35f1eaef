//! All state of the programs. The loader sets the sizes of those that hold addresses and ports.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf, SockMap};
use ebpf_filter_common::map::{APP_COUNTERS, DROPS_BYTES};
use ebpf_filter_common::{AppCounters, Policy, PortBlock, Settings, Slot, Steered, Token, Verdict};

/// Without preallocation a table for a million addresses costs its buckets until it is used.
#[map]
pub static EXACT_V4: HashMap<[u8; 4], Policy> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
#[map]
pub static EXACT_V6: HashMap<[u8; 16], Policy> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
#[map]
pub static PREFIX_V4: LpmTrie<[u8; 4], Policy> = LpmTrie::with_max_entries(1024, 0);
#[map]
pub static PREFIX_V6: LpmTrie<[u8; 16], Policy> = LpmTrie::with_max_entries(1024, 0);
#[map]
pub static PORTS: HashMap<PortBlock, u64> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);

#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
pub static VERDICTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Verdict::ALL.len() as u32, 0);
#[map]
pub static APPS: PerCpuArray<AppCounters> = PerCpuArray::with_max_entries(APP_COUNTERS, 0);
#[map]
pub static TOKEN: Array<Token> = Array::with_max_entries(1, 0);
#[map]
pub static DROPS: RingBuf = RingBuf::with_byte_size(DROPS_BYTES, 0);

#[map]
pub static STEER_V4: LpmTrie<[u8; 4], Steered> = LpmTrie::with_max_entries(1024, 0);
#[map]
pub static STEER_V6: LpmTrie<[u8; 16], Steered> = LpmTrie::with_max_entries(1024, 0);
#[map]
pub static SOCKETS: SockMap = SockMap::with_max_entries(Slot::COUNT, 0);
