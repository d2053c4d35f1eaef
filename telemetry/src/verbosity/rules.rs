//! Rules: which requests are verbose without saying so themselves, for how long and at what cost.
//!
//! Workers read the table without a lock; it is replaced as a whole by whoever changes it. What
//! workers write is on the rule: its uses, its bytes, its share.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use crossbeam_utils::CachePadded;
use ipnet::IpNet;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::audit::{Audit, What};
use super::scope::{Facts, Scope, ScopeError};
use super::{Level, Now, level};
use crate::ledger::Account;

/// Rules at a time: each is looked at by every request while there is one.
pub const RULES_MAX: usize = 64;

/// Life of a rule that names none.
pub const TTL_DEFAULT: Duration = Duration::from_secs(10 * 60);

/// Longest life of a rule. Whoever needs more needs to be there.
pub const TTL_MAX: Duration = Duration::from_secs(60 * 60);

/// Uses of a rule that names none.
pub const USES_DEFAULT: u64 = 100;
pub const USES_MAX: u64 = 1_000_000;

/// Bytes of a rule that names none.
pub const BYTES_DEFAULT: u64 = 16 << 20;
pub const BYTES_MAX: u64 = 1 << 30;

/// Bytes of what is said of who and why.
const TEXT_BYTES_MAX: usize = 256;

/// What a rule is asked to be.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRule {
    pub scope: Scope,
    pub client: Option<IpNet>,
    /// The share of what matches that is made verbose, above 0 up to 100.
    pub percent: Option<f64>,
    pub level: Level,
    /// At most [`TTL_MAX`].
    pub ttl: Duration,
    /// 1 to [`USES_MAX`] requests.
    pub uses: u64,
    /// 1 to [`BYTES_MAX`] bytes of records.
    pub bytes: u64,
    pub why: String,
}

/// Why a rule is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    #[error(transparent)]
    Scope(#[from] ScopeError),
    #[error("a rule needs at least one of app, host, path, client and percent")]
    Everything,
    #[error("percent must be above 0 and at most 100")]
    Percent,
    #[error("ttl must be from 1 s to 1 h")]
    Ttl,
    #[error("uses must be from 1 to {USES_MAX}")]
    Uses,
    #[error("bytes must be from 1 to {BYTES_MAX}")]
    Bytes,
    #[error("level must be normal or verbose")]
    Level,
    #[error("why must be said, in at most {TEXT_BYTES_MAX} bytes")]
    Why,
    #[error("there are {RULES_MAX} rules already; remove one first")]
    Full,
}

/// A rule as it is listed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listed {
    pub id: u64,
    pub scope: Scope,
    pub client: Option<String>,
    pub percent: Option<f64>,
    #[serde(with = "level")]
    pub level: Level,
    pub state: State,
    pub expires_in_seconds: f64,
    pub uses: u64,
    pub uses_max: u64,
    pub bytes: u64,
    pub bytes_max: u64,
    pub who: String,
    pub why: String,
}

/// Whether a rule still matches anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Live,
    UsedUp,
}

/// One rule in the table.
#[derive(Debug)]
pub(super) struct Rule {
    id: u64,
    asked: NewRule,
    /// Of 2^64; `None` is all.
    share: Option<u64>,
    expires: Instant,
    who: String,
    matches: AtomicU64,
    uses: AtomicU64,
    bytes: AtomicU64,
    /// That it is used up was noted.
    noted: AtomicBool,
}

pub(super) struct Rules {
    /// Whether the table has anything: all that a request looks at as long as it has not. On a cache
    /// line of its own, so that nothing that is written near it costs every request a miss.
    any: CachePadded<AtomicBool>,
    /// The most verbose first, so that the first that matches is the one that counts.
    table: ArcSwap<Vec<Arc<Rule>>>,
    /// The last id given; held while the table is replaced.
    last: Mutex<u64>,
    account: Account,
}

/// Steps of 2^64 by the golden ratio: whatever share is asked for, it is spread evenly.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

// === impl Rules ===

impl Rules {
    pub(super) fn new(account: Account) -> Self {
        Self {
            any: CachePadded::new(AtomicBool::new(false)),
            table: ArcSwap::default(),
            last: Mutex::new(0),
            account,
        }
    }

    #[inline]
    pub(super) fn any(&self) -> bool {
        self.any.load(Relaxed)
    }

