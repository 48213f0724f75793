//! Lists: sets and tables that conditions of rules look values up in.
//!
//! ```text
//!   file, topic, query ─▶ Entries ─▶ Change, bound to an epoch ─▶ List: versions ─▶ cel: x in lists.blocked, by position
//! ```
//!
//! A list has versions: each is in force for the events from a position on, so an event is judged by the contents that were
//! in force when it was admitted, now and whenever it is evaluated again. All workers of a process share the versions. One
//! that is added early changes nothing, because no event before it is looked up in it.

mod health;
mod table;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, Weak};

use headwater_dataflows::{EventTime, Position, Since};

pub use self::health::{ListHealth, ListStatus, ListVersionStatus, hex};
pub use self::table::{Cell, Entries, Key, KeyType, Malformed, Row, Schema, Table, encode, hash};

const LOCK: &str = "no thread panics while it holds the lock";

/// The lists of a process, by name. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Lists(Arc<BTreeMap<Box<str>, Arc<List>>>);

static NONE: LazyLock<Lists> = LazyLock::new(Lists::default);

impl Lists {
    /// Returns empty lists of these names and schemas.
    pub fn new(schemas: impl IntoIterator<Item = (Box<str>, Schema)>) -> Lists {
        let lists =
            schemas.into_iter().map(|(name, schema)| (name.clone(), Arc::new(List::new(name, schema))));
        Lists(Arc::new(lists.collect()))
    }

    /// Returns no lists.
    pub fn none() -> &'static Lists {
        &NONE
    }

    /// Returns true if there are no lists.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the list of a name.
    pub fn get(&self, name: &str) -> Option<&Arc<List>> {
        self.0.get(name)
    }

    /// Returns all lists, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<List>> {
        self.0.values()
    }

    /// Returns the names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(|name| &**name)
    }

    /// Removes the versions that no event needs once all workers have computed everything of which this is the watermark.
    pub fn settle(&self, watermark: EventTime) {
        self.iter().for_each(|list| list.settle(watermark));
    }
}

/// Contents that are in force.
#[derive(Clone)]
pub struct Version {
    /// The events from which on they are in force.
    pub since: Since,
    /// Their hash; None before the first contents.
    pub hash: Option<[u8; 32]>,
    /// The contents.
    pub table: Arc<Table>,
}

impl Version {
    /// Returns the version of a list whose contents were never read: it is empty.
    pub fn unread() -> Version {
        Version { since: Since::beginning(), hash: None, table: Arc::default() }
    }
}

/// A list, with its versions.
pub struct List {
    name: Box<str>,
    schema: Schema,
    /// The number by which threads know the list.
    id: u64,
    /// The number of changes of the versions.
    changes: AtomicU64,
    /// In order; at least one.
    versions: Mutex<Arc<[Version]>>,
    /// Contents that this process has read and that may come into force.
    read: Mutex<Vec<([u8; 32], Weak<Table>)>>,
    health: Mutex<ListHealth>,
}

/// The versions of a list as a thread last saw them.
struct Seen {
    id: u64,
    changes: u64,
    versions: Arc<[Version]>,
}

/// The maximum number of lists that a thread remembers. Beyond it, the thread forgets all of them.
const MAX_SEEN: usize = 256;

thread_local! {
    /// The versions that the thread has seen, so that a lookup takes no lock.
    static SEEN: RefCell<Vec<Seen>> = const { RefCell::new(Vec::new()) };
}

