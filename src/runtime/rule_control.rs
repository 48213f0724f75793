//! Changes of the rules of a run, as the API and the watcher of files ask for them.
//!
//! ```text
//!   rules ─▶ valid, with the run's fields and keys? ─▶ request ─▶ bound to epoch E ─▶ in force for events of later epochs
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;
use utoipa::ToSchema;

use super::ingest::changes::{ChangeRequest, ChangeRequests};
use crate::config::{Config, changes};
use crate::json::rfc3339;
use crate::pipeline::{LiveRules, RulePlan, RuleSetPlan};

/// Changes the rules of a run. Clones share it.
#[derive(Clone)]
pub struct RuleControl {
    /// The rules of the process.
    pub live: LiveRules,
    /// The requests of the run.
    pub requests: ChangeRequests,
    /// The settings of the run that its results depend on, without the rules.
    pub semantics: Arc<str>,
}

/// The reason why rules do not come into force.
#[derive(Debug, Error)]
pub enum RuleChangeError {
    /// A rule is not valid.
    #[error("{0}")]
    Invalid(String),
    /// More than rules has changed.
    #[error(
        "{0}; only [[rules]] are changed while a run goes on: stop it and start it with the new configuration"
    )]
    OtherSettings(String),
    /// The run has no operator for the keys of a rule.
    #[error(
        "rule {rule}: the run does not group by {space:?}, which is built in and no rule or window used at its start; stop it \
         and start it with the new configuration"
    )]
    NoSpace {
        /// The id of the rule.
        rule: String,
        /// The name of the key space.
        space: String,
    },
    /// The run has not begun.
    #[error("the run is starting: ask again once it is ready")]
    Starting,
    /// The run has ended before an epoch had the change.
    #[error("the run is ending, so the rules did not come into force")]
    Ended,
    /// No epoch has ended in time.
    #[error(
        "no epoch has ended for {0:?}, so the change is requested and not in force; it comes into force once the run goes on: \
         `headwater status` and /readyz say what it waits for"
    )]
    TimedOut(Duration),
}

/// The differences between two rule sets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct RuleSetChange {
    /// The number of the set: 1 for the first one of a pipeline, and one more with each change.
    pub version: u64,
    /// The epoch that the change is bound to: it is in force for events of later epochs. Null if it was not applied, or
    /// nothing has changed.
    pub epoch: Option<u64>,
    /// The rules that the previous set did not have.
    pub added: Vec<FollowingRule>,
    /// The ids of rules that only the previous set had. What they have raised stays.
    pub removed: Vec<String>,
    /// The rules that both sets have, with different settings.
    pub changed: Vec<FollowingRule>,
    /// The number of rules with the same settings.
    pub unchanged: usize,
}

/// A rule that the previous set did not have with these settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FollowingRule {
    /// The id.
    pub id: String,
    /// True if it goes on with its state; false if it begins without state.
    pub keeps_state: bool,
    /// True if its past is read first: it comes into force with a later set, as if it had always been there.
    pub waits: bool,
    /// The event time after which its alerts are those of a rule that has always been there; null if they all are, if that
    /// is not certain of any, or if the change was not applied.
    pub complete_from: Option<String>,
    /// The event time after which it knows the events, if it looks at all earlier ones and does not know those before.
    pub knows_since: Option<String>,
}

impl RuleControl {
    /// Returns the control of a run of this configuration, which has not begun.
    pub fn of_config(config: &Config) -> RuleControl {
        let (live, requests) = (config.live_rules(), ChangeRequests::default());
        RuleControl { live, requests, semantics: config.semantics().into() }
    }

    /// Compiles rules, each an inline table in TOML, and checks that the run can evaluate them.
    ///
    /// # Errors
    /// If it cannot.
    pub fn compile(&self, rules: &[&str]) -> Result<Vec<RulePlan>, RuleChangeError> {
        let rules = self.live.compile(rules).map_err(RuleChangeError::Invalid)?;
        self.check(&rules)?;
        Ok(rules)
    }

    /// Checks that a configuration with these settings differs from that of the run in rules only.
    ///
    /// # Errors
    /// If it does not: the first other difference.
    pub fn check_settings(&self, semantics: &str) -> Result<(), RuleChangeError> {
        match changes(&self.semantics, semantics, &BTreeSet::new()) {
            Ok(None) => Ok(()),
            Ok(Some(change)) => Err(RuleChangeError::OtherSettings(change.reason)),
            Err(change) => Err(RuleChangeError::OtherSettings(change.to_string())),
        }
    }

