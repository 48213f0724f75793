//! `headwater check --connect`: tests every connection and permission that a run needs. It does not write, create,
//! claim or fence anything, and leaves nothing behind.

use headwater_sinks::postgres;
use serde_json::json;

use super::output;
use super::{DONE, FAILED, USAGE};
use crate::assembly;
use crate::config::{Config, LedgerConfig, ListConfig};
use crate::connectors::{Check, databases, writable};
use crate::decode::Binary;
use crate::ledger::postgres_tables;

/// Runs all checks and prints one line for each. Returns the exit code.
///
/// # Errors
/// If the results cannot be printed.
pub fn check(config: &Config, json: bool) -> anyhow::Result<u8> {
    let mut checks = config.source.connector().check(&assembly::source_context(config, false));
    checks.extend(schemas(config));
    for (name, sink) in &config.sinks.0 {
        checks.extend(sink.connector().check(name, assembly::sink_context(config, "")));
    }
    checks.extend(config.lists.iter().map(ListConfig::check));
    checks.extend(ledger(config));
    checks.extend(assembly::check_routes(config));
    if config.checkpoint.is_some() {
        checks.push(config.state.check(&config.plan.pipeline));
    }
    let ok = checks.iter().all(|check| check.outcome.is_ok());
    let as_json = || json!({ "ok": ok, "checks": checks.iter().map(Check::json).collect::<Vec<_>>() });
    output::report(json, as_json, || checks.iter().map(Check::text).collect())?;
    Ok(match checks.iter().any(Check::is_misconfigured) {
        true => USAGE,
        false if ok => DONE,
        false => FAILED,
    })
}

fn schemas(config: &Config) -> Option<Check> {
    match &config.plan.decoding.binary {
        Some(Binary::Registry(schemas)) => Some(Check::of("source", "schema registry", schemas.check())),
        _ => None,
    }
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
