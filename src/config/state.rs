//! What the operators remember of keys.

use super::read::{Notes, Section};
use crate::runtime::Patterns;

/// Reads the section `[state]`: how long a key is remembered after its last event, in milliseconds of event time.
pub(super) fn read(mut section: Section<'_>, patterns: &Patterns, notes: &mut Notes) -> Option<i64> {
    let ttl_ms = section.duration("ttl", 1, notes);
    let longest = longest_within(patterns);
    if ttl_ms.is_some_and(|ttl_ms| ttl_ms < longest) {
        let message = format!("a pattern looks back on {longest} ms: keys must be remembered for as long");
        section.complain("ttl", message, notes);
    }
    section.end(notes);
    ttl_ms
}

/// How far back any pattern looks that has a time for it.
fn longest_within(patterns: &Patterns) -> i64 {
    let Patterns { velocity_spike, rapid_fire_burst, merchant_diversity, .. } = patterns;
    let frequencies = [velocity_spike, rapid_fire_burst].into_iter().flatten().map(|plan| plan.within_ms);
    frequencies.chain(merchant_diversity.iter().map(|plan| plan.within_ms)).max().unwrap_or(0)
}
