//! Logs: one line an event, for people or as JSON, on standard error.

use std::sync::atomic::{AtomicBool, Ordering};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, registry};

/// The target of what no level filters out: why the process ends, and the progress of a command.
pub const ALWAYS: &str = "headwater::command";

/// Whether standard error has JSON alone.
static JSON: AtomicBool = AtomicBool::new(false);

/// Begins to log. `HEADWATER_LOG` overrides the level, and takes directives such as `info,headwater=debug`.
pub fn init(json: bool, level: &str) {
    let wanted = std::env::var("HEADWATER_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let filter = wanted.or_else(|| level.parse().ok()).unwrap_or_default();
    let filter = filter.with_target(ALWAYS, LevelFilter::INFO);
    // A standard error that cannot be written is no reason to panic, which printing that would be.
    let lines = fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let lines = if json { lines.json().boxed() } else { lines.boxed() };
    // It fails only if something logs already, as in a test.
    if registry().with(lines.with_filter(filter)).try_init().is_ok() {
        JSON.store(json, Ordering::Relaxed);
    }
}

/// Whether every line on standard error is a JSON object.
pub fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// Says why the process ends, with this exit code.
pub fn fatal(reason: &str, exit_code: u8) {
    if is_json() {
        tracing::error!(target: ALWAYS, exit_code, "{reason}");
    } else {
        crate::cli::output::progress(format_args!("headwater: {reason}\n"));
    }
}

/// Has a panic end the process, with its message as a line of the log: a worker that panics would leave its peers waiting
/// for ever.
pub fn abort_on_panic() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if is_json() {
            let thread = std::thread::current();
            let location = panic.location().map(ToString::to_string).unwrap_or_default();
            let message = panic.payload_as_str().unwrap_or("a value that is no text");
            tracing::error!(target: ALWAYS, location, thread = thread.name(), "panicked: {message}");
        } else {
            hook(panic);
        }
        std::process::abort();
    }));
}
