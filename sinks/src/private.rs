//! Files and folders that contain input data. New ones are created so that only their owner can read them, with any
//! umask. The permissions of existing files and folders are not changed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Opens a file for writing. Creates it if it does not exist.
///
/// # Errors
/// If it can be neither opened nor created.
pub fn file(path: &Path) -> Result<File, Error> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Creates a folder and its parents, unless they exist.
///
/// # Errors
/// If it cannot be created.
pub fn folder(path: &Path) -> Result<(), Error> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, metadata, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn new_files_are_private_and_existing_ones_stay_unchanged() {
        let dir = tempfile::tempdir().expect("a folder");
        let mode = |path: &Path| metadata(path).expect("it exists").permissions().mode() & 0o777;
        let (new, nested) = (dir.path().join("new.db"), dir.path().join("a/b"));
        file(&new).expect("made");
        folder(&nested).expect("made");
        assert_eq!((mode(&new), mode(&nested), mode(&dir.path().join("a"))), (0o600, 0o700, 0o700));
        set_permissions(&new, Permissions::from_mode(0o640)).expect("changed");
        file(&new).expect("opened");
        folder(&nested).expect("it exists");
        assert_eq!(mode(&new), 0o640);
    }
}
