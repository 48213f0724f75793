//! The workers and processes of a run, by the command line and the host file.

use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::command::RunArgs;

/// How long the names of hosts may take to be known: an orchestrator makes a name known when it starts the host.
const LOOKUP: Duration = Duration::from_secs(30);

/// What is wrong with a host file.
#[derive(Debug, Error)]
pub enum HostsError {
    /// It cannot be read.
    #[error("cannot read {0}")]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// A line is no address.
    #[error("{file}, line {line}: {reason}", file = .file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// It has fewer hosts than there are processes.
    #[error("{file} names {hosts} hosts, and there are to be {processes} processes: -n", file = .file.display())]
    TooFew {
        /// The file.
        file: PathBuf,
        /// How many it has.
        hosts: usize,
        /// How many processes there are.
        processes: usize,
    },
}

/// What timely is to run.
///
/// # Errors
/// If the host file does not say where the processes are.
pub fn timely_config(args: &RunArgs) -> Result<timely::Config, HostsError> {
    let Some(file) = args.hostfile.as_ref().filter(|_| args.processes > 1) else {
        return Ok(timely::Config::process(args.workers));
    };
    let text = std::fs::read_to_string(file).map_err(|error| HostsError::Unreadable(file.clone(), error))?;
    let communication = timely::CommunicationConfig::Cluster {
        threads: args.workers,
        process: args.process,
        addresses: addresses(file, &text, args.processes, LOOKUP)?,
        report: false,
        zerocopy: false,
    };
    Ok(timely::Config { communication, worker: timely::WorkerConfig::default() })
}

/// The addresses of so many processes, each `host:port` of a host that is known.
fn addresses(
    file: &Path,
    text: &str,
    processes: usize,
    patience: Duration,
) -> Result<Vec<String>, HostsError> {
    let lines = text.lines().map(str::trim).zip(1..).filter(|(host, _)| !host.is_empty());
    let hosts: Vec<_> = lines.take(processes).collect();
    if hosts.len() < processes {
        return Err(HostsError::TooFew { file: file.into(), hosts: hosts.len(), processes });
    }
    let wrong = |line, reason| HostsError::Line { file: file.into(), line, reason };
    for &(host, line) in &hosts {
        let port = host.rsplit_once(':').filter(|(name, _)| !name.is_empty()).map(|(_, port)| port);
        if !port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0)) {
            return Err(wrong(line, format!("expected host:port, such as \"10.0.0.7:2101\", not {host:?}")));
        }
    }
    let since = Instant::now();
    for &(host, line) in &hosts {
        let mut logged = false;
        while let Err(error) = host.to_socket_addrs() {
            let reason = format!("cannot find the host of {host:?}: {error}");
            if since.elapsed() >= patience {
                return Err(wrong(line, reason));
            }
            if !std::mem::replace(&mut logged, true) {
                tracing::warn!(line, "{reason}; trying again for {} s", patience.as_secs());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    Ok(hosts.into_iter().map(|(host, _)| host.to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_line_of_the_host_file_is_named() {
        let read = |text: &str, processes| {
            let read = addresses(Path::new("hosts"), text, processes, Duration::ZERO);
            read.map_err(|error| error.to_string())
        };
        let two = ["localhost:2101", "127.0.0.1:2102"].map(str::to_owned).to_vec();
        assert_eq!(read("localhost:2101\n\n 127.0.0.1:2102 \nnobody\n", 2), Ok(two));
        for wrong in ["localhost", "localhost:", "localhost:x", "localhost:0", ":2101", "localhost:70000"] {
            assert_eq!(
                read(&format!("localhost:2101\n\n{wrong}\n"), 2),
                Err(format!("hosts, line 3: expected host:port, such as \"10.0.0.7:2101\", not {wrong:?}"))
            );
        }
        assert!(
            read("nobody.invalid:2101\nlocalhost:2102", 2)
                .is_err_and(|error| error.starts_with("hosts, line 1: cannot find the host of"))
        );
        assert_eq!(
            read("localhost:2101", 2),
            Err("hosts names 1 hosts, and there are to be 2 processes: -n".to_owned())
        );
    }
}
