//! The workers and processes of a run, from the command line, the host file, or the cluster that it is a member of.

use std::fmt;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::command::RunArgs;

/// The environment variable of a child process with its [`Placement`], as JSON. It replaces the options for processes.
pub const PLACEMENT_VARIABLE: &str = "HEADWATER_PLACEMENT";

/// The timeout for resolving host names. An orchestrator registers a name only when it starts the host.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns true if this process was started with its placement in a cluster.
pub fn is_placed() -> bool {
    std::env::var_os(PLACEMENT_VARIABLE).is_some()
}

/// An error of a host file.
#[derive(Debug, Error)]
pub enum HostsError {
    /// The file cannot be read.
    #[error("cannot read {0}")]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// A line is not a valid address.
    #[error("{file}, line {line}: {reason}", file = .file.display())]
    Line {
        /// The path of the file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The error.
        reason: String,
    },
    /// The file has fewer hosts than there are processes.
    #[error("{file} has {hosts} hosts for {processes} processes: add hosts, or reduce --processes", file = .file.display())]
    TooFew {
        /// The path of the file.
        file: PathBuf,
        /// The number of hosts in the file.
        hosts: usize,
        /// The number of processes.
        processes: usize,
    },
    /// A host of the cluster that this process was started in cannot be resolved.
    #[error("the process at {address}: {reason}")]
    Member {
        /// Its address.
        address: String,
        /// The error.
        reason: String,
    },
    /// The cluster that this process was started in is not valid.
    #[error("{PLACEMENT_VARIABLE} is not valid: {0}")]
    Placement(String),
}

/// The name of a process in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessName {
    /// The index: the line of the host file, from 0.
    Index(usize),
    /// A pod of a StatefulSet: the name of the set, and the ordinal.
    Pod {
        /// The name of the StatefulSet.
        set: String,
        /// The ordinal, from 0.
        ordinal: usize,
    },
    /// The line of a host file.
    Address(String),
}

impl ProcessName {
    /// Parses an index, the name of a pod, or an address.
    ///
    /// # Errors
    /// If it is none of them.
    pub fn parse(text: &str) -> Result<ProcessName, String> {
        if let Ok(index) = text.parse() {
            return Ok(ProcessName::Index(index));
        }
        if has_port(text) {
            return Ok(ProcessName::Address(text.to_owned()));
        }
        let pod = text.rsplit_once('-').filter(|(set, _)| !set.is_empty() && !set.contains([':', '.']));
        match pod.map(|(set, ordinal)| (set, ordinal.parse())) {
            Some((set, Ok(ordinal))) => Ok(ProcessName::Pod { set: set.to_owned(), ordinal }),
            _ => Err("expected an index from 0, the name of a pod such as headwater-3, or the host:port of this process \
                      (its default is HEADWATER_PROCESS)"
                .to_owned()),
        }
    }

    /// Returns the index; None if it depends on the host file.
    pub fn index(&self) -> Option<usize> {
        match self {
            ProcessName::Index(index) | ProcessName::Pod { ordinal: index, .. } => Some(*index),
            ProcessName::Address(_) => None,
        }
    }
}

/// A headless Service, whose DNS name has the addresses of all pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The DNS name.
    pub name: String,
    /// The port of the cluster on every pod.
    pub port: u16,
}

impl Service {
    /// Parses `dns:NAME:PORT`.
    ///
    /// # Errors
    /// If it has another form.
    pub fn parse(text: &str) -> Result<Service, String> {
        let service = text.strip_prefix("dns:").filter(|address| has_port(address));
        let (name, port) = service.and_then(|address| address.rsplit_once(':')).ok_or_else(|| {
            "expected dns:NAME:PORT, such as dns:headwater-peers:2101 (its default is HEADWATER_PEERS)"
                .to_owned()
        })?;
        Ok(Service { name: name.to_owned(), port: port.parse().unwrap_or_default() })
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dns:{}:{}", self.name, self.port)
    }
}

/// The place of a process in its cluster, while the members of the cluster do not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// The index of this process.
    pub process: usize,
    /// The number of workers of each process.
    pub workers: usize,
    /// The addresses of all processes. One process needs none.
    pub members: Vec<String>,
}

impl Placement {
    /// Returns the place of this process: that of its cluster if it was started by one, or that of the arguments.
    ///
    /// # Errors
    /// If the host file does not have a valid address for each process.
    pub fn of(args: &RunArgs) -> Result<Placement, HostsError> {
        if let Ok(text) = std::env::var(PLACEMENT_VARIABLE) {
            let placement = serde_json::from_str(&text).map_err(|error| error.to_string());
            return placement.and_then(Placement::checked).map_err(HostsError::Placement);
        }
        let process = args.process.index().unwrap_or_default();
        let (workers, processes) = (args.workers, args.processes.unwrap_or(1));
        let Some(file) = args.hostfile.as_ref().filter(|_| processes > 1) else {
            return Ok(Placement { process, workers, members: Vec::new() });
        };
        let mut members = hosts(file)?;
        if members.len() < processes {
            return Err(HostsError::TooFew { file: file.clone(), hosts: members.len(), processes });
        }
        members.truncate(processes);
        Ok(Placement { process, workers, members })
    }

