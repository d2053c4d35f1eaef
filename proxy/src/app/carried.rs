//! What a process knows that is in no file, and that its successor would otherwise have to learn.

use std::sync::Arc;
use std::time::Duration;

use control::snapshot::AppName;
use tokio::time::Instant;

use crate::edge::Edge;
use crate::handoff::manifest::{Knowledge, Reached, Unhealthy};
use crate::inventory::{Candidate, Entry};
use crate::nodes::{Node, Word};

/// Everything that this process knows now.
pub(super) fn gather(edge: &Edge) -> Knowledge {
    let rules = edge.verbosity.list(Instant::now()).rules;
    let entries = edge.inventory.entries();
    let unhealthy = entries.iter().flat_map(unhealthy).collect();
    let nodes = edge.nodes.iter().filter(|node| node.is_reachable());
    let nodes = nodes.map(|node| Reached {
        id: node.id.to_string(),
        rtt_microseconds: node.measured_rtt().unwrap_or_default().as_micros() as u64,
        draining: node.is_draining(),
        connected: node.is_connected(),
    });
    Knowledge { rules, unhealthy, nodes: nodes.collect() }
}

/// Knows it here, as far as it is about what there is; returns the nodes that will be needed at once,
/// the nearest first.
pub(super) fn learn(edge: &Edge, knowledge: Knowledge) -> Vec<Arc<Node>> {
    let Knowledge { rules, unhealthy, nodes } = knowledge;
    let rules = edge.verbosity.carry_rules(rules, Instant::now());
    let unhealthy = unhealthy.iter().filter(|unhealthy| take_out(edge, unhealthy)).count();
    // A node that nothing is known of is not chosen; the probes say soon whether that is still so.
    let known = nodes.iter().filter_map(|reached| learn_node(edge, reached)).collect::<Vec<_>>();
    let nodes = known.len();
    if rules + unhealthy + nodes > 0 {
        tracing::info!(rules, unhealthy, nodes, "the predecessor's knowledge is taken over");
    }
    let needed = known.into_iter().filter(|(_, is_needed)| *is_needed);
    let mut needed: Vec<_> = needed.map(|(node, _)| node).collect();
    needed.sort_by_key(|node| node.rtt());
    needed
}

/// The node, if there still is one, and whether it will be needed at once.
fn learn_node(edge: &Edge, reached: &Reached) -> Option<(Arc<Node>, bool)> {
    let Reached { id, rtt_microseconds, draining, connected } = reached;
    let node = edge.nodes.iter().find(|node| node.id.to_string() == *id)?;
    if *rtt_microseconds > 0 {
        node.observe_rtt(Duration::from_micros(*rtt_microseconds));
    }
    node.set_reachable(true);
    if *draining {
        node.hear(Word::Draining); // until its own word comes
    }
    Some((node.clone(), *connected && !*draining))
}

fn unhealthy(entry: &Arc<Entry>) -> Vec<Unhealthy> {
    let of = |candidate: &Arc<Candidate>| {
        let services = entry.app.services.iter().enumerate();
        let out = services
            .filter(|(index, _)| candidate.load(*index).is_some_and(|load| !load.is_healthy()));
        let id = candidate.instance.id.clone();
        out.map(move |(_, service)| Unhealthy {
            app: entry.app.name.to_string(),
            instance: id.to_string(),
            internal_port: service.internal_port,
        })
        .collect::<Vec<_>>()
    };
    entry.candidates.iter().flat_map(of).collect()
}

/// Only what is checked here: nobody else would ever take it in again.
fn take_out(edge: &Edge, unhealthy: &Unhealthy) -> bool {
    let Unhealthy { app, instance, internal_port } = unhealthy;
    let Some(entry) = edge.inventory.by_name(app) else { return false };
    let services = entry.app.services.iter();
    let checked = |service: &control::snapshot::Service| {
        service.internal_port == *internal_port && !service.checks.is_empty()
    };
    let Some(index) = services.clone().position(checked) else { return false };
    let local = entry.field().local.iter();
    let candidate = local.clone().find(|local| local.instance.id.to_string() == *instance);
    let Some(load) = candidate.and_then(|candidate| candidate.load(index)) else { return false };
    let changed = load.set_healthy(false);
    if changed {
        edge.inventory.health_changed(&AppName::new(app.as_str()));
    }
    changed
}
