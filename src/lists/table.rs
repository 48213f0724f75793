//! The contents of a list: entries by key, in memory and as bytes.
//!
//! ```text
//!   Entries ─ canonical bytes ─▶ SHA-256, state store, other processes ─ decode, by the columns of this program ─▶ Table
//! ```
//!
//! The bytes consist of the version, the type of keys, the columns and the entries in the order of their keys, so equal
//! contents have equal bytes.

use std::collections::{BTreeMap, HashMap};

use bincode::Options;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::fields::FieldType;

/// The version of the bytes.
const VERSION: u8 = 1;

/// The type of the keys of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyType {
    /// Text.
    String,
    /// A whole number of 64 bits.
    Integer,
    /// A decimal number with six digits after the point.
    Decimal,
}

impl KeyType {
    /// Returns the name in configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            KeyType::String => "string",
            KeyType::Integer => "integer",
            KeyType::Decimal => "decimal",
        }
    }
}

/// The types of a list's keys and columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// The type of the keys.
    pub key: KeyType,
    /// The names and types of the columns, in order; none of a list that is a set.
    pub columns: Vec<(Box<str>, FieldType)>,
}

impl Schema {
    /// The types that a column can have.
    pub const TYPES: [FieldType; 6] = [
        FieldType::String,
        FieldType::Decimal,
        FieldType::Integer,
        FieldType::Float,
        FieldType::Boolean,
        FieldType::Timestamp,
    ];

    /// Returns the schema of a set of texts.
    pub fn set() -> Schema {
        Schema { key: KeyType::String, columns: Vec::new() }
    }

    /// Returns the index and type of a column.
    pub fn column(&self, name: &str) -> Option<(usize, FieldType)> {
        let at = self.columns.iter().position(|(known, _)| **known == *name)?;
        Some((at, self.columns[at].1))
    }
}

/// The key of an entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    /// Text.
    Text(Box<str>),
    /// An integer, or a decimal in millionths.
    Whole(i64),
}

/// A value of an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Cell {
    /// The entry has no such value.
    Absent,
    /// Text.
    Text(Box<str>),
    /// An integer, a decimal in millionths, or an instant in milliseconds since 1970.
    Whole(i64),
    /// A floating-point number, never NaN or infinite.
    Float(f64),
    /// True or false.
    Boolean(bool),
}

/// The values of an entry, by column.
pub type Row = Box<[Cell]>;

/// The entries of a list, in the order of their keys.
pub type Entries = BTreeMap<Key, Row>;

/// The entries of a list, for lookups.
#[derive(Debug, Default)]
pub struct Table {
    texts: HashMap<Box<str>, Row>,
    wholes: HashMap<i64, Row>,
}

/// The reason why bytes are not the contents of a list.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    /// The bytes were written by an unknown version.
    #[error("the contents have version {0}, and this program supports version {VERSION}")]
    Version(u8),
    /// The bytes are no contents.
    #[error("the contents are malformed: {0}")]
    Bytes(String),
}

#[derive(Deserialize)]
struct Decoded {
    key: KeyType,
    columns: Vec<(String, String)>,
    entries: Vec<(Key, Row)>,
}

#[derive(Serialize)]
struct Encoded<'a> {
    key: KeyType,
    columns: Vec<(&'a str, &'a str)>,
    entries: Vec<(&'a Key, &'a Row)>,
}

/// Returns the canonical bytes of entries.
pub fn encode(schema: &Schema, entries: &Entries) -> Vec<u8> {
    let contents = Encoded {
        key: schema.key,
        columns: schema.columns.iter().map(|(name, kind)| (&**name, kind.as_str())).collect(),
        entries: entries.iter().collect(),
    };
    let mut bytes = vec![VERSION];
    bincode::options().serialize_into(&mut bytes, &contents).expect("texts and numbers can be encoded");
    bytes
}

/// Returns the hash by which contents are known.
pub fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

impl Table {
    /// Returns a table of these entries.
    pub fn new(entries: impl IntoIterator<Item = (Key, Row)>) -> Table {
        let mut table = Table::default();
        for (key, row) in entries {
            match key {
                Key::Text(text) => drop(table.texts.insert(text, row)),
                Key::Whole(value) => drop(table.wholes.insert(value, row)),
            }
        }
        table
    }

    /// Decodes contents. They may have been written with other columns: those of the same name and type have their values,
    /// and the others are absent. Without a key of the type of this schema, nothing is found.
    ///
    /// # Errors
    /// If the bytes are no contents of a known version.
    pub fn decode(schema: &Schema, bytes: &[u8]) -> Result<Table, Malformed> {
        let malformed = |error: String| Malformed::Bytes(error);
        let body = match bytes {
            [VERSION, body @ ..] => body,
            [other, ..] => return Err(Malformed::Version(*other)),
            [] => return Err(malformed("they are empty".to_owned())),
        };
        let decoded: Decoded =
            bincode::options().deserialize(body).map_err(|error| malformed(error.to_string()))?;
        if decoded.key != schema.key {
            return Ok(Table::default());
        }
        let is_same = decoded.columns.len() == schema.columns.len()
            && decoded
                .columns
                .iter()
                .zip(&schema.columns)
                .all(|((name, kind), (own, own_kind))| **name == **own && *kind == own_kind.as_str());
        if is_same {
            return Ok(Table::new(decoded.entries));
        }
        let from: Vec<Option<usize>> = schema
            .columns
            .iter()
            .map(|(name, kind)| {
                decoded.columns.iter().position(|(of, is)| **of == **name && *is == kind.as_str())
            })
            .collect();
        let mapped = decoded.entries.into_iter().map(|(key, row)| {
            let cell = |at: &Option<usize>| at.and_then(|at| row.get(at).cloned()).unwrap_or(Cell::Absent);
            (key, from.iter().map(cell).collect())
        });
        Ok(Table::new(mapped))
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.texts.len() + self.wholes.len()
    }

    /// Returns true if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the entry with a text as its key.
    #[inline]
    pub fn text(&self, key: &str) -> Option<&Row> {
        self.texts.get(key)
    }

    /// Returns the entry with a number as its key: an integer, or a decimal in millionths.
    #[inline]
    pub fn whole(&self, key: i64) -> Option<&Row> {
        self.wholes.get(&key)
    }
}
