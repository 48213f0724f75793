//! A pipeline inside a Rust program: it reads a file of payments, and the program gets alerts and windows in memory.
//!
//! `cargo run --example embed` prints:
//!
//! ```text
//! alert raised: rapid_fire_burst for ann, at event p4
//! window user_1m: ann, count 3
//! window user_1m: bob, count 1
//! ```

use std::error::Error;
use std::fmt::Write;

use headwater::Pipeline;
use headwater::config::OutputKind;
use headwater::sinks::Cell;
use headwater::sinks::memory::Memory;
use serde_json::Value;

/// The last line is no valid event: it becomes a dead letter.
const PAYMENTS: &str = r#"
{"event_id": "p1", "event_type": "transaction", "user_id": "ann", "event_time": "2026-03-01T12:00:01Z", "amount": 20}
{"event_id": "p2", "event_type": "transaction", "user_id": "ann", "event_time": "2026-03-01T12:00:02Z", "amount": 30}
{"event_id": "p3", "event_type": "transaction", "user_id": "bob", "event_time": "2026-03-01T12:00:03Z", "amount": 10}
{"event_id": "p4", "event_type": "transaction", "user_id": "ann", "event_time": "2026-03-01T12:00:04Z", "amount": 50}
{"event_id": "p5", "event_type": "transaction"}
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("payments.ndjson");
    std::fs::write(&input, PAYMENTS.trim_start())?;

    // A configuration as in a file, except that it needs no sink; errors name the key and the line.
    let pipeline = Pipeline::from_toml(&format!(
        r#"
        pipeline = "payments"
        [source]
        kind = "file"
        paths = {input:?}
        [[windows]]
        name = "user_1m"
        kind = "tumbling"
        size = "1m"
        [patterns.rapid_fire_burst]
        at_least = 3
        within = "10s"
        "#
    ))?;

    // Results as JSON messages, or as rows of tables; the run ends once the sinks have committed all of them.
    let (alerts, windows) = (Memory::default(), Memory::default());
    let metrics = pipeline.metrics();
    pipeline
        .workers(2)
        .message_sink(alerts.sink("alerts"), &[OutputKind::Alerts])
        .row_sink(windows.sink("windows"), &[OutputKind::Windows])
        .run()
        .map(drop)?;

    let mut report = String::new();
    for (_epoch, changes) in alerts.committed() {
        for message in changes.messages.iter() {
            let alert: Value = serde_json::from_slice(message.value.unwrap_or_default())?;
            let text = |name: &str| alert[name].as_str().unwrap_or_default().to_owned();
            let (status, rule, key) = (text("status"), text("rule"), text("key"));
            let event = alert["event_ids"][0].as_str().unwrap_or_default();
            writeln!(report, "alert {status}: {rule} for {key}, at event {event}")?;
        }
    }
    let mut lines = Vec::new();
    for (_epoch, changes) in windows.committed() {
        for row in changes.rows.iter() {
            // The cells are in the order of the columns of `window_aggregates`.
            let cells: Vec<_> = row.cells().collect();
            if let [Cell::Text(window), _, Cell::Text(key), _start, _end, Cell::Int(count), ..] = cells[..] {
                lines.push(format!("window {window}: {key}, count {count}\n"));
            }
        }
    }
    // Two workers send their windows in any order.
    lines.sort();
    report.extend(lines);
    print!("{report}");

    let dead_letters = metrics.rejected_count("invalid");
    if (report.lines().count(), dead_letters) != (3, 1) {
        return Err(format!("expected 3 results and 1 dead letter, got {dead_letters} and:\n{report}").into());
    }
    Ok(())
}
