//! Logs: one line an event, for people or as JSON, on standard error.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, registry};

/// Begins to log. `HEADWATER_LOG` overrides the level, and takes directives such as `info,headwater=debug`.
pub fn init(json: bool, level: &str) {
    let wanted = std::env::var("HEADWATER_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let filter = wanted.or_else(|| level.parse().ok()).unwrap_or_default();
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = if json { lines.json().boxed() } else { lines.boxed() };
    // It fails only if something logs already, as in a test.
    let _ = registry().with(lines.with_filter(filter)).try_init();
}
