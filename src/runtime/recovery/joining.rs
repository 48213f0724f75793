//! The connections between the processes of a cluster. Each process connects to those before it and accepts those after
//! it:
//!
//! ```text
//! connects: "hw-join1", phase, processes, index ─▶ accepts
//!           ◀─ one byte: accepted
//! ```
//!
//! timely can connect processes itself, but it prints to standard output while it waits, and waits forever for a
//! connection that sends nothing. The handshake does not authenticate: only the cluster's processes may reach the port.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use timely::CommunicationConfig::Cluster;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
use timely::communication::{Hooks, WorkerGuards};
use timely::worker::Worker;

use crate::runtime::failure::RunError;

/// The purpose of a connection. A connection for one purpose is not accepted for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinPhase {
    /// The leader sends the start data.
    ClusterBootstrap = 0,
    /// The run itself.
    Run = 1,
}

/// The timeout for a connection to identify itself, and for the response.
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);

/// The time until the next attempt.
const RETRY: Duration = Duration::from_millis(100);

/// The interval at which the missing processes are logged.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The maximum number of connections that have not identified themselves yet.
const PENDING: usize = 256;

const MAGIC: &[u8; 8] = b"hw-join1";
const HELLO_LEN: usize = 20;
const ACCEPTED: u8 = b'+';

/// Runs `work` on every worker once all processes have connected.
///
/// # Errors
/// If they cannot connect.
pub fn execute<T: Send + 'static>(
    config: timely::Config,
    phase: JoinPhase,
    work: impl Fn(&mut Worker) -> T + Send + Sync + 'static,
) -> Result<WorkerGuards<T>, RunError> {
    let timely::Config { communication, worker } = config;
    let Cluster { threads, process, addresses, .. } = communication else {
        return timely::execute(timely::Config { communication, worker }, work).map_err(RunError::Workers);
    };
    let failed = |error: std::io::Error| RunError::Workers(error.to_string());
    let sockets = join(&addresses, process, phase)?;
    let hooks = Hooks::default();
    let builders = ProcessBuilder::new_typed_vector(threads, hooks.refill.clone(), hooks.spill.clone());
    let (builders, guard) =
        initialize_networking_from_sockets(builders, sockets, process, threads, hooks).map_err(failed)?;
    let builders = builders.into_iter().map(AllocatorBuilder::Tcp).collect();
    timely::execute::execute_from(builders, Box::new(guard), worker, work).map_err(RunError::Workers)
}

/// Returns a connection to each other process, by its index; None at the index of this one.
fn join(addresses: &[String], process: usize, phase: JoinPhase) -> Result<Vec<Option<TcpStream>>, RunError> {
    let own = &addresses[process];
    let listener = TcpListener::bind(own).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    let listener = listener.map_err(|error| {
        RunError::Workers(format!("cannot listen on {own} for the processes of the cluster: {error}"))
    })?;
    let local = LocalProcess { process, processes: addresses.len(), phase };
    let accepting = thread::spawn(move || accept(&listener, local));
    let mut sockets: Vec<_> =
        addresses[..process].iter().enumerate().map(|(peer, at)| Some(connect(local, peer, at))).collect();
    sockets.push(None);
    let panicked = |_| RunError::Workers("the thread that accepts other processes panicked".into());
    sockets.extend(accepting.join().map_err(panicked)?);
    Ok(sockets)
}

/// The identity of this process.
#[derive(Clone, Copy)]
struct LocalProcess {
    process: usize,
    processes: usize,
    phase: JoinPhase,
}

impl LocalProcess {
    fn hello(self) -> [u8; HELLO_LEN] {
        let mut hello = [0; HELLO_LEN];
        hello[..8].copy_from_slice(MAGIC);
        for (at, number) in [self.phase as usize, self.processes, self.process].into_iter().enumerate() {
            // A cluster has at most as many processes as shards.
            hello[8 + 4 * at..][..4].copy_from_slice(&(number as u32).to_be_bytes());
        }
        hello
    }

    /// Returns the index of the process that sent `hello`, if it may be accepted; otherwise the reason why not.
    fn check_hello(self, hello: &[u8; HELLO_LEN]) -> Result<usize, String> {
        if &hello[..8] != MAGIC {
            return Err("it is not a process of a Headwater cluster".into());
        }
        let [phase, processes, process] = [8, 12, 16].map(|at| {
            let bytes = hello[at..at + 4].try_into().expect("four bytes");
            u32::from_be_bytes(bytes) as usize
        });
        if processes != self.processes {
            return Err(format!(
                "it was started as one of {processes} processes, and this process as one of {}",
                self.processes
            ));
        }
        if phase != self.phase as usize || process <= self.process || process >= processes {
            return Err(format!("process {process} is not expected to connect here now"));
        }
        Ok(process)
    }
}

/// Connects to a process with a lower index; retries until it is available.
fn connect(local: LocalProcess, peer: usize, address: &str) -> TcpStream {
    let mut log = RateLimitedLog::default();
    loop {
        match handshake(local, address) {
            Ok(stream) => return stream,
            Err(error) => {
                log.log_at_intervals(
                    || tracing::info!(peer, address, %error, "waiting for a process of the cluster"),
                );
                thread::sleep(RETRY);
            }
        }
    }
}

