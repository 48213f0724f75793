//! Protobuf: a message becomes JSON, by its descriptor.
//!
//! ```text
//!   files ─▶ MessageSet ─────────────────┐
//!   bytes ─▶ fields, in order of number ─┴▶ transcode ─▶ JSON text
//! ```
//!
//! On the wire, fields come in any order, and one that is not repeated may come several times: the last one counts, and
//! messages are merged, which is the same as decoding their bytes one after the other. So the fields of a message are
//! first collected, as slices of the record, and then written.

mod descriptor;
#[cfg(test)]
mod tests;
mod text;
mod well_known;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

pub use descriptor::MessageSet;
use descriptor::{Field, Kind, MessageId};
use well_known::WellKnown;

use super::Malformed;
use super::json_text::JsonText;
use super::wire::Bytes;

/// The maximum nesting of groups and of messages in descriptors.
const MAX_DEPTH: usize = 64;

/// The number of nanoseconds in a second.
const NANOS: i64 = 1_000_000_000;

/// The value of a field as it is encoded.
#[derive(Clone, Copy, Debug)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// A field that was found in a message.
#[derive(Clone, Copy, Debug)]
struct Found<'a> {
    /// The index among the fields of the message.
    field: usize,
    wire: Wire<'a>,
}

/// The message of a set that records have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root(MessageId);

impl MessageSet {
    /// Returns the message with a full name.
    ///
    /// # Errors
    /// If there is none; the error names those that there are.
    pub fn root(&self, name: &str) -> Result<Root, String> {
        self.message(name).map(Root)
    }

    /// Returns the message that the indexes at the beginning of a record name, and the rest of the record.
    ///
    /// # Errors
    /// If the bytes are no indexes, or there is no such message.
    pub fn root_of<'a>(&self, record: &'a [u8]) -> Result<(Root, &'a [u8]), Malformed> {
        let (indexes, rest) = indexes(record)?;
        let root = self.by_indexes(&indexes).ok_or_else(|| {
            Malformed::from(format!("its schema has no message with the indexes {indexes:?}"))
        })?;
        Ok((Root(root), rest))
    }

    /// Writes a message, which is all of the bytes, as JSON.
    ///
    /// # Errors
    /// If the bytes are not such a message.
    pub fn transcode(&self, Root(id): Root, bytes: &[u8], out: &mut JsonText) -> Result<(), Malformed> {
        Transcoder { set: self, out }.message(id, bytes, &mut Vec::new())
    }
}

/// Returns the indexes of a message at the beginning of a record, and the rest of the record.
///
/// # Errors
/// If the bytes are no indexes.
pub(super) fn indexes(record: &[u8]) -> Result<(Vec<usize>, &[u8]), Malformed> {
    let mut bytes = Bytes::new(record);
    let count = bytes.zigzag()?;
    if !(0..=MAX_DEPTH as i64).contains(&count) {
        return Err(format!("its message has {count} indexes").into());
    }
    let mut indexes = Vec::new();
    for _ in 0..count {
        let index = bytes.zigzag()?;
        indexes.push(usize::try_from(index).map_err(|_| format!("an index of its message is {index}"))?);
    }
    if indexes.is_empty() {
        // The first message has this short form.
        indexes.push(0);
    }
    Ok((indexes, bytes.rest()))
}

/// Takes the number and the wire type of a field.
fn tag(bytes: &mut Bytes<'_>) -> Result<(u32, u32), Malformed> {
    let tag = bytes.varint()?;
    let tag = u32::try_from(tag).map_err(|_| "the number of a field is too large")?;
    match tag >> 3 {
        0 => Err("a field has the number 0".into()),
        number => Ok((number, tag & 7)),
    }
}

/// Passes over the value of a field.
fn skip(bytes: &mut Bytes<'_>, number: u32, wire_type: u32, depth: usize) -> Result<(), Malformed> {
    match wire_type {
        0 => drop(bytes.varint()?),
        1 => drop(bytes.take(8)?),
        2 => {
            let length = usize::try_from(bytes.varint()?).map_err(|_| "a length is too large")?;
            bytes.take(length)?;
        }
        3 if depth < MAX_DEPTH => loop {
            match tag(bytes)? {
                (end, 4) if end == number => break,
                (_, 4) => return Err(format!("the group {number} ends as another").into()),
                (inner, wire_type) => skip(bytes, inner, wire_type, depth + 1)?,
            }
        },
        3 => return Err("groups nest deeper than 64".into()),
        5 => drop(bytes.take(4)?),
        other => return Err(format!("the field {number} has the wire type {other}").into()),
    }
    Ok(())
}

