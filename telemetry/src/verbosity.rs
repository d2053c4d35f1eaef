//! Verbosity for one request: who may ask for it, for which requests, how often and at what cost.
//!
//! Two things make a request verbose: a signed token in its `ferrule-trace` field ([`token`]), or a
//! rule that an operator made ([`rules`]). Both expire by themselves and have a budget, and the
//! node has one above them all. As long as there is no rule, a request pays for one load.
//!
//! A token that is no good is ignored: the client cannot tell a forged one from an expired one, or
//! from a node that knows no tokens. The operator can, by `ferrule_trace_tokens_total{outcome}`.

pub mod audit;
pub mod key;
pub mod level;
pub mod rules;
pub mod scope;
pub mod token;
mod budget;
mod outcome;
mod uses;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use crossbeam_utils::CachePadded;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::ledger::{Ledger, Unit};
use crate::metrics::{Counter, Registry, catalogue};

use self::audit::{Audit, What};
use self::budget::{Bucket, NodeBudget, since};
use self::rules::{Refused, Rule, Rules};
use self::token::Parts;
use self::uses::Uses;

pub use self::key::{KeyError, Keys};
pub use self::outcome::Outcome;
pub use self::rules::{Listed, NewRule, RuleError};
pub use self::scope::{Facts, Scope, ScopeError};
pub use self::token::{Issued, NewToken, TokenError};

/// How much of a request is written down; the recorder's own word for it.
pub use crate::record::model::Verbosity as Level;

/// The request field that carries a token. Never passed on, in either direction.
pub const FIELD: &str = "ferrule-trace";

/// The name of the key file in the storage directory.
pub const KEY_FILE: &str = "trace.key";

/// `[telemetry.verbosity]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Keys that sign tokens, see [`key`]. Default: `trace.key` in the storage directory.
    pub key_file: PathBuf,
    /// Tokens that are verified in a second; others are ignored unread. Default: 100.
    pub tokens_per_second_max: u32,
    /// Verbose requests in percent of all, above a floor of one a second. Default: 1.
    pub requests_percent_max: u32,
    /// Bytes of verbose records a second. Default: 2 MiB.
    pub bytes_per_second_max: u64,
}

/// Decides which requests are verbose. One for each node, shared by its workers.
pub struct Verbosity {
    started: Instant,
    keys: ArcSwap<Keys>,
    key_file: KeyFile,
    tokens: Bucket,
    /// Nanoseconds that the verification of one token costs of a second.
    token_cost: u64,
    uses: Uses,
    rules: Rules,
    audit: Audit,
    shared: Arc<Shared>,
    outcomes: [Counter; Outcome::ALL.len()],
    rule_outcomes: [Counter; RULE_OUTCOMES.len()],
    suppressed: Counter,
    libraries: CachePadded<AtomicBool>,
    woken: Notify,
    /// When anything was live last, and how many grants there had been.
    last_live: Mutex<(Option<Instant>, u64)>,
}

/// What a grant keeps alive.
struct Shared {
    budget: NodeBudget,
    live: AtomicUsize,
    granted: AtomicU64,
}

/// Where the keys are and how the file looked when it was read last; nothing for keys of tests.
struct KeyFile {
    path: Option<PathBuf>,
    stamp: Mutex<Option<key::Stamp>>,
}

/// One request may be verbose. It counts as live until dropped.
pub struct Grant {
    pub level: Level,
    /// Whether the answer carries a report to the client.
    pub report: bool,
    rule: Option<Arc<Rule>>,
    shared: Arc<Shared>,
}

/// A moment, by the clock that never goes back and by the one that others know.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub instant: Instant,
    /// Since the Unix epoch.
    pub unix: Duration,
}

/// Rules and what became of them lately.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    pub rules: Vec<Listed>,
    /// Oldest first.
    pub audit: Vec<audit::Entry>,
    /// Ids of the keys that verify tokens, the one that signs first.
    pub keys: Vec<String>,
}

/// How long libraries go on talking after the last verbose request: the next one comes often soon,
/// and switching costs more than it does to listen.
const LIBRARIES_AFTER: Duration = Duration::from_secs(60);

const SECOND: u64 = 1_000_000_000;

/// What becomes of requests that a rule matched.
const RULE_OUTCOMES: [&str; 3] = ["granted", "used_up", "suppressed"];

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            key_file: PathBuf::from("/var/lib/ferrule").join(KEY_FILE),
            tokens_per_second_max: 100,
            requests_percent_max: 1,
            bytes_per_second_max: 2 << 20,
        }
    }
}

// === impl Verbosity ===

impl Verbosity {
    /// With the keys of the configured file, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// When there is a file that cannot be used, or none can be made.
    pub fn open(config: &Config, registry: &Registry, ledger: &Ledger) -> Result<Self, KeyError> {
        let (keys, stamp) = key::load_or_create(&config.key_file)?;
        let path = Some(config.key_file.clone());
        let mut verbosity = Self::new(config, keys, registry, ledger);
        verbosity.key_file = KeyFile { path, stamp: Mutex::new(Some(stamp)) };
        Ok(verbosity)
    }

