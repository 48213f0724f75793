//! The workers and processes of a run, from the command line and the host file.

use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::command::RunArgs;

/// The timeout for resolving host names. An orchestrator registers a name only when it starts the host.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);

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
}

/// Returns timely's configuration of workers and processes.
///
/// # Errors
/// If the host file does not have a valid address for each process.
pub fn timely_config(args: &RunArgs) -> Result<timely::Config, HostsError> {
    let Some(file) = args.hostfile.as_ref().filter(|_| args.processes > 1) else {
        return Ok(timely::Config::process(args.workers));
    };
    let text = std::fs::read_to_string(file).map_err(|error| HostsError::Unreadable(file.clone(), error))?;
    let communication = timely::CommunicationConfig::Cluster {
        threads: args.workers,
        process: args.process,
        addresses: addresses(file, &text, args.processes, LOOKUP_TIMEOUT)?,
        report: false,
        zerocopy: false,
    };
    Ok(timely::Config { communication, worker: timely::WorkerConfig::default() })
}

/// Returns the addresses of the processes, each a `host:port` that resolves.
fn addresses(
    file: &Path,
    text: &str,
    processes: usize,
    timeout: Duration,
) -> Result<Vec<String>, HostsError> {
    let lines = text.lines().map(str::trim).zip(1..).filter(|(host, _)| !host.is_empty());
    let hosts: Vec<_> = lines.take(processes).collect();
    if hosts.len() < processes {
        return Err(HostsError::TooFew { file: file.into(), hosts: hosts.len(), processes });
    }
    let error_at = |line, reason| HostsError::Line { file: file.into(), line, reason };
    for &(host, line) in &hosts {
        let port = host.rsplit_once(':').filter(|(name, _)| !name.is_empty()).map(|(_, port)| port);
        if !port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0)) {
            return Err(error_at(
                line,
                format!("expected host:port, such as \"10.0.0.7:2101\", not {host:?}"),
            ));
        }
    }
    let since = Instant::now();
    for &(host, line) in &hosts {
        let mut is_logged = false;
        while let Err(error) = host.to_socket_addrs() {
            let reason = format!("cannot resolve the host of {host:?}: {error}");
            if since.elapsed() >= timeout {
                return Err(error_at(line, reason));
            }
            if !std::mem::replace(&mut is_logged, true) {
                tracing::warn!(line, "{reason}; retrying for {} s", timeout.as_secs());
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
    fn errors_name_the_line_of_the_host_file() {
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
                .is_err_and(|error| error.starts_with("hosts, line 1: cannot resolve the host of"))
        );
        assert_eq!(
            read("localhost:2101", 2),
            Err("hosts has 1 hosts for 2 processes: add hosts, or reduce --processes".to_owned())
        );
    }
}
