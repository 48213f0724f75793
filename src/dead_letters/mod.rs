//! Dead letters as a tool: listed, grouped, shown, sent again and purged, in a topic or a table.
//!
//! ```text
//!   topic (newest first, by parts) ─┐               ┌─▶ page, letter, groups: with masks, places, what was sent again
//!   table (SQLite, PostgreSQL)     ─┴─▶ DeadLetter ─┼─▶ retry ─▶ source topic + retry ledger, in one transaction
//!                                                   └─▶ purge
//! ```
//!
//! All calls block, and each is bounded in memory and time.

mod groups;
mod letter;
mod payload;
mod purge;
mod retry;
mod tables;
mod topic;

pub use groups::{Group, Groups};
pub use letter::{Filter, Letter, LetterId, Place, SourceRecord, time};
pub use purge::Purged;
pub use retry::{Edit, RetryReport, RetryRequest, Skipped};
pub use tables::Database;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headwater_dataflows::Partition;
use headwater_sinks::kafka::client::Options;
use serde::Serialize;
use thiserror::Error;
use utoipa::ToSchema;

use crate::decode::Decoding;
use crate::source::SourceError;
use crate::source::kafka::dead_letters::DeadLetter;
use crate::source::kafka::retry::{RetryError, RetryLedger, TABLE};
use crate::source::kafka::topic_ranges::{Fetch, TopicRanges};
use tables::{Rows, TableCursor};

/// The largest page.
pub const MAX_PAGE: usize = 1000;

/// The time in which a topic is read.
const READ_TIME: Duration = Duration::from_secs(20);

/// The time for which the retry ledger is not read again. To read it takes a connection to Kafka of its own.
const LEDGER_AGE: Duration = Duration::from_secs(1);

/// A topic of a Kafka cluster.
#[derive(Clone, Debug)]
pub struct KafkaTopic {
    /// The bootstrap servers.
    pub brokers: String,
    /// Options for the Kafka client.
    pub options: Options,
    /// The topic.
    pub topic: String,
}

/// The place of the dead letters.
#[derive(Clone, Debug)]
pub enum Storage {
    /// A topic, which several pipelines may write.
    Topic(KafkaTopic),
    /// The table `dead_letters` of a database.
    Table(Database),
}

/// The dead letters of a pipeline.
#[derive(Clone, Debug)]
pub struct LetterStore {
    /// The pipeline.
    pub pipeline: String,
    /// The place of the letters.
    pub storage: Storage,
    /// The source topic, to which letters are sent again; None if the source is not Kafka.
    pub source: Option<KafkaTopic>,
    /// The fields whose values are never shown.
    pub mask: Vec<String>,
    /// The header of source records that names their producer.
    pub producer_header: String,
    /// The way in which records are decoded, which decides whether an edited record is accepted.
    pub decoding: Decoding,
    /// The retry ledger, as it was read last.
    pub last_read: LastRead,
}

/// The retry ledger, as it was read last, if it was. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct LastRead(Arc<Mutex<Option<ReadLedger>>>);

/// A retry ledger, and when it was read.
#[derive(Debug)]
struct ReadLedger {
    when: Instant,
    /// None if it could not be read.
    ledger: Option<Arc<RetryLedger>>,
}

impl LastRead {
    /// Returns the ledger if it was read within [`LEDGER_AGE`], else reads it. Of several callers one reads.
    fn or_read(&self, read: impl FnOnce() -> Option<RetryLedger>) -> Option<Arc<RetryLedger>> {
        let mut last = self.0.lock().expect("no holder of the lock panics");
        if let Some(ReadLedger { when, ledger }) = &*last
            && when.elapsed() < LEDGER_AGE
        {
            return ledger.clone();
        }
        let ledger = read().map(Arc::new);
        *last = Some(ReadLedger { when: Instant::now(), ledger: ledger.clone() });
        ledger
    }

    /// Makes the next caller read the ledger.
    fn forget(&self) {
        *self.0.lock().expect("no holder of the lock panics") = None;
    }
}

/// Letters, and where the next page begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Page {
    /// The letters, the newest first.
    pub dead_letters: Vec<Letter>,
    /// The cursor of the next page; None at the end.
    pub next_cursor: Option<String>,
    /// The number of letters of other pipelines that were passed over.
    #[serde(skip)]
    pub of_other_pipelines: u64,
}

/// An error of reading, sending or purging dead letters.
#[derive(Debug, Error)]
pub enum LettersError {
    /// The topic cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The letters cannot be sent, or the retry ledger cannot be read.
    #[error(transparent)]
    Retry(#[from] RetryError),
    /// The database cannot be used.
    #[error("cannot {action}")]
    Database {
        /// The failed action, as a verb phrase.
        action: String,
        /// The error of the database.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Reading took too long.
    #[error("the dead letters could not be read within {0:?}; choose fewer, by time or reason")]
    TimedOut(Duration),
    /// A cursor is not one of those that pages have.
    #[error("{0:?} is no cursor of a page of dead letters: use `next_cursor` of the page before")]
    Cursor(String),
    /// There is no such letter.
    #[error("there is no dead letter {0} of this pipeline")]
    NotFound(LetterId),
    /// Letters cannot be sent, because the source is not Kafka.
    #[error(
        "dead letters are sent again to a Kafka source topic, and the source of this pipeline is not Kafka; correct the \
         records in the input, and read it with another pipeline name"
    )]
    NoSourceTopic,
    /// An edited record cannot be sent.
    #[error("the edited record of dead letter {id} {reason}")]
    Edit {
        /// The letter.
        id: LetterId,
        /// The error, as a verb phrase.
        reason: String,
    },
    /// A request contradicts itself.
    #[error("{0}")]
    Request(String),
    /// The topic holds letters of other pipelines, which would be deleted too.
    #[error(
        "topic {topic} holds {count} dead letters of other pipelines before that time, which would be deleted too; \
         --all-pipelines permits it"
    )]
    OfOthers {
        /// The topic.
        topic: String,
        /// The number of letters.
        count: u64,
    },
}

