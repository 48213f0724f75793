//! Describes, creates and deletes topics.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use thiserror::Error;

use super::client::{Options, Quiet, client_config, creation_error, wait};
use super::contact::{Contact, ContactError};
use crate::Misconfigured;

/// The timeout of one request to the cluster.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The same timeout, in parts. After each part, waiting ends if the error is permanent.
const REQUEST_TIMEOUT_PARTS: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(6)];

/// The number of events, including log lines, that are polled from the queue of a client to find connection errors.
const MAX_POLLED_EVENTS: usize = 256;

/// A topic that should exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// The minimum number of partitions.
    pub partitions: u32,
    /// The replication factor; `None` for the default of the cluster.
    pub replication: Option<u32>,
    /// Settings of the topic, with Kafka's names.
    pub config: Vec<(String, String)>,
}

impl TopicSpec {
    /// Returns a topic with the default settings of the cluster.
    pub fn new(name: &str, partitions: u32) -> TopicSpec {
        TopicSpec { name: name.to_owned(), partitions, replication: None, config: Vec::new() }
    }

    /// Adds a setting.
    pub fn with(mut self, key: &str, value: &str) -> TopicSpec {
        self.config.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// The properties of an existing topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicFacts {
    /// The number of partitions.
    pub partitions: u32,
    /// True if the topic is compacted: newer records replace older ones with the same key.
    pub compacted: bool,
    /// The largest record batch that the topic accepts, in bytes.
    pub max_message_bytes: usize,
    /// The number of replicas of the partition that has the fewest.
    pub replication: u32,
    /// The number of replicas that must be in sync for a write to be accepted.
    pub min_insync_replicas: u32,
}

/// The error of describing or changing topics.
#[derive(Debug, Error)]
pub enum TopicError {
    /// The client's options cannot be used.
    #[error("cannot connect to Kafka")]
    Option(#[from] Misconfigured),
    /// No broker could be reached.
    #[error("cannot {action}")]
    Unreachable {
        /// The operation that failed.
        action: String,
        /// The reason, with the address and what to check.
        source: ContactError,
    },
    /// The cluster returned an error or timed out.
    #[error("cannot {action}")]
    Unavailable {
        /// The operation that failed.
        action: String,
        /// Kafka's own error.
        source: KafkaError,
    },
    /// A topic exists, but has fewer partitions than required.
    #[error(
        "topic {name} has {found} partitions, but {wanted} are required; add partitions or choose another name"
    )]
    TooFewPartitions {
        /// The topic.
        name: String,
        /// The number of partitions it has.
        found: u32,
        /// The number of partitions required.
        wanted: u32,
    },
}

/// The topics of a cluster.
pub struct Topics {
    admin: AdminClient<Quiet>,
    /// A consumer fetches the metadata, because its requests never create a topic.
    metadata: BaseConsumer<Contact>,
    config: ClientConfig,
}

impl Topics {
    /// Creates the clients. The first request connects.
    pub fn connect(brokers: &str, options: &Options) -> Result<Topics, TopicError> {
        let config = client_config(brokers, options, &[("log.connection.close", "false")], &[])?;
        let refused = |error| creation_error(&config, error);
        let admin = create_admin(&config).map_err(refused)?;
        let metadata = config.create_with_context(Contact::default()).map_err(refused)?;
        Ok(Topics { admin, metadata, config })
    }

    /// Fetches the metadata of a topic. If no broker responds, the error contains the worst connection error.
    fn fetch_metadata(&self, name: &str) -> Result<Metadata, TopicError> {
        use RDKafkaErrorCode as Code;
        let action = || format!("look up topic {name}");
        let mut problem = None;
        for part in REQUEST_TIMEOUT_PARTS {
            let source = match self.metadata.fetch_metadata(Some(name), part) {
                Ok(metadata) => {
                    // Discards the errors of connections that have recovered: they would be reported for a later
                    // failure.
                    worst_error(&self.metadata);
                    return Ok(metadata);
                }
                Err(error) => error,
            };
            let is_unreachable = matches!(
                source.rdkafka_error_code(),
                Some(Code::OperationTimedOut | Code::BrokerTransportFailure | Code::AllBrokersDown)
            );
            if !is_unreachable {
                return Err(TopicError::Unavailable { action: action(), source });
            }
            problem = ContactError::worse(worst_error(&self.metadata), problem);
            if problem.as_ref().is_some_and(ContactError::is_permanent) {
                break;
            }
        }
        let brokers = self.config.get("bootstrap.servers").unwrap_or_default();
        let problem =
            problem.map_or_else(|| ContactError::no_response(brokers), |problem| problem.at(brokers));
        let has_wrong_host_name = problem.is_untrusted() && self.is_trusted_without_host_name();
        let source = if has_wrong_host_name { problem.with_wrong_host_name() } else { problem };
        Err(TopicError::Unreachable { action: action(), source })
    }

