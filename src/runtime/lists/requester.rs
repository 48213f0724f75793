//! The thread that brings new contents of lists into force, one version after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use headwater_sinks::crash;

use super::{ListReaders, ReadContents, STEP, Shared};
use crate::coordination::{Change, ListVersion};
use crate::runtime::checkpoint::writer::CheckpointWriterHandle;
use crate::runtime::ingest::changes::{ChangeRequest, ChangeRequests, Contents};

/// The minimum time between two versions of the lists.
const EVERY: Duration = Duration::from_secs(1);

/// The thread. It ends when this is dropped.
pub struct Requester {
    readers: ListReaders,
    thread: Option<JoinHandle<()>>,
}

struct Requests {
    shared: Arc<Shared>,
    /// The contents that were requested last.
    requested: Vec<ListVersion>,
    requests: ChangeRequests,
    store: Option<CheckpointWriterHandle>,
    stopping: Arc<AtomicBool>,
}

/// The run ends.
struct Ended;

impl Requester {
    /// Starts the thread. `newest` is in force after the replay; `store` keeps the contents that a start may need.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(
        readers: ListReaders,
        newest: Vec<ListVersion>,
        requests: ChangeRequests,
        store: Option<CheckpointWriterHandle>,
    ) -> std::io::Result<Requester> {
        let (shared, stopping) = (Arc::clone(&readers.shared), Arc::clone(&readers.stopping));
        let mut state = Requests { shared, requested: newest, requests, store, stopping };
        let thread = std::thread::Builder::new().name("lists".into()).spawn(move || state.run())?;
        Ok(Requester { readers, thread: Some(thread) })
    }
}

impl Drop for Requester {
    fn drop(&mut self) {
        self.readers.stopping.store(true, Ordering::Relaxed);
        // A panic of the thread was logged; the lists keep their contents.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Requests {
    fn run(&mut self) {
        loop {
            let begun = Instant::now();
            for contents in self.new_contents() {
                if let Err(Ended) = self.request(contents) {
                    return;
                }
            }
            while begun.elapsed() < EVERY {
                if self.stopping.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(STEP);
            }
        }
    }

    /// Returns the contents that were read and not requested.
    fn new_contents(&self) -> Vec<ReadContents> {
        let is_new = |read: &&ReadContents| {
            let requested = self.requested.iter().rev().find(|version| version.name == read.name);
            requested.is_none_or(|version| version.hash != read.hash)
        };
        self.shared.locked().iter().flatten().filter(is_new).cloned().collect()
    }

    /// Makes contents durable, and then requests that they come into force; returns when they are bound to an epoch.
    fn request(&mut self, read: ReadContents) -> Result<(), Ended> {
        let ReadContents { hash, bytes, .. } = &read;
        if let Some(store) = &self.store {
            store.put_contents(*hash, Arc::clone(bytes)).map_err(|_| Ended)?;
        }
        let (bound, is_bound) = sync_channel(1);
        let version = read.version();
        let lists = vec![version.clone()];
        let make = Box::new(move |_: &_| Change { lists, ..Change::default() });
        let contents = vec![Contents { hash: *hash, bytes: Arc::clone(bytes) }];
        self.requests.add(ChangeRequest { make, contents, bound });
        crash::point("lists.requested");
        let in_force = loop {
            match is_bound.recv_timeout(STEP) {
                Ok(in_force) => break in_force,
                Err(RecvTimeoutError::Timeout) if !self.stopping.load(Ordering::Relaxed) => {}
                Err(_) => return Err(Ended),
            }
        };
        crash::point("lists.bound");
        tracing::info!(
            list = version.name, entries = read.table.len(), after = %in_force.since.epoch,
            "new contents of the list come into force"
        );
        self.requested.retain(|requested| requested.name != version.name);
        self.requested.push(version);
        Ok(())
    }
}
