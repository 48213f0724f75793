//! The cost of moving events between two workers: an exchange by shard, compared with no exchange. The measure is wall
//! time, which is meaningful only with two free cores.

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use headwater::cli::bench::drive::{Drive, events, in_order};
use headwater::event::Event;
use headwater_dataflows::{Epoch, Event as _};
use timely::dataflow::operators::Exchange;

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EVENTS: usize = 500_000;

fn exchange(criterion: &mut Criterion) {
    let events = events(in_order(), EVENTS);
    let drive = Drive { workers: 2, behind_ms: 5000, close: false };
    let mut group = criterion.benchmark_group("two workers");
    group.throughput(Throughput::Elements(events.len() as u64)).sample_size(10);
    group.sampling_mode(SamplingMode::Flat);
    group.bench_function("exchange", |bencher| {
        bencher.iter_custom(|runs| {
            let run = |_| {
                drive.run(&events, |events, _control| {
                    let shard = |(event, _, _): &(Event, Epoch, isize)| u64::from(event.key_hash().shard().0);
                    events.inner.exchange(shard)
                })
            };
            (0..runs).map(run).map(|spent| spent.wall).sum()
        });
    });
    group.bench_function("none", |bencher| {
        bencher.iter_custom(|runs| {
            let run = |_| drive.run(&events, |events, _control| events.inner);
            (0..runs).map(run).map(|spent| spent.wall).sum()
        });
    });
    group.finish();
}

criterion_group!(benches, exchange);
criterion_main!(benches);