impl List {
    fn new(name: Box<str>, schema: Schema) -> List {
        static IDS: AtomicU64 = AtomicU64::new(0);
        List {
            name,
            schema,
            id: IDS.fetch_add(1, Ordering::Relaxed),
            changes: AtomicU64::new(0),
            versions: Mutex::new([Version::unread()].into()),
            read: Mutex::default(),
            health: Mutex::default(),
        }
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the types of keys and columns.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Calls a function with the contents that are in force for the event at a position. The function must not look
    /// anything up itself.
    #[inline]
    pub fn at<T>(&self, position: Position, look: impl FnOnce(&Table) -> T) -> T {
        SEEN.with_borrow_mut(|seen| {
            let changes = self.changes.load(Ordering::Acquire);
            let versions = match seen.iter_mut().find(|seen| seen.id == self.id) {
                Some(seen) if seen.changes == changes => &seen.versions,
                _ => self.see(seen),
            };
            let version = match &**versions {
                [only] => only,
                all => all.iter().rev().find(|version| version.since.includes(position)).unwrap_or(&all[0]),
            };
            look(&version.table)
        })
    }

    #[cold]
    fn see<'a>(&self, seen: &'a mut Vec<Seen>) -> &'a Arc<[Version]> {
        let versions = self.locked();
        let changes = self.changes.load(Ordering::Acquire);
        let now = Seen { id: self.id, changes, versions: Arc::clone(&versions) };
        if seen.len() >= MAX_SEEN {
            seen.clear();
        }
        seen.retain(|seen| seen.id != self.id);
        seen.push(now);
        &seen[seen.len() - 1].versions
    }

    fn locked(&self) -> MutexGuard<'_, Arc<[Version]>> {
        self.versions.lock().expect(LOCK)
    }

    fn replace(&self, versions: &mut Arc<[Version]>, by: Vec<Version>) {
        assert!(!by.is_empty(), "a list has a version, if only an empty one");
        *versions = by.into();
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Replaces all versions by those with which a run begins, in order. Before the first one, the list is empty.
    pub fn begin(&self, versions: impl IntoIterator<Item = Version>) {
        let versions: Vec<_> = std::iter::once(Version::unread()).chain(versions).collect();
        self.replace(&mut self.locked(), versions);
    }

    /// Adds a version, unless it was added before. `make` makes the contents, unless they are at hand.
    ///
    /// # Errors
    /// If `make` fails.
    pub fn add<E>(
        &self,
        since: &Since,
        hash: [u8; 32],
        make: impl FnOnce() -> Result<Arc<Table>, E>,
    ) -> Result<(), E> {
        // While one worker makes the contents, the others wait for them.
        let mut versions = self.locked();
        if versions.iter().any(|version| version.hash.is_some() && version.since.epoch >= since.epoch) {
            return Ok(());
        }
        let known = versions.iter().find(|version| version.hash == Some(hash));
        let known = known.map(|version| Arc::clone(&version.table)).or_else(|| self.at_hand(hash));
        let table = known.map_or_else(make, Ok)?;
        let added = Version { since: since.clone(), hash: Some(hash), table };
        let all = versions.iter().cloned().chain([added]).collect();
        self.replace(&mut versions, all);
        Ok(())
    }

    /// Remembers contents that may come into force, as long as the caller keeps them.
    pub fn keep_at_hand(&self, hash: [u8; 32], table: &Arc<Table>) {
        let mut read = self.read.lock().expect(LOCK);
        read.retain(|(known, table)| *known != hash && table.strong_count() > 0);
        read.push((hash, Arc::downgrade(table)));
    }

    /// Returns contents that someone keeps at hand.
    pub fn at_hand(&self, hash: [u8; 32]) -> Option<Arc<Table>> {
        let read = self.read.lock().expect(LOCK);
        read.iter().find(|(known, _)| *known == hash).and_then(|(_, table)| table.upgrade())
    }

    fn settle(&self, watermark: EventTime) {
        let mut versions = self.locked();
        let first = versions.iter().rposition(|version| version.since.last_time <= watermark).unwrap_or(0);
        if first > 0 {
            let left = versions[first..].to_vec();
            self.replace(&mut versions, left);
        }
    }

    /// Returns the newest version.
    pub fn newest(&self) -> Version {
        let versions = self.locked();
        versions[versions.len() - 1].clone()
    }
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("List").field(&self.name).finish()
    }
}

#[cfg(test)]
mod tests;