    fn check(&self, rules: &[RulePlan]) -> Result<(), RuleChangeError> {
        let spaces = self.live.spaces().ok_or(RuleChangeError::Starting)?;
        let missing = rules.iter().find_map(|rule| {
            let space = rule.by.space().filter(|space| !spaces.contains(space))?;
            Some(RuleChangeError::NoSpace { rule: rule.id.to_string(), space: space.name.to_string() })
        });
        missing.map_or(Ok(()), Err)
    }

    /// Returns what a change to these rules would do.
    pub fn preview(&self, rules: &[RulePlan]) -> RuleSetChange {
        let before = self.live.bound();
        RuleSetChange {
            version: before.version,
            ..differences(&before.all(), &rules.iter().collect::<Vec<_>>())
        }
    }

    /// Lets these rules come into force. `file` is the identity of the rules of the configuration, if these are they.
    /// Returns once the change is durable with the epoch that it is bound to, or bound if there is no ledger. Rules that are in force already make no change.
    ///
    /// # Errors
    /// If the run cannot evaluate them, it ends, or no epoch ends within `timeout`.
    pub fn apply(
        &self,
        rules: Vec<RulePlan>,
        file: Option<u64>,
        timeout: Duration,
    ) -> Result<RuleSetChange, RuleChangeError> {
        self.check(&rules)?;
        let before = self.live.bound();
        let preview = self.preview(&rules);
        let has_same_file = file.is_none_or(|file| file == before.file);
        if before.has(&rules) && has_same_file {
            return Ok(preview);
        }
        let (bound, binding) = sync_channel(1);
        self.requests.add(ChangeRequest::of_rules(&self.live, rules, file, bound));
        let in_force = binding.recv_timeout(timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout => RuleChangeError::TimedOut(timeout),
            RecvTimeoutError::Disconnected => RuleChangeError::Ended,
        })?;
        let text = in_force.change.rules.as_deref().unwrap_or_default();
        let set: Arc<RuleSetPlan> = self.live.read(text).map_err(RuleChangeError::Invalid)?;
        Ok(RuleSetChange {
            version: set.version,
            epoch: Some(in_force.since.epoch.0),
            ..differences(&before.all(), &set.all())
        }
        .with_completeness(&set))
    }
}

impl FollowingRule {
    fn new(rule: &RulePlan, keeps_state: bool) -> FollowingRule {
        FollowingRule {
            id: rule.id.to_string(),
            keeps_state,
            waits: false,
            complete_from: None,
            knows_since: None,
        }
    }
}

impl RuleSetChange {
    fn with_completeness(mut self, set: &RuleSetPlan) -> RuleSetChange {
        for changed in self.added.iter_mut().chain(&mut self.changed) {
            let rule = set.rules.iter().find(|rule| *rule.id == *changed.id);
            changed.waits = set.waiting.iter().any(|rule| *rule.id == *changed.id);
            changed.complete_from = rule.and_then(|rule| rule.complete.from_ms()).map(rfc3339);
            changed.knows_since = rule.and_then(|rule| rule.complete.since_ms()).map(rfc3339);
        }
        self
    }
}

/// Returns the differences between rules, which are identified by their ids.
fn differences(before: &[&RulePlan], now: &[&RulePlan]) -> RuleSetChange {
    let find = |rules: &'_ [&RulePlan], id: &str| rules.iter().position(|rule| *rule.id == *id);
    let mut change = RuleSetChange::default();
    for rule in now {
        let Some(before) = find(before, &rule.id).map(|at| before[at]) else {
            let added = FollowingRule::new(rule, false);
            change.added.push(FollowingRule { waits: rule.has_backfill, ..added });
            continue;
        };
        if before.text == rule.text {
            change.unchanged += 1;
            continue;
        }
        let keeps_state = crate::pipeline::keeps_state(rule, before);
        change.changed.push(FollowingRule::new(rule, keeps_state));
    }
    let removed = before.iter().filter(|rule| find(now, &rule.id).is_none());
    change.removed = removed.map(|rule| rule.id.to_string()).collect();
    change
}
