//! `run --restart`: runs the pipeline in a child process and restarts the child when it fails.
//!
//! The child's standard input is a pipe. The child stops when the pipe closes: the supervisor closes it on a request to stop, and
//! the operating system closes it if the supervisor is killed, so that no child keeps running unsupervised. A byte in the
//! pipe also stops it, and says that it is to be resumed at once.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{DONE, FAILED, REFUSED, USAGE, stop};

/// The environment variable of a child process with the number of restarts. Its presence marks the process as a child.
pub const RESTARTS_VARIABLE: &str = "HEADWATER_RESTARTS";

/// The delay before a restart after a run that failed soon; each further delay is twice as long.
const MIN_DELAY: Duration = Duration::from_secs(1);

/// The maximum delay.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// A run of at least this length is restarted without a delay, and earlier failures are forgotten: what ended it came from
/// outside and may be over, such as a lost process of the cluster, whose other processes wait for this one.
const STEADY: Duration = Duration::from_secs(10);

/// The interval of polling the child's exit status.
pub const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The program of this process with the arguments of a run, which child processes execute.
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    restarts: u64,
    /// The delay before the next restart, unless the run is steady.
    delay: Duration,
}

impl Program {
    /// Returns this program with these arguments.
    ///
    /// # Errors
    /// If its path cannot be determined.
    pub fn new(arguments: Vec<OsString>) -> anyhow::Result<Program> {
        let path = std::env::current_exe().context("cannot determine the path of this program")?;
        Ok(Program { path, arguments, restarts: 0, delay: MIN_DELAY })
    }

    /// Starts the program in a child process with these variables.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self, variables: &[(&str, String)]) -> anyhow::Result<Run> {
        let mut child = Command::new(&self.path)
            .args(&self.arguments)
            .env(RESTARTS_VARIABLE, self.restarts.to_string())
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            // A terminal sends SIGINT to the whole process group; in its own group the child gets only one request.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", self.path.display()))?;
        tracing::info!(pid = child.id(), restarts = self.restarts, "supervising");
        let pipe = child.stdin.take();
        Ok(Run { child, pipe, started: Instant::now() })
    }

    /// Counts a failure of this run. Returns the delay before the next one.
    pub fn failed(&mut self, run: &Run, status: ExitStatus) -> Duration {
        self.restarts += 1;
        let pause = self.next_delay(run.started.elapsed());
        let when = if pause.is_zero() { "now".to_owned() } else { format!("in {} s", pause.as_secs()) };
        tracing::warn!(reason = %status, restarts = self.restarts, "the run failed; restarting it {when}");
        pause
    }

    /// Returns the delay after a run that failed after this time.
    fn next_delay(&mut self, ran: Duration) -> Duration {
        if ran >= STEADY {
            self.delay = Duration::ZERO;
        }
        let pause = self.delay;
        self.delay = (2 * pause).clamp(MIN_DELAY, MAX_DELAY);
        pause
    }
}

/// A run in a child process. A run that is dropped is killed.
pub struct Run {
    child: Child,
    /// The child runs until this pipe is dropped.
    pipe: Option<ChildStdin>,
    started: Instant,
}

impl Run {
    /// Requests the child to stop, or kills it if that was requested before.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn stop(&mut self) -> std::io::Result<()> {
        match self.pipe.take() {
            Some(pipe) => {
                drop(pipe);
                Ok(())
            }
            None => self.kill(),
        }
    }

    /// Kills the child.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(&mut self) -> std::io::Result<()> {
        self.child.kill()
    }

    /// Requests the child to stop, to be resumed at once. A later [`stop`](Run::stop) says that it is not.
    pub fn rescale(&mut self) {
        // If the child has ended, its status says so.
        let _ = self.pipe.as_mut().map(|pipe| pipe.write_all(b"\n"));
    }

    /// Returns the status of the child if it has ended.
    ///
    /// # Errors
    /// If the status cannot be read.
    pub fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // After the end of the child both have no effect.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs this program with these arguments until it succeeds, fails permanently, or is requested to stop. Returns the
/// exit code of the last run; 1 if a signal ended it.
///
/// # Errors
/// If the program cannot be started, or signals cannot be handled.
pub fn supervise(arguments: Vec<OsString>) -> anyhow::Result<u8> {
    let mut program = Program::new(arguments)?;
    let requests = stop::signals().context("cannot handle signals")?;
    loop {
        let mut run = program.start(&[])?;
        let mut is_stopping = false;
        let status = loop {
            if let Some(status) = run.ended()? {
                break status;
            }
            if requests.recv_timeout(POLL_INTERVAL).is_ok() {
                is_stopping = true;
                run.stop()?;
            }
        };
        let code = code(status);
        if is_stopping || code != FAILED {
            return Ok(code);
        }
        let delay = program.failed(&run, status);
        if requests.recv_timeout(delay) != Err(RecvTimeoutError::Timeout) {
            return Ok(FAILED);
        }
    }
}

/// Returns the exit code for the status of a child. A status that is not final counts as a failure.
pub fn code(status: ExitStatus) -> u8 {
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code @ (DONE | USAGE | REFUSED)) => code,
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_runs_that_fail_soon_wait_for_their_restart() {
        let mut program = Program::new(Vec::new()).expect("the program has a path");
        let mut after = |seconds| program.next_delay(Duration::from_secs(seconds)).as_secs();
        assert_eq!([0, 9, 9, 9].map(&mut after), [1, 2, 4, 8]);
        assert_eq!([10, 0, 1, 3600, 5].map(&mut after), [0, 1, 2, 0, 1]);
        assert_eq!([0; 8].map(&mut after), [2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
