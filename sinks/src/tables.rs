//! The output tables, which are the same in every SQL store. A [`Row`](crate::Row) refers to its table by the index in
//! [`ALL`] and has its cells in the order of the columns.

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// True or false.
    Bool,
    /// A 32-bit integer.
    Int,
    /// A 64-bit integer.
    BigInt,
    /// A double.
    Double,
    /// A decimal number.
    Numeric,
    /// A timestamp with time zone.
    Time,
    /// Text.
    Text,
    /// A JSON document.
    Json,
    /// Bytes.
    Bytes,
}

/// A column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// The type of its values.
    pub kind: ColumnType,
}

/// The way in which rows are written to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every row is inserted.
    Append,
    /// A row replaces the row with the same key, which is the first `key` columns.
    Upsert {
        /// The number of columns of the key.
        key: usize,
    },
}

/// A table.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// The way in which rows are written to it.
    pub mode: Mode,
    /// The index of the column with the time of a row, which a change of the row does not change. A store can partition
    /// the table by it.
    pub time: usize,
    /// Its columns, in the order of the cells.
    pub columns: &'static [Column],
}

impl Table {
    /// Returns the number of columns of its key, which are its first columns.
    pub fn key(&self) -> usize {
        match self.mode {
            // Partition and offset; in the outbox, alert id and status.
            Mode::Append => 2,
            Mode::Upsert { key } => key,
        }
    }
}

/// The index of `events` in [`TABLES`].
pub const EVENTS: u8 = 0;
/// The index of `alerts` in [`TABLES`].
pub const ALERTS: u8 = 1;
/// The index of `window_aggregates` in [`TABLES`].
pub const WINDOW_AGGREGATES: u8 = 2;
/// The index of `dead_letters` in [`TABLES`].
pub const DEAD_LETTERS: u8 = 3;
/// The index of `headwater_outbox` in [`ALL`].
pub const OUTBOX: u8 = 4;

macro_rules! columns {
    ($($name:literal $kind:ident),* $(,)?) => { &[$(Column { name: $name, kind: ColumnType::$kind }),*] };
}

/// The tables of outputs.
pub const TABLES: [Table; 4] = [
    Table {
        name: "events",
        mode: Mode::Append,
        time: 7,
        columns: columns![
            "partition" Int, "offset" BigInt, "epoch" BigInt, "event_id" Text, "event_type" Text, "key_kind" Text,
            "key" Text, "event_time" Time, "amount" Numeric, "currency" Text, "merchant_id" Text,
            "merchant_category" Text, "ip_address" Text, "session_id" Text, "device_id" Text, "lat" Double,
            "lon" Double, "attributes" Json, "amount_band" Text, "key_events" BigInt, "key_amount_mean" Double,
            "since_previous_ms" BigInt, "km_from_previous" Double,
        ],
    },
    Table {
        name: "alerts",
        mode: Mode::Upsert { key: 1 },
        time: 8,
        columns: columns![
            "alert_id" Text, "status" Text, "rule" Text, "rule_version" Int, "severity" Text, "key_kind" Text,
            "key" Text, "event_ids" Json, "event_time" Time, "epoch" BigInt, "final" Bool, "details" Json,
            "mode" Text,
        ],
    },
    Table {
        name: "window_aggregates",
        mode: Mode::Upsert { key: 4 },
        time: 3,
        columns: columns![
            "window_name" Text, "key_kind" Text, "key" Text, "start" Time, "end" Time, "count" BigInt,
            "amount_count" BigInt, "amount_sum" Numeric, "mean" Double, "min" Numeric, "max" Numeric,
            "stddev" Double, "distinct_merchants" BigInt, "final" Bool, "epoch" BigInt,
        ],
    },
    Table {
        name: "dead_letters",
        mode: Mode::Append,
        time: 7,
        columns: columns![
            "partition" Int, "offset" BigInt, "reason" Text, "field" Text, "message" Text, "key" Bytes,
            "value" Bytes, "timestamp" Time, "epoch" BigInt, "retries" Int,
        ],
    },
];

/// The columns of the outbox: those of `alerts` without the mode, since it has live alerts only.
const OUTBOX_COLUMNS: &[Column] = match TABLES[ALERTS as usize].columns.split_last() {
    Some((_mode, others)) => others,
    None => &[],
};

/// All tables: those of outputs, then the outbox of routes.
pub const ALL: [Table; 5] = [
    TABLES[0],
    TABLES[1],
    TABLES[2],
    TABLES[3],
    Table { name: "headwater_outbox", mode: Mode::Append, time: 8, columns: OUTBOX_COLUMNS },
];

/// The tables that a database holds for a sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TableSet {
    /// The tables of outputs.
    #[default]
    Outputs,
    /// The outbox: every change of an alert, in the order of commits, until it is delivered.
    Outbox,
}

impl TableSet {
    /// Returns the tables of the set, each with its index in [`ALL`].
    pub fn tables(self) -> impl Iterator<Item = (usize, &'static Table)> {
        let of_outbox = |index: usize| index == usize::from(OUTBOX);
        const { &ALL }
            .iter()
            .enumerate()
            .filter(move |(index, _)| of_outbox(*index) == (self == TableSet::Outbox))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outbox_has_the_columns_of_alerts_without_the_mode() {
        let names = |index: u8| ALL[usize::from(index)].columns.iter().map(|column| column.name);
        assert_eq!(names(OUTBOX).chain(["mode"]).collect::<Vec<_>>(), names(ALERTS).collect::<Vec<_>>());
    }

    #[test]
    fn every_table_has_a_column_of_times() {
        let names = TABLES.map(|table| table.columns[table.time].name);
        assert_eq!(names, ["event_time", "event_time", "start", "timestamp"]);
        assert!(TABLES.iter().all(|table| table.columns[table.time].kind == ColumnType::Time));
    }
}
