//! Where partitions end, asked now and then: a reader hears of it only while it fetches, and a reader that is held
//! back does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use headwater_dataflows::Partition;
use headwater_sinks::kafka::client::Quiet;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::{ANSWER, kafka, unavailable};
use crate::source::SourceError;

/// How often the cluster is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// The offset after the last committed record of each partition, as far as is known: it can only be greater.
#[derive(Clone)]
pub(super) struct Ends(Arc<[AtomicI64]>);

impl Ends {
    /// As they are now, by partition.
    pub fn known(ends: impl IntoIterator<Item = i64>) -> Ends {
        Ends(ends.into_iter().map(AtomicI64::new).collect())
    }

    /// Where a partition ends.
    pub fn of(&self, Partition(partition): Partition) -> i64 {
        self.0.get(partition as usize).map_or(0, |end| end.load(Ordering::Relaxed))
    }
}

/// The thread that asks; it ends when this is dropped and its last question has been answered.
pub(super) struct Asking {
    _until_dropped: Sender<()>,
}

impl Asking {
    pub fn start(
        consumer: Arc<BaseConsumer<Quiet>>,
        topic: String,
        ends: Ends,
    ) -> Result<Asking, SourceError> {
        let (sender, dropped) = channel();
        std::thread::Builder::new()
            .name("partition-ends".to_owned())
            .spawn(move || {
                while let Err(RecvTimeoutError::Timeout) = dropped.recv_timeout(INTERVAL) {
                    if let Err(error) = ask(&consumer, &topic, &ends) {
                        tracing::debug!(%error, topic, "the ends of the partitions are not known");
                    }
                }
            })
            .map_err(|error| unavailable("start the thread that asks where partitions end", error))?;
        Ok(Asking { _until_dropped: sender })
    }
}

/// Asks for all partitions at once: the offset at the latest time is the end.
fn ask(consumer: &BaseConsumer<Quiet>, topic: &str, ends: &Ends) -> KafkaResult<()> {
    let mut list = TopicPartitionList::with_capacity(ends.0.len());
    for partition in 0..ends.0.len() as u32 {
        list.add_partition_offset(topic, kafka(partition), KafkaOffset::End)?;
    }
    let answer = consumer.offsets_for_times(list, ANSWER)?;
    for (partition, end) in (0..).zip(&*ends.0) {
        let element = answer.find_partition(topic, kafka(partition));
        if let Some(KafkaOffset::Offset(offset)) = element.map(|element| element.offset()) {
            end.fetch_max(offset, Ordering::Relaxed);
        }
    }
    Ok(())
}
