//! `run --restart`: the process runs a child that does the work, and starts it again when it fails.
//!
//! The child's standard input is a pipe that nothing is written to. Its end is the request to stop: the supervisor lets go
//! of it when it is asked to stop itself, and the system does when the supervisor is killed, so that no child runs on that
//! nobody looks after.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{DONE, FAILED, REFUSED, USAGE, stop};

/// Tells the child that it is one, and how often it has been started again.
pub const RESTARTS: &str = "HEADWATER_RESTARTS";

/// The first pause before a restart; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// No pause is longer. After a run of this length the next pause is the first one again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How often the child is asked whether it still runs.
const LOOK: Duration = Duration::from_millis(50);

/// Runs this program with these arguments until it succeeds, fails for good, or is asked to stop. Returns the exit code
/// of its last run; 1 if a signal ended that.
///
/// # Errors
/// If the program cannot be started, or signals cannot be handled.
pub fn supervise(arguments: &[OsString]) -> anyhow::Result<u8> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let requests = stop::signals().context("cannot handle signals")?;
    let (mut pause, mut restarts) = (FIRST_PAUSE, 0_u64);
    loop {
        let begun = Instant::now();
        let mut child = Command::new(&program)
            .args(arguments)
            .env(RESTARTS, restarts.to_string())
            .stdin(Stdio::piped())
            // A terminal's SIGINT goes to the whole group: the child is to be asked once.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        tracing::info!(pid = child.id(), restarts, "supervising");
        let (status, asked_to_stop) = wait(&mut child, &requests)?;
        let code = code(status);
        if asked_to_stop || code != FAILED {
            return Ok(code);
        }
        if begun.elapsed() >= LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        restarts += 1;
        tracing::warn!(reason = %status, restarts, ?pause, "the run failed and is started again after a pause");
        if requests.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
            return Ok(FAILED);
        }
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Waits for the child's end, and says whether it was asked for. The first request is passed on; a second one kills.
fn wait(child: &mut Child, requests: &Receiver<()>) -> std::io::Result<(ExitStatus, bool)> {
    // Until it is dropped, the child goes on.
    let mut pipe = child.stdin.take();
    let mut asked_to_stop = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, asked_to_stop));
        }
        if requests.recv_timeout(LOOK).is_ok() {
            asked_to_stop = true;
            match pipe.take() {
                Some(pipe) => drop(pipe),
                None => child.kill()?,
            }
        }
    }
}

/// The exit code for a child that ended so. Whatever is not decided for good counts as a failure.
fn code(status: ExitStatus) -> u8 {
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code @ (DONE | USAGE | REFUSED)) => code,
        _ => FAILED,
    }
}
