//! The events of one key among the records that are read again, as the pipeline admitted them.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use headwater_dataflows::{EventTime, Position};

use super::late::{Pushes, Rules};
use super::{KEPT, Settings};
use crate::coordination::ingest::{Clocks, TimeRules};
use crate::decode::Decoder;
use crate::event::{Event, split_key};
use crate::json::decimal;
use crate::pipeline::RulePlan;
use crate::results::alert::AlertRecord;
use crate::results::stored::EventRecord;
use crate::source::Raw;
use crate::source::history::Visitor;

/// Collects the events of an alert's key up to its triggering event.
pub struct Collector<'a> {
    alert: &'a AlertRecord,
    /// The rule, if it is one of the user's own.
    own: Option<&'a RulePlan>,
    /// The event time that is exceeded; None for all.
    after_ms: Option<i64>,
    settings: Settings,
    rules: Rules,
    decoder: Box<dyn Decoder>,
    /// The last record that was decoded, with its event if it is one.
    last: Option<(Position, Option<Event>)>,
    events: Vec<EventRecord>,
    pushes: Pushes,
    /// The event time of the newest event that was dropped to bound the memory.
    known_from_ms: Option<i64>,
    /// The ids that the alert names and were not found yet.
    unfound: HashSet<&'a str>,
}

/// The collected events.
#[derive(Debug)]
pub struct Collected {
    /// The events, in the order in which a rule sees them.
    pub events: Vec<EventRecord>,
    /// The event time after which none was dropped to bound their number; None if none was.
    pub known_from_ms: Option<i64>,
    /// The number of events that were probably refused as late.
    pub late: usize,
}

impl<'a> Collector<'a> {
    pub fn new(
        alert: &'a AlertRecord,
        after_ms: Option<i64>,
        own: Option<&'a RulePlan>,
        settings: Settings,
    ) -> Collector<'a> {
        let millis = |duration: std::time::Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let time = &settings.time;
        Collector {
            alert,
            own,
            after_ms,
            rules: Rules {
                max_out_of_orderness_ms: time.max_out_of_orderness_ms,
                idle: Some(millis(time.idle_timeout)),
                lag: millis(time.epoch),
                max_jump_ms: None,
            },
            decoder: settings.decoding.decoder(),
            last: None,
            events: Vec::new(),
            pushes: Pushes::default(),
            known_from_ms: None,
            unfound: alert.event_ids.iter().map(String::as_str).collect(),
            settings,
        }
    }

    /// Decodes a record, once for both calls of the visitor.
    fn decode(&mut self, raw: Raw<'_>) -> Option<&Event> {
        if self.last.as_ref().is_none_or(|(position, _)| *position != raw.position) {
            self.last = Some((raw.position, self.decoder.decode(raw).ok()));
        }
        self.last.as_ref().and_then(|(_, event)| event.as_ref())
    }

    fn is_of_key(&self, event: &Event) -> bool {
        let space = self.own.and_then(|own| own.by.space());
        let key = match space {
            Some(space) => space.key(event).map(Cow::Owned),
            None => Some(Cow::Borrowed(event.key())),
        };
        key.is_some_and(|key| {
            let (kind, name) = split_key(&key);
            kind.as_str() == self.alert.key_kind && name == self.alert.key
        })
    }

    /// Returns the place of a record in the order of arrival: its timestamp or, if the records of this source have none,
    /// its epoch, which is then a count of records. `clock` is the valid timestamp.
    fn arrival(&mut self, raw: Raw<'_>, clock: Option<i64>) -> i64 {
        if let Some(clock) = clock {
            return clock;
        }
        // Records without timestamps are never idle, and decide what is late from the next epoch on.
        let Settings { time, .. } = &self.settings;
        self.rules = Rules { idle: None, lag: 1, max_jump_ms: time.max_jump_ms, ..self.rules };
        raw.position.offset.0 / time.epoch_records.max(1)
    }

    /// Drops all but the newest events by event time.
    fn keep_newest(&mut self, count: usize) {
        if self.events.len() > count {
            self.events.sort_unstable_by_key(order);
            let dropped = self.events.len() - count;
            self.known_from_ms = self.known_from_ms.max(Some(self.events[dropped - 1].event_time_ms));
            self.events.drain(..dropped);
        }
    }

    /// Returns the events as the pipeline admitted them: without those that are late or repeated.
    pub fn finish(mut self) -> Collected {
        self.pushes.sort();
        // In the order of arrival. Within a partition it is that of offsets, whatever the timestamps.
        self.events.sort_unstable_by_key(|event| (event.partition, event.offset));
        let mut greatest = HashMap::new();
        for event in &mut self.events {
            let last = greatest.entry(event.partition).or_insert(event.arrival);
            *last = event.arrival.max(*last);
            event.arrival = *last;
        }
        self.events.sort_by_key(|event| (event.arrival, event.partition, event.offset));
        let named: HashSet<&str> = self.alert.event_ids.iter().map(String::as_str).collect();
        let (mut late, horizon_ms) = (0, self.settings.dedup_horizon_ms.unsigned_abs());
        let (pushes, rules) = (&self.pushes, &self.rules);
        let mut accepted: HashMap<String, Vec<i64>> = HashMap::new();
        self.events.retain(|event| {
            let watermark = pushes.watermark(event.arrival as i64, rules);
            let time = event.event_time_ms;
            if watermark >= Some(EventTime(time)) && !named.contains(&*event.event_id) {
                late += 1;
                return false;
            }
            let times = accepted.entry(event.event_id.clone()).or_default();
            let is_repeated = horizon_ms > 0 && times.iter().any(|other| other.abs_diff(time) <= horizon_ms);
            if !is_repeated {
                times.push(time);
            }
            !is_repeated
        });
        for (event, rank) in self.events.iter_mut().zip(0..) {
            event.arrival = rank;
        }
        self.keep_newest(KEPT);
        self.events.sort_unstable_by_key(order);
        Collected { events: self.events, known_from_ms: self.known_from_ms, late }
    }
}

