//! The readers of lists, in the first process, and what brings their contents into force.
//!
//! ```text
//!   one thread a list: read ─▶ contents, if new ─┬─ at a start ──▶ recovery::lists
//!                                                └─ requester ───▶ state store, durable ─▶ ChangeRequest ─▶ bound to an epoch
//! ```
//!
//! A list that cannot be read keeps its contents: the run goes on, and the log, the metrics and the API say so.

mod requester;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

pub use self::requester::Requester;
use crate::config::ListConfig;
use crate::connectors::{ListReader, ListReading};
use crate::coordination::ListVersion;
use crate::lists::{List, Lists, Table, encode, hash};
use crate::wall::wall_ms;

/// The maximum time that a thread sleeps until it looks whether the run ends.
const STEP: Duration = Duration::from_millis(100);

/// The time after which an error that goes on is logged again.
const LOG_EVERY: Duration = Duration::from_secs(300);

/// Contents that were read.
#[derive(Clone)]
pub struct ReadContents {
    /// The name of the list.
    pub name: String,
    /// Their hash.
    pub hash: [u8; 32],
    /// The contents.
    pub bytes: Arc<Vec<u8>>,
    /// The contents, for lookups. They are at hand as long as this exists.
    pub table: Arc<Table>,
}

impl ReadContents {
    /// Returns what the record of an epoch has of the contents.
    pub fn version(&self) -> ListVersion {
        ListVersion { name: self.name.clone(), hash: self.hash, bytes: self.bytes.len() as u64 }
    }
}

/// The contents that the threads have read.
struct Shared {
    /// By list; None before the first reading.
    read: Mutex<Vec<Option<ReadContents>>>,
    changed: Condvar,
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, Vec<Option<ReadContents>>> {
        self.read.lock().expect("no thread panics while it holds the lock")
    }
}

/// The threads that read lists. They end soon after this is dropped, without being waited for: a request may be under way.
pub struct ListReaders {
    waits: Vec<Duration>,
    begun: Instant,
    shared: Arc<Shared>,
    stopping: Arc<AtomicBool>,
    /// True once the run is asked to stop.
    stopped: Arc<AtomicBool>,
}

impl Drop for ListReaders {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

impl ListReaders {
    /// Starts to read lists. `stopped` is set when the run is asked to stop.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(
        configs: &[ListConfig],
        lists: &Lists,
        stopped: &Arc<AtomicBool>,
    ) -> std::io::Result<ListReaders> {
        let shared =
            Arc::new(Shared { read: Mutex::new(vec![None; configs.len()]), changed: Condvar::new() });
        let stopping = Arc::new(AtomicBool::new(false));
        let readers = ListReaders {
            waits: configs.iter().map(|config| config.wait).collect(),
            begun: Instant::now(),
            shared: Arc::clone(&shared),
            stopping: Arc::clone(&stopping),
            stopped: Arc::clone(stopped),
        };
        for (at, config) in configs.iter().enumerate() {
            let list = lists.get(&config.name).expect("each list of a configuration is in its registry");
            let reader = config.reader(&stopping);
            let mut following = Following::new(config.clone(), Arc::clone(list));
            let (shared, stopping) = (Arc::clone(&shared), Arc::clone(&stopping));
            let name = format!("list {}", config.name);
            std::thread::Builder::new()
                .name(name)
                .spawn(move || following.run(at, reader, &shared, &stopping))?;
        }
        Ok(readers)
    }

    /// Waits until each list was read once, or its time is over, and returns what was read.
    pub fn first(&self) -> Vec<ReadContents> {
        let mut read = self.shared.locked();
        loop {
            let elapsed = self.begun.elapsed();
            let waits =
                read.iter().zip(&self.waits).filter(|(read, wait)| read.is_none() && **wait > elapsed);
            let waits = waits.map(|(_, wait)| *wait - elapsed).max();
            match waits.filter(|_| !self.stopped.load(Ordering::Relaxed)) {
                None => return read.iter().flatten().cloned().collect(),
                Some(left) => {
                    let waited = self.shared.changed.wait_timeout(read, left.min(STEP));
                    read = waited.expect("no thread panics while it holds the lock").0;
                }
            }
        }
    }
}

/// A list that is read again and again.
struct Following {
    config: ListConfig,
    list: Arc<List>,
    hash: Option<[u8; 32]>,
    /// The reason why what was read last is not used.
    unused: Option<String>,
    /// The error that was logged last, and when.
    logged: Option<(String, Instant)>,
}

impl Following {
    fn new(config: ListConfig, list: Arc<List>) -> Following {
        list.note(|health| {
            health.is_reader = true;
            health.source = config.source.to_string();
        });
        Following { config, list, hash: None, unused: None, logged: None }
    }

    fn run(&mut self, at: usize, mut reader: Box<dyn ListReader>, shared: &Shared, stopping: &AtomicBool) {
        while !stopping.load(Ordering::Relaxed) {
            let read = reader.read().and_then(|reading| self.take(reading));
            if stopping.load(Ordering::Relaxed) {
                return;
            }
            match read {
                Ok(contents) => {
                    self.succeeded();
                    if let Some(contents) = contents {
                        shared.locked()[at] = Some(contents);
                    }
                    shared.changed.notify_all();
                }
                Err(error) => self.failed(error),
            }
            let until = Instant::now() + reader.pause();
            while !stopping.load(Ordering::Relaxed) && Instant::now() < until {
                std::thread::sleep(STEP.min(until.saturating_duration_since(Instant::now())));
            }
        }
    }

    /// Returns the contents that were read, if they are new.
    fn take(&mut self, reading: ListReading) -> Result<Option<ReadContents>, String> {
        let ListReading { entries, refused, warnings } = reading;
        for warning in warnings {
            tracing::warn!(list = self.list.name(), "{warning}");
        }
        if refused > 0 {
            tracing::debug!(list = self.list.name(), refused, "malformed entries are left out");
        }
        self.list.note(|health| health.refused = refused);
        let Some(entries) = entries else { return self.unused.clone().map_or(Ok(None), Err) };
        let checked = self.config.bounds.check_entries(entries.len()).and_then(|()| {
            let bytes = encode(self.list.schema(), &entries);
            self.config.bounds.check_bytes(bytes.len()).map(|()| bytes)
        });
        self.unused = checked.as_ref().err().cloned();
        let bytes = checked?;
        let hash = hash(&bytes);
        if self.hash == Some(hash) {
            return Ok(None);
        }
        self.hash = Some(hash);
        let table = Arc::new(Table::new(entries));
        self.list.keep_at_hand(hash, &table);
        Ok(Some(ReadContents { name: self.config.name.clone(), hash, bytes: Arc::new(bytes), table }))
    }

    fn succeeded(&mut self) {
        if self.logged.take().is_some() {
            tracing::info!(list = self.list.name(), source = %self.config.source, "the list is read again");
        }
        self.list.note(|health| {
            health.read_ms = Some(wall_ms());
            health.error = None;
        });
    }

    fn failed(&mut self, error: String) {
        let is_known = self.logged.as_ref().is_some_and(|(logged, at)| {
            // The places of errors differ, as ports do.
            *logged == error && at.elapsed() < LOG_EVERY
        });
        if !is_known {
            tracing::warn!(
                list = self.list.name(), source = %self.config.source, error,
                "cannot read the list: it keeps its contents"
            );
            self.logged = Some((error.clone(), Instant::now()));
        }
        self.list.note(|health| {
            health.errors += 1;
            health.error = Some(error);
        });
    }
}
