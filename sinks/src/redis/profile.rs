//! Profiles: the rows of a round, folded by key into groups of fields of one hash per key.
//!
//! ```text
//!   rows of epochs ─▶ Profiles: for each key the last event, the last located event,    ─▶ groups of fields ─▶ round.lua
//!                     for each window name the newest window, for each rule the newest alert
//! ```
//!
//! The fold of several epochs leaves the same hash as the epochs one by one, so profiles do not depend on how epochs are
//! divided into rounds.
//!
//! - Events are in the order of arrival, and the last one replaces the group `event`. The group `location` has its own
//!   last event, since not every event has a location.
//! - Of the windows of a name, the one with the newest start is kept. The removals of a round come first: a window is
//!   removed when its session joins an earlier one, whose row is in the same epoch.
//! - Of the alerts of a rule, the one with the newest event is kept, with its last status. Of two with the same event
//!   time, the one with the greater id is kept.

use std::collections::BTreeMap;

use headwater_dataflows::Epoch;
use redis::Cmd;

use crate::tables::{ALERTS, EVENTS, WINDOW_AGGREGATES};
use crate::text::decimal;
use crate::{Cell, Row};

const EVENT_TABLE: usize = EVENTS as usize;
const ALERT_TABLE: usize = ALERTS as usize;
const WINDOW_TABLE: usize = WINDOW_AGGREGATES as usize;

/// The fields of the last event, each with the index of its cell in a row of `events`.
const EVENT_FIELDS: [(&str, usize); 12] = [
    ("event:id", 3),
    ("event:type", 4),
    ("event:time_ms", 7),
    ("event:amount", 8),
    ("event:currency", 9),
    ("event:merchant_id", 10),
    ("event:ip_address", 12),
    ("event:device_id", 14),
    ("events", 19),
    ("amount_mean", 20),
    ("since_previous_ms", 21),
    ("km_from_previous", 22),
];

/// The fields of the last event with a location.
const LOCATION_FIELDS: [(&str, usize); 3] =
    [("location:time_ms", 7), ("location:lat_deg", LATITUDE), ("location:lon_deg", 16)];

const LATITUDE: usize = 15;

/// The fields of a window, `window:NAME:FIELD`; the first one is its rank.
const WINDOW_FIELDS: [(&str, usize); 10] = [
    ("start_ms", 3),
    ("end_ms", 4),
    ("count", 5),
    ("amount_sum", 7),
    ("amount_mean", 8),
    ("amount_min", 9),
    ("amount_max", 10),
    ("amount_stddev", 11),
    ("distinct_merchants", 12),
    ("final", 13),
];

/// The fields of an alert, `alert:RULE:FIELD`; the first one is its rank, and the second decides between equal ranks.
const ALERT_FIELDS: [(&str, usize); 5] =
    [("event_time_ms", 8), ("id", 0), ("status", 1), ("severity", 4), ("final", 10)];

/// The changes of one profile.
#[derive(Debug, Default)]
struct Profile<'a> {
    epoch: Epoch,
    event: Option<Row<'a>>,
    located: Option<Row<'a>>,
    /// The last change of each window, by name and start.
    windows: BTreeMap<(&'a str, i64), Row<'a>>,
    /// The newest alert of each rule, with its event time and id.
    alerts: BTreeMap<&'a str, (i64, &'a str, Row<'a>)>,
}

/// The changes of profiles in some epochs, by kind of key and key.
#[derive(Debug, Default)]
pub(super) struct Profiles<'a>(BTreeMap<(&'a str, &'a str), Profile<'a>>);

/// Returns the reason why this sink cannot hold a row; None if it can.
pub(super) fn objection(row: &Row<'_>) -> Option<&'static str> {
    match row.table {
        EVENT_TABLE | WINDOW_TABLE => None,
        ALERT_TABLE if row.deletes => Some("a Redis sink keeps alerts that are revoked, and removes none"),
        ALERT_TABLE => None,
        _ => Some("a Redis sink keeps events, alerts and windows of keys"),
    }
}

/// Returns kind and value of a row's key.
fn key_of<'a>(row: &Row<'a>) -> (&'a str, &'a str) {
    let kind_at = if row.table == WINDOW_TABLE { 1 } else { 5 };
    let mut cells = row.cells().skip(kind_at);
    (text(cells.next()), text(cells.next()))
}

