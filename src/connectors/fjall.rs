//! fjall: a directory as state store.

use super::StoreKind;
use crate::settings::keys;
use crate::state::StateConfig;

pub const STORE: StoreKind = StoreKind {
    name: "fjall",
    keys: keys! {
        "state.path" = "\"state\"": "fjall and RocksDB: the directory. A relative path is resolved against the working directory; `check` prints the absolute path. Prefer an absolute path for a service that may start in another directory."
    },
    read: |section, diagnostics| section.file("path", diagnostics).map(StateConfig::Fjall),
};
