//! Queries of the live state of a key, answered by the worker that owns it, between its steps.
//!
//! ```text
//!   any thread:  ask ─▶ shard of the key ─▶ worker ── its queue, of bounded length ──▶ worker, between two steps:
//!                wait, up to a timeout ◀──────────── reply, without text ◀──────────── one query ─▶ operators
//! ```
//!
//! A worker takes at most one query between two steps, and spends at most a tenth of its time on them. It never waits: its
//! queue is lock-free to it, and an answer that nobody waits for any more is not computed. A query wakes an idle worker.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use headwater_dataflows::KeyHash;
use thiserror::Error;
use tokio::sync::oneshot;

use crate::event::KeyKind;
use crate::pipeline::{KeyReading, KeyState, States};

/// The maximum number of queries that a worker has not taken.
const QUEUE: usize = 16;

/// The part of a worker's time that queries may take: one in this number. A reader that asks for a hot key all the time
/// cannot slow the run by more.
const TIME_SHARE: u32 = 10;

/// The maximum time for which a worker takes no query after it has answered one. A worker may have been without a
/// processor while it answered.
const MAX_REST: Duration = Duration::from_millis(100);

/// A handle for queries to the workers of this process during a run. Cloning is cheap; all clones are of the same run.
#[derive(Clone, Default)]
pub struct Queries(Arc<Mutex<Option<Workers>>>);

/// The workers of this process.
#[derive(Clone)]
struct Workers {
    /// The index of the first.
    first: usize,
    /// The number of workers in all processes.
    peers: usize,
    queues: Vec<Queue>,
}

/// The queue of a worker.
#[derive(Clone)]
struct Queue {
    sender: SyncSender<Query>,
    /// The thread of the worker, which is woken.
    thread: Arc<OnceLock<Thread>>,
}

struct Query {
    /// The key, with its prefix.
    key: String,
    reply: oneshot::Sender<KeyReading>,
}

/// The reason why there is no answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum QueryError {
    /// The run has not started its workers.
    #[error("the run is starting; ask again once it is ready")]
    Starting,
    /// The worker has ended, with the run or with a failure.
    #[error("worker {worker} has ended, because the run has ended or failed")]
    Ended {
        /// The index of the worker.
        worker: usize,
    },
    /// Another process owns the key.
    #[error("the key belongs to process {process}; ask that process")]
    NotHere {
        /// The index of the process.
        process: usize,
    },
    /// The worker has too many queries.
    #[error("worker {worker} has {QUEUE} queries that it has not answered; ask again later")]
    TooMany {
        /// The index of the worker.
        worker: usize,
    },
    /// The worker did not answer in time.
    #[error("worker {worker} has not answered within {} ms, because it is busy; ask again later", after.as_millis())]
    TimedOut {
        /// The index of the worker.
        worker: usize,
        /// The time.
        after: Duration,
    },
}

impl Queries {
    /// Returns the live state of a key. Waits up to `timeout` for the worker that owns the key. Must be awaited in a tokio
    /// runtime that has timers.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn ask(&self, kind: KeyKind<'_>, key: &str, timeout: Duration) -> Result<KeyState, QueryError> {
        let key = kind.prefixed(key);
        let (worker, answer) = self.send(key)?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(reading)) => Ok(reading.into_state(worker)),
            Ok(Err(_dropped)) => Err(QueryError::Ended { worker }),
            Err(_elapsed) => Err(QueryError::TimedOut { worker, after: timeout }),
        }
    }

    /// Sends a query to the worker that owns a key, given with its prefix. Returns the worker's index, and its answer.
    fn send(&self, key: String) -> Result<(usize, oneshot::Receiver<KeyReading>), QueryError> {
        let Workers { first, peers, queues } = self.workers().ok_or(QueryError::Starting)?;
        let worker = KeyHash::of(key.as_bytes()).shard().worker(peers);
        let Some(queue) = worker.checked_sub(first).and_then(|local| queues.get(local)) else {
            return Err(QueryError::NotHere { process: worker / queues.len().max(1) });
        };
        let (reply, answer) = oneshot::channel();
        match queue.sender.try_send(Query { key, reply }) {
            Ok(()) => {
                queue.thread.get().into_iter().for_each(Thread::unpark);
                Ok((worker, answer))
            }
            Err(TrySendError::Full(_)) => Err(QueryError::TooMany { worker }),
            Err(TrySendError::Disconnected(_)) => Err(QueryError::Ended { worker }),
        }
    }

    /// Returns the workers. Only threads that ask hold the lock; a worker never does.
    fn workers(&self) -> Option<Workers> {
        self.0.lock().expect("no thread panics while it holds the lock").clone()
    }

    /// Opens a queue to each worker of this process, of `peers` in all processes. Returns their ends at the workers.
    pub(super) fn open(&self, own: Range<usize>, peers: usize) -> Vec<Mailbox> {
        let channels = own.clone().map(|worker| {
            let (sender, queries) = sync_channel(QUEUE);
            let thread = Arc::<OnceLock<Thread>>::default();
            (
                Queue { sender, thread: Arc::clone(&thread) },
                Mailbox { worker, queries, thread, rests_until: None },
            )
        });
        let (queues, mailboxes) = channels.unzip();
        let workers = Workers { first: own.start, peers, queues };
        *self.0.lock().expect("no thread panics while it holds the lock") = Some(workers);
        mailboxes
    }
}

/// The queries to one worker. Without it they fail with [`QueryError::Ended`].
pub(super) struct Mailbox {
    worker: usize,
    queries: Receiver<Query>,
    thread: Arc<OnceLock<Thread>>,
    /// The time before which no query is taken; None if there is no such time.
    rests_until: Option<Instant>,
}

impl Mailbox {
    /// Returns the index of the worker.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// Notes that this thread answers, so that queries wake it.
    pub fn answer_here(&self) {
        let _ = self.thread.set(std::thread::current());
    }

    /// Returns true if there may be queries that wait for other work.
    pub fn is_resting(&self) -> bool {
        self.rests_until.is_some()
    }

    /// Answers the next query, if there is one and queries have not taken their share of time. Call it between steps.
    pub fn answer_next(&mut self, states: &States) {
        if self.rests_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.rests_until = None;
        if let Ok(Query { key, reply }) = self.queries.try_recv()
            && !reply.is_closed()
        {
            let begun = Instant::now();
            // An error means that the thread that asked has stopped waiting meanwhile.
            let _ = reply.send(states.read(&key));
            self.rests_until = Some(begun + (TIME_SHARE * begun.elapsed()).min(MAX_REST));
        }
    }
}

#[cfg(test)]
mod tests;
