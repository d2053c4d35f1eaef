//! One look after the other: see, decide, tell, and say so.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use telemetry::error::chain;
use telemetry::service::{self, Heartbeat};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::gate::{Gate, Rules, State, Verdict};
use super::probe::{Outcome, Prober};
use super::report::{self, Probed, Report, Totals};
use super::sight::{Fault, Limits, Said, Sight};
use super::speaker::{InForce, Speaker};
use super::{Config, Node, node};
use crate::tls::TlsError;

/// Everything that is kept from one look to the next.
pub(super) struct Round {
    config: Config,
    node: Node,
    limits: Limits,
    prober: Prober,
    speaker: Speaker,
    gate: Gate,
    started: Instant,
    heartbeat: Heartbeat,
    /// Since when who is told does not answer, and when it is tried again.
    trouble: Option<Trouble>,
    /// Other nodes that served when the node last said so, and that serve as far as is known now.
    peers_heard: Option<usize>,
    peers: Option<usize>,
    /// The last fault that was logged.
    fault: Option<&'static str>,
    report: Rc<RefCell<Report>>,
}

struct Trouble {
    error: String,
    pause: Duration,
    again: Instant,
}

/// A speaker that does not answer is tried again after this, then after twice as long, and so on.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Looks that may fall out before what was seen around them does not add up any more.
const GAP_LOOKS: u32 = 5;

// === impl Round ===

impl Round {
    pub(super) fn new(config: Config, node: Node) -> Result<Self, TlsError> {
        let now = Instant::now();
        let Config { interval, timeout, rise, fall, settle, drain_max, peers_min, .. } = config;
        let gap_max = GAP_LOOKS * interval + 2 * timeout;
        let rules = Rules { rise, fall, settle, drain_max, peers_min, gap_max };
        let inventory_age_max = config.inventory_age_max;
        let limits = Limits { inventory_age_max, hang_max: node.hang_max };
        let speaker = Speaker::new(config.speaker.clone());
        let report = Rc::new(RefCell::new(first_report(speaker.name())));
        Ok(Self {
            prober: Prober::new(config.probe.clone())?,
            gate: Gate::new(rules, now),
            heartbeat: Heartbeat::of_environment(),
            started: now,
            trouble: None,
            peers_heard: None,
            peers: None,
            fault: None,
            config,
            node,
            limits,
            speaker,
            report,
        })
    }

    pub(super) fn report(&self) -> Rc<RefCell<Report>> {
        self.report.clone()
    }

    pub(super) fn state(&self) -> State {
        self.gate.state()
    }

