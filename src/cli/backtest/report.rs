//! The report of a backtest, as text and JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::side::Side;
use super::store::{Count, Difference, Found};
use crate::cli::output::{Table, counted, escaped};

/// The maximum number of characters of a key, an id or details in a text.
const SHOWN: usize = 120;

/// The records as one side decodes and admits them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// The number of events that rules have seen.
    pub events: u64,
    /// The number of rejected and refused records, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// The number of evaluations of expressions that failed, by rule, if there are any.
    pub rule_errors: BTreeMap<String, u64>,
}

/// Labelled events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    /// The number of labels in the file.
    pub labels: u64,
    /// The number of events with label 1 in the input.
    pub positive: u64,
    /// The number of events with label 0 in the input.
    pub negative: u64,
    /// The labelled events that each rule has found.
    pub found: Vec<Found>,
}

/// The results of a backtest.
#[derive(Debug)]
pub struct Report {
    /// The number of records.
    pub records: u64,
    /// The events of the rules in force, and of the candidate.
    pub admitted: [Admitted; 2],
    /// The wall time of reading and evaluation.
    pub took: Duration,
    /// The numbers of alerts.
    pub counts: Vec<Count>,
    /// Examples of differences.
    pub examples: Vec<Difference>,
    /// The rules of each side.
    pub rules: [Vec<String>; 2],
    /// The labelled events, if there are labels.
    pub labelled: Option<Labelled>,
    /// The path of the database, if it is kept.
    pub out: Option<String>,
}

/// The quality with which a rule finds the events with label 1.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Quality {
    true_positives: u64,
    false_positives: u64,
    false_negatives: u64,
}

impl Quality {
    /// Returns the share of found labelled events that have label 1; None if none was found.
    fn precision(self) -> Option<f64> {
        ratio(self.true_positives, self.true_positives + self.false_positives)
    }

    /// Returns the share of events with label 1 that were found; None if there is none.
    fn recall(self) -> Option<f64> {
        ratio(self.true_positives, self.true_positives + self.false_negatives)
    }

    /// Returns the harmonic mean of both; None if there is neither a found event nor one to be found.
    fn f1(self) -> Option<f64> {
        let twice = 2 * self.true_positives;
        ratio(twice, twice + self.false_positives + self.false_negatives)
    }

