//! Temporary topics, groups, tables and files of a benchmark, created before it and removed after it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use headwater_sinks::Secret;
use headwater_sinks::kafka::client::Options;
use headwater_sinks::kafka::progress_topic;
use headwater_sinks::kafka::topics::{TopicSpec, Topics};
use headwater_sinks::postgres::Target;

use crate::config::{Config, LedgerConfig, OutputKind, SinkConfig, SourceConfig};
use crate::state::StateConfig;
use crate::topics;

/// The timeout of a statement in PostgreSQL.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// The resources that a benchmark has created and must remove.
pub struct Scratch {
    /// The prefix of the names of all resources.
    pub prefix: String,
    clusters: Vec<Cluster>,
    schemas: Vec<Schema>,
    /// The SQLite databases.
    files: Vec<PathBuf>,
    /// The directories of state stores.
    directories: Vec<PathBuf>,
}

/// A Kafka cluster, and the resources that were created there.
struct Cluster {
    brokers: String,
    topics: Topics,
    created: Vec<String>,
    groups: Vec<String>,
}

struct Schema {
    url: Secret,
    name: String,
}

impl Scratch {
    /// Returns an empty set of resources with a unique prefix.
    pub fn new() -> Scratch {
        let prefix = format!("headwater-bench-{}-{}-", crate::wall::wall_ms(), std::process::id());
        Scratch {
            prefix,
            clusters: Vec::new(),
            schemas: Vec::new(),
            files: Vec::new(),
            directories: Vec::new(),
        }
    }

    /// Replaces all resources of `config` by temporary ones: the input topic, the topics and tables of its sinks, its
    /// ledger, its directory for checkpoints, and its pipeline name, which is derived from `name`. The SQLite sink is
    /// removed.
    ///
    /// # Errors
    /// If a resource cannot be created.
    pub fn isolate(&mut self, config: &mut Config, name: &str) -> anyhow::Result<()> {
        let prefix = format!("{}{name}-", self.prefix);
        let pipeline = format!("{prefix}pipeline");
        config.plan.pipeline = pipeline.as_str().into();
        match &mut config.ledger {
            Some(LedgerConfig::Postgres(url)) => *url = self.schema(url, &format!("{prefix}ledger-"))?,
            Some(LedgerConfig::Sqlite(path)) => {
                *path = path.with_file_name(format!("{prefix}ledger.db"));
                self.files.push(path.clone());
            }
            None => {}
        }
        if config.checkpoint.is_some() {
            let (beside, kind): (_, fn(PathBuf) -> StateConfig) = match &config.state {
                StateConfig::Fjall(path) => (path.clone(), StateConfig::Fjall),
                #[cfg(feature = "rocksdb")]
                StateConfig::RocksDb(path) => (path.clone(), StateConfig::RocksDb),
                StateConfig::Redis(_) => (PathBuf::from("state"), StateConfig::Fjall),
                #[cfg(feature = "object-store")]
                StateConfig::Object(_) => (PathBuf::from("state"), StateConfig::Fjall),
            };
            let directory = beside.with_file_name(format!("{prefix}state"));
            self.directories.push(directory.clone());
            config.state = kind(directory);
        }
        config.sinks.0.retain(|_, sink| matches!(sink, SinkConfig::Kafka(_) | SinkConfig::Postgres(_)));
        if let SourceConfig::Kafka(source) = &config.source {
            self.cluster(&source.brokers, &source.options)?.groups.push(pipeline.clone());
        }
        for kafka in config.sinks.kafka() {
            let mut all = kafka.clone();
            all.write_only(&[OutputKind::Events, OutputKind::Alerts, OutputKind::DeadLetters]);
            let outputs: Vec<_> = topics::outputs(&all.topics)
                .into_iter()
                .map(|spec| TopicSpec { name: format!("{prefix}{}", spec.name), ..spec })
                .collect();
            let cluster = self.cluster(&kafka.brokers, &kafka.options)?;
            cluster.create(&outputs)?;
            cluster.created.push(progress_topic(&pipeline));
        }
        for (name, sink) in &mut config.sinks.0 {
            let SinkConfig::Postgres(postgres) = sink else { continue };
            postgres.url = self.schema(&postgres.url, &format!("{prefix}{name}-"))?;
            postgres.schema = None;
        }
        Ok(())
    }

    /// Returns the prefix of the topics of the pipeline `name`.
    pub fn topic_prefix(&self, name: &str) -> String {
        format!("{}{name}-", self.prefix)
    }

    /// Creates an input topic, sets it as the source of `config`, and returns its name.
    ///
    /// # Errors
    /// If the topic cannot be created, or the source of `config` is not Kafka.
    pub fn input(&mut self, config: &mut Config, partitions: u32) -> anyhow::Result<String> {
        let name = format!("{}raw-events", self.prefix);
        let SourceConfig::Kafka(source) = &mut config.source else {
            anyhow::bail!("this command needs a configuration with a Kafka source");
        };
        source.topic.clone_from(&name);
        source.start_from = crate::config::StartFrom::Earliest;
        self.cluster(&source.brokers, &source.options)?.create(&[TopicSpec::new(&name, partitions)])?;
        Ok(name)
    }

