//! The kinds of sources of lists: a file, a compacted topic, a query.
//!
//! ```text
//!   Section ─▶ read ─▶ ListSourceConfig ─▶ reader ─▶ ListReader: read, again and again ─▶ Entries │ error
//!                            └─▶ check ─▶ Check (`headwater check --connect`)
//! ```

mod file;
mod kafka;
mod postgres;
pub mod values;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use headwater_sinks::Secret;
use headwater_sinks::kafka::client::Options;

use self::file::FileListConfig;
use self::kafka::KafkaListConfig;
use self::postgres::PostgresListConfig;
use super::Check;
use crate::lists::{Entries, Schema, encode};
use crate::settings::{Diagnostics, Key, Section, keys};

/// The keys of lists.
pub const LISTS: &[Key] = keys! {
    "lists.name" = required: "Name of the list in expressions, `lists.NAME`: at most 63 lower-case letters, digits and `_`, with a letter first. See [lists](lists.md)."
    "lists.key_type" = "\"string\"": "Type of the keys: `string`, `integer` or `decimal`. A value that is looked up must have this type."
    "lists.columns": "Columns of a table, with their types: `{ risk = \"decimal\", tier = \"string\" }`. The types are `string`, `decimal`, `integer`, `float`, `boolean` and `timestamp`. Without it the list is a set, of which only the keys count."
    "lists.max_entries" = "1000000": "Maximum number of entries. Contents above it are not used: the list keeps those before, and reports the error."
    "lists.max_bytes" = "\"64MiB\"": "Maximum size of the contents, as they are stored. Each change of the contents stores all of them, and keeps those before in memory until no un-final event needs them."
    "lists.wait" = "\"10s\"": "Maximum time that a start waits for the first reading of the list, before it reads the first record. Then the list is what it was in the run before, or empty in a pipeline's first run."
    "lists.source.kind" = required: "`file`, `kafka` (a compacted topic) or `postgres` (a query)."
    "lists.source.path": "File: a path. A file that ends with `.csv` has a header with the names of columns, one that ends with `.ndjson` or `.jsonl` an object in each line, and any other file one key in each line; empty lines and those that begin with `#` are ignored. The file is looked at each second. Replace it by renaming another one, so that no half of it is read."
    "lists.source.key": "File and PostgreSQL: name of the column with the key. The default is the first column; `.ndjson` needs it."
    "lists.source.topic": "Kafka: a compacted topic. The key of a record is the key of the entry, its value a JSON object with the columns (of a set, any value); a record without a value deletes the entry."
    "lists.source.brokers": "Kafka: bootstrap servers, separated by commas. The default is those of a source that is Kafka, with its options. `[lists.source.options]` has options of the Kafka client, as `[source.options]` has."
    "lists.source.query": "PostgreSQL: a query, in a session that cannot write. Its columns have the names in `columns`."
    "lists.source.every" = "\"1m\"": "PostgreSQL: time between two queries."
    "lists.source.timeout" = "\"30s\"": "PostgreSQL: maximum time of connecting and of the query."
    "lists.source.url": "PostgreSQL: address of the database, as in `sinks.postgres.url`. The default is the database of the only PostgreSQL sink."
    "lists.source.url_file": "PostgreSQL: file that contains the URL."
    "lists.source.password_file": "PostgreSQL: file that contains the password, for a URL without one."
};

/// The bounds of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListBounds {
    /// The maximum number of entries.
    pub entries: usize,
    /// The maximum size of the contents, in bytes.
    pub bytes: usize,
}

impl ListBounds {
    /// Checks a number of entries.
    ///
    /// # Errors
    /// If there are too many.
    pub fn check_entries(&self, entries: usize) -> Result<(), String> {
        if entries <= self.entries {
            return Ok(());
        }
        Err(format!("there are more than {} entries: shorten the list, or raise `max_entries`", self.entries))
    }

    /// Checks a number of bytes.
    ///
    /// # Errors
    /// If there are too many.
    pub fn check_bytes(&self, bytes: usize) -> Result<(), String> {
        if bytes <= self.bytes {
            return Ok(());
        }
        Err(format!(
            "the contents have {bytes} bytes, above the {} of `max_bytes`: shorten the list, or raise it",
            self.bytes
        ))
    }
}

