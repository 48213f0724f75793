//! Partitions of the tables by time, in UTC: which periods have one, and their names.
//!
//! ```text
//!   time of a row ─▶ Period::start_of ─┬─ from the retention to a few periods ahead ─▶ events_2026_11_29
//!                                      ├─ older, further ahead ──────────────────────▶ events_default
//!                                      └─ infinite ──────────────────────────────────▶ events_infinite
//! ```
//!
//! Every row has a place at any time, so a round never fails for want of a partition. A writer makes the partitions that
//! its next round needs ([`OnDemand`]); the maintenance makes those ahead, moves rows from the default partition into
//! partitions of their own, and drops what is older than the retention.

pub(super) mod ddl;
pub(super) mod on_demand;

use std::collections::BTreeSet;
use std::time::Duration;

pub(super) use on_demand::OnDemand;

use crate::tables::{ALL, TABLES, Table};
use crate::text::civil;
use crate::{Cell, Changes};

const MS_PER_DAY: i64 = 86_400_000;

/// The days that can have a partition: 1970-01-01 to the year 9900. Rows of other times are rare, and stay in the
/// default partition.
const DAYS: std::ops::Range<i64> = 0..2_896_000;

/// The length of time of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// A day.
    Day,
    /// A month.
    Month,
}

/// The partitioning of the tables by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partitioning {
    /// The length of time of a partition.
    pub period: Period,
    /// The age above which rows are removed, by whole partitions; `None` to keep all rows.
    pub retention: Option<Duration>,
}

/// The first day of a partition, in days since 1970-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Start(pub i64);

impl Period {
    /// All periods, with their names in configuration.
    pub const ALL: [(&'static str, Period); 2] = [("day", Period::Day), ("month", Period::Month)];

    /// Returns the name in configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Period::Day => "day",
            Period::Month => "month",
        }
    }

    /// Returns the number of partitions that are made ahead of the current one: enough to notice in time that none can
    /// be made.
    fn ahead(self) -> usize {
        match self {
            Period::Day => 7,
            Period::Month => 2,
        }
    }

    /// Returns the period of a day; `None` if the day cannot have a partition.
    fn start_of(self, day: i64) -> Option<Start> {
        let of_month = || civil(day).2 - 1;
        DAYS.contains(&day).then(|| match self {
            Period::Day => Start(day),
            Period::Month => Start(day - of_month()),
        })
    }

    /// Returns the period of a time in milliseconds since 1970.
    fn start_at(self, ms: i64) -> Option<Start> {
        self.start_of(ms.div_euclid(MS_PER_DAY))
    }

    /// Returns the period after `start`.
    fn next(self, Start(day): Start) -> Start {
        match self {
            Period::Day => Start(day + 1),
            // 31 days after the first day of a month is in the next month.
            Period::Month => Start(day + 31 - (civil(day + 31).2 - 1)),
        }
    }

    /// Returns the name of a partition. Names of one table are in the order of time.
    pub(super) fn partition(self, table: &Table, Start(day): Start) -> String {
        let ((year, month, day), name) = (civil(day), table.name);
        match self {
            Period::Day => format!("{name}_{year:04}_{month:02}_{day:02}"),
            Period::Month => format!("{name}_{year:04}_{month:02}"),
        }
    }

    /// Returns true if `name` is that of a partition of `table`.
    fn is_partition(self, table: &Table, name: &str) -> bool {
        let pattern = match self {
            Period::Day => "dddd_dd_dd",
            Period::Month => "dddd_dd",
        };
        let suffix = name.strip_prefix(table.name).and_then(|rest| rest.strip_prefix('_'));
        suffix.is_some_and(|suffix| {
            suffix.len() == pattern.len()
                && suffix.chars().zip(pattern.chars()).all(|(found, expected)| match expected {
                    'd' => found.is_ascii_digit(),
                    other => found == other,
                })
        })
    }

    /// Returns the first and the end of the times of a partition, as SQL literals.
    fn bounds(self, start: Start) -> (String, String) {
        (literal(start), literal(self.next(start)))
    }
}

/// Returns the first moment of a day as an SQL literal.
fn literal(Start(day): Start) -> String {
    let (year, month, day) = civil(day);
    format!("'{year:04}-{month:02}-{day:02} 00:00:00+00'")
}

/// Returns the name of the partition for the rows that have no other.
fn default_partition(table: &Table) -> String {
    format!("{}_default", table.name)
}

/// Returns the name of the partition for the rows without a time: dead letters of files, mostly. They would make the
/// default partition large, which has to be read whenever a partition is attached.
fn infinite_partition(table: &Table) -> String {
    format!("{}_infinite", table.name)
}

/// Returns the index in [`ALL`] of the table to which a table or partition of this name belongs.
pub(super) fn table_of(name: &str) -> Option<usize> {
    let is_of = |table: &Table| {
        name == table.name
            || name == default_partition(table)
            || name == infinite_partition(table)
            || Period::ALL.iter().any(|(_, period)| period.is_partition(table, name))
    };
    ALL.iter().position(is_of)
}

