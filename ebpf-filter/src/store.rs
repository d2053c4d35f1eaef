//! Where policies are kept: the kernel's maps, or a table in user space with the same meaning.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ebpf_filter_common::{
    AppIndex, Decision, Destination, Kind, Parsed, Policies, Policy, PortBlock, V4Prefix, V6Prefix,
    decide,
};
use ipnet::IpNet;

use crate::book::Book;
use crate::error::FilterError;
use crate::policy::AppPolicy;

/// The operations of which every change is made. Each is atomic for whoever judges packets
/// meanwhile: it sees an entry as it was or as it will be.
pub(crate) trait Store {
    fn put_ports(&mut self, blocks: &[(PortBlock, u64)]) -> Result<(), FilterError>;
    fn remove_ports(&mut self, blocks: &[PortBlock]) -> Result<(), FilterError>;
    fn policy(&self, net: &IpNet) -> Result<Option<Policy>, FilterError>;
    /// Each on its own, in this order; those before one that fails are done.
    fn put_policies(&mut self, policies: &[(IpNet, Policy)]) -> Result<(), FilterError>;
    /// Those that are not there are no error.
    fn remove_policies(&mut self, nets: &[IpNet]) -> Result<(), FilterError>;
    /// Everything there is.
    fn visit_policies(&self, each: &mut dyn FnMut(IpNet, Policy)) -> Result<(), FilterError>;
    fn visit_ports(&self, each: &mut dyn FnMut(PortBlock)) -> Result<(), FilterError>;
    /// Counts for this app from nought: its number was another's before.
    fn reset_counters(&mut self, app: AppIndex) -> Result<(), FilterError>;
}

/// Policies in user space, judged by the kernel's function.
///
/// For tests and for a node whose kernel takes no program. Costs about 64 bytes per exact address.
#[derive(Clone, Debug, Default)]
pub struct PolicyTable {
    exact_v4: HashMap<[u8; 4], Policy>,
    exact_v6: HashMap<[u8; 16], Policy>,
    /// By length, the longest last.
    prefixes_v4: BTreeMap<u8, HashMap<[u8; 4], Policy>>,
    prefixes_v6: BTreeMap<u8, HashMap<[u8; 16], Policy>>,
    ports: HashMap<PortBlock, u64>,
}

/// What the kernel would say of a connection to this address and TCP port.
///
/// The same function as in the kernel, on the same policies: whoever accepts connections where no
/// program is attached gets the same verdicts, only later.
pub fn decide_in_userspace(policies: &impl Policies, destination: IpAddr, port: u16) -> Decision {
    let destination = match destination.to_canonical() {
        IpAddr::V4(address) => Destination::V4(address.octets()),
        IpAddr::V6(address) => Destination::V6(address.octets()),
    };
    decide(&Parsed { destination, kind: Kind::Syn, port }, policies)
}

// === impl PolicyTable ===

impl PolicyTable {
    /// The policies of these apps inside these anycast prefixes.
    pub fn new(prefixes: &[IpNet], apps: impl Iterator<Item = AppPolicy>) -> Self {
        let mut table = Self::default();
        let filled = Book::new(prefixes).replace_all(&mut table, apps);
        filled.expect("a table in user space has no bound to meet");
        table
    }
}

impl Policies for PolicyTable {
    fn v4(&self, address: &[u8; 4]) -> Option<&Policy> {
        self.exact_v4.get(address).or_else(|| {
            let mut lengths = self.prefixes_v4.iter().rev();
            lengths.find_map(|(bits, of)| of.get(&masked(address, *bits)))
        })
    }

    fn v6(&self, address: &[u8; 16]) -> Option<&Policy> {
        self.exact_v6.get(address).or_else(|| {
            let mut lengths = self.prefixes_v6.iter().rev();
            lengths.find_map(|(bits, of)| of.get(&masked(address, *bits)))
        })
    }

    fn ports(&self, block: &PortBlock) -> Option<u64> {
        self.ports.get(block).copied()
    }
}

impl Store for PolicyTable {
    fn put_ports(&mut self, blocks: &[(PortBlock, u64)]) -> Result<(), FilterError> {
        self.ports.extend(blocks.iter().copied());
        Ok(())
    }

    fn remove_ports(&mut self, blocks: &[PortBlock]) -> Result<(), FilterError> {
        for block in blocks {
            self.ports.remove(block);
        }
        Ok(())
    }

