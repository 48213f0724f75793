//! Topics, groups and tables of a measurement's own, made before it and removed after it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use headwater_sinks::Secret;
use headwater_sinks::kafka::client::Options;
use headwater_sinks::kafka::progress_topic;
use headwater_sinks::kafka::topics::{TopicSpec, Topics};
use headwater_sinks::postgres::Target;

use crate::config::{Config, LedgerConfig, OutputKind, SourceConfig, StateConfig};
use crate::topics;

/// How long PostgreSQL may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a measurement has made, so that it can be removed.
pub struct Scratch {
    /// Before the name of everything that it makes.
    pub prefix: String,
    clusters: Vec<Cluster>,
    schemas: Vec<Schema>,
    /// Databases of SQLite.
    files: Vec<PathBuf>,
    /// State stores.
    folders: Vec<PathBuf>,
}

/// A Kafka cluster, and what was made there.
struct Cluster {
    brokers: String,
    topics: Topics,
    made: Vec<String>,
    groups: Vec<String>,
}

struct Schema {
    url: Secret,
    name: String,
}

impl Scratch {
    /// Nothing yet, under a prefix that no other measurement has.
    pub fn new() -> Scratch {
        let prefix = format!("headwater-bench-{}-{}-", crate::wall::wall_ms(), std::process::id());
        Scratch { prefix, clusters: Vec::new(), schemas: Vec::new(), files: Vec::new(), folders: Vec::new() }
    }

    /// Makes `config` read and write only what is made here for it: an input topic, the topics and tables of its
    /// sinks, a ledger if it has one, a folder for checkpoints if it makes any, the pipeline `name`. SQLite as a sink is
    /// left out.
    ///
    /// # Errors
    /// If something cannot be made.
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
            };
            let folder = beside.with_file_name(format!("{prefix}state"));
            self.folders.push(folder.clone());
            config.state = kind(folder);
        }
        config.sinks.sqlite = None;
        if let SourceConfig::Kafka(source) = &config.source {
            self.cluster(&source.brokers, &source.options)?.groups.push(pipeline.clone());
        }
        if let Some(kafka) = &config.sinks.kafka {
            let mut all = kafka.clone();
            all.write_only(&[OutputKind::Events, OutputKind::Alerts, OutputKind::DeadLetters]);
            let outputs: Vec<_> = topics::outputs(&all.topics)
                .into_iter()
                .map(|spec| TopicSpec { name: format!("{prefix}{}", spec.name), ..spec })
                .collect();
            let cluster = self.cluster(&kafka.brokers, &kafka.options)?;
            cluster.create(&outputs)?;
            cluster.made.push(progress_topic(&pipeline));
        }
        if let Some(postgres) = &mut config.sinks.postgres {
            postgres.url = self.schema(&postgres.url, &prefix)?;
            postgres.schema = None;
        }
        Ok(())
    }

    /// What goes before the names of the topics of the pipeline `name`.
    pub fn topics_of(&self, name: &str) -> String {
        format!("{}{name}-", self.prefix)
    }

    /// Makes an input topic and has `config` read it; its name is returned.
    ///
    /// # Errors
    /// If it cannot be made, or `config` does not read from Kafka.
    pub fn input(&mut self, config: &mut Config) -> anyhow::Result<String> {
        let name = format!("{}raw-events", self.prefix);
        let SourceConfig::Kafka(source) = &mut config.source else {
            anyhow::bail!("this needs a configuration whose source is Kafka");
        };
        source.topic.clone_from(&name);
        source.start_from = crate::config::StartFrom::Earliest;
        self.cluster(&source.brokers, &source.options)?.create(&[topics::input(&name)])?;
        Ok(name)
    }

    fn cluster(&mut self, brokers: &str, options: &Options) -> anyhow::Result<&mut Cluster> {
        let known = self.clusters.iter().position(|cluster| cluster.brokers == brokers);
        let at = match known {
            Some(at) => at,
            None => {
                let topics = Topics::connect(brokers, options)?;
                let brokers = brokers.to_owned();
                self.clusters.push(Cluster { brokers, topics, made: Vec::new(), groups: Vec::new() });
                self.clusters.len() - 1
            }
        };
        Ok(&mut self.clusters[at])
    }

    /// Makes a schema; the address returned leads there.
    fn schema(&mut self, url: &Secret, prefix: &str) -> anyhow::Result<Secret> {
        // A name of ours: lower-case letters, digits and underscores need no quotes.
        let name = prefix.trim_end_matches('-').replace('-', "_");
        ask(url.expose(), &format!("CREATE SCHEMA {name}"))?;
        self.schemas.push(Schema { url: url.clone(), name: name.clone() });
        Ok(within(url.expose(), &name).into())
    }

    /// Removes everything that was made; what cannot be removed does not keep the rest.
    ///
    /// # Errors
    /// The first thing that could not be removed.
    pub fn remove(self) -> anyhow::Result<()> {
        let mut result = Ok(());
        for cluster in &self.clusters {
            result = result.and(cluster.remove());
        }
        for Schema { url, name } in &self.schemas {
            result = result.and(ask(url.expose(), &format!("DROP SCHEMA {name} CASCADE")));
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
        for folder in self.folders.iter().filter(|folder| folder.exists()) {
            result = result.and(std::fs::remove_dir_all(folder).map_err(Into::into));
        }
        result.with_context(|| format!("something named {}* is left behind", self.prefix))
    }
}

impl Cluster {
    fn create(&mut self, specs: &[TopicSpec]) -> anyhow::Result<()> {
        // Noted first: a topic may come to be although the answer got lost.
        self.made.extend(specs.iter().map(|spec| spec.name.clone()));
        self.topics.create(specs)?;
        Ok(())
    }

    fn remove(&self) -> anyhow::Result<()> {
        let names = |all: &[String]| all.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let made: Vec<_> = self.made.iter().map(String::as_str).collect();
        let groups: Vec<_> = self.groups.iter().map(String::as_str).collect();
        let topics = match made.as_slice() {
            [] => Ok(()),
            made => self.topics.delete(made).with_context(|| format!("cannot delete {}", names(&self.made))),
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

/// The address of a schema in the database of `url`, which is a `postgres://` address or a list of `key=value`.
fn within(url: &str, schema: &str) -> String {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return format!("{url} options='-c search_path={schema}'");
    }
    let joint = if url.contains('?') { '&' } else { '?' };
    format!("{url}{joint}options=-c%20search_path%3D{schema}")
}

/// Has PostgreSQL carry out one statement.
fn ask(url: &str, statement: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let asked = async {
            let (client, _driver) = Target::parse(url)?.connect().await?;
            client.batch_execute(statement).await?;
            anyhow::Ok(())
        };
        // Neither the address nor its password may show: the statement is ours.
        let result = tokio::time::timeout(PATIENCE, asked).await;
        result
            .with_context(|| format!("PostgreSQL does not answer `{statement}`"))?
            .with_context(|| format!("PostgreSQL does not `{statement}`"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_leads_to_the_schema_in_either_form() {
        for (url, dbname) in [
            ("postgres://ann@localhost/shop", "shop"),
            ("postgresql://ann@localhost/shop?connect_timeout=3", "shop"),
            ("host=localhost user=ann dbname=shop", "shop"),
        ] {
            let config: tokio_postgres::Config = within(url, "bench_1").parse().expect(url);
            assert_eq!(config.get_options(), Some("-c search_path=bench_1"), "{url}");
            assert_eq!(config.get_dbname(), Some(dbname), "{url}");
        }
    }
}
