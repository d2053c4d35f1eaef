//! Which instance takes a request: chooses one, holds a permit there, waits at the hard limit, and
//! learns from what came of it. Sending is left to `upstream`.

pub mod load;
pub mod permit;
pub mod pick;
pub mod queue;
pub mod node;
pub mod rng;

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use control::snapshot::{ConcurrencyKind, InstanceId};
use tokio::time::{Instant, sleep_until};

use crate::error::{Code, Failure};
use crate::inventory::{Candidate, Entry};
use load::{Level, Load, Millis, Streak};
use permit::Permit;
use pick::{Choice, Circumstances, Field};
use queue::Queue;
use rng::Rng;

/// An instance with the permit to use it, for one attempt.
///
/// Say what came of the attempt before the permit is taken out; an assignment that is dropped
/// without a word counts as abandoned: the instance is known to be no faster than that.
pub struct Assignment {
    pub candidate: Arc<Candidate>,
    /// `None` once taken out.
    permit: Option<Permit>,
    began: Instant,
    reported: Cell<bool>,
}

/// Instances that a request has been assigned to before. At most `limits.attempts_max`, because
/// the caller stops there.
#[derive(Clone, Default)]
pub struct Tried {
    loads: Vec<Arc<Load>>,
}

/// On whose behalf.
#[derive(Clone, Copy)]
pub enum Origin<'a> {
    /// A client of this node.
    Client,
    /// Another node, which has chosen and will choose again: only an instance of this node, the
    /// named one if one is named, now or not at all.
    Peer(Option<&'a InstanceId>),
}

enum Woken {
    Granted(Option<Permit>),
    Changed,
    Time,
}

/// Races for the last place lost in a row before it counts as taken.
const RACES_MAX: usize = 4;

/// Chooses an instance of `service` and holds a permit there; waits up to `patience` when all are
/// at their hard limit.
///
/// # Errors
/// For a client: PR01 no healthy instance, PR03 every candidate tried, PR04 the queue is full or
/// was too slow. For a peer: PR02 not here, PL01 and PL02 at the hard limit.
///
/// # Cancel safety
/// Dropping it gives back the place in the queue, and the permit if one was on its way.
pub async fn assign(
    entry: &Arc<Entry>,
    service: usize,
    tried: &Tried,
    origin: Origin<'_>,
    patience: Duration,
    rng: &Rng,
) -> Result<Assignment, Failure> {
    if let Origin::Peer(instance) = origin {
        return take_local(entry, service, instance, rng);
    }
    let queue = entry.queue(service).ok_or_else(|| Failure::new(Code::PR01))?;
    let now = Instant::now();
    // Whoever waits was first.
    if queue.waiting() == 0
        && let Some((candidate, permit)) = take(entry.field(), service, tried, now, rng)?
    {
        return Ok(Assignment::new(candidate.clone(), permit, now));
    }
    // Boxed: few requests wait, and all would carry the space for it.
    Box::pin(wait(queue, tried, patience, rng)).await
}

/// Waits in `queue` until somebody gives a permit or a look finds one.
async fn wait(
    queue: &Arc<Queue>,
    tried: &Tried,
    patience: Duration,
    rng: &Rng,
) -> Result<Assignment, Failure> {
    let mut place = queue.enter(tried)?;
    let deadline = Instant::now() + patience;
    let mut look = true;
    loop {
        // Before looking, so that no change falls between the look and the wait.
        let changed = queue.changed();
        if look {
            look_for_all(queue, tried, rng).inspect_err(|_| queue.look_again())?;
        }
        let next_look = deadline.min(Instant::now() + place.look_in());
        let woken = tokio::select! {
            biased;
            granted = &mut place.grant => Woken::Granted(granted.ok()),
            () = changed => Woken::Changed,
            () = sleep_until(next_look) => Woken::Time,
        };
        look = !matches!(woken, Woken::Time) || place.is_first();
        if let Woken::Granted(permit) = woken {
            if let Some(assignment) = permit.and_then(|permit| Assignment::of(queue, permit)) {
                return Ok(assignment);
            }
            // The instance went while the permit was on its way.
            place = queue.enter(tried)?;
        } else if Instant::now() >= deadline {
            return Err(Failure::new(Code::PR04));
        }
    }
}

/// Takes permits that are free and gives them to who waits, in their order, which may or may not
/// be the one who looks. Sees the newest version of the app.
///
/// # Errors
/// PR01 or PR03 when there is nothing worth waiting for.
fn look_for_all(queue: &Arc<Queue>, tried: &Tried, rng: &Rng) -> Result<(), Failure> {
    let gone = || Failure::new(Code::PR01);
    let entry = queue.live().newest().ok_or_else(gone)?;
    let service = entry.service_of(queue).ok_or_else(gone)?;
    while queue.waiting() != 0 {
        let taken = take(entry.field(), service, tried, Instant::now(), rng)?;
        let Some((_, permit)) = taken else { break };
        if queue.offer(permit).is_err() {
            break;
        }
    }
    Ok(())
}

