//! Topics: what a cluster knows of them, creating them, deleting them.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use rdkafka::types::RDKafkaRespErr;
use thiserror::Error;

use super::client::{Options, Quiet, client_config, creation_error, wait};
use super::contact::{Contact, ContactError};
use crate::Misconfigured;

/// How long one question to the cluster may take.
const ANSWER: Duration = Duration::from_secs(10);

/// The same, in parts: after each, a problem that does not pass ends the waiting.
const PARTS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(6)];

/// How many events are taken from a client's queue, log lines among them, to find out what is the matter.
const EVENTS: usize = 256;

/// A topic that should exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// How many partitions it has, at least.
    pub partitions: u32,
    /// How many copies of each partition the cluster keeps; none for the cluster's default.
    pub replication: Option<u32>,
    /// Settings of the topic, by Kafka's names.
    pub config: Vec<(String, String)>,
}

impl TopicSpec {
    /// A topic with the cluster's default settings.
    pub fn new(name: &str, partitions: u32) -> TopicSpec {
        TopicSpec { name: name.to_owned(), partitions, replication: None, config: Vec::new() }
    }

    /// The same with one more setting.
    pub fn with(mut self, key: &str, value: &str) -> TopicSpec {
        self.config.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// What the cluster says of a topic that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicFacts {
    /// How many partitions it has.
    pub partitions: u32,
    /// Whether old records are dropped in favour of newer ones with the same key.
    pub compacted: bool,
    /// The largest record batch that it takes, in bytes.
    pub max_message_bytes: usize,
    /// How many copies of its partitions the cluster keeps; of that with the fewest.
    pub replication: u32,
    /// How many copies must be there for anything to be taken.
    pub min_insync_replicas: u32,
}

/// Why topics could not be looked up or changed.
#[derive(Debug, Error)]
pub enum TopicError {
    /// The client's options cannot be used.
    #[error("cannot connect to Kafka")]
    Option(#[from] Misconfigured),
    /// No broker could be talked to.
    #[error("cannot {action}")]
    Unreachable {
        /// What was being done.
        action: String,
        /// Why, with the address and what to check.
        source: ContactError,
    },
    /// The cluster answered with an error, or too late.
    #[error("cannot {action}")]
    Unavailable {
        /// What was being done.
        action: String,
        /// Kafka's own error.
        source: KafkaError,
    },
    /// A topic exists, but not as it was asked for.
    #[error(
        "topic {name} has {found} partitions and {wanted} are wanted; add partitions or choose another name"
    )]
    TooFewPartitions {
        /// The topic.
        name: String,
        /// How many it has.
        found: u32,
        /// How many were asked for.
        wanted: u32,
    },
}

/// The topics of a cluster.
pub struct Topics {
    admin: AdminClient<Quiet>,
    /// Metadata is asked for by a consumer, which never creates a topic by asking for it.
    metadata: BaseConsumer<Contact>,
    config: ClientConfig,
}

impl Topics {
    /// Prepares to ask a cluster; the first question connects.
    pub fn connect(brokers: &str, options: &Options) -> Result<Topics, TopicError> {
        let config = client_config(brokers, options, &[("log.connection.close", "false")], &[])?;
        let refused = |error| creation_error(&config, error);
        let admin = create_admin(&config).map_err(refused)?;
        let metadata = config.create_with_context(Contact::default()).map_err(refused)?;
        Ok(Topics { admin, metadata, config })
    }

    /// Asks for a topic's metadata. That no broker answers is explained by what has happened to the connections.
    fn ask(&self, name: &str) -> Result<Metadata, TopicError> {
        use RDKafkaErrorCode as Code;
        let action = || format!("look up topic {name}");
        let mut problem = None;
        for part in PARTS {
            let source = match self.metadata.fetch_metadata(Some(name), part) {
                Ok(metadata) => {
                    // Events of connections that have been mended would pile up, and explain a later failure.
                    gravest(&self.metadata);
                    return Ok(metadata);
                }
                Err(error) => error,
            };
            let unanswered = matches!(
                source.rdkafka_error_code(),
                Some(Code::OperationTimedOut | Code::BrokerTransportFailure | Code::AllBrokersDown)
            );
            if !unanswered {
                return Err(TopicError::Unavailable { action: action(), source });
            }
            problem = ContactError::graver(gravest(&self.metadata), problem);
            if problem.as_ref().is_some_and(ContactError::is_permanent) {
                break;
            }
        }
        let brokers = self.config.get("bootstrap.servers").unwrap_or_default();
        let problem = problem.map_or_else(|| ContactError::silent(brokers), |problem| problem.at(brokers));
        let source =
            if problem.is_distrust() && self.trusts_any_name() { problem.about_the_name() } else { problem };
        Err(TopicError::Unreachable { action: action(), source })
    }

    /// Whether a broker that is not trusted is if its host name does not count: librdkafka does not say which of both it
    /// is. Nothing secret is sent.
    fn trusts_any_name(&self) -> bool {
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
        client.fetch_metadata(None, PARTS[1]).is_ok()
            || gravest(&client).is_some_and(|problem| !problem.is_distrust())
    }

    /// How many partitions a topic has; none if it does not exist.
    pub fn partitions(&self, name: &str) -> Result<Option<u32>, TopicError> {
        Ok(self.layout(name)?.map(|(partitions, _)| partitions))
    }

