//! Queries of results, and the SQL that answers them.

use super::alert::ChangeCursor;

/// A query of alerts. A field that is None selects all.
#[derive(Clone, Debug, Default)]
pub struct AlertQuery {
    /// The rule.
    pub rule: Option<String>,
    /// The severity.
    pub severity: Option<String>,
    /// The status.
    pub status: Option<String>,
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

/// A parameter of a statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    /// Text.
    Text(String),
    /// An integer.
    Int(i64),
}

/// The differences between the databases' SQL.
pub struct Dialect {
    /// Writes the placeholder of a text parameter with a number.
    pub text: fn(usize) -> String,
    /// Writes the placeholder of an integer.
    pub int: fn(usize) -> String,
    /// Writes the placeholder of a time in RFC 3339.
    pub time: fn(usize) -> String,
    /// Writes the milliseconds since 1970 of a time.
    pub millis: fn(&str) -> String,
    /// Writes the text of a JSON document.
    pub json: fn(&str) -> String,
    /// The exact text of an event's amount.
    pub amount: &'static str,
}

/// A statement under construction.
pub struct Statement {
    /// The text.
    pub sql: String,
    /// The parameters, in the order of their numbers.
    pub parameters: Vec<Parameter>,
    has_condition: bool,
}

impl Statement {
    fn new(sql: String) -> Statement {
        Statement { sql, parameters: Vec::new(), has_condition: false }
    }

    /// Adds a condition; `write` receives the number of its parameter.
    fn condition(&mut self, parameter: Parameter, write: impl FnOnce(usize) -> String) {
        self.parameters.push(parameter);
        let condition = write(self.parameters.len());
        self.and(&condition);
    }

    fn and(&mut self, condition: &str) {
        self.sql.push_str(if self.has_condition { " AND " } else { " WHERE " });
        self.sql.push_str(condition);
        self.has_condition = true;
    }

    fn equals(&mut self, dialect: &Dialect, column: &str, value: Option<&String>) {
        if let Some(value) = value {
            self.condition(Parameter::Text(value.clone()), |n| format!("{column} = {}", (dialect.text)(n)));
        }
    }

    fn compares(&mut self, dialect: &Dialect, column: &str, comparison: &str, time: Option<&String>) {
        if let Some(time) = time {
            self.condition(Parameter::Text(time.clone()), |n| {
                format!("{column} {comparison} {}", (dialect.time)(n))
            });
        }
    }

    /// Adds a comparison with a place in the order of changes.
    fn change(&mut self, dialect: &Dialect, comparison: &str, cursor: &ChangeCursor) {
        self.parameters.push(Parameter::Int(signed(cursor.epoch.0)));
        let epoch = (dialect.int)(self.parameters.len());
        self.parameters.push(Parameter::Text(cursor.alert_id.clone()));
        let id = (dialect.text)(self.parameters.len());
        self.and(&format!("(epoch, alert_id) {comparison} ({epoch}, {id})"));
    }

    fn end(mut self, order: &str, limit: usize) -> Statement {
        self.sql.push_str(&format!(" ORDER BY {order} LIMIT {limit}"));
        self
    }
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
         {details} FROM alerts"
    ))
}

/// Returns the statement that selects the alerts of a query.
pub fn alerts(dialect: &Dialect, query: &AlertQuery) -> Statement {
    let mut statement = select_alerts(dialect);
    statement.equals(dialect, "rule", query.rule.as_ref());
    statement.equals(dialect, "severity", query.severity.as_ref());
    statement.equals(dialect, "status", query.status.as_ref());
    statement.equals(dialect, "key_kind", query.key_kind.as_ref());
    statement.equals(dialect, "\"key\"", query.key.as_ref());
    statement.compares(dialect, "event_time", ">=", query.from.as_ref());
    statement.compares(dialect, "event_time", "<", query.to.as_ref());
    if let Some(before) = &query.before {
        statement.change(dialect, "<", before);
    }
    statement.end("epoch DESC, alert_id DESC", query.limit)
}

/// Returns the statement that selects one alert.
pub fn alert(dialect: &Dialect, id: &str) -> Statement {
    let mut statement = select_alerts(dialect);
    statement.equals(dialect, "alert_id", Some(&id.to_owned()));
    statement.end("alert_id", 1)
}

/// Returns the statement that selects changes after a cursor, of epochs before `before`.
pub fn changes(dialect: &Dialect, after: &ChangeCursor, before: u64, limit: usize) -> Statement {
    let mut statement = select_alerts(dialect);
    statement.change(dialect, ">", after);
    statement.condition(Parameter::Int(signed(before)), |n| format!("epoch < {}", (dialect.int)(n)));
    statement.end("epoch, alert_id", limit)
}

/// Returns the statement that selects the newest events of a key.
pub fn events(dialect: &Dialect, query: &EventQuery) -> Statement {
    let (time, amount) = ((dialect.millis)("event_time"), dialect.amount);
    let mut statement = Statement::new(format!(
        "SELECT partition, \"offset\", epoch, event_id, event_type, {time}, {amount}, currency, merchant_id, lat, lon \
         FROM events"
    ));
    statement.equals(dialect, "\"key\"", Some(&query.key));
    statement.equals(dialect, "key_kind", Some(&query.key_kind));
    statement.compares(dialect, "event_time", ">", query.after.as_ref());
    statement.compares(dialect, "event_time", "<=", Some(&query.through));
    statement.end("event_time DESC, partition DESC, \"offset\" DESC", query.limit)
}
