//! Binary formats with schemas, Avro and Protobuf: a record becomes JSON text, which is decoded like a record in JSON.
//!
//! ```text
//!   record ─▶ frame: magic byte, schema id ─▶ Schemas ─▶ schema ─┐
//!       └── payload ────────────────────────────────────────────┴▶ JsonText ─▶ decoder of JSON ─▶ Event
//! ```
//!
//! The event keeps the bytes of the record beside the text, because dead letters have the record as it came. A schema
//! never changes under its id, so a record decodes alike whenever it is read. As long as its schema is not known, a run
//! withholds a record and those behind it ([`SchemaGate`]), instead of giving it a fate that depends on when it was read.

mod avro;
#[cfg(test)]
mod hostile;
mod json_text;
mod protobuf;
mod schemas;
#[cfg(test)]
mod tests;
mod wire;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use avro::AvroSchema;
use json_text::JsonText;
use protobuf::{MessageSet, Root};
pub use schemas::{Fetched, Found, SchemaRegistry, Schemas, UnknownId};

use super::record::MAX_RECORD;
use super::{Decoder, FieldError, Rejection};
use crate::event::Event;
use crate::source::Raw;

/// The number of bytes before the payload: a magic byte and the id of the schema.
const FRAME: usize = 5;

/// The kind of a binary format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryKind {
    /// Apache Avro.
    Avro,
    /// Protocol Buffers.
    Protobuf,
}

/// A compiled schema.
#[derive(Clone, Debug, PartialEq)]
pub enum Schema {
    /// Of Avro.
    Avro(AvroSchema),
    /// Of Protobuf: a file, whose messages the indexes in records select.
    Protobuf(MessageSet),
}

/// The bytes around a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Confluent's wire format: a magic byte, the id of the schema and, for Protobuf, the indexes of the message.
    Confluent,
    /// None: a record is a payload.
    None,
}

/// The schemas of records.
#[derive(Clone, Debug)]
pub enum Binary {
    /// Those of a registry, by the ids in records.
    Registry(Arc<Schemas>),
    /// One schema for all records, whatever their ids.
    File {
        /// The schema.
        schema: Arc<FileSchema>,
        /// The bytes around a payload.
        framing: Framing,
        /// The SHA-256 of the file, in hexadecimal digits: what decides how records decode.
        digest: Box<str>,
    },
}

/// A schema from a file.
#[derive(Clone, Debug, PartialEq)]
pub enum FileSchema {
    /// Of Avro.
    Avro(AvroSchema),
    /// One of the messages of Protobuf files.
    Protobuf(MessageSet, Root),
}

impl FileSchema {
    /// Reads a schema of Avro.
    ///
    /// # Errors
    /// If it is not valid: the reason.
    pub fn avro(text: &str) -> Result<FileSchema, String> {
        AvroSchema::parse(text, &[]).map(FileSchema::Avro)
    }

    /// Reads a set of descriptors of Protobuf; records have the message with this full name.
    ///
    /// # Errors
    /// If it is not valid, or has no such message: the reason.
    pub fn protobuf(descriptors: &[u8], message: &str) -> Result<FileSchema, String> {
        let set = MessageSet::parse_set(descriptors)?;
        let root = set.root(message)?;
        Ok(FileSchema::Protobuf(set, root))
    }
}

/// The reason why bytes are not a value of a schema, and the place of the offending value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The names from the innermost to the outermost.
    path: Vec<String>,
    what: Cow<'static, str>,
}

impl From<&'static str> for Malformed {
    fn from(what: &'static str) -> Malformed {
        Malformed { path: Vec::new(), what: Cow::Borrowed(what) }
    }
}

impl From<String> for Malformed {
    fn from(what: String) -> Malformed {
        Malformed { path: Vec::new(), what: Cow::Owned(what) }
    }
}

impl Malformed {
    /// Returns the error of a value as that of the field which it is in.
    fn within(mut self, name: &str) -> Malformed {
        self.path.push(name.to_owned());
        self
    }

    /// Returns the path of the value; None if it is the whole record.
    fn place(&self) -> Option<String> {
        let names: Vec<_> = self.path.iter().rev().map(String::as_str).collect();
        (!names.is_empty()).then(|| names.join("."))
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = self.place() {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.what)
    }
}

impl BinaryKind {
    /// Returns the name in `source.format`.
    pub fn as_str(self) -> &'static str {
        match self {
            BinaryKind::Avro => "avro",
            BinaryKind::Protobuf => "protobuf",
        }
    }

    /// Compiles a schema as a registry returns it, with those that it refers to, each after its own references: JSON of
    /// Avro, or files of Protobuf.
    ///
    /// # Errors
    /// If it is not valid: the reason.
    pub fn compile(self, schema: &str, references: &[String]) -> Result<Schema, String> {
        match self {
            BinaryKind::Avro => AvroSchema::parse(schema, references).map(Schema::Avro),
            BinaryKind::Protobuf => {
                let files = references.iter().map(String::as_str).chain([schema]);
                MessageSet::parse(files).map(Schema::Protobuf)
            }
        }
    }
}

