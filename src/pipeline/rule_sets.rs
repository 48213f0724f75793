//! The rules of a pipeline as they change: what a change keeps, and since when each rule's alerts are complete.
//!
//! ```text
//!   configuration ─▶ RulePlan, … ─┐
//!   set in force ─────────────────┴─▶ RuleSetPlan ─▶ text, in the ledger ─▶ RuleSetPlan, in each process and replay
//! ```

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, RwLock};

use headwater_dataflows::{Epoch, KeyHash, Since};
use serde::{Deserialize, Serialize};

use super::own::{ConditionPlan, RulePlan};
use super::spaces::KeySpace;
use crate::metrics::RuleErrors;

/// The rules of the user's own that are in force together.
#[derive(Clone, Debug)]
pub struct RuleSetPlan {
    /// The number of the set: 1 for the first one of a pipeline, and one more with each change of its rules.
    pub version: u64,
    /// The identity of the rules that the configuration file had when it was last applied. They are applied again only once
    /// they differ.
    pub file: u64,
    /// The rules.
    pub rules: Vec<RulePlan>,
    /// The rules that judge no event yet: they enter with a later set, once their past is known.
    pub waiting: Vec<RulePlan>,
    /// The rules that enter with this set as if they had always been there.
    pub entry: Option<SetEntry>,
}

/// The rules that enter with a set as if they had always been there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetEntry {
    /// The event time up to which their states are, in milliseconds since 1970.
    pub after_ms: i64,
    /// The ids of their states.
    pub rules: Vec<u64>,
}

/// The events for which a rule's alerts are those of a rule that has always been there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Completeness {
    /// All events.
    Always,
    /// Events after this time, in milliseconds since 1970.
    From(i64),
    /// None for certain: the rule looks at all earlier events, and knows only those after this time.
    Since(i64),
}

impl Completeness {
    /// Returns the time from which on, in milliseconds since 1970, if it is a time.
    pub fn from_ms(self) -> Option<i64> {
        match self {
            Completeness::From(ms) => Some(ms),
            Completeness::Always | Completeness::Since(_) => None,
        }
    }

    /// Returns the time after which events are known, in milliseconds since 1970, if nothing is complete for certain.
    pub fn since_ms(self) -> Option<i64> {
        match self {
            Completeness::Since(ms) => Some(ms),
            Completeness::Always | Completeness::From(_) => None,
        }
    }
}

/// The text of a set.
#[derive(Serialize, Deserialize)]
struct SetText {
    version: u64,
    file: u64,
    rules: Vec<RuleText>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    waiting: Vec<RuleText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entry: Option<SetEntry>,
}

/// The text of a rule.
#[derive(Serialize, Deserialize)]
struct RuleText {
    toml: String,
    state: u64,
    revision: u32,
    complete: Completeness,
}

/// Compiles the texts of rules.
pub type Compile = dyn Fn(&[&str]) -> Result<Vec<RulePlan>, String> + Send + Sync;

impl RuleSetPlan {
    /// Returns the first set of a pipeline.
    pub fn first(rules: Vec<RulePlan>) -> RuleSetPlan {
        RuleSetPlan { version: 1, file: identity(&rules), rules, waiting: Vec::new(), entry: None }
    }

    /// Returns all rules, those that wait included.
    pub fn all(&self) -> Vec<&RulePlan> {
        self.rules.iter().chain(&self.waiting).collect()
    }

    /// Returns true if these rules, in any order, are those of the set.
    pub fn has(&self, rules: &[RulePlan]) -> bool {
        identity(&self.all()) == identity(rules)
    }

    /// Returns true if a rule groups by a key space, or will do so.
    pub fn uses(&self, space: &KeySpace) -> bool {
        self.all().iter().any(|rule| rule.by.space().is_some_and(|by| **by == *space))
    }

