//! Staged rows. They are encoded when they are staged, so that a commit only streams them.

use std::collections::{BTreeSet, HashMap};

use super::encode;
use crate::tables::{ALL, Mode, TABLES};
use crate::{Cell, Changes, Row, row_name};

/// The changes of one call of `stage`, by table.
#[derive(Default)]
pub(super) struct Staged {
    /// Rows of append-only tables that are new.
    pub appended: [Vec<u8>; ALL.len()],
    /// Rows of append-only tables that may be stored already.
    pub replayed: [Vec<u8>; ALL.len()],
    keyed: [Keyed; ALL.len()],
    /// The days of the rows, in days since 1970, if the tables are partitioned.
    pub days: [BTreeSet<i64>; TABLES.len()],
}

/// The changes of a keyed table, in order.
#[derive(Default)]
struct Keyed {
    bytes: Vec<u8>,
    rows: Vec<KeyedRow>,
}

struct KeyedRow {
    deletes: bool,
    key_end: usize,
    end: usize,
}

/// The last change of each key of a table: rows to write and keys to delete.
#[derive(Default)]
pub(super) struct LastChanges<'a> {
    pub rows: Vec<&'a [u8]>,
    pub deleted: Vec<&'a [u8]>,
}

/// The greatest offset stored when the sink was opened, by partition. Rows with greater offsets are new.
#[derive(Default)]
pub(super) struct Stored(pub HashMap<i64, i64>);

impl Stored {
    /// Returns true if a row of an append-only table, which begins with partition and offset, may be stored already.
    fn may_have(&self, row: &Row<'_>) -> bool {
        let mut cells = row.cells();
        match (cells.next(), cells.next()) {
            (Some(Cell::Int(partition)), Some(Cell::Int(offset))) => {
                self.0.get(&partition).is_some_and(|&stored| offset <= stored)
            }
            _ => false,
        }
    }
}

impl Staged {
    /// Encodes `changes`.
    ///
    /// # Errors
    /// If a table cannot store a row: the name of the output, and a reason that names the table and the column.
    pub fn encode(changes: &Changes, stored: &Stored) -> Result<Staged, (String, String)> {
        let mut staged = Staged::default();
        for row in changes.rows.iter() {
            let no_table = || (row.table.to_string(), format!("there is no table {}", row.table));
            let table = ALL.get(row.table).ok_or_else(no_table)?;
            let of_table = |reason| (row_name(&row), format!("table {}: {reason}", table.name));
            match table.mode {
                Mode::Append if row.deletes => {
                    return Err(of_table("rows of an append-only table cannot be deleted".to_owned()));
                }
                Mode::Append => {
                    let to = if stored.may_have(&row) { &mut staged.replayed } else { &mut staged.appended };
                    encode::row(&mut to[row.table], table.columns, row.cells()).map_err(of_table)?;
                }
                Mode::Upsert { key } => {
                    let columns = if row.deletes { &table.columns[..key] } else { table.columns };
                    let Keyed { bytes, rows } = &mut staged.keyed[row.table];
                    let start = bytes.len();
                    encode::row(bytes, columns, row.cells()).map_err(of_table)?;
                    let key_end = start + encode::leading_fields(&bytes[start..], key);
                    rows.push(KeyedRow { deletes: row.deletes, key_end, end: bytes.len() });
                }
            }
        }
        Ok(staged)
    }
}

impl Staged {
    /// Returns the encoded rows of a table.
    pub fn rows(&self, table: usize) -> Vec<&[u8]> {
        let columns = ALL[table].columns.len();
        let mut found = Vec::new();
        for mut rest in [&self.appended[table][..], &self.replayed[table]] {
            while !rest.is_empty() {
                let (row, after) = rest.split_at(encode::leading_fields(rest, columns).min(rest.len()));
                found.push(row);
                rest = after;
            }
        }
        let Keyed { bytes, rows } = &self.keyed[table];
        let mut start = 0;
        for row in rows {
            found.extend((!row.deletes).then_some(&bytes[start..row.end]));
            start = row.end;
        }
        found
    }
}

/// Returns the days of the rows of a round.
pub(super) fn days<'a>(round: impl Iterator<Item = &'a Staged>) -> [BTreeSet<i64>; TABLES.len()] {
    let mut days: [BTreeSet<i64>; TABLES.len()] = Default::default();
    for staged in round {
        for (all, of_staged) in days.iter_mut().zip(&staged.days) {
            all.extend(of_staged);
        }
    }
    days
}

impl<'a> LastChanges<'a> {
    /// Reads the changes of `table` in the order of `staged`.
    pub fn of(staged: impl Iterator<Item = &'a Staged>, table: usize) -> LastChanges<'a> {
        let mut last = HashMap::new();
        let mut order = 0usize;
        for Keyed { bytes, rows } in staged.map(|staged| &staged.keyed[table]) {
            let mut start = 0;
            for row in rows {
                let key = &bytes[start + encode::COUNT..row.key_end];
                last.insert(key, (order, row.deletes, &bytes[start..row.end]));
                order += 1;
                start = row.end;
            }
        }
        let mut last: Vec<_> = last.into_values().collect();
        last.sort_unstable_by_key(|&(order, ..)| order);
        let mut changes = LastChanges::default();
        for (_, deletes, row) in last {
            if deletes { &mut changes.deleted } else { &mut changes.rows }.push(row);
        }
        changes
    }
}
