//! The handshake of two processes, before anything else passes between them. Each proves that it knows the secret, by an
//! HMAC over nonces of both:
//!
//! ```text
//!   the process that connects                             the process that accepts
//!   "hw-join", version, has a secret, nonce ───────────▶
//!                                           ◀─────────── "hw-join", version, has a secret, nonce
//!   HMAC("connects", nonces, session, identity), identity ─▶ compares
//!                                compares ◀─ HMAC("accepts", nonces, session, identity), identity
//!   joined ─────────────────────────────────────────────▶
//! ```
//!
//! Instead of any message, either end can send a refusal with its reason, which the other one logs. A refusal proves nothing,
//! so nobody acts on it. A proof cannot be used again, since each connection has other nonces; nor in the other direction,
//! because of its first word; nor, with TLS, in another session. Without a secret the proofs are made with a known key, and
//! only detect differences.

use std::io;
use std::time::Instant;

use headwater_sinks::Secret;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use thiserror::Error;

use super::identity::Identity;
use super::proof::{NONCE, mac, random};
use super::transport::{ReadHalf, WriteHalf};

/// The first bytes of both ends.
const MAGIC: &[u8; 7] = b"hw-join";

/// The version of the handshake and of everything that follows it.
const VERSION: u8 = b'2';

/// The length of the first message: the magic bytes, the version, whether there is a secret, and the nonce.
const HELLO: usize = MAGIC.len() + 2 + NONCE;

/// The length of a proof.
const PROOF: usize = 32;

/// The greatest length of a message: an identity is much shorter.
const MAX_MESSAGE: usize = 4096;

/// The greatest number of characters of a reason.
const MAX_REASON: usize = 300;

/// The kinds of messages after the first.
const CLAIM: u8 = 0;
const REFUSAL: u8 = 1;
const JOINED: u8 = 2;

/// The reason why two processes did not join.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// The connection failed, or the other end did not answer in time.
    #[error(transparent)]
    Connection(#[from] io::Error),
    /// The other end refused, for this reason.
    #[error("{0}")]
    RefusedByPeer(String),
    /// This end refused.
    #[error("{0}")]
    Refused(String),
}

/// The two halves of a connection, and the time by which the handshake must be complete.
pub struct Handshake<'a> {
    /// The half that reads.
    pub read: &'a mut ReadHalf,
    /// The half that writes.
    pub write: &'a mut WriteHalf,
    /// The time.
    pub until: Instant,
}

/// The nonces of both ends, and the session of TLS.
struct Session {
    connects: [u8; NONCE],
    accepts: [u8; NONCE],
    binding: [u8; 32],
}

