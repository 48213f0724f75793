//! NDJSON files as a source: each file is a partition, in the given order, and each line has an offset.

mod content;
pub mod history;
mod pipe;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use headwater_dataflows::{Offset, Partition, Position};

use self::content::{Content, open_content};
use self::pipe::{Available, Pipe};
use super::{Budget, NO_TIMESTAMP, Raw, Reader, Source, SourceError};
use crate::coordination::ingest::PartitionState;

/// The maximum length of a line in bytes. A line is buffered in memory as a whole.
const MAX_LINE: usize = 64 << 20;

/// A source that reads files once, from beginning to end.
pub struct FileSource {
    paths: Vec<PathBuf>,
    start: Vec<Offset>,
    /// True if all are regular files.
    is_regular: bool,
}

impl FileSource {
    /// Opens these files, each as a partition.
    ///
    /// # Errors
    /// If a file cannot be opened, or its format is not supported.
    pub fn open(paths: Vec<PathBuf>) -> Result<FileSource, SourceError> {
        let mut all_regular = true;
        for path in &paths {
            match is_regular(path)? {
                true => drop(lines(path)?),
                false => all_regular = false,
            }
        }
        let start = vec![Offset(0); paths.len()];
        Ok(FileSource { paths, start, is_regular: all_regular })
    }
}

/// Returns true for a regular file, which can be read again and never blocks.
fn is_regular(path: &Path) -> Result<bool, SourceError> {
    let kind = std::fs::metadata(path).map_err(|error| unavailable(path, error))?;
    if kind.is_dir() {
        let reason = format!("{} is a directory: name the files in it", path.display());
        return Err(SourceError::Refused(reason));
    }
    Ok(kind.is_file())
}