struct Transcoder<'s, 'o> {
    set: &'s MessageSet,
    out: &'o mut JsonText,
}

impl<'s> Transcoder<'s, '_> {
    /// Writes a message. `found` has the fields of the messages around it, and is the same afterwards.
    fn message<'a>(
        &mut self,
        id: MessageId,
        bytes: &'a [u8],
        found: &mut Vec<Found<'a>>,
    ) -> Result<(), Malformed> {
        let message = &self.set.messages[id.0];
        let start = found.len();
        collect(&message.fields, bytes, found)?;
        match message.well_known {
            None => {
                self.out.open(b'{')?;
                self.fields(&message.fields, start, found)?;
                self.out.close(b'}');
            }
            Some(form) => self.well_known(form, &message.fields, start, found)?,
        }
        found.truncate(start);
        Ok(())
    }

    /// Writes the fields of a message, which were found from `start` on.
    fn fields<'a>(
        &mut self,
        fields: &'s [Field],
        start: usize,
        found: &mut Vec<Found<'a>>,
    ) -> Result<(), Malformed> {
        let (mut at, end) = (start, found.len());
        for (index, field) in fields.iter().enumerate() {
            let from = at;
            while at < end && found[at].field == index {
                at += 1;
            }
            if from < at {
                self.out.name(&field.name);
                self.field(field, from..at, found).map_err(|error| error.within(&field.name))?;
            } else if field.is_implicit && !matches!(field.kind, Kind::Text | Kind::Bytes) {
                self.out.name(&field.name);
                self.zero(field.kind)?;
            }
        }
        Ok(())
    }

    /// Writes the value of a field that was found in this range.
    fn field<'a>(
        &mut self,
        field: &'s Field,
        range: std::ops::Range<usize>,
        found: &mut Vec<Found<'a>>,
    ) -> Result<(), Malformed> {
        let set = self.set;
        match field.kind {
            Kind::Message(id) if field.is_repeated && set.messages[id.0].is_map_entry => {
                self.map(id, range, found)
            }
            _ if field.is_repeated => {
                self.out.open(b'[')?;
                for at in range {
                    self.element(field.kind, found[at].wire, found)?;
                }
                self.out.close(b']');
                Ok(())
            }
            Kind::Message(id) if range.len() > 1 => {
                let mut merged = Vec::new();
                for found in &found[range] {
                    merged.extend_from_slice(message_bytes(found.wire)?);
                }
                self.message(id, &merged, &mut Vec::new())
            }
            kind => {
                let last = found[range.end - 1].wire;
                self.value(kind, last, found)
            }
        }
    }

    /// Writes an element of an array, or several that are packed.
    fn element<'a>(
        &mut self,
        kind: Kind,
        wire: Wire<'a>,
        found: &mut Vec<Found<'a>>,
    ) -> Result<(), Malformed> {
        let is_packed = !matches!(kind, Kind::Text | Kind::Bytes | Kind::Message(_) | Kind::Group);
        let Wire::Bytes(packed) = wire else {
            self.out.separate();
            return self.value(kind, wire, found);
        };
        if !is_packed {
            self.out.separate();
            return self.value(kind, wire, found);
        }
        let mut packed = Bytes::new(packed);
        while packed.left() > 0 {
            let wire = match kind {
                Kind::Double | Kind::Fixed64 | Kind::SignedFixed64 => {
                    Wire::Fixed64(u64::from_le_bytes(packed.array()?))
                }
                Kind::Float | Kind::Fixed32 | Kind::SignedFixed32 => {
                    Wire::Fixed32(u32::from_le_bytes(packed.array()?))
                }
                _ => Wire::Varint(packed.varint()?),
            };
            self.out.separate();
            self.value(kind, wire, found)?;
        }
        Ok(())
    }

    /// Writes a map. Of several entries with one key, the last counts.
    fn map<'a>(
        &mut self,
        entry: MessageId,
        range: std::ops::Range<usize>,
        found: &mut Vec<Found<'a>>,
    ) -> Result<(), Malformed> {
        let fields = &self.set.messages[entry.0].fields;
        let [key, value] = &fields[..] else {
            return Err("its schema has a map without key and value".into());
        };
        let mut entries: Vec<(String, Option<Wire<'a>>)> = Vec::new();
        let mut index: HashMap<String, usize> = HashMap::new();
        for at in range {
            let start = found.len();
            collect(fields, message_bytes(found[at].wire)?, found)?;
            let last =
                |index| found[start..].iter().rfind(|found| found.field == index).map(|found| found.wire);
            let (key_wire, value_wire) = (last(0), last(1));
            let mut text = JsonText::default();
            let mut writer = Transcoder { set: self.set, out: &mut text };
            match key_wire {
                Some(wire) => writer.value(key.kind, wire, &mut Vec::new())?,
                None => writer.zero(key.kind)?,
            }
            found.truncate(start);
            let text = String::from_utf8(text.bytes().to_vec()).expect("JSON is UTF-8");
            match index.entry(text) {
                Entry::Occupied(known) => entries[*known.get()].1 = value_wire,
                Entry::Vacant(new) => {
                    entries.push((new.key().clone(), value_wire));
                    new.insert(entries.len() - 1);
                }
            }
        }
        self.out.open(b'{')?;
        for (key, wire) in entries {
            self.out.separate();
            if key.starts_with('"') {
                self.out.literal(&key)?;
            } else {
                self.out.string(&key)?;
            }
            self.out.literal(":")?;
            match wire {
                Some(wire) => self.value(value.kind, wire, found)?,
                None => self.zero(value.kind)?,
            }
        }
        self.out.close(b'}');
        Ok(())
    }

    /// Writes a single value.
    fn value<'a>(&mut self, kind: Kind, wire: Wire<'a>, found: &mut Vec<Found<'a>>) -> Result<(), Malformed> {
        match (kind, wire) {
            (Kind::Double, Wire::Fixed64(bits)) => self.out.float(f64::from_bits(bits)),
            (Kind::Float, Wire::Fixed32(bits)) => self.out.float(f32::from_bits(bits)),
            (Kind::Int, Wire::Varint(value)) => self.out.int(value as i64),
            (Kind::Unsigned, Wire::Varint(value)) => self.out.unsigned(value),
            (Kind::Zigzag, Wire::Varint(value)) => self.out.int((value >> 1) as i64 ^ -((value & 1) as i64)),
            (Kind::Fixed32, Wire::Fixed32(value)) => self.out.unsigned(value.into()),
            (Kind::Fixed64, Wire::Fixed64(value)) => self.out.unsigned(value),
            (Kind::SignedFixed32, Wire::Fixed32(value)) => self.out.int((value as i32).into()),
            (Kind::SignedFixed64, Wire::Fixed64(value)) => self.out.int(value as i64),
            (Kind::Bool, Wire::Varint(value)) => self.out.boolean(value != 0),
            (Kind::Text, Wire::Bytes(bytes)) => self.out.utf8(bytes),
            (Kind::Bytes, Wire::Bytes(bytes)) => self.out.base64(bytes),
            (Kind::Enum(at), Wire::Varint(value)) => match self.set.enums[at].get(&(value as i32)) {
                Some(name) => self.out.string(name),
                // A value that the schema does not have, as a newer producer may write it.
                None => self.out.int((value as i32).into()),
            },
            (Kind::Message(id), Wire::Bytes(bytes)) => self.message(id, bytes, found),
            (kind, wire) => Err(format!("{} was written as {}", kind_name(kind), wire_name(wire)).into()),
        }
    }

    /// Writes the value of a field that is not on the wire, but always has one.
    fn zero(&mut self, kind: Kind) -> Result<(), Malformed> {
        match kind {
            Kind::Bool => self.out.boolean(false),
            Kind::Text | Kind::Bytes => self.out.string(""),
            Kind::Enum(at) => match self.set.enums[at].get(&0) {
                Some(name) => self.out.string(name),
                None => self.out.int(0),
            },
            Kind::Message(id) => self.message(id, &[], &mut Vec::new()),
            _ => self.out.int(0),
        }
    }

    /// Writes a message that has a form of its own.
    fn well_known<'a>(
        &mut self,
        form: WellKnown,
        fields: &'s [Field],
        start: usize,
        found: &mut Vec<Found<'a>>,
    ) -> Result<(), Malformed> {
        let number = |number: u32| {
            let of = |found: &&Found<'_>| fields[found.field].number == number;
            match found[start..].iter().rfind(of).map(|found| found.wire) {
                Some(Wire::Varint(value)) => value as i64,
                _ => 0,
            }
        };
        let end = found.len();
        match form {
            WellKnown::Timestamp => match number(2) {
                nanos @ 0..NANOS => self.out.instant(number(1), nanos, 9, false, number(1)),
                nanos => Err(format!("a timestamp has {nanos} nanoseconds").into()),
            },
            WellKnown::Duration => {
                let (seconds, nanos) = (number(1), number(2));
                let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
                let (seconds, nanos) = (seconds.unsigned_abs(), nanos.unsigned_abs());
                self.out.string(&format!("{sign}{seconds}.{nanos:09}s"))
            }
            WellKnown::Decimal => {
                let scale = u32::try_from(number(3)).ok().filter(|scale| *scale <= 1000);
                let scale = scale.ok_or_else(|| format!("a decimal number has the scale {}", number(3)))?;
                let of = |found: &&Found<'_>| fields[found.field].number == 1;
                match found[start..].iter().rfind(of).map(|found| found.wire) {
                    Some(Wire::Bytes(bytes)) => self.out.decimal(bytes, scale),
                    _ => self.out.decimal(&[], scale),
                }
            }
            WellKnown::Value
                if found[start..].last().is_some_and(|found| fields[found.field].number == 1) =>
            {
                self.out.literal("null")
            }
            WellKnown::Wrapper | WellKnown::Value | WellKnown::Struct | WellKnown::ListValue => {
                match found[start..].last() {
                    Some(last) => self.field(&fields[last.field], start..end, found),
                    None if form == WellKnown::Struct => self.out.literal("{}"),
                    None if form == WellKnown::ListValue => self.out.literal("[]"),
                    None if form == WellKnown::Value => self.out.literal("null"),
                    None => self.zero(fields[0].kind),
                }
            }
        }
    }
}

