//! Requests to stop a command, and the time limit for stopping.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::{DONE, FAILED};
use crate::metrics::Metrics;

/// The time that a start may continue after a request to stop.
const START_GRACE: Duration = Duration::from_millis(300);

/// The limit of the time for finishing.
pub struct ShutdownLimit {
    /// The time limit, from the first request.
    pub timeout: Duration,
    /// The metrics, which show the sink that does not respond.
    pub metrics: Arc<Metrics>,
}

/// Handles requests to stop. After the first request, the command finishes the records that it has read. A second
/// request, or the end of the time limit, exits the process at once with code 1.
pub fn handle_requests(requests: Receiver<()>, stopping: &Arc<AtomicBool>, limit: Option<ShutdownLimit>) {
    let stopping = Arc::clone(stopping);
    thread::spawn(move || {
        if requests.recv().is_err() {
            return;
        }
        tracing::info!("stopping: finishing the records that were read; a second signal exits at once");
        stopping.store(true, Ordering::Relaxed);
        if let Some(ShutdownLimit { metrics, .. }) = &limit
            && let Some(activity) = pending_start(metrics)
        {
            tracing::info!("stopped while {activity}: no records were read");
            std::process::exit(i32::from(DONE));
        }
        let is_repeated = match &limit {
            None => requests.recv().is_ok(),
            Some(limit) => requests.recv_timeout(limit.timeout).is_ok(),
        };
        if let Some(ShutdownLimit { timeout, metrics }) = limit.filter(|_| !is_repeated) {
            let waited_for = match metrics.committing_longest() {
                Some((sink, since)) => {
                    format!("sink {sink} has not committed for {} s", since.elapsed().as_secs())
                }
                None => "no sink is committing".to_owned(),
            };
            let reason = format!("not finished {timeout:?} after the request to stop: {waited_for}");
            crate::logging::fatal(&reason, FAILED);
        }
        std::process::exit(i32::from(FAILED));
    });
}

/// Returns the current step of the start, if the start does not complete soon. It may be waiting for a server or a
/// process that never responds. As no records were read, there is nothing to finish.
fn pending_start(metrics: &Metrics) -> Option<String> {
    let since = Instant::now();
    loop {
        let activity = metrics.start()?;
        if since.elapsed() >= START_GRACE {
            return Some(activity);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Returns a channel with a request for each SIGTERM or SIGINT.
///
/// # Errors
/// If signals cannot be handled.
pub fn signals() -> std::io::Result<Receiver<()>> {
    let (sender, receiver) = channel();
    send_signals(sender)?;
    Ok(receiver)
}

/// Returns a channel with a request for each SIGTERM or SIGINT, and one when the supervisor at the other end of standard input
/// requests the stop: it writes something to have the run resumed at once, which sets `rescaling` until it closes its end,
/// or only closes its end or exits.
///
/// # Errors
/// If signals cannot be handled.
pub fn signals_and_supervisor(rescaling: Arc<AtomicBool>) -> std::io::Result<Receiver<()>> {
    let (sender, receiver) = channel();
    send_signals(sender.clone())?;
    thread::spawn(move || {
        follow_supervisor(&mut std::io::stdin().lock(), &rescaling, || {
            if rescaling.load(Ordering::Relaxed) {
                tracing::info!(
                    "the supervisor requested the end of this run: the next one has other members"
                );
            } else {
                tracing::info!("the supervisor requested the stop or has exited");
            }
            // The receiver is gone only if the process is about to exit.
            let _ = sender.send(());
        });
    });
    Ok(receiver)
}

/// Calls `request` once, when the supervisor has written something or its end of the pipe is closed.
fn follow_supervisor(pipe: &mut impl Read, rescaling: &AtomicBool, request: impl FnOnce()) {
    let mut request = Some(request);
    // A read error means the same as the end: the other end of the pipe is gone.
    while pipe.read(&mut [0; 64]).is_ok_and(|read| read > 0) {
        rescaling.store(true, Ordering::Relaxed);
        if let Some(request) = request.take() {
            request();
        }
    }
    rescaling.store(false, Ordering::Relaxed);
    if let Some(request) = request {
        request();
    }
}

fn send_signals(sender: Sender<()>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut term, mut int) = {
        let _entered = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
                if sender.send(()).is_err() {
                    return;
                }
            }
        });
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe whose reads return these numbers of bytes; `rescaling` is noted at each.
    struct Pipe<'a> {
        reads: Vec<usize>,
        rescaling: &'a AtomicBool,
        seen: Vec<bool>,
    }

    impl Read for Pipe<'_> {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            self.seen.push(self.rescaling.load(Ordering::Relaxed));
            Ok(self.reads.pop().unwrap_or(0))
        }
    }

    #[test]
    fn a_supervisor_requests_one_stop_and_may_then_want_no_other_run() {
        for (reads, seen) in
            [(vec![], vec![false]), (vec![1], vec![false, true]), (vec![1, 1], vec![false, true, true])]
        {
            let rescaling = AtomicBool::new(false);
            let mut pipe = Pipe { reads, rescaling: &rescaling, seen: Vec::new() };
            let mut requests = 0;
            follow_supervisor(&mut pipe, &rescaling, || requests += 1);
            assert_eq!((requests, pipe.seen), (1, seen));
            assert!(!rescaling.load(Ordering::Relaxed), "its end is closed");
        }
    }
}
