//! Extraction of metric names from PromQL: enough of the grammar for the queries of this repository.

use std::collections::BTreeSet;

/// Keywords at positions where a metric could be.
const KEYWORDS: [&str; 6] = ["and", "or", "unless", "bool", "offset", "atan2"];

/// Keywords followed by a list of labels.
const GROUPINGS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Returns the names of the metrics in a query.
pub fn metrics_of(query: &str) -> BTreeSet<String> {
    let mut metrics = BTreeSet::new();
    let mut rest = query;
    while let Some(c) = rest.chars().next() {
        if matches!(c, '{' | '[') {
            let close = if c == '{' { '}' } else { ']' };
            rest = rest.split_once(close).unwrap_or_else(|| panic!("{query}: no {close}")).1;
        } else if c.is_ascii_digit() {
            rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.');
        } else if c.is_ascii_alphabetic() || c == '_' {
            let end =
                rest.find(|c: char| !c.is_ascii_alphanumeric() && !"_:".contains(c)).unwrap_or(rest.len());
            let word = &rest[..end];
            rest = rest[end..].trim_start();
            if GROUPINGS.contains(&word) {
                if rest.starts_with('(') {
                    rest = rest.split_once(')').unwrap_or_else(|| panic!("{query}: no )")).1;
                }
            } else if !KEYWORDS.contains(&word) && !is_applied(rest) {
                metrics.insert(word.to_owned());
            }
        } else {
            rest = &rest[c.len_utf8()..];
        }
    }
    metrics
}

/// Returns true if the preceding word is a function or an aggregation: `sum(…)`, `sum by (…) (…)`.
fn is_applied(rest: &str) -> bool {
    rest.starts_with('(') || ["by (", "by(", "without (", "without("].iter().any(|by| rest.starts_with(by))
}

#[test]
fn only_metrics_are_extracted_from_queries() {
    let queries = [
        ("up{job=\"headwater\"} == 0", vec!["up"]),
        ("sum by (le) (rate(a_bucket{x=\"b(\"}[5m])) > 1e3", vec!["a_bucket"]),
        ("a - ignoring(sink) group_right b > 500 and on() c offset 5m", vec!["a", "b", "c"]),
        ("time() - (a > 0) / 1000", vec!["a"]),
        ("histogram_quantile(0.5, sum(rate(a_bucket[$__rate_interval])) by (le))", vec!["a_bucket"]),
    ];
    for (query, metrics) in queries {
        assert_eq!(metrics_of(query), metrics.into_iter().map(str::to_owned).collect(), "{query}");
    }
}
