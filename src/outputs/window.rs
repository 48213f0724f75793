//! Window aggregates.

use std::sync::Arc;

use headwater_dataflows::windows::{Summary, Window};
use headwater_dataflows::{Epoch, ShardId, patterns::Moments};
use headwater_sinks::{Cell, Changes};
use serde::{Deserialize, Serialize};

use super::{Envelope, Output, OutputMapping, Status, shard_of};
use crate::event::split_key;

/// The aggregates of a window's events.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WindowRow {
    /// The window's name.
    pub name: Arc<str>,
    /// The key, with its prefix.
    pub key: String,
    /// The start and end of the window.
    pub window: Window,
    /// True if the window is final.
    pub closed: bool,
    pub(crate) count: u64,
    pub(crate) amounts: Moments,
    pub(crate) extremes: Option<(i64, i64)>,
    pub(crate) distinct_merchants: u64,
}

impl WindowRow {
    /// Creates the row of a window named `name`.
    pub fn new(name: &Arc<str>, key: &str, window: Window, closed: bool, summary: &Summary) -> WindowRow {
        WindowRow {
            name: Arc::clone(name),
            key: key.to_owned(),
            window,
            closed,
            count: summary.count,
            amounts: summary.amounts,
            extremes: summary.extremes,
            distinct_merchants: summary.distinct(),
        }
    }
}

/// Amounts are stored in millionths.
pub(crate) const MICROS: f64 = 1e6;

impl Output for WindowRow {
    fn accepted_by(&self, mapping: &OutputMapping) -> Option<u8> {
        mapping.windows
    }

    fn shard(&self) -> ShardId {
        shard_of(&self.key)
    }

    /// Appends the row. A revoked row is a deletion: the window no longer exists, because its session merged or lost
    /// its events.
    fn row(&self, epoch: Epoch, status: Status, table: u8, out: &mut Changes) {
        let (kind, id) = split_key(&self.key);
        let mut row = match status {
            Status::Raised => out.rows.row(table),
            Status::Revoked => out.rows.delete(table),
        };
        row.cell(Cell::Text(&self.name))
            .cell(Cell::Text(kind.as_str()))
            .cell(Cell::Text(id))
            .cell(Cell::Time(self.window.start.0));
        if status == Status::Revoked {
            return row.end();
        }
        let float = |value: Option<f64>| value.map_or(Cell::Null, |value| Cell::Float(value / MICROS));
        let decimal = |value: Option<i64>| value.map_or(Cell::Null, |value| Cell::Micros(value.into()));
        row.cell(Cell::Time(self.window.end.0))
            .cell(Cell::Int(self.count as i64))
            .cell(Cell::Int(self.amounts.count() as i64))
            .cell(Cell::Micros(self.amounts.sum()))
            .cell(float(self.amounts.mean()))
            .cell(decimal(self.extremes.map(|(min, _)| min)))
            .cell(decimal(self.extremes.map(|(_, max)| max)))
            .cell(float(self.amounts.stddev()))
            .cell(Cell::Int(self.distinct_merchants as i64))
            .cell(Cell::Bool(self.closed))
            .cell(Cell::Int(epoch.0 as i64))
            .end();
    }

    /// Does nothing: windows are written to tables only.
    fn message(&self, _: Epoch, _: Status, _: u8, _: &Envelope<'_>, _: &mut Changes) {}
}
