//! Traces of real runs, received by OTLP over HTTP. They need the feature `otlp`, and the last module a Kafka broker.

mod collector;
mod kafka;
mod program;
mod runs;
mod spans;
