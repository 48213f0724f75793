//! The directory: its lock, `progress.json`, and the files of lines. All writes are made with the lock held.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::encode::Lines;
use super::record::{Lengths, Record};
use crate::tables::TABLES;
use crate::{crash, private};

/// The name of the file of each table, in the order of [`TABLES`].
pub(super) const FILES: [&str; TABLES.len()] =
    ["enriched-events.ndjson", "alerts.ndjson", "windows.ndjson", "dead-letters.ndjson"];

const PROGRESS: &str = "progress.json";
const LOCK: &str = "progress.lock";

/// The time to wait for the lock: as long as for SQLite's.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// The directory of a file sink.
pub(super) struct Directory {
    path: PathBuf,
}

/// The error of reading `progress.json`.
#[derive(Debug, Error)]
pub(super) enum ReadError {
    /// It cannot be read.
    #[error(transparent)]
    Io(io::Error),
    /// It is not what this program writes.
    #[error("progress.json: {0}; restore it from a copy of the whole directory")]
    Damaged(String),
}

/// The error of replacing `progress.json`.
#[derive(Debug)]
pub(super) enum ReplaceError {
    /// It was not replaced.
    NotReplaced(io::Error),
    /// It may have been replaced.
    Unknown(io::Error),
}

impl ReplaceError {
    pub fn into_io(self) -> io::Error {
        match self {
            ReplaceError::NotReplaced(error) | ReplaceError::Unknown(error) => error,
        }
    }
}

impl Directory {
    pub fn new(path: PathBuf) -> Directory {
        Directory { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the directory, unless it exists.
    pub fn create(&self) -> io::Result<()> {
        if self.path.is_dir() {
            return Ok(());
        }
        private::folder(&self.path)?;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }

    /// Waits for the lock. It is released when the returned file is dropped, or when the process ends in any way.
    pub fn lock(&self) -> io::Result<File> {
        let file = private::file(&self.path.join(LOCK)).map_err(|error| named(LOCK, error))?;
        let since = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(named(LOCK, error)),
                Err(TryLockError::WouldBlock) if since.elapsed() > LOCK_TIMEOUT => {
                    let reason = format!(
                        "another process has held {LOCK} for {LOCK_TIMEOUT:?}: end it, if it is stuck"
                    );
                    return Err(io::Error::new(ErrorKind::TimedOut, reason));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Reads `progress.json`; returns `None` if it does not exist.
    pub fn read(&self) -> Result<Option<Record>, ReadError> {
        let bytes = match fs::read(self.path.join(PROGRESS)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            result => result.map_err(|error| ReadError::Io(named(PROGRESS, error)))?,
        };
        Record::decode(&bytes).map(Some).map_err(ReadError::Damaged)
    }

    /// Replaces `progress.json`, durably and in one step.
    pub fn replace(&self, record: &Record) -> Result<(), ReplaceError> {
        let new = self.path.join("progress.json.new");
        let written = (|| {
            let mut file = private::file(&new)?;
            file.set_len(0)?;
            file.write_all(&record.encode())?;
            file.sync_all()
        })();
        written.map_err(|error| ReplaceError::NotReplaced(named(PROGRESS, error)))?;
        // If a remote file system reports an error, it may have renamed the file nevertheless.
        let renamed = fs::rename(&new, self.path.join(PROGRESS)).and_then(|()| self.sync());
        renamed.map_err(|error| ReplaceError::Unknown(named(PROGRESS, error)))
    }

    /// Returns the reason why the files do not match their committed lengths; `None` if they do.
    pub fn check(&self, committed: &Lengths) -> io::Result<Option<String>> {
        for (name, &length) in FILES.iter().zip(committed) {
            let found = self.length(name)?;
            if found < length {
                return Ok(Some(shorter(name, found, length)));
            }
            if found > 0 && length == 0 && !self.has_progress()? {
                return Ok(Some(format!(
                    "{name} has {found} bytes, and there is no progress.json that says whose they are: restore it from a \
                     copy of the whole directory"
                )));
            }
        }
        Ok(None)
    }

    /// Cuts off what is not committed.
    pub fn truncate(&self, committed: &Lengths) -> io::Result<()> {
        for (name, &length) in FILES.iter().zip(committed) {
            if self.length(name)? > length {
                private::file(&self.path.join(name))?.set_len(length)?;
            }
        }
        Ok(())
    }

    /// Appends lines to the files, each after its committed length, and makes them durable. Advances the lengths.
    pub fn append(&self, committed: &mut Lengths, staged: &[&Lines]) -> io::Result<()> {
        let mut is_new = false;
        for (table, (name, length)) in FILES.iter().zip(committed).enumerate() {
            let lines = staged.iter().map(|lines| &*lines[table]).filter(|lines| !lines.is_empty());
            let mut lines = lines.peekable();
            if lines.peek().is_none() {
                continue;
            }
            is_new |= *length == 0;
            *length = self.append_to(name, *length, lines)?;
        }
        // A new file must not be missing beside the progress that says it is there.
        if is_new { self.sync() } else { Ok(()) }
    }

    /// Appends lines to a file and returns its new length.
    fn append_to<'a>(
        &self,
        name: &str,
        length: u64,
        lines: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<u64> {
        let found = self.length(name)?;
        if found < length {
            return Err(io::Error::new(ErrorKind::InvalidData, shorter(name, found, length)));
        }
        let appended = (|| {
            let file = private::file(&self.path.join(name))?;
            if found > length {
                file.set_len(length)?;
            }
            let mut out = BufWriter::with_capacity(1 << 16, file);
            out.seek(SeekFrom::Start(length))?;
            let mut end = length;
            for lines in lines {
                out.write_all(lines)?;
                end += lines.len() as u64;
            }
            let file = out.into_inner()?;
            crash::point("file.appended");
            file.sync_data()?;
            Ok(end)
        })();
        appended.map_err(|error| named(name, error))
    }

    /// Returns the length of a file; 0 if it does not exist.
    fn length(&self, name: &str) -> io::Result<u64> {
        match fs::metadata(self.path.join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
            metadata => Ok(metadata?.len()),
        }
    }

    fn has_progress(&self) -> io::Result<bool> {
        self.path.join(PROGRESS).try_exists()
    }

    /// Makes the names in the directory durable.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

fn named(name: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{name}: {error}"))
}

fn shorter(name: &str, found: u64, length: u64) -> String {
    format!(
        "{name} has {found} bytes, and {length} bytes of it are committed: it was truncated, replaced or moved; restore it"
    )
}
