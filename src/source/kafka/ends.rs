//! A topic's partitions and where they end, asked every second: a reader learns of its own only while it fetches, and of
//! partitions that are added never. Every ten seconds it is asked whether the topic has become a compacted one.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use headwater_dataflows::{Offset, Partition};
use headwater_sinks::kafka::client::Quiet;
use headwater_sinks::kafka::topics::Topics;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::{ANSWER, compacted, kafka, unavailable};
use crate::source::SourceError;

/// How often the cluster is asked.
const INTERVAL: Duration = Duration::from_secs(1);
/// The settings of the topic are asked for with every tenth of these questions.
const SETTINGS: u32 = 10;

/// What is known of a topic's partitions.
#[derive(Clone)]
pub(super) struct Ends(Arc<Mutex<Known>>);

struct Known {
    /// By partition, the offset after the last committed record, as far as is known: it can only be greater.
    ends: Vec<i64>,
    /// Partitions that were found later, each with its first offset.
    added: Vec<(Partition, Offset)>,
    /// Why the topic is not the one that was opened, if it is not.
    changed: Option<String>,
}

impl Ends {
    /// As they are now, by partition.
    pub fn known(ends: impl IntoIterator<Item = i64>) -> Ends {
        let (ends, added, changed) = (ends.into_iter().collect(), Vec::new(), None);
        Ends(Arc::new(Mutex::new(Known { ends, added, changed })))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a partition ends.
    pub fn of(&self, Partition(partition): Partition) -> i64 {
        self.lock().ends.get(partition as usize).copied().unwrap_or(0)
    }

    /// The partitions that were found later.
    pub fn added(&self) -> Vec<(Partition, Offset)> {
        self.lock().added.clone()
    }

    /// Takes in a partition that was found later, with its first offset and its end.
    pub fn add(&self, partition: Partition, first: Offset, end: i64) {
        let mut known = self.lock();
        debug_assert_eq!(known.ends.len(), partition.0 as usize);
        known.ends.push(end);
        known.added.push((partition, first));
    }

    /// Why the topic is not the one that was opened, if it is not.
    pub fn changed(&self) -> Option<String> {
        self.lock().changed.clone()
    }

    /// The topic is not the one that was opened, for this reason.
    fn change(&self, reason: String) {
        self.lock().changed.get_or_insert(reason);
    }

    /// Takes in where partitions end now.
    fn learn(&self, topic: &str, ends: impl IntoIterator<Item = (u32, i64)>) {
        let mut known = self.lock();
        for (partition, end) in ends {
            let Some(before) = known.ends.get_mut(partition as usize) else { continue };
            let was = std::mem::replace(before, end.max(*before));
            if end < was {
                known.changed.get_or_insert_with(|| {
                    format!(
                        "topic {topic} partition {partition} ended at offset {was} and now ends at {end}: the topic was \
                         deleted and created anew, or records were lost"
                    )
                });
            }
        }
    }
}

/// The thread that asks; it ends when this is dropped and its last question has been answered.
pub(super) struct Asking {
    _until_dropped: Sender<()>,
}

impl Asking {
    /// Asks with a consumer where partitions end; of a topic that is read for as long as the run `lasting` also asks whether
    /// it has changed.
    pub fn start(
        consumer: Arc<BaseConsumer<Quiet>>,
        lasting: Option<Topics>,
        topic: String,
        ends: Ends,
    ) -> Result<Asking, SourceError> {
        let (sender, dropped) = channel();
        std::thread::Builder::new()
            .name("partition-ends".to_owned())
            .spawn(move || {
                let mut asked = 0u32;
                while let Err(RecvTimeoutError::Timeout) = dropped.recv_timeout(INTERVAL) {
                    asked = asked.wrapping_add(1);
                    let known = ask(&consumer, &topic, &ends);
                    let grown = if lasting.is_some() { grow(&consumer, &topic, &ends) } else { Ok(()) };
                    if let Err(error) = known.and(grown) {
                        tracing::debug!(%error, topic, "the ends of the partitions are not known");
                    }
                    let topics = lasting.as_ref().filter(|_| asked.is_multiple_of(SETTINGS));
                    if topics.is_some_and(|topics| is_compacted(topics, &topic)) {
                        ends.change(compacted(&topic));
                    }
                }
            })
            .map_err(|error| unavailable("start the thread that asks where partitions end", error))?;
        Ok(Asking { _until_dropped: sender })
    }
}

/// Asks for all partitions at once: the offset at the latest time is the end.
fn ask(consumer: &BaseConsumer<Quiet>, topic: &str, ends: &Ends) -> KafkaResult<()> {
    let partitions = ends.lock().ends.len() as u32;
    let mut list = TopicPartitionList::with_capacity(partitions as usize);
    for partition in 0..partitions {
        list.add_partition_offset(topic, kafka(partition), KafkaOffset::End)?;
    }
    let answer = consumer.offsets_for_times(list, ANSWER)?;
    let end = |partition| match answer.find_partition(topic, kafka(partition))?.offset() {
        KafkaOffset::Offset(offset) => Some((partition, offset)),
        _ => None,
    };
    ends.learn(topic, (0..partitions).filter_map(end));
    Ok(())
}

/// Whether the topic is compacted, as far as the cluster says.
fn is_compacted(topics: &Topics, topic: &str) -> bool {
    match topics.describe(topic) {
        Ok(facts) => facts.is_some_and(|facts| facts.compacted),
        Err(error) => {
            tracing::debug!(%error, topic, "the settings of the topic are not known");
            false
        }
    }
}

/// Looks for partitions that were added.
fn grow(consumer: &BaseConsumer<Quiet>, topic: &str, ends: &Ends) -> KafkaResult<()> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER)?;
    let found = metadata.topics().first().map_or(0, |topic| topic.partitions().len()) as u32;
    let known = ends.lock().ends.len() as u32;
    for partition in known..found {
        let (low, end) = consumer.fetch_watermarks(topic, kafka(partition), ANSWER)?;
        tracing::info!(topic, partition, offset = low, "partition added: reading it from its first record");
        ends.add(Partition(partition), Offset(low), end);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_only_grow_and_one_that_goes_back_is_another_topic() {
        let ends = Ends::known([5, 7]);
        ends.learn("t", [(0, 6), (1, 7), (2, 9)]);
        assert_eq!([0, 1, 2].map(|partition| ends.of(Partition(partition))), [6, 7, 0]);
        assert_eq!(ends.changed(), None);
        ends.add(Partition(2), Offset(3), 9);
        assert_eq!((ends.added(), ends.of(Partition(2))), (vec![(Partition(2), Offset(3))], 9));
        ends.learn("t", [(1, 2)]);
        let changed = ends.changed().expect("it has gone back");
        assert!(changed.contains("partition 1 ended at offset 7 and now ends at 2"), "{changed}");
        assert_eq!(ends.of(Partition(1)), 7);
    }
}
