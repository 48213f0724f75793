//! An embedded state store in a folder, by fjall, for one process.

use std::path::{Path, PathBuf};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};

use super::{StateError, StateStore, open_with_retry};

/// The bytes of blobs that wait in memory until they are written to their own files.
const MEMTABLE: u64 = 8 << 20;

/// The bytes of the cache: a blob is read once, if at all.
const CACHE: u64 = 1 << 20;

/// A folder of blobs, which only one process can open.
pub struct FjallStore {
    path: PathBuf,
    database: Database,
    blobs: Keyspace,
}

impl FjallStore {
    /// Opens the folder, and creates it if it does not exist. If another process has it open, that process may just
    /// have been replaced: this waits up to 5 s until it is closed.
    ///
    /// # Errors
    /// If the folder cannot be opened, or another process keeps it open.
    pub fn open(path: &Path) -> Result<FjallStore, StateError> {
        let (database, blobs) =
            open_with_retry(|| open_database(path), |error| matches!(error, fjall::Error::Locked)).map_err(
                |error| {
                    let locked = matches!(error, fjall::Error::Locked);
                    unavailable(
                        path,
                        if locked {
                            "open the database, which another process has open,"
                        } else {
                            "open the database"
                        },
                        error,
                    )
                },
            )?;
        Ok(FjallStore { path: path.to_owned(), database, blobs })
    }

    /// Opens the folder without waiting; None if another process has it open.
    ///
    /// # Errors
    /// If the folder cannot be opened.
    pub fn try_open(path: &Path) -> Result<Option<FjallStore>, StateError> {
        match open_database(path) {
            Ok((database, blobs)) => Ok(Some(FjallStore { path: path.to_owned(), database, blobs })),
            Err(fjall::Error::Locked) => Ok(None),
            Err(error) => Err(unavailable(path, "open the database", error)),
        }
    }

    fn error_of(&self, action: impl AsRef<str>) -> impl FnOnce(fjall::Error) -> StateError {
        let (path, action) = (self.path.clone(), action.as_ref().to_owned());
        move |error| unavailable(&path, &action, error)
    }
}

fn open_database(path: &Path) -> Result<(Database, Keyspace), fjall::Error> {
    headwater_sinks::private::folder(path)?;
    let database = Database::builder(path).cache_size(CACHE).open()?;
    // Blobs are large and never change, so compaction should not copy them together with their names. They are in the journal
    // as well, so that they need not wait in memory for others.
    let separate = || {
        let separated = Some(KvSeparationOptions::default());
        KeyspaceCreateOptions::default().with_kv_separation(separated).max_memtable_size(MEMTABLE)
    };
    let blobs = database.keyspace("blobs", separate)?;
    Ok((database, blobs))
}

fn unavailable(path: &Path, action: &str, error: fjall::Error) -> StateError {
    StateError::Unavailable { action: format!("{action} in {}", path.display()), source: Box::new(error) }
}

impl StateStore for FjallStore {
    fn put(&mut self, name: &str, blob: &[u8]) -> Result<(), StateError> {
        self.blobs.insert(name, blob).map_err(self.error_of(format!("put {name}")))
    }

    fn get(&mut self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let blob = self.blobs.get(name).map_err(self.error_of(format!("get {name}")))?;
        Ok(blob.map(|blob| blob.to_vec()))
    }

    fn delete(&mut self, name: &str) -> Result<(), StateError> {
        self.blobs.remove(name).map_err(self.error_of(format!("delete {name}")))
    }

    fn list(&mut self, prefix: &str) -> Result<Vec<String>, StateError> {
        let names = self.blobs.prefix(prefix).map(|entry| {
            let name = entry.key().map_err(self.error_of("list the blobs"))?;
            Ok(String::from_utf8_lossy(&name).into_owned())
        });
        names.collect()
    }

    fn sync(&mut self) -> Result<(), StateError> {
        self.database.persist(PersistMode::SyncAll).map_err(self.error_of("sync the blobs"))
    }
}
