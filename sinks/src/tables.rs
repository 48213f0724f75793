//! The tables that results go to, the same in every SQL store. A [`Row`](crate::Row) names its table by its
//! index in [`TABLES`] and has its cells in the order of the columns.

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// True or false.
    Bool,
    /// A 32-bit number.
    Int,
    /// A 64-bit number.
    BigInt,
    /// A double.
    Double,
    /// A decimal number.
    Numeric,
    /// A time with zone.
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
    /// What it holds.
    pub kind: ColumnType,
}

/// How rows get into a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each row is new.
    Append,
    /// A row replaces the one with the same key: the first so many columns.
    Upsert {
        /// How many columns the key has.
        key: usize,
    },
}

/// A table.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// How rows get into it.
    pub mode: Mode,
    /// Its columns, in the order of the cells.
    pub columns: &'static [Column],
}

impl Table {
    /// How many columns its key has: its first ones.
    pub fn key(&self) -> usize {
        match self.mode {
            // Partition and offset.
            Mode::Append => 2,
            Mode::Upsert { key } => key,
        }
    }
}

/// Index of `events` in [`TABLES`].
pub const EVENTS: u8 = 0;
/// Index of `alerts` in [`TABLES`].
pub const ALERTS: u8 = 1;
/// Index of `window_aggregates` in [`TABLES`].
pub const WINDOW_AGGREGATES: u8 = 2;
/// Index of `dead_letters` in [`TABLES`].
pub const DEAD_LETTERS: u8 = 3;

macro_rules! columns {
    ($($name:literal $kind:ident),* $(,)?) => { &[$(Column { name: $name, kind: ColumnType::$kind }),*] };
}

/// All tables.
pub const TABLES: [Table; 4] = [
    Table {
        name: "events",
        mode: Mode::Append,
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
        columns: columns![
            "alert_id" Text, "status" Text, "rule" Text, "rule_version" Int, "severity" Text, "key_kind" Text,
            "key" Text, "event_ids" Json, "event_time" Time, "epoch" BigInt, "final" Bool, "details" Json,
        ],
    },
    Table {
        name: "window_aggregates",
        mode: Mode::Upsert { key: 4 },
        columns: columns![
            "window_name" Text, "key_kind" Text, "key" Text, "start" Time, "end" Time, "count" BigInt,
            "amount_count" BigInt, "amount_sum" Numeric, "mean" Double, "min" Numeric, "max" Numeric,
            "stddev" Double, "distinct_merchants" BigInt, "final" Bool, "epoch" BigInt,
        ],
    },
    Table {
        name: "dead_letters",
        mode: Mode::Append,
        columns: columns![
            "partition" Int, "offset" BigInt, "reason" Text, "field" Text, "message" Text, "key" Bytes,
            "value" Bytes, "timestamp" Time, "epoch" BigInt, "retries" Int,
        ],
    },
];
