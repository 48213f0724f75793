//! What is no regular file (a pipe, a terminal, a socket) may make its reader wait for as long as it likes: it is read on
//! a thread of its own, and the worker takes what is there.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use super::content::content;
use super::unavailable;
use crate::source::SourceError;

/// How much is read at a time.
const PIECE: usize = 64 << 10;

/// How many pieces wait at most.
const PIECES: usize = 16;

type Piece = Result<Vec<u8>, SourceError>;

/// Bytes that come when they come.
pub(super) struct Pipe {
    pieces: Receiver<Piece>,
    /// What has come, from `at` on.
    piece: Vec<u8>,
    at: usize,
}

/// What there is to read right now.
pub(super) enum Available<'a> {
    /// These bytes, one or more.
    Bytes(&'a [u8]),
    /// Nothing yet.
    Nothing,
    /// Nothing any more.
    End,
}

impl Pipe {
    /// Has a thread open and read it. The thread ends with the pipe, or when nobody takes what it reads any more; while it
    /// waits to read, it is left behind.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn open(path: PathBuf) -> Result<Pipe, SourceError> {
        let (give, pieces) = sync_channel(PIECES);
        let name = path.clone();
        std::thread::Builder::new()
            .name("pipe".into())
            .spawn(move || {
                if let Err(error) = read(&path, &give) {
                    // Without a receiver the run is over.
                    let _ = give.send(Err(error));
                }
            })
            .map_err(|error| unavailable(&name, error))?;
        Ok(Pipe { pieces, piece: Vec::new(), at: 0 })
    }

    /// What can be read without waiting.
    pub fn available(&mut self) -> Result<Available<'_>, SourceError> {
        if self.at == self.piece.len() {
            match self.pieces.try_recv() {
                Ok(piece) => (self.piece, self.at) = (piece?, 0),
                Err(TryRecvError::Empty) => return Ok(Available::Nothing),
                Err(TryRecvError::Disconnected) => return Ok(Available::End),
            }
        }
        Ok(Available::Bytes(&self.piece[self.at..]))
    }

    /// So many bytes were taken.
    pub fn consume(&mut self, bytes: usize) {
        self.at += bytes;
    }
}

fn read(path: &Path, give: &SyncSender<Piece>) -> Result<(), SourceError> {
    // A named pipe is open once somebody writes to it.
    let file = File::open(path).map_err(|error| unavailable(path, error))?;
    let mut content = content(path, file)?;
    loop {
        let mut piece = vec![0; PIECE];
        let read = match content.read(&mut piece) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read.map_err(|error| unavailable(path, error))?,
        };
        piece.truncate(read);
        if read == 0 || give.send(Ok(piece)).is_err() {
            return Ok(());
        }
    }
}
