//! Results in the tables of a database.

use headwater_dataflows::Epoch;
use serde_json::value::RawValue;

use super::alert::{AlertRecord, ChangeCursor};
use super::query::{self, AlertQuery, Dialect, EventQuery};
use super::{Results, ResultsError};
use crate::database::Statement;
use crate::event::Event;
use crate::json::rfc3339;
use crate::outputs::RuleMode;

/// A value of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// No value.
    Null,
    /// An integer, or a boolean as 0 or 1.
    Int(i64),
    /// A floating-point number.
    Real(f64),
    /// Text.
    Text(String),
}

/// A row of a result.
pub type Row = Vec<Value>;

/// A database that answers statements.
pub trait Database: Send + Sync {
    /// The differences of its SQL.
    const DIALECT: Dialect;

    /// Returns the place of the database, for people, without secrets.
    fn place(&self) -> String;

    /// Executes a statement. A database without the table yet has no rows.
    fn rows(&self, statement: &Statement) -> Result<Vec<Row>, String>;
}

/// Results in the tables of a database.
pub struct Stored<D> {
    database: D,
    has_events: bool,
}

/// An event as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRecord {
    /// The partition.
    pub partition: i64,
    /// The offset.
    pub offset: i64,
    /// The epoch in which it was read; None if the event was read from the source again.
    pub epoch: Option<u64>,
    /// The place in the order of arrival: the epoch, or a number of its own.
    pub arrival: u64,
    /// True if the rule considers the event; None if that is not known.
    pub considered: Option<bool>,
    /// The event itself, if it was read from the source again for a rule of the user's own.
    pub event: Option<Event>,
    /// The event's id.
    pub event_id: String,
    /// The event's type.
    pub event_type: String,
    /// The event time, in milliseconds since 1970.
    pub event_time_ms: i64,
    /// The exact amount, as text.
    pub amount: Option<String>,
    /// The currency.
    pub currency: Option<String>,
    /// The merchant.
    pub merchant_id: Option<String>,
    /// Latitude and longitude, in degrees.
    pub location: Option<(f64, f64)>,
}

impl<D: Database> Stored<D> {
    /// Returns the results in a database. `has_events` is true if it has the events as well.
    pub fn new(database: D, has_events: bool) -> Stored<D> {
        Stored { database, has_events }
    }

    fn rows(&self, statement: &Statement) -> Result<Vec<Row>, ResultsError> {
        self.database.rows(statement).map_err(|reason| self.error(reason))
    }

    fn error(&self, reason: String) -> ResultsError {
        ResultsError { place: self.database.place(), reason }
    }

    fn records(&self, statement: &Statement) -> Result<Vec<AlertRecord>, ResultsError> {
        let rows = self.rows(statement)?;
        rows.into_iter().map(|row| alert(row).ok_or_else(|| self.error("a row of alerts".into()))).collect()
    }
}

impl<D: Database> Results for Stored<D> {
    fn place(&self) -> String {
        self.database.place()
    }

    fn alerts(&self, alert_query: &AlertQuery) -> Result<Vec<AlertRecord>, ResultsError> {
        self.records(&query::alerts(&D::DIALECT, alert_query))
    }

    fn alert(&self, id: &str) -> Result<Option<AlertRecord>, ResultsError> {
        Ok(self.records(&query::alert(&D::DIALECT, id))?.pop())
    }

    fn changes(
        &self,
        mode: Option<RuleMode>,
        after: &ChangeCursor,
        before: Epoch,
        limit: usize,
    ) -> Result<Vec<AlertRecord>, ResultsError> {
        self.records(&query::changes(&D::DIALECT, mode, after, before.0, limit))
    }

    fn has_events(&self) -> bool {
        self.has_events
    }

    fn events(&self, event_query: &EventQuery) -> Result<Option<Vec<EventRecord>>, ResultsError> {
        if !self.has_events {
            return Ok(None);
        }
        let rows = self.rows(&query::events(&D::DIALECT, event_query))?;
        let events: Option<Vec<_>> = rows.into_iter().rev().map(event).collect();
        events.map(Some).ok_or_else(|| self.error("a row of events".into()))
    }
}

impl Value {
    fn int(self) -> Option<i64> {
        if let Value::Int(value) = self { Some(value) } else { None }
    }

    fn real(self) -> Option<f64> {
        match self {
            Value::Real(value) => Some(value),
            Value::Int(value) => Some(value as f64),
            Value::Null | Value::Text(_) => None,
        }
    }

    fn text(self) -> Option<String> {
        if let Value::Text(value) = self { Some(value) } else { None }
    }

    /// Returns the time in milliseconds; the greatest for a time beyond what the database stores.
    fn millis(self) -> Option<i64> {
        if self == Value::Null { Some(i64::MAX) } else { self.int() }
    }
}

/// Returns the alert of a row; None if the columns are of other types.
fn alert(row: Row) -> Option<AlertRecord> {
    let mut cells = row.into_iter();
    let mut next = || cells.next();
    let (alert_id, status, rule) = (next()?.text()?, next()?.text()?, next()?.text()?);
    let (rule_version, severity) = (next()?.int()?, next()?.text()?);
    let (key_kind, key, event_ids) = (next()?.text()?, next()?.text()?, next()?.text()?);
    let (event_time_ms, epoch) = (next()?.millis()?, next()?.int()?);
    Some(AlertRecord {
        alert_id,
        status,
        rule,
        rule_version,
        severity,
        key_kind,
        key,
        event_ids: serde_json::from_str(&event_ids).ok()?,
        event_time: rfc3339(event_time_ms),
        epoch: epoch.unsigned_abs(),
        r#final: next()?.int()? != 0,
        details: RawValue::from_string(next()?.text()?).ok()?,
        mode: next()?.text()?,
        event_time_ms,
        position: None,
    })
}

/// Returns the event of a row; None if the columns are of other types.
fn event(row: Row) -> Option<EventRecord> {
    let mut cells = row.into_iter();
    let mut next = || cells.next();
    let (partition, offset, epoch) = (next()?.int()?, next()?.int()?, next()?.int()?.unsigned_abs());
    Some(EventRecord {
        considered: None,
        event: None,
        partition,
        offset,
        epoch: Some(epoch),
        arrival: epoch,
        event_id: next()?.text()?,
        event_type: next()?.text()?,
        event_time_ms: next()?.millis()?,
        amount: next()?.text(),
        currency: next()?.text(),
        merchant_id: next()?.text(),
        location: next()?.real().zip(next()?.real()),
    })
}
