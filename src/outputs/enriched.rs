//! Enriched events: each event with statistics of its key at its arrival.

use headwater_dataflows::patterns::{Location, haversine_km};
use headwater_dataflows::{Epoch, Event as _, EventTime, ShardId};
use headwater_sinks::{Cell, Changes};
use serde::{Deserialize, Serialize};

use super::window::MICROS;
use super::{Envelope, Output, OutputMapping, Status};
use crate::event::{Event, KeyKind, split_key};
use crate::fields::Layout;
use crate::json::{round6, write_int, write_rounded, write_string};

/// The enrichment state of a key.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct KeyHistory {
    pub(crate) events: u64,
    pub(crate) amounts: u64,
    amount_sum: i128,
    /// The time of the last event to arrive, if there was one.
    pub(crate) previous: EventTime,
    pub(crate) located: Option<Location>,
}

/// An event at its arrival, enriched by the events of its key that arrived before it.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    event: &'a Event,
    layout: &'a Layout,
    key_events: u64,
    amount_mean: Option<f64>,
    since_previous_ms: Option<i64>,
    km_from_previous: Option<f64>,
}

impl KeyHistory {
    /// Adds the key's next event, in order of arrival, and returns it enriched. An event without a key is the first of
    /// its own.
    pub fn arrive<'a>(&mut self, event: &'a Event, layout: &'a Layout) -> Arrival<'a> {
        if split_key(event.key()).0 == KeyKind::Absent {
            *self = KeyHistory::default();
        }
        let previous = (self.events > 0).then_some(self.previous);
        self.previous = event.event_time();
        self.events += 1;
        if let Some(amount) = event.amount() {
            self.amounts += 1;
            self.amount_sum += i128::from(amount);
        }
        let since_previous_ms = previous.map(|before| event.event_time().0 - before.0);
        let km_from_previous = event
            .location()
            .and_then(|here| self.located.replace(here).map(|before| round6(haversine_km(before, here))));
        let amount_mean = self.amount_mean();
        Arrival { event, layout, key_events: self.events, amount_mean, since_previous_ms, km_from_previous }
    }

    /// Returns the mean of the amounts, rounded; None if there are none.
    pub(crate) fn amount_mean(&self) -> Option<f64> {
        (self.amounts > 0).then(|| round6(self.amount_sum as f64 / self.amounts as f64 / MICROS))
    }
}

/// Returns the band of an amount in millionths.
fn amount_band(amount: Option<i64>) -> &'static str {
    const UNIT: i64 = 1_000_000;
    match amount {
        None => "none",
        Some(amount) if amount < 10 * UNIT => "<10",
        Some(amount) if amount < 100 * UNIT => "<100",
        Some(amount) if amount < 1000 * UNIT => "<1000",
        Some(amount) if amount < 10_000 * UNIT => "<10000",
        Some(_) => ">=10000",
    }
}

impl Output for Arrival<'_> {
    fn accepted_by(&self, mapping: &OutputMapping) -> Option<u8> {
        mapping.events
    }

    fn shard(&self) -> ShardId {
        self.event.key_hash().shard()
    }

    fn row(&self, epoch: Epoch, _: Status, table: u8, out: &mut Changes) {
        let event = self.event;
        let (kind, key) = split_key(event.key());
        let location = event.location();
        out.rows
            .row(table)
            .cell(Cell::Int(event.position().partition.0.into()))
            .cell(Cell::Int(event.position().offset.0))
            .cell(Cell::Int(epoch.0 as i64))
            .cell(Cell::Text(event.id()))
            .cell(Cell::Text(event.event_type()))
            .cell(Cell::Text(kind.as_str()))
            .cell(Cell::Text(key))
            .cell(Cell::Time(event.event_time().0))
            .cell(event.amount().map_or(Cell::Null, |amount| Cell::Micros(amount.into())))
            .cell(event.currency().map_or(Cell::Null, Cell::Text))
            .cell(event.merchant_id().map_or(Cell::Null, Cell::Text))
            .cell(event.merchant_category().map_or(Cell::Null, Cell::Text))
            .cell(event.ip_address().map_or(Cell::Null, Cell::Text))
            .cell(event.session_id().map_or(Cell::Null, Cell::Text))
            .cell(event.device_id().map_or(Cell::Null, Cell::Text))
            .cell(location.map_or(Cell::Null, |at| Cell::Float(at.lat)))
            .cell(location.map_or(Cell::Null, |at| Cell::Float(at.lon)))
            .cell(event.all_attributes(self.layout).as_deref().map_or(Cell::Null, Cell::Json))
            .cell(Cell::Text(amount_band(event.amount())))
            .cell(Cell::Int(self.key_events as i64))
            .cell(self.amount_mean.map_or(Cell::Null, Cell::Float))
            .cell(self.since_previous_ms.map_or(Cell::Null, Cell::Int))
            .cell(self.km_from_previous.map_or(Cell::Null, Cell::Float))
            .end();
    }

    fn message(&self, epoch: Epoch, _: Status, topic: u8, _: &Envelope<'_>, out: &mut Changes) {
        let (kind, key) = split_key(self.event.key());
        out.messages.push(topic, Some(key.as_bytes()), &[], |out| {
            out.push(b'{');
            self.event.write_members(self.layout, out);
            out.extend_from_slice(b",\"epoch\":");
            write_int(out, epoch.0 as i64);
            out.extend_from_slice(b",\"key_kind\":");
            write_string(out, kind.as_str());
            out.extend_from_slice(b",\"key\":");
            write_string(out, key);
            out.extend_from_slice(b",\"amount_band\":");
            write_string(out, amount_band(self.event.amount()));
            out.extend_from_slice(b",\"key_events\":");
            write_int(out, self.key_events as i64);
            for (name, value) in
                [("key_amount_mean", self.amount_mean), ("km_from_previous", self.km_from_previous)]
            {
                out.push(b',');
                write_string(out, name);
                out.push(b':');
                match value {
                    Some(value) => write_rounded(out, value),
                    None => out.extend_from_slice(b"null"),
                }
            }
            out.extend_from_slice(b",\"since_previous_ms\":");
            match self.since_previous_ms {
                Some(ms) => write_int(out, ms),
                None => out.extend_from_slice(b"null"),
            }
            out.push(b'}');
        });
    }
}
