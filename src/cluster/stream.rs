//! The connection to a process as timely uses it: it reads and writes messages of the dataflow. Its threads panic if a
//! connection ends before the dataflow does, so this one ends in order for them. They are given the end of the dataflow once
//! the workers of this process, which stop for the loss of a process as for any failure, have ended.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Mutex};

use timely::communication::allocator::zero_copy::stream::Stream;
use timely::communication::networking::MessageHeader;

use super::link::{Frame, Link, LinkReader, ReadEnd};
use super::members::{Members, Stage, ended};

/// A handle of a connection.
pub struct PeerStream {
    members: Arc<Members>,
    link: Arc<Link>,
    receiving: Arc<Mutex<Receiving>>,
}

/// The state of the receiving side.
struct Receiving {
    reader: LinkReader,
    /// The number of bytes of the current content that were read.
    position: usize,
    /// The rest of the message that ends the dataflow, once it is to be read.
    end: Option<Vec<u8>>,
}

/// The header that says that the dataflow has ended.
const END: MessageHeader =
    MessageHeader { channel: 0, source: 0, target_lower: 0, target_upper: 0, length: 0, seqno: 0 };

impl PeerStream {
    /// Returns the connection whose receiving side this is.
    pub fn new(members: Arc<Members>, reader: LinkReader) -> PeerStream {
        let link = Arc::clone(&reader.link);
        let mut reader = reader;
        reader.content.clear();
        let receiving = Receiving { reader, position: 0, end: None };
        PeerStream { members, link, receiving: Arc::new(Mutex::new(receiving)) }
    }

    /// Reads the next messages. Returns false if there are none.
    fn receive(&self, receiving: &mut Receiving) -> bool {
        let noticed = match receiving.reader.next(&|| self.members.stage() == Stage::Ended) {
            Ok(Frame::Data) => {
                receiving.position = 0;
                return true;
            }
            Ok(Frame::End) => return false,
            Ok(frame) => Some(ended(frame, &receiving.reader.content)),
            Err(ReadEnd::Lost(noticed)) => Some(noticed),
            Err(ReadEnd::Over) => None,
        };
        if let Some(noticed) = noticed {
            self.members.lose(&self.link, noticed);
        }
        self.members.wait_for_workers();
        false
    }
}

impl Read for PeerStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut receiving = self.receiving.lock().expect("only one thread reads");
        loop {
            if let Some(end) = &mut receiving.end {
                let length = end.len().min(out.len());
                out[..length].copy_from_slice(&end[..length]);
                end.drain(..length);
                return Ok(length);
            }
            let Receiving { reader, position, .. } = &mut *receiving;
            let rest = &reader.content[*position..];
            if !rest.is_empty() {
                let length = rest.len().min(out.len());
                out[..length].copy_from_slice(&rest[..length]);
                *position += length;
                return Ok(length);
            }
            if !self.receive(&mut receiving) {
                let mut end = Vec::new();
                END.write_to(&mut end)?;
                receiving.end = Some(end);
            }
        }
    }
}

/// Returns the length of the messages at the beginning of some bytes, without the one that ends the dataflow.
///
/// # Errors
/// If the bytes are not whole messages.
fn messages(bytes: &[u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < bytes.len() {
        let partial = || io::Error::new(io::ErrorKind::InvalidData, "timely has written a part of a message");
        let header = MessageHeader::try_read(&bytes[length..]).ok_or_else(partial)?;
        if header.length == 0 {
            break;
        }
        length += header.required_bytes();
    }
    Ok(length)
}

impl Write for PeerStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Whole messages, so that the other end can pass on what it has if this process is lost. They come in one piece,
        // since a buffered writer does not divide what it is given.
        let length = messages(bytes)?;
        if length > 0 && !self.link.is_closed() {
            // If the connection is closed, the receiving side notices.
            let _ = self.link.send(Frame::Data, &bytes[..length]);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for PeerStream {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(PeerStream {
            members: Arc::clone(&self.members),
            link: Arc::clone(&self.link),
            receiving: Arc::clone(&self.receiving),
        })
    }

    fn set_nonblocking(&self, _nonblocking: bool) -> io::Result<()> {
        Ok(())
    }

    fn shutdown(&self, _how: Shutdown) -> io::Result<()> {
        // A dataflow that was dropped because the run has failed ends like one that is complete. Once the workers have ended, a
        // failed run has sent the others its reason, and closed the connection.
        self.members.wait_for_workers();
        self.link.finish();
        Ok(())
    }
}
