//! The lines of files around one of them. They have no timestamps, so the files are read from their beginnings, in step,
//! as a run reads them.

use std::path::PathBuf;
use std::time::Instant;

use headwater_dataflows::{Partition, Position};

use super::{Input, OpenFile, lines};
use crate::source::history::{Allowance, Bounds, Gap, HistoryQuery, HistoryRead, RecordHistory, Visitor};
use crate::source::{NO_TIMESTAMP, Raw, SourceError};

/// The maximum number of lines of one reading.
const RECORDS: u64 = 2_000_000;

/// The maximum number of bytes of one reading.
const BYTES: u64 = 1 << 30;

/// The number of lines of each file that are read after the wanted one.
const AFTER: i64 = 20_000;

/// Files to read again.
#[derive(Clone, Debug)]
pub struct FileHistory {
    paths: Vec<PathBuf>,
    turn: i64,
}

impl FileHistory {
    /// Returns the files, of which a run reads `turn` lines in turn.
    ///
    /// # Errors
    /// If one of them cannot be read again: the reason.
    pub fn new(paths: Vec<PathBuf>, turn: i64) -> Result<FileHistory, String> {
        for path in &paths {
            if !path.is_file() {
                return Err(format!("{} is not a regular file", path.display()));
            }
        }
        Ok(FileHistory { paths, turn: turn.max(1) })
    }
}

impl RecordHistory for FileHistory {
    fn name(&self) -> String {
        match &self.paths[..] {
            [path] => format!("file {}", path.display()),
            paths => format!("{} files", paths.len()),
        }
    }

    fn read(&self, query: &HistoryQuery, visitor: &mut dyn Visitor) -> Result<HistoryRead, SourceError> {
        let bounds = Bounds::until(query.deadline, RECORDS, BYTES);
        let mut left = Allowance::of(bounds);
        let open = |(path, partition): (&PathBuf, u32)| {
            Ok(OpenFile::new(path.clone(), Input::File(lines(path)?), Partition(partition)))
        };
        let mut files = self.paths.iter().zip(0..).map(open).collect::<Result<Vec<_>, SourceError>>()?;
        // The offset at which a file's turn ends, and the one at which reading ends.
        let (mut until, mut end) = (0, i64::MAX);
        let (mut read, mut is_within) = (HistoryRead::default(), true);
        while is_within && until < end && files.iter().any(|file| !file.ended) {
            until += self.turn;
            for file in &mut files {
                let partition = file.partition;
                while is_within && !file.ended && file.next < until.min(end) {
                    file.read_line(|offset, line| {
                        let position = Position { partition, offset };
                        let (timestamp, value) = (NO_TIMESTAMP, Some(line));
                        let raw = Raw { position, timestamp, key: None, value, retries: 0, producer: None };
                        is_within = left.take(&raw);
                        if !read.is_found && visitor.is_wanted(raw) {
                            (read.is_found, end) = (true, offset.0.saturating_add(AFTER));
                        }
                        visitor.record(raw);
                    })?;
                }
            }
            is_within &= Instant::now() < query.deadline;
        }
        if !is_within {
            read.gaps.push(if read.is_found { Gap::After(bounds) } else { Gap::Bound(bounds) });
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Finds the line `wanted`, and keeps all lines.
    struct Lines(&'static str, Vec<String>);

    impl Visitor for Lines {
        fn is_wanted(&mut self, raw: Raw<'_>) -> bool {
            raw.value == Some(self.0.as_bytes())
        }

        fn record(&mut self, raw: Raw<'_>) {
            self.1.push(String::from_utf8_lossy(raw.value.expect("a line")).into_owned());
        }

        fn is_full(&self) -> bool {
            false
        }
    }

    fn query(time: Duration) -> HistoryQuery {
        let deadline = Instant::now() + time;
        HistoryQuery { position: None, earliest_ms: 0, from_ms: None, spare_ms: 0, after_ms: 0, deadline }
    }

    #[test]
    fn files_are_read_in_turn_from_their_beginnings() {
        let dir = tempfile::tempdir().expect("a directory");
        let paths = vec![dir.path().join("a"), dir.path().join("b")];
        std::fs::write(&paths[0], "a1\na2\na3\na4").expect("written");
        std::fs::write(&paths[1], "b1\nb2\nb3\n").expect("written");
        let history = FileHistory::new(paths, 2).expect("regular files");
        let mut lines = Lines("b1", Vec::new());
        let read = history.read(&query(Duration::from_secs(60)), &mut lines).expect("readable");
        assert_eq!(lines.1, ["a1", "a2", "b1", "b2", "a3", "a4", "b3"]);
        assert_eq!(read, HistoryRead { is_found: true, ..HistoryRead::default() });
        let mut lines = Lines("c", Vec::new());
        let read = history.read(&query(Duration::from_secs(60)), &mut lines).expect("readable");
        assert!(!read.is_found && read.missing().is_none(), "{read:?}");
        let read = history.read(&query(Duration::ZERO), &mut lines).expect("readable");
        assert!(read.missing().is_some_and(|missing| missing.contains("2000000 records")), "{read:?}");
    }

    #[test]
    fn a_pipe_cannot_be_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        let refused = FileHistory::new(vec![path], 2).expect_err("it is a pipe");
        assert!(refused.contains("pipe is not a regular file"), "{refused}");
    }
}
