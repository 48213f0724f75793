//! The two halves of a connection between processes: one thread reads while others write, with or without TLS.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::tls::TlsSession;

/// The size of the buffer for what was received and not yet decrypted.
const RECEIVED: usize = 64 * 1024;

/// The length of the parts in which a text is encrypted.
const PART: usize = 64 * 1024;

/// The half that reads.
pub struct ReadHalf {
    socket: TcpStream,
    tls: Option<Arc<TlsSession>>,
    received: Vec<u8>,
    begin: usize,
    end: usize,
}

/// The half that writes.
pub struct WriteHalf {
    socket: TcpStream,
    tls: Option<Arc<TlsSession>>,
    encrypted: Vec<u8>,
}

/// Returns the halves of a connection.
///
/// # Errors
/// If the operating system has no further handle.
pub fn split(socket: TcpStream, tls: Option<TlsSession>) -> io::Result<(ReadHalf, WriteHalf)> {
    let tls = tls.map(Arc::new);
    let received = if tls.is_some() { vec![0; RECEIVED] } else { Vec::new() };
    let write = WriteHalf { socket: socket.try_clone()?, tls: tls.clone(), encrypted: Vec::new() };
    Ok((ReadHalf { socket, tls, received, begin: 0, end: 0 }, write))
}

impl Read for ReadHalf {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return self.socket.read(out) };
        loop {
            let mut rest = &self.received[self.begin..self.end];
            let decrypted = tls.decrypt(&mut rest, out)?;
            self.begin = self.end - rest.len();
            if let Some(read) = decrypted {
                return Ok(read);
            }
            self.end = self.socket.read(&mut self.received)?;
            self.begin = 0;
            if self.end == 0 {
                return Ok(0);
            }
        }
    }
}

impl ReadHalf {
    /// Reads exactly as many bytes as `out` has.
    ///
    /// # Errors
    /// If they do not arrive before `until`, or the connection is closed.
    pub fn read_until(&mut self, until: Instant, mut out: &mut [u8]) -> io::Result<()> {
        while !out.is_empty() {
            self.socket.set_read_timeout(Some(remaining(until)?))?;
            match self.read(out) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => out = &mut out[read..],
                Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sets the time after which a read returns without data.
    ///
    /// # Errors
    /// If the operating system refuses it.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(timeout))
    }

    /// Returns bytes that only the two ends know, or none without TLS.
    ///
    /// # Errors
    /// If the handshake of TLS is not complete.
    pub fn binding(&self) -> io::Result<[u8; 32]> {
        self.tls.as_ref().map_or(Ok([0; 32]), |tls| tls.binding())
    }
}

impl WriteHalf {
    /// Writes a header and what follows it.
    ///
    /// # Errors
    /// If the connection is closed.
    pub fn write(&mut self, header: &[u8], body: &[u8]) -> io::Result<()> {
        let Some(tls) = &self.tls else { return write_both(&mut self.socket, header, body) };
        for part in std::iter::once(header).chain(body.chunks(PART)) {
            // The header travels with the first part of the body.
            tls.encrypt(part, &mut self.encrypted)?;
            if self.encrypted.len() >= PART {
                self.socket.write_all(&self.encrypted)?;
                self.encrypted.clear();
            }
        }
        self.socket.write_all(&self.encrypted)?;
        self.encrypted.clear();
        Ok(())
    }
}

/// Writes two buffers, with one call of the operating system if it takes both.
fn write_both(socket: &mut TcpStream, mut header: &[u8], mut body: &[u8]) -> io::Result<()> {
    while !header.is_empty() {
        match socket.write_vectored(&[IoSlice::new(header), IoSlice::new(body)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                body = &body[written.saturating_sub(header.len())..];
                header = &header[written.min(header.len())..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    socket.write_all(body)
}

/// A socket whose reads and writes end at a time.
pub struct Deadline<'a> {
    /// The socket.
    pub socket: &'a TcpStream,
    /// The time.
    pub until: Instant,
}

impl Read for Deadline<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            self.socket.set_read_timeout(Some(remaining(self.until)?))?;
            match self.socket.read(out) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome,
            }
        }
    }
}

impl Write for Deadline<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.socket.set_write_timeout(Some(remaining(self.until)?))?;
            match self.socket.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// Returns the time until then.
fn remaining(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Returns true if a read ended because nothing was received in time.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
