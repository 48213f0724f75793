//! The section `[source]`.

use super::schemas;
use crate::connectors::{SOURCES, SourceConfig, SourceKind};
use crate::decode::{Binary, FORMATS, Format};
use crate::settings::{Diagnostics, Section};

/// The settings that apply to every kind of source.
#[derive(Clone, Debug)]
pub(super) struct DecodeSettings {
    /// The format of records.
    pub format: Format,
    /// The schemas of records, if they are not text.
    pub binary: Option<Binary>,
    /// True if a malformed optional field makes its record a dead letter.
    pub strict_fields: bool,
    /// The number of records per partition in an epoch, for sources that are complete.
    pub epoch_records: i64,
    /// The maximum jump ahead of a record that needs no confirmation by the next one, in milliseconds; None if
    /// unbounded.
    pub max_jump_ms: Option<i64>,
}

/// Reads the section `[source]`.
pub(super) fn read(
    mut section: Section<'_>,
    diagnostics: &mut Diagnostics,
) -> Option<(SourceConfig, DecodeSettings)> {
    let formats: Vec<_> = FORMATS.iter().map(|format| (format.name, *format)).collect();
    let format = section.choice("format", &formats, diagnostics);
    let strict_fields = section.bool("strict_fields", diagnostics);
    let kinds: Vec<(_, &SourceKind)> = SOURCES.iter().map(|kind| (kind.name, kind)).collect();
    let kind = section.choice("kind", &kinds, diagnostics)?;
    let (mut epoch_records, mut max_jump_ms) = (1, None);
    if kind.is_bounded {
        epoch_records = section.int("epoch_records", 1..=1_000_000, diagnostics).unwrap_or(1);
    }
    if kind.keys.iter().any(|key| key.path == "source.max_jump") {
        max_jump_ms = section.duration("max_jump", 0, diagnostics);
    }
    let source = (kind.read)(&mut section, diagnostics);
    let binary = format.map(|format| {
        let is_topic = kind.name == crate::connectors::TOPIC;
        schemas::read(&mut section, format, is_topic, diagnostics)
    });
    section.end(diagnostics);
    let (format, strict_fields) = (format?, strict_fields?);
    Some((source?, DecodeSettings { format, binary: binary?, strict_fields, epoch_records, max_jump_ms }))
}
