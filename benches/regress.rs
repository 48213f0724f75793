//! A small run to count instructions of: `scripts/regress` runs each part under Valgrind with one number of records and with
//! twice as many, and compares the difference with `benches/regress.json`.
//!
//! ```text
//!   records    makes generated records
//!   decode     decodes them as well
//!   patterns   runs the events through the five patterns and a window of a minute, into encoded alerts, as well
//!   rules      through the five rules of the same meaning that `headwater bench rules` measures instead
//! ```

use std::hint::black_box;

use headwater::cli::bench::drive::{Drive, events, in_order, plan};
use headwater::cli::bench::rules::SAME;
use headwater::source::generator::RecordMaker;

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WINDOW: &str = "[[windows]]\nname = \"w\"\nkind = \"tumbling\"\nby = \"user_id\"\nsize = \"1m\"\n";

const PATTERNS: &str = "[patterns.velocity_spike]\n[patterns.rapid_fire_burst]\n[patterns.merchant_diversity]\n\
                        [patterns.amount_anomaly]\n[patterns.impossible_travel]\n";

/// Runs events through the dataflow of these sections; returns the number of its outputs.
fn outputs(sections: &str, records: usize) -> u64 {
    let drive = Drive { workers: 1, behind_ms: 5000, close: false };
    drive.run_plan(&events(in_order(), records), &plan(&format!("{WINDOW}{sections}"))).results
}

fn main() {
    let arguments: Vec<String> = std::env::args().filter(|argument| argument != "--bench").collect();
    let [_, part, records] = &arguments[..] else {
        // `cargo bench` runs all benchmarks; this one is for scripts/regress.
        println!("usage: regress records|decode|patterns|rules RECORDS");
        return;
    };
    let records: usize = records.parse().expect("a number of records");
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
        "patterns" => outputs(PATTERNS, records),
        "rules" => outputs(SAME, records),
        other => panic!("there is no part {other}"),
    };
    println!("{done}");
}