fn text(cell: Option<Cell<'_>>) -> &str {
    match cell {
        Some(Cell::Text(text)) => text,
        _ => "",
    }
}

fn time(cell: Option<Cell<'_>>) -> i64 {
    match cell {
        Some(Cell::Time(ms)) => ms,
        _ => 0,
    }
}

impl<'a> Profiles<'a> {
    /// Returns the number of profiles that also have changes here, or in these rows.
    pub fn len_with(&self, rows: impl Iterator<Item = Row<'a>>) -> usize {
        let added: std::collections::HashSet<_> =
            rows.map(|row| key_of(&row)).filter(|key| !self.0.contains_key(key)).collect();
        self.0.len() + added.len()
    }

    /// Returns true if there are no changes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a row of an epoch, after all rows of earlier epochs.
    pub fn add(&mut self, epoch: Epoch, row: Row<'a>) {
        let profile = self.0.entry(key_of(&row)).or_default();
        profile.epoch = epoch;
        let cell = |at: usize| row.cells().nth(at);
        match row.table {
            EVENT_TABLE => {
                profile.event = Some(row);
                if !matches!(cell(LATITUDE), None | Some(Cell::Null)) {
                    profile.located = Some(row);
                }
            }
            WINDOW_TABLE => {
                profile.windows.insert((text(cell(0)), time(cell(3))), row);
            }
            _ => {
                let (at, id) = (time(cell(8)), text(cell(0)));
                let newest = profile.alerts.entry(text(cell(2))).or_insert((at, id, row));
                if (at, id) >= (newest.0, newest.1) {
                    *newest = (at, id, row);
                }
            }
        }
    }

    /// Divides the profiles into chunks of at most `most`. There is at least one chunk.
    pub fn chunks(&self, most: usize) -> Vec<Chunk<'_>> {
        let all: Vec<_> = self.0.iter().collect();
        if all.is_empty() {
            return vec![Chunk(all)];
        }
        all.chunks(most).map(|chunk| Chunk(chunk.to_vec())).collect()
    }
}

/// Profiles that one call of the script writes.
#[derive(Debug)]
pub(super) struct Chunk<'p>(Vec<(&'p (&'p str, &'p str), &'p Profile<'p>)>);

impl Chunk<'_> {
    /// Appends the arguments of the script: the keys of `progress` and of the profiles, `leading`, and the groups of
    /// fields. The key of a profile begins with `prefix`.
    pub fn add_to(&self, command: &mut Cmd, progress: &str, prefix: &str, leading: &[&str]) {
        command.arg(self.0.len() + 1).arg(progress);
        for ((kind, key), _) in &self.0 {
            command.arg(format!("{prefix}{kind}:{key}"));
        }
        command.arg(leading);
        for (_, profile) in &self.0 {
            let groups = profile.groups();
            command.arg(groups.len());
            groups.iter().for_each(|group| group.add_to(command));
        }
    }
}

/// A group of fields, as the script expects it.
struct Group {
    mode: &'static str,
    /// The field that ranks the group, and its new value.
    rank: [String; 2],
    /// The field that decides between equal ranks, and its new value.
    tie: [String; 2],
    deleted: Vec<String>,
    set: Vec<(String, String)>,
}

impl Default for Group {
    fn default() -> Group {
        Group { mode: "set", rank: Default::default(), tie: Default::default(), deleted: vec![], set: vec![] }
    }
}

impl Group {
    /// Creates a group of the fields of a row. A field without a value is deleted.
    fn of(row: &Row<'_>, fields: &[(&str, usize)], prefix: &str) -> Self {
        let cells: Vec<_> = row.cells().collect();
        let mut group = Group::default();
        for &(name, at) in fields {
            let name = format!("{prefix}{name}");
            match cells.get(at).copied().and_then(value) {
                Some(value) => group.set.push((name, value)),
                None => group.deleted.push(name),
            }
        }
        group
    }

