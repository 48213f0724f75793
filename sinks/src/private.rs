//! Files and folders that hold what was read: made so that only their owner can read them, whatever the umask is. What
//! is there already stays as it is.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Opens a file to be written, or makes it.
///
/// # Errors
/// If it can be neither opened nor made.
pub fn file(path: &Path) -> Result<File, Error> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Makes a folder and those above it, unless it is there.
///
/// # Errors
/// If it cannot be made.
pub fn folder(path: &Path) -> Result<(), Error> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, metadata, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_owner_reads_what_is_made_and_what_is_there_stays() {
        let dir = tempfile::tempdir().expect("a folder");
        let mode = |path: &Path| metadata(path).expect("it is there").permissions().mode() & 0o777;
        let (new, nested) = (dir.path().join("new.db"), dir.path().join("a/b"));
        file(&new).expect("made");
        folder(&nested).expect("made");
        assert_eq!((mode(&new), mode(&nested), mode(&dir.path().join("a"))), (0o600, 0o700, 0o700));
        set_permissions(&new, Permissions::from_mode(0o640)).expect("changed");
        file(&new).expect("opened");
        folder(&nested).expect("it is there");
        assert_eq!(mode(&new), 0o640);
    }
}
