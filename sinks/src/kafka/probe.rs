//! What a Kafka sink needs of a cluster, asked without writing anything or fencing anybody.

use std::error::Error;
use std::fmt;

use super::client::{Options, creation_error};
use super::progress_topic;
use super::topics::{TopicError, Topics};
use super::writer::{Writer, producer_config};

/// What is in the way of a sink.
#[derive(Debug)]
pub enum Obstacle {
    /// The cluster cannot be asked.
    Topics(TopicError),
    /// The cluster answers, and something has to be done; the text says what.
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

/// Whether an output topic is there; says how many partitions it has.
///
/// # Errors
/// If it is not, or the cluster cannot be asked.
pub fn output_topic(brokers: &str, options: &Options, topic: &str) -> Result<String, Obstacle> {
    match Topics::connect(brokers, options)?.describe(topic)? {
        None => {
            Err(Obstacle::Missing("there is no such topic; `headwater topics create` creates it".to_owned()))
        }
        Some(facts) if facts.compacted => {
            Ok(format!("{} partitions; compacted, so older results are dropped", facts.partitions))
        }
        Some(facts) => Ok(format!("{} partitions", facts.partitions)),
    }
}

/// Whether a pipeline's progress topic is as it must be, if it is there.
///
/// # Errors
/// If it is not, or the cluster cannot be asked.
pub fn progress(brokers: &str, options: &Options, pipeline: &str) -> Result<String, Obstacle> {
    match Topics::connect(brokers, options)?.describe(&progress_topic(pipeline))? {
        None => Ok("not there yet; the first start creates it".to_owned()),
        Some(facts) if facts.compacted => Ok("compacted".to_owned()),
        Some(_) => Err(Obstacle::Missing(
            "it is not compacted, so progress expires; set cleanup.policy=compact".to_owned(),
        )),
    }
}

/// Whether transactional ids that begin with the pipeline's name may be used: by one that no sink uses.
///
/// # Errors
/// If not, or the cluster cannot be asked.
pub fn transactions(brokers: &str, options: &Options, pipeline: &str) -> Result<String, Obstacle> {
    let config = producer_config(brokers, options, &[])?;
    let id = format!("{pipeline}-check");
    match Writer::open(&config, &id) {
        Ok(_) => Ok(format!("permitted (tried with {id}, which nothing else uses)")),
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