    /// How many partitions a topic has, and how many copies of that with the fewest there are.
    fn layout(&self, name: &str) -> Result<Option<(u32, u32)>, TopicError> {
        let unavailable =
            |source| TopicError::Unavailable { action: format!("look up topic {name}"), source };
        let metadata = self.ask(name)?;
        let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else {
            return Ok(None);
        };
        match topic.error() {
            None => {
                let copies = topic.partitions().iter().map(|partition| partition.replicas().len()).min();
                let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
                Ok(Some((count(topic.partitions().len()), count(copies.unwrap_or(0)))))
            }
            Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => Ok(None),
            Some(error) => Err(unavailable(KafkaError::MetadataFetch(error.into()))),
        }
    }

    /// What there is to know of a topic; none if it does not exist.
    pub fn describe(&self, name: &str) -> Result<Option<TopicFacts>, TopicError> {
        let unavailable =
            |source| TopicError::Unavailable { action: format!("read the settings of topic {name}"), source };
        let Some((partitions, replication)) = self.layout(name)? else { return Ok(None) };
        let resources = [ResourceSpecifier::Topic(name)];
        let answers = wait(self.admin.describe_configs(&resources, &admin_options())).map_err(unavailable)?;
        let mut facts = TopicFacts {
            partitions,
            compacted: false,
            max_message_bytes: 1_048_588,
            replication,
            min_insync_replicas: 1,
        };
        for answer in answers {
            let config = answer.map_err(|code| unavailable(KafkaError::AdminOp(code)))?;
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

    /// How many copies of a new topic's partitions the brokers keep by default; none if they do not say.
    pub fn default_replication(&self) -> Option<u32> {
        let metadata = self.metadata.fetch_metadata(None, ANSWER).ok()?;
        let broker = metadata.brokers().first()?.id();
        let resources = [ResourceSpecifier::Broker(broker)];
        let answers = wait(self.admin.describe_configs(&resources, &admin_options())).ok()?;
        let config = answers.into_iter().next()?.ok()?;
        config.get("default.replication.factor")?.value.as_deref()?.parse().ok()
    }

    /// Creates the topics that do not exist yet and returns their names. A topic that exists stays as it is;
    /// having fewer partitions than asked for is an error, found before anything is created.
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
        let answers = wait(self.admin.create_topics(&new, &admin_options()))
            .map_err(|source| TopicError::Unavailable { action: "create topics".to_owned(), source })?;
        let mut created = Vec::new();
        for answer in answers {
            match answer {
                Ok(name) => created.push(name),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => {
                    let action = format!("create topic {name}");
                    return Err(TopicError::Unavailable { action, source: KafkaError::AdminOp(code) });
                }
            }
        }
        for spec in missing {
            self.until_visible(spec)?;
        }
        Ok(created)
    }

    /// Deletes topics; one that does not exist is no error.
    pub fn delete(&self, names: &[&str]) -> Result<(), TopicError> {
        let answers = wait(self.admin.delete_topics(names, &admin_options()))
            .map_err(|source| TopicError::Unavailable { action: "delete topics".to_owned(), source })?;
        for answer in answers {
            match answer {
                Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
                Err((name, code)) => {
                    let action = format!("delete topic {name}");
                    return Err(TopicError::Unavailable { action, source: KafkaError::AdminOp(code) });
                }
            }
        }
        Ok(())
    }

    /// Deletes consumer groups that nobody is a member of; one that does not exist is no error.
    pub fn delete_groups(&self, names: &[&str]) -> Result<(), TopicError> {
        let unavailable =
            |action: String| move |source: KafkaError| TopicError::Unavailable { action, source };
        let answers = wait(self.admin.delete_groups(names, &admin_options()))
            .map_err(unavailable("delete consumer groups".to_owned()))?;
        for answer in answers {
            match answer {
                Ok(_) | Err((_, RDKafkaErrorCode::GroupIdNotFound)) => {}
                Err((name, code)) => {
                    let action = format!("delete consumer group {name}");
                    return Err(unavailable(action)(KafkaError::AdminOp(code)));
                }
            }
        }
        Ok(())
    }

    /// The broker that created a topic may answer before the others, or it itself, can be asked about it.
    fn until_visible(&self, spec: &TopicSpec) -> Result<(), TopicError> {
        let deadline = Instant::now() + ANSWER;
        loop {
            if let Some(found) = self.partitions(&spec.name)? {
                return check_partitions(spec, found);
            }
            if Instant::now() > deadline {
                let source = KafkaError::AdminOp(RDKafkaErrorCode::UnknownTopicOrPartition);
                return Err(TopicError::Unavailable {
                    action: format!("see the new topic {}", spec.name),
                    source,
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What is the matter with a client's connections. Its error events wait in the consumer's queue, one behind another; it
/// has nothing else to say.
fn gravest(client: &BaseConsumer<Contact>) -> Option<ContactError> {
    (0..EVENTS).for_each(|_| drop(client.poll(Duration::ZERO)));
    client.context().take()
}

fn create_admin(config: &ClientConfig) -> Result<AdminClient<Quiet>, KafkaError> {
    config.create_with_context(Quiet)
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER))
}

fn check_partitions(spec: &TopicSpec, found: u32) -> Result<(), TopicError> {
    if found < spec.partitions {
        return Err(TopicError::TooFewPartitions { name: spec.name.clone(), found, wanted: spec.partitions });
    }
    Ok(())
}

fn new_topic(spec: &TopicSpec) -> NewTopic<'_> {
    // The cluster's default is written -1 on the wire.
    let replication = spec.replication.map_or(-1, |copies| i32::try_from(copies).unwrap_or(i32::MAX));
    let partitions = i32::try_from(spec.partitions).unwrap_or(i32::MAX);
    let topic = NewTopic::new(&spec.name, partitions, TopicReplication::Fixed(replication));
    spec.config.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
}
