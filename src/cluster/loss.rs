//! The loss of a process of the cluster.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

use crate::json::rfc3339;

/// A process of the cluster was lost during a run. Its operators' state is gone with it, so the run ends everywhere, and the
/// next start resumes.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "lost process {process} of the cluster, at {address}: {noticed}, and it last sent something at {}; the run ends, and its \
     next start resumes", rfc3339(*.last_heard_ms)
)]
pub struct PeerLost {
    /// The index of the process.
    pub process: usize,
    /// Its address in the host file.
    pub address: String,
    /// The wall time at which the process last sent something.
    pub last_heard_ms: i64,
    /// The evidence of the loss.
    pub noticed: Noticed,
}

/// The evidence that a process is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Noticed {
    /// Its connection was closed, by the process, its operating system or the network.
    Closed(String),
    /// It has sent nothing for the timeout: it hangs, or the network does not carry what it sends.
    Silent(Duration),
    /// It has said that it ends its run, and why.
    Ended(String),
}

impl fmt::Display for Noticed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Noticed::Closed(how) => write!(f, "its connection was closed ({how})"),
            Noticed::Silent(timeout) => {
                write!(f, "no sign of life for {timeout:?} (cluster.heartbeat_timeout)")
            }
            Noticed::Ended(reason) => write!(f, "it has ended its run ({reason})"),
        }
    }
}
