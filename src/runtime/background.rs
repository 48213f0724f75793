//! Background threads: each is named, reports its failure, and wakes the operators that wait for what it publishes.

use std::sync::Mutex;
use std::thread::JoinHandle;

use timely::scheduling::activate::SyncActivator;

use super::failure::{Failure, RunError};

/// The operators that wait for a thread.
#[derive(Default)]
pub struct Waiters(Mutex<Vec<SyncActivator>>);

impl Waiters {
    /// Adds an operator.
    pub fn add(&self, activator: SyncActivator) {
        self.0.lock().expect("no thread panics while it holds the lock").push(activator);
    }

    /// Activates all operators, after something was published.
    pub fn wake(&self) {
        for activator in self.0.lock().expect("no thread panics while it holds the lock").iter() {
            // The activation fails only if the worker has shut down.
            let _ = activator.activate();
        }
    }
}

/// Starts a thread that returns what `run` returns, and reports its error as the failure of the run.
///
/// # Errors
/// If the operating system cannot start a thread.
pub fn spawn<T: Send + 'static>(
    name: String,
    failure: Failure,
    run: impl FnOnce() -> (T, Result<(), RunError>) + Send + 'static,
) -> std::io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name).spawn(move || {
        let (returned, result) = run();
        if let Err(error) = result {
            failure.report(error);
        }
        returned
    })
}