    /// Returns the set that follows with these rules, from the events of `since` on. A rule that another one with its id
    /// precedes keeps that one's state, unless it considers other events or has another kind of condition. A new rule with a
    /// backfill waits.
    #[must_use]
    pub fn followed_by(&self, rules: Vec<RulePlan>, since: &Since) -> RuleSetPlan {
        let version = self.version + u64::from(!self.has(&rules));
        let before: BTreeMap<_, _> = self.rules.iter().map(|rule| (&*rule.id, rule)).collect();
        let (mut now, mut waiting) = (Vec::new(), Vec::new());
        for rule in rules {
            let waits = self.waiting.iter().find(|waits| waits.text == rule.text);
            match (before.get(&*rule.id), waits) {
                (Some(before), _) => now.push(follow(rule, before, version, since)),
                (None, Some(waits)) => waiting.push(waits.clone()),
                (None, None) if rule.has_backfill && !since.ends.is_empty() => {
                    waiting.push(added(rule, version, since));
                }
                (None, None) => now.push(added(rule, version, since)),
            }
        }
        RuleSetPlan { version, file: self.file, rules: now, waiting, entry: None }
    }

    /// Returns the set that follows when rules that wait enter, by the ids of their states; None if none of them waits any
    /// more. Their past is known up to `after_ms`; without one, they are rules that had no predecessor.
    pub fn entered(&self, ids: &[u64], after_ms: Option<i64>, since: &Since) -> Option<RuleSetPlan> {
        let (entering, waiting): (Vec<_>, Vec<_>) =
            self.waiting.iter().cloned().partition(|rule| ids.contains(&rule.state_id));
        if entering.is_empty() {
            return None;
        }
        let version = self.version + 1;
        let ids = entering.iter().map(|rule| rule.state_id).collect();
        let enter = |rule: RulePlan| match after_ms {
            Some(after_ms) => RulePlan { complete: Completeness::From(after_ms), ..rule },
            None => added(rule, version, since),
        };
        let mut rules = self.rules.clone();
        rules.extend(entering.into_iter().map(enter));
        let entry = after_ms.map(|after_ms| SetEntry { after_ms, rules: ids });
        Some(RuleSetPlan { version, file: self.file, rules, waiting, entry })
    }

    /// Returns the errors of the rules' expressions, for the metrics.
    pub fn errors(&self) -> Vec<RuleErrors> {
        let errors = |rule: &RulePlan| {
            let counted = rule.clone();
            // Errors that the rule had in an earlier set are in the metric.
            let reported = counted.errors();
            RuleErrors { rule: rule.id.to_string(), count: Box::new(move || counted.errors()), reported }
        };
        self.rules.iter().map(errors).collect()
    }

    /// Returns the text of the set.
    pub fn to_text(&self) -> String {
        let text = |rule: &RulePlan| RuleText {
            toml: rule.text.to_string(),
            state: rule.state_id,
            revision: rule.revision,
            complete: rule.complete,
        };
        let RuleSetPlan { version, file, rules, waiting, entry } = self;
        let set = SetText {
            version: *version,
            file: *file,
            rules: rules.iter().map(text).collect(),
            waiting: waiting.iter().map(text).collect(),
            entry: entry.clone(),
        };
        serde_json::to_string(&set).expect("texts and numbers are JSON")
    }

    /// Reads the text of a set.
    ///
    /// # Errors
    /// If it is not a text that [`to_text`](RuleSetPlan::to_text) has written, or a rule is not valid in this program.
    pub fn of_text(text: &str, compile: &Compile) -> Result<RuleSetPlan, String> {
        let SetText { version, file, rules, waiting, entry } =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        let in_force = rules.len();
        let rules: Vec<_> = rules.into_iter().chain(waiting).collect();
        let texts: Vec<_> = rules.iter().map(|rule| &*rule.toml).collect();
        let mut compiled = compile(&texts)?;
        if compiled.len() != rules.len() {
            return Err(format!("{} rules instead of {}", compiled.len(), rules.len()));
        }
        for (plan, text) in compiled.iter_mut().zip(rules) {
            (plan.state_id, plan.revision, plan.complete) = (text.state, text.revision, text.complete);
        }
        let waiting = compiled.split_off(in_force);
        Ok(RuleSetPlan { version, file, rules: compiled, waiting, entry })
    }
}

