//! `headwater bench keys`: what a key costs in memory once it is idle.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use headwater_dataflows::windows::{Refresh, Statistics, Tumbling};
use headwater_dataflows::{
    Accumulate, Admission, Admit, Emission, Engine, EventTime, Offset, Partition, Position, Scan,
};
use serde_json::json;

use super::drive::EPOCH;
use super::{cost, usage};
use crate::cli::command::KeysArgs;
use crate::cli::output::{note, outln};
use crate::decode::Decoder;
use crate::event::Event;
use crate::outputs::{Alert, KeyHistory};
use crate::runtime::rules;
use crate::source::Raw;

/// How many events each key has before it is idle.
const EACH: usize = 2;

/// 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600_000;

/// How long the allocator may take to give back what it holds for nobody.
const SETTLE: Duration = Duration::from_secs(5);

/// Gives each key some events, lets all of them become final and their windows close, and prints what is left.
///
/// # Errors
/// If the system does not tell how much memory there is.
pub fn keys(args: &KeysArgs) -> anyhow::Result<()> {
    const UNKNOWN: &str = "memory is not accounted for here: this needs Linux and /proc";
    let pipeline = Arc::from("bench");
    let mut engine = Engine::new(
        |events, control| {
            let (keyed, _) =
                events.admit(control, Admission { dedup_horizon_ms: 60_000, ttl_ms: Some(i64::MAX) });
            // What operators remember, without what they say.
            let statistics = Statistics::new(Event::amount, Event::merchant);
            keyed.clone().tumbling("Minute", 60_000, Refresh::Final, statistics, |row| row.summary.count);
            keyed.clone().accumulate("Enrich", |_, history: &mut KeyHistory, event: &Event, _: &mut ()| {
                black_box(history.arrive(event));
            });
            let alerts = keyed.scan_all("Rules", rules(&pipeline, &cost::patterns(Emission::Immediate)));
            alerts.map(|alert: Alert| alert.position)
        },
        |_, _, _| {},
    );
    let before = usage::resident_bytes().context(UNKNOWN)?;
    let begun = Instant::now();
    let mut decoder = Decoder::default();
    let mut offset = 0;
    for round in 0..EACH {
        for first in (0..args.keys).step_by(EPOCH) {
            for key in first..args.keys.min(first + EPOCH) {
                engine.push(event(&mut decoder, key, offset));
                offset += 1;
            }
            engine.end_epoch(EventTime(time(offset) - 1));
        }
        note!("{} of {EACH} events for each of {} keys …", round + 1, args.keys);
    }
    let took = begun.elapsed();
    // An hour later what is to leave leaves; the allocator gives it back while it is asked for more.
    engine.end_epoch(EventTime(time(offset) + 3_600_000));
    let settled = Instant::now();
    let mut later = offset;
    while settled.elapsed() < SETTLE {
        later += 1;
        engine.push(event(&mut decoder, later % args.keys, later + 3_600_000 * 100));
        engine.end_epoch(EventTime(time(later) + 3_600_000));
    }
    let held = usage::resident_bytes().context(UNKNOWN)?.saturating_sub(before);
    let (bytes, rate) = (held / args.keys as u64, offset as f64 / took.as_secs_f64());
    if args.json {
        outln!("{}", json!({ "keys": args.keys, "bytes_per_key": bytes, "events_per_s": rate.round() }))?;
    } else {
        outln!(
            "{} keys, each idle: {bytes} bytes a key; {rate:.0} events/s, decoding among them",
            args.keys
        )?;
    }
    drop(engine);
    Ok(())
}

/// A hundred thousand events to a second of event time.
fn time(offset: usize) -> i64 {
    START + offset as i64 / 100
}

/// A payment, at a place.
fn event(decoder: &mut Decoder, key: usize, offset: usize) -> Event {
    let (millis, merchant) = (time(offset), offset % 997);
    let text = format!(
        "{{\"event_id\":\"{offset:036}\",\"event_type\":\"transaction\",\"user_id\":\"user-{key:08}\",\"event_time\":{millis},\
         \"amount\":12.5,\"currency\":\"EUR\",\"merchant_id\":\"m-{merchant}\",\"location\":{{\"lat\":48.85,\"lon\":2.35}}}}"
    );
    let position = Position { partition: Partition(0), offset: Offset(offset as i64) };
    let raw = Raw { position, timestamp: millis, key: None, value: Some(text.as_bytes()), retries: 0 };
    decoder.decode(raw).expect("a record as it should be")
}