    /// With keys that are in no file.
    pub fn new(config: &Config, keys: Keys, registry: &Registry, ledger: &Ledger) -> Self {
        let started = Instant::now();
        let token =
            |outcome: Outcome| catalogue::TRACE_TOKENS.counter_in(registry, &[outcome.as_str()]);
        let rule = |outcome| catalogue::TRACE_RULE_MATCHES.counter_in(registry, &[outcome]);
        let suppressed = catalogue::VERBOSE_SUPPRESSED.counter_in(registry, &[]);
        let entries = |name, cap: usize| ledger.open(name, Unit::Entries, cap as u64);
        Self {
            started,
            keys: ArcSwap::from_pointee(keys),
            key_file: KeyFile { path: None, stamp: Mutex::new(None) },
            tokens: Bucket::default(),
            token_cost: SECOND / u64::from(config.tokens_per_second_max.max(1)),
            uses: Uses::new(entries("trace_tokens", uses::TOKENS_MAX)),
            rules: Rules::new(entries("trace_rules", rules::RULES_MAX)),
            audit: Audit::new(entries("trace_audit", audit::ENTRIES_MAX)),
            shared: Arc::new(Shared {
                budget: NodeBudget::new(config, started),
                live: AtomicUsize::new(0),
                granted: AtomicU64::new(0),
            }),
            outcomes: Outcome::ALL.map(token),
            rule_outcomes: RULE_OUTCOMES.map(rule),
            suppressed,
            libraries: CachePadded::default(),
            woken: Notify::new(),
            last_live: Mutex::new((None, 0)),
        }
    }

    // For requests.

    /// What the token in `field` allows for a request. `None` without any reason why: the request
    /// goes on as if it had no such field.
    pub fn from_token(&self, field: &[u8], facts: &Facts<'_>, now: Now) -> Option<Grant> {
        let judged = self.judge(field, facts, now);
        let outcome = judged.as_ref().err().copied().unwrap_or(Outcome::Granted);
        self.outcomes[outcome as usize].increment();
        if outcome == Outcome::Suppressed {
            self.suppressed.increment();
        }
        judged.ok()
    }

    /// What the rules allow for a request. One load as long as there are none.
    #[inline]
    pub fn from_rules(&self, facts: &Facts<'_>, now: Instant) -> Option<Grant> {
        if !self.rules.any() {
            return None;
        }
        self.ask_rules(facts, now)
    }

    /// Whether there is a rule at all; without one nothing needs to be gathered for them.
    pub fn has_rules(&self) -> bool {
        self.rules.any()
    }

    /// What another node of this edge has decided. The mesh knows who that is, so its word is taken
    /// and its budget was asked; what it costs here is counted here.
    pub fn from_peer(&self, level: Level) -> Grant {
        self.grant(level, false, None)
    }

    /// In order of cost: form and key id are comparisons, the MAC comes after the bucket, and only
    /// what has passed it is parsed. Nonsense takes nothing from the bucket.
    fn judge(&self, field: &[u8], facts: &Facts<'_>, now: Now) -> Result<Grant, Outcome> {
        let parts = Parts::of(field).ok_or(Outcome::Malformed)?;
        let keys = self.keys.load();
        if !parts.has_key(&keys) {
            return Err(Outcome::UnknownKey);
        }
        if !self.tokens.try_take(since(self.started, now.instant), self.token_cost, SECOND) {
            return Err(Outcome::RateLimited);
        }
        let claims = parts.verify(&keys)?;
        let unix = now.unix.as_secs();
        claims.check_time(unix)?;
        if !claims.scope.holds(facts) {
            return Err(Outcome::OutOfScope);
        }
        let affordable = || self.shared.budget.try_take(now.instant);
        self.uses.spend(claims.nonce.0, claims.expires, claims.uses, unix, affordable)?;
        Ok(self.grant(claims.level, claims.report, None))
    }

    #[cold]
    fn ask_rules(&self, facts: &Facts<'_>, now: Instant) -> Option<Grant> {
        let affordable = || self.shared.budget.try_take(now);
        let found = self.rules.find(facts, now, affordable)?;
        let [granted, used_up, suppressed] = &self.rule_outcomes;
        match found {
            Ok(rule) => {
                granted.increment();
                Some(self.grant(rule.level(), false, Some(rule)))
            }
            Err(Refused::UsedUp) => {
                used_up.increment();
                None
            }
            Err(Refused::Unaffordable) => {
                suppressed.increment();
                self.suppressed.increment();
                None
            }
        }
    }

    fn grant(&self, level: Level, report: bool, rule: Option<Arc<Rule>>) -> Grant {
        self.shared.live.fetch_add(1, Relaxed);
        self.shared.granted.fetch_add(1, Relaxed);
        self.wake();
        Grant { level, report, rule, shared: self.shared.clone() }
    }