impl Handshake<'_> {
    /// Joins as the process that connects. `admit` decides about the identity of the other one. Returns that identity.
    ///
    /// # Errors
    /// If one of the two refuses, or the connection fails.
    pub fn connect(
        &mut self,
        own: &Identity,
        secret: Option<&Secret>,
        admit: impl FnOnce(&Identity) -> Result<(), String>,
    ) -> Result<Identity, HandshakeError> {
        let connects = random()?;
        self.write.write(&hello(secret, &connects), &[])?;
        let accepts = self.read_hello(own, secret)?;
        let session = Session { connects, accepts, binding: self.read.binding()? };
        self.send_claim(b"connects", &session, own, secret)?;
        let other = self.read_claim(b"accepts", &session, own, secret)?;
        self.admit(&other, own, admit)?;
        self.write.write(&[JOINED, 0, 0], &[])?;
        Ok(other)
    }

    /// Joins as the process that accepts. `admit` decides about the identity of the other one. Returns that identity.
    ///
    /// # Errors
    /// If one of the two refuses, or the connection fails.
    pub fn accept(
        &mut self,
        own: &Identity,
        secret: Option<&Secret>,
        admit: impl FnOnce(&Identity) -> Result<(), String>,
    ) -> Result<Identity, HandshakeError> {
        let connects = self.read_hello(own, secret)?;
        let accepts = random()?;
        self.write.write(&hello(secret, &accepts), &[])?;
        let session = Session { connects, accepts, binding: self.read.binding()? };
        let other = self.read_claim(b"connects", &session, own, secret)?;
        self.admit(&other, own, admit)?;
        self.send_claim(b"accepts", &session, own, secret)?;
        match self.read_message()? {
            (JOINED, _) => Ok(other),
            _ => Err(not_a_process()),
        }
    }

    /// Reads the first message. Returns the nonce of the other end.
    fn read_hello(&mut self, own: &Identity, secret: Option<&Secret>) -> Result<[u8; NONCE], HandshakeError> {
        let mut hello = [0; HELLO];
        // A refusal has another first byte.
        self.read.read_until(self.until, &mut hello[..1])?;
        if hello[0] == REFUSAL {
            return Err(HandshakeError::RefusedByPeer(self.read_reason()?));
        }
        for at in 1..=MAGIC.len() {
            if hello[at - 1] != MAGIC[at - 1] {
                return Err(not_a_process());
            }
            self.read.read_until(self.until, &mut hello[at..=at])?;
        }
        let (version, rest) = (hello[MAGIC.len()], MAGIC.len() + 1);
        if version != VERSION {
            return self.refuse(format!(
                "the two programs connect in different ways ({} and {}): start all processes with the same program",
                VERSION.escape_ascii(),
                version.escape_ascii()
            ));
        }
        self.read.read_until(self.until, &mut hello[rest..])?;
        let has_secret = hello[rest] == 1;
        if has_secret != secret.is_some() {
            let (one, other) = if has_secret { ("no", "one") } else { ("one", "none") };
            return self.refuse(format!(
                "process {} has {one} secret, and the other end {other}: set the same `cluster.secret_file` in all \
                 processes",
                own.process
            ));
        }
        Ok(hello[rest + 1..].try_into().expect("the rest is the nonce"))
    }

    fn send_claim(
        &mut self,
        role: &[u8],
        session: &Session,
        own: &Identity,
        secret: Option<&Secret>,
    ) -> Result<(), HandshakeError> {
        let identity = serde_json::to_vec(own).map_err(io::Error::other)?;
        let proof = session.mac(role, &identity, secret).finalize().into_bytes();
        let length = u16::try_from(PROOF + identity.len()).map_err(io::Error::other)?.to_be_bytes();
        let message = [&[CLAIM], &length[..], &proof[..], &identity].concat();
        Ok(self.write.write(&message, &[])?)
    }

    /// Reads the identity of the other end, which has proved that it knows the secret.
    fn read_claim(
        &mut self,
        role: &[u8],
        session: &Session,
        own: &Identity,
        secret: Option<&Secret>,
    ) -> Result<Identity, HandshakeError> {
        let message = match self.read_message()? {
            (CLAIM, message) if message.len() > PROOF => message,
            _ => return Err(not_a_process()),
        };
        let (proof, identity) = message.split_at(PROOF);
        if session.mac(role, identity, secret).verify_slice(proof).is_err() {
            return self.refuse(format!(
                "the other end does not know the secret of process {}: set the same `cluster.secret_file` in all processes",
                own.process
            ));
        }
        serde_json::from_slice(identity).map_err(|_| not_a_process())
    }

    /// Refuses a process that does not fit, or that `admit` does not want.
    fn admit(
        &mut self,
        other: &Identity,
        own: &Identity,
        admit: impl FnOnce(&Identity) -> Result<(), String>,
    ) -> Result<(), HandshakeError> {
        match own.objection(other).map_or_else(|| admit(other), Err) {
            Ok(()) => Ok(()),
            Err(reason) => self.refuse(reason),
        }
    }

    /// Sends the reason of a refusal, and returns it as an error.
    ///
    /// # Errors
    /// Always.
    pub fn refuse<T>(&mut self, reason: String) -> Result<T, HandshakeError> {
        let reason = printable(&reason);
        let length = u16::try_from(reason.len()).unwrap_or_default().to_be_bytes();
        // The other end may have gone.
        let _ = self.write.write(&[&[REFUSAL], &length[..], reason.as_bytes()].concat(), &[]);
        Err(HandshakeError::Refused(reason))
    }

    /// Reads a message: its kind and content. A refusal is an error.
    fn read_message(&mut self) -> Result<(u8, Vec<u8>), HandshakeError> {
        let mut kind = [0];
        self.read.read_until(self.until, &mut kind)?;
        if kind == [REFUSAL] {
            return Err(HandshakeError::RefusedByPeer(self.read_reason()?));
        }
        Ok((kind[0], self.read_content()?))
    }

    fn read_content(&mut self) -> Result<Vec<u8>, HandshakeError> {
        let mut length = [0; 2];
        self.read.read_until(self.until, &mut length)?;
        let length = usize::from(u16::from_be_bytes(length));
        if length > MAX_MESSAGE {
            return Err(not_a_process());
        }
        let mut content = vec![0; length];
        self.read.read_until(self.until, &mut content)?;
        Ok(content)
    }

    fn read_reason(&mut self) -> Result<String, HandshakeError> {
        Ok(printable(&String::from_utf8_lossy(&self.read_content()?)))
    }
}

impl Session {
    fn mac(&self, role: &[u8], identity: &[u8], secret: Option<&Secret>) -> Hmac<Sha256> {
        let mut mac = mac(secret);
        // All but the last have a fixed length; the roles do not begin with each other.
        for part in [role, &self.connects, &self.accepts, &self.binding, identity] {
            mac.update(part);
        }
        mac
    }
}

fn hello(secret: Option<&Secret>, nonce: &[u8; NONCE]) -> Vec<u8> {
    [&MAGIC[..], &[VERSION, u8::from(secret.is_some())], nonce].concat()
}

fn not_a_process() -> HandshakeError {
    HandshakeError::Refused("it is not a process of a Headwater cluster".to_owned())
}

/// Returns a text of another process as one short line.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON).collect()
}