/// Returns the identity of rules, whatever their order.
pub fn identity(rules: &[impl Borrow<RulePlan>]) -> u64 {
    let mut texts: Vec<_> = rules.iter().map(|rule| &*rule.borrow().text).collect();
    texts.sort_unstable();
    KeyHash::of(texts.join("\n").as_bytes()).0
}

/// Returns a rule that had no predecessor. Its state has an identity that no earlier rule had.
fn added(rule: RulePlan, version: u64, since: &Since) -> RulePlan {
    let last = since.last_time.0;
    let complete = match rule.condition.look_back_ms() {
        _ if since.ends.is_empty() => Completeness::Always,
        None if !matches!(rule.condition, ConditionPlan::Match) => Completeness::Since(last),
        _ => Completeness::From(last.saturating_add(rule.reach_ms())),
    };
    let state_id = KeyHash::of(format!("{version}\n{:016x}", rule.state_id).as_bytes()).0;
    RulePlan { state_id, revision: 1, complete, ..rule }
}

/// Returns a rule that follows another one with its id.
fn follow(rule: RulePlan, before: &RulePlan, version: u64, since: &Since) -> RulePlan {
    let is_same = rule.settings == before.settings && rule.suppress_ms == before.suppress_ms;
    let revision = before.revision.saturating_add(u32::from(!is_same));
    if !keeps_state(&rule, before) {
        return RulePlan { revision, ..added(rule, version, since) };
    }
    let state_id = before.state_id;
    let complete = match before.complete {
        complete if is_same || needs_no_more(&rule.condition, &before.condition) => complete,
        Completeness::Since(from) => Completeness::Since(from),
        Completeness::Always | Completeness::From(_) => {
            Completeness::From(since.last_time.0.saturating_add(rule.reach_ms()))
        }
    };
    RulePlan { state_id, revision, complete, ..rule }
}

/// Returns true if a rule goes on with the state of another one: it considers the same events, and differs in bounds only.
/// An absence that waits for its time is one of the rule before, and an event that ends it must find the same alert. So an
/// absence goes on only if nothing of its alerts has changed, severity and mode included.
pub fn keeps_state(rule: &RulePlan, before: &RulePlan) -> bool {
    if rule.condition.is_absence() || before.condition.is_absence() {
        return rule.settings == before.settings
            && rule.suppress_ms == before.suppress_ms
            && (rule.severity.fixed(), rule.mode) == (before.severity.fixed(), before.mode);
    }
    let shape = |rule: &RulePlan| {
        let is_bound = |key: &str| rule.condition.bounds().contains(&key.rsplit('.').next().unwrap_or(key));
        let shape: Vec<_> = rule.settings.iter().filter(|(key, _)| !is_bound(key)).cloned().collect();
        shape
    };
    rule.condition.name() == before.condition.name() && shape(rule) == shape(before)
}

/// Returns true if a condition needs no more than what another one, which differs in bounds, has remembered.
fn needs_no_more(condition: &ConditionPlan, before: &ConditionPlan) -> bool {
    let within = condition.look_back_ms() <= before.look_back_ms();
    within
        && match (condition, before) {
            (ConditionPlan::Count { at_least, .. }, ConditionPlan::Count { at_least: before, .. })
            | (ConditionPlan::Distinct { at_least, .. }, ConditionPlan::Distinct { at_least: before, .. }) => {
                at_least <= before
            }
            _ => true,
        }
}

/// The number of versions for which sets that were read are kept, so that all workers find what one has read.
const KEPT: u64 = 8;

/// The sets of a process. Clones share them.
#[derive(Clone)]
pub struct LiveRules(Arc<Shared>);

