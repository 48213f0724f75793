//! Fields of one's own: which values of a record make an event, as the section `[fields]` maps them.
//!
//! ```text
//!   [fields] ─▶ FieldMap ── trie of paths ──▶ one scan of a record ─▶ values ─▶ typed slots ─▶ Event
//! ```

mod build;
mod convert;
mod decoder;
mod envelope;
mod path;
#[cfg(test)]
mod tests;
mod trie;

use std::sync::Arc;

pub use decoder::MappedDecoder;
pub use envelope::Envelope;
pub use path::Path;
use trie::Trie;

use crate::fields::{FieldId, FieldType, Layout};

/// The maximum number of fields of one's own.
pub const MAX_OWN: usize = 1000;

/// The fields that make an event of a record.
#[derive(Clone, Debug)]
pub struct FieldMap {
    layout: Arc<Layout>,
    fields: Vec<MappedField>,
    envelope: Envelope,
    /// The number of fields of the user's own.
    own: usize,
    /// The paths: first those of the envelope's roots, then those of each field below each of its roots.
    trie: Trie,
}

/// A field, and the place of its value.
#[derive(Clone, Debug)]
pub struct MappedField {
    /// The field.
    pub field: FieldId,
    /// The name of the field.
    pub name: Arc<str>,
    /// The type.
    pub kind: FieldType,
    /// The place of the value.
    pub source: FieldSource,
    /// True if a record without the value is rejected.
    pub required: bool,
    /// The path in messages; the name of the field if it has none.
    pub place: Arc<str>,
    /// The name in messages, with the path if that differs.
    pub label: Arc<str>,
    /// The index of the value below the first root, among those that a scan returns.
    read: usize,
}

impl MappedField {
    /// Creates a field with this name.
    pub fn new(
        name: &str,
        field: FieldId,
        kind: FieldType,
        source: FieldSource,
        required: bool,
    ) -> MappedField {
        let place = match &source {
            FieldSource::Path { path, in_envelope: false, .. } => path.to_string(),
            FieldSource::Path { path, .. } => format!("@.{path}"),
            _ => name.to_owned(),
        };
        let label = if place == name { name.to_owned() } else { format!("{name} ({place})") };
        MappedField {
            field,
            name: name.into(),
            kind,
            source,
            required,
            place: place.into(),
            label: label.into(),
            read: 0,
        }
    }
}

impl MappedField {
    /// Returns true if the value is read from the record's text.
    fn is_read(&self) -> bool {
        matches!(self.source, FieldSource::Path { .. } | FieldSource::Place { .. })
    }

    /// Returns true if the path begins at the envelope.
    fn is_in_envelope(&self) -> bool {
        matches!(self.source, FieldSource::Path { in_envelope: true, .. })
    }
}

/// The place of the value of a field.
#[derive(Clone, Debug)]
pub enum FieldSource {
    /// In the record.
    Path {
        /// The path of the value.
        path: Path,
        /// True if the path begins at the envelope, not at the data in it.
        in_envelope: bool,
        /// The form of the value.
        form: Form,
    },
    /// Latitude and longitude are apart.
    Place {
        /// The path of the latitude, in degrees.
        lat: Path,
        /// The path of the longitude, in degrees.
        lon: Path,
    },
    /// The same for every record.
    Const(Const),
    /// The timestamp of the record.
    RecordTimestamp,
}

/// A value that is the same for every record.
#[derive(Clone, Debug, PartialEq)]
pub enum Const {
    /// Text.
    String(Box<str>),
    /// A decimal number, in millionths.
    Decimal(i64),
    /// A whole number.
    Integer(i64),
    /// A floating-point number.
    Float(f64),
    /// True or false.
    Boolean(bool),
    /// An instant, in milliseconds since 1970.
    Timestamp(i64),
}

/// The form of a value in a record.
#[derive(Clone, Debug, Default)]
pub enum Form {
    /// As its type is read without further settings.
    #[default]
    Plain,
    /// A decimal number that counts units of ten to the power of minus this.
    Scaled(u32),
    /// A boolean, negated.
    Negated,
    /// An instant.
    Time(TimeFormat),
}

/// The format of an instant.
#[derive(Clone, Debug)]
pub enum TimeFormat {
    /// RFC 3339 with an offset.
    Rfc3339,
    /// A number of seconds since 1970.
    UnixSeconds,
    /// A number of milliseconds since 1970.
    UnixMillis,
    /// A number of microseconds since 1970.
    UnixMicros,
    /// A number of nanoseconds since 1970.
    UnixNanos,
    /// A strftime pattern, and the zone of times without an offset.
    Pattern {
        /// The pattern.
        pattern: Box<str>,
        /// The time zone.
        zone: jiff::tz::TimeZone,
    },
}

impl FieldMap {
    /// Compiles the map of these fields, in records with this envelope.
    pub fn new(layout: Arc<Layout>, mut fields: Vec<MappedField>, envelope: Envelope) -> FieldMap {
        let mut trie = Trie::default();
        envelope.add_roots(&mut trie);
        for field in &mut fields {
            let (in_envelope, paths) = match &field.source {
                FieldSource::Path { path, in_envelope, .. } => (*in_envelope, vec![path]),
                FieldSource::Place { lat, lon } => (false, vec![lat, lon]),
                FieldSource::Const(_) | FieldSource::RecordTimestamp => continue,
            };
            field.read = trie.reads;
            for root in envelope.roots(in_envelope) {
                for path in &paths {
                    trie.add(&path.within(root));
                }
            }
        }
        FieldMap { own: layout.own().count(), layout, fields, envelope, trie }
    }

    /// Returns the names and types of the fields.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Returns the fields.
    pub fn fields(&self) -> &[MappedField] {
        &self.fields
    }
}
