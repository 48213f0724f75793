//! The values of a source of a list, as entries of its types.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::ListBounds;
use crate::decode::{decimal_micros, rfc3339_ms};
use crate::fields::FieldType;
use crate::lists::{Cell, Entries, Key, KeyType, Row, Schema};

/// A value as its source has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw<'a> {
    Absent,
    /// Text, also of a number.
    Text(Cow<'a, str>),
    Boolean(bool),
    /// An object or an array.
    Composite,
}

impl<'a> Raw<'a> {
    /// Returns the text of a column; without one, the entry has no value.
    pub fn of_text(text: &'a str) -> Raw<'a> {
        if text.is_empty() { Raw::Absent } else { Raw::Text(text.into()) }
    }

    fn of_json(value: &'a RawValue) -> Raw<'a> {
        let text = value.get();
        match text.as_bytes().first() {
            Some(b'"') => {
                serde_json::from_str(text).map_or(Raw::Composite, |text: String| Raw::Text(text.into()))
            }
            Some(b't') => Raw::Boolean(true),
            Some(b'f') => Raw::Boolean(false),
            Some(b'n') | None => Raw::Absent,
            Some(b'{' | b'[') => Raw::Composite,
            Some(_) => Raw::Text(text.into()),
        }
    }
}

/// Reads the members of a JSON object.
///
/// # Errors
/// If the text is not an object.
pub fn object(text: &str) -> Result<BTreeMap<String, &RawValue>, String> {
    serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))
}

/// Returns a member of an object.
pub fn member<'a>(object: &BTreeMap<String, &'a RawValue>, name: &str) -> Raw<'a> {
    object.get(name).map_or(Raw::Absent, |value| Raw::of_json(value))
}

/// Reads a key.
///
/// # Errors
/// If it is absent, or not of the type.
pub fn key(kind: KeyType, raw: &Raw<'_>) -> Result<Key, String> {
    let text = match raw {
        Raw::Text(text) => text,
        Raw::Absent => return Err("the key is missing".to_owned()),
        Raw::Boolean(_) | Raw::Composite => return Err("the key is not a text or a number".to_owned()),
    };
    let whole = match kind {
        KeyType::String => return Ok(Key::Text((&**text).into())),
        KeyType::Integer => text.parse().ok(),
        KeyType::Decimal => decimal_micros(text),
    };
    whole.map(Key::Whole).ok_or_else(|| format!("the key {text:?} is not of the type {}", kind.as_str()))
}

/// Reads the values of an entry; `value` returns that of a column.
///
/// # Errors
/// If one is not of the type of its column.
pub fn row<'a>(schema: &Schema, mut value: impl FnMut(usize, &str) -> Raw<'a>) -> Result<Row, String> {
    let cells = schema.columns.iter().enumerate().map(|(at, (name, kind))| {
        cell(*kind, &value(at, name)).map_err(|got| format!("{name}: expected the type {kind}, got {got}"))
    });
    cells.collect()
}

fn cell(kind: FieldType, raw: &Raw<'_>) -> Result<Cell, String> {
    let text = match raw {
        Raw::Absent => return Ok(Cell::Absent),
        Raw::Text(text) => &**text,
        Raw::Boolean(value) if kind == FieldType::Boolean => return Ok(Cell::Boolean(*value)),
        Raw::Boolean(value) => return Err(value.to_string()),
        Raw::Composite => return Err("an object or an array".to_owned()),
    };
    let read = match kind {
        FieldType::String => Some(Cell::Text(text.into())),
        FieldType::Decimal => decimal_micros(text).map(Cell::Whole),
        FieldType::Integer => text.parse().ok().map(Cell::Whole),
        FieldType::Timestamp => rfc3339_ms(text).ok().map(Cell::Whole),
        FieldType::Float => {
            // Both zeros are equal, so they are stored alike.
            text.parse().ok().filter(|float: &f64| float.is_finite()).map(|float| Cell::Float(float + 0.0))
        }
        FieldType::Boolean => match text {
            "true" | "t" => Some(Cell::Boolean(true)),
            "false" | "f" => Some(Cell::Boolean(false)),
            _ => None,
        },
        FieldType::Location | FieldType::Object => None,
    };
    read.ok_or_else(|| format!("{text:?}"))
}

/// The entries of a source that has each key once.
pub struct Collector {
    bounds: ListBounds,
    entries: Entries,
    repeated: u64,
    first: Option<String>,
}

impl Collector {
    pub fn new(bounds: ListBounds) -> Collector {
        Collector { bounds, entries: Entries::new(), repeated: 0, first: None }
    }

    /// Adds an entry. Of several with one key, the last counts.
    ///
    /// # Errors
    /// If there are too many.
    pub fn add(&mut self, key: Key, row: Row, place: impl FnOnce() -> String) -> Result<(), String> {
        let name = match &key {
            Key::Text(text) if self.first.is_none() => format!("{text:?}"),
            Key::Whole(value) if self.first.is_none() => value.to_string(),
            _ => String::new(),
        };
        if self.entries.insert(key, row).is_some() {
            self.repeated += 1;
            self.first.get_or_insert_with(|| format!("{} repeats the key {name}", place()));
        }
        self.bounds.check_entries(self.entries.len())
    }

    /// Returns the entries, and what to say of repeated keys.
    pub fn end(self) -> (Entries, Vec<String>) {
        let Collector { entries, repeated, first, .. } = self;
        let warning = first.map(|first| match repeated {
            1 => format!("{first}: the last entry counts"),
            n => format!("{first}, and {} more keys are repeated: the last entry of each counts", n - 1),
        });
        (entries, warning.into_iter().collect())
    }
}
