//! The topics of a pipeline, as `headwater topics create` makes them.

use headwater_sinks::kafka::client::Options;
pub use headwater_sinks::kafka::topics::{TopicError, TopicFacts, TopicSpec, Topics};

/// The topics that the configuration names by default. The progress topic is not among them: the sink makes it.
pub fn standard() -> Vec<TopicSpec> {
    // A record may have 1 MiB; what is said of it, or put around it, comes on top.
    let beyond_its_input = |spec: TopicSpec| spec.with("max.message.bytes", "2097152");
    vec![
        TopicSpec::new("raw-events", 6),
        beyond_its_input(TopicSpec::new("enriched-events", 6)),
        TopicSpec::new("alerts", 3),
        beyond_its_input(TopicSpec::new("dead-letters", 3)),
    ]
}

/// Creates the topics that do not exist yet and returns their names; see [`Topics::create`].
pub fn create_topics(
    brokers: &str,
    options: &Options,
    specs: &[TopicSpec],
) -> Result<Vec<String>, TopicError> {
    Topics::connect(brokers, options)?.create(specs)
}
