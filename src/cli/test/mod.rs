//! `headwater test`: tests of rules, with events at virtual times and the alerts that they raise and revoke.
//!
//! ```text
//!   FILE ─┬─ rules ─▶ configuration ─▶ Plan ─┬─▶ VirtualRun ─▶ changes of alerts, refused events ─┐
//!         └─ [[test]] ─▶ events ─────────────┘   expect ─────────────────────────────────────────┴▶ differences
//! ```

mod compare;
mod events;
mod expect;
mod file;
mod keys;
mod lists;
mod offset;
mod report;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::{Args, ValueHint};
use compare::{Difference, Letter};
use file::{TestCase, TestFile};
use headwater_dataflows::Position;
use report::{FileOutcome, Outcome};

pub use file::WrongFiles;

use super::output;
use crate::event::Event;
use crate::pipeline::{EpochResults, Plan, VirtualRun};

/// Arguments of `test`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct TestArgs {
    /// Files with tests, or directories: all files in them that are named `*_test.toml` or `*.test.toml`.
    #[arg(value_name = "PATH", required = true, value_hint = ValueHint::AnyPath)]
    pub paths: Vec<PathBuf>,
    /// Write the results to this file, too, as JUnit XML.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub junit: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Runs the tests of files, and prints the results. Returns true if all pass.
///
/// # Errors
/// If the files are wrong, or the results cannot be written.
pub fn test(args: &TestArgs) -> anyhow::Result<bool> {
    let files = file::read_all(&file::find_files(&args.paths)?)?;
    let outcomes: Vec<_> = files.iter().map(run_file).collect();
    if let Some(path) = &args.junit {
        std::fs::write(path, report::junit(&outcomes))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    output::report(args.json, || report::json(&outcomes), || report::text(&outcomes))?;
    Ok(report::counts(&outcomes).1 == 0)
}

fn run_file(file: &TestFile) -> FileOutcome {
    let tests = file.tests.iter().map(|test| {
        let started = Instant::now();
        lists::begin(&file.registry, &file.lists, &test.lists);
        let differences = run_test(&file.plan, test);
        Outcome { name: test.name.clone(), line: test.line, differences, took: started.elapsed() }
    });
    FileOutcome { path: file.path.clone(), tests: tests.collect() }
}

/// Runs a test; returns the differences from its expectations.
fn run_test(plan: &Plan, test: &TestCase) -> Vec<Difference> {
    let mut run = VirtualRun::new(plan);
    let mut results: Vec<EpochResults> =
        test.arrivals.iter().map(|arrival| run.arrive(arrival.iter().cloned())).collect();
    results.push(run.finish());
    let (mut alerts, mut refused) = (Vec::new(), Vec::new());
    for epoch in results {
        alerts.extend(epoch.alerts);
        refused.extend(epoch.refused);
    }
    let all = test.arrivals.iter().flatten();
    let events: HashMap<Position, &Event> = all.map(|event| (event.position(), event)).collect();
    let letters = refused.into_iter().filter_map(|refused| {
        let event = events.get(&refused.position)?;
        let at_ms = event.event_time().0 - offset::BEGINNING_MS;
        Some(Letter { reason: refused.reason, at_ms, event_id: event.id().to_owned() })
    });
    let letters: Vec<_> = letters.collect();
    let mut differences = compare::alerts(&test.alerts, &alerts);
    differences.extend(compare::letters(&test.letters, &letters));
    differences
}