    fn policy(&self, net: &IpNet) -> Result<Option<Policy>, FilterError> {
        Ok(match Key::of(net) {
            Key::ExactV4(key) => self.exact_v4.get(&key),
            Key::ExactV6(key) => self.exact_v6.get(&key),
            Key::PrefixV4(key) => {
                self.prefixes_v4.get(&net.prefix_len()).and_then(|of| of.get(&key.address))
            }
            Key::PrefixV6(key) => {
                self.prefixes_v6.get(&net.prefix_len()).and_then(|of| of.get(&key.address))
            }
        }
        .copied())
    }

    fn put_policies(&mut self, policies: &[(IpNet, Policy)]) -> Result<(), FilterError> {
        for (net, policy) in policies {
            match Key::of(net) {
                Key::ExactV4(key) => self.exact_v4.insert(key, *policy),
                Key::ExactV6(key) => self.exact_v6.insert(key, *policy),
                Key::PrefixV4(key) => {
                    let length = self.prefixes_v4.entry(net.prefix_len()).or_default();
                    length.insert(key.address, *policy)
                }
                Key::PrefixV6(key) => {
                    let length = self.prefixes_v6.entry(net.prefix_len()).or_default();
                    length.insert(key.address, *policy)
                }
            };
        }
        Ok(())
    }

    fn remove_policies(&mut self, nets: &[IpNet]) -> Result<(), FilterError> {
        for net in nets {
            let length = net.prefix_len();
            match Key::of(net) {
                Key::ExactV4(key) => self.exact_v4.remove(&key),
                Key::ExactV6(key) => self.exact_v6.remove(&key),
                Key::PrefixV4(key) => {
                    self.prefixes_v4.get_mut(&length).and_then(|of| of.remove(&key.address))
                }
                Key::PrefixV6(key) => {
                    self.prefixes_v6.get_mut(&length).and_then(|of| of.remove(&key.address))
                }
            };
        }
        Ok(())
    }

    fn visit_policies(&self, each: &mut dyn FnMut(IpNet, Policy)) -> Result<(), FilterError> {
        self.exact_v4.iter().for_each(|(key, policy)| each(net(*key, 32), *policy));
        self.exact_v6.iter().for_each(|(key, policy)| each(net(*key, 128), *policy));
        for (bits, of) in &self.prefixes_v4 {
            of.iter().for_each(|(key, policy)| each(net(*key, *bits), *policy));
        }
        for (bits, of) in &self.prefixes_v6 {
            of.iter().for_each(|(key, policy)| each(net(*key, *bits), *policy));
        }
        Ok(())
    }

    fn visit_ports(&self, each: &mut dyn FnMut(PortBlock)) -> Result<(), FilterError> {
        self.ports.keys().for_each(|block| each(*block));
        Ok(())
    }

    fn reset_counters(&mut self, _app: AppIndex) -> Result<(), FilterError> {
        Ok(())
    }
}

fn masked<const N: usize>(address: &[u8; N], bits: u8) -> [u8; N] {
    let mut masked = *address;
    for (at, byte) in masked.iter_mut().enumerate() {
        let keep = usize::from(bits).saturating_sub(at * 8).min(8);
        *byte &= u8::try_from(0xff00_u16 >> keep & 0xff).expect("it is masked");
    }
    masked
}

/// A network as a key of one of four maps.
pub(crate) enum Key {
    ExactV4([u8; 4]),
    ExactV6([u8; 16]),
    PrefixV4(V4Prefix),
    PrefixV6(V6Prefix),
}

// === impl Key ===

impl Key {
    pub(crate) fn of(net: &IpNet) -> Self {
        let bits = u32::from(net.prefix_len());
        match net {
            IpNet::V4(net) if bits == 32 => Self::ExactV4(net.addr().octets()),
            IpNet::V6(net) if bits == 128 => Self::ExactV6(net.addr().octets()),
            IpNet::V4(_) | IpNet::V6(_) => Self::prefix(net),
        }
    }

    /// A key of a trie, whatever the length.
    pub(crate) fn prefix(net: &IpNet) -> Self {
        let bits = u32::from(net.prefix_len());
        match net {
            IpNet::V4(net) => Self::PrefixV4(V4Prefix { bits, address: net.network().octets() }),
            IpNet::V6(net) => Self::PrefixV6(V6Prefix { bits, address: net.network().octets() }),
        }
    }

    pub(crate) fn is_v4(&self, key: &V4Prefix) -> bool {
        matches!(self, Self::PrefixV4(prefix) if prefix == key)
    }

    pub(crate) fn is_v6(&self, key: &V6Prefix) -> bool {
        matches!(self, Self::PrefixV6(prefix) if prefix == key)
    }
}

pub(crate) fn net(address: impl Into<IpAddr>, bits: u8) -> IpNet {
    IpNet::new(address.into(), bits).expect("the length is the address's or less")
}
