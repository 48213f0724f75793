//! The queue of one partition, from which records are taken together.
//!
//! The Rust binding takes a record at a time: for each it reads the clock and allocates an event. The C library can also hand
//! out several in one call.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::CString;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::bindings::{
    rd_kafka_consume_batch_queue, rd_kafka_message_destroy, rd_kafka_queue_destroy,
    rd_kafka_queue_get_partition, rd_kafka_queue_t,
};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::{RDKafkaMessage, RDKafkaRespErr};

use super::fetched::Fetched;

/// The number of records that are taken in one call. They are memory beyond the bound of the queue.
const BATCH: usize = 64;

/// The queue of a partition, which the consumer has split from its own.
pub(super) struct BatchQueue<C: ConsumerContext + 'static> {
    native: NonNull<rd_kafka_queue_t>,
    /// The records and errors that were taken from the queue, and not handed out.
    taken: Mutex<VecDeque<Message>>,
    // Keeps the client alive until the queue is dropped.
    _consumer: Arc<BaseConsumer<C>>,
}

// SAFETY: queues of the C library may be used by all threads; it locks them itself.
unsafe impl<C: ConsumerContext> Send for BatchQueue<C> {}
// SAFETY: as above.
unsafe impl<C: ConsumerContext> Sync for BatchQueue<C> {}

/// The next action after a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Serve {
    /// The next one.
    Next,
    /// Nothing: the next one waits for another call.
    Stop,
}

/// A record or an error, to be destroyed while the consumer lives.
struct Message(NonNull<RDKafkaMessage>);

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: the message was taken from the queue, belongs to nothing else, and the client still lives.
        unsafe { rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}

impl Message {
    fn get(&self) -> Result<Fetched<'_>, KafkaError> {
        // SAFETY: the message lives as long as self.
        let (error, partition) = unsafe { (self.0.as_ref().err, self.0.as_ref().partition) };
        match error {
            // SAFETY: it is a record, and lives as long as self.
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(unsafe { Fetched::new(self.0.as_ptr()) }),
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__PARTITION_EOF => Err(KafkaError::PartitionEOF(partition)),
            error => Err(KafkaError::MessageConsumption(error.into())),
        }
    }
}

impl<C: ConsumerContext> BatchQueue<C> {
    /// Returns the queue of a partition; `None` if the client does not know the partition.
    pub fn new(consumer: &Arc<BaseConsumer<C>>, topic: &str, partition: i32) -> Option<Self> {
        let topic = CString::new(topic).ok()?;
        // SAFETY: the client lives, and the name ends with a zero byte. The reference is destroyed on drop.
        let native = unsafe {
            rd_kafka_queue_get_partition(consumer.client().native_ptr(), topic.as_ptr(), partition)
        };
        let (native, taken) = (NonNull::new(native)?, Mutex::default());
        Some(BatchQueue { native, taken, _consumer: Arc::clone(consumer) })
    }

    /// Calls `each` for some records and errors of the queue, at most until it says to stop. Returns their number: 0 if the
    /// queue was empty. Does not wait.
    pub fn serve(&self, each: &mut dyn FnMut(Result<Fetched<'_>, KafkaError>) -> Serve) -> usize {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.is_empty() {
            self.take(&mut taken);
        }
        let mut served = 0;
        while let Some(message) = taken.pop_front() {
            served += 1;
            if each(message.get()) == Serve::Stop {
                break;
            }
        }
        served
    }

    fn take(&self, taken: &mut VecDeque<Message>) {
        let mut batch = [ptr::null_mut(); BATCH];
        // SAFETY: the queue lives, and the C library fills at most BATCH places with messages that are now ours.
        let count =
            unsafe { rd_kafka_consume_batch_queue(self.native.as_ptr(), 0, batch.as_mut_ptr(), BATCH) };
        let count = usize::try_from(count).unwrap_or(0);
        taken.extend(batch[..count].iter().filter_map(|message| NonNull::new(*message)).map(Message));
    }
}

impl<C: ConsumerContext> Drop for BatchQueue<C> {
    fn drop(&mut self) {
        self.taken.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: the reference was taken by `new`, and the client still lives.
        unsafe { rd_kafka_queue_destroy(self.native.as_ptr()) }
    }
}