/// Returns the schema id of a record, and what follows it.
fn unframe(record: &[u8]) -> Result<(u32, &[u8]), Malformed> {
    let Some((&[magic, a, b, c, d], payload)) = record.split_first_chunk::<FRAME>() else {
        let size = record.len();
        return Err(
            format!("it has {size} bytes, fewer than the {FRAME} of a magic byte and a schema id").into()
        );
    };
    match magic {
        0 => Ok((u32::from_be_bytes([a, b, c, d]), payload)),
        other => Err(format!("its magic byte is 0x{other:02x}, not 0, which a schema id follows").into()),
    }
}

/// Tells whether the schemas of records are known, and requests those that are not.
#[derive(Clone, Debug)]
pub struct SchemaGate {
    schemas: Arc<Schemas>,
    /// The id of the last record whose schema was known.
    last: Option<u32>,
}

impl SchemaGate {
    /// Returns true if a record can be decoded, or rejected.
    pub fn is_open(&mut self, raw: &Raw<'_>) -> bool {
        // A record without an id is rejected.
        let Some(Ok((id, _))) = raw.value.map(unframe) else { return true };
        if self.last == Some(id) {
            return true;
        }
        match self.schemas.find(id) {
            Found::Schema(_) => {
                self.last = Some(id);
                true
            }
            Found::Refused(_) => true,
            Found::Waiting(..) => false,
        }
    }
}

impl Binary {
    /// Returns the gate of records; None if all schemas are known from the start.
    pub fn gate(&self) -> Option<SchemaGate> {
        match self {
            Binary::Registry(schemas) => Some(SchemaGate { schemas: Arc::clone(schemas), last: None }),
            Binary::File { .. } => None,
        }
    }
}

/// A decoder of binary records, which turns them into JSON for another decoder.
pub(super) struct BinaryDecoder {
    binary: Binary,
    json: Box<dyn Decoder>,
    text: JsonText,
    /// The last schema of the registry, by id.
    last: Option<(u32, Arc<Schema>)>,
}

impl BinaryDecoder {
    pub fn new(binary: Binary, json: Box<dyn Decoder>) -> BinaryDecoder {
        BinaryDecoder { binary, json, text: JsonText::default(), last: None }
    }

    /// Writes a record as JSON.
    fn transcode(&mut self, record: &[u8]) -> Result<(), Rejection> {
        let rejected =
            |error: Malformed| Rejection::malformed_at(error.place(), format!("not decodable: {error}"));
        self.text.clear();
        match &self.binary {
            Binary::File { schema, framing, .. } => {
                let mut payload = match framing {
                    Framing::Confluent => unframe(record).map_err(rejected)?.1,
                    Framing::None => record,
                };
                let transcoded = match &**schema {
                    FileSchema::Avro(schema) => schema.transcode(payload, &mut self.text),
                    FileSchema::Protobuf(set, root) => {
                        if *framing == Framing::Confluent {
                            payload = protobuf::indexes(payload).map_err(rejected)?.1;
                        }
                        set.transcode(*root, payload, &mut self.text)
                    }
                };
                transcoded.map_err(rejected)
            }
            Binary::Registry(schemas) => {
                let (id, payload) = unframe(record).map_err(rejected)?;
                if self.last.as_ref().is_none_or(|(last, _)| *last != id) {
                    let schema = schemas.wait(id).map_err(|reason| Rejection::malformed(None, reason))?;
                    self.last = Some((id, schema));
                }
                let rejected = |error: Malformed| {
                    Rejection::malformed_at(error.place(), format!("not decodable by schema {id}: {error}"))
                };
                let (_, schema) = self.last.as_ref().expect("it was just set");
                let transcoded = match &**schema {
                    Schema::Avro(schema) => schema.transcode(payload, &mut self.text),
                    Schema::Protobuf(set) => set
                        .root_of(payload)
                        .and_then(|(root, message)| set.transcode(root, message, &mut self.text)),
                };
                transcoded.map_err(rejected)
            }
        }
    }
}

impl Decoder for BinaryDecoder {
    fn field_errors(&self) -> &[FieldError] {
        self.json.field_errors()
    }

    fn decode(&mut self, raw: Raw<'_>) -> Result<Event, Rejection> {
        let Some(record) = raw.value.filter(|record| record.len() <= MAX_RECORD) else {
            // It is rejected, as it would be in JSON.
            return self.json.decode(raw);
        };
        self.transcode(record)?;
        let mut event = self.json.decode(Raw { value: Some(self.text.bytes()), ..raw })?;
        event.keep_record(record);
        Ok(event)
    }
}