/// Checks that these files can be read again, which a start that resumes from a ledger may require.
///
/// # Errors
/// If one of them is not a regular file. `why` describes the start, for the error.
pub fn check_repeatable(paths: &[PathBuf], why: &str) -> Result<(), SourceError> {
    for path in paths {
        if !is_regular(path)? {
            return Err(SourceError::Refused(format!(
                "{} is not a regular file and cannot be read again, which a start {why} may require: run without it, \
                 or write the input to a regular file",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Opens a regular file for reading lines.
fn lines(path: &Path) -> Result<BufReader<Content>, SourceError> {
    let file = File::open(path).map_err(|error| unavailable(path, error))?;
    Ok(BufReader::with_capacity(1 << 18, open_content(path, file)?))
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
            let input = match is_regular(&path)? {
                true => Input::File(lines(&path)?),
                false => Input::Pipe(Pipe::open(path.clone())?),
            };
            let mut file = OpenFile::new(path, input, partition);
            file.skip_to(offset)?;
            files.push(file);
        }
        Ok(Box::new(FileReader { files, turn: 0, reads: 0 }))
    }

    fn is_counted(&self) -> bool {
        self.is_regular
    }

    fn unread(&self, ends: &[Offset]) -> Result<Vec<String>, SourceError> {
        let mut unread = Vec::new();
        for ((path, end), partition) in self.paths.iter().zip(ends).zip(0..) {
            let mut file = OpenFile::new(path.clone(), Input::File(lines(path)?), Partition(partition));
            file.skip_to(*end)?;
            let (path, read) = (path.display(), file.next);
            if read < end.0 {
                unread.push(format!(
                    "{path} has {read} lines, but this pipeline has read {}: the file was truncated or replaced",
                    end.0
                ));
                continue;
            }
            file.skip_to(Offset(i64::MAX))?;
            let more = file.next - end.0;
            if more > 0 {
                unread.push(format!(
                    "{path} has {more} more lines than when this pipeline read it; they are not read, because the \
                     pipeline's input was closed; read them under another pipeline name, or without [ledger]"
                ));
            }
        }
        Ok(unread)
    }

    /// Does nothing: files have no consumer group.
    fn commit(&self, _offsets: &[(Partition, Offset)]) -> Result<(), SourceError> {
        Ok(())
    }
}

/// The input of a partition.
enum Input {
    /// A regular file, which blocks on disk I/O only.
    File(BufReader<Content>),
    /// Any other file, which may have no data for an unlimited time.
    Pipe(Pipe),
}

impl Input {
    fn available(&mut self, path: &Path) -> Result<Available<'_>, SourceError> {
        match self {
            Input::File(lines) => match lines.fill_buf().map_err(|error| unavailable(path, error))? {
                [] => Ok(Available::End),
                bytes => Ok(Available::Bytes(bytes)),
            },
            Input::Pipe(pipe) => pipe.available(),
        }
    }

    fn consume(&mut self, bytes: usize) {
        match self {
            Input::File(lines) => lines.consume(bytes),
            Input::Pipe(pipe) => pipe.consume(bytes),
        }
    }
}

struct OpenFile {
    path: PathBuf,
    input: Input,
    partition: Partition,
    next: i64,
    /// The part of the next line that has been read.
    line: Vec<u8>,
    ended: bool,
    /// True if no data is available now; a regular file is then at its end.
    is_drained: bool,
    paused: bool,
    limit: Option<i64>,
}

impl OpenFile {
    fn new(path: PathBuf, input: Input, partition: Partition) -> OpenFile {
        let line = Vec::with_capacity(1024);
        let (next, ended, is_drained, paused, limit) = (0, false, false, false, None);
        OpenFile { path, input, partition, next, line, ended, is_drained, paused, limit }
    }

    /// Passes the next line, without its line end, to `emit`. Returns false if no complete line is available.
    fn read_line(&mut self, emit: impl FnOnce(Offset, &[u8])) -> Result<bool, SourceError> {
        loop {
            let available = match self.input.available(&self.path)? {
                Available::Bytes(bytes) => bytes,
                Available::Nothing => {
                    self.is_drained = true;
                    return Ok(false);
                }
                Available::End if self.line.is_empty() => {
                    self.ended = true;
                    self.is_drained = true;
                    return Ok(false);
                }
                // The last line has no line end.
                Available::End => break,
            };
            let end = available.iter().position(|&byte| byte == b'\n');
            let taken = end.unwrap_or(available.len());
            self.line.extend_from_slice(&available[..taken]);
            self.input.consume(taken + usize::from(end.is_some()));
            if end.is_some() {
                break;
            }
            if self.line.len() > MAX_LINE {
                let line = self.next + 1;
                return Err(SourceError::Refused(format!(
                    "{}:{line}: a line of more than 64 MiB",
                    self.path.display()
                )));
            }
        }
        self.is_drained = false;
        emit(Offset(self.next), &self.line);
        self.line.clear();
        self.next += 1;
        Ok(true)
    }

    /// Skips the lines before an offset, or to the end of the file.
    fn skip_to(&mut self, offset: Offset) -> Result<(), SourceError> {
        while self.next < offset.0 && self.read_line(|_, _| {})? {}
        Ok(())
    }
}

struct FileReader {
    files: Vec<OpenFile>,
    turn: usize,
    /// The number of calls of `read`.
    reads: u64,
}

/// The number of lines that are read from one file before the next file.
const TURN: usize = 64;

impl Reader for FileReader {
    fn read(&mut self, budget: Budget, each: &mut dyn FnMut(Raw<'_>)) -> Result<usize, SourceError> {
        self.reads += 1;
        let (mut read, mut bytes) = (0, 0);
        let mut empty_turns = 0;
        while read < budget.records && bytes < budget.bytes && empty_turns < self.files.len() {
            let at = self.turn % self.files.len();
            self.turn += 1;
            let file = &mut self.files[at];
            let before = read;
            let turn = if file.paused || file.ended { 0 } else { TURN };
            let left =
                file.limit.map_or(turn, |limit| usize::try_from(limit - file.next).unwrap_or(0).min(turn));
            let until = budget.records.min(read + left);
            let partition = file.partition;
            while read < until
                && bytes < budget.bytes
                && file.read_line(|offset, line| {
                    let position = Position { partition, offset };
                    bytes += line.len();
                    let (timestamp, value) = (NO_TIMESTAMP, Some(line));
                    each(Raw { position, timestamp, key: None, value, retries: 0, producer: None });
                })?
            {
                read += 1;
            }
            empty_turns = if read == before { empty_turns + 1 } else { 0 };
        }
        Ok(read)
    }

    fn partitions(&self) -> Vec<PartitionState> {
        self.files
            .iter()
            .map(|file| {
                let backlog = u64::from(!file.is_drained);
                let state = PartitionState::finite(file.partition, Offset(file.next), file.ended, backlog);
                // A pipe without data counts as read to its end.
                let high_watermark = file.is_drained.then_some(state.position);
                PartitionState { high_watermark, observation: self.reads, ..state }
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
    use std::time::Instant;

    use super::*;

    #[test]
    fn every_line_is_a_record_with_or_without_a_final_line_end() {
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
            .read(Budget::records(2), &mut |raw| {
                lines.push((raw.position.to_string(), raw.value.map(<[u8]>::to_vec)))
            })
            .expect("readable")
            > 0
        {}
        lines.sort();
        let line = |at: &str, text: &str| (at.to_owned(), Some(text.as_bytes().to_vec()));
        assert_eq!(lines, [line("0:1", ""), line("0:2", "2\r"), line("1:0", "3"), line("1:1", "4")]);
        assert!(reader.partitions().iter().all(|state| state.ended));
        assert!(FileSource::open(vec![dir.path().join("missing")]).is_err());
    }

    /// Returns the lines that a reader emits in one call.
    fn read(reader: &mut dyn Reader) -> Vec<String> {
        let mut lines = Vec::new();
        reader
            .read(Budget::records(100), &mut |raw| {
                lines.push(String::from_utf8_lossy(raw.value.expect("a line")).into_owned());
            })
            .expect("readable");
        lines
    }

    /// Reads until `expected` lines have arrived, for five seconds at most.
    fn read_soon(reader: &mut dyn Reader, expected: usize) -> Vec<String> {
        let (begun, mut lines) = (Instant::now(), Vec::new());
        while lines.len() < expected && begun.elapsed() < std::time::Duration::from_secs(5) {
            lines.extend(read(reader));
        }
        lines
    }

    #[test]
    fn a_pipe_is_read_without_blocking() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        let source = FileSource::open(vec![path.clone()]).expect("it opens without a writer");
        let mut reader = source.reader(&[(Partition(0), Offset(0))]).expect("it opens without a writer");
        assert_eq!(read(&mut *reader), [""; 0]);
        let state = reader.partitions()[0];
        assert!(
            !state.ended && state.high_watermark == Some(state.position) && state.backlog == 0,
            "{state:?}"
        );

        let mut writer = File::options().write(true).open(&path).expect("it is read");
        writer.write_all(b"\xef\xbb\xbf1\n2\nha").expect("written");
        assert_eq!(read_soon(&mut *reader, 2), ["1", "2"]);
        assert_eq!(read(&mut *reader), [""; 0], "an incomplete line is not emitted");
        writer.write_all(b"lf\n\nlast").expect("written");
        assert_eq!(read_soon(&mut *reader, 2), ["half", ""]);
        assert!(!reader.partitions()[0].ended);
        drop(writer);
        assert_eq!(read_soon(&mut *reader, 1), ["last"]);
        assert_eq!(read(&mut *reader), [""; 0]);
        let state = reader.partitions()[0];
        assert!(state.ended && state.position == Offset(5), "{state:?}");
        assert!(check_repeatable(&[path], "with [ledger]").is_err());
    }

    #[test]
    fn lines_added_after_the_input_was_closed_are_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.ndjson");
        std::fs::write(&path, "1\n2\n3\n").expect("written");
        let unread = |end| {
            let source = FileSource::open(vec![path.clone()]).expect("it exists");
            source.unread(&[Offset(end)]).expect("readable")
        };
        assert_eq!(unread(3), [""; 0]);
        assert!(unread(1)[0].contains("has 2 more lines"), "{:?}", unread(1));
        assert!(unread(4)[0].contains("has 3 lines, but this pipeline has read 4"), "{:?}", unread(4));
    }

    #[test]
    fn directories_and_utf_16_files_are_refused_at_open() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.ndjson");
        std::fs::write(&path, [0xff, 0xfe, b'{', 0, b'}', 0]).expect("written");
        for (path, what) in [(path, "is UTF-16"), (dir.path().to_owned(), "is a directory")] {
            let refused = FileSource::open(vec![path]).err().map(|error| error.to_string());
            assert!(refused.as_ref().is_some_and(|refused| refused.contains(what)), "{refused:?}");
        }
    }
}
