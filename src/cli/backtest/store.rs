//! The alerts of both sides in SQLite, and their comparison.
//!
//! ```text
//!   changes of alerts ─▶ alerts_before, alerts_after: the last state of each ─▶ differences ─▶ counts, examples
//!                                                                    labels ─┴─▶ events found by rule
//! ```
//!
//! Alerts of both sides are the same if rule, key and the position of the triggering event are. All is one transaction, so
//! that a backtest that fails leaves the database as it was.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::labels::Labels;
use super::side::Side;
use crate::cli::config_error;
use crate::event::split_key;
use crate::json::rfc3339;
use crate::outputs::{RecentAlert, Severity};

/// The maximum number of examples of each kind and rule.
const EXAMPLES: u32 = 3;

/// The columns by which alerts are compared.
const IDENTITY: &str = r#"rule, key_kind, "key", "partition", "offset""#;

/// The numbers of alerts of a rule with a severity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// The rule.
    pub rule: String,
    /// The severity; None if the rule has no alert.
    pub severity: Option<String>,
    /// The alerts of the rules in force.
    pub before: u64,
    /// The alerts of the candidate.
    pub after: u64,
    /// The alerts that only the candidate has.
    pub added: u64,
    /// The alerts that only the rules in force have.
    pub gone: u64,
    /// The alerts of both whose severity, details or events differ; counted with the severity of the candidate.
    pub changed: u64,
}

/// A difference of an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// `added`, `gone` or `changed`.
    pub kind: String,
    /// The rule.
    pub rule: String,
    /// The kind of the key.
    pub key_kind: String,
    /// The key.
    pub key: String,
    /// The event time of the triggering event, in RFC 3339.
    pub event_time: String,
    /// The ids of the events, as a JSON list.
    pub event_ids: String,
    /// Severity and details by the rules in force, if they have the alert.
    pub before: Option<(String, String)>,
    /// Severity and details by the candidate, if it has the alert.
    pub after: Option<(String, String)>,
}

/// The labelled events of the input that a rule has found, by one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The rule; None for all rules together.
    pub rule: Option<String>,
    /// The side.
    pub side: Side,
    /// The number of events with label 1.
    pub positive: u64,
    /// The number of events with label 0.
    pub negative: u64,
}

/// The database of a backtest.
pub struct Store {
    connection: Connection,
}