    /// The rule that makes a request verbose, which has counted a use if it was `affordable`.
    ///
    /// `Some(Err)` when one matched that has nothing left, or that could not be afforded.
    pub(super) fn find(
        &self,
        facts: &Facts<'_>,
        now: Instant,
        affordable: impl FnOnce() -> bool,
    ) -> Option<Result<Arc<Rule>, Refused>> {
        let table = self.table.load();
        let mut used_up = false;
        for rule in table.iter().filter(|rule| rule.matches(facts, now)) {
            if !rule.is_live() {
                used_up = true;
            } else if !rule.is_in_share() {
                // Another rule may want what this one leaves out.
            } else if !affordable() {
                return Some(Err(Refused::Unaffordable));
            } else if rule.use_once() {
                return Some(Ok(rule.clone()));
            } else {
                // Somebody else had the last use; what was taken of the budget is a second's loss.
                return Some(Err(Refused::UsedUp));
            }
        }
        used_up.then_some(Err(Refused::UsedUp))
    }

    pub(super) fn add(
        &self,
        asked: NewRule,
        who: &str,
        now: Now,
        audit: &Audit,
    ) -> Result<u64, RuleError> {
        let asked = asked.checked()?;
        let mut last = self.last.lock();
        let table = self.table.load();
        if table.len() >= RULES_MAX {
            self.account.drop_one();
            return Err(RuleError::Full);
        }
        *last += 1;
        let id = *last;
        let rule = Arc::new(Rule::new(id, asked, who, now.instant));
        let why = rule.asked.why.clone();
        let place = table.partition_point(|other| other.asked.level >= rule.asked.level);
        let mut rules = table.to_vec();
        rules.insert(place, rule);
        self.replace(rules);
        self.account.take(1);
        audit.note(What::Added, Some(id), &short(who), &why, now.unix);
        Ok(id)
    }

    /// Rules of another process of the node, as it listed them, with what is left of them. What is
    /// known by its id already stays; what is not bounded as it must be is left out.
    pub(super) fn carry(&self, listed: Vec<Listed>, now: Instant) -> usize {
        let mut last = self.last.lock();
        let mut rules = self.table.load().to_vec();
        let before = rules.len();
        for listed in listed {
            let id = listed.id;
            if rules.len() < RULES_MAX
                && rules.iter().all(|rule| rule.id != id)
                && let Some(rule) = Rule::carried(listed, now)
            {
                *last = id.max(*last);
                let place = rules.partition_point(|other| other.asked.level >= rule.asked.level);
                rules.insert(place, Arc::new(rule));
            }
        }
        let carried = rules.len() - before;
        self.replace(rules);
        self.account.take(carried);
        carried
    }

    /// Removes the rule `id`, or all; says how many that were.
    pub(super) fn remove(&self, id: Option<u64>, who: &str, now: Now, audit: &Audit) -> usize {
        self.take_out(
            |rule| id.is_none_or(|id| rule.id == id),
            |rule| {
                audit.note(What::Removed, Some(rule.id), &short(who), &rule.asked.why, now.unix);
            },
        )
    }

    /// Removes what has expired, and notes what is used up.
    pub(super) fn sweep(&self, now: Now, audit: &Audit) {
        if !self.any() {
            return;
        }
        for rule in self.table.load().iter() {
            if !rule.is_live() && !rule.noted.swap(true, Relaxed) {
                audit.note(What::UsedUp, Some(rule.id), NODE, &rule.asked.why, now.unix);
            }
        }
        let expired = |rule: &Rule| rule.expires <= now.instant;
        self.take_out(expired, |rule| {
            audit.note(What::Expired, Some(rule.id), NODE, &rule.asked.why, now.unix);
        });
    }

    /// Rules that can still match.
    pub(super) fn live(&self) -> usize {
        if !self.any() {
            return 0;
        }
        self.table.load().iter().filter(|rule| rule.is_live()).count()
    }

    pub(super) fn len(&self) -> usize {
        self.table.load().len()
    }

    /// Oldest first.
    pub(super) fn list(&self, now: Instant) -> Vec<Listed> {
        let mut listed: Vec<_> = self.table.load().iter().map(|rule| rule.listed(now)).collect();
        listed.sort_by_key(|rule| rule.id);
        listed
    }

    fn take_out(&self, which: impl Fn(&Rule) -> bool, mut gone: impl FnMut(&Rule)) -> usize {
        let _held = self.last.lock();
        let table = self.table.load();
        let (out, stay): (Vec<_>, Vec<_>) = table.iter().cloned().partition(|rule| which(rule));
        if !out.is_empty() {
            self.replace(stay);
            self.account.give_back(out.len());
        }
        out.iter().for_each(|rule| gone(rule));
        out.len()
    }

    /// Only while `last` is held.
    fn replace(&self, rules: Vec<Arc<Rule>>) {
        let any = !rules.is_empty();
        self.table.store(Arc::new(rules));
        // After the table: whoever sees that there is a rule finds it, or finds it a moment later.
        self.any.store(any, Relaxed);
    }
}

/// Who ends a rule that nobody ended.
const NODE: &str = "the node";

