//! Blobs in a folder, by RocksDB: embedded, for one process.

use std::path::{Path, PathBuf};

use rocksdb::{DB, Direction, IteratorMode, Options};

use super::{StateError, StateStore, patiently};

/// Blobs from this size on lie apart from their names: they are large, never change, and are not to be moved about.
const APART: u64 = 1024;

/// A folder of blobs, which belongs to one process.
pub struct RocksStore {
    path: PathBuf,
    database: DB,
}

impl RocksStore {
    /// Opens the folder, or makes it. If another process has it, that one may just have been replaced: it is given 5 s to
    /// let go.
    ///
    /// # Errors
    /// If it cannot be opened, or another process keeps it.
    pub fn open(path: &Path) -> Result<RocksStore, StateError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_enable_blob_files(true);
        options.set_min_blob_size(APART);
        options.set_enable_blob_gc(true);
        headwater_sinks::private::folder(path).map_err(|error| StateError::Unavailable {
            action: format!("make {}", path.display()),
            source: Box::new(error),
        })?;
        let locked = |error: &rocksdb::Error| error.to_string().contains("lock");
        let database = patiently(|| DB::open(&options, path), locked);
        let database = database.map_err(|error| {
            let what = if locked(&error) { "open what another process has" } else { "open what is" };
            unavailable(path, what, error)
        })?;
        Ok(RocksStore { path: path.to_owned(), database })
    }

    fn failed(&self, action: impl AsRef<str>) -> impl FnOnce(rocksdb::Error) -> StateError {
        let (path, action) = (self.path.clone(), action.as_ref().to_owned());
        move |error| unavailable(&path, &action, error)
    }
}

fn unavailable(path: &Path, action: &str, error: rocksdb::Error) -> StateError {
    StateError::Unavailable { action: format!("{action} in {}", path.display()), source: Box::new(error) }
}

impl StateStore for RocksStore {
    fn put(&mut self, name: &str, blob: &[u8]) -> Result<(), StateError> {
        self.database.put(name, blob).map_err(self.failed(format!("put {name}")))
    }

    fn get(&mut self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        self.database.get(name).map_err(self.failed(format!("get {name}")))
    }

    fn delete(&mut self, name: &str) -> Result<(), StateError> {
        self.database.delete(name).map_err(self.failed(format!("delete {name}")))
    }

    fn list(&mut self, prefix: &str) -> Result<Vec<String>, StateError> {
        let mut names = Vec::new();
        for entry in self.database.iterator(IteratorMode::From(prefix.as_bytes(), Direction::Forward)) {
            let (name, _) = entry.map_err(self.failed("list what is"))?;
            if !name.starts_with(prefix.as_bytes()) {
                break;
            }
            names.push(String::from_utf8_lossy(&name).into_owned());
        }
        Ok(names)
    }

    fn sync(&mut self) -> Result<(), StateError> {
        self.database.flush_wal(true).map_err(self.failed("sync what is"))
    }
}
