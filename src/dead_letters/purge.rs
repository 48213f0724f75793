//! Deleting old dead letters.

use std::time::Instant;

use serde::Serialize;

use super::topic::is_of_pipeline;
use super::{LetterStore, LettersError, READ_TIME, Storage, open};

/// The numbers of letters that were deleted, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Purged {
    /// The number of letters of this pipeline.
    pub deleted: u64,
    /// The number of letters of other pipelines.
    pub of_other_pipelines: u64,
    /// True if nothing was deleted, and only counted.
    pub dry_run: bool,
}

impl LetterStore {
    /// Deletes the letters before a time, in milliseconds since 1970: rows of a table by the timestamps of their records,
    /// and of a topic everything before the first letter that was written at or after that time, in each partition.
    /// Letters that were not sent again are deleted, too.
    ///
    /// # Errors
    /// If the letters cannot be deleted; or the topic has letters of other pipelines before that time, unless
    /// `all_pipelines`.
    pub fn purge(&self, before_ms: i64, all_pipelines: bool, dry_run: bool) -> Result<Purged, LettersError> {
        let place = match &self.storage {
            Storage::Table(database) => {
                let deleted = database.purge(before_ms, dry_run)?;
                return Ok(Purged { deleted, of_other_pipelines: 0, dry_run });
            }
            Storage::Topic(topic) => topic,
        };
        let topic = open(place)?;
        let ends = topic.offsets_at(before_ms)?;
        let ranges: Vec<_> = topic
            .bounds()
            .zip(&ends)
            .map(|((partition, bounds), &end)| (partition, bounds.start..end))
            .collect();
        let mut purged = Purged { dry_run, ..Purged::default() };
        let complete =
            topic.read_letters(&ranges, Instant::now() + READ_TIME, &mut |letter| match is_of_pipeline(
                &letter,
                &self.pipeline,
            ) {
                true => purged.deleted += 1,
                false => purged.of_other_pipelines += 1,
            })?;
        if !complete {
            return Err(LettersError::TimedOut(READ_TIME));
        }
        if purged.of_other_pipelines > 0 && !all_pipelines {
            return Err(LettersError::OfOthers {
                topic: place.topic.clone(),
                count: purged.of_other_pipelines,
            });
        }
        let offsets: Vec<_> = ranges
            .into_iter()
            .filter(|(_, range)| !range.is_empty())
            .map(|(partition, range)| (partition, range.end))
            .collect();
        if !dry_run && !offsets.is_empty() {
            topic.delete_before(&offsets)?;
        }
        Ok(purged)
    }
}
