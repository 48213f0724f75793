//! A trace of the bindings, as NDJSON, for checking a run against its input.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use headwater_dataflows::{Epoch, EventTime};
use headwater_sinks::private;
use serde_json::{Value, json};

use crate::coordination::{Change, EpochRecord, ListVersion};
use crate::lists::hex;
use crate::runtime::failure::RunError;

/// A file with one JSON object per epoch that has a binding or a change, or closes the windows.
pub struct TraceWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

impl TraceWriter {
    /// Creates the file, or continues it after this epoch: what earlier runs have traced of later ones is traced again.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn after(epoch: Epoch, path: &Path) -> Result<TraceWriter, RunError> {
        let continued = || {
            let mut file = private::file(path)?;
            let text = std::fs::read_to_string(path)?;
            let is_before = |line: &&str| {
                let traced = serde_json::from_str::<Value>(line).ok().and_then(|line| line["epoch"].as_u64());
                traced.is_some_and(|traced| traced <= epoch.0)
            };
            file.set_len(0)?;
            // A killed run may leave a part of a line.
            let before: String =
                text.split_inclusive('\n').filter(|line| line.ends_with('\n')).filter(is_before).collect();
            file.write_all(before.as_bytes()).map(|()| file)
        };
        let file = continued().map_err(|source| failed(path, source))?;
        Ok(TraceWriter { path: path.to_owned(), out: BufWriter::new(file) })
    }

    /// Writes an epoch: its bindings, and the watermark at its end. The wall time of a counted epoch has no meaning
    /// and is omitted.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn record(
        &mut self,
        record: &EpochRecord,
        watermark: EventTime,
        counted: bool,
    ) -> Result<(), RunError> {
        let partitions: Vec<_> = record
            .bindings
            .iter()
            .map(|binding| {
                json!({
                    "partition": binding.partition.0,
                    "end": binding.end.0,
                    "timestamp": binding.timestamp,
                    "max_event_time": binding.max_event_time.map(|time| time.0),
                    "pushing_time": binding.pushing_time.map(|time| time.0),
                    "candidate": binding.candidate.map(|time| time.0),
                    "idle": binding.idle,
                })
            })
            .collect();
        let known = watermark != EventTime::MIN && watermark != EventTime::MAX;
        let mut line = json!({
            "epoch": record.epoch.0,
            "wall_ms": (!counted).then_some(record.wall_ms),
            "partitions": partitions,
            "watermark": known.then_some(watermark.0),
            "close": record.closes,
        });
        if !record.change.is_empty() {
            line["change"] = describe(&record.change);
        }
        let written = serde_json::to_writer(&mut self.out, &line).map_err(std::io::Error::from);
        written
            .and_then(|()| self.out.write_all(b"\n"))
            .and_then(|()| self.out.flush())
            .map_err(|source| failed(&self.path, source))
    }
}

/// Returns the rules and lists that are in force for events of later epochs.
fn describe(change: &Change) -> Value {
    let list = |list: &ListVersion| json!({ "name": list.name, "hash": hex(&list.hash) });
    json!({ "rules": change.rules, "lists": change.lists.iter().map(list).collect::<Vec<_>>() })
}

fn failed(path: &Path, source: std::io::Error) -> RunError {
    RunError::Record { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fakes::record;

    #[test]
    fn each_epoch_is_one_line_with_its_bindings() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("trace.ndjson");
        std::fs::write(&path, "a longer line of an earlier run\n".repeat(100)).expect("written");
        let mut trace = TraceWriter::after(Epoch(0), &path).expect("created");
        let closing = EpochRecord { closes: true, bindings: Vec::new(), ..record(9, 0) };
        let epoch = EpochRecord { wall_ms: 5_000, ..record(8, 12) };
        trace.record(&epoch, EventTime(7), false).expect("written");
        trace.record(&closing, EventTime::MAX, true).expect("written");
        let lines = std::fs::read_to_string(&path).expect("flushed after each epoch");
        let lines: Vec<serde_json::Value> =
            lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let binding = json!({
            "partition": 0, "end": 12, "timestamp": 12, "max_event_time": 12, "pushing_time": 12,
            "candidate": null, "idle": false,
        });
        let first =
            json!({"epoch": 8, "wall_ms": 5000, "partitions": [binding], "watermark": 7, "close": false});
        let last = json!({"epoch": 9, "wall_ms": null, "partitions": [], "watermark": null, "close": true});
        assert_eq!(lines, [first, last]);
    }

    #[test]
    fn a_later_run_continues_after_its_checkpoint() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("trace.ndjson");
        std::fs::write(&path, "{\"epoch\":3}\n{\"epoch\":4}\n{\"epoch\":5}\n{\"epoch\":4").expect("written");
        let mut trace = TraceWriter::after(Epoch(4), &path).expect("opened");
        trace.record(&record(5, 0), EventTime(7), true).expect("written");
        let text = std::fs::read_to_string(&path).expect("flushed");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..2], ["{\"epoch\":3}", "{\"epoch\":4}"]);
        assert!(lines.len() == 3 && lines[2].contains("partitions"), "{text}");
    }

    #[test]
    fn a_change_is_part_of_its_epoch() {
        let list = ListVersion { name: "blocked".to_owned(), hash: [10; 32], bytes: 7 };
        let described = describe(&Change { rules: None, lists: vec![list], pasts: None });
        let hash = "0a".repeat(32);
        assert_eq!(described, json!({"rules": null, "lists": [{"name": "blocked", "hash": hash}]}));
        let rules = Change { rules: Some("text".to_owned()), lists: Vec::new(), pasts: None };
        assert_eq!(describe(&rules), json!({"rules": "text", "lists": []}));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = TraceWriter::after(Epoch(0), dir.path()).map(|_| ()).expect_err("it is a directory");
        let RunError::Record { path, .. } = error else { panic!("{error:?}") };
        assert_eq!(path, dir.path().display().to_string());
    }
}
