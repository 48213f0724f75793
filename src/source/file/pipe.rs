//! Input that is not a regular file (a pipe, a terminal, a socket). Reading it may block for an unlimited time, so a
//! separate thread reads it and the worker takes the data that has arrived.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use super::content::open_content;
use super::unavailable;
use crate::source::SourceError;

/// The maximum size of a chunk in bytes.
const CHUNK_BYTES: usize = 64 << 10;

/// The maximum number of chunks that are queued for the worker.
const MAX_CHUNKS: usize = 16;

type Chunk = Result<Vec<u8>, SourceError>;

/// A non-blocking reader of a pipe.
pub(super) struct Pipe {
    chunks: Receiver<Chunk>,
    /// The current chunk, which is consumed up to `at`.
    chunk: Vec<u8>,
    at: usize,
}

/// The data that can be read without blocking.
pub(super) enum Available<'a> {
    /// One or more bytes.
    Bytes(&'a [u8]),
    /// No data yet.
    Nothing,
    /// The end of the input.
    End,
}

impl Pipe {
    /// Starts a thread that opens and reads the pipe. The thread ends at the end of the input, or when the `Pipe` has
    /// been dropped; a thread that blocks in a read is not joined.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn open(path: PathBuf) -> Result<Pipe, SourceError> {
        let (sender, chunks) = sync_channel(MAX_CHUNKS);
        let name = path.clone();
        std::thread::Builder::new()
            .name("pipe".into())
            .spawn(move || {
                if let Err(error) = read(&path, &sender) {
                    // Without a receiver, the run has ended.
                    let _ = sender.send(Err(error));
                }
            })
            .map_err(|error| unavailable(&name, error))?;
        Ok(Pipe { chunks, chunk: Vec::new(), at: 0 })
    }

    /// Returns the data that can be read without blocking.
    pub fn available(&mut self) -> Result<Available<'_>, SourceError> {
        if self.at == self.chunk.len() {
            match self.chunks.try_recv() {
                Ok(chunk) => (self.chunk, self.at) = (chunk?, 0),
                Err(TryRecvError::Empty) => return Ok(Available::Nothing),
                Err(TryRecvError::Disconnected) => return Ok(Available::End),
            }
        }
        Ok(Available::Bytes(&self.chunk[self.at..]))
    }

    /// Marks `bytes` bytes as consumed.
    pub fn consume(&mut self, bytes: usize) {
        self.at += bytes;
    }
}

fn read(path: &Path, sender: &SyncSender<Chunk>) -> Result<(), SourceError> {
    // Opening a named pipe blocks until it has a writer.
    let file = File::open(path).map_err(|error| unavailable(path, error))?;
    let mut content = open_content(path, file)?;
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = match content.read(&mut chunk) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read.map_err(|error| unavailable(path, error))?,
        };
        chunk.truncate(read);
        if read == 0 || sender.send(Ok(chunk)).is_err() {
            return Ok(());
        }
    }
}
