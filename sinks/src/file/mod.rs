//! The file sink: a directory of NDJSON files, one for each kind of output, that are only appended to.
//!
//! ```text
//!   results/
//!     alerts.ndjson  enriched-events.ndjson  windows.ndjson  dead-letters.ndjson
//!       ├── committed lines, which never change ──┼── lines of a round that is not committed yet ──┤
//!       └───────── length in progress.json ───────┘
//!     progress.json   the pipeline, the last start, the progress of each writer, the committed length of each file
//!     progress.lock   locked while a process opens the directory or commits a round
//! ```
//!
//! The sink stages rows, since they have every column of every output: windows have no messages, and those of dead
//! letters keep the reason in headers. A row is one line, with the columns of its table ([`tables`](crate::tables)) as
//! members. A table that is keyed by alert or window has one line for each change, with its epoch: the last line of a
//! key counts, and `"deleted":true` removes the key.
//!
//! A round appends its lines, syncs the files, and then replaces `progress.json` by rename. The rename is the commit: it
//! makes the new lengths and the progress valid in one step. What lies behind the committed length is cut off before
//! anything else is appended there: by a retry, or by the next start. Both hold the lock from the check that no later
//! start has opened the directory to the rename, so a writer that was replaced can append nothing.
//!
//! A reader who wants only committed lines reads `progress.json` first, and then each file up to its length there.
//! Others, such as `tail -f`, see lines a few milliseconds early, and after a crash again. A file for each round that is
//! renamed into place would hide such lines, but there would be five files a second, and no file to follow.

mod directory;
mod encode;
mod record;

use std::collections::BTreeMap;
use std::path::PathBuf;

use headwater_dataflows::Epoch;

use self::directory::{Directory, ReadError, ReplaceError};
use self::encode::{Lines, encode};
use self::record::Record;
use crate::contract::{CommitError, CommitPermit, OpenError, Progress, Sink, StageError, WriterContext};
use crate::{Changes, crash};

/// The configuration of a file sink.
#[derive(Clone, Debug)]
pub struct FileConfig {
    /// The sink's name.
    pub name: String,
    /// The directory, created if it does not exist.
    pub path: PathBuf,
}

impl FileConfig {
    /// Builds the sink, which is not open yet.
    pub fn build(self) -> FileSink {
        FileSink {
            name: self.name,
            directory: Directory::new(self.path),
            open: None,
            staged: BTreeMap::new(),
        }
    }
}

/// A sink that appends lines to the files of a directory.
pub struct FileSink {
    name: String,
    directory: Directory,
    open: Option<Open>,
    staged: BTreeMap<Epoch, Vec<Lines>>,
}

struct Open {
    context: WriterContext,
    /// The epoch in the progress of this writer, if there is one.
    through: Option<Epoch>,
}

impl FileSink {
    fn unavailable(&self, source: std::io::Error) -> OpenError {
        OpenError::Unavailable {
            sink: self.name.clone(),
            what: format!("directory {}", self.directory.path().display()),
            source: Box::new(source),
        }
    }

    fn refused(&self, reason: String) -> OpenError {
        let reason = format!("{}: {reason}", self.directory.path().display());
        OpenError::Refused { sink: self.name.clone(), reason }
    }

    fn belongs_to(&self, owner: &str) -> OpenError {
        self.refused(format!(
            "the files belong to pipeline {owner:?}: give each pipeline a directory of its own"
        ))
    }

    /// Refuses a directory whose contents cannot be trusted.
    fn damaged(&self, reason: &str) -> OpenError {
        let name = &self.name;
        self.refused(format!("{reason}; or move the directory away and start with `--adopt-sink {name}`"))
    }

    /// Reads the record of the directory and checks it and the files; None if there is nothing yet.
    fn read_checked(&self, pipeline: &str) -> Result<Option<Record>, OpenError> {
        let found = self.directory.read().map_err(|error| match error {
            ReadError::Io(error) => self.unavailable(error),
            damaged => self.damaged(&damaged.to_string()),
        })?;
        if let Some(record) = found.as_ref().filter(|record| record.pipeline != pipeline) {
            return Err(self.belongs_to(&record.pipeline));
        }
        let committed = found.as_ref().map(|record| record.committed).unwrap_or_default();
        let unsuitable = self.directory.check(&committed).map_err(|error| self.unavailable(error))?;
        match unsuitable {
            Some(reason) => Err(self.damaged(&reason)),
            None => Ok(found),
        }
    }