    fn add_to(&self, command: &mut Cmd) {
        let Group { mode, rank, tie, deleted, set } = self;
        command.arg(*mode).arg(rank).arg(tie).arg(deleted.len()).arg(deleted).arg(2 * set.len());
        for (name, value) in set {
            command.arg(name).arg(value);
        }
    }
}

impl Profile<'_> {
    /// Returns the groups of fields to write, in this order.
    fn groups(&self) -> Vec<Group> {
        let mut groups = Vec::new();
        let mut last = self.event.map_or_else(Group::default, |row| Group::of(&row, &EVENT_FIELDS, ""));
        last.set.push(("epoch".to_owned(), self.epoch.to_string()));
        groups.push(last);
        groups.extend(self.located.map(|row| Group::of(&row, &LOCATION_FIELDS, "")));
        let mut newest = BTreeMap::new();
        for (&(name, start), row) in &self.windows {
            let prefix = format!("window:{name}:");
            let rank = [format!("{prefix}{}", WINDOW_FIELDS[0].0), start.to_string()];
            if row.deletes {
                let deleted = WINDOW_FIELDS.iter().map(|(field, _)| format!("{prefix}{field}")).collect();
                groups.push(Group { mode: "drop", rank, deleted, ..Group::default() });
            } else {
                newest
                    .insert(name, Group { mode: "newest", rank, ..Group::of(row, &WINDOW_FIELDS, &prefix) });
            }
        }
        groups.extend(newest.into_values());
        for (rule, (at, id, row)) in &self.alerts {
            let prefix = format!("alert:{rule}:");
            let rank = [format!("{prefix}{}", ALERT_FIELDS[0].0), at.to_string()];
            let tie = [format!("{prefix}{}", ALERT_FIELDS[1].0), (*id).to_owned()];
            groups.push(Group { mode: "newest", rank, tie, ..Group::of(row, &ALERT_FIELDS, &prefix) });
        }
        groups
    }
}

/// Formats a cell as the value of a field; None if it has no value.
fn value(cell: Cell<'_>) -> Option<String> {
    Some(match cell {
        Cell::Null => return None,
        Cell::Bool(value) => u8::from(value).to_string(),
        Cell::Int(value) | Cell::Time(value) => value.to_string(),
        Cell::Float(value) => value.to_string(),
        Cell::Micros(value) => decimal(value),
        Cell::Text(value) | Cell::Json(value) => value.to_owned(),
        Cell::Bytes(value) => String::from_utf8_lossy(value).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::TABLES;

    /// The indexes of cells are those of the columns that the fields are named after.
    #[test]
    fn fields_have_the_cells_of_their_columns() {
        let columns = |table: usize, fields: &[(&str, usize)]| -> Vec<_> {
            fields.iter().map(|&(_, at)| TABLES[table].columns[at].name).collect()
        };
        let of_event = [
            "event_id",
            "event_type",
            "event_time",
            "amount",
            "currency",
            "merchant_id",
            "ip_address",
            "device_id",
            "key_events",
            "key_amount_mean",
            "since_previous_ms",
            "km_from_previous",
        ];
        assert_eq!(columns(EVENT_TABLE, &EVENT_FIELDS), of_event);
        assert_eq!(columns(EVENT_TABLE, &LOCATION_FIELDS), ["event_time", "lat", "lon"]);
        let of_window = [
            "start",
            "end",
            "count",
            "amount_sum",
            "mean",
            "min",
            "max",
            "stddev",
            "distinct_merchants",
            "final",
        ];
        assert_eq!(columns(WINDOW_TABLE, &WINDOW_FIELDS), of_window);
        assert_eq!(
            columns(ALERT_TABLE, &ALERT_FIELDS),
            ["event_time", "alert_id", "status", "severity", "final"]
        );
        for (table, at) in [(EVENT_TABLE, 5), (ALERT_TABLE, 5), (WINDOW_TABLE, 1)] {
            assert_eq!(columns(table, &[("", at), ("", at + 1)]), ["key_kind", "key"]);
        }
        assert_eq!(columns(ALERT_TABLE, &[("", 2)]), ["rule"]);
    }
}