impl Visitor for Collector<'_> {
    fn is_wanted(&mut self, raw: Raw<'_>) -> bool {
        let Some(event) = self.decode(raw).cloned() else { return false };
        let is_named = self.alert.event_ids.last().is_some_and(|id| id == event.id());
        // An absence is at the end of the time in which no event followed the one that it names.
        let is_absence = self.own.is_some_and(|own| own.condition.is_absence());
        let has_time = is_absence || event.event_time().0 == self.alert.event_time_ms;
        is_named && has_time && self.is_of_key(&event)
    }

    fn record(&mut self, raw: Raw<'_>) {
        let Some(event) = self.decode(raw).cloned() else { return };
        let clocks = Clocks::new(TimeRules::default(), raw.timestamp, None);
        let (time, skew_ms) = (event.event_time(), self.settings.time.max_future_skew_ms);
        if clocks.is_future(time, skew_ms) {
            return;
        }
        let arrival = self.arrival(raw, clocks.timestamp_ms);
        self.pushes.add(raw.position, arrival, clocks.pushing_time(time), &self.rules);
        let is_within =
            time.0 <= self.alert.event_time_ms && self.after_ms.is_none_or(|after| time.0 > after);
        if is_within && self.is_of_key(&event) {
            self.unfound.remove(event.id());
            let considered = self.own.map(|own| own.considers(&event));
            self.events.push(record(event, arrival, considered));
            if self.events.len() >= 4 * KEPT {
                self.keep_newest(2 * KEPT);
            }
        }
    }

    /// Returns true if more events are known than are shown, or if the rule looks only at the events that the alert names.
    fn is_full(&self) -> bool {
        let has_pair = self.alert.rule == "impossible_travel" && self.unfound.is_empty();
        self.events.len() > KEPT || has_pair
    }
}

/// The order in which a rule sees events.
fn order(event: &EventRecord) -> (i64, i64, i64) {
    (event.event_time_ms, event.partition, event.offset)
}

/// Returns the record of an event; with the event itself if a rule of the user's own judges it.
fn record(event: Event, arrival: i64, considered: Option<bool>) -> EventRecord {
    let text = |text: Option<&str>| text.map(str::to_owned);
    let position = event.position();
    let amount = event.amount().map(|micros| decimal(micros.into()));
    EventRecord {
        partition: position.partition.0.into(),
        offset: position.offset.0,
        epoch: None,
        arrival: arrival.unsigned_abs(),
        considered,
        event_id: event.id().to_owned(),
        event_type: event.event_type().to_owned(),
        event_time_ms: event.event_time().0,
        amount,
        currency: text(event.currency()),
        merchant_id: text(event.merchant_id()),
        location: event.location().map(|place| (place.lat, place.lon)),
        event: considered.map(|_| event),
    }
}