    pub(super) async fn run(&mut self) {
        let mut ticks = interval(self.config.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_first = true;
        loop {
            ticks.tick().await;
            self.look().await;
            if std::mem::take(&mut is_first) {
                service::ready(self.state().as_str());
            }
            // Every wait of a look has an end, so a look that came to its end is a sign of life.
            self.heartbeat.beat(Duration::ZERO, Instant::now());
        }
    }

    async fn look(&mut self) {
        let in_force = self.find().await;
        let sight = self.see().await;
        let now = Instant::now();
        match self.gate.look(&sight, self.peers, now) {
            Verdict::Stay => {}
            Verdict::Change(change) => {
                let (from, to) = (change.from, change.to);
                tracing::warn!(%from, %to, reason = %change.why, peers = self.peers, "changing");
                service::status(&format!("{to}: {}", change.why));
                if to == State::Withdrawn && self.is_alone() {
                    tracing::error!(
                        peers_min = self.config.peers_min,
                        "no other node is known to serve, and this one is asked to go"
                    );
                }
                let mut report = self.report.borrow_mut();
                report.reason = change.why.to_string();
                report.totals.changes += 1;
            }
            Verdict::Hold(why) => {
                tracing::error!(
                    reason = %why,
                    peers = self.peers,
                    peers_min = self.config.peers_min,
                    "NOT withdrawn, although it should be: this is the last node that announces"
                );
                service::status(&format!("held as the last announcer: {why}"));
                self.report.borrow_mut().totals.holds += 1;
            }
        }
        self.agree(in_force, &sight).await;
        self.write_down(&sight, now);
    }

    fn is_alone(&self) -> bool {
        self.peers.unwrap_or(0) < self.config.peers_min as usize
    }

    /// What is in force; the gate goes on from there when it did not know.
    async fn find(&mut self) -> Option<InForce> {
        if self.trouble.as_ref().is_some_and(|trouble| Instant::now() < trouble.again) {
            return None;
        }
        match self.speaker.in_force().await {
            Ok(found) => {
                self.report.borrow_mut().speaker.in_force = Some(found.state);
                if self.gate.state() == State::Unknown && found.state != State::Unknown {
                    self.gate.adopt(found.state, Instant::now());
                    tracing::info!(state = %found.state, whole = found.is_whole, "found in force");
                    self.report.borrow_mut().reason = "found in force".to_owned();
                    if let Err(error) = self.speaker.keep(found.state) {
                        self.troubled(&error.told());
                    }
                }
                Some(found)
            }
            Err(error) => {
                self.troubled(&error.told());
                None
            }
        }
    }

    /// Tells the speaker what is wanted, unless that is in force already.
    async fn agree(&mut self, in_force: Option<InForce>, sight: &Sight) {
        let wanted = self.gate.state();
        let Some(InForce { state, is_whole }) = in_force else { return };
        if wanted == State::Unknown {
            return;
        }
        if state == wanted && is_whole {
            return self.answered(wanted);
        }
        // Nothing more is announced of a node that is not well, even if it was to be.
        let is_more = wanted == State::Announced || wanted == State::Draining;
        if is_more && matches!(sight, Sight::Failing(_)) {
            return;
        }
        match self.speaker.tell(wanted).await {
            Ok(()) => {
                tracing::info!(was = %state, now = %wanted, to = self.speaker.name(), "told");
                self.answered(wanted);
            }
            Err(error) => self.troubled(&error.told()),
        }
    }

    fn answered(&mut self, state: State) {
        if self.trouble.take().is_some() {
            tracing::info!(to = self.speaker.name(), %state, "answers again");
        }
        let mut report = self.report.borrow_mut();
        (report.speaker.in_force, report.speaker.error) = (Some(state), None);
    }

    fn troubled(&mut self, error: &str) {
        let before = self.trouble.take();
        if before.as_ref().is_none_or(|before| before.error != error) {
            tracing::error!(to = self.speaker.name(), error, "cannot be told what to announce");
        }
        let pause = before.map_or(PAUSE_MIN, |before| (before.pause * 2).min(PAUSE_MAX));
        let again = Instant::now() + pause;
        self.trouble = Some(Trouble { error: error.to_owned(), pause, again });
        let mut report = self.report.borrow_mut();
        (report.speaker.in_force, report.speaker.error) = (None, Some(error.to_owned()));
        report.totals.speaker_errors += 1;
    }

    async fn see(&mut self) -> Sight {
        let said = node::ask(&self.node.socket, self.config.timeout).await;
        let sight = match said {
            Ok(said) => {
                self.heard(&said);
                said.sight(&self.limits)
            }
            Err(error) => {
                self.ask_peers().await;
                Sight::Failing(Fault::Silent(chain(&error)))
            }
        };
        if sight != Sight::Serving {
            self.report.borrow_mut().probes.clear();
            return sight;
        }
        let outcomes = self.prober.ask().await;
        let failed = outcomes.iter().find_map(|outcome| {
            let error = outcome.error()?;
            Some(Fault::Probe { address: outcome.address, error })
        });
        self.report.borrow_mut().probes = outcomes.iter().map(probed).collect();
        failed.map_or(Sight::Serving, Sight::Failing)
    }

    fn heard(&mut self, said: &Said) {
        self.peers_heard = Some(said.peers_serving());
        self.peers = self.peers_heard;
        let mut report = self.report.borrow_mut();
        let now = (said.pid, said.generation);
        if let Some(before) = report.node.filter(|node| (node.pid, node.generation) != now) {
            let (pid, generation) = now;
            tracing::info!(was = before.pid, pid, generation, "the node is another process");
        }
        let Said { pid, generation, connections, .. } = *said;
        report.node = Some(report::Node { pid, generation, connections });
    }

    /// A node that says nothing cannot say which others serve either, and what it said last gets
    /// old: of those no more count than take a connection now.
    async fn ask_peers(&mut self) {
        let reachable = node::reachable(&self.node.peers, self.config.timeout).await;
        self.peers = Some(self.peers_heard.map_or(reachable, |heard| heard.min(reachable)));
    }

    fn write_down(&mut self, sight: &Sight, now: Instant) {
        let fault = match sight {
            Sight::Failing(fault) => Some(fault),
            Sight::Serving | Sight::Draining { .. } => None,
        };
        if fault.map(Fault::kind) != self.fault {
            match fault {
                Some(fault) => tracing::warn!(kind = fault.kind(), "{fault}"),
                None => tracing::info!("the node is well again"),
            }
            self.fault = fault.map(Fault::kind);
        }
        let mut report = self.report.borrow_mut();
        report.uptime_seconds = (now - self.started).as_secs_f64();
        report.state = self.gate.state();
        report.state_seconds = (now - self.gate.since()).as_secs_f64();
        report.sight = match sight {
            Sight::Serving => "serving",
            Sight::Draining { .. } => "draining",
            Sight::Failing(fault) => fault.kind(),
        }
        .to_owned();
        report.fault = fault.map(ToString::to_string);
        report.failures = self.gate.failures();
        report.held = self.gate.is_held();
        report.peers_serving = self.peers;
        report.totals.looks += 1;
        report.totals.faults += u64::from(fault.is_some());
    }
}

fn probed(outcome: &Outcome) -> Probed {
    Probed {
        address: outcome.address,
        milliseconds: outcome.took.as_secs_f64() * 1000.0,
        error: outcome.error(),
    }
}

fn first_report(kind: &str) -> Report {
    Report {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: 0.0,
        state: State::Unknown,
        state_seconds: 0.0,
        reason: "nothing was seen yet".to_owned(),
        sight: "unknown".to_owned(),
        fault: None,
        failures: 0,
        held: false,
        peers_serving: None,
        node: None,
        probes: Vec::new(),
        speaker: report::Speaker { kind: kind.to_owned(), in_force: None, error: None },
        totals: Totals::default(),
    }
}
