//! The cost of moving events between two workers: an exchange by shard, compared with no exchange, and the forms in which
//! events are sent between processes. The measure is wall time, which of the exchange is meaningful only with two free cores.

use std::hint::black_box;
use std::sync::Arc;

use columnar::bytes::indexed;
use columnar::{Borrow, Columnar, FromBytes, Index, Len, Push};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use headwater::cli::bench::drive::{Drive, events, in_order};
use headwater::event::Event;
use headwater::event::forms::{FORMS, Form};
use headwater_dataflows::{Epoch, Event as _};
use serde::{Deserialize, Serialize};
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

type Update = (Event, Epoch, isize);

/// The batches of events that are encoded in one iteration, as large as timely makes them.
fn batches() -> Vec<Vec<Update>> {
    let size = timely::container::buffer::default_capacity::<Update>();
    let events = events(in_order(), 200 * size);
    let update = |(at, event): (usize, &Event)| (event.clone(), Epoch(1 + (at / 6000) as u64), 1);
    let updates: Vec<_> = events.iter().enumerate().map(update).collect();
    updates.chunks(size).map(<[_]>::to_vec).collect()
}

/// An event of the generator, with its epoch and multiplicity, with all fields as a crate for columns can see them. Bincode
/// writes it as it writes an [`Update`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Columnar)]
struct Row {
    position: (u32, i64),
    times: (i64, u64),
    text: String,
    key: (u32, u32),
    amount: Option<i64>,
    merchant: (u64, (u32, u32)),
    location: Option<(f64, f64)>,
    id: (u32, u32),
    sizes: (u32, u32),
    timestamp: i64,
    record_key: u32,
    currency: (u32, u32),
    merchant_category: (u32, u32),
    ip_address: (u32, u32),
    session_id: (u32, u32),
    device_id: (u32, u32),
    attributes: (u32, u32),
    kind: u32,
    epoch: (u64, i64),
}

type Columns = <Row as Columnar>::Container;

/// A received event: operators share it.
type Received = (u64, Arc<Row>);

/// A form of events between processes.
struct Codec<T, R> {
    name: &'static str,
    encode: Box<Encode<T>>,
    decode: Box<Decode<R>>,
}

/// Appends a batch to words, which are aligned, or to bytes.
type Encode<T> = dyn Fn(&[T], &mut Vec<u64>, &mut Vec<u8>);

/// Reads a batch of words or bytes.
type Decode<R> = dyn Fn(&[u64], &[u8]) -> Vec<R>;

/// timely's own form of a vector: the length is computed before the bytes are written.
fn bincode() -> Codec<Update, Update> {
    Codec {
        name: "bincode",
        encode: Box::new(|batch, _, bytes| {
            bytes.reserve(bincode::serialized_size(batch).expect("a size") as usize);
            bincode::serialize_into(bytes, batch).expect("written");
        }),
        decode: Box::new(|_, bytes| bincode::deserialize(bytes).expect("valid")),
    }
}

/// A form that the program knows.
fn known(form: &'static Form) -> Codec<Update, Update> {
    Codec {
        name: form.name,
        encode: Box::new(|batch, _, bytes| {
            let mut written = Vec::new();
            (form.write)(batch, &mut written);
            // The bytes are kept from the question for their length on, and then copied.
            bytes.extend_from_slice(&written);
        }),
        decode: Box::new(|_, bytes| (form.read)(bytes).expect("valid")),
    }
}

fn columnar() -> Codec<Row, Received> {
    Codec {
        name: "columnar",
        encode: Box::new(|batch, words, _| {
            let mut columns = Columns::default();
            batch.iter().for_each(|row| columns.push(row));
            indexed::encode(words, &columns.borrow());
        }),
        decode: Box::new(|words, _| {
            let columns = <Columns as Borrow>::Borrowed::from_bytes(&mut indexed::decode(words));
            let received = |at| {
                let row = Row::into_owned(columns.get(at));
                (row.times.1, Arc::new(row))
            };
            (0..columns.len()).map(received).collect()
        }),
    }
}

fn codec<T, R>(criterion: &mut Criterion, batches: &[Vec<T>], codec: &Codec<T, R>) {
    let events = batches.iter().map(Vec::len).sum::<usize>() as u64;
    let encode = || {
        batches.iter().map(|batch| {
            let (mut words, mut bytes) = (Vec::new(), Vec::new());
            (codec.encode)(batch, &mut words, &mut bytes);
            (words, bytes)
        })
    };
    let encoded: Vec<_> = encode().collect();
    let bytes: usize = encoded.iter().map(|(words, bytes)| 8 * words.len() + bytes.len()).sum();
    println!("{}: {:.1} bytes an event", codec.name, bytes as f64 / events as f64);
    let mut group = criterion.benchmark_group("between processes");
    group.throughput(Throughput::Elements(events));
    group.bench_function(format!("{}: encode", codec.name), |bencher| {
        bencher.iter(|| encode().for_each(|encoded| drop(black_box(encoded))));
    });
    group.bench_function(format!("{}: decode", codec.name), |bencher| {
        bencher.iter(|| {
            encoded.iter().for_each(|(words, bytes)| drop(black_box((codec.decode)(words, bytes))));
        });
    });
    group.finish();
}

fn codecs(criterion: &mut Criterion) {
    let batches = batches();
    let text = batches.iter().flatten().map(|(event, ..)| event.original().len()).sum::<usize>();
    let events = batches.iter().map(Vec::len).sum::<usize>();
    println!("records: {:.1} bytes each", text as f64 / events as f64);
    let rows: Vec<Vec<Row>> = batches
        .iter()
        .map(|batch| {
            bincode::deserialize(&bincode::serialize(batch).expect("written")).expect("the same fields")
        })
        .collect();
    codec(criterion, &batches, &bincode());
    FORMS.iter().for_each(|form| codec(criterion, &batches, &known(form)));
    codec(criterion, &rows, &columnar());
}

criterion_group!(benches, exchange, codecs);
criterion_main!(benches);
