//! How the processes of a cluster come together. Each connects to those before it and accepts those after it:
//!
//! ```text
//! connects: "hw-join1", round, processes, index ─▶ accepts
//!           ◀─ one byte: it is expected
//! ```
//!
//! timely does this by itself, but prints to standard output while it waits, and waits for ever for a connection that says
//! nothing. This is no proof of who connects: the port is for the cluster alone.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use timely::CommunicationConfig::Cluster;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
use timely::communication::{Hooks, WorkerGuards};
use timely::worker::Worker;

use super::failure::RunError;

/// Why processes meet. A process that comes for one is not taken for one that comes for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// The first process hands out where to go on.
    ClusterBootstrap = 0,
    /// The run itself.
    Run = 1,
}

/// How long a connection may take to say who it is, and how long an answer may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);

/// How long to wait before the next attempt.
const RETRY: Duration = Duration::from_millis(100);

/// How often it is logged what is waited for.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// No more connections than this may be about to say who they are.
const PENDING: usize = 256;

const MAGIC: &[u8; 8] = b"hw-join1";
const HELLO: usize = 20;
const EXPECTED: u8 = b'+';

/// Runs `work` on every worker, once all processes have come together.
///
/// # Errors
/// If they cannot come together.
pub fn execute<T: Send + 'static>(
    config: timely::Config,
    round: Round,
    work: impl Fn(&mut Worker) -> T + Send + Sync + 'static,
) -> Result<WorkerGuards<T>, RunError> {
    let timely::Config { communication, worker } = config;
    let Cluster { threads, process, addresses, .. } = communication else {
        return timely::execute(timely::Config { communication, worker }, work).map_err(RunError::Workers);
    };
    let failed = |error: std::io::Error| RunError::Workers(error.to_string());
    let sockets = join(&addresses, process, round)?;
    let hooks = Hooks::default();
    let builders = ProcessBuilder::new_typed_vector(threads, hooks.refill.clone(), hooks.spill.clone());
    let (builders, guard) =
        initialize_networking_from_sockets(builders, sockets, process, threads, hooks).map_err(failed)?;
    let builders = builders.into_iter().map(AllocatorBuilder::Tcp).collect();
    timely::execute::execute_from(builders, Box::new(guard), worker, work).map_err(RunError::Workers)
}

/// A connection to each other process, by its index; none to this one.
fn join(addresses: &[String], process: usize, round: Round) -> Result<Vec<Option<TcpStream>>, RunError> {
    let own = &addresses[process];
    let listener = TcpListener::bind(own).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    let listener = listener
        .map_err(|error| RunError::Workers(format!("cannot listen at {own}, for the cluster: {error}")))?;
    let me = Me { process, processes: addresses.len(), round };
    let accepting = thread::spawn(move || accept(&listener, me));
    let mut sockets: Vec<_> =
        addresses[..process].iter().enumerate().map(|(peer, at)| Some(connect(me, peer, at))).collect();
    sockets.push(None);
    let panicked = |_| RunError::Workers("the thread that accepts other processes panicked".into());
    sockets.extend(accepting.join().map_err(panicked)?);
    Ok(sockets)
}

/// Which process this is.
#[derive(Clone, Copy)]
struct Me {
    process: usize,
    processes: usize,
    round: Round,
}

impl Me {
    fn hello(self) -> [u8; HELLO] {
        let mut hello = [0; HELLO];
        hello[..8].copy_from_slice(MAGIC);
        for (at, number) in [self.round as usize, self.processes, self.process].into_iter().enumerate() {
            // No cluster has more processes than shards.
            hello[8 + 4 * at..][..4].copy_from_slice(&(number as u32).to_be_bytes());
        }
        hello
    }

    /// The process that says this, if it is one to be accepted.
    fn judge(self, hello: &[u8; HELLO]) -> Result<usize, String> {
        if &hello[..8] != MAGIC {
            return Err("it is no process of a cluster".into());
        }
        let [round, processes, process] = [8, 12, 16].map(|at| {
            let bytes = hello[at..at + 4].try_into().expect("four bytes");
            u32::from_be_bytes(bytes) as usize
        });
        if processes != self.processes {
            return Err(format!(
                "it has been started as one of {processes} processes, this one of {}",
                self.processes
            ));
        }
        if round != self.round as usize || process <= self.process || process >= processes {
            return Err(format!("process {process} is not expected here now"));
        }
        Ok(process)
    }
}

/// Connects to a process before this one, however long it takes to be there.
fn connect(me: Me, peer: usize, address: &str) -> TcpStream {
    let mut log = Log::default();
    loop {
        match greet(me, address) {
            Ok(stream) => return stream,
            Err(error) => {
                log.now_and_then(
                    || tracing::info!(peer, address, %error, "waiting for a process of the cluster"),
                );
                thread::sleep(RETRY);
            }
        }
    }
}