    /// Returns this placement if it is one.
    ///
    /// # Errors
    /// If it is not: the reason.
    pub fn checked(self) -> Result<Placement, String> {
        let Placement { process, workers, members } = &self;
        match members.iter().find(|member| !has_port(member)) {
            Some(member) => Err(format!("{member:?} is no host:port")),
            None if process >= &members.len() => Err(format!("process {process} of {}", members.len())),
            None if *workers == 0 => Err("no worker".to_owned()),
            None => Ok(self),
        }
    }

    /// Returns the number of processes.
    pub fn processes(&self) -> usize {
        self.members.len().max(1)
    }

    /// Returns timely's configuration of workers and processes. Waits until all hosts can be resolved.
    ///
    /// # Errors
    /// If they cannot.
    pub fn timely_config(&self) -> Result<timely::Config, HostsError> {
        if self.processes() == 1 {
            return Ok(timely::Config::process(self.workers));
        }
        resolve(&self.members, LOOKUP_TIMEOUT)?;
        let communication = timely::CommunicationConfig::Cluster {
            threads: self.workers,
            process: self.process,
            addresses: self.members.clone(),
            report: false,
            zerocopy: false,
        };
        Ok(timely::Config { communication, worker: timely::WorkerConfig::default() })
    }
}

fn has_port(address: &str) -> bool {
    let port = address.rsplit_once(':').filter(|(name, _)| !name.is_empty()).map(|(_, port)| port);
    port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Reads the addresses of a host file.
///
/// # Errors
/// If it cannot be read, or a line is no address.
pub fn hosts(file: &Path) -> Result<Vec<String>, HostsError> {
    let text = std::fs::read_to_string(file).map_err(|error| HostsError::Unreadable(file.into(), error))?;
    parse(file, &text)
}

fn parse(file: &Path, text: &str) -> Result<Vec<String>, HostsError> {
    let lines = text.lines().map(str::trim).zip(1..).filter(|(host, _)| !host.is_empty());
    let checked = lines.map(|(host, line)| match has_port(host) {
        true => Ok(host.to_owned()),
        false => Err(HostsError::Line {
            file: file.into(),
            line,
            reason: format!("expected host:port, such as \"10.0.0.7:2101\", not {host:?}"),
        }),
    });
    checked.collect()
}

/// Waits until all hosts can be resolved.
fn resolve(members: &[String], timeout: Duration) -> Result<(), HostsError> {
    let since = Instant::now();
    for member in members {
        let mut is_logged = false;
        while let Err(error) = member.to_socket_addrs() {
            let reason = format!("cannot resolve the host: {error}");
            if since.elapsed() >= timeout {
                return Err(HostsError::Member { address: member.clone(), reason });
            }
            if !std::mem::replace(&mut is_logged, true) {
                tracing::warn!(member, "{reason}; retrying for {} s", timeout.as_secs());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_line_of_the_host_file() {
        let read = |text: &str| parse(Path::new("hosts"), text).map_err(|error| error.to_string());
        let two = ["localhost:2101", "127.0.0.1:2102"].map(str::to_owned).to_vec();
        assert_eq!(read("localhost:2101\n\n 127.0.0.1:2102 \n"), Ok(two));
        for wrong in ["localhost", "localhost:", "localhost:x", "localhost:0", ":2101", "localhost:70000"] {
            assert_eq!(
                read(&format!("localhost:2101\n\n{wrong}\n")),
                Err(format!("hosts, line 3: expected host:port, such as \"10.0.0.7:2101\", not {wrong:?}"))
            );
        }
        let unknown =
            resolve(&["localhost:2101".to_owned(), "nobody.invalid:2101".to_owned()], Duration::ZERO);
        let unknown = unknown.expect_err("unknown").to_string();
        assert!(
            unknown.starts_with("the process at nobody.invalid:2101: cannot resolve the host"),
            "{unknown}"
        );
    }

    #[test]
    fn a_process_is_named_by_index_pod_or_address() {
        let pod = |set: &str, ordinal| ProcessName::Pod { set: set.to_owned(), ordinal };
        assert_eq!(ProcessName::parse("3"), Ok(ProcessName::Index(3)));
        assert_eq!(ProcessName::parse("headwater-3"), Ok(pod("headwater", 3)));
        assert_eq!(ProcessName::parse("a-b-12"), Ok(pod("a-b", 12)));
        assert_eq!(ProcessName::parse("10.0.0.7:2101"), Ok(ProcessName::Address("10.0.0.7:2101".to_owned())));
        for wrong in ["", "-1", "headwater", "headwater-", "headwater-x", "a:b", "a.b-1"] {
            assert!(ProcessName::parse(wrong).is_err_and(|reason| reason.contains("headwater-3")), "{wrong}");
        }
        let service = Service { name: "headwater-peers".to_owned(), port: 2101 };
        assert_eq!(Service::parse("dns:headwater-peers:2101"), Ok(service));
        for wrong in ["headwater-peers:2101", "dns:headwater-peers", "dns::2101", "dns:a:0", ""] {
            assert!(Service::parse(wrong).is_err_and(|reason| reason.contains("dns:NAME:PORT")), "{wrong}");
        }
    }

    #[test]
    fn a_placement_that_is_none_is_refused() {
        let placement = |process, workers, members: &[&str]| {
            let members = members.iter().map(|&member| member.to_owned()).collect();
            Placement { process, workers, members }.checked().is_ok()
        };
        assert!(placement(1, 2, &["a:1", "b:1"]));
        assert!(!placement(2, 2, &["a:1", "b:1"]) && !placement(0, 0, &["a:1"]));
        assert!(!placement(0, 1, &["a"]) && !placement(0, 1, &[]));
    }
}