/// Collects the known fields of a message, in the order of their numbers; of a oneof, only the last one.
fn collect<'a>(fields: &[Field], bytes: &'a [u8], found: &mut Vec<Found<'a>>) -> Result<(), Malformed> {
    let start = found.len();
    let mut bytes = Bytes::new(bytes);
    while bytes.left() > 0 {
        let (number, wire_type) = tag(&mut bytes)?;
        let field = match fields.get(number as usize - 1) {
            Some(field) if field.number == number => Ok(number as usize - 1),
            _ => fields.binary_search_by_key(&number, |field| field.number),
        };
        let (Ok(field), 0..=2 | 5) = (field, wire_type) else {
            skip(&mut bytes, number, wire_type, 0)?;
            continue;
        };
        let wire = match wire_type {
            0 => Wire::Varint(bytes.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(bytes.array()?)),
            5 => Wire::Fixed32(u32::from_le_bytes(bytes.array()?)),
            _ => {
                let length = usize::try_from(bytes.varint()?).map_err(|_| "a length is too large")?;
                Wire::Bytes(bytes.take(length)?)
            }
        };
        found.push(Found { field, wire });
    }
    keep_last_of_oneofs(fields, start, found);
    if !found[start..].is_sorted_by_key(|found| found.field) {
        found[start..].sort_by_key(|found| found.field);
    }
    Ok(())
}

