//! The identity of a process, which it proves to the others before they exchange anything.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The properties that decide whether two processes can run one pipeline together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The name of the pipeline.
    pub pipeline: String,
    /// The version of the program.
    pub version: String,
    /// The fingerprint of the program.
    pub binary: String,
    /// The fingerprint of the settings that the results depend on.
    pub config: String,
    /// The number of processes.
    pub processes: usize,
    /// The number of workers of each process.
    pub workers: usize,
    /// The index of the process.
    pub process: usize,
    /// The generation of the start; None in a process that has not received it from the first one.
    pub generation: Option<u64>,
}

impl Identity {
    /// Returns the reason why these two processes cannot run together, in words that both of them can log; None if they
    /// can.
    pub fn objection(&self, other: &Identity) -> Option<String> {
        let (one, two) = (self.process, other.process);
        let differ = |what: &str, own: &str, others: &str, remedy: &str| {
            Some(format!("process {one} has {what} {own}, and process {two} has {others}: {remedy}"))
        };
        let same_settings = "start all processes with the same configuration";
        if self.pipeline != other.pipeline {
            return differ("the pipeline", &self.pipeline, &other.pipeline, same_settings);
        }
        if (self.processes, self.workers) != (other.processes, other.workers) {
            let size = |of: &Identity| format!("{} processes of {} workers", of.processes, of.workers);
            let (own, others) = (size(self), size(other));
            return differ("a cluster of", &own, &others, "start all processes with the same -n and -w");
        }
        if self.binary != other.binary {
            let program = |of: &Identity| format!("{} ({})", of.version, short(&of.binary));
            let (own, others) = (program(self), program(other));
            return differ("the program", &own, &others, "start all processes with the same program");
        }
        if self.config != other.config {
            let (own, others) = (short(&self.config), short(&other.config));
            return differ("the configuration", own, others, same_settings);
        }
        None
    }
}

/// Returns the beginning of a fingerprint, which is enough to compare two by eye.
fn short(fingerprint: &str) -> &str {
    fingerprint.get(..12).unwrap_or(fingerprint)
}

/// Returns the SHA-256 of some bytes, in hexadecimal.
pub fn fingerprint(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns what stands for a program that cannot be read.
#[cfg(not(feature = "abomonation"))]
fn unread(error: &std::io::Error) -> String {
    tracing::warn!(%error, "cannot read this program: other processes compare its version only");
    fingerprint(env!("CARGO_PKG_VERSION").as_bytes())
}

/// Returns what stands for a program that cannot be read: no other process has the same, because the form of events between
/// processes is that of one program only.
#[cfg(feature = "abomonation")]
fn unread(error: &std::io::Error) -> String {
    tracing::error!(%error, "cannot read this program: with the feature abomonation no other process can be the same");
    fingerprint(&getrandom::u64().expect("the system has random numbers").to_le_bytes())
}

/// Returns the fingerprint of this program. It is computed once.
pub fn of_program() -> &'static str {
    static PROGRAM: LazyLock<String> = LazyLock::new(|| {
        // On Linux, this link leads to the program that runs, even if its file was replaced.
        let running = std::path::Path::new("/proc/self/exe");
        let read = if running.exists() {
            std::fs::read(running)
        } else {
            std::env::current_exe().and_then(std::fs::read)
        };
        read.map(|bytes| fingerprint(&bytes)).unwrap_or_else(|error| unread(&error))
    });
    &PROGRAM
}
