//! A small run to count instructions of: `scripts/regress` runs each part under Valgrind with one number of records and with
//! twice as many, and compares the difference with `benches/regress.json`.
//!
//! ```text
//!   records    makes generated records
//!   decode     decodes them as well
//!   patterns   runs the events through the five patterns and a window of a minute, into encoded alerts, as well
//!   rules      through the same five conditions as rules of one's own instead
//! ```

use std::hint::black_box;
use std::sync::Arc;

use differential_dataflow::AsCollection;
use headwater::cli::bench::drive::{Drive, EPOCH, events, in_order};
use headwater::config::Config;
use headwater::metrics::Metrics;
use headwater::pipeline::{Inputs, Plan, RuleHistory, compute};
use headwater::source::generator::RecordMaker;
use headwater_dataflows::Captures;
use timely::dataflow::operators::generic::operator::empty;

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WINDOW: &str = "[[windows]]\nname = \"w\"\nkind = \"tumbling\"\nby = \"user_id\"\nsize = \"1m\"\n";

const PATTERNS: &str = "[patterns.velocity_spike]\n[patterns.rapid_fire_burst]\n[patterns.merchant_diversity]\n\
                        [patterns.amount_anomaly]\n[patterns.impossible_travel]\n";

const RULES: &str = r#"
[[rules]]
id = "velocity"
by = "user"
where = "event.event_type == 'transaction' || event.event_type == 'api_call'"
count = { more_than = 100, within = "1h" }
[[rules]]
id = "burst"
by = "user"
where = "event.event_type != 'iot_sensor'"
count = { at_least = 10, within = "10s" }
[[rules]]
id = "diversity"
by = "user"
where = "has(event.merchant_id)"
distinct = { of = "merchant_id", at_least = 8, within = "1h" }
[[rules]]
id = "amount"
by = "user"
where = "event.amount > 0.0"
outlier = { of = "event.amount", sigmas = 3.0, high_sigmas = 5.0, at_least = 30 }
[[rules]]
id = "travel"
by = "user"
where = "has(event.location)"
travel = { more_than_km = 50, more_than_kmh = 900 }
"#;

/// Returns the plan of a pipeline with these sections.
fn plan(sections: &str) -> Plan {
    let text = format!("pipeline = \"bench\"\n[source]\nkind = \"generator\"\n{sections}[sinks.kafka]\n");
    Config::parse(&text, std::iter::empty()).expect("a valid configuration").plan
}

/// Runs events through a dataflow; returns the number of its outputs.
fn outputs(plan: &Plan, records: usize) -> u64 {
    let (plan, history, metrics) = (plan.clone(), RuleHistory::of(plan), Arc::new(Metrics::default()));
    let drive = Drive { workers: 1, behind_ms: 5000, close: false };
    let spent = drive.run(&events(in_order(), records), move |events, control| {
        let scope = events.inner.scope();
        let rejected = empty(scope).as_collection();
        let inputs = Inputs { events, rejected, control, refused: None };
        compute(inputs, &Captures::off(scope), &plan, &history, &Arc::from([]), &metrics, None).encoded
    });
    spent.results
}

fn main() {
    let arguments: Vec<String> = std::env::args().filter(|argument| argument != "--bench").collect();
    let [_, part, epochs] = &arguments[..] else {
        // `cargo bench` runs all benchmarks; this one is for scripts/regress.
        println!("usage: regress records|decode|patterns|rules EPOCHS");
        return;
    };
    let records = EPOCH * epochs.parse::<usize>().expect("a number of epochs");
    let done = match &**part {
        "records" => {
            let mut maker = RecordMaker::new(in_order());
            let bytes = |offset| {
                maker.make((offset % 6) as u32, offset / 6, None);
                maker.value.len() as u64
            };
            (0..records as u64).map(bytes).sum()
        }
        "decode" => black_box(events(in_order(), records)).len() as u64,
        "patterns" => outputs(&plan(&format!("{WINDOW}{PATTERNS}")), records),
        "rules" => outputs(&plan(&format!("{WINDOW}{RULES}")), records),
        other => panic!("there is no part {other}"),
    };
    println!("{done}");
}