/// Removes the fields of a oneof that come before another one of it.
fn keep_last_of_oneofs(fields: &[Field], start: usize, found: &mut Vec<Found<'_>>) {
    let mut last: Vec<(u32, usize)> = Vec::new();
    for found in found[start..].iter().rev() {
        if let Some(oneof) = fields[found.field].oneof
            && !last.iter().any(|(other, _)| *other == oneof)
        {
            last.push((oneof, found.field));
        }
    }
    if last.is_empty() {
        return;
    }
    let mut to = start;
    for at in start..found.len() {
        let field = found[at].field;
        let oneof = fields[field].oneof;
        if oneof.is_none_or(|oneof| last.contains(&(oneof, field))) {
            found[to] = found[at];
            to += 1;
        }
    }
    found.truncate(to);
}

fn message_bytes(wire: Wire<'_>) -> Result<&[u8], Malformed> {
    match wire {
        Wire::Bytes(bytes) => Ok(bytes),
        other => Err(format!("a message was written as {}", wire_name(other)).into()),
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Double => "a double",
        Kind::Float => "a float",
        Kind::Int | Kind::Unsigned | Kind::Zigzag => "a whole number of variable length",
        Kind::Fixed32 | Kind::SignedFixed32 => "a whole number of 32 bits",
        Kind::Fixed64 | Kind::SignedFixed64 => "a whole number of 64 bits",
        Kind::Bool => "a boolean",
        Kind::Text => "a text",
        Kind::Bytes => "bytes",
        Kind::Enum(_) => "an enum",
        Kind::Message(_) => "a message",
        Kind::Group => "a group",
    }
}

fn wire_name(wire: Wire<'_>) -> &'static str {
    match wire {
        Wire::Varint(_) => "a number of variable length",
        Wire::Fixed64(_) => "64 bits",
        Wire::Fixed32(_) => "32 bits",
        Wire::Bytes(_) => "bytes",
    }
}
