//! The connection to one process after the handshake: frames, each a kind, a length and a content. Whatever arrives is a
//! sign of life, and a heartbeat is sent where nothing else would be.

use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::loss::Noticed;
use super::transport::{ReadHalf, WriteHalf, is_timeout};
use crate::wall::wall_ms;

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A sign of life.
    Heartbeat = 0,
    /// The start data, from the first process.
    Start = 1,
    /// The process has everything that it needs for the run.
    Prepared = 2,
    /// All frames after this one belong to the dataflow.
    Go = 3,
    /// Messages of the dataflow, whole ones.
    Data = 4,
    /// The dataflow of the process has ended in order.
    End = 5,
    /// The process ends its run, for the reason in the frame.
    Leave = 6,
}

const FRAMES: [Frame; 7] =
    [Frame::Heartbeat, Frame::Start, Frame::Prepared, Frame::Go, Frame::Data, Frame::End, Frame::Leave];

/// The length of a frame's header.
const HEADER: usize = 5;

/// The greatest length of a content. A batch of the dataflow is much shorter.
const MAX_CONTENT: usize = 1 << 30;

/// The size of the buffer that small frames are read into, and the steps in which the memory of a large one grows.
const BUFFER: usize = 128 * 1024;

/// The number of heartbeats within the timeout.
const BEATS: u32 = 5;

/// The longest time of a read without data, so that the end of a run is noticed.
const POLL: Duration = Duration::from_millis(100);

/// The longest time to send the reason of the end of a run.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(200);

/// The sending side of a connection.
pub struct Link {
    /// The index of the process at the other end.
    pub process: usize,
    socket: TcpStream,
    write: Mutex<WriteHalf>,
    last_heard_ms: AtomicU64,
    /// True once this process sends nothing more.
    is_finished: AtomicBool,
    is_closed: AtomicBool,
}

/// The receiving side of a connection.
pub struct LinkReader {
    /// The sending side.
    pub link: Arc<Link>,
    read: ReadHalf,
    timeout: Duration,
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    /// The content of the last frame.
    pub content: Vec<u8>,
}

/// The reason why there is no next frame.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadEnd {
    /// The process is lost.
    Lost(Noticed),
    /// This process has ended its run.
    Over,
}