    // For operators.

    /// Makes a rule; its id is how it is removed.
    ///
    /// # Errors
    ///
    /// When it is not bounded as it must be, or there are as many as there may be.
    pub fn add_rule(&self, rule: NewRule, who: &str, now: Now) -> Result<u64, RuleError> {
        let id = self.rules.add(rule, who, now, &self.audit)?;
        self.wake();
        Ok(id)
    }

    /// Removes the rule `id`; says whether there was one.
    pub fn remove_rule(&self, id: u64, who: &str, now: Now) -> bool {
        self.rules.remove(Some(id), who, now, &self.audit) > 0
    }

    /// Removes every rule; says how many there were.
    pub fn remove_all_rules(&self, who: &str, now: Now) -> usize {
        self.rules.remove(None, who, now, &self.audit)
    }

    /// Signs a token.
    ///
    /// # Errors
    ///
    /// When it asks for more than a token may say.
    pub fn sign(&self, token: &NewToken, who: &str, now: Now) -> Result<Issued, TokenError> {
        let issued = token.sign(&self.keys.load(), now.unix)?;
        let NewToken { scope, ttl, uses, .. } = token;
        let why = format!("{scope}, {uses} uses, {} s", ttl.as_secs());
        self.audit.note(What::TokenSigned, None, who, &why, now.unix);
        Ok(issued)
    }

    pub fn list(&self, now: Instant) -> Listing {
        Listing {
            rules: self.rules.list(now),
            audit: self.audit.read(),
            keys: self.keys.load().ids().map(str::to_owned).collect(),
        }
    }

    /// Takes over the rules of another process of the node, as it [listed](Self::list) them; says how
    /// many. What was asked for and done there is in its audit, and the log.
    pub fn carry_rules(&self, rules: Vec<Listed>, now: Instant) -> usize {
        self.rules.carry(rules, now)
    }

    // For control.

    /// Once a second: ends what is over, learns how many requests there were since the start, reads
    /// the key file again if it is another one.
    pub fn tick(&self, now: Now, requests_total: u64) {
        self.rules.sweep(now, &self.audit);
        self.uses.sweep(now.unix.as_secs());
        self.shared.budget.measure(now.instant, requests_total);
        self.follow_key_file();
        let granted = self.shared.granted.load(Relaxed);
        let mut last_live = self.last_live.lock();
        if self.armed() > 0 || granted != last_live.1 {
            *last_live = (Some(now.instant), granted);
        }
        let listen = |at: Instant| now.instant.saturating_duration_since(at) < LIBRARIES_AFTER;
        self.libraries.store(last_live.0.is_some_and(listen), Relaxed);
    }

    /// Waits until something became live that libraries should be listened to for; then it is time
    /// for a [`Self::tick`].
    ///
    /// # Cancel safety
    ///
    /// What happened while nobody waited is told to the next who does.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }

    /// Rules and grants that are live.
    pub fn armed(&self) -> usize {
        self.rules.live() + self.shared.live.load(Relaxed)
    }

    /// Rules in the table.
    pub fn rules(&self) -> usize {
        self.rules.len()
    }

    /// Whether libraries should be listened to: something is live, or was a minute ago. As of the
    /// last [`Self::tick`].
    #[inline]
    pub fn wants_libraries(&self) -> bool {
        self.libraries.load(Relaxed)
    }

    fn wake(&self) {
        if !self.wants_libraries() {
            self.woken.notify_one();
        }
    }

    fn follow_key_file(&self) {
        let Some(path) = &self.key_file.path else { return };
        let mut stamp = self.key_file.stamp.lock();
        let seen = key::stamp(path);
        if seen == *stamp {
            return;
        }
        *stamp = seen; // a file that is no good is read again when it changes, not every second
        match key::load(path) {
            Ok((keys, read)) => {
                *stamp = Some(read);
                let ids: Vec<_> = keys.ids().collect();
                tracing::info!(keys = ids.join(","), "keys of verbosity tokens read again");
                self.keys.store(Arc::new(keys));
            }
            Err(error) => {
                tracing::warn!(%error, "the keys of verbosity tokens stay as they were");
            }
        }
    }
}

// === impl Grant ===

impl Grant {
    /// Bytes were written of the request's record: once, at its end.
    pub fn spend_bytes(&self, bytes: usize, now: Instant) {
        if let Some(rule) = &self.rule {
            rule.spend_bytes(bytes);
        }
        self.shared.budget.spend_bytes(bytes, now);
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.shared.live.fetch_sub(1, Relaxed);
    }
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { level, report, .. } = self;
        f.debug_struct("Grant")
            .field("level", level)
            .field("report", report)
            .finish_non_exhaustive()
    }
}

// === impl Now ===

impl Now {
    /// Both clocks as of now.
    pub fn read() -> Self {
        // A clock before 1970 makes every token long-lived, which ends them all.
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { instant: Instant::now(), unix }
    }
}

#[cfg(test)]
mod tests;
