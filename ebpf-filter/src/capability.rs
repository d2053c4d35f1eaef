//! What the process must be allowed to do. Asked before the kernel is, because its answer is EPERM
//! for each of them alike.

use rustix::thread::{CapabilitySet, capabilities};

use crate::error::FilterError;

/// BPF to load, NET_ADMIN to attach and for the map of sockets, PERFMON because the verifier lets
/// nobody else compute with pointers into packets.
const NEEDED: [(CapabilitySet, &str); 3] = [
    (CapabilitySet::BPF, "CAP_BPF"),
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    (CapabilitySet::PERFMON, "CAP_PERFMON"),
];

/// Whether the calling thread has all of them.
pub(crate) fn check(what: &'static str) -> Result<(), FilterError> {
    let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let missing = missing(effective);
    if missing.is_empty() { Ok(()) } else { Err(FilterError::Capability { what, missing }) }
}

fn missing(effective: CapabilitySet) -> String {
    let missing = NEEDED.iter().filter(|(needed, _)| !effective.contains(*needed));
    missing.map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(missing(CapabilitySet::empty()), "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON");
        assert_eq!(missing(CapabilitySet::BPF | CapabilitySet::PERFMON), "CAP_NET_ADMIN");
        assert_eq!(missing(CapabilitySet::all()), "");
    }
}
