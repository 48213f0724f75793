//! Changes of a pipeline, and what a start may discard or repeat for them.

use std::collections::BTreeSet;

use headwater_dataflows::Epoch;

/// A change of the configuration or of the operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigChange {
    /// The first difference.
    pub reason: String,
    /// The configuration sections whose state is discarded: `windows.NAME`, `patterns.NAME`, `patterns` (all of them)
    /// or `enrichment`.
    pub discarded: BTreeSet<String>,
}

/// The resets that are permitted if the start would be refused otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resets {
    /// The sections of the configuration whose state may be discarded.
    pub sections: BTreeSet<String>,
    /// The sinks that may be marked as caught up with the ledger, whatever their progress.
    pub sinks: BTreeSet<String>,
    /// The sinks that begin at the end of the ledger if they have never been opened, instead of with its first epoch.
    pub joining: BTreeSet<String>,
    /// True if a sink may receive results a second time that it has and the ledger has not recorded.
    pub accept_duplicates: bool,
    /// The last epoch of the ledger for which all state may be discarded, without a replay.
    pub all: Option<Epoch>,
}
