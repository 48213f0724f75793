//! The topics of a pipeline, as `headwater topics create` makes them.

use headwater_sinks::kafka::client::Options;
pub use headwater_sinks::kafka::topics::{TopicError, TopicFacts, TopicSpec, Topics};

/// The topics that the configuration names by default. The progress topic is not among them: the sink makes it.
pub fn standard() -> Vec<TopicSpec> {
    [("raw-events", 6), ("enriched-events", 6), ("alerts", 3), ("dead-letters", 3)]
        .map(|(name, partitions)| TopicSpec::new(name, partitions))
        .to_vec()
}

/// Creates the topics that do not exist yet and returns their names; see [`Topics::create`].
pub fn create_topics(
    brokers: &str,
    options: &Options,
    specs: &[TopicSpec],
) -> Result<Vec<String>, TopicError> {
    Topics::connect(brokers, options)?.create(specs)
}