    fn cluster(&mut self, brokers: &str, options: &Options) -> anyhow::Result<&mut Cluster> {
        let known = self.clusters.iter().position(|cluster| cluster.brokers == brokers);
        let at = match known {
            Some(at) => at,
            None => {
                let topics = Topics::connect(brokers, options)?;
                let brokers = brokers.to_owned();
                self.clusters.push(Cluster { brokers, topics, created: Vec::new(), groups: Vec::new() });
                self.clusters.len() - 1
            }
        };
        Ok(&mut self.clusters[at])
    }

    /// Creates a schema; returns an address with the schema in its search path.
    fn schema(&mut self, url: &Secret, prefix: &str) -> anyhow::Result<Secret> {
        // The generated name has only lower-case letters, digits and underscores, so it needs no quotes.
        let name = prefix.trim_end_matches('-').replace('-', "_");
        execute(url.expose(), &format!("CREATE SCHEMA {name}"))?;
        self.schemas.push(Schema { url: url.clone(), name: name.clone() });
        Ok(with_search_path(url.expose(), &name).into())
    }

    /// Removes all resources. If one cannot be removed, the others are still removed.
    ///
    /// # Errors
    /// The first resource that could not be removed.
    pub fn remove(self) -> anyhow::Result<()> {
        let mut result = Ok(());
        for cluster in &self.clusters {
            result = result.and(cluster.remove());
        }
        for Schema { url, name } in &self.schemas {
            result = result.and(execute(url.expose(), &format!("DROP SCHEMA {name} CASCADE")));
        }
        for file in &self.files {
            for suffix in ["", "-wal", "-shm"] {
                let mut file = file.clone().into_os_string();
                file.push(suffix);
                match std::fs::remove_file(&file) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        result = result.and(Err(error.into()));
                    }
                    _ => {}
                }
            }
        }
        for directory in self.directories.iter().filter(|directory| directory.exists()) {
            result = result.and(std::fs::remove_dir_all(directory).map_err(Into::into));
        }
        result.with_context(|| {
            format!(
                "cannot remove all temporary resources; remove the remaining ones with the prefix {}",
                self.prefix
            )
        })
    }
}

impl Cluster {
    fn create(&mut self, specs: &[TopicSpec]) -> anyhow::Result<()> {
        // Record the names first, because a topic may have been created even if the response is lost.
        self.created.extend(specs.iter().map(|spec| spec.name.clone()));
        self.topics.create(specs)?;
        Ok(())
    }

    fn remove(&self) -> anyhow::Result<()> {
        let names = |all: &[String]| all.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let created: Vec<_> = self.created.iter().map(String::as_str).collect();
        let groups: Vec<_> = self.groups.iter().map(String::as_str).collect();
        let topics = match created.as_slice() {
            [] => Ok(()),
            created => {
                self.topics.delete(created).with_context(|| format!("cannot delete {}", names(&self.created)))
            }
        };
        topics?;
        if !groups.is_empty() {
            self.topics
                .delete_groups(&groups)
                .with_context(|| format!("cannot delete {}", names(&self.groups)))?;
        }
        Ok(())
    }
}

/// Adds a schema to `url` as its search path. `url` is a `postgres://` address or a list of `key=value` settings.
fn with_search_path(url: &str, schema: &str) -> String {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return format!("{url} options='-c search_path={schema}'");
    }
    let joint = if url.contains('?') { '&' } else { '?' };
    format!("{url}{joint}options=-c%20search_path%3D{schema}")
}

/// Executes one statement in PostgreSQL.
fn execute(url: &str, statement: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let execution = async {
            let (client, _driver) = Target::parse(url)?.connect().await?;
            client.batch_execute(statement).await?;
            anyhow::Ok(())
        };
        // Error messages contain the statement, which is generated here, but not the address or its password.
        let result = tokio::time::timeout(STATEMENT_TIMEOUT, execution).await;
        result
            .with_context(|| format!("PostgreSQL did not respond to `{statement}` in time"))?
            .with_context(|| format!("PostgreSQL cannot execute `{statement}`"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_path_is_added_to_both_forms_of_address() {
        for (url, dbname) in [
            ("postgres://ann@localhost/shop", "shop"),
            ("postgresql://ann@localhost/shop?connect_timeout=3", "shop"),
            ("host=localhost user=ann dbname=shop", "shop"),
        ] {
            let config: tokio_postgres::Config = with_search_path(url, "bench_1").parse().expect(url);
            assert_eq!(config.get_options(), Some("-c search_path=bench_1"), "{url}");
            assert_eq!(config.get_dbname(), Some(dbname), "{url}");
        }
    }
}
