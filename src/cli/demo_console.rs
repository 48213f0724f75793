//! `headwater demo --console`: generates events in real time and serves the console.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;

use super::command::DemoArgs;
use super::demo::{PATH, PIPELINE, new_database};
use super::output::{note, outln};
use super::stop;
use crate::config::{Config, HttpConfig};
use crate::metrics::Metrics;
use crate::runtime::{Queries, RuleControl};
use crate::source::Source;
use crate::source::generator::{GeneratorSettings, GeneratorSource};
use crate::{assembly, http, results};

/// The ratio of the real pace to that of the injected fraud: an episode takes 15 s instead of 150.
const HASTE: f64 = 10.0;

/// Runs the demo until it is interrupted, or for the given time.
///
/// # Errors
/// If the demo cannot run.
pub fn demo_console(args: &DemoArgs) -> anyhow::Result<()> {
    let database = new_database(&args.out)?;
    let path = (PATH.to_owned(), database.display().to_string());
    let tables = ("HEADWATER__SINKS__SQLITE__TABLES".to_owned(), ALL_TABLES.to_owned());
    let config = Config::parse(PIPELINE, [path, tables].into_iter())?;
    let metrics = Arc::new(Metrics::default());
    let stopping = Arc::new(AtomicBool::new(false));
    stop::handle_requests(stop::signals().context("cannot handle signals")?, &stopping, None);

    let (stored, _) = results::of_config(&config, &metrics);
    let control = RuleControl::of_config(&config);
    let run = http::Run::of_config(&config, control.clone(), 0, 1, args.workers);
    let listen =
        HttpConfig { listen: args.http, token: None, tls: None, peer_ca_file: None, insecure: false };
    let queries = Queries::default();
    let api = http::Api::new(run, Arc::clone(&metrics), stored, queries.clone());
    let server = http::serve(&listen, api).with_context(|| {
        format!("cannot serve the console on {}; --http 127.0.0.1:0 takes a free port", args.http)
    })?;
    outln!("console: {}", server.url())?;
    note!(
        "Generating {} events/s with injected fraud; Ctrl-C stops. Results: {}",
        args.rate,
        database.display()
    );

    let defaults = GeneratorSettings::default();
    let pace = ((args.rate / HASTE) as u32).max(20 * defaults.partitions);
    let settings = GeneratorSettings { seed: args.seed, pace, stragglers: true, ..defaults };
    let source = Arc::new(GeneratorSource::live(settings, args.rate)?);
    let workers = timely::Config::process(args.workers);
    let mut job = assembly::job(&config, false, workers, metrics)?;
    (job.stopping, job.queries) = (Arc::clone(&stopping), queries);
    (job.rules, job.requests) = (control.live, control.requests);
    job.source = Box::new(move |_| Ok(source as Arc<dyn Source>));
    if let Some(seconds) = args.seconds {
        stop_after(Duration::from_secs_f64(seconds), stopping);
    }
    crate::runtime::run(job)?;
    drop(server);
    Ok(())
}

/// All outputs, as a TOML list.
const ALL_TABLES: &str = r#"["events", "alerts", "windows", "dead_letters"]"#;

/// Stops the run after a time.
fn stop_after(time: Duration, stopping: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        std::thread::sleep(time);
        stopping.store(true, Ordering::Relaxed);
    });
}