    fn json(self) -> Value {
        json!({
            "true_positives": self.true_positives, "false_positives": self.false_positives,
            "false_negatives": self.false_negatives, "precision": rounded(self.precision()),
            "recall": rounded(self.recall()), "f1": rounded(self.f1()),
        })
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Returns a share with four decimals.
fn rounded(share: Option<f64>) -> Option<f64> {
    share.map(|share| (share * 10_000.0).round() / 10_000.0)
}

impl Report {
    fn events_per_s(&self) -> u64 {
        let seconds = self.took.as_secs_f64().max(0.001);
        (self.admitted[0].events as f64 / seconds) as u64
    }

    /// Returns the ids of the rules of both sides, sorted.
    fn all_rules(&self) -> Vec<&str> {
        let mut all: Vec<_> = self.rules.iter().flatten().map(String::as_str).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Returns the quality of a rule on a side, or of all its rules; None if the side does not have the rule.
    fn quality(&self, labelled: &Labelled, rule: Option<&str>, side: Side) -> Option<Quality> {
        let rules = &self.rules[side as usize];
        if rule.is_some_and(|rule| rules.iter().all(|own| own != rule)) {
            return None;
        }
        let is_of = |found: &&Found| found.side == side && found.rule.as_deref() == rule;
        let (positive, negative) =
            labelled.found.iter().find(is_of).map_or((0, 0), |found| (found.positive, found.negative));
        Some(Quality {
            true_positives: positive,
            false_positives: negative,
            false_negatives: labelled.positive - positive,
        })
    }

    /// Returns the sums of all counts.
    fn total(&self) -> Count {
        let sum = |of: fn(&Count) -> u64| self.counts.iter().map(of).sum();
        Count {
            rule: "all".to_owned(),
            severity: None,
            before: sum(|count| count.before),
            after: sum(|count| count.after),
            added: sum(|count| count.added),
            gone: sum(|count| count.gone),
            changed: sum(|count| count.changed),
        }
    }

    /// Returns the report as one JSON object.
    pub fn json(&self) -> Value {
        let side = |Admitted { events, rejected, rule_errors }: &Admitted| json!({ "events": events, "rejected": rejected, "rule_errors": rule_errors });
        let Count { before, after, added, gone, changed, .. } = self.total();
        let total = json!({
            "before": before, "after": after, "added": added, "gone": gone, "changed": changed,
        });
        let mut json = json!({
            "records": self.records,
            "before": side(&self.admitted[0]),
            "after": side(&self.admitted[1]),
            "seconds": (self.took.as_secs_f64() * 1000.0).round() / 1000.0,
            "events_per_s": self.events_per_s(),
            "total": total,
            "rules": self.counts.iter().map(count_json).collect::<Vec<_>>(),
            "examples": self.examples.iter().map(difference_json).collect::<Vec<_>>(),
        });
        if let Some(labelled) = &self.labelled {
            json["labels"] = self.labels_json(labelled);
        }
        if let Some(out) = &self.out {
            json["out"] = out.as_str().into();
        }
        json
    }

    fn labels_json(&self, labelled: &Labelled) -> Value {
        let quality = |rule: Option<&str>| {
            let of = |side| self.quality(labelled, rule, side).map(Quality::json);
            json!({ "rule": rule, "before": of(Side::Before), "after": of(Side::After) })
        };
        let rules = self.all_rules().into_iter().map(|rule| quality(Some(rule)));
        let all = quality(None);
        json!({
            "labels": labelled.labels,
            "in_input": labelled.positive + labelled.negative,
            "positive": labelled.positive,
            "negative": labelled.negative,
            "all_rules": { "before": all["before"], "after": all["after"] },
            "rules": rules.collect::<Vec<_>>(),
        })
    }

    /// Returns the report as text.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{} in {:.1} s, {} events/s\n",
            counted(self.records, "record"),
            self.took.as_secs_f64(),
            self.events_per_s()
        );
        let [before, after] = &self.admitted;
        if (before.events, &before.rejected) == (after.events, &after.rejected) {
            line(&mut text, format_args!("{}", admitted_text(before)));
        } else {
            line(&mut text, format_args!("before: {}", admitted_text(before)));
            line(&mut text, format_args!("after: {}", admitted_text(after)));
        }
        for (Admitted { rule_errors, .. }, side) in self.admitted.iter().zip(Side::ALL.map(Side::as_str)) {
            for (rule, n) in rule_errors {
                let evaluations = counted(*n, "evaluation");
                line(&mut text, format_args!("{side}: {rule}: {evaluations} failed, as false or absent"));
            }
        }
        let mut table = Table::new(&["rule", "severity", "before", "after", "added", "gone", "changed"]);
        self.counts.iter().for_each(|count| add_count(&mut table, count));
        if self.counts.len() != 1 {
            add_count(&mut table, &self.total());
        }
        write!(text, "\n{table}").expect("a String can be written");
        self.write_examples(&mut text);
        if let Some(labelled) = &self.labelled {
            self.write_labels(labelled, &mut text);
        }
        if let Some(out) = &self.out {
            line(&mut text, format_args!("\nalerts_before, alerts_after and differences are in {out}"));
        }
        text
    }

    fn write_examples(&self, text: &mut String) {
        for examples in self.examples.chunk_by(|a, b| (&a.rule, &a.kind) == (&b.rule, &b.kind)) {
            let Difference { rule, kind, .. } = &examples[0];
            let of = |count: &Count| match kind.as_str() {
                "added" => count.added,
                "gone" => count.gone,
                _ => count.changed,
            };
            let all: u64 = self.counts.iter().filter(|count| count.rule == *rule).map(of).sum();
            let shown = examples.len() as u64;
            let part = if all > shown { format!(", the first {shown}") } else { String::new() };
            line(text, format_args!("\n{rule}: {all} {kind}{part}"));
            examples.iter().for_each(|example| write_example(text, example));
        }
    }

    fn write_labels(&self, labelled: &Labelled, text: &mut String) {
        let in_input = labelled.positive + labelled.negative;
        line(
            text,
            format_args!(
                "\n{}, {in_input} of them in the input: {} with label 1, {} with label 0",
                counted(labelled.labels, "label"),
                labelled.positive,
                labelled.negative
            ),
        );
        let mut table = Table::new(&["rule", "side", "found 1", "found 0", "precision", "recall", "F1"]);
        let rules = self.all_rules().into_iter().map(Some).chain([None]);
        for (rule, side) in rules.flat_map(|rule| Side::ALL.map(|side| (rule, side))) {
            let Some(quality) = self.quality(labelled, rule, side) else { continue };
            let share = |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{share:.3}"));
            table.add([
                rule.unwrap_or("all").to_owned(),
                side.as_str().to_owned(),
                quality.true_positives.to_string(),
                quality.false_positives.to_string(),
                share(quality.precision()),
                share(quality.recall()),
                share(quality.f1()),
            ]);
        }
        write!(text, "{table}").expect("a String can be written");
    }
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    writeln!(text, "{content}").expect("a String can be written");
}

fn admitted_text(Admitted { events, rejected, .. }: &Admitted) -> String {
    let reasons: Vec<_> = rejected.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    let all = rejected.values().sum::<u64>();
    let reasons = if all == 0 { String::new() } else { format!(" ({})", reasons.join(", ")) };
    format!("{}, {all} rejected{reasons}", counted(*events, "event"))
}

fn add_count(table: &mut Table, count: &Count) {
    let Count { rule, severity, before, after, added, gone, changed } = count;
    let severity = severity.as_deref().unwrap_or("-").to_owned();
    let [before, after, added, gone, changed] = [before, after, added, gone, changed].map(u64::to_string);
    table.add([rule.clone(), severity, before, after, added, gone, changed]);
}

fn write_example(text: &mut String, difference: &Difference) {
    let Difference { key_kind, key, event_time, event_ids, before, after, .. } = difference;
    let ids: Vec<String> = serde_json::from_str(event_ids).unwrap_or_default();
    let (key, ids) = (escaped(key, SHOWN), escaped(&ids.join(" "), SHOWN));
    let either = |before: Option<&String>, after: Option<&String>| match (before, after) {
        (Some(before), Some(after)) if before != after => format!("{before} → {after}"),
        (before, after) => after.or(before).cloned().unwrap_or_default(),
    };
    let of =
        |part: fn(&(String, String)) -> &String| either(before.as_ref().map(part), after.as_ref().map(part));
    let (severity, details) = (of(|side| &side.0), escaped(&of(|side| &side.1), 2 * SHOWN));
    line(text, format_args!("  {event_time}  {key_kind} {key}  {severity}  {ids}  {details}"));
}

fn count_json(count: &Count) -> Value {
    let Count { rule, severity, before, after, added, gone, changed } = count;
    json!({
        "rule": rule, "severity": severity, "before": before, "after": after,
        "added": added, "gone": gone, "changed": changed,
    })
}

fn difference_json(difference: &Difference) -> Value {
    let json = |text: &String| serde_json::from_str::<Value>(text).unwrap_or_default();
    let side = |side: &Option<(String, String)>| {
        side.as_ref().map(|(severity, details)| json!({ "severity": severity, "details": json(details) }))
    };
    let Difference { kind, rule, key_kind, key, event_time, event_ids, before, after } = difference;
    json!({
        "kind": kind, "rule": rule, "key_kind": key_kind, "key": key, "event_time": event_time,
        "event_ids": json(event_ids), "before": side(before), "after": side(after),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quality(true_positives: u64, false_positives: u64, false_negatives: u64) -> [Option<f64>; 3] {
        let quality = Quality { true_positives, false_positives, false_negatives };
        [quality.precision(), quality.recall(), quality.f1()].map(rounded)
    }

    #[test]
    fn precision_and_recall_need_something_to_divide_by() {
        assert_eq!(quality(3, 1, 3), [Some(0.75), Some(0.5), Some(0.6)]);
        assert_eq!(quality(0, 0, 3), [None, Some(0.0), Some(0.0)], "nothing is found");
        assert_eq!(quality(0, 2, 0), [Some(0.0), None, Some(0.0)], "nothing is to be found");
        assert_eq!(quality(0, 0, 0), [None; 3]);
    }
}
