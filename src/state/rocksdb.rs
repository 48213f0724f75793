//! An embedded state store in a folder, by RocksDB, for one process.

use std::path::{Path, PathBuf};

use rocksdb::{DB, Direction, IteratorMode, Options};

use super::{StateError, StateStore, open_with_retry};

/// The size from which blobs are stored apart from their names: compaction should not copy large blobs that never
/// change.
const MIN_BLOB_BYTES: u64 = 1024;

/// A folder of blobs, which only one process can open.
pub struct RocksStore {
    path: PathBuf,
    database: DB,
}

impl RocksStore {
    /// Opens the folder, and creates it if it does not exist. If another process has it open, that process may just
    /// have been replaced: this waits up to 5 s until it is closed.
    ///
    /// # Errors
    /// If the folder cannot be opened, or another process keeps it open.
    pub fn open(path: &Path) -> Result<RocksStore, StateError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_enable_blob_files(true);
        options.set_min_blob_size(MIN_BLOB_BYTES);
        options.set_enable_blob_gc(true);
        headwater_sinks::private::folder(path).map_err(|error| StateError::Unavailable {
            action: format!("create {}", path.display()),
            source: Box::new(error),
        })?;
        let locked = |error: &rocksdb::Error| error.to_string().contains("lock");
        let database = open_with_retry(|| DB::open(&options, path), locked);
        let database = database.map_err(|error| {
            let action = if locked(&error) {
                "open the database, which another process has open,"
            } else {
                "open the database"
            };
            unavailable(path, action, error)
        })?;
        Ok(RocksStore { path: path.to_owned(), database })
    }

    fn error_of(&self, action: impl AsRef<str>) -> impl FnOnce(rocksdb::Error) -> StateError {
        let (path, action) = (self.path.clone(), action.as_ref().to_owned());
        move |error| unavailable(&path, &action, error)
    }
}

fn unavailable(path: &Path, action: &str, error: rocksdb::Error) -> StateError {
    StateError::Unavailable { action: format!("{action} in {}", path.display()), source: Box::new(error) }
}

impl StateStore for RocksStore {
    fn put(&mut self, name: &str, blob: &[u8]) -> Result<(), StateError> {
        self.database.put(name, blob).map_err(self.error_of(format!("put {name}")))
    }

    fn get(&mut self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        self.database.get(name).map_err(self.error_of(format!("get {name}")))
    }

    fn delete(&mut self, name: &str) -> Result<(), StateError> {
        self.database.delete(name).map_err(self.error_of(format!("delete {name}")))
    }

    fn list(&mut self, prefix: &str) -> Result<Vec<String>, StateError> {
        let mut names = Vec::new();
        for entry in self.database.iterator(IteratorMode::From(prefix.as_bytes(), Direction::Forward)) {
            let (name, _) = entry.map_err(self.error_of("list the blobs"))?;
            if !name.starts_with(prefix.as_bytes()) {
                break;
            }
            names.push(String::from_utf8_lossy(&name).into_owned());
        }
        Ok(names)
    }

    fn sync(&mut self) -> Result<(), StateError> {
        self.database.flush_wal(true).map_err(self.error_of("sync the blobs"))
    }
}
