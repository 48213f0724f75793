//! `headwater bench`: benchmarks of the engine.

mod args;
mod cost;
pub mod drive;
mod keys;
mod latency;
mod report;
pub mod rules;
mod scratch;
mod stages;
pub mod usage;

pub use args::BenchCommand;
pub use cost::cost;
pub use keys::keys;
pub use latency::latency;
pub use rules::bench_rules;
pub use stages::stages;
