//! `headwater bench keys`: measures the memory of an idle key.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use headwater_dataflows::windows::{EmitPolicy, Statistics, Tumbling};
use headwater_dataflows::{
    Accumulate, Admission, Admit, Emission, Engine, EventTime, Offset, Partition, Position, Scan,
};
use serde_json::json;

use super::args::KeysArgs;
use super::drive::EPOCH;
use super::{cost, usage};
use crate::cli::output::{self, note};
use crate::decode::{Decoder, JsonDecoder};
use crate::event::Event;
use crate::outputs::{Alert, KeyHistory};
use crate::pipeline::rules;
use crate::source::Raw;

/// The number of events of each key before it is idle.
const EVENTS_PER_KEY: usize = 2;

/// 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600_000;

/// The time for the allocator to release free memory.
const SETTLE: Duration = Duration::from_secs(5);

/// Sends some events to each key, makes them final, closes their windows, and prints the memory that remains in use.
///
/// # Errors
/// If the system does not report memory use, or the result cannot be printed.
pub fn keys(args: &KeysArgs) -> anyhow::Result<()> {
    const UNKNOWN: &str = "cannot measure memory on this system: this needs Linux and /proc";
    let pipeline = Arc::from("bench");
    let layout = crate::fields::Layout::default();
    let mut engine = Engine::new(
        |events, control| {
            let (keyed, _) =
                events.admit(control, Admission { dedup_horizon_ms: 60_000, ttl_ms: Some(i64::MAX) });
            // The operators keep their state, but their results are dropped.
            let statistics = Statistics::new(Event::amount, Event::merchant);
            keyed.clone().tumbling("Minute", 60_000, EmitPolicy::Final, statistics, |row| row.summary.count);
            keyed.clone().accumulate(
                "Enrich",
                move |_, history: &mut KeyHistory, event: &Event, _: &mut ()| {
                    black_box(history.arrive(event, &layout));
                },
            );
            let alerts = keyed.scan_all("Rules", rules(&pipeline, &cost::patterns(Emission::Immediate)));
            alerts.map(|alert: Alert| alert.position)
        },
        |_, _, _| {},
    );
    let before = usage::resident_bytes().context(UNKNOWN)?;
    let started = Instant::now();
    let mut decoder = JsonDecoder::default();
    let mut offset = 0;
    for round in 0..EVENTS_PER_KEY {
        for first in (0..args.keys).step_by(EPOCH) {
            for key in first..args.keys.min(first + EPOCH) {
                engine.push(event(&mut decoder, key, offset));
                offset += 1;
            }
            engine.end_epoch(EventTime(time(offset) - 1));
        }
        note!("{} of {EVENTS_PER_KEY} events sent to each of {} keys …", round + 1, args.keys);
    }
    let elapsed = started.elapsed();
    // An hour later, expired state is dropped. Further allocations make the allocator release its memory.
    engine.end_epoch(EventTime(time(offset) + 3_600_000));
    let settled = Instant::now();
    let mut later = offset;
    while settled.elapsed() < SETTLE {
        later += 1;
        engine.push(event(&mut decoder, later % args.keys, later + 3_600_000 * 100));
        engine.end_epoch(EventTime(time(later) + 3_600_000));
    }
    let held = usage::resident_bytes().context(UNKNOWN)?.saturating_sub(before);
    let (bytes, rate) = (held / args.keys as u64, offset as f64 / elapsed.as_secs_f64());
    drop(engine);
    let json = || json!({ "keys": args.keys, "bytes_per_key": bytes, "events_per_s": rate.round() });
    let text = || {
        format!("{} idle keys: {bytes} bytes per key; {rate:.0} events/s, including decoding\n", args.keys)
    };
    Ok(output::report(args.json, json, text)?)
}

/// Returns the event time of a record: 100,000 records per second of event time.
fn time(offset: usize) -> i64 {
    START + offset as i64 / 100
}

/// Returns a payment with a location.
fn event(decoder: &mut JsonDecoder, key: usize, offset: usize) -> Event {
    let (millis, merchant) = (time(offset), offset % 997);
    let text = format!(
        "{{\"event_id\":\"{offset:036}\",\"event_type\":\"transaction\",\"user_id\":\"user-{key:08}\",\"event_time\":{millis},\
         \"amount\":12.5,\"currency\":\"EUR\",\"merchant_id\":\"m-{merchant}\",\"location\":{{\"lat\":48.85,\"lon\":2.35}}}}"
    );
    let position = Position { partition: Partition(0), offset: Offset(offset as i64) };
    let raw = Raw {
        position,
        timestamp: millis,
        key: None,
        value: Some(text.as_bytes()),
        retries: 0,
        producer: None,
    };
    decoder.decode(raw).expect("a valid record")
}
