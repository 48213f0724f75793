//! RocksDB: a directory as state store, with the key `path` of fjall.

use super::StoreKind;
use crate::settings::{Diagnostics, Section};
use crate::state::StateConfig;

pub const STORE: StoreKind = StoreKind { name: "rocksdb", keys: &[], read };

#[cfg(feature = "rocksdb")]
fn read(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<StateConfig> {
    section.file("path", diagnostics).map(StateConfig::RocksDb)
}

#[cfg(not(feature = "rocksdb"))]
fn read(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<StateConfig> {
    let message =
        "this program was built without RocksDB: build it with `cargo build --release --features rocksdb`";
    section.report_error("kind", message, diagnostics);
    section.file("path", diagnostics);
    None
}
