//! The topics of a pipeline, as `headwater topics create` creates them.

use std::collections::BTreeMap;

use headwater_sinks::kafka::client::Options;
pub use headwater_sinks::kafka::topics::{TopicError, TopicFacts, TopicSpec, Topics};

use crate::config::OutputKind;

/// Returns the specification of the topic that a pipeline reads.
pub fn input(name: &str) -> TopicSpec {
    TopicSpec::new(name, 6)
}

/// Returns the specifications of the output topics, without the progress topic, which the sink creates.
pub fn outputs(names: &BTreeMap<OutputKind, String>) -> Vec<TopicSpec> {
    // A record may have 1 MiB. The output adds an envelope or a rejection reason to it.
    let larger_than_input = |spec: TopicSpec| spec.with("max.message.bytes", "2097152");
    let spec = |(kind, name): (&OutputKind, &String)| match kind {
        OutputKind::Events => larger_than_input(TopicSpec::new(name, 6)),
        OutputKind::Alerts | OutputKind::Windows => TopicSpec::new(name, 3),
        OutputKind::DeadLetters => larger_than_input(TopicSpec::new(name, 3)),
    };
    names.iter().map(spec).collect()
}

/// Creates the topics that do not exist yet and returns their names; see [`Topics::create`].
pub fn create_topics(
    brokers: &str,
    options: &Options,
    specs: &[TopicSpec],
) -> Result<Vec<String>, TopicError> {
    Topics::connect(brokers, options)?.create(specs)
}