/// Why a rule that matched made nothing verbose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    UsedUp,
    Unaffordable,
}

// === impl Rule ===

impl Rule {
    fn new(id: u64, asked: NewRule, who: &str, now: Instant) -> Self {
        let share = asked.percent.filter(|percent| *percent < 100.0);
        Self {
            id,
            // As many 2^64ths; the cast saturates.
            share: share.map(|percent| (percent / 100.0 * 2f64.powi(64)) as u64),
            expires: now + asked.ttl,
            who: short(who),
            matches: AtomicU64::new(0),
            uses: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            noted: AtomicBool::new(false),
            asked,
        }
    }

    fn carried(listed: Listed, now: Instant) -> Option<Self> {
        let Listed { id, scope, client, percent, level, who, why, .. } = listed;
        let client = client.map(|net| net.parse()).transpose().ok()?;
        // What has run for a while may have less left than the shortest rule that may be made.
        let left = Duration::try_from_secs_f64(listed.expires_in_seconds).ok()?.min(TTL_MAX);
        let (ttl, uses, bytes) = (TTL_DEFAULT, listed.uses_max, listed.bytes_max);
        let asked = NewRule { scope, client, percent, level, ttl, uses, bytes, why };
        let rule = Self::new(id, asked.checked().ok()?, &who, now);
        rule.uses.store(listed.uses, Relaxed);
        rule.bytes.store(listed.bytes, Relaxed);
        Some(Self { expires: now + left, ..rule })
    }

    fn matches(&self, facts: &Facts<'_>, now: Instant) -> bool {
        now < self.expires
            && self.asked.scope.holds(facts)
            && self.asked.client.is_none_or(|net| contains(&net, facts.client))
    }

    fn is_in_share(&self) -> bool {
        self.share.is_none_or(|share| self.matches.fetch_add(GOLDEN, Relaxed) < share)
    }

    fn is_live(&self) -> bool {
        self.uses.load(Relaxed) < self.asked.uses && self.bytes.load(Relaxed) < self.asked.bytes
    }

    fn use_once(&self) -> bool {
        let more = |uses: u64| (uses < self.asked.uses).then_some(uses + 1);
        self.uses.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    pub(super) fn level(&self) -> Level {
        self.asked.level
    }

    pub(super) fn spend_bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    fn listed(&self, now: Instant) -> Listed {
        let asked = &self.asked;
        Listed {
            id: self.id,
            scope: asked.scope.clone(),
            client: asked.client.map(|net| net.to_string()),
            percent: asked.percent,
            level: asked.level,
            state: if self.is_live() { State::Live } else { State::UsedUp },
            expires_in_seconds: self.expires.saturating_duration_since(now).as_secs_f64(),
            uses: self.uses.load(Relaxed),
            uses_max: asked.uses,
            bytes: self.bytes.load(Relaxed),
            bytes_max: asked.bytes,
            who: self.who.clone(),
            why: asked.why.clone(),
        }
    }
}

/// An IPv4 client that reached an IPv6 socket is still an IPv4 client.
fn contains(net: &IpNet, client: IpAddr) -> bool {
    net.contains(&client.to_canonical())
}

fn short(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

// === impl NewRule ===

impl Default for NewRule {
    fn default() -> Self {
        Self {
            scope: Scope::default(),
            client: None,
            percent: None,
            level: Level::Verbose,
            ttl: TTL_DEFAULT,
            uses: USES_DEFAULT,
            bytes: BYTES_DEFAULT,
            why: String::new(),
        }
    }
}

impl NewRule {
    fn checked(self) -> Result<Self, RuleError> {
        let Self { scope, client, percent, level, ttl, uses, bytes, why } = self;
        let scope = scope.checked()?;
        if scope.is_everything() && client.is_none() && percent.is_none() {
            return Err(RuleError::Everything);
        }
        if percent.is_some_and(|percent| !(percent > 0.0 && percent <= 100.0)) {
            return Err(RuleError::Percent);
        }
        if !(Duration::from_secs(1)..=TTL_MAX).contains(&ttl) {
            return Err(RuleError::Ttl);
        }
        if !(1..=USES_MAX).contains(&uses) {
            return Err(RuleError::Uses);
        }
        if !(1..=BYTES_MAX).contains(&bytes) {
            return Err(RuleError::Bytes);
        }
        if level == Level::Wide {
            return Err(RuleError::Level);
        }
        if why.trim().is_empty() || why.len() > TEXT_BYTES_MAX {
            return Err(RuleError::Why);
        }
        let client = client.map(|net| net.trunc());
        Ok(Self { scope, client, percent, level, ttl, uses, bytes, why })
    }
}

#[cfg(test)]
mod tests;
