//! Queries of results, and the SQL that answers them.

use super::alert::ChangeCursor;
use crate::database::{Parameter, Statement};
use crate::outputs::RuleMode;

/// A query of alerts. A field that is None selects all.
#[derive(Clone, Debug, Default)]
pub struct AlertQuery {
    /// The rule.
    pub rule: Option<String>,
    /// The severity.
    pub severity: Option<String>,
    /// The status.
    pub status: Option<String>,
    /// The mode of the rule.
    pub mode: Option<RuleMode>,
    /// The kind of the key.
    pub key_kind: Option<String>,
    /// The key.
    pub key: Option<String>,
    /// The least event time, RFC 3339 in UTC.
    pub from: Option<String>,
    /// The event time that is not reached, RFC 3339 in UTC.
    pub to: Option<String>,
    /// Only changes before this one.
    pub before: Option<ChangeCursor>,
    /// The maximum number of alerts.
    pub limit: usize,
}

/// A query of the events of one key.
#[derive(Clone, Debug)]
pub struct EventQuery {
    /// The kind of the key.
    pub key_kind: String,
    /// The key.
    pub key: String,
    /// The event time that is exceeded, RFC 3339 in UTC; None for all.
    pub after: Option<String>,
    /// The greatest event time, RFC 3339 in UTC.
    pub through: String,
    /// The maximum number of events.
    pub limit: usize,
}

/// The differences between the databases' SQL.
pub struct Dialect {
    /// Writes the milliseconds since 1970 of a time.
    pub millis: fn(&str) -> String,
    /// Writes the text of a JSON document.
    pub json: fn(&str) -> String,
    /// The exact text of an event's amount.
    pub amount: &'static str,
}

/// Adds the condition that a column has a value, if it is given.
fn equals(statement: &mut Statement, column: &str, value: Option<&String>) {
    if let Some(value) = value {
        statement.condition(&format!("{column} = ?"), [Parameter::Text(value.clone())]);
    }
}

/// Adds the condition that alerts have a mode, if it is given. It is written out, since SQLite uses the index of shadow
/// alerts only for a constant.
fn of_mode(statement: &mut Statement, mode: Option<RuleMode>) {
    if let Some(mode) = mode {
        statement.condition(&format!("mode = '{}'", mode.as_str()), []);
    }
}

/// Adds a comparison of the event time with a time, if it is given.
fn compares(statement: &mut Statement, comparison: &str, time: Option<&String>) {
    if let Some(time) = time {
        statement.condition(&format!("event_time {comparison} ?"), [Parameter::Time(time.clone())]);
    }
}

/// Adds a comparison with a place in the order of changes.
fn change(statement: &mut Statement, comparison: &str, cursor: &ChangeCursor) {
    let parameters = [Parameter::Int(signed(cursor.epoch.0)), Parameter::Text(cursor.alert_id.clone())];
    statement.condition(&format!("(epoch, alert_id) {comparison} (?, ?)"), parameters);
}

/// Ends a statement with the order of rows and their maximum number.
fn end(mut statement: Statement, order: &str, limit: usize) -> Statement {
    statement.add(&format!(" ORDER BY {order}"), []);
    statement.limit(limit);
    statement
}

/// Returns an integer for a store whose integers are signed.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn select_alerts(dialect: &Dialect) -> Statement {
    let (event_ids, details) = ((dialect.json)("event_ids"), (dialect.json)("details"));
    let time = (dialect.millis)("event_time");
    Statement::new(format!(
        "SELECT alert_id, status, rule, rule_version, severity, key_kind, \"key\", {event_ids}, {time}, epoch, final, \
         {details}, mode FROM alerts"
    ))
}

/// Returns the statement that selects the alerts of a query.
pub fn alerts(dialect: &Dialect, query: &AlertQuery) -> Statement {
    let mut statement = select_alerts(dialect);
    equals(&mut statement, "rule", query.rule.as_ref());
    equals(&mut statement, "severity", query.severity.as_ref());
    equals(&mut statement, "status", query.status.as_ref());
    of_mode(&mut statement, query.mode);
    equals(&mut statement, "key_kind", query.key_kind.as_ref());
    equals(&mut statement, "\"key\"", query.key.as_ref());
    compares(&mut statement, ">=", query.from.as_ref());
    compares(&mut statement, "<", query.to.as_ref());
    if let Some(before) = &query.before {
        change(&mut statement, "<", before);
    }
    end(statement, "epoch DESC, alert_id DESC", query.limit)
}

/// Returns the statement that selects one alert.
pub fn alert(dialect: &Dialect, id: &str) -> Statement {
    let mut statement = select_alerts(dialect);
    equals(&mut statement, "alert_id", Some(&id.to_owned()));
    end(statement, "alert_id", 1)
}

/// Returns the statement that selects changes of alerts of a mode after a cursor, of epochs before `before`.
pub fn changes(
    dialect: &Dialect,
    mode: Option<RuleMode>,
    after: &ChangeCursor,
    before: u64,
    limit: usize,
) -> Statement {
    let mut statement = select_alerts(dialect);
    of_mode(&mut statement, mode);
    change(&mut statement, ">", after);
    statement.condition("epoch < ?", [Parameter::Int(signed(before))]);
    end(statement, "epoch, alert_id", limit)
}

/// Returns the statement that selects the newest events of a key.
pub fn events(dialect: &Dialect, query: &EventQuery) -> Statement {
    let (time, amount) = ((dialect.millis)("event_time"), dialect.amount);
    let mut statement = Statement::new(format!(
        "SELECT partition, \"offset\", epoch, event_id, event_type, {time}, {amount}, currency, merchant_id, lat, lon \
         FROM events"
    ));
    equals(&mut statement, "\"key\"", Some(&query.key));
    equals(&mut statement, "key_kind", Some(&query.key_kind));
    compares(&mut statement, ">", query.after.as_ref());
    compares(&mut statement, "<=", Some(&query.through));
    end(statement, "event_time DESC, partition DESC, \"offset\" DESC", query.limit)
}
