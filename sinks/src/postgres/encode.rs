//! Rows in PostgreSQL's binary COPY format.
//!
//! A row is the number of its fields and, for each field, its length (−1 for null) and its value in the binary format
//! of the type, all in network byte order. Equal cells have equal bytes, so keys are compared by their bytes.

use crate::Cell;
use crate::tables::{Column, ColumnType};

/// The header of a COPY stream: the signature, no flags, no extension.
pub(super) const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// The trailer of a COPY stream, in the position of a number of fields.
pub(super) const TRAILER: &[u8] = &(-1i16).to_be_bytes();

/// The size in bytes of a row's number of fields.
pub(super) const COUNT: usize = 2;

/// Milliseconds from 1970 to 2000, the epoch of PostgreSQL's timestamps.
pub(super) const EPOCH_MS: i64 = 946_684_800_000;

/// The timestamps that PostgreSQL can store, in microseconds since 2000: 4714-11-24 BC to the year 294276, inclusive.
const TIMES_US: std::ops::Range<i64> = -211_813_488_000_000_000..9_223_371_331_200_000_000;

/// Appends a row of `columns` to `out`.
///
/// # Errors
/// If the number of cells and columns differs, or if a column cannot store its cell. `out` then contains a part of the
/// row.
pub(super) fn row<'a>(
    out: &mut Vec<u8>,
    columns: &[Column],
    cells: impl Iterator<Item = Cell<'a>>,
) -> Result<(), String> {
    let count = i16::try_from(columns.len()).map_err(|_| "too many columns".to_owned())?;
    out.extend_from_slice(&count.to_be_bytes());
    let mut columns = columns.iter();
    for cell in cells {
        let column = columns.next().ok_or("the row has more cells than the table has columns")?;
        field(out, column.kind, cell).map_err(|reason| format!("column {}: {reason}", column.name))?;
    }
    match columns.next() {
        Some(column) => Err(format!("the row has no cell for column {}", column.name)),
        None => Ok(()),
    }
}

/// Returns the end of the first `n` fields of a row written by [`row`].
pub(super) fn leading_fields(row: &[u8], n: usize) -> usize {
    let mut end = COUNT;
    for _ in 0..n {
        let Some(length) = row[end..].first_chunk() else { break };
        end += 4 + usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
    }
    end
}

/// Returns the first fields of a row written by [`row`] as text. `kinds` are their types.
pub(super) fn leading_cells(
    row: &[u8],
    kinds: impl Iterator<Item = ColumnType>,
) -> impl Iterator<Item = (ColumnType, String)> {
    kinds.enumerate().map(move |(at, kind)| {
        let (start, end) = (leading_fields(row, at), leading_fields(row, at + 1));
        (kind, super::refused::text(kind, row.get(start + 4..end).unwrap_or_default()))
    })
}

fn field(out: &mut Vec<u8>, kind: ColumnType, cell: Cell<'_>) -> Result<(), String> {
    match (kind, cell) {
        (_, Cell::Null) => out.extend_from_slice(&(-1i32).to_be_bytes()),
        (ColumnType::Bool, Cell::Bool(value)) => sized(out, &[u8::from(value)])?,
        (ColumnType::Int, Cell::Int(value)) => {
            let value = i32::try_from(value).map_err(|_| format!("{value} exceeds 32 bits"))?;
            sized(out, &value.to_be_bytes())?;
        }
        (ColumnType::BigInt, Cell::Int(value)) => sized(out, &value.to_be_bytes())?,
        (ColumnType::Double, Cell::Float(value)) => sized(out, &value.to_be_bytes())?,
        (ColumnType::Numeric, Cell::Micros(value)) => numeric(out, value),
        (ColumnType::Time, Cell::Time(ms)) => sized(out, &microseconds(ms).to_be_bytes())?,
        (ColumnType::Text, Cell::Text(value)) if value.as_bytes().contains(&0) => {
            return Err("the text contains a NUL character, which PostgreSQL cannot store".to_owned());
        }
        (ColumnType::Text, Cell::Text(value)) => sized(out, value.as_bytes())?,
        (ColumnType::Json, Cell::Json(value)) if has_nul(value) => {
            return Err(
                "the JSON document contains a NUL character, which PostgreSQL cannot store".to_owned()
            );
        }
        (ColumnType::Json, Cell::Json(value)) => {
            length(out, value.len() + 1)?;
            out.push(1); // The version of jsonb's binary format, which is followed by the text.
            out.extend_from_slice(value.as_bytes());
        }
        (ColumnType::Bytes, Cell::Bytes(value)) => sized(out, value)?,
        (kind, cell) => return Err(format!("a {kind:?} column cannot store {}", name(cell))),
    }
    Ok(())
}

