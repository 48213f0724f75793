//! Logging to standard error: one line per event, as text or as JSON.

use std::fmt::Arguments;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, registry};

/// The target of messages that are logged at every level: fatal errors and the progress of a command.
pub const ALWAYS: &str = "headwater::command";

/// True if only JSON is written to standard error.
static JSON: AtomicBool = AtomicBool::new(false);

/// Starts logging. `HEADWATER_LOG` overrides the level and accepts directives such as `info,headwater=debug`.
pub fn init(json: bool, level: &str) {
    let wanted = std::env::var("HEADWATER_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let filter = wanted.or_else(|| level.parse().ok()).unwrap_or_default();
    let filter = filter.with_target(ALWAYS, LevelFilter::INFO);
    // Reporting that standard error cannot be written would itself print, and panic.
    let lines = fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let lines = if json { lines.json().boxed() } else { lines.boxed() };
    // This fails only if a logger is already installed, as in a test.
    if registry().with(lines.with_filter(filter)).try_init().is_ok() {
        JSON.store(json, Ordering::Relaxed);
    }
}

/// Returns true if every line on standard error is a JSON object.
pub fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// Prints progress to standard error.
pub fn progress(text: Arguments<'_>) {
    if is_json() {
        tracing::info!(target: ALWAYS, "{}", text.to_string().trim());
    } else {
        // Progress is informational, so the command continues if it cannot be printed.
        let _ = std::io::stderr().lock().write_fmt(text);
    }
}

/// Reports the reason why the process ends, with its exit code.
pub fn fatal(reason: &str, exit_code: u8) {
    if is_json() {
        tracing::error!(target: ALWAYS, exit_code, "{reason}");
    } else {
        progress(format_args!("headwater: {reason}\n"));
    }
}

/// Makes every panic log its message and abort the process: if only one worker panicked, its peers would wait forever.
pub fn abort_on_panic() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if is_json() {
            let thread = std::thread::current();
            let location = panic.location().map(ToString::to_string).unwrap_or_default();
            let message = panic.payload_as_str().unwrap_or("(the panic payload is not text)");
            tracing::error!(target: ALWAYS, location, thread = thread.name(), "panicked: {message}");
        } else {
            hook(panic);
        }
        std::process::abort();
    }));
}
