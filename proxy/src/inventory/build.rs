//! From an app's new version and the entry of the old one to the new entry.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use control::snapshot::{App, Instance, InstanceId, Service};
use telemetry::shared_counts::{Count, Key};
use tokio::time::Instant;

use super::live::AppLive;
use super::{Candidate, Entry, Inventory, Place};
use crate::balance::load::Load;
use crate::balance::queue::Queue;

// === impl Inventory ===

impl Inventory {
    /// The entry of `app`, with the live state of `previous`.
    pub(super) fn build(&self, app: Arc<App>, previous: Option<&Entry>) -> Arc<Entry> {
        let live = previous.map_or_else(|| self.live(&app), |previous| previous.live.clone());
        let lineage = lineage(&app, previous);
        let queues: Box<[_]> = lineage
            .iter()
            .map(|before| {
                let carried = previous.zip(*before).map(|(previous, old)| &previous.queues[old]);
                let new = || Arc::new(Queue::new(live.clone(), self.queues.clone()));
                carried.map_or_else(new, Arc::clone)
            })
            .collect();
        for (queue, service) in queues.iter().zip(&app.services) {
            queue.set_limits(&service.concurrency);
        }
        let before: HashMap<&InstanceId, &Arc<Candidate>> = previous
            .iter()
            .flat_map(|previous| &previous.candidates)
            .map(|candidate| (&candidate.instance.id, candidate))
            .collect();

        let now = Instant::now();
        let mut candidates: Vec<_> = app
            .instances
            .iter()
            .map(|instance| {
                let before = before.get(&instance.id).copied();
                let loads = self.loads(&app, instance, before, &lineage, &queues, now);
                self.candidate(instance, before, loads)
            })
            .collect();
        candidates.sort_by_key(|candidate| self.distance(candidate)); // stable: the file's order
        let ends = [0, 1, 2]
            .map(|group| candidates.partition_point(|other| self.distance(other) <= group));
        Arc::new(Entry { app, candidates: candidates.into(), live, ends, queues })
    }

    fn live(&self, app: &App) -> Arc<AppLive> {
        let (app, connections_max, waits_max) =
            (app.name.clone(), self.app_connections_max, self.queue_length_max);
        AppLive::new(app, connections_max, waits_max, self.counts.clone(), self.metrics.clone())
    }

    /// The one from before when nothing changed: a change of one instance of thousands then
    /// allocates one.
    fn candidate(
        &self,
        instance: &Instance,
        before: Option<&Arc<Candidate>>,
        loads: Box<[Arc<Load>]>,
    ) -> Arc<Candidate> {
        let same = before.filter(|before| {
            before.instance == *instance
                && before.loads.len() == loads.len()
                && before.loads.iter().zip(&loads).all(|(old, new)| Arc::ptr_eq(old, new))
        });
        let new = || {
            let place = self.place(instance);
            Arc::new(Candidate { instance: instance.clone(), place, loads })
        };
        same.map_or_else(new, Arc::clone)
    }

    /// By service.
    fn loads(
        &self,
        app: &App,
        instance: &Instance,
        before: Option<&Arc<Candidate>>,
        lineage: &[Option<usize>],
        queues: &[Arc<Queue>],
        now: Instant,
    ) -> Box<[Arc<Load>]> {
        let local = instance.node == self.own;
        let load = |(service, (old, queue)): (usize, (&Option<usize>, &Arc<Queue>))| {
            let carried = before.zip(*old).and_then(|(before, old)| before.load(old));
            // One that moved here or away is counted elsewhere from now on.
            let carried = carried.filter(|load| load.is_local() == local);
            let new = || {
                let count = local.then(|| self.count(app, instance, service));
                Arc::new(Load::new(queue.clone(), count, now))
            };
            let load = carried.map_or_else(new, Arc::clone);
            load.set_cordoned(instance.cordoned);
            load
        };
        lineage.iter().zip(queues).enumerate().map(load).collect()
    }

    /// What is counted against the hard limit of one instance of this node and service. Every
    /// generation of the process has to come to the same key, so it says what `lineage` goes by.
    fn count(&self, app: &App, instance: &Instance, service: usize) -> Count {
        let port = app.services[service].internal_port;
        let same = |other: &&Service| other.internal_port == port;
        let rank = app.services[..service].iter().filter(same).count();
        self.counts.count(Key::of(&[
            b"instance",
            app.name.as_str().as_bytes(),
            instance.id.as_str().as_bytes(),
            &port.to_le_bytes(),
            &(rank as u64).to_le_bytes(),
        ]))
    }

    fn place(&self, instance: &Instance) -> Place {
        if instance.node == self.own {
            return Place::Local;
        }
        self.nodes.get(&instance.node).map_or(Place::Unknown, |node| Place::Remote(node.clone()))
    }

    fn distance(&self, candidate: &Candidate) -> u8 {
        match &candidate.place {
            Place::Local => 0,
            Place::Remote(node) if node.region == self.region => 1,
            Place::Remote(_) => 2,
            Place::Unknown => 3,
        }
    }
}

/// For each service, which one of the old version it continues: the one with the same internal
/// port, in order where several share it.
fn lineage(app: &App, previous: Option<&Entry>) -> Vec<Option<usize>> {
    let mut continued = HashSet::new();
    app.services
        .iter()
        .map(|service| {
            let old = previous?.app.services.iter().enumerate().position(|(index, old)| {
                old.internal_port == service.internal_port && !continued.contains(&index)
            })?;
            continued.insert(old);
            Some(old)
        })
        .collect()
}

// === impl Entry ===

impl Entry {
    /// Marks what `next` does not continue, so that nothing new goes there on the word of this
    /// version, and wakes who waits for it.
    pub(super) fn retire(&self, next: Option<&Self>) {
        let kept: HashSet<*const Load> = next
            .iter()
            .flat_map(|next| &next.candidates)
            .flat_map(|candidate| &candidate.loads)
            .map(Arc::as_ptr)
            .collect();
        let loads = self.candidates.iter().flat_map(|candidate| &candidate.loads);
        loads.filter(|load| !kept.contains(&Arc::as_ptr(load))).for_each(|load| load.set_gone());
        self.queues.iter().for_each(|queue| queue.look_again());
    }
}
