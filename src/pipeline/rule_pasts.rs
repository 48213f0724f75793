//! The pasts of rules: their states of all events before they enter a run, as a run with these rules alone has captured
//! them.
//!
//! ```text
//!   records read again ─▶ VirtualRun with the rules alone ─▶ captured records ─▶ RulePasts ─▶ bytes, in the state store
//!                                                            operators of each worker ◀─ states ─┘
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use bincode::Options;
use headwater_dataflows::{Damage, EventTime, KeyedState, SetState, last_of, shard_of};
use serde::{Deserialize, Serialize};

use super::compute::{ADMIT, OWN_RULES, SPACE};
use super::virtual_run::Captured;
use crate::event::Event;

/// The state of a key: the key, the time of its last event, and the state, as captured.
type KeyPast = (Vec<u8>, EventTime, Vec<u8>);

/// The pasts of rules, for the keys of one worker or of all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulePasts {
    /// By the name of the operator that evaluates the rules.
    by_operator: BTreeMap<String, Vec<KeyPast>>,
}

impl RulePasts {
    /// Returns the pasts in the records of a run with the rules alone: the latest of each operator and key.
    ///
    /// # Errors
    /// If a record of admission cannot be decoded.
    pub fn of_captured(records: &Captured) -> Result<RulePasts, Damage> {
        let mut by_operator: BTreeMap<String, Vec<KeyPast>> = BTreeMap::new();
        for ((operator, key), value) in records {
            let Some(by) = operator.strip_prefix(OWN_RULES) else { continue };
            let space = format!("{SPACE}{by}");
            let admission = if by == "key" { ADMIT } else { &space };
            let admitted = records.get(&(Arc::from(admission), key.clone()));
            let last = admitted.map_or(Ok(EventTime::MIN), |admitted| last_of(admitted))?;
            by_operator.entry(operator.to_string()).or_default().push((key.clone(), last, value.clone()));
        }
        Ok(RulePasts { by_operator })
    }

    /// Returns the number of keys with a state.
    pub fn keys(&self) -> usize {
        self.by_operator.values().map(Vec::len).sum()
    }

    /// Encodes the pasts.
    pub fn encode(&self) -> Vec<u8> {
        bincode::options().serialize(self).expect("bytes and names can be encoded")
    }

    /// Decodes pasts, and keeps the keys of one of `peers` workers.
    ///
    /// # Errors
    /// If they cannot be decoded.
    pub fn decode(bytes: &[u8], worker: usize, peers: usize) -> Result<RulePasts, String> {
        let mut pasts: RulePasts =
            bincode::options().deserialize(bytes).map_err(|error| error.to_string())?;
        for states in pasts.by_operator.values_mut() {
            let mut kept = Vec::new();
            for state in std::mem::take(states) {
                let shard = shard_of(&state.0).map_err(|damage| damage.to_string())?;
                kept.extend((shard.worker(peers) == worker).then_some(state));
            }
            *states = kept;
        }
        Ok(pasts)
    }

    /// Returns the states of an operator's rules.
    ///
    /// # Errors
    /// If one cannot be decoded.
    pub(super) fn states<E>(&self, operator: &str) -> Result<Vec<KeyedState<E, SetState>>, Damage>
    where
        E: headwater_dataflows::Event<Key = str> + AsRef<Event>,
    {
        let states = self.by_operator.get(operator).into_iter().flatten();
        states.map(|(key, last, value)| KeyedState::decode(key, *last, value)).collect()
    }
}