    /// Returns true if the broker's certificate is trusted when its host name is not checked. The error of librdkafka
    /// does not distinguish a wrong host name from an untrusted CA. Sends no secrets.
    fn is_trusted_without_host_name(&self) -> bool {
        let mut config = self.config.clone();
        config.set("ssl.endpoint.identification.algorithm", "none").set("security.protocol", "SSL");
        for (key, _) in self.config.config_map() {
            if key.starts_with("sasl.") {
                config.remove(key);
            }
        }
        let Ok(client) = config.create_with_context::<_, BaseConsumer<Contact>>(Contact::default()) else {
            return false;
        };
        client.fetch_metadata(None, REQUEST_TIMEOUT_PARTS[1]).is_ok()
            || worst_error(&client).is_some_and(|problem| !problem.is_untrusted())
    }

    /// Returns the number of partitions of a topic; `None` if it does not exist.
    pub fn partitions(&self, name: &str) -> Result<Option<u32>, TopicError> {
        Ok(self.layout(name)?.map(|(partitions, _)| partitions))
    }

    /// Returns the number of partitions of a topic, and the number of replicas of the partition that has the fewest;
    /// `None` if the topic does not exist.
    fn layout(&self, name: &str) -> Result<Option<(u32, u32)>, TopicError> {
        let unavailable =
            |source| TopicError::Unavailable { action: format!("look up topic {name}"), source };
        let metadata = self.fetch_metadata(name)?;
        let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else {
            return Ok(None);
        };
        match topic.error() {
            None => {
                let replicas = topic.partitions().iter().map(|partition| partition.replicas().len()).min();
                let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
                Ok(Some((count(topic.partitions().len()), count(replicas.unwrap_or(0)))))
            }
            Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => Ok(None),
            Some(error) => Err(unavailable(KafkaError::MetadataFetch(error.into()))),
        }
    }

    /// Returns the properties of a topic; `None` if it does not exist.
    pub fn describe(&self, name: &str) -> Result<Option<TopicFacts>, TopicError> {
        let unavailable =
            |source| TopicError::Unavailable { action: format!("read the settings of topic {name}"), source };
        let Some((partitions, replication)) = self.layout(name)? else { return Ok(None) };
        let resources = [ResourceSpecifier::Topic(name)];
        let results = wait(self.admin.describe_configs(&resources, &admin_options())).map_err(unavailable)?;
        let mut facts = TopicFacts {
            partitions,
            compacted: false,
            max_message_bytes: 1_048_588,
            replication,
            min_insync_replicas: 1,
        };
        for result in results {
            let config = result.map_err(|code| unavailable(KafkaError::AdminOp(code)))?;
            let value = |key: &str| config.get(key).and_then(|entry| entry.value.as_deref());
            facts.compacted = value("cleanup.policy")
                .is_some_and(|policy| policy.split(',').any(|p| p.trim() == "compact"));
            if let Some(bytes) = value("max.message.bytes").and_then(|bytes| bytes.parse().ok()) {
                facts.max_message_bytes = bytes;
            }
            if let Some(replicas) = value("min.insync.replicas").and_then(|replicas| replicas.parse().ok()) {
                facts.min_insync_replicas = replicas;
            }
        }
        Ok(Some(facts))
    }

    /// Returns the default replication factor of the brokers; `None` if they do not report it.
    pub fn default_replication(&self) -> Option<u32> {
        let metadata = self.metadata.fetch_metadata(None, REQUEST_TIMEOUT).ok()?;
        let broker = metadata.brokers().first()?.id();
        let resources = [ResourceSpecifier::Broker(broker)];
        let results = wait(self.admin.describe_configs(&resources, &admin_options())).ok()?;
        let config = results.into_iter().next()?.ok()?;
        config.get("default.replication.factor")?.value.as_deref()?.parse().ok()
    }

