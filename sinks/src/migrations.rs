//! Numbered migrations. Each is applied once, in order. Its hash shows later if it has been changed.

use sha2::{Digest, Sha256};

/// One numbered SQL script.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Migration {
    pub number: i32,
    pub name: &'static str,
    pub sql: &'static str,
}

impl Migration {
    /// Returns the SHA-256 of the script, in hexadecimal.
    pub fn hash(&self) -> String {
        Sha256::digest(self.sql).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Returns the migrations that have not been applied. `applied` contains the number and hash of each applied one.
///
/// # Errors
/// If an applied migration has another hash, or is not in `all`.
pub(crate) fn pending<'a>(
    all: &'a [Migration],
    applied: &[(i32, String)],
) -> Result<Vec<&'a Migration>, String> {
    for (number, hash) in applied {
        match all.iter().find(|migration| migration.number == *number) {
            None => {
                return Err(format!(
                    "its tables were created by a newer version of Headwater (migration {number}): use that version"
                ));
            }
            Some(known) if known.hash() != *hash => {
                return Err(format!(
                    "migration {number} ({}) was applied by another build of Headwater: its hash differs; use \
                     that build",
                    known.name
                ));
            }
            Some(_) => {}
        }
    }
    Ok(all.iter().filter(|migration| applied.iter().all(|(number, _)| *number != migration.number)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_migrations_are_pending_and_changed_ones_are_refused() {
        let all =
            [Migration { number: 1, name: "one", sql: "a" }, Migration { number: 2, name: "two", sql: "b" }];
        let applied = [(1, all[0].hash())];
        let numbers: Vec<_> = pending(&all, &applied).expect("in order").iter().map(|m| m.number).collect();
        assert_eq!(numbers, [2]);
        assert!(pending(&all, &[(1, all[1].hash())]).is_err());
        assert!(pending(&all, &[(3, all[0].hash())]).is_err());
    }
}
