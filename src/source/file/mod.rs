//! Files of NDJSON: each file is a partition, in the order given, and each line an offset.

mod content;
mod pipe;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use headwater_dataflows::{Offset, Partition, Position};

use self::content::{Content, content};
use self::pipe::{Available, Pipe};
use super::{Budget, NO_TIMESTAMP, PartitionState, Raw, Reader, Source, SourceError};

/// A longer line is no record of any kind, and would be held in memory as a whole.
const MAX_LINE: usize = 64 << 20;

/// Reads files once, from beginning to end.
pub struct FileSource {
    paths: Vec<PathBuf>,
    start: Vec<Offset>,
    /// Whether all are regular files.
    is_regular: bool,
}

impl FileSource {
    /// Of these files, each a partition.
    ///
    /// # Errors
    /// If one cannot be opened, or holds no text that is known.
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

/// Whether a file can be read again, and reading it never waits.
fn is_regular(path: &Path) -> Result<bool, SourceError> {
    let kind = std::fs::metadata(path).map_err(|error| unavailable(path, error))?;
    if kind.is_dir() {
        let reason = format!("{} is a folder: name the files in it", path.display());
        return Err(SourceError::Refused(reason));
    }
    Ok(kind.is_file())
}

/// Whether a start may have to read these files again, as one that goes on from a ledger does.
///
/// # Errors
/// If one of them cannot be.
pub fn check_repeatable(paths: &[PathBuf], why: &str) -> Result<(), SourceError> {
    for path in paths {
        if !is_regular(path)? {
            return Err(SourceError::Refused(format!(
                "{} is no regular file and cannot be read again, as a start {why} may have to: go without, or write \
                 it to a file and read that",
                path.display()
            )));
        }
    }
    Ok(())
}

/// The lines of a regular file.
fn lines(path: &Path) -> Result<BufReader<Content>, SourceError> {
    let file = File::open(path).map_err(|error| unavailable(path, error))?;
    Ok(BufReader::with_capacity(1 << 18, content(path, file)?))
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
        Ok(Box::new(FileReader { files, turn: 0, looks: 0 }))
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
                    "{path} has {read} lines, and this pipeline has read {}: it was cut short, or is another file",
                    end.0
                ));
                continue;
            }
            file.skip_to(Offset(i64::MAX))?;
            let more = file.next - end.0;
            if more > 0 {
                unread.push(format!(
                    "{path} has {more} lines more than when this pipeline has read it, and they are not read: its \
                     input was closed at its end; read them under another pipeline name, or without [ledger]"
                ));
            }
        }
        Ok(unread)
    }

    /// There is no group to tell.
    fn commit(&self, _offsets: &[(Partition, Offset)]) -> Result<(), SourceError> {
        Ok(())
    }
}

/// What is read.
enum Input {
    /// Waits for nothing but the disk.
    File(BufReader<Content>),
    /// May have nothing to read for as long as it likes.
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
    /// What there is of the next line.
    line: Vec<u8>,
    ended: bool,
    /// Whether there is nothing to read for now; a regular file is at its end then.
    waits: bool,
    paused: bool,
    limit: Option<i64>,
}

impl OpenFile {
    fn new(path: PathBuf, input: Input, partition: Partition) -> OpenFile {
        let line = Vec::with_capacity(1024);
        let (next, ended, waits, paused, limit) = (0, false, false, false, None);
        OpenFile { path, input, partition, next, line, ended, waits, paused, limit }
    }