impl Partitioning {
    /// Returns the oldest period that is kept at a time in milliseconds since 1970; `None` if all are.
    pub(super) fn oldest(&self, now: i64) -> Option<Start> {
        let retention = i64::try_from(self.retention?.as_millis()).unwrap_or(i64::MAX);
        self.period.start_at(now.saturating_sub(retention))
    }

    /// Returns the current period and those that are made ahead.
    pub(super) fn upcoming(&self, now: i64) -> Vec<Start> {
        let current = self.period.start_at(now);
        std::iter::successors(current, |&start| Some(self.period.next(start)))
            .take(1 + self.period.ahead())
            .collect()
    }

    /// Returns true if a period has a partition of its own as soon as it has a row.
    fn admits(&self, start: Start, now: i64) -> bool {
        self.oldest(now).is_none_or(|oldest| start >= oldest)
            && self.upcoming(now).last().is_some_and(|&last| start <= last)
    }
}

/// Returns the days of the rows of each table, in days since 1970. Times that no partition can have are left out.
pub(super) fn days(changes: &Changes) -> [BTreeSet<i64>; TABLES.len()] {
    let mut days: [BTreeSet<i64>; TABLES.len()] = Default::default();
    let mut last = [None; TABLES.len()];
    for row in changes.rows.iter().filter(|row| !row.deletes) {
        let Some(table) = TABLES.get(row.table) else { continue };
        let Some(Cell::Time(ms)) = row.cells().nth(table.time) else { continue };
        let day = ms.div_euclid(MS_PER_DAY);
        // Most rows are of the same day as the row before.
        if last[row.table] != Some(day) && DAYS.contains(&day) {
            days[row.table].insert(day);
            last[row.table] = Some(day);
        }
    }
    days
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{ALERTS, EVENTS};

    /// 2026-11-29T12:00:00Z.
    const NOW: i64 = 1_795_953_600_000;

    fn events() -> &'static Table {
        &TABLES[EVENTS as usize]
    }

    #[test]
    fn partitions_have_the_name_and_bounds_of_their_period() {
        let named = |period: Period, ms: i64| {
            let start = period.start_at(ms).expect("a partition");
            let (from, to) = period.bounds(start);
            (period.partition(events(), start), from, to)
        };
        let expect = |name: &str, from: &str, to: &str| {
            (name.to_owned(), format!("'{from} 00:00:00+00'"), format!("'{to} 00:00:00+00'"))
        };
        assert_eq!(named(Period::Day, NOW), expect("events_2026_11_29", "2026-11-29", "2026-11-30"));
        assert_eq!(named(Period::Month, NOW), expect("events_2026_11", "2026-11-01", "2026-12-01"));
        let leap = 1_709_251_199_999;
        assert_eq!(named(Period::Day, leap), expect("events_2024_02_29", "2024-02-29", "2024-03-01"));
        assert_eq!(named(Period::Month, leap), expect("events_2024_02", "2024-02-01", "2024-03-01"));
        assert_eq!(named(Period::Day, 0), expect("events_1970_01_01", "1970-01-01", "1970-01-02"));
        for ms in [-1, i64::MIN, i64::MAX, 253_402_300_800_000] {
            assert_eq!(Period::Day.start_at(ms), None, "{ms}");
        }
    }

    #[test]
    fn successive_months_leave_no_gap() {
        let mut start = Period::Month.start_at(0).expect("January 1970");
        for month in 0..12 * 200 {
            let (year, of_year) = (1970 + month / 12, month % 12 + 1);
            let name = format!("events_{year}_{of_year:02}");
            assert_eq!(Period::Month.partition(events(), start), name);
            start = Period::Month.next(start);
        }
    }

    #[test]
    fn names_of_partitions_lead_to_their_table() {
        let of = |name: &str| table_of(name).map(|index| TABLES[index].name);
        for name in ["alerts", "alerts_2026_11_29", "alerts_2026_11", "alerts_default", "alerts_infinite"] {
            assert_eq!(of(name), Some(TABLES[ALERTS as usize].name), "{name}");
        }
        for name in ["alerts_2026", "alerts_2026_11_2x", "alert", "others_2026_11", "alerts_2026_11_29_", "é"]
        {
            assert_eq!(of(name), None, "{name}");
        }
    }

    #[test]
    fn periods_from_the_retention_to_those_ahead_are_admitted() {
        let retention = Some(Duration::from_secs(2 * 86_400));
        let days = Partitioning { period: Period::Day, retention };
        let day = |name: i64| Start(NOW.div_euclid(MS_PER_DAY) + name);
        let admitted: Vec<_> = (-10..20).filter(|&name| days.admits(day(name), NOW)).collect();
        assert_eq!(admitted, (-2..=7).collect::<Vec<_>>());
        let all = Partitioning { retention: None, ..days };
        assert!(all.admits(Start(0), NOW) && !all.admits(day(8), NOW));
        let months = Partitioning { period: Period::Month, retention };
        let names: Vec<_> =
            months.upcoming(NOW).iter().map(|&start| Period::Month.partition(events(), start)).collect();
        assert_eq!(names, ["events_2026_11", "events_2026_12", "events_2027_01"]);
        assert_eq!(months.oldest(NOW), Period::Month.start_at(NOW), "two days before are in the same month");
    }
}
