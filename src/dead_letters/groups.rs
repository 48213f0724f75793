//! Dead letters grouped by reason, field and producer.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;
use utoipa::ToSchema;

use super::tables::GROUPS;
use super::topic::is_of_pipeline;
use super::{Filter, LetterId, LetterStore, LettersError, READ_TIME, Storage, open, time};
use crate::source::kafka::dead_letters::{DeadLetter, header};

/// Letters with the same reason, field and producer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Group {
    /// The reason.
    pub reason: String,
    /// The field.
    pub field: Option<String>,
    /// The producer; tables do not store it.
    pub producer: Option<String>,
    /// The number of letters.
    pub count: u64,
    /// The time of the first, in RFC 3339.
    pub first_seen: Option<String>,
    /// The time of the last, in RFC 3339.
    pub last_seen: Option<String>,
    /// The id of the newest.
    #[schema(value_type = Option<String>)]
    pub example: Option<LetterId>,
}

/// The groups of a pipeline's letters, the largest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Groups {
    /// The groups.
    pub groups: Vec<Group>,
    /// True if every letter is counted; false if there was not enough time, or there are too many groups.
    pub complete: bool,
}

/// The reason, field and producer of letters.
type GroupKey = (String, Option<String>, Option<String>);

#[derive(Default)]
struct Count {
    letters: u64,
    first_ms: Option<i64>,
    last_ms: Option<i64>,
    example: Option<LetterId>,
}

/// The groups of the letters that were read.
#[derive(Default)]
struct Counts {
    groups: BTreeMap<GroupKey, Count>,
    /// True if a letter was not counted, because there are [`GROUPS`] others.
    overflows: bool,
}

impl Counts {
    fn add(&mut self, letter: &DeadLetter) {
        let text = |name| letter.header(name).filter(|text| !text.is_empty()).map(str::to_owned);
        let key = (letter.reason().to_owned(), text(header::FIELD), text(header::PRODUCER));
        if self.groups.len() >= GROUPS && !self.groups.contains_key(&key) {
            self.overflows = true;
            return;
        }
        let count = self.groups.entry(key).or_default();
        count.letters += 1;
        let ms = time(letter.timestamp).map(|_| letter.timestamp);
        if ms >= count.last_ms {
            (count.last_ms, count.example) = (ms, Some(LetterId::of(letter)));
        }
        count.first_ms = [count.first_ms, ms].into_iter().flatten().min();
    }

    fn into_groups(self) -> Vec<Group> {
        let group = |((reason, field, producer), count): (GroupKey, Count)| Group {
            reason,
            field,
            producer,
            count: count.letters,
            first_seen: count.first_ms.and_then(time),
            last_seen: count.last_ms.and_then(time),
            example: count.example,
        };
        let mut groups: Vec<_> = self.groups.into_iter().map(group).collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.count));
        groups
    }
}

impl LetterStore {
    /// Groups the letters that a filter chooses by reason, field and producer.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn groups(&self, filter: &Filter) -> Result<Groups, LettersError> {
        match &self.storage {
            Storage::Table(_) if filter.producer.is_some() => {
                Ok(Groups { groups: Vec::new(), complete: true })
            }
            Storage::Table(database) => {
                let groups = database.groups(filter)?;
                Ok(Groups { complete: groups.len() < GROUPS, groups })
            }
            Storage::Topic(topic) => {
                let topic = open(topic)?;
                let ranges: Vec<_> = topic.bounds().collect();
                let mut counts = Counts::default();
                let complete = topic.read_letters(&ranges, Instant::now() + READ_TIME, &mut |letter| {
                    if is_of_pipeline(&letter, &self.pipeline) && filter.matches(&letter) {
                        counts.add(&letter);
                    }
                })?;
                Ok(Groups { complete: complete && !counts.overflows, groups: counts.into_groups() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use headwater_dataflows::Offset;

    use super::super::letter::tests::letter;
    use super::*;

    fn at(offset: i64, ms: i64) -> DeadLetter {
        let mut letter = letter(b"{}");
        letter.position.offset = Offset(offset);
        letter.timestamp = ms;
        letter
    }

    #[test]
    fn letters_are_grouped_by_reason_field_and_producer() {
        let mut counts = Counts::default();
        let mut of_another = at(3, 5_000);
        of_another.headers.retain(|(name, _)| name != header::PRODUCER);
        for letter in [at(1, 3_000), at(2, 1_000), of_another, at(4, 2_000)] {
            counts.add(&letter);
        }
        let groups = counts.into_groups();
        let found: Vec<_> = groups.iter().map(|group| (group.producer.as_deref(), group.count)).collect();
        assert_eq!(found, [(Some("shop"), 3), (None, 1)]);
        assert_eq!(groups[0].first_seen.as_deref(), Some("1970-01-01T00:00:01.000Z"));
        assert_eq!(groups[0].last_seen.as_deref(), Some("1970-01-01T00:00:03.000Z"));
        assert_eq!(groups[0].example.map(|id| id.offset), Some(1), "the newest");
    }

    #[test]
    fn producers_without_number_do_not_fill_the_memory() {
        let mut counts = Counts::default();
        for n in 0..GROUPS + 10 {
            let mut letter = at(1, 1);
            letter.headers.last_mut().expect("the producer").1 = n.to_string().into_bytes();
            counts.add(&letter);
        }
        assert!(counts.overflows);
        assert_eq!(counts.into_groups().len(), GROUPS);
    }
}
