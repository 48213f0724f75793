//! Sending dead letters again: which, how they are edited, and what became of them.

use headwater_dataflows::Position;
use serde::Serialize;
use utoipa::ToSchema;

use super::payload::{self, MASK};
use super::tables::{Rows, TableRow};
use super::{Database, Filter, LetterId, LetterStore, LettersError, Storage};
use crate::source::Raw;
use crate::source::kafka::dead_letters::{DeadLetter, DeadLetters};
use crate::source::kafka::retry::{Resend, Retried, Retry};

/// The number and size of rows that are held in memory.
const ROWS: usize = 500;
const ROWS_BYTES: usize = 8 << 20;

/// A change of the records that are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// This value instead of the original one; for one letter.
    Value(Vec<u8>),
    /// These fields, each with the JSON text of its value.
    Set(Vec<(String, String)>),
}

/// The letters to send, and how.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RetryRequest {
    /// The letters; if it is empty, all that the filter chooses.
    pub ids: Vec<LetterId>,
    /// The letters to choose.
    pub filter: Filter,
    /// The maximum number of letters to look at.
    pub limit: Option<u64>,
    /// A change of the records.
    pub edit: Option<Edit>,
    /// True to send nothing, and only count.
    pub dry_run: bool,
    /// True to send late records, too.
    pub include_late: bool,
    /// The maximum number of letters to send in a second.
    pub per_second: Option<f64>,
}

/// The numbers of letters that were sent, or would be, and of those that were not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct RetryReport {
    /// Sent to the source topic.
    pub sent: u64,
    /// True if nothing was sent, and `sent` is the number of letters that would be.
    pub dry_run: bool,
    /// Left out.
    pub skipped: Skipped,
    /// Left out because they were retried as often as they may be.
    pub exhausted: u64,
    /// Left out because they are of other pipelines or source topics.
    pub of_other_pipelines: u64,
}

/// The numbers of letters that were left out, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Skipped {
    /// They were sent before.
    pub sent_before: u64,
    /// They would be late again.
    pub late: u64,
    /// Only the beginning of the record is stored.
    pub truncated: u64,
}

impl RetryReport {
    fn new(retried: &Retried, dry_run: bool) -> RetryReport {
        let Retried { sent, before, late, exhausted, truncated, of_others } = *retried;
        let skipped = Skipped { sent_before: before, late, truncated };
        RetryReport { sent, dry_run, skipped, exhausted, of_other_pipelines: of_others }
    }
}

/// Letters, in the order of offsets within a partition.
type Letters<'a> = Box<dyn Iterator<Item = Result<DeadLetter, LettersError>> + 'a>;

impl LetterStore {
    /// Sends letters to the source topic, each at most once, whatever ends the call.
    ///
    /// # Errors
    /// If the source is not Kafka, a letter does not exist, an edited record would be rejected again, or the letters
    /// cannot be read or sent. What was sent before the error stays sent, and is not sent again.
    pub fn retry(&self, request: &RetryRequest) -> Result<RetryReport, LettersError> {
        let RetryRequest { ids, filter, limit, edit, .. } = request;
        let source = self.source.as_ref().ok_or(LettersError::NoSourceTopic)?;
        if matches!(edit, Some(Edit::Value(_))) && ids.len() != 1 {
            return Err(LettersError::Request(
                "an edited value replaces that of one letter: give its id".into(),
            ));
        }
        let is_table = matches!(self.storage, Storage::Table(_));
        let retry = Retry {
            brokers: &source.brokers,
            options: &source.options,
            pipeline: &self.pipeline,
            source_topic: &source.topic,
            letters_topic: self.name_in_ledger(),
            include_late: request.include_late,
            records_each: is_table || !ids.is_empty() || limit.is_some() || !filter.is_by_reason(),
            per_second: request.per_second,
            producer_header: &self.producer_header,
        };
        let letters = self.chosen(ids, filter)?.take(limit.map_or(usize::MAX, |limit| limit as usize));
        let resends = letters.map(|letter| self.resend(letter?, edit.as_ref()));
        let retried = if request.dry_run {
            retry.dry_run(resends)?
        } else {
            let retried = retry.run(resends);
            self.last_read.forget();
            retried?
        };
        Ok(RetryReport::new(&retried, request.dry_run))
    }

    /// Returns the letters with these ids, or all that the filter chooses.
    fn chosen<'a>(&'a self, ids: &[LetterId], filter: &'a Filter) -> Result<Letters<'a>, LettersError> {
        if !ids.is_empty() {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids.dedup();
            let found = |id| self.raw_letter(id)?.ok_or(LettersError::NotFound(id));
            let letters = ids.into_iter().map(found).collect::<Result<Vec<_>, _>>()?;
            return Ok(Box::new(letters.into_iter().map(Ok)));
        }
        Ok(match &self.storage {
            Storage::Topic(topic) => {
                let all = DeadLetters::read_all(&topic.brokers, &topic.options, &topic.topic)?;
                let all = all.map(|letter| letter.map_err(LettersError::from));
                Box::new(all.filter(|letter| letter.as_ref().map_or(true, |letter| filter.matches(letter))))
            }
            // The table does not store producers.
            Storage::Table(_) if filter.producer.is_some() => Box::new(std::iter::empty()),
            Storage::Table(database) => {
                let rows =
                    TableLetters { database, filter, last: None, read: Vec::new().into_iter(), ended: false };
                Box::new(rows.map(|row| Ok(self.of_row(row?))))
            }
        })
    }

