//! A trace of the bindings, as NDJSON, for checking a run against its input.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use headwater_dataflows::EventTime;
use headwater_sinks::private;
use serde_json::json;

use super::failure::RunError;
use crate::coordination::EpochRecord;

/// A file with one JSON object per epoch that has a binding or closes the windows.
pub struct TraceWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

impl TraceWriter {
    /// Creates the file, or truncates it.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create(path: &Path) -> Result<TraceWriter, RunError> {
        let truncate = || {
            let file = private::file(path)?;
            file.set_len(0).map(|()| file)
        };
        let file = truncate().map_err(|source| failed(path, source))?;
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
        let line = json!({
            "epoch": record.epoch.0,
            "wall_ms": (!counted).then_some(record.wall_ms),
            "partitions": partitions,
            "watermark": known.then_some(watermark.0),
            "close": record.closes,
        });
        let written = serde_json::to_writer(&mut self.out, &line).map_err(std::io::Error::from);
        written
            .and_then(|()| self.out.write_all(b"\n"))
            .and_then(|()| self.out.flush())
            .map_err(|source| failed(&self.path, source))
    }
}

fn failed(path: &Path, source: std::io::Error) -> RunError {
    RunError::Record { path: path.display().to_string(), source }
}