/// A permit of the best instance now; `None` when all are at their hard limit.
fn take<'a>(
    field: Field<'a>,
    service: usize,
    tried: &Tried,
    now: Instant,
    rng: &Rng,
) -> Result<Option<(&'a Arc<Candidate>, Permit)>, Failure> {
    let circumstances = Circumstances { service, tried, now: Millis::at(now), rng };
    for _ in 0..RACES_MAX {
        match pick::pick(field, &circumstances) {
            Choice::Chosen(candidate) => {
                if let Some(permit) = candidate.load(service).and_then(Load::try_acquire) {
                    return Ok(Some((candidate, permit)));
                }
            }
            Choice::AtHard => return Ok(None),
            Choice::None if tried.loads.is_empty() => return Err(Failure::new(Code::PR01)),
            Choice::None => return Err(Failure::new(Code::PR03)),
        }
    }
    Ok(None)
}

fn take_local(
    entry: &Entry,
    service: usize,
    instance: Option<&InstanceId>,
    rng: &Rng,
) -> Result<Assignment, Failure> {
    let not_here = || Failure::new(Code::PR02);
    let full = || match entry.app.services.get(service).map(|service| service.concurrency.kind) {
        Some(ConcurrencyKind::Connections) => Failure::new(Code::PL01),
        Some(ConcurrencyKind::Requests) | None => Failure::new(Code::PL02),
    };
    let local = entry.field().local;
    let now = Instant::now();
    let Some(instance) = instance else {
        let field = Field { local, region: &[], elsewhere: &[] };
        let taken = take(field, service, &Tried::default(), now, rng).map_err(|_| not_here())?;
        let (candidate, permit) = taken.ok_or_else(full)?;
        return Ok(Assignment::new(candidate.clone(), permit, now));
    };
    let candidate =
        local.iter().find(|candidate| candidate.instance.id == *instance).ok_or_else(not_here)?;
    let load = candidate.load(service).ok_or_else(not_here)?;
    if !load.is_routable(Millis::at(now)) {
        return Err(not_here());
    }
    // The peer sees its own part of the load only: this is where the limit is kept.
    if load.level(Millis::at(now)) == Level::AtHard {
        return Err(full());
    }
    let permit = load.try_acquire().ok_or_else(full)?;
    Ok(Assignment::new(candidate.clone(), permit, now))
}

// === impl Assignment ===

impl Assignment {
    fn new(candidate: Arc<Candidate>, permit: Permit, began: Instant) -> Self {
        Self { candidate, permit: Some(permit), began, reported: Cell::new(false) }
    }

    /// What `permit` is for; `None` when it is not in the newest version of the app.
    fn of(queue: &Arc<Queue>, permit: Permit) -> Option<Self> {
        let entry = queue.live().newest()?;
        let service = entry.service_of(queue)?;
        let candidate = entry.candidates.iter().find(|candidate| {
            candidate.load(service).is_some_and(|load| Arc::ptr_eq(load, permit.load()))
        })?;
        Some(Self::new(candidate.clone(), permit, Instant::now()))
    }

    /// The head of the answer came; whether the body does is for the permit to hear.
    pub fn answered(&self, now: Instant) {
        self.report_answer(|load| load.answered(now - self.began, now));
    }

    /// The head of the answer came, and it says that the instance failed (5xx).
    pub fn answered_with_error(&self, now: Instant) {
        self.report_answer(|load| load.answered_with_error(now - self.began, now));
    }

    /// The attempt failed. Only what the instance or the way to it is to blame for counts.
    pub fn failed(&self, code: Code, now: Instant) {
        self.report(|load| {
            if code.blames_instance() {
                load.failed(now);
            }
        });
    }

    /// The instance's node refused: at its limit (PL01, PL02), or not here (PR02).
    pub fn refused_by_peer(&self, code: Code, now: Instant) {
        self.report(|load| match code {
            Code::PL01 | Code::PL02 => load.full(now),
            Code::PR02 => load.absent(now),
            // Of the node or the request, not of this instance.
            _ => {}
        });
    }

    /// The permit, to live as long as the body of the answer.
    pub fn into_permit(mut self) -> Permit {
        self.permit.take().expect("taken only here, which consumes the assignment")
    }

    fn report_answer(&self, report: impl FnOnce(&Load) -> Streak) {
        self.reported.set(true);
        if let Some(permit) = &self.permit {
            permit.answered(report(permit.load()));
        }
    }

    fn report(&self, report: impl FnOnce(&Load)) {
        self.reported.set(true);
        if let Some(permit) = &self.permit {
            report(permit.load());
        }
    }
}

impl Drop for Assignment {
    fn drop(&mut self) {
        if let Some(permit) = &self.permit
            && !self.reported.get()
        {
            let now = Instant::now();
            permit.load().abandoned(now - self.began, now);
        }
    }
}

// === impl Tried ===

impl Tried {
    /// `assignment` came to nothing: do not try its instance again.
    pub fn add(&mut self, assignment: &Assignment) {
        self.loads.extend(assignment.permit.as_ref().map(|permit| permit.load().clone()));
    }

    /// Instances tried so far.
    pub fn count(&self) -> usize {
        self.loads.len()
    }

    pub fn contains(&self, load: &Arc<Load>) -> bool {
        self.loads.iter().any(|tried| Arc::ptr_eq(tried, load))
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod stress;
#[cfg(test)]
mod overlap;
