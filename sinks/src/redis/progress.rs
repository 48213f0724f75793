//! The progress of a Redis sink: one hash for each pipeline and sink.
//!
//! ```text
//!   PREFIX:PIPELINE:progress:SINK
//!     start                       GENERATION LEDGER_ID         the last start that opened the sink
//!     writer:GENERATION:PROCESS   EPOCH SHARDS TOKEN LEDGER_ID  the progress of each writer
//! ```
//!
//! The token is that of one `open`, so that a writer recognises its own record: a round whose answer was lost is found
//! there, and a writer of the same generation, from a copy of the ledger, is another one.

use std::collections::BTreeMap;

use headwater_dataflows::Epoch;

use crate::contract::{Generation, LedgerId, Progress, Shards, WriterContext};

/// Returns the key of the progress of a sink.
pub(super) fn progress_key(prefix: &str, pipeline: &str, sink: &str) -> String {
    format!("{prefix}:{pipeline}:progress:{sink}")
}

/// Returns the value of the field `start` for a start.
pub(super) fn start(context: &WriterContext) -> String {
    format!("{} {}", context.generation, context.ledger_id.0)
}

/// Returns the field of a writer.
pub(super) fn writer_field(context: &WriterContext) -> String {
    format!("writer:{}:{}", context.generation, context.process)
}

/// Returns the value of a writer's field.
pub(super) fn record(context: &WriterContext, token: &str, through: Epoch) -> String {
    format!("{through} {:016x} {token} {}", context.shards.0, context.ledger_id.0)
}

/// Returns the epoch in a record, if the record has this token.
pub(super) fn own_epoch(record: &str, token: &str) -> Option<Epoch> {
    let mut parts = record.split(' ');
    let epoch = parts.next()?.parse().ok()?;
    (parts.nth(1) == Some(token)).then_some(Epoch(epoch))
}

/// The contents of a progress hash.
#[derive(Debug, PartialEq)]
pub(super) struct Stored {
    pub progress: Vec<Progress>,
    /// The last start that opened the sink.
    pub last_start: Option<(LedgerId, Generation)>,
}

/// Decodes the fields of a progress hash. The error is the field that cannot be read.
pub(super) fn decode(fields: &BTreeMap<String, String>) -> Result<Stored, String> {
    let mut stored = Stored { progress: Vec::new(), last_start: None };
    for (field, value) in fields {
        let unreadable = || format!("{field} {value:?}");
        if field == "start" {
            stored.last_start = Some(decode_start(value).ok_or_else(unreadable)?);
        } else {
            stored.progress.push(decode_writer(field, value).ok_or_else(unreadable)?);
        }
    }
    Ok(stored)
}

fn decode_start(value: &str) -> Option<(LedgerId, Generation)> {
    let (generation, ledger_id) = value.split_once(' ')?;
    Some((LedgerId(ledger_id.to_owned()), Generation(generation.parse().ok()?)))
}

fn decode_writer(field: &str, value: &str) -> Option<Progress> {
    let (generation, _process) = field.strip_prefix("writer:")?.split_once(':')?;
    let [epoch, shards, _token, ledger_id] = value.split(' ').collect::<Vec<_>>().try_into().ok()?;
    Some(Progress {
        ledger_id: LedgerId(ledger_id.to_owned()),
        generation: Generation(generation.parse().ok()?),
        shards: Shards(u64::from_str_radix(shards, 16).ok()?),
        through: Epoch(epoch.parse().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_are_decoded_as_written(
            generation: u64, process in 0..64_usize, shards: u64, through: u64, ledger_id in "[0-9a-f]{32}",
        ) {
            let context = WriterContext {
                pipeline: "fraud".to_owned(),
                ledger_id: LedgerId(ledger_id.clone()),
                generation: Generation(generation),
                process,
                shards: Shards(shards),
                max_processes: 64,
                adopt: None,
            };
            let written = record(&context, "token", Epoch(through));
            prop_assert_eq!(own_epoch(&written, "token"), Some(Epoch(through)));
            prop_assert_eq!(own_epoch(&written, "other"), None);
            let fields = BTreeMap::from([
                ("start".to_owned(), start(&context)),
                (writer_field(&context), written),
            ]);
            let ledger_id = LedgerId(ledger_id);
            let progress = Progress {
                ledger_id: ledger_id.clone(),
                generation: Generation(generation),
                shards: Shards(shards),
                through: Epoch(through),
            };
            let last_start = Some((ledger_id, Generation(generation)));
            prop_assert_eq!(decode(&fields), Ok(Stored { progress: vec![progress], last_start }));
        }
    }

    #[test]
    fn unreadable_records_are_named() {
        for (field, value) in
            [("start", "x"), ("writer:1:0", "1 2"), ("writer:x:0", "1 0 t l"), ("other", "1")]
        {
            let fields = BTreeMap::from([(field.to_owned(), value.to_owned())]);
            assert_eq!(decode(&fields), Err(format!("{field} {value:?}")));
        }
    }
}
