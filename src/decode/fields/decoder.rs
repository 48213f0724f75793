//! The decoder of JSON records whose fields are mapped.

use std::sync::Arc;

use super::FieldMap;
use super::build::EventBuilder;
use crate::decode::event_text::EventText;
use crate::decode::record::{leading_space, not_json, text_of};
use crate::decode::scan::{Scanner, Value};
use crate::decode::{Decoder, FieldError, Rejection};
use crate::event::Event;
use crate::source::Raw;

/// A decoder of JSON objects by a [`FieldMap`].
pub struct MappedDecoder {
    map: Arc<FieldMap>,
    /// True if an error in an optional field rejects the record.
    strict: bool,
    /// The errors of optional fields of the last record.
    errors: Vec<FieldError>,
    /// The part of the event's text after the original record.
    appended: String,
    /// The values of the last record, by read; None where it has none.
    values: Vec<Option<Value>>,
}

impl MappedDecoder {
    /// Creates a decoder that treats optional fields with an error as absent or, if `strict`, rejects their records.
    pub fn new(map: Arc<FieldMap>, strict: bool) -> MappedDecoder {
        MappedDecoder { map, strict, errors: Vec::new(), appended: String::new(), values: Vec::new() }
    }

    /// Scans the values of the record's fields.
    fn scan(&mut self, text: &str) -> Result<(), Rejection> {
        self.values.clear();
        self.values.resize(self.map.trie.reads, None);
        let mut scanner = Scanner::new(text, leading_space(text));
        let duplicate = self.map.trie.scan(&mut scanner, &mut self.values).map_err(not_json)?;
        scanner.end().map_err(not_json)?;
        let Some(read) = duplicate else { return Ok(()) };
        let twice = self.map.fields().iter().rfind(|field| field.is_read() && field.read <= read);
        let place = match self.map.envelope.root(read) {
            Some(root) => Some(root.to_string()),
            None => twice.map(|field| field.place.to_string()),
        };
        Err(Rejection::malformed_at(place.clone(), format!("duplicate field {}", place.unwrap_or_default())))
    }
}

impl Decoder for MappedDecoder {
    fn field_errors(&self) -> &[FieldError] {
        &self.errors
    }

    fn decode(&mut self, raw: Raw<'_>) -> Result<Event, Rejection> {
        let text = text_of(&raw)?;
        self.scan(text)?;
        self.appended.clear();
        self.errors.clear();
        let MappedDecoder { map, strict, errors, appended, values } = self;
        let roots = map.envelope.find(values).map_err(|what| Rejection::malformed(None, what))?;
        let text = EventText { record: text, appended };
        EventBuilder { map, roots, text, values, strict: *strict, errors }.build(&raw)
    }
}
