//! Headwater: embedded stream processing on timely and differential dataflow.
//!
#![doc = include_str!("../README.md")]
#![warn(missing_docs)]
// The print macros panic if the reader is gone: use `cli::output` instead.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod assembly;
pub mod cel;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
mod connectors;
pub mod coordination;
mod database;
pub mod dead_letters;
pub mod decode;
pub mod embed;
pub mod event;
mod exact;
pub mod fields;
pub mod http;
pub mod json;
pub mod ledger;
pub mod lists;
pub mod logging;
pub mod metrics;
mod otlp;
pub mod outputs;
pub mod pipeline;
pub mod registry;
pub mod results;
pub mod rounds;
pub mod routes;
pub mod runtime;
mod settings;
pub mod source;
mod spelling;
pub mod state;
pub mod topics;
pub mod wall;

pub use embed::{Outcome, Pipeline};
pub use headwater_dataflows as dataflows;
pub use headwater_sinks as sinks;
