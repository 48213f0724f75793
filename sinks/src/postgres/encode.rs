//! Rows in the binary format of `COPY`: PostgreSQL's documentation, "COPY", "Binary Format".

use crate::Cell;
use crate::tables::{Column, ColumnType};

/// Seconds from 1970-01-01 to 2000-01-01, where PostgreSQL counts from.
const EPOCH_2000: i64 = 946_684_800;

/// Rows on their way into a table.
pub(super) struct CopyBuffer(Vec<u8>);

impl CopyBuffer {
    /// With the header, and no row yet.
    pub fn new() -> CopyBuffer {
        let mut bytes = b"PGCOPY\n\xff\r\n\0".to_vec();
        bytes.extend_from_slice(&[0; 8]);
        CopyBuffer(bytes)
    }

    /// Appends a row of these columns.
    pub fn row<'a>(&mut self, columns: &[Column], cells: impl Iterator<Item = Cell<'a>>) {
        let out = &mut self.0;
        out.extend_from_slice(&(columns.len() as i16).to_be_bytes());
        for (column, cell) in columns.iter().zip(cells) {
            let at = out.len();
            out.extend_from_slice(&(-1i32).to_be_bytes());
            match cell {
                Cell::Null => continue,
                Cell::Bool(value) => out.push(value.into()),
                Cell::Int(value) if column.kind == ColumnType::Int => {
                    out.extend_from_slice(&(value as i32).to_be_bytes())
                }
                Cell::Int(value) => out.extend_from_slice(&value.to_be_bytes()),
                Cell::Float(value) => out.extend_from_slice(&value.to_be_bytes()),
                Cell::Micros(value) => numeric(out, value),
                Cell::Time(ms) => out.extend_from_slice(&timestamp(ms).to_be_bytes()),
                Cell::Text(text) => out.extend_from_slice(text.as_bytes()),
                Cell::Json(text) => {
                    out.push(1);
                    out.extend_from_slice(text.as_bytes());
                }
                Cell::Bytes(bytes) => out.extend_from_slice(bytes),
            }
            let len = (out.len() - at - 4) as i32;
            out[at..at + 4].copy_from_slice(&len.to_be_bytes());
        }
    }

    /// With the trailer.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&(-1i16).to_be_bytes());
        self.0
    }
}

/// Microseconds since 2000. The file source's records have no clock: their timestamp is `infinity`.
fn timestamp(ms: i64) -> i64 {
    if ms == i64::MAX { i64::MAX } else { ms.saturating_sub(EPOCH_2000 * 1000).saturating_mul(1000) }
}

/// A decimal number: groups of four digits, the weight of the first, sign, and digits behind the point.
fn numeric(out: &mut Vec<u8>, micros: i128) {
    let size = micros.unsigned_abs();
    let (mut whole, fraction) = (size / 1_000_000, (size % 1_000_000) as u32);
    let mut groups = Vec::with_capacity(12);
    while whole > 0 {
        groups.push((whole % 10_000) as i16);
        whole /= 10_000;
    }
    groups.reverse();
    let mut weight = groups.len() as i16 - 1;
    groups.extend([(fraction / 100) as i16, (fraction % 100 * 100) as i16]);
    while groups.last() == Some(&0) {
        groups.pop();
    }
    let leading = groups.iter().take_while(|group| **group == 0).count();
    groups.drain(..leading);
    weight -= leading as i16;
    if groups.is_empty() {
        weight = 0;
    }
    let mut scale = 6i16;
    let mut rest = fraction;
    while scale > 0 && rest.is_multiple_of(10) {
        rest /= 10;
        scale -= 1;
    }
    let sign: u16 = if micros < 0 { 0x4000 } else { 0 };
    out.extend_from_slice(&(groups.len() as i16).to_be_bytes());
    out.extend_from_slice(&weight.to_be_bytes());
    out.extend_from_slice(&sign.to_be_bytes());
    out.extend_from_slice(&scale.to_be_bytes());
    groups.iter().for_each(|group| out.extend_from_slice(&group.to_be_bytes()));
}
