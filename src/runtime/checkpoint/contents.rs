//! The contents of lists in the state store, by their SHA-256.
//!
//! A name contains the generation of the start that stored the contents, so that a start that was replaced never deletes what
//! a later one has stored.

use std::collections::BTreeSet;

use headwater_sinks::{Generation, LedgerId, crash};

use crate::lists::{hash, hex};
use crate::runtime::checkpoint::writer::WriterId;
use crate::runtime::failure::RunError;
use crate::state::{StateError, StateStore};

fn prefix(ledger_id: &LedgerId) -> String {
    format!("{}/lists/", ledger_id.0)
}

/// Returns the generation and the hash, in hexadecimal digits, in a name.
fn parse<'a>(ledger_id: &LedgerId, name: &'a str) -> Option<(Generation, &'a str)> {
    let (generation, hash) = name.strip_prefix(&prefix(ledger_id))?.split_once('/')?;
    Some((Generation(generation.parse().ok()?), hash))
}

/// Stores contents. They are durable when it returns.
///
/// # Errors
/// If the store fails.
pub fn put(
    store: &mut dyn StateStore,
    writer_id: &WriterId,
    hash: [u8; 32],
    bytes: &[u8],
) -> Result<(), StateError> {
    let name = format!("{}{}/{}", prefix(&writer_id.ledger_id), writer_id.generation, hex(&hash));
    store.put(&name, bytes)?;
    store.sync()?;
    crash::point("lists.stored");
    Ok(())
}

/// Returns stored contents.
///
/// # Errors
/// If they are missing or damaged, or the store fails.
pub fn get(
    store: &mut dyn StateStore,
    ledger_id: &LedgerId,
    list: &str,
    wanted: [u8; 32],
) -> Result<Vec<u8>, RunError> {
    let digits = hex(&wanted);
    let mut damage = "they are missing";
    for name in store.list(&prefix(ledger_id))? {
        if parse(ledger_id, &name).is_none_or(|(_, hash)| hash != digits) {
            continue;
        }
        match store.get(&name)? {
            Some(bytes) if hash(&bytes) == wanted => return Ok(bytes),
            Some(_) => damage = "their bytes do not have this hash",
            None => {}
        }
    }
    Err(RunError::ListContents { list: list.to_owned(), hash: digits, damage: damage.to_owned() })
}

/// Deletes contents that this start or an earlier one has stored.
///
/// # Errors
/// If the store fails.
pub fn delete(store: &mut dyn StateStore, writer_id: &WriterId, hash: [u8; 32]) -> Result<(), StateError> {
    let digits = hex(&hash);
    for name in store.list(&prefix(&writer_id.ledger_id))? {
        let found = parse(&writer_id.ledger_id, &name);
        if found.is_some_and(|(generation, hash)| generation <= writer_id.generation && hash == digits) {
            store.delete(&name)?;
            crash::point("lists.deleted");
        }
    }
    Ok(())
}

/// Deletes the contents of earlier starts that are not needed.
///
/// # Errors
/// If the store fails.
pub fn delete_unused(
    store: &mut dyn StateStore,
    ledger_id: &LedgerId,
    mine: Generation,
    needed: &BTreeSet<[u8; 32]>,
) -> Result<(), StateError> {
    let needed: BTreeSet<_> = needed.iter().map(|hash| hex(hash)).collect();
    for name in store.list(&prefix(ledger_id))? {
        let found = parse(ledger_id, &name);
        if found.is_some_and(|(generation, hash)| generation < mine && !needed.contains(hash)) {
            store.delete(&name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fakes::FakeStore;

    #[test]
    fn contents_are_found_by_hash_and_deleted_by_generation() {
        let mut store = FakeStore::default();
        let id =
            |generation| WriterId { ledger_id: LedgerId("a".into()), generation: Generation(generation) };
        let (a, b) = (hash(b"a"), hash(b"b"));
        for (generation, bytes) in [(1, b"a"), (3, b"a"), (1, b"b")] {
            put(&mut store, &id(generation), hash(bytes), bytes).expect("stored");
        }
        let get = |store: &mut FakeStore, hash| {
            super::get(store, &id(0).ledger_id, "blocked", hash).map_err(|error| error.to_string())
        };
        assert_eq!(get(&mut store, a), Ok(b"a".to_vec()));
        delete(&mut store, &id(2), a).expect("deleted");
        assert_eq!(get(&mut store, a), Ok(b"a".to_vec()), "generation 3 has stored them again");
        delete_unused(&mut store, &id(0).ledger_id, Generation(4), &[b].into()).expect("deleted");
        assert_eq!(get(&mut store, b), Ok(b"b".to_vec()));
        let missing = get(&mut store, a).expect_err("deleted");
        assert!(missing.contains("blocked") && missing.contains("they are missing"), "{missing}");
        let name = format!("a/lists/1/{}", hex(&b));
        store.blobs.lock().expect("unlocked").insert(name, b"c".to_vec());
        assert!(get(&mut store, b).expect_err("changed").contains("their bytes do not have this hash"));
    }
}
