//! The section `[state]`: the state store, and the time to live of keys.

use crate::connectors::{STORES, StoreKind};
use crate::settings::{Diagnostics, Section};
use crate::state::StateConfig;

/// Reads the section `[state]`: the state store, and the time to live of a key after its last event, in milliseconds of
/// event time, which is at least `longest`.
pub(super) fn read(
    mut section: Section<'_>,
    longest: i64,
    diagnostics: &mut Diagnostics,
) -> Option<(StateConfig, i64)> {
    let kinds: Vec<(_, &StoreKind)> = STORES.iter().map(|kind| (kind.name, kind)).collect();
    let kind = section.choice("kind", &kinds, diagnostics);
    let store = kind.and_then(|kind| (kind.read)(&mut section, diagnostics));
    let ttl_ms = section.duration("ttl", 1, diagnostics);
    if ttl_ms.is_some_and(|ttl_ms| ttl_ms < longest) {
        let message = format!("the longest rule spans {longest} ms: `ttl` must not be shorter");
        section.report_error("ttl", message, diagnostics);
    }
    section.end(diagnostics);
    Some((store?, ttl_ms?))
}