/// A list of a configuration.
#[derive(Clone, Debug)]
pub struct ListConfig {
    /// The name.
    pub name: String,
    /// The types of keys and columns.
    pub schema: Schema,
    /// The bounds.
    pub bounds: ListBounds,
    /// The maximum time that a start waits for the first reading.
    pub wait: Duration,
    /// The source.
    pub source: ListSourceConfig,
}

/// The source of a list.
#[derive(Clone, Debug)]
pub enum ListSourceConfig {
    /// A file.
    File(FileListConfig),
    /// A compacted topic.
    Kafka(KafkaListConfig),
    /// A query.
    Postgres(PostgresListConfig),
}

impl fmt::Display for ListSourceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListSourceConfig::File(file) => write!(f, "file {}", file.path.display()),
            ListSourceConfig::Kafka(kafka) => write!(f, "topic {} at {}", kafka.topic, kafka.brokers),
            ListSourceConfig::Postgres(postgres) => write!(f, "query in {}", postgres.database()),
        }
    }
}

/// The servers of the pipeline's source and sink, which sources of lists have by default.
pub struct Defaults {
    /// Bootstrap servers and options of the source, if it is Kafka.
    pub kafka: Option<(String, Options)>,
    /// The address of the only PostgreSQL sink.
    pub postgres: Option<Secret>,
}

/// Reads the section `source` of a list.
pub fn read(
    mut section: Section<'_>,
    schema: &Schema,
    defaults: &Defaults,
    diagnostics: &mut Diagnostics,
) -> Option<ListSourceConfig> {
    #[derive(Clone, Copy)]
    enum Kind {
        File,
        Kafka,
        Postgres,
    }
    let kinds = [("file", Kind::File), ("kafka", Kind::Kafka), ("postgres", Kind::Postgres)];
    let kind = section.choice("kind", &kinds, diagnostics);
    let source = match kind? {
        Kind::File => file::read(&mut section, schema, diagnostics).map(ListSourceConfig::File),
        Kind::Kafka => kafka::read(&mut section, defaults, diagnostics).map(ListSourceConfig::Kafka),
        Kind::Postgres => postgres::read(&mut section, defaults, diagnostics).map(ListSourceConfig::Postgres),
    };
    section.end(diagnostics);
    source
}

/// The result of reading a list that can be read.
#[derive(Debug, Default, PartialEq)]
pub struct ListReading {
    /// The entries; None if they are those of the reading before.
    pub entries: Option<Entries>,
    /// The number of entries of the source that are left out.
    pub refused: u64,
    /// Facts that people should know.
    pub warnings: Vec<String>,
}

/// A reader of a list, which belongs to one thread.
pub trait ListReader: Send {
    /// Reads the list. It may block for as long as a reading takes.
    ///
    /// # Errors
    /// If it cannot be read, or has an error: the whole contents are not used then.
    fn read(&mut self) -> Result<ListReading, String>;

    /// Returns the time until the next reading.
    fn pause(&self) -> Duration;
}

impl ListConfig {
    /// Returns a reader, which soon gives up once `stopping` is set.
    pub fn reader(&self, stopping: &Arc<AtomicBool>) -> Box<dyn ListReader> {
        let (schema, bounds) = (self.schema.clone(), self.bounds);
        match &self.source {
            ListSourceConfig::File(file) => Box::new(file.reader(schema, bounds)),
            ListSourceConfig::Kafka(kafka) => Box::new(kafka.reader(schema, bounds, Arc::clone(stopping))),
            ListSourceConfig::Postgres(postgres) => Box::new(postgres.reader(schema, bounds)),
        }
    }

    /// Reads the list once, completely.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read_once(&self) -> Result<Entries, String> {
        let reading = self.reader(&Arc::default()).read()?;
        let entries = reading.entries.unwrap_or_default();
        self.bounds.check_entries(entries.len())?;
        self.bounds.check_bytes(encode(&self.schema, &entries).len())?;
        Ok(entries)
    }

    /// Tests what a run needs of the source.
    pub(crate) fn check(&self) -> Check {
        let outcome = match &self.source {
            ListSourceConfig::Kafka(kafka) => kafka.check_topic(),
            _ => Ok(()),
        };
        let outcome = outcome.and_then(|()| self.read_once()).map(|entries| match entries.len() {
            1 => "1 entry".to_owned(),
            n => format!("{n} entries"),
        });
        Check::of(format!("lists.{}", self.name), self.source.to_string(), outcome)
    }
}
