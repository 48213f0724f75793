//! Links to the traces of a Kafka topic's records. `HEADWATER_TEST_KAFKA` names the broker, as `host:port`.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use headwater::source::generator::{GeneratorSettings, RecordMaker};
use headwater::source::kafka::produce::{Produced, Producer};
use headwater::topics::{TopicSpec, create_topics};
use headwater_sinks::kafka::client::Options;

use crate::collector::{Collector, Response};
use crate::program::Program;
use crate::spans::traces;

fn brokers() -> String {
    std::env::var("HEADWATER_TEST_KAFKA")
        .expect("this test needs a Kafka broker: set HEADWATER_TEST_KAFKA to its host:port")
}

/// Returns the context of a record: every third is sampled, every third is not, and every third has a broken one.
fn traceparent(n: u128) -> Vec<u8> {
    let (trace_id, span_id) = (n + 1, n + 1_000_000);
    match n % 3 {
        0 => format!("00-{trace_id:032x}-{span_id:016x}-01").into_bytes(),
        1 => format!("00-{trace_id:032x}-{span_id:016x}-00").into_bytes(),
        _ => b"00-\xff-01".to_vec(),
    }
}

/// Produces records with contexts, and reads them; returns the number of links of each round, and all linked spans.
fn links(name: &str, records: u64) -> (Vec<usize>, BTreeSet<(u128, u64)>) {
    let topic = format!("{name}-{}", std::process::id());
    create_topics(&brokers(), &Options::new(), &[TopicSpec::new(&topic, 1)]).expect("the topic is new");
    let mut maker = RecordMaker::new(GeneratorSettings::default());
    let produced = (0..records).map(|n| {
        maker.make(0, n, None);
        let headers = vec![
            ("producer".to_owned(), b"test".to_vec()),
            ("traceparent".to_owned(), traceparent(n.into())),
        ];
        Produced { partition: Some(0), value: Some(maker.value.clone()), headers, ..Produced::default() }
    });
    let producer = Producer::connect(&brokers(), &Options::new(), &topic).expect("it connects");
    producer.run(produced, None, &AtomicBool::new(false), &mut |_| {}).expect("they are produced");

    let collector = Collector::start(Response::Accept);
    let config = format!(
        "pipeline = {topic:?}\nsource = {{ kind = 'kafka', brokers = {:?}, topic = {topic:?} }}\n\
         sinks.sqlite.path = 'results.db'\nledger = {{ kind = 'sqlite', path = 'ledger.db' }}",
        brokers()
    );
    Program::new(&config, &collector.url()).run(&["--bounded"]);
    let links = traces(&collector).into_iter().map(|trace| trace.commit.links).collect::<Vec<_>>();
    let id = |link: &opentelemetry_proto::tonic::trace::v1::span::Link| {
        assert_eq!(link.flags & 0x3ff, 0x301, "sampled, and remote");
        let trace_id = link.trace_id.as_slice().try_into().expect("16 bytes");
        let span_id = link.span_id.as_slice().try_into().expect("8 bytes");
        (u128::from_be_bytes(trace_id), u64::from_be_bytes(span_id))
    };
    (links.iter().map(Vec::len).collect(), links.iter().flatten().map(id).collect())
}

#[test]
fn rounds_link_to_the_spans_of_sampled_records() {
    let (counts, links) = links("linked", 30);
    let expected = (0..30).filter(|n| n % 3 == 0).map(|n| (n + 1, n as u64 + 1_000_000));
    assert_eq!(links, expected.collect(), "each sampled record has one link");
    assert_eq!(counts.iter().sum::<usize>(), 10);
}

#[test]
fn a_round_has_at_most_32_links() {
    let (counts, _) = links("many-links", 20_000);
    assert_eq!(counts.iter().max(), Some(&32), "{counts:?}");
}