    /// Gives the next line, without its end; false if there is none, at the end or for now.
    fn line(&mut self, give: impl FnOnce(Offset, &[u8])) -> Result<bool, SourceError> {
        loop {
            let available = match self.input.available(&self.path)? {
                Available::Bytes(bytes) => bytes,
                Available::Nothing => {
                    self.waits = true;
                    return Ok(false);
                }
                Available::End if self.line.is_empty() => {
                    self.ended = true;
                    self.waits = true;
                    return Ok(false);
                }
                // The last line has no end.
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
        self.waits = false;
        give(Offset(self.next), &self.line);
        self.line.clear();
        self.next += 1;
        Ok(true)
    }

    /// Passes over the lines before an offset, as far as there are any.
    fn skip_to(&mut self, offset: Offset) -> Result<(), SourceError> {
        while self.next < offset.0 && self.line(|_, _| {})? {}
        Ok(())
    }
}

struct FileReader {
    files: Vec<OpenFile>,
    turn: usize,
    /// How often it was asked for records.
    looks: u64,
}

/// How many lines of one file are read before it is the next one's turn.
const TURN: usize = 64;

impl Reader for FileReader {
    fn read(&mut self, budget: Budget, each: &mut dyn FnMut(Raw<'_>)) -> Result<usize, SourceError> {
        self.looks += 1;
        let (mut read, mut bytes) = (0, 0);
        let mut without = 0;
        while read < budget.records && bytes < budget.bytes && without < self.files.len() {
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
                && file.line(|offset, line| {
                    let position = Position { partition, offset };
                    bytes += line.len();
                    let (timestamp, value) = (NO_TIMESTAMP, Some(line));
                    each(Raw { position, timestamp, key: None, value, retries: 0 });
                })?
            {
                read += 1;
            }
            without = if read == before { without + 1 } else { 0 };
        }
        Ok(read)
    }

    fn partitions(&self) -> Vec<PartitionState> {
        self.files
            .iter()
            .map(|file| {
                let backlog = u64::from(!file.waits);
                let state = PartitionState::finite(file.partition, Offset(file.next), file.ended, backlog);
                // A pipe that has nothing is at its end for now.
                let high_watermark = file.waits.then_some(state.position);
                PartitionState { high_watermark, observation: self.looks, ..state }
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

    /// What a reader hands out at once.
    fn read(reader: &mut dyn Reader) -> Vec<String> {
        let mut lines = Vec::new();
        reader
            .read(Budget::records(100), &mut |raw| {
                lines.push(String::from_utf8_lossy(raw.value.expect("a line")).into_owned());
            })
            .expect("readable");
        lines
    }

    /// What a reader hands out within a second, if it is as much as is hoped for.
    fn read_soon(reader: &mut dyn Reader, hoped: usize) -> Vec<String> {
        let (begun, mut lines) = (Instant::now(), Vec::new());
        while lines.len() < hoped && begun.elapsed() < std::time::Duration::from_secs(5) {
            lines.extend(read(reader));
        }
        lines
    }

    #[test]
    fn a_pipe_is_read_as_it_comes_and_never_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        let source = FileSource::open(vec![path.clone()]).expect("nobody writes to it yet");
        let mut reader = source.reader(&[(Partition(0), Offset(0))]).expect("nobody writes to it yet");
        assert_eq!(read(&mut *reader), [""; 0]);
        let state = reader.partitions()[0];
        assert!(
            !state.ended && state.high_watermark == Some(state.position) && state.backlog == 0,
            "{state:?}"
        );

        let mut writer = File::options().write(true).open(&path).expect("it is read");
        writer.write_all(b"\xef\xbb\xbf1\n2\nha").expect("written");
        assert_eq!(read_soon(&mut *reader, 2), ["1", "2"]);
        assert_eq!(read(&mut *reader), [""; 0], "a line that is not whole is waited for");
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
    fn what_came_to_a_file_after_it_was_read_is_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.ndjson");
        std::fs::write(&path, "1\n2\n3\n").expect("written");
        let unread = |end| {
            let source = FileSource::open(vec![path.clone()]).expect("it exists");
            source.unread(&[Offset(end)]).expect("readable")
        };
        assert_eq!(unread(3), [""; 0]);
        assert!(unread(1)[0].contains("has 2 lines more"), "{:?}", unread(1));
        assert!(unread(4)[0].contains("has 3 lines, and this pipeline has read 4"), "{:?}", unread(4));
    }

    #[test]
    fn a_folder_and_text_that_is_no_utf_8_are_refused_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.ndjson");
        std::fs::write(&path, [0xff, 0xfe, b'{', 0, b'}', 0]).expect("written");
        for (path, what) in [(path, "is UTF-16"), (dir.path().to_owned(), "is a folder")] {
            let refused = FileSource::open(vec![path]).err().map(|error| error.to_string());
            assert!(refused.as_ref().is_some_and(|refused| refused.contains(what)), "{refused:?}");
        }
    }
}