/// Returns microseconds since 2000. Times that PostgreSQL cannot store become `infinity` or `-infinity`: a record of a
/// file has no timestamp (`i64::MAX`), and the producer of a Kafka record may set any timestamp.
fn microseconds(ms: i64) -> i64 {
    let us = ms.checked_sub(EPOCH_MS).and_then(|ms| ms.checked_mul(1000));
    let infinity = if ms < 0 { i64::MIN } else { i64::MAX };
    us.filter(|us| TIMES_US.contains(us)).unwrap_or(infinity)
}

/// Describes the type of a cell, without its value.
fn name(cell: Cell<'_>) -> &'static str {
    match cell {
        Cell::Null => "null",
        Cell::Bool(_) => "a boolean",
        Cell::Int(_) => "an integer",
        Cell::Float(_) => "a double",
        Cell::Micros(_) => "a decimal number",
        Cell::Time(_) => "a time",
        Cell::Text(_) => "text",
        Cell::Json(_) => "a JSON document",
        Cell::Bytes(_) => "bytes",
    }
}

/// Returns true if a JSON text contains a NUL, as such or escaped: jsonb cannot store it.
fn has_nul(json: &str) -> bool {
    json.as_bytes().contains(&0)
        || json.match_indices(r"\u0000").any(|(at, _)| {
            let before = json.as_bytes()[..at].iter().rev().take_while(|&&byte| byte == b'\\').count();
            before % 2 == 0
        })
}

fn length(out: &mut Vec<u8>, length: usize) -> Result<(), String> {
    let length =
        i32::try_from(length).map_err(|_| format!("{length} bytes exceed the largest size of a field"))?;
    out.extend_from_slice(&length.to_be_bytes());
    Ok(())
}

fn sized(out: &mut Vec<u8>, value: &[u8]) -> Result<(), String> {
    length(out, value.len())?;
    out.extend_from_slice(value);
    Ok(())
}

/// Appends millionths as a `numeric`: digits in base 10,000, the first of which is multiplied by 10,000^weight.
fn numeric(out: &mut Vec<u8>, micros: i128) {
    const BASE: u128 = 10_000;
    let size = micros.unsigned_abs();
    let (mut whole, fraction) = (size / 1_000_000, size % 1_000_000 * 100);
    // From the least significant digit: two digits of the fraction, then those of the integer part, at most nine.
    let mut digits = [0u16; 12];
    (digits[0], digits[1]) = ((fraction % BASE) as u16, (fraction / BASE) as u16);
    let mut high = 2;
    while whole > 0 {
        digits[high] = (whole % BASE) as u16;
        whole /= BASE;
        high += 1;
    }
    while high > 0 && digits[high - 1] == 0 {
        high -= 1;
    }
    let low = digits[..high].iter().take_while(|&&digit| digit == 0).count();
    let count = high - low;
    let weight = if count == 0 { 0 } else { high as i16 - 3 };
    let sign: u16 = if micros < 0 { 0x4000 } else { 0 };
    // The number of decimal places without trailing zeros.
    let scale = (0..=6u32).find(|&places| size.is_multiple_of(10u128.pow(6 - places))).unwrap_or(6) as u16;
    out.extend_from_slice(&(8 + 2 * count as i32).to_be_bytes());
    out.extend_from_slice(&(count as u16).to_be_bytes());
    out.extend_from_slice(&weight.to_be_bytes());
    out.extend_from_slice(&sign.to_be_bytes());
    out.extend_from_slice(&scale.to_be_bytes());
    for digit in digits[low..high].iter().rev() {
        out.extend_from_slice(&digit.to_be_bytes());
    }
}