    /// Creates the topics that do not exist and returns their names. Does not change existing topics. If an existing
    /// topic has fewer partitions than required, returns an error and creates no topic.
    pub fn create(&self, specs: &[TopicSpec]) -> Result<Vec<String>, TopicError> {
        let mut missing = Vec::new();
        for spec in specs {
            match self.partitions(&spec.name)? {
                None => missing.push(spec),
                Some(found) => check_partitions(spec, found)?,
            }
        }
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let new: Vec<_> = missing.iter().map(|spec| new_topic(spec)).collect();
        let results = wait(self.admin.create_topics(&new, &admin_options()))
            .map_err(|source| TopicError::Unavailable { action: "create topics".to_owned(), source })?;
        let mut created = Vec::new();
        for result in results {
            match result {
                Ok(name) => created.push(name),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => {
                    let action = format!("create topic {name}");
                    return Err(TopicError::Unavailable { action, source: KafkaError::AdminOp(code) });
                }
            }
        }
        for spec in missing {
            self.wait_until_visible(spec)?;
        }
        Ok(created)
    }

    /// Deletes topics. A topic that does not exist is not an error.
    pub fn delete(&self, names: &[&str]) -> Result<(), TopicError> {
        let results = wait(self.admin.delete_topics(names, &admin_options()))
            .map_err(|source| TopicError::Unavailable { action: "delete topics".to_owned(), source })?;
        for result in results {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
                Err((name, code)) => {
                    let action = format!("delete topic {name}");
                    return Err(TopicError::Unavailable { action, source: KafkaError::AdminOp(code) });
                }
            }
        }
        Ok(())
    }

    /// Deletes all records of a topic before an offset of each partition.
    pub fn delete_records(&self, name: &str, offsets: &[(i32, i64)]) -> Result<(), TopicError> {
        let unavailable =
            |source| TopicError::Unavailable { action: format!("delete records of topic {name}"), source };
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for &(partition, offset) in offsets {
            list.add_partition_offset(name, partition, Offset::Offset(offset)).map_err(unavailable)?;
        }
        let deleted = wait(self.admin.delete_records(&list, &admin_options())).map_err(unavailable)?;
        deleted.elements().iter().try_for_each(|element| element.error()).map_err(unavailable)
    }

    /// Deletes consumer groups without members. A group that does not exist is not an error.
    pub fn delete_groups(&self, names: &[&str]) -> Result<(), TopicError> {
        let unavailable =
            |action: String| move |source: KafkaError| TopicError::Unavailable { action, source };
        let results = wait(self.admin.delete_groups(names, &admin_options()))
            .map_err(unavailable("delete consumer groups".to_owned()))?;
        for result in results {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::GroupIdNotFound)) => {}
                Err((name, code)) => {
                    let action = format!("delete consumer group {name}");
                    return Err(unavailable(action)(KafkaError::AdminOp(code)));
                }
            }
        }
        Ok(())
    }

    /// Waits until a new topic is visible. The request that creates it completes before the metadata of all brokers
    /// contains it.
    fn wait_until_visible(&self, spec: &TopicSpec) -> Result<(), TopicError> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        loop {
            if let Some(found) = self.partitions(&spec.name)? {
                return check_partitions(spec, found);
            }
            if Instant::now() > deadline {
                let source = KafkaError::AdminOp(RDKafkaErrorCode::UnknownTopicOrPartition);
                return Err(TopicError::Unavailable {
                    action: format!("find the new topic {}", spec.name),
                    source,
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Polls a client and returns its worst connection error, if there is one. The queue of this consumer contains only
/// error events and log lines, no records.
fn worst_error(client: &BaseConsumer<Contact>) -> Option<ContactError> {
    (0..MAX_POLLED_EVENTS).for_each(|_| drop(client.poll(Duration::ZERO)));
    client.context().take()
}

fn create_admin(config: &ClientConfig) -> Result<AdminClient<Quiet>, KafkaError> {
    config.create_with_context(Quiet)
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT)).operation_timeout(Some(REQUEST_TIMEOUT))
}

fn check_partitions(spec: &TopicSpec, found: u32) -> Result<(), TopicError> {
    if found < spec.partitions {
        return Err(TopicError::TooFewPartitions { name: spec.name.clone(), found, wanted: spec.partitions });
    }
    Ok(())
}

fn new_topic(spec: &TopicSpec) -> NewTopic<'_> {
    // In the protocol, -1 is the default of the cluster.
    let replication = spec.replication.map_or(-1, |replicas| i32::try_from(replicas).unwrap_or(i32::MAX));
    let partitions = i32::try_from(spec.partitions).unwrap_or(i32::MAX);
    let topic = NewTopic::new(&spec.name, partitions, TopicReplication::Fixed(replication));
    spec.config.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
}
