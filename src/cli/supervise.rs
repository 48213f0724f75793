//! `run --restart`: runs the pipeline in a child process and restarts the child when it fails.
//!
//! The child's standard input is a pipe to which nothing is written. The child stops when the pipe closes: the
//! supervisor closes it on a request to stop, and the operating system closes it if the supervisor is killed, so that
//! no child keeps running unsupervised.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{DONE, FAILED, REFUSED, USAGE, stop};

/// The environment variable of a child process with the number of restarts. Its presence marks the process as a child.
pub const RESTARTS_VARIABLE: &str = "HEADWATER_RESTARTS";

/// The delay before the first restart; each further delay is twice as long.
const MIN_DELAY: Duration = Duration::from_secs(1);

/// The maximum delay. After a run of at least this length, the delay is reset.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// The interval of polling the child's exit status.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Runs this program with these arguments until it succeeds, fails permanently, or is requested to stop. Returns the
/// exit code of the last run; 1 if a signal ended it.
///
/// # Errors
/// If the program cannot be started, or signals cannot be handled.
pub fn supervise(arguments: &[OsString]) -> anyhow::Result<u8> {
    let program = std::env::current_exe().context("cannot determine the path of this program")?;
    let requests = stop::signals().context("cannot handle signals")?;
    let (mut delay, mut restarts) = (MIN_DELAY, 0_u64);
    loop {
        let started = Instant::now();
        let mut child = Command::new(&program)
            .args(arguments)
            .env(RESTARTS_VARIABLE, restarts.to_string())
            .stdin(Stdio::piped())
            // A terminal sends SIGINT to the whole process group; in its own group the child gets only one request.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        tracing::info!(pid = child.id(), restarts, "supervising");
        let (status, is_stopping) = wait(&mut child, &requests)?;
        let code = code(status);
        if is_stopping || code != FAILED {
            return Ok(code);
        }
        if started.elapsed() >= MAX_DELAY {
            delay = MIN_DELAY;
        }
        restarts += 1;
        tracing::warn!(reason = %status, restarts, pause = ?delay, "the run failed; restarting it after a pause");
        if requests.recv_timeout(delay) != Err(RecvTimeoutError::Timeout) {
            return Ok(FAILED);
        }
        delay = (2 * delay).min(MAX_DELAY);
    }
}

/// Waits for the child to exit; the boolean is true if a stop was requested. The first request is forwarded to the
/// child; a second one kills it.
fn wait(child: &mut Child, requests: &Receiver<()>) -> std::io::Result<(ExitStatus, bool)> {
    // The child runs until this pipe is dropped.
    let mut pipe = child.stdin.take();
    let mut is_stopping = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, is_stopping));
        }
        if requests.recv_timeout(POLL_INTERVAL).is_ok() {
            is_stopping = true;
            match pipe.take() {
                Some(pipe) => drop(pipe),
                None => child.kill()?,
            }
        }
    }
}

/// Returns the exit code for the status of a child. A status that is not final counts as a failure.
fn code(status: ExitStatus) -> u8 {
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code @ (DONE | USAGE | REFUSED)) => code,
        _ => FAILED,
    }
}
