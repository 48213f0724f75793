//! Kafka: topics as source and as sink.

mod sink;
mod source;

pub use sink::KafkaSinkConfig;
pub(super) use sink::SINK;
pub use source::KafkaSourceConfig;
pub(super) use source::SOURCE;

/// Checks a topic name by Kafka's rules.
pub(super) fn topic_name(text: Option<&str>) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let name = text.filter(|name| (1..=249).contains(&name.len()) && name.chars().all(allowed));
    name.filter(|name| *name != "." && *name != "..")
        .map(str::to_owned)
        .ok_or_else(|| "a topic name: at most 249 letters, digits, `.`, `_` and `-`".to_owned())
}