fn greet(me: Me, address: &str) -> std::io::Result<TcpStream> {
    let mut last = ErrorKind::AddrNotAvailable.into();
    for address in address.to_socket_addrs()? {
        let connected = TcpStream::connect_timeout(&address, HELLO_TIMEOUT).and_then(|mut stream| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(HELLO_TIMEOUT))?;
            stream.write_all(&me.hello())?;
            let mut answer = [0];
            stream.read_exact(&mut answer)?;
            stream.set_read_timeout(None)?;
            if answer[0] == EXPECTED { Ok(stream) } else { Err(ErrorKind::InvalidData.into()) }
        });
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Accepts every process after this one. Who connects and says nothing, or something else, is let go.
fn accept(listener: &TcpListener, me: Me) -> Vec<Option<TcpStream>> {
    let first = me.process + 1;
    let mut accepted: Vec<Option<TcpStream>> = (first..me.processes).map(|_| None).collect();
    let mut pending: Vec<(TcpStream, SocketAddr, Instant)> = Vec::new();
    let mut log = Log::default();
    while accepted.iter().any(Option::is_none) {
        match listener.accept() {
            Ok((stream, address)) => {
                if pending.len() >= PENDING {
                    let (_, address, _) = pending.remove(0);
                    tracing::warn!(%address, "a connection to the cluster's port was closed: too many say nothing");
                }
                pending.push((stream, address, Instant::now()));
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
        for (stream, address, since) in std::mem::take(&mut pending) {
            match listen_to(&stream, me) {
                Ok(None) if since.elapsed() < HELLO_TIMEOUT => pending.push((stream, address, since)),
                Ok(None) => {
                    tracing::warn!(%address, "a connection to the cluster's port said nothing and was closed")
                }
                Ok(Some(process)) => match welcome(stream) {
                    Ok(stream) => accepted[process - first] = Some(stream),
                    Err(error) => {
                        tracing::warn!(%address, %error, process, "a process of the cluster is gone again")
                    }
                },
                Err(reason) => {
                    tracing::warn!(%address, reason, "a connection to the cluster's port was refused")
                }
            }
        }
        log.now_and_then(|| {
            let missing: Vec<_> = (first..).zip(&accepted).filter(|(_, stream)| stream.is_none()).collect();
            if let Some((process, _)) = missing.first() {
                tracing::info!(process, missing = missing.len(), "waiting for processes of the cluster");
            }
        });
    }
    accepted
}

/// Which process a connection says it is, if it has said so yet.
fn listen_to(stream: &TcpStream, me: Me) -> Result<Option<usize>, String> {
    let mut hello = [0; HELLO];
    let words = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut hello));
    match words {
        Ok(0) => Err("it was closed before it said anything".into()),
        Ok(HELLO) => me.judge(&hello).map(Some),
        Ok(some) if hello[..some.min(8)] != MAGIC[..some.min(8)] => {
            Err("it is no process of a cluster".into())
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn welcome(mut stream: TcpStream) -> std::io::Result<TcpStream> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.read_exact(&mut [0; HELLO])?;
    stream.write_all(&[EXPECTED])?;
    Ok(stream)
}

/// Logs at once, and then now and then.
#[derive(Default)]
struct Log(Option<Instant>);

impl Log {
    fn now_and_then(&mut self, log: impl FnOnce()) {
        if self.0.is_none_or(|last| last.elapsed() >= LOG_EVERY) {
            self.0 = Some(Instant::now());
            log();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_join_beside_silent_and_strange_connections() {
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|at| at.local_addr()).expect("a free port");
        let addresses: Vec<_> = [free(), free()].iter().map(ToString::to_string).collect();
        let first = {
            let addresses = addresses.clone();
            thread::spawn(move || join(&addresses, 0, Round::Run))
        };
        let strangers: Vec<_> = ["", "hw-", "GET / HTTP/1.1\r\n\r\n"]
            .into_iter()
            .map(|words| {
                let mut stream = loop {
                    match TcpStream::connect(&addresses[0]) {
                        Ok(stream) => break stream,
                        Err(_) => thread::sleep(RETRY),
                    }
                };
                stream.write_all(words.as_bytes()).expect("sent");
                stream
            })
            .collect();
        let begun = Instant::now();
        let second = join(&addresses, 1, Round::Run).expect("joined");
        let first = first.join().expect("no panic").expect("joined");
        assert!(begun.elapsed() < HELLO_TIMEOUT, "strangers hold nobody up");
        drop(strangers);
        let pair = (first[1].as_ref().expect("to 1"), second[0].as_ref().expect("to 0"));
        assert_eq!(pair.0.local_addr().ok(), pair.1.peer_addr().ok());
    }

    #[test]
    fn only_those_expected_are_accepted() {
        let me = Me { process: 1, processes: 3, round: Round::Run };
        let judged = |process, processes, round| me.judge(&Me { process, processes, round }.hello());
        assert_eq!(judged(2, 3, Round::Run), Ok(2));
        assert!(judged(2, 3, Round::ClusterBootstrap).is_err());
        assert!(judged(0, 3, Round::Run).is_err());
        assert!(judged(3, 3, Round::Run).is_err());
        assert_eq!(
            judged(2, 4, Round::Run),
            Err("it has been started as one of 4 processes, this one of 3".to_owned())
        );
        assert!(me.judge(&[0; HELLO]).is_err());
    }
}
