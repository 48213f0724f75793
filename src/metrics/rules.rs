//! Errors of the expressions of rules, which their evaluation counts.

use super::Metrics;

/// The errors of a rule's expressions.
pub struct RuleErrors {
    /// The id of the rule.
    pub rule: String,
    /// Returns the number of errors so far.
    pub count: Box<dyn Fn() -> u64 + Send + Sync>,
    /// The number of errors that the metric has.
    pub reported: u64,
}

impl Metrics {
    /// Reports the errors of these rules from now on, instead of those of other rules before.
    pub fn watch_rules(&self, rules: Vec<RuleErrors>) {
        self.update_rule_errors();
        *self.rule_error_counts.lock().expect("no thread panics while it holds the lock") = rules;
        self.update_rule_errors();
    }

    /// Brings the metric up to date.
    pub(super) fn update_rule_errors(&self) {
        let mut rules = self.rule_error_counts.lock().expect("no thread panics while it holds the lock");
        for RuleErrors { rule, count, reported } in &mut *rules {
            let now = count();
            self.rule_errors.with_label_values(&[&*rule]).inc_by(now.saturating_sub(*reported));
            *reported = now;
        }
    }
}
