//! `headwater check --connect`: tests every connection and permission that a run needs. It does not write, create,
//! claim or fence anything, and leaves nothing behind.

use std::path::Path;

use headwater_sinks::postgres;
use serde_json::json;

use super::output;
use super::{DONE, FAILED, USAGE};
use crate::assembly;
use crate::config::{Config, LedgerConfig};
use crate::connectors::{Check, databases, writable};
use crate::ledger::postgres_tables;
use crate::state::StateConfig;

/// Runs all checks and prints one line for each. Returns the exit code.
///
/// # Errors
/// If the results cannot be printed.
pub fn check(config: &Config, json: bool) -> anyhow::Result<u8> {
    let mut checks = config.source.connector().check(&assembly::source_context(config, false));
    for (name, sink) in &config.sinks.0 {
        checks.extend(sink.connector().check(name, assembly::sink_context(config, "")));
    }
    checks.extend(ledger(config));
    checks.extend(state(config));
    let ok = checks.iter().all(|check| check.outcome.is_ok());
    let as_json = || json!({ "ok": ok, "checks": checks.iter().map(Check::json).collect::<Vec<_>>() });
    output::report(json, as_json, || checks.iter().map(Check::text).collect())?;
    Ok(match checks.iter().any(Check::is_misconfigured) {
        true => USAGE,
        false if ok => DONE,
        false => FAILED,
    })
}

fn ledger(config: &Config) -> Option<Check> {
    Some(match config.ledger.as_ref()? {
        LedgerConfig::Postgres(url) => {
            let names: Vec<_> = postgres_tables().collect();
            Check::of("ledger", databases(url), postgres::probe::tables(url.expose(), &names))
        }
        LedgerConfig::Sqlite(path) => Check::of("ledger", format!("file {}", path.display()), writable(path)),
    })
}

/// Checks the state store, if checkpoints are enabled.
fn state(config: &Config) -> Option<Check> {
    config.checkpoint.as_ref()?;
    let directory = |path: &Path| Check::of("state", format!("directory {}", path.display()), writable(path));
    Some(match &config.state {
        StateConfig::Fjall(path) => directory(path),
        #[cfg(feature = "rocksdb")]
        StateConfig::RocksDb(path) => directory(path),
        StateConfig::Redis(_) => {
            let opened = crate::state::open(&config.state, &config.plan.pipeline);
            Check::of("state", "Redis", opened.map(|_| "reachable, with durable settings".to_owned()))
        }
    })
}
