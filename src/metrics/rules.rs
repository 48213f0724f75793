//! Errors of the expressions of rules, which their evaluation counts.

use super::Metrics;

/// The errors of a rule's expressions.
pub struct RuleErrors {
    /// The id of the rule.
    pub rule: String,
    /// Returns the number of errors so far.
    pub count: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Metrics {
    /// Reports the errors of these rules from now on. Only the first rules of a process are used.
    pub fn watch_rules(&self, rules: Vec<RuleErrors>) {
        let _ = self.rule_error_counts.set(rules);
        self.update_rule_errors();
    }

    /// Brings the metric up to date.
    pub(super) fn update_rule_errors(&self) {
        for RuleErrors { rule, count } in self.rule_error_counts.get().into_iter().flatten() {
            let counter = self.rule_errors.with_label_values(&[rule]);
            counter.inc_by(count().saturating_sub(counter.get()));
        }
    }
}
