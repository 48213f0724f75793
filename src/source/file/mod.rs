//! Files of NDJSON: each file is a partition, in the order given, and each line an offset.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Instant;

use headwater_dataflows::{Offset, Partition, Position};

use super::{PartitionState, Raw, Reader, Source, SourceError};

/// A longer line is no record of any kind, and would be held in memory as a whole.
const MAX_LINE: usize = 64 << 20;

/// No clock stood by when a line was written, so no event of a file lies in the future.
const NO_TIMESTAMP: i64 = i64::MAX;

/// Reads files once, from beginning to end.
pub struct FileSource {
    paths: Vec<PathBuf>,
    start: Vec<Offset>,
}

impl FileSource {
    /// Of these files, each a partition.
    ///
    /// # Errors
    /// If one cannot be opened.
    pub fn open(paths: Vec<PathBuf>) -> Result<FileSource, SourceError> {
        for path in &paths {
            File::open(path).map_err(|error| unavailable(path, error))?;
        }
        let start = vec![Offset(0); paths.len()];
        Ok(FileSource { paths, start })
    }
}

fn unavailable(path: &Path, error: std::io::Error) -> SourceError {
    SourceError::Unavailable { action: format!("read {}", path.display()), source: Box::new(error) }
}

impl Source for FileSource {
    fn start(&self) -> &[Offset] {
        &self.start
    }

    fn reader(&self, owned: &[(Partition, Offset)]) -> Result<Box<dyn Reader>, SourceError> {
        let mut files = Vec::new();
        for &(partition, offset) in owned {
            let path = self.paths[partition.0 as usize].clone();
            let file = File::open(&path).map_err(|error| unavailable(&path, error))?;
            let lines = BufReader::with_capacity(1 << 18, file);
            let mut file =
                OpenFile { path, lines, partition, next: 0, ended: false, paused: false, limit: None };
            let mut line = Vec::new();
            while file.next < offset.0 && file.line(&mut line)? {
                file.next += 1;
            }
            files.push(file);
        }
        Ok(Box::new(FileReader { files, turn: 0, line: Vec::with_capacity(1024) }))
    }

    /// There is no group to tell.
    fn commit(&self, _offsets: &[(Partition, Offset)]) -> Result<(), SourceError> {
        Ok(())
    }
}

struct OpenFile {
    path: PathBuf,
    lines: BufReader<File>,
    partition: Partition,
    next: i64,
    ended: bool,
    paused: bool,
    limit: Option<i64>,
}

impl OpenFile {
    /// The next line, without its end; false at the end of the file.
    fn line(&mut self, into: &mut Vec<u8>) -> Result<bool, SourceError> {
        into.clear();
        loop {
            let available = self.lines.fill_buf().map_err(|error| unavailable(&self.path, error))?;
            if available.is_empty() {
                self.ended = into.is_empty();
                return Ok(!self.ended);
            }
            let end = available.iter().position(|&byte| byte == b'\n');
            let taken = end.unwrap_or(available.len());
            into.extend_from_slice(&available[..taken]);
            self.lines.consume(taken + usize::from(end.is_some()));
            if end.is_some() {
                return Ok(true);
            }
            if into.len() > MAX_LINE {
                let line = self.next + 1;
                return Err(SourceError::Refused(format!(
                    "{}:{line}: a line of more than 64 MiB",
                    self.path.display()
                )));
            }
        }
    }
}

struct FileReader {
    files: Vec<OpenFile>,
    turn: usize,
    line: Vec<u8>,
}

/// How many lines of one file are read before it is the next one's turn.
const TURN: usize = 64;

impl Reader for FileReader {
    fn read(&mut self, budget: usize, each: &mut dyn FnMut(Raw<'_>)) -> Result<usize, SourceError> {
        let mut read = 0;
        let mut without = 0;
        while read < budget && without < self.files.len() {
            let at = self.turn % self.files.len();
            self.turn += 1;
            let file = &mut self.files[at];
            let before = read;
            let turn = if file.paused || file.ended { 0 } else { TURN };
            let left =
                file.limit.map_or(turn, |limit| usize::try_from(limit - file.next).unwrap_or(0).min(turn));
            let until = budget.min(read + left);
            while read < until && file.line(&mut self.line)? {
                let position = Position { partition: file.partition, offset: Offset(file.next) };
                each(Raw {
                    position,
                    timestamp: NO_TIMESTAMP,
                    key: None,
                    value: Some(&self.line),
                    retries: 0,
                });
                file.next += 1;
                read += 1;
            }
            without = if read == before { without + 1 } else { 0 };
        }
        Ok(read)
    }

    fn partitions(&self) -> Vec<PartitionState> {
        self.files
            .iter()
            .map(|file| PartitionState {
                partition: file.partition,
                position: Offset(file.next),
                at_end_since: file.ended.then(Instant::now),
                ended: file.ended,
                backlog: u64::from(!file.ended),
            })
            .collect()
    }

    fn set_paused(&mut self, partition: Partition, paused: bool) -> Result<(), SourceError> {
        self.files
            .iter_mut()
            .filter(|file| file.partition == partition)
            .for_each(|file| file.paused = paused);
        Ok(())
    }

    fn set_limit(&mut self, partition: Partition, limit: Option<Offset>) -> Result<(), SourceError> {
        self.files
            .iter_mut()
            .filter(|file| file.partition == partition)
            .for_each(|file| file.limit = limit.map(|limit| limit.0));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn every_line_is_a_record_whatever_ends_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut paths = Vec::new();
        for (name, content) in [("a", "1\n\n2\r\n"), ("b", "3\n4"), ("c", "")] {
            let path = dir.path().join(name);
            File::create(&path).and_then(|mut file| file.write_all(content.as_bytes())).expect("written");
            paths.push(path);
        }
        let source = FileSource::open(paths).expect("they exist");
        let owned = [(Partition(0), Offset(1)), (Partition(1), Offset(0)), (Partition(2), Offset(0))];
        let mut reader = source.reader(&owned).expect("readable");
        let mut lines = Vec::new();
        while reader
            .read(2, &mut |raw| lines.push((raw.position.to_string(), raw.value.map(<[u8]>::to_vec))))
            .expect("readable")
            > 0
        {}
        lines.sort();
        let line = |at: &str, text: &str| (at.to_owned(), Some(text.as_bytes().to_vec()));
        assert_eq!(lines, [line("0:1", ""), line("0:2", "2\r"), line("1:0", "3"), line("1:1", "4")]);
        assert!(reader.partitions().iter().all(|state| state.ended));
        assert!(FileSource::open(vec![dir.path().join("missing")]).is_err());
    }
}
