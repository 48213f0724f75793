//! The cost of each operator on one worker: admission alone, then admission followed by one pattern or one kind of
//! window. The measure is the worker's CPU time where the kernel accounts for it, so that other load has little effect.

use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use differential_dataflow::VecCollection;
use headwater::cli::bench::drive::{Drive, Spent, events, in_order, plan};
use headwater::event::Event;
use headwater::source::generator::GeneratorSettings;
use headwater_dataflows::{Admission, Admit, Epoch};

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EVENTS: usize = 200_000;

/// The configuration section of each operator, with default settings where they exist.
const OPERATORS: [(&str, &str); 8] = [
    ("velocity_spike", "[patterns.velocity_spike]"),
    ("rapid_fire_burst", "[patterns.rapid_fire_burst]"),
    ("merchant_diversity", "[patterns.merchant_diversity]"),
    ("amount_anomaly", "[patterns.amount_anomaly]"),
    ("impossible_travel", "[patterns.impossible_travel]"),
    ("tumbling", "[[windows]]\nname = \"w\"\nkind = \"tumbling\"\nby = \"key\"\nsize = \"1m\""),
    ("sliding", "[[windows]]\nname = \"w\"\nkind = \"sliding\"\nby = \"key\"\nsize = \"5m\"\nevery = \"1m\""),
    ("session", "[[windows]]\nname = \"w\"\nkind = \"session\"\nby = \"key\"\ngap = \"30s\""),
];

/// Returns the total CPU time of several runs, each with its own dataflow.
fn times(runs: u64, mut run: impl FnMut() -> Spent) -> Duration {
    (0..runs).map(|_| run()).map(|spent| spent.cpu.unwrap_or(spent.wall)).sum()
}

fn operators(criterion: &mut Criterion) {
    let drive = Drive { workers: 1, behind_ms: 5000, close: true };
    for (stream, settings) in [("in order", in_order()), ("disorder", GeneratorSettings::default())] {
        let events = events(settings, EVENTS);
        let mut group = criterion.benchmark_group(stream);
        group.throughput(Throughput::Elements(events.len() as u64)).sample_size(10);
        group.sampling_mode(SamplingMode::Flat);
        group.bench_function("admission", |bencher| {
            bencher.iter_custom(|runs| {
                times(runs, || {
                    drive.run(&events, |events: VecCollection<'_, Epoch, Event>, control| {
                        events.admit(control, Admission { dedup_horizon_ms: 60_000, ttl_ms: None }).1.inner
                    })
                })
            });
        });
        for (name, section) in OPERATORS {
            let plan = plan(section);
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|runs| times(runs, || drive.run_plan(&events, &plan)));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, operators);
criterion_main!(benches);
