//! The cost of decoding a record on one core, by kind of record and by format.

#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../tests/end_to_end/encode.rs"]
mod encode;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use headwater::cli::bench::drive::in_order;
use headwater::decode::{
    AVRO, Binary, BinaryKind, Decoder, Decoding, Fetched, Format, JSON, JsonDecoder, PROTOBUF,
    SchemaRegistry, Schemas, UnknownId,
};
use headwater::source::Raw;
use headwater::source::generator::RecordMaker;

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Kinds of records that are measured separately from the generator's mix.
const KINDS: [(&str, &str); 5] = [
    (
        "transaction",
        r#"{"event_id":"4-12345","event_type":"transaction","user_id":"user-48213","event_time":"2026-01-02T03:04:05.678Z","amount":129.95,"currency":"EUR","merchant_id":"shop-871","merchant_category":"grocery","location":{"lat":52.520008,"lon":13.404954}}"#,
    ),
    (
        "attributes",
        r#"{"event_id":"4-12345","event_type":"api_call","user_id":"user-48213","event_time":1767323045678,"attributes":{"path":"/v1/items/17","agent":"curl/8.9 (x86_64)","cached":true,"tags":["a","b",{"depth":[1,2,3]}]}}"#,
    ),
    (
        "unknown fields",
        r#"{"event_id":"4-12345","event_type":"api_call","user_id":"user-48213","event_time":1767323045678,"trace":"00-4bf92f35","schema":3,"attributes":{"path":"/v1/items/17"}}"#,
    ),
    (
        "escapes",
        r#"{"event_id":"4-12345","event_type":"user_activity","user_id":"Zo\u00eb \ud83d\ude00","event_time":"2026-01-02T03:04:05+01:00","session_id":"a\\b\/c\n\"d\""}"#,
    ),
    (
        "malformed at the end",
        r#"{"event_id":"4-12345","event_type":"api_call","user_id":"u","event_time":1767323045678}}"#,
    ),
];

/// The number of generated records in one iteration, so that caches see different records.
const RECORDS: u64 = 1000;

fn raw(value: &[u8]) -> Raw<'_> {
    Raw {
        position: Default::default(),
        timestamp: 1_767_323_045_700,
        key: None,
        value: Some(value),
        retries: 0,
        producer: None,
    }
}

fn decode(criterion: &mut Criterion) {
    let mut decoder = JsonDecoder::default();
    let mut group = criterion.benchmark_group("decode");

    let mut maker = RecordMaker::new(in_order());
    let records: Vec<Vec<u8>> = (0..RECORDS)
        .map(|offset| {
            maker.make(0, offset, None);
            maker.value.clone()
        })
        .collect();
    group.throughput(Throughput::Elements(RECORDS));
    group.bench_function("the generator's mix", |bencher| {
        bencher
            .iter(|| records.iter().filter(|record| decoder.decode(raw(black_box(record))).is_ok()).count());
    });

    for (name, text) in KINDS {
        group.throughput(Throughput::Elements(1));
        group
            .bench_function(name, |bencher| bencher.iter(|| decoder.decode(raw(black_box(text.as_bytes())))));
    }
    group.finish();
}

/// A registry with the schemas of the end-to-end tests: 1 of Avro, 2 of Protobuf.
#[derive(Debug)]
struct Registry;

impl SchemaRegistry for Registry {
    fn fetch(&self, id: u32) -> Fetched {
        let (kind, schema, reference) = match id {
            1 => (BinaryKind::Avro, encode::avro_schema(1), encode::KIND),
            _ => (BinaryKind::Protobuf, encode::PROTO_EVENT.to_owned(), encode::PROTO_PLACE),
        };
        Fetched::Schema(kind.compile(&schema, &[reference.to_owned()]).expect("valid"))
    }

    fn place(&self) -> String {
        String::new()
    }
}

/// The same records in each format.
fn formats(criterion: &mut Criterion) {
    let mut maker = RecordMaker::new(in_order());
    let events: Vec<_> = (0..RECORDS)
        .filter_map(|offset| {
            maker.make(0, offset, None);
            serde_json::from_slice::<serde_json::Map<_, _>>(&maker.value).ok()
        })
        .collect();
    let of = |encode: &dyn Fn(&serde_json::Map<String, serde_json::Value>) -> Vec<u8>| {
        events.iter().map(encode).collect::<Vec<_>>()
    };
    let formats: [(Format, Vec<Vec<u8>>); 3] = [
        (JSON, of(&|event| serde_json::to_vec(event).expect("JSON"))),
        (AVRO, of(&|event| encode::avro_record(1, 1, event))),
        (PROTOBUF, of(&|event| encode::proto_record(2, event))),
    ];
    let mut group = criterion.benchmark_group("formats");
    group.throughput(Throughput::Elements(events.len() as u64));
    for (format, records) in formats {
        let schemas = Schemas::new(Box::new(Registry), UnknownId::Hold);
        let binary = format.binary.map(|_| Binary::Registry(schemas));
        let mut decoder = Decoding { binary, ..format.standard() }.decoder();
        let bytes: usize = records.iter().map(Vec::len).sum();
        println!("{}: {} bytes a record", format.name, bytes / records.len());
        let mut accepted =
            || records.iter().filter(|record| decoder.decode(raw(black_box(record))).is_ok()).count();
        assert!(accepted() * 100 > records.len() * 95, "the records are events");
        group.bench_function(format.name, |bencher| bencher.iter(&mut accepted));
    }
    group.finish();
}

criterion_group!(benches, decode, formats);
criterion_main!(benches);
