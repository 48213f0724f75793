//! `check --sample`: decodes records and prints each event, or why it was refused.
//!
//! ```text
//!   a topic:      the newest N records, from offsets before the end of each partition on ─┐
//!   other sources: the first N records                                                   ─┴─▶ decoder ─▶ event or reason
//!   a file:        its lines                                                             ─┘
//! ```
//!
//! No consumer group is asked, and nothing is committed.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use headwater_dataflows::{Offset, Partition, Position};
use serde_json::{Value, json};

use super::output;
use crate::assembly;
use crate::config::Config;
use crate::decode::{Decoder, FieldError, Rejection};
use crate::event::{Event, KeyKind, split_key};
use crate::fields::Layout;
use crate::source::{Budget, NO_TIMESTAMP, Raw};

/// The maximum number of records of a sample.
const MAX_RECORDS: usize = 1_000_000;

/// The time without a further record after which the source counts as read.
const QUIET: Duration = Duration::from_secs(5);

/// The maximum number of characters of a refused record in a text.
const SHOWN: usize = 300;

/// The number of records of a topic that are read at once.
const READ_RECORDS: usize = 10_000;

/// A decoded record.
struct Sampled {
    position: Position,
    timestamp: i64,
    outcome: Result<Value, Rejection>,
    field_errors: Vec<FieldError>,
    /// The record's text, if it was refused.
    record: Option<String>,
}

/// Decodes a sample: records of the source if `sample` is their number, else the lines of a file.
///
/// # Errors
/// If there is no such file, or the source cannot be read.
pub fn sample(config: &Config, sample: &str, as_json: bool) -> anyhow::Result<()> {
    let mut sampler = Sampler {
        layout: config.plan.decoding.layout(),
        decoder: config.plan.decoding.decoder(),
        sampled: Vec::new(),
    };
    match sample.parse::<usize>() {
        Ok(records) if (1..=MAX_RECORDS).contains(&records) => read_source(config, records, &mut sampler)?,
        Ok(records) => bail!("--sample: {records} is not between 1 and {MAX_RECORDS} records"),
        Err(_) if config.plan.decoding.format.binary.is_some() => bail!(
            "--sample: records in {} are no lines of a file; give a number, to read as many from the source",
            config.plan.decoding.format.name
        ),
        Err(_) => read_file(Path::new(sample), &mut sampler)?,
    }
    Ok(output::report(as_json, || sampler.json(), || sampler.text())?)
}

/// Reads the lines of a file.
fn read_file(path: &Path, sampler: &mut Sampler) -> anyhow::Result<()> {
    let bytes = std::fs::read(path).with_context(|| {
        format!("--sample: cannot read {} (a number of records, or a file with one per line)", path.display())
    })?;
    let lines = bytes.split(|&byte| byte == b'\n').enumerate();
    for (line, value) in lines.filter(|(_, value)| !value.is_empty()).take(MAX_RECORDS) {
        let position = Position { partition: Partition(0), offset: Offset(line as i64) };
        let value = value.strip_suffix(b"\r").unwrap_or(value);
        sampler.add(Raw {
            position,
            timestamp: NO_TIMESTAMP,
            key: None,
            value: Some(value),
            retries: 0,
            producer: None,
        });
    }
    Ok(())
}

/// Reads records of the source, with a reader of its own: the newest of a topic, else the first.
fn read_source(config: &Config, records: usize, sampler: &mut Sampler) -> anyhow::Result<()> {
    let newest = config.source.connector().newest(records as u64)?;
    let is_newest = newest.is_some();
    let source = assembly::source(config, true)(newest)?;
    let owned: Vec<_> = (0..).map(Partition).zip(source.start().iter().copied()).collect();
    let mut reader = source.reader(&owned)?;
    let mut last = Instant::now();
    while (is_newest || sampler.sampled.len() < records) && last.elapsed() < QUIET {
        let budget = if is_newest { READ_RECORDS } else { records - sampler.sampled.len() };
        if reader.read(Budget::records(budget), &mut |raw| sampler.add(raw))? > 0 {
            last = Instant::now();
            if is_newest && sampler.sampled.len() > 2 * records {
                sampler.keep_newest(records);
            }
        } else if reader.partitions().iter().all(|partition| partition.ended) {
            break;
        } else {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    if is_newest {
        sampler.keep_newest(records);
    }
    Ok(())
}

struct Sampler {
    layout: std::sync::Arc<Layout>,
    decoder: Box<dyn Decoder>,
    sampled: Vec<Sampled>,
}

impl Sampler {
    fn add(&mut self, raw: Raw<'_>) {
        let outcome = self.decoder.decode(raw).map(|event| event_json(&event, &self.layout));
        let record =
            outcome.is_err().then(|| String::from_utf8_lossy(raw.value.unwrap_or_default()).into_owned());
        let field_errors = if outcome.is_ok() { self.decoder.field_errors().to_vec() } else { Vec::new() };
        let Raw { position, timestamp, .. } = raw;
        self.sampled.push(Sampled { position, timestamp, outcome, field_errors, record });
    }

    /// Removes all records but the newest by their timestamps.
    fn keep_newest(&mut self, records: usize) {
        self.sampled.sort_by_key(|sampled| (sampled.timestamp, sampled.position));
        self.sampled.drain(..self.sampled.len().saturating_sub(records));
    }

    fn refused(&self) -> usize {
        self.sampled.iter().filter(|sampled| sampled.outcome.is_err()).count()
    }

    fn json(&self) -> Value {
        let records = self.sampled.iter().map(|sampled| {
            let Position { partition, offset } = sampled.position;
            let absent: Vec<_> = sampled
                .field_errors
                .iter()
                .map(|error| json!({ "field": error.field, "message": error.message }))
                .collect();
            match &sampled.outcome {
                Ok(event) => json!({
                    "partition": partition.0, "offset": offset.0, "event": event, "absent": absent,
                }),
                Err(rejection) => json!({
                    "partition": partition.0, "offset": offset.0, "reason": rejection.reason,
                    "field": rejection.field, "message": rejection.message, "record": sampled.record,
                }),
            }
        });
        let refused = self.refused();
        json!({
            "records": self.sampled.len(), "events": self.sampled.len() - refused, "refused": refused,
            "sample": records.collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for sampled in &self.sampled {
            let Position { partition, offset } = sampled.position;
            let place = format!("{}/{}", partition.0, offset.0);
            match &sampled.outcome {
                Ok(event) => text.push_str(&format!("{place} event {event}\n")),
                Err(rejection) => {
                    let record = output::escaped(sampled.record.as_deref().unwrap_or_default(), SHOWN);
                    let (reason, message) = (rejection.reason.as_str(), &rejection.message);
                    text.push_str(&format!("{place} refused as {reason}: {message}\n    {record}\n"));
                }
            }
            for FieldError { message, .. } in &sampled.field_errors {
                text.push_str(&format!("    absent: {message}\n"));
            }
        }
        let refused = self.refused();
        let events = self.sampled.len() - refused;
        text.push_str(&format!("{} records: {events} events, {refused} refused\n", self.sampled.len()));
        text
    }
}

/// Returns an event with its key, as `enriched-events` has it.
fn event_json(event: &Event, layout: &Layout) -> Value {
    let mut members = vec![b'{'];
    event.write_members(layout, &mut members);
    members.push(b'}');
    let mut value: Value = serde_json::from_slice(&members).unwrap_or_default();
    let (kind, key) = split_key(event.key());
    if kind != KeyKind::Absent {
        value["key_kind"] = kind.as_str().into();
        value["key"] = key.into();
    }
    value
}
