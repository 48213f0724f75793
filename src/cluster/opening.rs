//! Opens connections between processes, with TLS if it is configured, before anything else passes between them.

use std::io;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::handshake::HandshakeError;
use super::tls::TlsIdentity;
use super::transport::{Deadline, ReadHalf, WriteHalf, split};

/// The first byte of a message of TLS.
const TLS_BYTE: u8 = 0x16;

/// The halves of a connection.
pub type Halves = (ReadHalf, WriteHalf);

/// A connection that was accepted.
pub enum Accepted {
    /// It can be used.
    Open(Halves),
    /// The other end does not use TLS, although this one does: it is to be refused with this reason.
    Plain(Halves, String),
}

/// Opens a connection that this process has made to `address`.
///
/// # Errors
/// If the handshake of TLS fails.
pub fn open_to(
    socket: TcpStream,
    address: &str,
    tls: Option<&TlsIdentity>,
    until: Instant,
) -> Result<Halves, HandshakeError> {
    let host = address.rsplit_once(':').map_or("", |(host, _)| host);
    let session = tls.map(|tls| tls.connect(host, &mut Deadline { socket: &socket, until }));
    let session = session.transpose().map_err(|error| explain_tls(&error))?;
    Ok(split(socket, session)?)
}

/// Opens a connection that the process `own` has accepted. Without TLS, messages begin with the byte `plain`. Waits for
/// the first byte for up to `timeout`.
///
/// # Errors
/// If the other end says nothing, or the handshake of TLS fails, or it uses TLS and this process does not.
pub fn open_from(
    socket: TcpStream,
    (own, plain): (&str, u8),
    tls: Option<&TlsIdentity>,
    timeout: Duration,
) -> Result<Accepted, HandshakeError> {
    let until = Instant::now() + timeout;
    let mut first = [0];
    socket.set_read_timeout(Some(timeout))?;
    if socket.peek(&mut first)? == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    match tls {
        Some(_) if first == [plain] => {
            let reason =
                format!("{own} has `cluster.tls`, and the other end has not: set it in all processes");
            Ok(Accepted::Plain(split(socket, None)?, reason))
        }
        Some(tls) => {
            let session = tls.accept(&mut Deadline { socket: &socket, until });
            let session = session.map_err(|error| explain_tls(&error))?;
            Ok(Accepted::Open(split(socket, Some(session))?))
        }
        None if first == [TLS_BYTE] => Err(HandshakeError::Refused(format!(
            "the other end uses TLS, and {own} has no `cluster.tls`: set it in all processes"
        ))),
        None => Ok(Accepted::Open(split(socket, None)?)),
    }
}

/// Returns the error of a handshake of TLS.
fn explain_tls(error: &io::Error) -> HandshakeError {
    HandshakeError::Refused(format!(
        "TLS: {error}; all processes need `cluster.tls`, with certificates that are valid for their names in the host file"
    ))
}
