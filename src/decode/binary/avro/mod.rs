//! Avro: a record in Avro's binary encoding becomes JSON, by the schema that it was written with.
//!
//! ```text
//!   schema, references ─▶ AvroSchema ─┐
//!   bytes ────────────────────────────┴▶ transcode ─▶ JSON text
//! ```
//!
//! Nothing is allocated by a length in the record: it is compared with the bytes that are left.

mod schema;
#[cfg(test)]
mod tests;

pub use schema::AvroSchema;
use schema::{Type, TypeId, Unit};

use super::Malformed;
use super::json_text::JsonText;
use super::wire::Bytes;

impl AvroSchema {
    /// Writes a record, which is all of the bytes, as JSON.
    ///
    /// # Errors
    /// If the bytes are not a value of the schema.
    pub fn transcode(&self, bytes: &[u8], out: &mut JsonText) -> Result<(), Malformed> {
        let mut transcoder = Transcoder { schema: self, bytes: Bytes::new(bytes), out };
        transcoder.value(self.root)?;
        match transcoder.bytes.left() {
            0 => Ok(()),
            left => Err(format!("{left} bytes are left after the record").into()),
        }
    }
}

struct Transcoder<'a> {
    schema: &'a AvroSchema,
    bytes: Bytes<'a>,
    out: &'a mut JsonText,
}

impl<'a> Transcoder<'a> {
    fn value(&mut self, TypeId(at): TypeId) -> Result<(), Malformed> {
        let schema = self.schema;
        match &schema.types[at] {
            Type::Null => self.out.literal("null"),
            Type::Boolean => match self.bytes.take(1)? {
                [0] => self.out.boolean(false),
                [1] => self.out.boolean(true),
                other => Err(format!("a boolean is {}, neither 0 nor 1", other[0]).into()),
            },
            Type::Int => {
                let value = self.int()?;
                self.out.int(value)
            }
            Type::Long => {
                let value = self.bytes.zigzag()?;
                self.out.int(value)
            }
            Type::Float => {
                let value = f32::from_le_bytes(self.bytes.array()?);
                self.out.float(value)
            }
            Type::Double => {
                let value = f64::from_le_bytes(self.bytes.array()?);
                self.out.float(value)
            }
            Type::Bytes => {
                let bytes = self.prefixed()?;
                self.out.base64(bytes)
            }
            Type::Text => {
                let bytes = self.prefixed()?;
                self.out.utf8(bytes)
            }
            Type::Fixed(size) => {
                let bytes = self.bytes.take(*size)?;
                self.out.base64(bytes)
            }
            Type::Enum(symbols) => {
                let at = self.bytes.zigzag()?;
                let symbol = usize::try_from(at).ok().and_then(|at| symbols.get(at));
                let symbol = symbol.ok_or_else(|| out_of_range("an enum's symbol", at, symbols.len()))?;
                self.out.string(symbol)
            }
            Type::Array(items) => self.array(*items),
            Type::Map(values) => self.map(*values),
            Type::Union(branches) => {
                let at = self.bytes.zigzag()?;
                let branch = usize::try_from(at).ok().and_then(|at| branches.get(at));
                self.value(*branch.ok_or_else(|| out_of_range("a union's branch", at, branches.len()))?)
            }
            Type::Record(fields) => {
                self.out.open(b'{')?;
                for field in fields {
                    self.out.name(&field.name);
                    self.value(field.kind).map_err(|error| error.within(&field.name))?;
                }
                self.out.close(b'}');
                Ok(())
            }
            logical => self.logical(logical),
        }
    }

    fn logical(&mut self, kind: &Type) -> Result<(), Malformed> {
        match kind {
            Type::Date => {
                let days = self.int()?;
                self.out.day(days)
            }
            Type::TimeOfDay(unit) => {
                let units = if *unit == Unit::Millis { self.int()? } else { self.bytes.zigzag()? };
                let (per_second, digits) = unit.per_second();
                self.out.time(units, per_second, digits)
            }
            Type::Timestamp { unit, is_local } => {
                let units = self.bytes.zigzag()?;
                let (per_second, digits) = unit.per_second();
                self.out.timestamp(units, per_second, digits, *is_local)
            }
            Type::Decimal { scale, size } => {
                let bytes = match size {
                    Some(size) => self.bytes.take(*size)?,
                    None => self.prefixed()?,
                };
                self.out.decimal(bytes, *scale)
            }
            Type::Uuid => {
                let id = u128::from_be_bytes(self.bytes.array()?);
                let part = |shift: u32, bits: u32| (id >> shift) & ((1 << bits) - 1);
                self.out.string(&format!(
                    "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
                    part(96, 32),
                    part(80, 16),
                    part(64, 16),
                    part(48, 16),
                    part(0, 48)
                ))
            }
            Type::Duration => {
                let mut part = || self.bytes.array().map(u32::from_le_bytes);
                let (months, days, millis) = (part()?, part()?, part()?);
                self.out.literal(&format!("{{\"months\":{months},\"days\":{days},\"millis\":{millis}}}"))
            }
            _ => unreachable!("the other types are not logical"),
        }
    }

    fn array(&mut self, items: TypeId) -> Result<(), Malformed> {
        self.out.open(b'[')?;
        while let Some(count) = self.block()? {
            for _ in 0..count {
                self.out.separate();
                self.value(items)?;
            }
        }
        self.out.close(b']');
        Ok(())
    }

    fn map(&mut self, values: TypeId) -> Result<(), Malformed> {
        self.out.open(b'{')?;
        while let Some(count) = self.block()? {
            for _ in 0..count {
                let key = self.prefixed()?;
                let key = std::str::from_utf8(key).map_err(|_| "the key of a map is not UTF-8")?;
                self.out.name(key);
                self.value(values).map_err(|error| error.within(key))?;
            }
        }
        self.out.close(b'}');
        Ok(())
    }

    /// Returns the number of items in the next block of an array or map; None at its end.
    fn block(&mut self) -> Result<Option<u64>, Malformed> {
        let count = self.bytes.zigzag()?;
        if count < 0 {
            // The size of the block follows, for readers that skip it.
            self.bytes.zigzag()?;
        }
        Ok((count != 0).then_some(count.unsigned_abs()))
    }

    fn int(&mut self) -> Result<i64, Malformed> {
        let value = self.bytes.zigzag()?;
        i32::try_from(value).map(i64::from).map_err(|_| format!("an int is {value}, beyond 32 bits").into())
    }

    /// Returns bytes after their length.
    fn prefixed(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.bytes.zigzag()?;
        let length = usize::try_from(length).map_err(|_| format!("a length is {length}"))?;
        self.bytes.take(length)
    }
}

fn out_of_range(what: &str, index: i64, count: usize) -> Malformed {
    format!("{what} is number {index}, and there are {count}").into()
}