impl Link {
    /// Returns the two sides of a connection to a process that has joined.
    ///
    /// # Errors
    /// If the operating system refuses to set up the socket.
    pub fn new(
        process: usize,
        socket: TcpStream,
        (read, write): (ReadHalf, WriteHalf),
        timeout: Duration,
    ) -> io::Result<(Arc<Link>, LinkReader)> {
        socket.set_write_timeout(None)?;
        read.set_timeout(POLL.min(timeout / BEATS))?;
        let link = Arc::new(Link {
            process,
            socket,
            write: Mutex::new(write),
            last_heard_ms: AtomicU64::new(now_ms()),
            is_finished: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
        });
        let reader = LinkReader {
            link: Arc::clone(&link),
            read,
            timeout,
            buffer: vec![0; BUFFER],
            begin: 0,
            end: 0,
            content: Vec::new(),
        };
        Ok((link, reader))
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// If the connection is closed, or the content is too long.
    pub fn send(&self, frame: Frame, content: &[u8]) -> io::Result<()> {
        let mut write = self.write.lock().expect("no thread panics while it holds the lock");
        write.write(&header(frame, content)?, content)
    }

    /// Sends the last frame: the dataflow of this process has ended in order.
    pub fn finish(&self) {
        let mut write = self.write.lock().expect("no thread panics while it holds the lock");
        self.is_finished.store(true, Ordering::Release);
        // If the connection is closed, the receiving side notices.
        let _ = header(Frame::End, &[]).and_then(|header| write.write(&header, &[]));
    }

    /// Sends a heartbeat, unless a frame is just being sent. Returns false if no further one is needed.
    pub fn beat(&self) -> bool {
        if let Ok(mut write) = self.write.try_lock() {
            if self.is_finished.load(Ordering::Acquire) {
                return false;
            }
            let beat = header(Frame::Heartbeat, &[]).and_then(|header| write.write(&header, &[]));
            if beat.is_err() {
                return false;
            }
        }
        !self.is_closed()
    }

    /// Sends the reason why this process ends its run, if that takes no time, and closes the connection.
    pub fn leave(&self, reason: &str) {
        let until = Instant::now() + LEAVE_TIMEOUT;
        while !self.is_closed() && Instant::now() < until {
            if let Ok(mut write) = self.write.try_lock() {
                // The connection is closed in any case.
                let _ = self
                    .socket
                    .set_write_timeout(Some(LEAVE_TIMEOUT))
                    .and_then(|()| write.write(&header(Frame::Leave, reason.as_bytes())?, reason.as_bytes()));
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.close();
    }

    /// Closes the connection: reads and writes end.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.shut_down();
    }

    /// Ends reads and writes of the socket.
    pub fn shut_down(&self) {
        // It may be closed already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Returns true if this process has closed the connection.
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Returns the wall time at which the process at the other end last sent something.
    pub fn last_heard_ms(&self) -> i64 {
        self.last_heard_ms.load(Ordering::Relaxed) as i64
    }

    /// Returns the time since the process at the other end last sent something.
    pub fn silence(&self) -> Duration {
        Duration::from_millis(now_ms().saturating_sub(self.last_heard_ms.load(Ordering::Relaxed)))
    }
}

/// Returns the time between two heartbeats.
pub fn beat_interval(timeout: Duration) -> Duration {
    timeout / BEATS
}

fn now_ms() -> u64 {
    wall_ms().unsigned_abs()
}

fn header(frame: Frame, content: &[u8]) -> io::Result<[u8; HEADER]> {
    let length = u32::try_from(content.len()).ok().filter(|_| content.len() <= MAX_CONTENT);
    let length = length.ok_or_else(|| io::Error::other("a message for another process is too long"))?;
    let [a, b, c, d] = length.to_be_bytes();
    Ok([frame as u8, a, b, c, d])
}

impl LinkReader {
    /// Reads the next frame that is not a heartbeat, and stores its content. `is_over` ends the wait for it.
    ///
    /// # Errors
    /// If the process at the other end is lost, or the wait is over.
    pub fn next(&mut self, is_over: &dyn Fn() -> bool) -> Result<Frame, ReadEnd> {
        loop {
            self.receive(HEADER, is_over)?;
            let length = u32::from_be_bytes(self.content[1..].try_into().expect("four bytes")) as usize;
            let frame = FRAMES.get(usize::from(self.content[0])).copied();
            let Some(frame) = frame.filter(|_| length <= MAX_CONTENT) else {
                let message = "it has sent something that is no message of a cluster";
                return Err(ReadEnd::Lost(Noticed::Closed(message.to_owned())));
            };
            self.receive(length, is_over)?;
            if frame != Frame::Heartbeat {
                return Ok(frame);
            }
        }
    }

    /// Reads `length` bytes into the content.
    fn receive(&mut self, length: usize, is_over: &dyn Fn() -> bool) -> Result<(), ReadEnd> {
        self.content.clear();
        while self.content.len() < length {
            let missing = length - self.content.len();
            let ready = missing.min(self.end - self.begin);
            self.content.extend_from_slice(&self.buffer[self.begin..self.begin + ready]);
            self.begin += ready;
            if ready < missing {
                self.fill(is_over)?;
            }
        }
        Ok(())
    }

    /// Fills the buffer, which is empty, with whatever arrives next.
    fn fill(&mut self, is_over: &dyn Fn() -> bool) -> Result<(), ReadEnd> {
        let mut silence = Duration::ZERO;
        loop {
            if self.link.is_closed() || is_over() {
                return Err(ReadEnd::Over);
            }
            let begun = Instant::now();
            match self.read.read(&mut self.buffer) {
                Ok(0) => return Err(closed("end of the connection")),
                Ok(read) => {
                    (self.begin, self.end) = (0, read);
                    self.link.last_heard_ms.store(now_ms(), Ordering::Relaxed);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => {
                    // A wait that took much longer than it should was a pause of this process, in which the other one may
                    // have sent something that has not arrived yet.
                    silence += begun.elapsed().min(2 * POLL);
                    if silence >= self.timeout {
                        return Err(ReadEnd::Lost(Noticed::Silent(self.timeout)));
                    }
                }
                Err(error) => return Err(closed(&error.to_string())),
            }
        }
    }
}

fn closed(how: &str) -> ReadEnd {
    ReadEnd::Lost(Noticed::Closed(how.to_owned()))
}
