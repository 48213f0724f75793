//! Numbered migrations: applied once each, in order, and recognised by their hash ever after.

use sha2::{Digest, Sha256};

/// One numbered SQL script.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Migration {
    pub number: i32,
    pub name: &'static str,
    pub sql: &'static str,
}

impl Migration {
    /// The SHA-256 of the script, in hex.
    pub fn hash(&self) -> String {
        Sha256::digest(self.sql).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The migrations that have yet to be applied, given the (number, hash) of those that were.
///
/// # Errors
/// If one was applied in another form, or one is known to the store and not to us.
pub(crate) fn pending<'a>(
    all: &'a [Migration],
    applied: &[(i32, String)],
) -> Result<Vec<&'a Migration>, String> {
    for (number, hash) in applied {
        match all.iter().find(|migration| migration.number == *number) {
            None => return Err(format!("its tables were made by a newer version (migration {number})")),
            Some(known) if known.hash() != *hash => {
                return Err(format!("migration {number} ({}) was applied in another form", known.name));
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
    fn only_what_is_new_is_applied_and_what_has_changed_is_refused() {
        let all =
            [Migration { number: 1, name: "one", sql: "a" }, Migration { number: 2, name: "two", sql: "b" }];
        let applied = [(1, all[0].hash())];
        let numbers: Vec<_> = pending(&all, &applied).expect("in order").iter().map(|m| m.number).collect();
        assert_eq!(numbers, [2]);
        assert!(pending(&all, &[(1, all[1].hash())]).is_err());
        assert!(pending(&all, &[(3, all[0].hash())]).is_err());
    }
}
