//! The computation of a pipeline: its validated plan, its rules and its dataflow, independent of where records come from
//! and where outputs go.
//!
//! ```text
//!   Config ─▶ Plan ─▶ compute(events, rejected, control) ─▶ encoded outputs, by sink
//! ```

mod alerts;
mod change;
mod compute;
mod describe;
#[cfg(test)]
pub mod fixtures;
mod key_state;
mod own;
mod own_states;
mod plan;
mod presets;
mod rule_operators;
mod rule_pasts;
mod rule_sets;
mod rules;
mod spaces;
mod virtual_run;

pub use change::{ConfigChange, Resets};
pub use compute::{Computed, ENRICH, Inputs, OWN_RULES, REFUSED, RULES, SPACE, WINDOW, compute, operators};
pub use describe::{RuleDescription, describe, span};
pub use key_state::{KeyReading, KeyState, OpenWindow, Profile, RuleState, States};
pub use own::{ConditionPlan, RulePlan, SeverityPlan, rule_set};
pub use own_states::{StateBefore, states_before};
pub use plan::{
    AlertPolicy, AmountPlan, By, DiversityPlan, FrequencyPlan, Limits, Patterns, Plan, Time, TravelPlan,
    WindowKind, WindowPlan,
};
pub use presets::preset;
pub use rule_operators::{RuleHistory, RuleNumbers, RuleOperators, rules_by};
pub use rule_pasts::RulePasts;
pub use rule_sets::{Completeness, LiveRules, RuleSetPlan, SetEntry, identity, keeps_state};
pub use rules::{discard, patterns, rules};
pub use spaces::{KeySpace, SpaceEvent};
pub use virtual_run::{Captured, EpochResults, RefusedEvent, VirtualRun};
