//! Rows as lines of JSON: the columns of the table are the members of an object.

use headwater_dataflows::Epoch;

use crate::tables::{TABLES, Table};
use crate::text::{decimal, rfc3339};
use crate::{Cell, Row, Rows, row_name};

/// The lines of each table, in the order of [`TABLES`].
pub(super) type Lines = [Vec<u8>; TABLES.len()];

/// Encodes rows of an epoch. The error names the row, and the reason why JSON cannot represent it.
pub(super) fn encode(epoch: Epoch, rows: &Rows) -> Result<Lines, (String, String)> {
    let mut lines = Lines::default();
    for row in rows.iter() {
        write_line(&mut lines[row.table], epoch, &TABLES[row.table], &row)
            .map_err(|reason| (row_name(&row), reason))?;
    }
    Ok(lines)
}

fn write_line(out: &mut Vec<u8>, epoch: Epoch, table: &Table, row: &Row<'_>) -> Result<(), String> {
    for (at, (column, cell)) in table.columns.iter().zip(row.cells()).enumerate() {
        out.push(if at == 0 { b'{' } else { b',' });
        write_cell(out, column.name, cell)
            .map_err(|reason| format!("{}.{}: {reason}", table.name, column.name))?;
    }
    if row.deletes {
        // The cells are only those of the key.
        out.extend_from_slice(format!(",\"epoch\":{epoch},\"deleted\":true").as_bytes());
    }
    out.extend_from_slice(b"}\n");
    Ok(())
}

/// Appends a cell as a member of an object. Bytes are text if they are UTF-8, and otherwise a member `NAME_base64`.
fn write_cell(out: &mut Vec<u8>, name: &str, cell: Cell<'_>) -> Result<(), String> {
    match cell {
        Cell::Bytes(bytes) if std::str::from_utf8(bytes).is_err() => {
            write_name(out, &format!("{name}_base64"))
        }
        _ => write_name(out, name),
    }
    match cell {
        Cell::Null => out.extend_from_slice(b"null"),
        Cell::Bool(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
        Cell::Int(value) => out.extend_from_slice(value.to_string().as_bytes()),
        Cell::Float(value) if value.is_finite() => out.extend_from_slice(value.to_string().as_bytes()),
        Cell::Float(value) => return Err(format!("JSON has no number {value}")),
        Cell::Micros(value) => out.extend_from_slice(decimal(value).as_bytes()),
        Cell::Time(value) => write_string(out, &rfc3339(value)),
        Cell::Text(value) => write_string(out, value),
        // Within JSON, ends of lines can only be space between values: in strings they are escaped.
        Cell::Json(value) => {
            out.extend(value.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
        }
        Cell::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => write_string(out, text),
            Err(_) => write_string(out, &base64(bytes)),
        },
    }
    Ok(())
}

fn write_name(out: &mut Vec<u8>, name: &str) {
    write_string(out, name);
    out.push(b':');
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("writing to a Vec cannot fail");
}

/// Encodes bytes in base64, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0, |group, &byte| group << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}
