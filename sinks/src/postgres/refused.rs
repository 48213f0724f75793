//! Finds the output that made the server refuse a round: the server reports the table and values of a row, and the
//! staged rows give its epoch.

use std::collections::BTreeMap;

use headwater_dataflows::Epoch;

use super::staged::Staged;
use super::{encode, partitions};
use crate::tables::{ALL, ColumnType};
use crate::text::rfc3339;

/// Returns the epoch and the name of the output that the server's error detail refers to. If a key changes more than
/// once, this is its last change, because only that one is written.
pub(super) fn output(
    staged: &BTreeMap<Epoch, Vec<Staged>>,
    through: Epoch,
    table: &str,
    detail: &str,
) -> Option<(Epoch, String)> {
    // The server names the partition of the row.
    let index = partitions::table_of(table)?;
    let table = ALL[index].name;
    let values = values(detail)?;
    let key = ALL[index].columns[..ALL[index].key()].iter();
    let mut found = None;
    for (&epoch, staged) in staged.range(..=through) {
        for row in staged.iter().flat_map(|staged| staged.rows(index)) {
            let cells: Vec<_> = encode::leading_cells(row, key.clone().map(|column| column.kind)).collect();
            // Times are not compared: the server formats them in its own time zone.
            let matches = cells
                .iter()
                .zip(&values)
                .all(|((kind, cell), value)| *kind == ColumnType::Time || cell == value);
            if matches && cells.len() <= values.len() {
                let cells: Vec<_> = cells.into_iter().map(|(_, cell)| cell).collect();
                found = Some((epoch, format!("{table}/{}", cells.join("/"))));
            }
        }
    }
    found
}

/// Returns the values in the last parentheses of `Key (partition, "offset")=(3, 42) already exists.` or
/// `Failing row contains (3, 42).`
fn values(detail: &str) -> Option<Vec<&str>> {
    let inside = match detail.split_once(")=(") {
        Some((_, rest)) => rest.split_once(") ")?.0,
        None => detail.split_once("contains (")?.1.strip_suffix(").")?,
    };
    Some(inside.split(", ").collect())
}

/// Formats a field in PostgreSQL's binary format as it appears in the names of outputs.
pub(super) fn text(kind: ColumnType, field: &[u8]) -> String {
    let number = |bytes: &[u8]| bytes.iter().fold(0i64, |sum, &byte| sum << 8 | i64::from(byte));
    match kind {
        ColumnType::Int => (number(field) as i32).to_string(),
        ColumnType::BigInt => number(field).to_string(),
        ColumnType::Time => rfc3339(number(field) / 1000 + encode::EPOCH_MS),
        _ => String::from_utf8_lossy(field).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cell, Changes, tables};

    #[test]
    fn the_last_change_of_the_refused_row_is_found() {
        let event = |partition, offset| {
            let mut changes = Changes::default();
            let mut row = changes.rows.row(tables::EVENTS);
            row.cell(Cell::Int(partition)).cell(Cell::Int(offset));
            for _ in 2..ALL[0].columns.len() {
                row.cell(Cell::Null);
            }
            row.end();
            Staged::encode(&changes, &Default::default()).map_err(|(_, reason)| reason).expect("encoded")
        };
        let alert = |id| {
            let mut changes = Changes::default();
            let mut row = changes.rows.row(tables::ALERTS);
            row.cell(Cell::Text(id));
            for _ in 1..ALL[1].columns.len() {
                row.cell(Cell::Null);
            }
            row.end();
            Staged::encode(&changes, &Default::default()).map_err(|(_, reason)| reason).expect("encoded")
        };
        let staged = BTreeMap::from([
            (Epoch(3), vec![event(1, 7), alert("ab")]),
            (Epoch(4), vec![event(1, 8), alert("ab")]),
            (Epoch(5), vec![event(1, 9), alert("ab")]),
        ]);
        let found = |table, detail| output(&staged, Epoch(4), table, detail);
        let taken = "Key (partition, \"offset\")=(1, 7) already exists.";
        assert_eq!(found("events", taken), Some((Epoch(3), "events/1/7".into())));
        let failing = "Failing row contains (1, 8, null, null).";
        assert_eq!(found("events", failing), Some((Epoch(4), "events/1/8".into())));
        let in_partition =
            "Key (partition, \"offset\", event_time)=(1, 7, 2026-11-29 00:00:00+00) already exists.";
        assert_eq!(found("events_2026_11_29", in_partition), Some((Epoch(3), "events/1/7".into())));
        assert_eq!(
            found("alerts", "Failing row contains (ab, raised)."),
            Some((Epoch(4), "alerts/ab".into()))
        );
        assert_eq!(found("events", "Failing row contains (1, 9, null)."), None, "a later round");
        assert_eq!(found("others", failing), None);
        assert_eq!(found("events", "something else"), None);
    }
}
