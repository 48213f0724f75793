//! A topic's partitions and their end offsets, fetched every second: a reader sees the ends of its own partitions only
//! while it fetches, and never sees added partitions. Every ten seconds, the topic is checked for compaction.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use headwater_dataflows::{Offset, Partition};
use headwater_sinks::kafka::client::Quiet;
use headwater_sinks::kafka::topics::Topics;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::{REQUEST_TIMEOUT, compacted_error, kafka_partition, unavailable};
use crate::source::SourceError;

/// The interval between two requests to the cluster.
const INTERVAL: Duration = Duration::from_secs(1);
/// The settings of the topic are checked every `SETTINGS_EVERY` intervals.
const SETTINGS_EVERY: u32 = 10;

/// The last known end offsets of a topic's partitions.
#[derive(Clone)]
pub(super) struct PartitionEnds(Arc<Mutex<EndsState>>);

struct EndsState {
    /// By partition, the offset after the last committed record, as last observed: the actual offset may be greater.
    ends: Vec<i64>,
    /// Partitions that were added after opening, each with its first offset.
    added: Vec<(Partition, Offset)>,
    /// The change that makes the topic unreadable since it was opened, if any.
    changed: Option<String>,
}

impl PartitionEnds {
    /// Creates the state from the current end offsets, by partition.
    pub fn new(ends: impl IntoIterator<Item = i64>) -> PartitionEnds {
        let (ends, added, changed) = (ends.into_iter().collect(), Vec::new(), None);
        PartitionEnds(Arc::new(Mutex::new(EndsState { ends, added, changed })))
    }

    fn lock(&self) -> MutexGuard<'_, EndsState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the end offset of a partition.
    pub fn of(&self, Partition(partition): Partition) -> i64 {
        self.lock().ends.get(partition as usize).copied().unwrap_or(0)
    }

    /// Returns the partitions that were added after opening.
    pub fn added(&self) -> Vec<(Partition, Offset)> {
        self.lock().added.clone()
    }

    /// Adds a partition that was found after opening, with its first offset and its end offset.
    pub fn add(&self, partition: Partition, first: Offset, end: i64) {
        let mut state = self.lock();
        debug_assert_eq!(state.ends.len(), partition.0 as usize);
        state.ends.push(end);
        state.added.push((partition, first));
    }

    /// Returns the change that makes the topic unreadable, if there was one.
    pub fn changed(&self) -> Option<String> {
        self.lock().changed.clone()
    }

    /// Records that the topic has changed and cannot be read further; the first reason is kept.
    fn set_changed(&self, reason: String) {
        self.lock().changed.get_or_insert(reason);
    }

    /// Updates the end offsets. An end offset that decreased marks the topic as changed.
    fn update(&self, topic: &str, ends: impl IntoIterator<Item = (u32, i64)>) {
        let mut state = self.lock();
        for (partition, end) in ends {
            let Some(before) = state.ends.get_mut(partition as usize) else { continue };
            let was = std::mem::replace(before, end.max(*before));
            if end < was {
                state.changed.get_or_insert_with(|| {
                    format!(
                        "topic {topic} partition {partition} ended at offset {was} and now ends at {end}: the topic was \
                         deleted and recreated, or records were lost"
                    )
                });
            }
        }
    }
}

/// The handle of the polling thread, which ends after its current request once the handle is dropped.
pub(super) struct EndsPoller {
    _until_dropped: Sender<()>,
}

impl EndsPoller {
    /// Starts the thread. Unless the run is until the end, the thread also looks for added partitions and for compaction,
    /// with the topic client.
    pub fn start(
        consumer: Arc<BaseConsumer<Quiet>>,
        topics: Topics,
        until_end: bool,
        topic: String,
        ends: PartitionEnds,
    ) -> Result<EndsPoller, SourceError> {
        let (sender, dropped) = channel();
        std::thread::Builder::new()
            .name("partition-ends".to_owned())
            .spawn(move || {
                // Dropping a client takes 0.1 s.
                let unbounded = (!until_end).then_some(topics);
                let mut polls = 0u32;
                while let Err(RecvTimeoutError::Timeout) = dropped.recv_timeout(INTERVAL) {
                    polls = polls.wrapping_add(1);
                    let fetched = fetch_ends(&consumer, &topic, &ends);
                    let added =
                        if unbounded.is_some() { add_partitions(&consumer, &topic, &ends) } else { Ok(()) };
                    if let Err(error) = fetched.and(added) {
                        tracing::debug!(%error, topic, "cannot fetch the end offsets of the partitions");
                    }
                    let topics = unbounded.as_ref().filter(|_| polls.is_multiple_of(SETTINGS_EVERY));
                    if topics.is_some_and(|topics| is_compacted(topics, &topic)) {
                        ends.set_changed(compacted_error(&topic));
                    }
                }
            })
            .map_err(|error| unavailable("start the thread that fetches end offsets", error))?;
        Ok(EndsPoller { _until_dropped: sender })
    }
}

/// Fetches the end offsets of all partitions in one request: the offset at the latest time is the end.
fn fetch_ends(consumer: &BaseConsumer<Quiet>, topic: &str, ends: &PartitionEnds) -> KafkaResult<()> {
    let partitions = ends.lock().ends.len() as u32;
    let mut list = TopicPartitionList::with_capacity(partitions as usize);
    for partition in 0..partitions {
        list.add_partition_offset(topic, kafka_partition(partition), KafkaOffset::End)?;
    }
    let answer = consumer.offsets_for_times(list, REQUEST_TIMEOUT)?;
    let end = |partition| match answer.find_partition(topic, kafka_partition(partition))?.offset() {
        KafkaOffset::Offset(offset) => Some((partition, offset)),
        _ => None,
    };
    ends.update(topic, (0..partitions).filter_map(end));
    Ok(())
}

/// Returns true if the topic is compacted; false if the cluster does not respond.
fn is_compacted(topics: &Topics, topic: &str) -> bool {
    match topics.describe(topic) {
        Ok(facts) => facts.is_some_and(|facts| facts.compacted),
        Err(error) => {
            tracing::debug!(%error, topic, "cannot read the settings of the topic");
            false
        }
    }
}

/// Adds partitions that the topic has gained.
fn add_partitions(consumer: &BaseConsumer<Quiet>, topic: &str, ends: &PartitionEnds) -> KafkaResult<()> {
    let metadata = consumer.fetch_metadata(Some(topic), REQUEST_TIMEOUT)?;
    let found = metadata.topics().first().map_or(0, |topic| topic.partitions().len()) as u32;
    let known = ends.lock().ends.len() as u32;
    for partition in known..found {
        let (low, end) = consumer.fetch_watermarks(topic, kafka_partition(partition), REQUEST_TIMEOUT)?;
        tracing::info!(topic, partition, offset = low, "partition added: reading it from its first record");
        ends.add(Partition(partition), Offset(low), end);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_decreases_marks_the_topic_as_changed() {
        let ends = PartitionEnds::new([5, 7]);
        ends.update("t", [(0, 6), (1, 7), (2, 9)]);
        assert_eq!([0, 1, 2].map(|partition| ends.of(Partition(partition))), [6, 7, 0]);
        assert_eq!(ends.changed(), None);
        ends.add(Partition(2), Offset(3), 9);
        assert_eq!((ends.added(), ends.of(Partition(2))), (vec![(Partition(2), Offset(3))], 9));
        ends.update("t", [(1, 2)]);
        let changed = ends.changed().expect("the end has decreased");
        assert!(changed.contains("partition 1 ended at offset 7 and now ends at 2"), "{changed}");
        assert_eq!(ends.of(Partition(1)), 7);
    }
}