impl LettersError {
    /// Returns true if a promise would be broken, or the source refuses: trying again does not help.
    pub fn is_refusal(&self) -> bool {
        use LettersError::{OfOthers, Retry, Source};
        matches!(
            self,
            Source(SourceError::Refused(_))
                | Retry(RetryError::Read(SourceError::Refused(_)))
                | OfOthers { .. }
        )
    }

    /// Returns true if the request or the configuration must be changed.
    pub fn is_usage(&self) -> bool {
        matches!(self, LettersError::Request(_) | LettersError::Cursor(_) | LettersError::NoSourceTopic)
    }
}

impl LetterStore {
    /// Returns a page of the letters that a filter chooses, the newest first; `cursor` is that of the page before.
    ///
    /// # Errors
    /// If the cursor is invalid, or the letters cannot be read.
    pub fn page(&self, filter: &Filter, cursor: Option<&str>, limit: usize) -> Result<Page, LettersError> {
        let limit = limit.clamp(1, MAX_PAGE);
        let raw = match &self.storage {
            Storage::Topic(topic) => topic::page(&open(topic)?, &self.pipeline, filter, cursor, limit)?,
            Storage::Table(database) => self.page_of_table(database, filter, cursor, limit)?,
        };
        let ledger = if raw.letters.is_empty() { None } else { self.retry_ledger() };
        Ok(Page {
            dead_letters: raw.letters.iter().map(|letter| self.shown(letter, ledger.as_deref())).collect(),
            next_cursor: raw.cursor,
            of_other_pipelines: raw.of_other_pipelines,
        })
    }

    fn page_of_table(
        &self,
        database: &Database,
        filter: &Filter,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<topic::RawPage, LettersError> {
        let after = cursor.map(TableCursor::parse).transpose()?;
        let mut page = topic::RawPage::default();
        // The table does not store producers.
        if filter.producer.is_some() {
            return Ok(page);
        }
        let (mut bytes, mut last) = (0, None);
        database.rows(filter, &Rows::Newest(after), limit, &mut |row| {
            bytes += row.value.as_ref().map_or(0, Vec::len);
            last = Some(row.cursor());
            page.letters.push(self.of_row(row));
            bytes <= topic::PAGE_BYTES
        })?;
        let is_full = page.letters.len() == limit || bytes > topic::PAGE_BYTES;
        page.cursor = last.filter(|_| is_full).map(|cursor| cursor.to_string());
        Ok(page)
    }

    /// Returns a letter; None if there is none with this id.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn letter(&self, id: LetterId) -> Result<Option<Letter>, LettersError> {
        let found = self.raw_letter(id)?;
        let ledger = if found.is_some() { self.retry_ledger() } else { None };
        Ok(found.map(|letter| self.shown(&letter, ledger.as_deref())))
    }

    /// Returns a letter as it is stored, if it is one of this pipeline.
    fn raw_letter(&self, id: LetterId) -> Result<Option<DeadLetter>, LettersError> {
        let mut found = None;
        match &self.storage {
            Storage::Topic(topic) => {
                let topic = open(topic)?;
                let bounds = topic.bounds().find(|(partition, _)| partition.0 == id.partition);
                if bounds.is_some_and(|(_, bounds)| bounds.contains(&id.offset)) {
                    let range = (Partition(id.partition), id.offset..id.offset + 1);
                    let deadline = Instant::now() + READ_TIME;
                    if !topic.read_letters(&[range], deadline, &mut |letter| found = Some(letter))? {
                        return Err(LettersError::TimedOut(READ_TIME));
                    }
                }
            }
            Storage::Table(database) => {
                database.rows(&Filter::default(), &Rows::One(id), 1, &mut |row| {
                    found = Some(self.of_row(row));
                    false
                })?;
            }
        }
        Ok(found.filter(|letter| topic::is_of_pipeline(letter, &self.pipeline)))
    }

    fn of_row(&self, row: tables::TableRow) -> DeadLetter {
        row.into_letter(&self.pipeline, self.source.as_ref().map(|source| &*source.topic))
    }

    fn shown(&self, letter: &DeadLetter, ledger: Option<&RetryLedger>) -> Letter {
        let sent_again = ledger.map(|ledger| ledger.has_sent(self.name_in_ledger(), letter));
        Letter::new(letter, &self.mask, sent_again)
    }

    /// Returns the name of the place of the letters in the retry ledger.
    fn name_in_ledger(&self) -> &str {
        match &self.storage {
            Storage::Topic(topic) => &topic.topic,
            Storage::Table(_) => TABLE,
        }
    }

    /// Reads the retry ledger; None if it cannot be read. It is empty if the source has no topic to send letters to.
    fn retry_ledger(&self) -> Option<Arc<RetryLedger>> {
        let Some(source) = &self.source else { return Some(Arc::default()) };
        let read = || RetryLedger::read(&source.brokers, &source.options, &self.pipeline);
        self.last_read.or_read(|| {
            read()
                .inspect_err(|error| tracing::warn!(%error, "cannot read which dead letters were sent again"))
                .ok()
        })
    }
}

fn open(KafkaTopic { brokers, options, topic }: &KafkaTopic) -> Result<TopicRanges, LettersError> {
    Ok(TopicRanges::open(brokers, options, topic, Fetch::Little)?)
}