fn handshake(local: LocalProcess, address: &str) -> std::io::Result<TcpStream> {
    let mut last = ErrorKind::AddrNotAvailable.into();
    for address in address.to_socket_addrs()? {
        let connected = TcpStream::connect_timeout(&address, HELLO_TIMEOUT).and_then(|mut stream| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(HELLO_TIMEOUT))?;
            stream.write_all(&local.hello())?;
            let mut answer = [0];
            stream.read_exact(&mut answer)?;
            stream.set_read_timeout(None)?;
            if answer[0] == ACCEPTED { Ok(stream) } else { Err(ErrorKind::InvalidData.into()) }
        });
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Accepts every process with a higher index. Closes connections that send nothing or an unexpected greeting.
fn accept(listener: &TcpListener, local: LocalProcess) -> Vec<Option<TcpStream>> {
    let first = local.process + 1;
    let mut accepted: Vec<Option<TcpStream>> = (first..local.processes).map(|_| None).collect();
    let mut pending: Vec<(TcpStream, SocketAddr, Instant)> = Vec::new();
    let mut log = RateLimitedLog::default();
    while accepted.iter().any(Option::is_none) {
        match listener.accept() {
            Ok((stream, address)) => {
                if pending.len() >= PENDING {
                    let (_, address, _) = pending.remove(0);
                    tracing::warn!(%address, "closed a connection to the cluster's port: too many are unidentified");
                }
                pending.push((stream, address, Instant::now()));
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
        for (stream, address, since) in std::mem::take(&mut pending) {
            match read_hello(&stream, local) {
                Ok(None) if since.elapsed() < HELLO_TIMEOUT => pending.push((stream, address, since)),
                Ok(None) => {
                    tracing::warn!(%address, "closed a connection that did not identify itself in time")
                }
                Ok(Some(process)) => match answer_hello(stream) {
                    Ok(stream) => accepted[process - first] = Some(stream),
                    Err(error) => {
                        tracing::warn!(%address, %error, process, "a process disconnected during the handshake")
                    }
                },
                Err(reason) => {
                    tracing::warn!(%address, reason, "refused a connection to the cluster's port")
                }
            }
        }
        log.log_at_intervals(|| {
            let missing: Vec<_> = (first..).zip(&accepted).filter(|(_, stream)| stream.is_none()).collect();
            if let Some((process, _)) = missing.first() {
                tracing::info!(process, missing = missing.len(), "waiting for processes of the cluster");
            }
        });
    }
    accepted
}

/// Returns the index of the process at the other end, or None if it has not identified itself yet.
fn read_hello(stream: &TcpStream, local: LocalProcess) -> Result<Option<usize>, String> {
    let mut hello = [0; HELLO_LEN];
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut hello));
    match peeked {
        Ok(0) => Err("it was closed before it identified itself".into()),
        Ok(HELLO_LEN) => local.check_hello(&hello).map(Some),
        Ok(some) if hello[..some.min(8)] != MAGIC[..some.min(8)] => {
            Err("it is not a process of a Headwater cluster".into())
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn answer_hello(mut stream: TcpStream) -> std::io::Result<TcpStream> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.read_exact(&mut [0; HELLO_LEN])?;
    stream.write_all(&[ACCEPTED])?;
    Ok(stream)
}

/// Logs at once, and then at intervals.
#[derive(Default)]
struct RateLimitedLog(Option<Instant>);

impl RateLimitedLog {
    fn log_at_intervals(&mut self, log: impl FnOnce()) {
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
    fn processes_join_despite_foreign_connections() {
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|at| at.local_addr()).expect("a free port");
        let addresses: Vec<_> = [free(), free()].iter().map(ToString::to_string).collect();
        let first = {
            let addresses = addresses.clone();
            thread::spawn(move || join(&addresses, 0, JoinPhase::Run))
        };
        let foreign: Vec<_> = ["", "hw-", "GET / HTTP/1.1\r\n\r\n"]
            .into_iter()
            .map(|bytes| {
                let mut stream = loop {
                    match TcpStream::connect(&addresses[0]) {
                        Ok(stream) => break stream,
                        Err(_) => thread::sleep(RETRY),
                    }
                };
                stream.write_all(bytes.as_bytes()).expect("sent");
                stream
            })
            .collect();
        let begun = Instant::now();
        let second = join(&addresses, 1, JoinPhase::Run).expect("joined");
        let first = first.join().expect("no panic").expect("joined");
        assert!(begun.elapsed() < HELLO_TIMEOUT, "foreign connections delay no process");
        drop(foreign);
        let pair = (first[1].as_ref().expect("to 1"), second[0].as_ref().expect("to 0"));
        assert_eq!(pair.0.local_addr().ok(), pair.1.peer_addr().ok());
    }

    #[test]
    fn only_expected_processes_are_accepted() {
        let local = LocalProcess { process: 1, processes: 3, phase: JoinPhase::Run };
        let check = |process, processes, phase| {
            local.check_hello(&LocalProcess { process, processes, phase }.hello())
        };
        assert_eq!(check(2, 3, JoinPhase::Run), Ok(2));
        assert!(check(2, 3, JoinPhase::ClusterBootstrap).is_err());
        assert!(check(0, 3, JoinPhase::Run).is_err());
        assert!(check(3, 3, JoinPhase::Run).is_err());
        assert_eq!(
            check(2, 4, JoinPhase::Run),
            Err("it was started as one of 4 processes, and this process as one of 3".to_owned())
        );
        assert!(local.check_hello(&[0; HELLO_LEN]).is_err());
    }
}