    /// Checks the directory and enters this start, so that older starts are fenced. The lock must be held. Nothing is
    /// changed if the start is refused.
    fn take_over(&self, context: &WriterContext) -> Result<Vec<Progress>, OpenError> {
        let found = self.read_checked(&context.pipeline)?;
        let mut record = found.unwrap_or_else(|| Record::new(context));
        if let Some(through) = context.adopt {
            record.writers.clear();
            record.advance(context, through);
        }
        let progress = record.progress();
        if let Some(reason) = context.objection_to(&self.name, &progress, Some(&record.last_start())) {
            return Err(self.refused(reason));
        }
        record.enter(context);
        self.directory.replace(&record).map_err(|error| self.unavailable(error.into_io()))?;
        self.directory.truncate(&record.committed).map_err(|error| self.unavailable(error))?;
        Ok(progress)
    }

    /// Writes a round and its progress.
    fn write(&self, open: &Open, through: Epoch) -> Result<(), CommitError> {
        let sink = || self.name.clone();
        let failed = |reason: String| CommitError::Failed { sink: sink(), through, reason };
        let fenced = |reason: &str| CommitError::Fenced { sink: sink(), reason: reason.to_owned() };
        let _lock = self.directory.lock().map_err(|error| failed(error.to_string()))?;
        let mut record = match self.directory.read() {
            Ok(Some(record)) => record,
            Ok(None) => return Err(fenced("progress.json is gone: the directory was emptied or replaced")),
            Err(error) => return Err(failed(error.to_string())),
        };
        if !record.is_last_written_by(&open.context, open.through) {
            return Err(fenced("a later start has taken over, or another writer has changed its progress"));
        }
        let before = record.committed;
        // What a failed round has appended is cut off. If that fails too, the next attempt does it.
        let undo = |reason: String| {
            let _ = self.directory.truncate(&before);
            failed(reason)
        };
        let staged: Vec<_> = self.staged.range(..=through).flat_map(|(_, lines)| lines).collect();
        self.directory.append(&mut record.committed, &staged).map_err(|error| undo(error.to_string()))?;
        record.advance(&open.context, through);
        crash::point("file.written");
        self.directory.replace(&record).map_err(|error| match error {
            ReplaceError::NotReplaced(error) => undo(error.to_string()),
            ReplaceError::Unknown(error) => {
                CommitError::Indeterminate { sink: sink(), through, reason: error.to_string() }
            }
        })
    }
}

impl Sink for FileSink {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&mut self, context: &WriterContext) -> Result<Vec<Progress>, OpenError> {
        self.directory.create().map_err(|error| self.unavailable(error))?;
        let _lock = self.directory.lock().map_err(|error| self.unavailable(error))?;
        let progress = self.take_over(context)?;
        self.open = Some(Open { context: context.clone(), through: context.adopt });
        Ok(progress)
    }

    fn peek_progress(&mut self, pipeline: &str) -> Result<Vec<Progress>, OpenError> {
        // The file is replaced as a whole, and files only grow before that, so both can be read without the lock.
        Ok(self.read_checked(pipeline)?.map(|record| record.progress()).unwrap_or_default())
    }

    fn stage(&mut self, epoch: Epoch, changes: Changes) -> Result<(), StageError> {
        let error = |reason| StageError { sink: self.name.clone(), epoch, reason };
        if !changes.messages.is_empty() {
            return Err(error("a file sink accepts rows, not messages".to_owned()));
        }
        let lines = encode(epoch, &changes.rows).map_err(|(output, reason)| {
            let skip = format!("{}:{epoch}:{output}", self.name);
            error(format!("{reason}; with a ledger, `--skip {skip}` leaves it out"))
        })?;
        self.staged.entry(epoch).or_default().push(lines);
        Ok(())
    }

    fn commit(&mut self, permit: CommitPermit) -> Result<(), CommitError> {
        let through = permit.through();
        let Some(mut open) = self.open.take() else {
            let (sink, reason) = (self.name.clone(), "the sink is not open".to_owned());
            return Err(CommitError::Failed { sink, through, reason });
        };
        let result = self.write(&open, through);
        if result.is_ok() {
            open.through = Some(through);
            self.staged = self.staged.split_off(&through.next());
        }
        self.open = Some(open);
        result
    }
}

#[cfg(test)]
mod tests;
