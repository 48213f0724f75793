//! Committing the consumer group's offsets, on a thread of its own.
//!
//! librdkafka's synchronous commit has no bound (it waits for a coordinator as long as it takes), and its
//! asynchronous one tells nobody how it ended. So a thread waits for the one, and the caller waits for the thread, but
//! not for long.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use headwater_sinks::kafka::client::Quiet;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaResult;

use super::{settled, unavailable};
use crate::source::SourceError;

/// How long a commit may take: it is advisory.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often the consumer is asked for log lines, which would pile up in it otherwise.
const HOUSEKEEPING: Duration = Duration::from_millis(500);

/// Offsets to commit, and where to say how it went.
type Request = (TopicPartitionList, SyncSender<KafkaResult<()>>);

/// The thread that commits; it ends when this is dropped and its last commit has ended.
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

    /// Commits these offsets, or says after a few seconds that nothing is known of them yet.
    pub fn commit(&self, offsets: TopicPartitionList) -> Result<(), SourceError> {
        const ACTION: &str = "commit the group's offsets";
        let (reply, answer) = sync_channel(1);
        self.requests.try_send((offsets, reply)).map_err(|error| match error {
            TrySendError::Full(_) => unavailable(ACTION, "earlier ones are still being committed"),
            TrySendError::Disconnected(_) => unavailable(ACTION, "the thread that commits has ended"),
        })?;
        match answer.recv_timeout(PATIENCE) {
            Ok(outcome) => outcome.map_err(|error| unavailable(ACTION, error)),
            Err(_) => Err(unavailable(ACTION, format!("no answer within {PATIENCE:?}"))),
        }
    }
}

fn serve(consumer: &BaseConsumer<Quiet>, requests: &Receiver<Request>) {
    loop {
        match requests.recv_timeout(HOUSEKEEPING) {
            // Whoever asked may have stopped waiting.
            Ok((offsets, reply)) => {
                drop(reply.send(settled(|| consumer.commit(&offsets, CommitMode::Sync))));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while consumer.poll(Duration::from_millis(1)).is_some() {}
    }
}
