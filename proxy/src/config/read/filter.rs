//! `[filter]`: where the kernel drops what no app asked for.

use control::document::Table;

use super::values;
use crate::config::{Filter, FilterMode, Listen};

/// A program is attached to each, and each attachment has a pin.
const INTERFACES_MAX: usize = 16;

/// Reads the section of a node that listens as `listen` says.
pub(super) fn read(mut section: Table<'_>, listen: &Listen) -> Filter {
    let Filter { mode, interfaces, cgroup, pins, dry_run, sample_drops_every } = Filter::default();
    let modes = [
        ("auto", FilterMode::Auto),
        ("xdp", FilterMode::Xdp),
        ("xdp-generic", FilterMode::XdpGeneric),
        ("tcx", FilterMode::Tcx),
        ("cgroup", FilterMode::Cgroup),
        ("off", FilterMode::Off),
    ];
    let mode = section.choice("mode", &modes).unwrap_or(mode);
    let interfaces = self::interfaces(&mut section).unwrap_or(interfaces);
    match mode {
        FilterMode::Auto | FilterMode::Off => {}
        _ if listen.prefixes.is_empty() => {
            section.error("mode", "needs listen.prefixes: outside them nothing is filtered");
        }
        FilterMode::Xdp | FilterMode::XdpGeneric | FilterMode::Tcx if interfaces.is_empty() => {
            section.error("mode", "needs interfaces to attach to");
        }
        _ => {}
    }
    let cgroup = section.path("cgroup").or(cgroup);
    let pins = section.path("pins").unwrap_or(pins);
    let dry_run = section.bool("dry_run").unwrap_or(dry_run);
    let sample_drops_every =
        section.integer("sample_drops_every", 0..=u32::MAX).unwrap_or(sample_drops_every);
    section.finish();
    Filter { mode, interfaces, cgroup, pins, dry_run, sample_drops_every }
}

fn interfaces(section: &mut Table<'_>) -> Option<Vec<String>> {
    let items = section.list("interfaces")?;
    if items.len() > INTERFACES_MAX {
        section.error("interfaces", format!("has more than {INTERFACES_MAX} names"));
    }
    let mut interfaces = Vec::new();
    for item in items {
        let Some(interface) = item.parsed(values::interface) else { continue };
        if interfaces.contains(&interface) {
            item.error("is listed twice");
        }
        interfaces.push(interface);
    }
    Some(interfaces)
}