    /// Applies an edit to a letter, and checks that the record is not rejected again.
    fn resend(&self, letter: DeadLetter, edit: Option<&Edit>) -> Result<Resend, LettersError> {
        let Some(edit) = edit else { return Ok(Resend { letter, edited: None }) };
        let id = LetterId::of(&letter);
        let failed = |reason: String| LettersError::Edit { id, reason };
        let edited = match edit {
            Edit::Value(value) => {
                self.check_unmasked(&letter, value).map_err(failed)?;
                value.clone()
            }
            Edit::Set(fields) => {
                let text = std::str::from_utf8(letter.value.as_deref().unwrap_or_default());
                let text = text
                    .map_err(|error| failed(format!("cannot be made: the payload is no text ({error})")))?;
                let set = |text: String, (field, json): &(String, String)| payload::set(&text, field, json);
                let edited = fields.iter().try_fold(text.to_owned(), set);
                edited.map_err(|reason| failed(format!("cannot be made: {reason}")))?.into_bytes()
            }
        };
        let Position { partition, offset } = letter.position;
        let raw = Raw {
            position: Position { partition, offset },
            timestamp: letter.timestamp,
            key: letter.key.as_deref(),
            value: Some(&edited),
            retries: 0,
            producer: None,
        };
        match self.decoding.decoder().decode(raw) {
            Ok(_) => Ok(Resend { letter, edited: Some(edited) }),
            Err(rejection) => Err(failed(format!("would be rejected again: {}", rejection.message))),
        }
    }
}

impl LetterStore {
    /// Checks that a new value was not made from a masked one, whose hidden values would be lost.
    fn check_unmasked(&self, letter: &DeadLetter, value: &[u8]) -> Result<(), String> {
        let has_mask = |bytes: &[u8]| bytes.windows(MASK.len()).any(|part| part == MASK.as_bytes());
        if self.mask.is_empty() || !has_mask(value) || has_mask(letter.value.as_deref().unwrap_or_default()) {
            return Ok(());
        }
        Err(format!(
            "has {MASK} where `dead_letters.mask` hides a value: write the value itself, or change other fields only, with \
             `headwater dead-letters retry --set FIELD=JSON`"
        ))
    }
}

/// The letters of a table, by position.
struct TableLetters<'a> {
    database: &'a Database,
    filter: &'a Filter,
    last: Option<LetterId>,
    read: std::vec::IntoIter<TableRow>,
    ended: bool,
}

impl TableLetters<'_> {
    fn refill(&mut self) -> Result<(), LettersError> {
        let (mut read, mut bytes) = (Vec::new(), 0);
        self.database.rows(self.filter, &Rows::ByPosition(self.last), ROWS, &mut |row| {
            bytes += row.value.as_ref().map_or(0, Vec::len);
            read.push(row);
            bytes <= ROWS_BYTES
        })?;
        self.ended = read.is_empty();
        self.last = read.last().map(|row| row.id).or(self.last);
        self.read = read.into_iter();
        Ok(())
    }
}

impl Iterator for TableLetters<'_> {
    type Item = Result<TableRow, LettersError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.read.len() == 0
            && !self.ended
            && let Err(error) = self.refill()
        {
            self.ended = true;
            return Some(Err(error));
        }
        self.read.next().map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::dead_letters::LastRead;
    use crate::dead_letters::letter::tests::letter;

    #[test]
    fn the_ledger_is_read_again_once_it_is_forgotten() {
        let (last, mut reads) = (LastRead::default(), 0);
        for forget in [false, false, true, false] {
            if forget {
                last.forget();
            }
            assert!(
                last.or_read(|| {
                    reads += 1;
                    None
                })
                .is_none()
            );
        }
        assert_eq!(reads, 2, "also if it could not be read");
    }

    #[test]
    fn a_value_made_from_a_masked_one_is_refused() {
        let store = LetterStore {
            pipeline: "fraud".to_owned(),
            storage: Storage::Table(Database::Sqlite(PathBuf::new())),
            source: None,
            mask: vec!["card".to_owned()],
            producer_header: String::new(),
            decoding: crate::decode::JSON.standard(),
            last_read: LastRead::default(),
        };
        let original = letter(br#"{"card":"4711","a":1}"#);
        let check = |store: &LetterStore, value: &[u8]| store.check_unmasked(&original, value);
        let error = check(&store, br#"{"card":"***","a":2}"#).expect_err("the card would be lost");
        assert!(error.contains("`dead_letters.mask` hides a value"), "{error}");
        assert_eq!(check(&store, br#"{"card":"4711","a":2}"#), Ok(()));
        let unmasked = LetterStore { mask: Vec::new(), ..store };
        assert_eq!(check(&unmasked, br#"{"card":"***","a":2}"#), Ok(()));
    }
}
