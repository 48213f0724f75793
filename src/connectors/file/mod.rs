//! NDJSON files as source and as sink.

mod sink;
mod source;

pub use sink::FileSinkConfig;
pub(super) use sink::SINK;
pub use source::FileSourceConfig;
pub(super) use source::SOURCE;
