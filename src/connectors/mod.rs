//! Connectors: the kinds of sources, sinks and state stores, each with its keys, their validation, what a connection
//! check tries, and how a run opens it. A kind is entered in one line of `sources!`, `sinks!` or [`STORES`].
//!
//! ```text
//!   Section ─▶ read ─▶ SourceConfig │ SinkConfig ─▶ open │ jobs ─▶ Source │ SinkJob
//!                                       └─▶ check ─▶ Check (`headwater check --connect`)
//! ```

mod check;
mod csv;
mod file;
mod fjall;
mod generator;
mod kafka;
mod lists;
mod object_store;
mod outputs;
mod postgres;
mod redis;
mod rocksdb;
mod sqlite;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use headwater_dataflows::Offset;

pub(crate) use self::check::{Check, causes, counted, databases, writable};
pub(crate) use self::csv::fields as csv_fields;
pub use self::file::{FileSinkConfig, FileSourceConfig};
pub use self::kafka::{KafkaSinkConfig, KafkaSourceConfig};
pub(crate) use self::lists::values::{Raw as ListValue, key as list_key, row as list_row};
pub(crate) use self::lists::{Defaults as ListDefaults, LISTS as LIST_KEYS, read as read_list_source};
pub use self::lists::{ListBounds, ListConfig, ListReader, ListReading};
pub use self::outputs::{OutputKind, TablesConfig, index_of, table_of};
pub use self::postgres::PostgresSinkConfig;
pub use self::redis::RedisSinkConfig;
pub use self::sqlite::SqliteSinkConfig;
pub use crate::source::generator::GeneratorSettings;
pub use crate::source::kafka::StartFrom;

use crate::coordination::AcceptedLoss;
use crate::outputs::SinkJob;
use crate::settings::{Diagnostics, Key, Section};
use crate::source::history::RecordHistory;
use crate::source::{Source, SourceError};
use crate::state::StateConfig;

/// The name of the kind of source whose records can be any bytes.
pub(crate) const TOPIC: &str = kafka::SOURCE.name;

/// A kind of source.
pub(crate) struct SourceKind {
    /// The name in `source.kind`.
    pub name: &'static str,
    /// The keys of this kind.
    pub keys: &'static [Key],
    /// The keys whose values, besides the kind, identify the input. A pipeline cannot resume with other values.
    pub identity: &'static [&'static str],
    /// True if the input has an end, so that epochs count records and all windows close at the end.
    pub is_bounded: bool,
    /// Reads the keys.
    pub read: fn(&mut Section<'_>, &mut Diagnostics) -> Option<SourceConfig>,
}

/// The circumstances in which a source is opened.
#[derive(Clone, Debug)]
pub(crate) struct SourceContext {
    /// The name of the pipeline.
    pub pipeline: String,
    /// True if a ledger records what was read.
    pub has_ledger: bool,
    /// True to stop at the end that the input has now.
    pub is_bounded: bool,
    /// The records that may be missing.
    pub accepted: Vec<AcceptedLoss>,
    /// The maximum number of bytes that are read and not committed.
    pub bytes_in_flight: usize,
}

/// The settings of a source.
pub(crate) trait SourceConnector {
    /// Opens the source at these offsets, or where its settings say.
    fn open(
        &self,
        context: SourceContext,
        starts: Option<Vec<Offset>>,
    ) -> Result<Arc<dyn Source>, SourceError>;

    /// Tests what a run needs of the source.
    fn check(&self, context: &SourceContext) -> Vec<Check>;

    /// Returns the offsets from which on the newest `records` records are, in each partition; None of a source whose sample
    /// is its first records. The offsets of no consumer group are read.
    ///
    /// # Errors
    /// If the source cannot be asked.
    fn newest(&self, _records: u64) -> Result<Option<Vec<Offset>>, SourceError> {
        Ok(None)
    }