struct Shared {
    compile: Box<Compile>,
    /// The newest set that has come into force in this process.
    current: RwLock<Arc<RuleSetPlan>>,
    /// The newest set that is bound to an epoch, in the process that binds.
    bound: Mutex<Bound>,
    /// The key spaces of the run; None before it begins.
    spaces: Mutex<Option<Vec<Arc<KeySpace>>>>,
    /// The sets that were read, by their texts: each is compiled once, so that its errors are counted together.
    read: Mutex<BTreeMap<String, Arc<RuleSetPlan>>>,
    /// The pasts of rules that the replay needs.
    pasts: Mutex<Pasts>,
    /// The progress of reading the past of the rules that wait, for people.
    backfill: Mutex<String>,
}

/// Pasts of rules by the hash of their bytes, each with the number of workers that will take it.
type Pasts = BTreeMap<[u8; 32], (Arc<Vec<u8>>, usize)>;

struct Bound {
    set: Arc<RuleSetPlan>,
    /// The epoch, if it is one of this run, and the set that is in force through its end.
    follows: Option<(Epoch, Arc<RuleSetPlan>)>,
}

impl LiveRules {
    /// Returns sets of which this one is in force. `compile` reads the texts of others.
    pub fn new(
        current: RuleSetPlan,
        compile: impl Fn(&[&str]) -> Result<Vec<RulePlan>, String> + Send + Sync + 'static,
    ) -> LiveRules {
        let current = Arc::new(current);
        LiveRules(Arc::new(Shared {
            compile: Box::new(compile),
            current: RwLock::new(Arc::clone(&current)),
            bound: Mutex::new(Bound { set: current, follows: None }),
            spaces: Mutex::default(),
            read: Mutex::default(),
            pasts: Mutex::default(),
            backfill: Mutex::default(),
        }))
    }

    /// Returns a set that no other follows.
    #[cfg(test)]
    pub fn of(rules: Vec<RulePlan>) -> LiveRules {
        LiveRules::new(RuleSetPlan::first(rules), |_| Err("no other rule is valid".to_owned()))
    }

    /// Returns the newest set that has come into force.
    pub fn current(&self) -> Arc<RuleSetPlan> {
        Arc::clone(&self.0.current.read().expect(LOCK))
    }

    /// Reads the text of a set. A set that was read before is not compiled again, nor is a rule of the current set.
    ///
    /// # Errors
    /// If the text cannot be read.
    pub fn read(&self, text: &str) -> Result<Arc<RuleSetPlan>, String> {
        let mut read = self.0.read.lock().expect(LOCK);
        if let Some(set) = read.get(text) {
            return Ok(Arc::clone(set));
        }
        let mut set = RuleSetPlan::of_text(text, &*self.0.compile)?;
        let current = self.current();
        for rule in set.rules.iter_mut().chain(&mut set.waiting) {
            if let Some(same) = current.all().into_iter().find(|same| same.text == rule.text) {
                let RulePlan { state_id, revision, complete, .. } = *rule;
                *rule = RulePlan { state_id, revision, complete, ..same.clone() };
            }
        }
        let set = Arc::new(set);
        read.retain(|_, before| before.version + KEPT >= set.version);
        read.insert(text.to_owned(), Arc::clone(&set));
        Ok(set)
    }

    /// Returns the text of a set without the rules that are not valid, and the reasons.
    ///
    /// # Errors
    /// If the text cannot be read.
    pub fn without_invalid(&self, text: &str) -> Result<(String, Vec<String>), String> {
        let mut set: SetText = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut removed = Vec::new();
        let mut is_valid = |rule: &RuleText| match (self.0.compile)(&[&rule.toml]) {
            Ok(_) => true,
            Err(error) => {
                removed.push(error);
                false
            }
        };
        set.rules.retain(&mut is_valid);
        set.waiting.retain(is_valid);
        Ok((serde_json::to_string(&set).expect("texts and numbers are JSON"), removed))
    }

    /// Compiles rules.
    ///
    /// # Errors
    /// If a rule is not valid.
    pub fn compile(&self, rules: &[&str]) -> Result<Vec<RulePlan>, String> {
        (self.0.compile)(rules)
    }

