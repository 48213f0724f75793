//! A state store in an object store, which several processes can share. Every object begins with the prefix of the URL and
//! the pipeline's name.
//!
//! ```text
//!   put ─▶ at most CONCURRENCY uploads at a time ─▶ sync: all have been acknowledged, so they are durable
//!   get, list, delete ─▶ after all uploads
//!   each request ─▶ answered │ refused: an error │ no answer: again, with a warning, until `retry_timeout`: an error
//! ```
//!
//! Objects are immutable and have unique names, so that a request which is sent twice is harmless, and neither locks nor
//! conditions are needed.

mod build;
mod config;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt, PutPayload};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

pub use self::config::{Access, ObjectStoreConfig, ObjectUrl, Provider};
use super::{StateError, StateStore};
use crate::client::pooled::RequestFailure;
use headwater_sinks::crash;

/// The number of requests at a time. A request to a distant store takes tens of milliseconds, and a checkpoint has up to
/// 64 parts.
const CONCURRENCY: usize = 16;

/// The longest time for which the requests of an opening are repeated: a start that fails is repeated as a whole.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// The first and the longest pause before a request is repeated.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The time between two warnings that the store does not answer.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// The object that each opening writes, to find out whether it may. It is never deleted, since several processes open a
/// store at the same time.
const MARKER: &str = ".headwater";

/// The content of the marker.
const MARKER_TEXT: &str =
    "Checkpoints of a Headwater pipeline. The program deletes what it no longer needs: nothing else may.\n";

/// A state store in an object store.
pub struct ObjectStore {
    runtime: Runtime,
    bucket: Arc<Bucket>,
    uploads: JoinSet<Result<(), StateError>>,
}

/// The objects of a pipeline.
struct Bucket {
    store: Arc<dyn object_store::ObjectStore>,
    /// The place as messages name it.
    place: String,
    /// The beginning of all names.
    base: Path,
    /// The advice if the store denies access.
    advice: &'static str,
    /// The time for which a request is repeated.
    retry_timeout: Duration,
    outage: Mutex<Outage>,
}

/// The time in which no request was answered.
#[derive(Default)]
struct Outage {
    since: Option<Instant>,
    warned: Option<Instant>,
}

impl ObjectStore {
    /// Connects to an object store, and checks that objects can be written and read.
    ///
    /// # Errors
    /// If they cannot.
    pub fn open(config: &ObjectStoreConfig, pipeline: &str) -> Result<ObjectStore, StateError> {
        build::create_directory(config)?;
        let store = ObjectStore::connect(config, pipeline)?;
        let marker = store.runtime.block_on(async {
            store.bucket.put(MARKER, MARKER_TEXT.as_bytes().to_vec(), OPEN_TIMEOUT).await?;
            store.bucket.get(MARKER, OPEN_TIMEOUT).await
        })?;
        match marker {
            Some(text) if text == MARKER_TEXT.as_bytes() => Ok(store),
            _ => Err(StateError::Refused(format!(
                "{} returns something other than what was just written to {MARKER}, so that checkpoints could not be read \
                 again: use a store with read-after-write consistency, without a cache in front of it",
                store.bucket.place
            ))),
        }
    }

