//! Logs: one line an event, for people or as JSON, on standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// Begins to log. `HEADWATER_LOG` overrides the level, and takes directives such as `headwater=debug,rdkafka=warn`.
pub fn init(json: bool, level: &str) {
    let filter = EnvFilter::try_from_env("HEADWATER_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // It fails only if something logs already, as in a test.
    let _ = if json { builder.json().finish().try_init() } else { builder.finish().try_init() };
}
