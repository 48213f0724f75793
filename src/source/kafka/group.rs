//! Committing the consumer group's offsets, on a separate thread.
//!
//! librdkafka's synchronous commit has no timeout (it waits for a coordinator without limit), and its asynchronous
//! commit does not report the outcome. So a thread commits synchronously, and the caller waits for the thread with a
//! timeout.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use headwater_sinks::kafka::client::Quiet;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaResult;

use super::{retry_transient, unavailable};
use crate::source::SourceError;

/// The maximum time to wait for a commit, which is advisory.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(3);
/// The interval at which the consumer is polled, so that its log lines do not accumulate.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Offsets to commit, and the channel for the outcome.
type Request = (TopicPartitionList, SyncSender<KafkaResult<()>>);

/// The handle of the commit thread, which ends after its current commit once the handle is dropped.
pub(super) struct Committer {
    requests: SyncSender<Request>,
}

impl Committer {
    pub fn start(consumer: Arc<BaseConsumer<Quiet>>) -> Result<Committer, SourceError> {
        let (requests, incoming) = sync_channel(1);
        std::thread::Builder::new()
            .name("group-offsets".to_owned())
            .spawn(move || serve(&consumer, &incoming))
            .map_err(|error| unavailable("start the thread that commits the group's offsets", error))?;
        Ok(Committer { requests })
    }

    /// Commits these offsets.
    ///
    /// # Errors
    /// If the commit fails or its outcome is not known after a few seconds.
    pub fn commit(&self, offsets: TopicPartitionList) -> Result<(), SourceError> {
        const ACTION: &str = "commit the group's offsets";
        let (reply, answer) = sync_channel(1);
        self.requests.try_send((offsets, reply)).map_err(|error| match error {
            TrySendError::Full(_) => unavailable(ACTION, "an earlier commit is still in progress"),
            TrySendError::Disconnected(_) => unavailable(ACTION, "the commit thread has ended"),
        })?;
        match answer.recv_timeout(COMMIT_TIMEOUT) {
            Ok(outcome) => outcome.map_err(|error| unavailable(ACTION, error)),
            Err(_) => Err(unavailable(ACTION, format!("no response within {COMMIT_TIMEOUT:?}"))),
        }
    }
}

fn serve(consumer: &BaseConsumer<Quiet>, requests: &Receiver<Request>) {
    loop {
        match requests.recv_timeout(POLL_INTERVAL) {
            // The caller may have timed out.
            Ok((offsets, reply)) => {
                drop(reply.send(retry_transient(|| consumer.commit(&offsets, CommitMode::Sync))));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while consumer.poll(Duration::from_millis(1)).is_some() {}
    }
}