    /// Returns what reads records again, apart from a run. `epoch_records` is the number of records of a partition in an
    /// epoch, for sources whose epochs are counted.
    ///
    /// # Errors
    /// If they cannot be read again: the reason.
    fn history(&self, _epoch_records: i64) -> Result<Box<dyn RecordHistory>, String> {
        Err("its records are not stored".to_owned())
    }

    /// Checks that the source can be read a second time, as `why` needs.
    fn check_repeatable(&self, _why: &str) -> Result<(), SourceError> {
        Ok(())
    }
}

/// Defines the source of a configuration and the kinds of sources.
macro_rules! sources {
    ($($(#[$doc:meta])* $variant:ident($config:ty) = $kind:path,)*) => {
        /// The source of records.
        #[derive(Clone, Debug)]
        pub enum SourceConfig {
            $($(#[$doc])* $variant($config),)*
        }

        /// All kinds of sources.
        pub(crate) const SOURCES: &[SourceKind] = &[$($kind),*];

        impl SourceConfig {
            pub(crate) fn connector(&self) -> &dyn SourceConnector {
                match self {
                    $(SourceConfig::$variant(config) => config,)*
                }
            }

            pub(crate) fn kind(&self) -> &'static SourceKind {
                match self {
                    $(SourceConfig::$variant(_) => &const { $kind },)*
                }
            }
        }
    };
}

sources! {
    /// A Kafka topic.
    Kafka(KafkaSourceConfig) = kafka::SOURCE,
    /// Files; the index of a file is its partition.
    File(FileSourceConfig) = file::SOURCE,
    /// The generator of test records.
    Generator(GeneratorSettings) = generator::SOURCE,
}

impl SourceConfig {
    /// Returns true if the input has an end.
    pub fn is_bounded(&self) -> bool {
        self.kind().is_bounded
    }
}

/// A kind of sink.
pub(crate) struct SinkKind {
    /// The name in `kind`, and the name of a sink whose section has none.
    pub name: &'static str,
    /// The keys of this kind, as keys of the sink `sinks.KIND`.
    pub keys: &'static [Key],
    /// Reads the keys.
    pub read: fn(&mut Section<'_>, &mut Diagnostics) -> Option<SinkConfig>,
}

/// The circumstances in which sinks are built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SinkContext<'a> {
    /// The name of the pipeline.
    pub pipeline: &'a str,
    /// True if a ledger records what was read.
    pub has_ledger: bool,
    /// A text that is prepended to the names of topics.
    pub topic_prefix: &'a str,
}

/// The settings of a sink.
pub(crate) trait SinkConnector {
    /// Returns the writers of the sink with this name, not yet opened.
    fn jobs(&self, name: &str, context: SinkContext<'_>) -> Vec<SinkJob>;

    /// Tests what a run needs of the sink.
    fn check(&self, name: &str, context: SinkContext<'_>) -> Vec<Check>;

    /// Returns the places that no other sink can write to.
    fn targets(&self) -> Vec<String>;

    /// Returns the reason why several processes cannot share the sink; None if they can.
    fn sharing_objection(&self, has_ledger: bool) -> Option<String>;
}

/// Defines a sink of a configuration and the kinds of sinks.
macro_rules! sinks {
    ($($(#[$doc:meta])* $variant:ident($config:ty) = $kind:path,)*) => {
        /// A sink of results.
        #[derive(Clone, Debug)]
        pub enum SinkConfig {
            $($(#[$doc])* $variant($config),)*
        }

        /// All kinds of sinks.
        pub(crate) const SINKS: &[SinkKind] = &[$($kind),*];

        impl SinkConfig {
            pub(crate) fn connector(&self) -> &dyn SinkConnector {
                match self {
                    $(SinkConfig::$variant(config) => config,)*
                }
            }
        }
    };
}

sinks! {
    /// Kafka topics.
    Kafka(KafkaSinkConfig) = kafka::SINK,
    /// Tables in PostgreSQL.
    Postgres(PostgresSinkConfig) = postgres::SINK,
    /// Tables in a SQLite file.
    Sqlite(SqliteSinkConfig) = sqlite::SINK,
    /// NDJSON files.
    File(FileSinkConfig) = file::SINK,
    /// Profiles of keys in Redis.
    Redis(RedisSinkConfig) = redis::SINK,
}

/// The sinks of results, by name.
#[derive(Clone, Debug, Default)]
pub struct SinksConfig(pub BTreeMap<String, SinkConfig>);

impl SinksConfig {
    /// Returns the Kafka sinks.
    pub fn kafka(&self) -> impl Iterator<Item = &KafkaSinkConfig> {
        self.0.values().filter_map(|sink| match sink {
            SinkConfig::Kafka(kafka) => Some(kafka),
            _ => None,
        })
    }

    /// Returns the PostgreSQL sinks.
    pub fn postgres(&self) -> impl Iterator<Item = &PostgresSinkConfig> {
        self.0.values().filter_map(|sink| match sink {
            SinkConfig::Postgres(postgres) => Some(postgres),
            _ => None,
        })
    }

    /// Returns the writers of all sinks, not yet opened.
    pub(crate) fn jobs(&self, context: SinkContext<'_>) -> Vec<SinkJob> {
        self.0.iter().flat_map(|(name, sink)| sink.connector().jobs(name, context)).collect()
    }
}

/// A kind of state store.
pub(crate) struct StoreKind {
    /// The name in `state.kind`.
    pub name: &'static str,
    /// The keys of this kind.
    pub keys: &'static [Key],
    /// Reads the keys.
    pub read: fn(&mut Section<'_>, &mut Diagnostics) -> Option<StateConfig>,
}

/// All kinds of state stores.
pub(crate) const STORES: &[StoreKind] = &[fjall::STORE, redis::STORE, object_store::STORE, rocksdb::STORE];

impl StateConfig {
    /// Tests what checkpoints need of the store.
    pub(crate) fn check(&self, pipeline: &str) -> Check {
        let directory =
            |path: &Path| Check::of("state", format!("directory {}", path.display()), writable(path));
        match self {
            StateConfig::Fjall(path) => directory(path),
            #[cfg(feature = "rocksdb")]
            StateConfig::RocksDb(path) => directory(path),
            StateConfig::Redis(_) => {
                let opened = crate::state::open(self, pipeline);
                Check::of("state", "Redis", opened.map(|_| "reachable, with durable settings".to_owned()))
            }
            #[cfg(feature = "object-store")]
            StateConfig::Object(config) => {
                let opened = crate::state::open(self, pipeline);
                let found = opened.map(|_| "reachable, can be written and read".to_owned());
                Check::of("state", format!("objects in {}", config.url), found)
            }
        }
    }

    /// Returns true if several processes can share the store.
    pub(crate) fn is_shareable(&self) -> bool {
        match self {
            StateConfig::Redis(_) => true,
            #[cfg(feature = "object-store")]
            StateConfig::Object(_) => true,
            #[cfg(feature = "rocksdb")]
            StateConfig::RocksDb(_) => false,
            StateConfig::Fjall(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn kinds_have_distinct_names_and_their_own_keys() {
        let sinks: BTreeSet<_> = SINKS.iter().map(|kind| kind.name).collect();
        let sources: BTreeSet<_> = SOURCES.iter().map(|kind| kind.name).collect();
        assert_eq!((sinks.len(), sources.len()), (SINKS.len(), SOURCES.len()));
        for kind in SINKS {
            let prefix = format!("sinks.{}.", kind.name);
            assert!(
                !kind.keys.is_empty() && kind.keys.iter().all(|key| key.path.starts_with(&prefix)),
                "{prefix}"
            );
        }
        for kind in SOURCES {
            assert!(kind.keys.iter().all(|key| key.path.starts_with("source.")), "{}", kind.name);
            let paths: Vec<_> = kind.keys.iter().map(|key| key.path).collect();
            assert!(kind.identity.iter().all(|key| paths.contains(key)), "{}", kind.name);
        }
    }
}