impl Store {
    /// Opens a database and replaces the tables of an earlier backtest in it; without a path, a temporary one.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(path: Option<&Path>) -> anyhow::Result<Store> {
        let connection = match path {
            Some(path) => {
                Connection::open(path).with_context(|| format!("--out: cannot open {}", path.display()))?
            }
            // A database without a name is on disk, and removed when it is closed.
            None => Connection::open("")?,
        };
        if let Some(path) = path {
            check_tables(&connection, path)?;
        }
        let mut text = "BEGIN IMMEDIATE;".to_owned();
        for side in Side::ALL.map(Side::as_str) {
            text += &format!(
                r#"DROP TABLE IF EXISTS alerts_{side};
                CREATE TABLE alerts_{side} (
                    alert_id TEXT PRIMARY KEY NOT NULL, status TEXT NOT NULL, rule TEXT NOT NULL,
                    rule_version INTEGER NOT NULL, severity TEXT NOT NULL, key_kind TEXT NOT NULL, "key" TEXT NOT NULL,
                    event_ids TEXT NOT NULL, event_time TEXT NOT NULL, final INTEGER NOT NULL, details TEXT NOT NULL,
                    "partition" INTEGER NOT NULL, "offset" INTEGER NOT NULL
                ) WITHOUT ROWID;
                CREATE UNIQUE INDEX alerts_{side}_identity ON alerts_{side} ({IDENTITY});"#
            );
        }
        text += r#"DROP TABLE IF EXISTS differences;
            CREATE TABLE differences (
                kind TEXT NOT NULL, rule TEXT NOT NULL, key_kind TEXT NOT NULL, "key" TEXT NOT NULL,
                event_time TEXT NOT NULL, event_ids TEXT NOT NULL, severity_before TEXT, severity_after TEXT,
                details_before TEXT, details_after TEXT, "partition" INTEGER NOT NULL, "offset" INTEGER NOT NULL
            );
            CREATE INDEX differences_rule ON differences (rule, kind, event_time);"#;
        let created = connection.execute_batch(&text);
        match path {
            Some(path) => created.with_context(|| format!("--out: cannot write {}", path.display()))?,
            None => created?,
        }
        Ok(Store { connection })
    }

    /// Stores changes of alerts: each replaces the state before.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, side: Side, changes: &[&RecentAlert]) -> anyhow::Result<()> {
        let side = side.as_str();
        let text =
            format!("INSERT OR REPLACE INTO alerts_{side} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
        let mut statement = self.connection.prepare_cached(&text)?;
        for RecentAlert { alert, status, .. } in changes {
            let (kind, key) = split_key(&alert.key);
            statement.execute(params![
                alert.id(),
                status.as_str(),
                &*alert.rule,
                alert.rule_version,
                alert.severity.as_str(),
                kind.as_str(),
                key,
                serde_json::to_string(&alert.event_ids).expect("strings encode as JSON"),
                rfc3339(alert.event_time.0),
                alert.settled,
                &*alert.details,
                alert.position.partition.0,
                alert.position.offset.0,
            ])?;
        }
        Ok(())
    }

    /// Compares the alerts of both sides that are not revoked.
    ///
    /// # Errors
    /// If the differences cannot be written.
    pub fn compare(&self) -> anyhow::Result<()> {
        let only = |kind: &str, of: &str, other: &str, values: &str| {
            format!(
                r#"INSERT INTO differences SELECT '{kind}', rule, key_kind, "key", event_time, event_ids, {values},
                    "partition", "offset" FROM alerts_{of} AS own WHERE status = 'raised' AND NOT EXISTS (
                    SELECT 1 FROM alerts_{other} AS other WHERE status = 'raised' AND other.rule = own.rule
                    AND other.key_kind = own.key_kind AND other."key" = own."key"
                    AND other."partition" = own."partition" AND other."offset" = own."offset");"#
            )
        };
        let added = only("added", "after", "before", "NULL, severity, NULL, details");
        let gone = only("gone", "before", "after", "severity, NULL, details, NULL");
        let changed = format!(
            r#"INSERT INTO differences SELECT 'changed', rule, key_kind, "key", a.event_time, a.event_ids, b.severity,
                a.severity, b.details, a.details, "partition", "offset"
                FROM alerts_before b JOIN alerts_after a USING ({IDENTITY})
                WHERE a.status = 'raised' AND b.status = 'raised'
                AND (a.severity, a.details, a.event_ids) <> (b.severity, b.details, b.event_ids);"#
        );
        Ok(self.connection.execute_batch(&(added + &gone + &changed))?)
    }

    /// Returns the numbers of alerts by rule and severity, with a line for each of these rules.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn counts(&self, rules: &BTreeSet<String>) -> anyhow::Result<Vec<Count>> {
        let mut statement = self.connection.prepare(
            "SELECT rule, severity, sum(b), sum(a), sum(added), sum(gone), sum(changed) FROM (
                SELECT rule, severity, 1 AS b, 0 AS a, 0 AS added, 0 AS gone, 0 AS changed FROM alerts_before
                    WHERE status = 'raised'
                UNION ALL SELECT rule, severity, 0, 1, 0, 0, 0 FROM alerts_after WHERE status = 'raised'
                UNION ALL SELECT rule, coalesce(severity_after, severity_before), 0, 0, kind = 'added', kind = 'gone',
                    kind = 'changed' FROM differences
            ) GROUP BY rule, severity",
        )?;
        let count = |row: &Row<'_>| {
            Ok(Count {
                rule: row.get(0)?,
                severity: row.get(1)?,
                before: unsigned(row, 2)?,
                after: unsigned(row, 3)?,
                added: unsigned(row, 4)?,
                gone: unsigned(row, 5)?,
                changed: unsigned(row, 6)?,
            })
        };
        let mut counts = statement.query_map([], count)?.collect::<Result<Vec<_>, _>>()?;
        let named: BTreeSet<_> = counts.iter().map(|count| count.rule.clone()).collect();
        for rule in rules.difference(&named) {
            let (rule, severity) = (rule.clone(), None);
            counts.push(Count { rule, severity, before: 0, after: 0, added: 0, gone: 0, changed: 0 });
        }
        // The most severe first.
        let rank = |severity: &Option<String>| {
            let is = |of: &Severity| Some(of.as_str()) == severity.as_deref();
            std::cmp::Reverse(Severity::ALL.iter().position(is))
        };
        counts.sort_by(|a, b| (&a.rule, rank(&a.severity)).cmp(&(&b.rule, rank(&b.severity))));
        Ok(counts)
    }

    /// Returns the first differences of each kind and rule.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn examples(&self) -> anyhow::Result<Vec<Difference>> {
        let mut statement = self.connection.prepare(
            r#"SELECT kind, rule, key_kind, "key", event_time, event_ids, severity_before, details_before,
                severity_after, details_after FROM (
                SELECT *, row_number() OVER (
                    PARTITION BY rule, kind ORDER BY event_time, "partition", "offset", key_kind, "key"
                ) AS number FROM differences
            ) WHERE number <= ? ORDER BY rule, kind, number"#,
        )?;
        let difference = |row: &Row<'_>| {
            let side = |at| -> rusqlite::Result<_> {
                Ok(row.get::<_, Option<String>>(at)?.zip(row.get::<_, Option<String>>(at + 1)?))
            };
            Ok(Difference {
                kind: row.get(0)?,
                rule: row.get(1)?,
                key_kind: row.get(2)?,
                key: row.get(3)?,
                event_time: row.get(4)?,
                event_ids: row.get(5)?,
                before: side(6)?,
                after: side(8)?,
            })
        };
        Ok(statement.query_map([EXAMPLES], difference)?.collect::<Result<_, _>>()?)
    }

    /// Returns the labelled events of the input that alerts name which are not revoked: by rule, and by any rule.
    ///
    /// # Errors
    /// If the database cannot be used.
    pub fn found(&self, labels: &Labels) -> anyhow::Result<Vec<Found>> {
        self.connection.execute_batch(
            "CREATE TEMP TABLE labels (event_id TEXT PRIMARY KEY NOT NULL, label INTEGER NOT NULL) WITHOUT ROWID",
        )?;
        let mut insert = self.connection.prepare("INSERT INTO temp.labels VALUES (?, ?)")?;
        for (id, label) in labels.iter().filter(|(_, label)| label.is_in_input) {
            insert.execute(params![id, label.is_positive])?;
        }
        let mut found = Vec::new();
        for side in Side::ALL {
            let name = side.as_str();
            for (column, group) in [("NULL", ""), ("rule", "GROUP BY rule")] {
                let text = format!(
                    "SELECT {column}, count(*) FILTER (WHERE label = 1), count(*) FILTER (WHERE label = 0) FROM (
                        SELECT DISTINCT {column} AS rule, event_id, label
                        FROM alerts_{name}, json_each(event_ids) AS named
                        JOIN temp.labels ON event_id = named.value WHERE status = 'raised'
                    ) {group}"
                );
                let mut statement = self.connection.prepare(&text)?;
                let of_rule = |row: &Row<'_>| {
                    Ok(Found {
                        rule: row.get(0)?,
                        side,
                        positive: unsigned(row, 1)?,
                        negative: unsigned(row, 2)?,
                    })
                };
                found.extend(statement.query_map([], of_rule)?.collect::<Result<Vec<_>, _>>()?);
            }
        }
        Ok(found)
    }

    /// Commits all tables.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn commit(self) -> anyhow::Result<()> {
        Ok(self.connection.execute_batch("COMMIT")?)
    }
}

/// Checks that a database has no tables but those of a backtest. The tables are written in one transaction, during which a
/// run could not write its own.
fn check_tables(connection: &Connection, path: &Path) -> anyhow::Result<()> {
    let query = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' \
        AND name NOT IN ('alerts_before', 'alerts_after', 'differences') LIMIT 1";
    let other = connection.query_row(query, [], |row| row.get::<_, String>(0)).optional();
    match other.with_context(|| format!("--out: cannot read {}", path.display()))? {
        None => Ok(()),
        Some(table) => {
            let message = format!(
                "{} has a table {table:?}, which is none of a backtest: name a new file",
                path.display()
            );
            Err(config_error("--out", message).into())
        }
    }
}

fn unsigned(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(at)?.unsigned_abs())
}

#[cfg(test)]
mod tests;