    /// Connects to an object store for reading, without writing to it; None if it does not exist.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open_existing(
        config: &ObjectStoreConfig,
        pipeline: &str,
    ) -> Result<Option<ObjectStore>, StateError> {
        if config.url.provider == Provider::Directory && !std::path::Path::new(&config.url.prefix).exists() {
            return Ok(None);
        }
        let store = ObjectStore::connect(config, pipeline)?;
        store.runtime.block_on(store.bucket.get(MARKER, OPEN_TIMEOUT))?;
        Ok(Some(store))
    }

    fn connect(config: &ObjectStoreConfig, pipeline: &str) -> Result<ObjectStore, StateError> {
        let (place, base) = build::place(config, pipeline);
        let cannot = |source: Box<dyn std::error::Error + Send + Sync>| StateError::Unavailable {
            action: format!("use {place}"),
            source,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| cannot(error.into()))?;
        let bucket = Bucket {
            store: build::store(config).map_err(cannot)?,
            place,
            base,
            advice: build::advice(&config.access),
            retry_timeout: config.retry_timeout,
            outage: Mutex::default(),
        };
        Ok(ObjectStore { runtime, bucket: Arc::new(bucket), uploads: JoinSet::new() })
    }

    /// Waits until at most `pending` uploads are not acknowledged.
    fn wait_for_uploads(&mut self, pending: usize) -> Result<(), StateError> {
        while self.uploads.len() > pending {
            let ended = self.runtime.block_on(self.uploads.join_next());
            match ended.expect("an upload is pending") {
                Ok(outcome) => outcome?,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        Ok(())
    }
}

impl StateStore for ObjectStore {
    fn put(&mut self, name: &str, blob: &[u8]) -> Result<(), StateError> {
        self.wait_for_uploads(CONCURRENCY - 1)?;
        let (bucket, name, blob) = (Arc::clone(&self.bucket), name.to_owned(), blob.to_vec());
        let upload = async move { bucket.put(&name, blob, bucket.retry_timeout).await };
        self.uploads.spawn_on(upload, self.runtime.handle());
        Ok(())
    }

    fn get(&mut self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        self.wait_for_uploads(0)?;
        self.runtime.block_on(self.bucket.get(name, self.bucket.retry_timeout))
    }

    fn get_all(&mut self, names: &[String]) -> Result<Vec<Option<Vec<u8>>>, StateError> {
        self.wait_for_uploads(0)?;
        let blobs = stream::iter(names)
            .map(|name| self.bucket.get(name, self.bucket.retry_timeout))
            .buffered(CONCURRENCY)
            .try_collect();
        self.runtime.block_on(blobs)
    }

    fn delete(&mut self, name: &str) -> Result<(), StateError> {
        self.wait_for_uploads(0)?;
        self.runtime.block_on(self.bucket.delete(name))
    }

    fn delete_all(&mut self, names: &[String]) -> Result<(), StateError> {
        self.wait_for_uploads(0)?;
        let deletions =
            stream::iter(names).map(|name| self.bucket.delete(name)).buffer_unordered(CONCURRENCY);
        let all = deletions.fold(Ok(()), |all, one| async {
            crash::point("part.deleted");
            all.and(one)
        });
        self.runtime.block_on(all)
    }

    fn list(&mut self, prefix: &str) -> Result<Vec<String>, StateError> {
        self.wait_for_uploads(0)?;
        self.runtime.block_on(self.bucket.list(prefix))
    }

    /// An object store acknowledges an upload once it is durable, and a directory is synced with each file. This waits for
    /// all uploads.
    fn sync(&mut self) -> Result<(), StateError> {
        self.wait_for_uploads(0)
    }
}

impl Bucket {
    async fn put(&self, name: &str, blob: Vec<u8>, limit: Duration) -> Result<(), StateError> {
        let (action, path, payload) = (format!("put {name}"), self.path(name), PutPayload::from(blob));
        let stored = self.repeat(&action, limit, || self.store.put(&path, payload.clone())).await;
        stored.map(drop).map_err(|error| self.error_of(&action, error))
    }

    async fn get(&self, name: &str, limit: Duration) -> Result<Option<Vec<u8>>, StateError> {
        let (action, path) = (format!("get {name}"), self.path(name));
        let read = || async { self.store.get(&path).await?.bytes().await };
        match self.repeat(&action, limit, read).await {
            Ok(blob) => Ok(Some(blob.into())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error_of(&action, error)),
        }
    }

    async fn delete(&self, name: &str) -> Result<(), StateError> {
        let (action, path) = (format!("delete {name}"), self.path(name));
        match self.repeat(&action, self.retry_timeout, || self.store.delete(&path)).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.error_of(&action, error)),
        }
    }

    /// Returns the names that begin with a prefix, in order. A store lists whole folders.
    async fn list(&self, prefix: &str) -> Result<Vec<String>, StateError> {
        let folder = self.path(prefix.rsplit_once('/').map_or("", |(folder, _)| folder));
        let action = "list the blobs";
        let read =
            || self.store.list(Some(&folder)).map_ok(|found| found.location).try_collect::<Vec<Path>>();
        let found = self.repeat(action, self.retry_timeout, read).await;
        let found = found.map_err(|error| self.error_of(action, error))?;
        let base = format!("{}/", self.base);
        let names = found.iter().filter_map(|path| path.as_ref().strip_prefix(&base));
        let mut names: Vec<String> =
            names.filter(|name| name.starts_with(prefix) && *name != MARKER).map(str::to_owned).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn path(&self, name: &str) -> Path {
        match name {
            "" => self.base.clone(),
            name => Path::from(format!("{}/{name}", self.base)),
        }
    }

    /// Sends a request until it is answered, for at most this time.
    async fn repeat<T, F: Future<Output = Result<T, Error>>>(
        &self,
        action: &str,
        limit: Duration,
        mut request: impl FnMut() -> F,
    ) -> Result<T, Error> {
        let (start, (mut pause, longest)) = (Instant::now(), PAUSES);
        loop {
            let outcome = request().await;
            let transient = match &outcome {
                Err(error) => RequestFailure::cause_of(error).filter(|failure| failure.is_transient()),
                Ok(_) => None,
            };
            let Some(failure) = transient else {
                self.note_answer();
                return outcome;
            };
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return outcome;
            }
            self.note_failure(action, failure, left);
            tokio::time::sleep(pause.min(left)).await;
            pause = longest.min(pause * 2);
        }
    }

    /// Logs that requests are repeated, now and then.
    fn note_failure(&self, action: &str, failure: &RequestFailure, left: Duration) {
        let mut outage = self.outage.lock().expect("no thread panics while it holds the lock");
        outage.since.get_or_insert_with(Instant::now);
        if outage.warned.is_none_or(|warned| warned.elapsed() >= WARNING_INTERVAL) {
            outage.warned = Some(Instant::now());
            tracing::warn!(
                place = self.place, %failure,
                "state store: cannot {action}; trying again for {} s, and checkpoints wait", left.as_secs().max(1)
            );
        }
    }

    /// Logs that requests are answered again.
    fn note_answer(&self) {
        let mut outage = self.outage.lock().expect("no thread panics while it holds the lock");
        let Outage { since, .. } = std::mem::take(&mut *outage);
        if let Some(since) = since {
            let seconds = since.elapsed().as_secs();
            tracing::info!(place = self.place, "state store: answers again after {seconds} s");
        }
    }

    fn error_of(&self, action: &str, error: Error) -> StateError {
        let source = match RequestFailure::cause_of(&error) {
            // The addresses at which clouds serve credentials.
            Some(failure) if build::is_metadata(failure) => {
                format!("no credentials: {failure}: {}", self.advice).into()
            }
            Some(failure) if failure.is_denied() => format!("{failure}: {}", self.advice).into(),
            Some(failure) => failure.clone().into(),
            None => error.into(),
        };
        StateError::Unavailable { action: format!("{action} in {}", self.place), source }
    }
}
