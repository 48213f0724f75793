//! How a command is asked to end, and how long it may take over it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::{DONE, FAILED};
use crate::metrics::Metrics;

/// How long a start may go on once it is asked to stop.
const START: Duration = Duration::from_millis(300);

/// How long finishing may take.
pub struct Bound {
    /// Counted from the first request.
    pub drain: Duration,
    /// They know which sink it is that does not answer.
    pub metrics: Arc<Metrics>,
}

/// The first request has the command finish what it has read; a second one ends the process at once, with exit code 1,
/// and so does the end of the bound, if there is one.
pub fn on(requests: Receiver<()>, stopping: &Arc<AtomicBool>, bound: Option<Bound>) {
    let stopping = Arc::clone(stopping);
    thread::spawn(move || {
        if requests.recv().is_err() {
            return;
        }
        tracing::info!("stopping: finishing what was read; a second signal ends at once");
        stopping.store(true, Ordering::Relaxed);
        if let Some(Bound { metrics, .. }) = &bound
            && let Some(what) = still_starting(metrics)
        {
            tracing::info!("stopped while {what}: nothing was read");
            std::process::exit(i32::from(DONE));
        }
        let again = match &bound {
            None => requests.recv().is_ok(),
            Some(bound) => requests.recv_timeout(bound.drain).is_ok(),
        };
        if let Some(Bound { drain, metrics }) = bound.filter(|_| !again) {
            let waited_for = match metrics.committing_longest() {
                Some((sink, since)) => {
                    format!("sink {sink} has not committed for {} s", since.elapsed().as_secs())
                }
                None => "no sink is committing".to_owned(),
            };
            let reason = format!("not finished {drain:?} after it was asked to stop: {waited_for}");
            crate::logging::fatal(&reason, FAILED);
        }
        std::process::exit(i32::from(FAILED));
    });
}

/// What the start is about, if it does not come to its end soon. It may wait for a server or a process that never answers;
/// as nothing was read, there is nothing to finish.
fn still_starting(metrics: &Metrics) -> Option<String> {
    let since = Instant::now();
    loop {
        let what = metrics.start()?;
        if since.elapsed() >= START {
            return Some(what);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A request for each SIGTERM or SIGINT from now on.
///
/// # Errors
/// If signals cannot be handled.
pub fn signals() -> std::io::Result<Receiver<()>> {
    let (sender, receiver) = channel();
    send_signals(sender)?;
    Ok(receiver)
}

/// The same, and one more when the standard input ends: with it ends the process that holds its other end.
///
/// # Errors
/// If signals cannot be handled.
pub fn signals_and_end_of_input() -> std::io::Result<Receiver<()>> {
    let (sender, receiver) = channel();
    send_signals(sender.clone())?;
    thread::spawn(move || {
        // Whatever comes is of no interest, and a pipe that cannot be read has nobody at its other end.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        tracing::info!("the supervisor has let go of this process");
        // Nobody listens any more only if the process is about to end.
        let _ = sender.send(());
    });
    Ok(receiver)
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
