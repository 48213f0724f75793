//! Checks of a Kafka cluster for a sink. They write nothing and fence no producer.

use std::error::Error;
use std::fmt;

use super::client::{Options, creation_error};
use super::progress_topic;
use super::topics::{TopicError, Topics};
use super::writer::{Writer, producer_config};

/// The reason why a cluster cannot be used by a sink.
#[derive(Debug)]
pub enum Obstacle {
    /// Checking the cluster failed.
    Topics(TopicError),
    /// The cluster does not meet a requirement. The text contains what to do.
    Missing(String),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Topics(error) => error.fmt(f),
            Obstacle::Missing(what) => f.write_str(what),
        }
    }
}

impl Error for Obstacle {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Obstacle::Topics(error) => error.source(),
            Obstacle::Missing(_) => None,
        }
    }
}

impl<E: Into<TopicError>> From<E> for Obstacle {
    fn from(error: E) -> Self {
        Obstacle::Topics(error.into())
    }
}

/// Checks that an output topic exists. Returns a description with its number of partitions.
///
/// # Errors
/// If it does not exist, or if checking fails.
pub fn output_topic(brokers: &str, options: &Options, topic: &str) -> Result<String, Obstacle> {
    match Topics::connect(brokers, options)?.describe(topic)? {
        None => {
            Err(Obstacle::Missing("there is no such topic; `headwater topics create` creates it".to_owned()))
        }
        Some(facts) if facts.compacted => {
            Ok(format!("{} partitions; compacted, so older results of a key are deleted", facts.partitions))
        }
        Some(facts) => Ok(format!("{} partitions", facts.partitions)),
    }
}

/// Checks that the progress topic of a pipeline, if it exists, is compacted.
///
/// # Errors
/// If it is not compacted, or if checking fails.
pub fn progress(brokers: &str, options: &Options, pipeline: &str) -> Result<String, Obstacle> {
    match Topics::connect(brokers, options)?.describe(&progress_topic(pipeline))? {
        None => Ok("does not exist yet; the first start creates it".to_owned()),
        Some(facts) if facts.compacted => Ok("compacted".to_owned()),
        Some(_) => Err(Obstacle::Missing(
            "it is not compacted, so progress expires; set cleanup.policy=compact".to_owned(),
        )),
    }
}

/// Checks that transactional ids that begin with the name of the pipeline may be used. Tests it with an id that no sink
/// uses.
///
/// # Errors
/// If they may not be used, or if checking fails.
pub fn transactions(brokers: &str, options: &Options, pipeline: &str) -> Result<String, Obstacle> {
    let config = producer_config(brokers, options, &[])?;
    let id = format!("{pipeline}-check");
    match Writer::open(&config, &id, None) {
        Ok(_) => Ok(format!("permitted (tested with {id}, which no sink uses)")),
        Err(error @ rdkafka::error::KafkaError::ClientCreation(_)) => {
            Err(creation_error(&config, error).into())
        }
        Err(error) => Err(Obstacle::Missing(format!(
            "transactional id {id} cannot be used: {error}; permit Write and Describe on transactional ids that begin \
             with {pipeline}-, and Create on the cluster or on the topic {}",
            progress_topic(pipeline)
        ))),
    }
}