    /// Lets the set come into force with which a run begins, before its replay.
    pub fn begin(&self, set: &Arc<RuleSetPlan>) {
        *self.0.current.write().expect(LOCK) = Arc::clone(set);
    }

    /// Notes the newest set of the ledger, and the key spaces of the run that resumes with it.
    pub fn resume(&self, newest: &Arc<RuleSetPlan>, spaces: Vec<Arc<KeySpace>>) {
        *self.0.bound.lock().expect(LOCK) = Bound { set: Arc::clone(newest), follows: None };
        *self.0.spaces.lock().expect(LOCK) = Some(spaces);
    }

    /// Returns the newest set that is bound to an epoch. Only the first process of a cluster knows it.
    pub fn bound(&self) -> Arc<RuleSetPlan> {
        Arc::clone(&self.0.bound.lock().expect(LOCK).set)
    }

    /// Returns the key spaces of the run; None before it begins.
    pub fn spaces(&self) -> Option<Vec<Arc<KeySpace>>> {
        self.0.spaces.lock().expect(LOCK).clone()
    }

    /// Binds the set that follows the newest one with these rules. `file` is the identity of the rules of the configuration,
    /// if these are they. Of several sets that are bound to an epoch only the last one comes into force, so it follows the
    /// set before the epoch.
    pub fn bind(&self, rules: Vec<RulePlan>, file: Option<u64>, since: &Since) -> Arc<RuleSetPlan> {
        let mut bound = self.0.bound.lock().expect(LOCK);
        let before = match bound.follows.take() {
            Some((epoch, before)) if epoch == since.epoch => before,
            _ => Arc::clone(&bound.set),
        };
        let file = file.unwrap_or(bound.set.file);
        let set = Arc::new(RuleSetPlan { file, ..before.followed_by(rules, since) });
        *bound = Bound { set: Arc::clone(&set), follows: Some((since.epoch, before)) };
        set
    }

    /// Binds the set that follows when rules that wait [enter](RuleSetPlan::entered); None if they wait no more. No other
    /// set is bound to the same epoch.
    pub fn bind_entry(&self, ids: &[u64], after_ms: Option<i64>, since: &Since) -> Option<Arc<RuleSetPlan>> {
        let mut bound = self.0.bound.lock().expect(LOCK);
        let set = Arc::new(bound.set.entered(ids, after_ms, since)?);
        *bound = Bound { set: Arc::clone(&set), follows: None };
        Some(set)
    }

    /// Keeps the pasts of rules at hand that a replay needs, by the hash of their bytes, for this number of workers.
    pub fn keep_pasts(&self, hash: [u8; 32], bytes: Vec<u8>, workers: usize) {
        self.0.pasts.lock().expect(LOCK).insert(hash, (Arc::new(bytes), workers));
    }

    /// Returns pasts that are at hand, once to each worker.
    pub fn take_pasts(&self, hash: &[u8; 32]) -> Option<Arc<Vec<u8>>> {
        let mut pasts = self.0.pasts.lock().expect(LOCK);
        let (bytes, workers) = pasts.get_mut(hash)?;
        let bytes = Arc::clone(bytes);
        *workers = workers.saturating_sub(1);
        if *workers == 0 {
            pasts.remove(hash);
        }
        Some(bytes)
    }

    /// Notes how far the past of the rules that wait has been read, for people.
    pub fn note_backfill(&self, progress: String) {
        *self.0.backfill.lock().expect(LOCK) = progress;
    }

    /// Returns how far the past of the rules that wait has been read, for people; empty in processes that do not read it.
    pub fn backfill(&self) -> String {
        self.0.backfill.lock().expect(LOCK).clone()
    }

    /// Lets a set come into force, unless a newer one has.
    pub fn enter(&self, set: &Arc<RuleSetPlan>) {
        let mut current = self.0.current.write().expect(LOCK);
        if set.version >= current.version {
            *current = Arc::clone(set);
        }
    }
}

const LOCK: &str = "no thread panics while it holds the lock";

#[cfg(test)]
mod tests;
