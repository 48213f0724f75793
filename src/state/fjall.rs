//! Blobs in a folder, by fjall: embedded, for one process.

use std::path::{Path, PathBuf};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};

use super::{StateError, StateStore, patiently};

/// A folder of blobs, which belongs to one process.
pub struct FjallStore {
    path: PathBuf,
    database: Database,
    blobs: Keyspace,
}

impl FjallStore {
    /// Opens the folder, or makes it. If another process has it, that one may just have been replaced: it is given 5 s to
    /// let go.
    ///
    /// # Errors
    /// If it cannot be opened, or another process keeps it.
    pub fn open(path: &Path) -> Result<FjallStore, StateError> {
        let (database, blobs) = patiently(|| attempt(path), |error| matches!(error, fjall::Error::Locked))
            .map_err(|error| {
                let locked = matches!(error, fjall::Error::Locked);
                unavailable(
                    path,
                    if locked { "open what another process has" } else { "open what is" },
                    error,
                )
            })?;
        Ok(FjallStore { path: path.to_owned(), database, blobs })
    }

    /// Opens the folder; none if another process has it.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open_now(path: &Path) -> Result<Option<FjallStore>, StateError> {
        match attempt(path) {
            Ok((database, blobs)) => Ok(Some(FjallStore { path: path.to_owned(), database, blobs })),
            Err(fjall::Error::Locked) => Ok(None),
            Err(error) => Err(unavailable(path, "open what is", error)),
        }
    }

    fn failed(&self, action: impl AsRef<str>) -> impl FnOnce(fjall::Error) -> StateError {
        let (path, action) = (self.path.clone(), action.as_ref().to_owned());
        move |error| unavailable(&path, &action, error)
    }
}

fn attempt(path: &Path) -> Result<(Database, Keyspace), fjall::Error> {
    headwater_sinks::private::folder(path)?;
    let database = Database::builder(path).open()?;
    // Blobs are large and never change: they are not to be moved about with their names.
    let separate =
        || KeyspaceCreateOptions::default().with_kv_separation(Some(KvSeparationOptions::default()));
    let blobs = database.keyspace("blobs", separate)?;
    Ok((database, blobs))
}

fn unavailable(path: &Path, action: &str, error: fjall::Error) -> StateError {
    StateError::Unavailable { action: format!("{action} in {}", path.display()), source: Box::new(error) }
}

impl StateStore for FjallStore {
    fn put(&mut self, name: &str, blob: &[u8]) -> Result<(), StateError> {
        self.blobs.insert(name, blob).map_err(self.failed(format!("put {name}")))
    }

    fn get(&mut self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let blob = self.blobs.get(name).map_err(self.failed(format!("get {name}")))?;
        Ok(blob.map(|blob| blob.to_vec()))
    }

    fn delete(&mut self, name: &str) -> Result<(), StateError> {
        self.blobs.remove(name).map_err(self.failed(format!("delete {name}")))
    }

    fn list(&mut self, prefix: &str) -> Result<Vec<String>, StateError> {
        let names = self.blobs.prefix(prefix).map(|entry| {
            let name = entry.key().map_err(self.failed("list what is"))?;
            Ok(String::from_utf8_lossy(&name).into_owned())
        });
        names.collect()
    }

    fn sync(&mut self) -> Result<(), StateError> {
        self.database.persist(PersistMode::SyncAll).map_err(self.failed("sync what is"))
    }
}
