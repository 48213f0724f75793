//! The cost of evaluating the conditions of rules on one core, per event.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use headwater::cel::{Scope, compile_number, compile_predicate};
use headwater::dataflows::{EventTime, Since};
use headwater::decode::{Decoder, JsonDecoder};
use headwater::event::Event;
use headwater::fields::{FieldType, Layout};
use headwater::lists::{Cell, Key, KeyType, Lists, Row, Schema, Table, Version};
use headwater::source::Raw;

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Conditions, from the cheapest to the dearest.
const CONDITIONS: [&str; 10] = [
    "event.amount < 2.0",
    "event.event_type == 'transaction' && event.amount < 2.0",
    "event.currency in ['EUR', 'USD', 'GBP'] && event.amount >= 5.0",
    "event.amount * 1.2 > 3.0 || event.merchant_category == 'casino'",
    "event.time.getHours() < 6 && event.ip_address.startsWith('10.')",
    "event.attributes['channel'] == 'web'",
    "event.merchant_id.matches('^shop-[0-9]+$')",
    "event.ip_address in lists.blocked",
    "lists.risks[event.ip_address].risk > 3.0",
    "event.ip_address in lists.changed",
];

/// The number of events in one iteration, so that branches are not always predicted.
const EVENTS: usize = 1000;

fn events() -> Vec<Event> {
    let mut decoder = JsonDecoder::default();
    let kinds = ["transaction", "api_call", "transaction", "user_activity"];
    let of = |at: usize| {
        format!(
            r#"{{"event_id":"4-{at}","event_type":"{}","user_id":"user-48213","event_time":{},"amount":{}.95,
            "currency":"{}","merchant_id":"shop-871","merchant_category":"grocery","ip_address":"10.0.0.{}",
            "attributes":{{"path":"/v1/items/17","agent":"curl/8.9 (x86_64)","cached":true,"channel":"web"}}}}"#,
            kinds[at % 4],
            1_767_323_045_678 + 60_000 * at,
            at * 7 % 13,
            ["EUR", "USD", "CHF"][at % 3],
            at % 256,
        )
    };
    let decoded = (0..EVENTS).map(|at| {
        let text = of(at);
        let raw = Raw {
            position: Default::default(),
            timestamp: 1_767_323_045_700,
            key: None,
            value: Some(text.as_bytes()),
            retries: 0,
            producer: None,
        };
        decoder.decode(raw).expect("a valid event")
    });
    decoded.collect()
}

/// Returns lists of 100,000 addresses, of which the events have some; one of them has two versions.
fn lists() -> Lists {
    let table = Schema { key: KeyType::String, columns: vec![("risk".into(), FieldType::Decimal)] };
    let lists = Lists::new([
        ("blocked".into(), Schema::set()),
        ("changed".into(), Schema::set()),
        ("risks".into(), table),
    ]);
    let key = |at: u32| Key::Text(format!("10.{}.{}.{}", at >> 16, at >> 8 & 255, at & 255).into());
    let version = |row: Row| {
        let entries = (0..200_000u32).step_by(2).map(|at| (key(at), row.clone()));
        Version { since: Since::beginning(), hash: None, table: Arc::new(Table::new(entries)) }
    };
    let set = || version(Row::default());
    let list = |name: &str| lists.get(name).expect("a list");
    list("blocked").begin([set()]);
    lists.settle(EventTime::MAX);
    list("changed").begin([set(), set()]);
    list("risks").begin([version([Cell::Whole(3_500_000)].into())]);
    lists
}

fn rules(criterion: &mut Criterion) {
    let (layout, lists) = (Layout::default(), lists());
    let scope = Scope::of_events(&layout).with_lists(&lists);
    let events = events();
    let mut group = criterion.benchmark_group("rules");
    group.throughput(Throughput::Elements(EVENTS as u64));
    for source in CONDITIONS {
        let predicate = compile_predicate(source, &scope).expect("a condition");
        group.bench_function(source, |bencher| {
            bencher.iter(|| events.iter().filter(|event| predicate.holds(black_box(event))).count());
        });
    }
    let number = compile_number("event.amount", &scope).expect("a number");
    group.bench_function("number: event.amount", |bencher| {
        bencher.iter(|| events.iter().filter_map(|event| number.micros(black_box(event))).max());
    });
    group.bench_function("compile", |bencher| {
        bencher.iter(|| compile_predicate(black_box(CONDITIONS[1]), &scope).expect("a condition"));
    });
    group.finish();
}

criterion_group!(benches, rules);
criterion_main!(benches);
