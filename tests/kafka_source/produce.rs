//! Tests of producing at a rate, and of retrying dead letters, with a real broker.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use headwater::dead_letters::{Filter, KafkaTopic, LastRead, LetterStore, RetryRequest, Storage};
use headwater::source::kafka::dead_letters::{self, DeadLetter, DeadLetters};
use headwater::source::kafka::produce::{Produced, Producer};
use headwater::source::kafka::retry::{Resend, Retried, Retry, RetryError};
use headwater::source::{Budget, Source};
use headwater_dataflows::{Offset, Partition};
use headwater_sinks::kafka::client::Options;

use super::{TEN_SECONDS, brokers, open, topic};

#[test]
fn producing_keeps_its_rate_and_stops_on_request() {
    let topic = topic("pace", 2, &[]);
    let produced = |n: u32| Produced {
        partition: Some(n % 2),
        value: Some(n.to_string().into_bytes()),
        ..Produced::default()
    };
    let kafka = || Producer::connect(&brokers(), &Options::new(), &topic).expect("it connects");
    let begun = Instant::now();
    let mut reports = 0;
    let outcome =
        kafka().run((0..1500).map(produced), Some(1000.0), &AtomicBool::new(false), &mut |_| reports += 1);
    let report = outcome.expect("they are produced");
    assert_eq!((report.sent, report.acknowledged, reports), (1500, 1500, 1));
    let seconds = begun.elapsed().as_secs_f64();
    assert!((1.4..8.0).contains(&seconds), "{seconds}");
    assert!(report.slowest > Duration::ZERO);

    let stop = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        let running = scope.spawn(|| kafka().run((0..).map(produced), Some(0.5), &stop, &mut |_| {}));
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        running.join().expect("it returns").expect("it stops")
    });
    assert!(report.sent <= 2, "{report:?}");
}

#[test]
fn the_timestamp_of_a_record_is_the_time_at_which_it_was_due() {
    let topic = topic("due", 1, &[]);
    // Creating each record takes longer than its interval: sending falls behind the schedule, the timestamps do not.
    let produced = (0..20u32).map(|n| {
        std::thread::sleep(Duration::from_millis(40));
        Produced { partition: Some(0), value: Some(n.to_string().into_bytes()), ..Produced::default() }
    });
    let kafka = Producer::connect(&brokers(), &Options::new(), &topic).expect("it connects");
    let report = kafka.run(produced, Some(100.0), &AtomicBool::new(false), &mut |_| {}).expect("produced");
    assert!(report.behind > Duration::from_millis(300), "{report:?}");
    let mut reader = open(&topic).reader(&[(Partition(0), Offset(0))]).expect("it reads");
    let mut timestamps = Vec::new();
    let deadline = Instant::now() + TEN_SECONDS;
    while timestamps.len() < 20 && Instant::now() < deadline {
        reader.read(Budget::records(100), &mut |raw| timestamps.push(raw.timestamp)).expect("it reads");
    }
    let since_first: Vec<_> = timestamps.iter().map(|timestamp| timestamp - timestamps[0]).collect();
    assert_eq!(since_first, (0..20).map(|n| n * 10).collect::<Vec<_>>());
}

#[test]
fn dead_letters_are_retried_once_to_their_own_source_topic() {
    let (letters, source) = (topic("letters", 3, &[]), topic("back", 1, &[]));
    let pipeline = format!("pipeline-{}", std::process::id());
    let letter_of = |pipeline: &str, n: u32, reason: &str, retries: u32, truncated: bool| {
        let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        let mut headers = vec![
            header("reason", reason),
            header("headwater-retries", &retries.to_string()),
            header("pipeline", pipeline),
            header("source-topic", &source),
        ];
        if truncated {
            headers.push(header(dead_letters::header::ORIGINAL_LENGTH, "5000000"));
        }
        let (key, value) = (Some(vec![0xff]), Some(n.to_string().into_bytes()));
        Produced { partition: Some(n % 3), key, value, headers }
    };
    let letter = |n, reason, retries, truncated| letter_of(&pipeline, n, reason, retries, truncated);
    let produce = |produced: Vec<Produced>| {
        let kafka = Producer::connect(&brokers(), &Options::new(), &letters).expect("it connects");
        kafka.run(produced, None, &AtomicBool::new(false), &mut |_| {}).expect("they are produced");
    };
    produce(vec![
        letter(0, "malformed", 0, false),
        letter(1, "invalid", 2, false),
        letter(2, "invalid", 3, false),
        letter(3, "late", 0, false),
        letter(4, "malformed", 0, true),
        letter_of("another", 5, "invalid", 0, false),
    ]);
    let read = || DeadLetters::read_all(&brokers(), &Options::new(), &letters).expect("it opens");
    let mut listed: Vec<DeadLetter> = read().collect::<Result<_, _>>().expect("they are read");
    listed.sort_by_key(|letter| letter.value.clone());
    let found: Vec<_> = listed.iter().map(|letter| (letter.reason(), letter.retries())).collect();
    assert_eq!(
        found,
        [("malformed", 0), ("invalid", 2), ("invalid", 3), ("late", 0), ("malformed", 0), ("invalid", 0)]
    );

    let retry = |include_late, reason: Option<&str>| {
        let retry = Retry {
            brokers: &brokers(),
            options: &Options::new(),
            pipeline: &pipeline,
            source_topic: &source,
            letters_topic: &letters,
            include_late,
            records_each: false,
            per_second: Some(1000.0),
            producer_header: "producer",
        };
        let chosen =
            read().filter(|letter| reason.is_none_or(|of| letter.as_ref().is_ok_and(|l| l.reason() == of)));
        let resends = chosen.map(|letter| Ok(Resend { letter: letter?, edited: None }));
        retry.run::<RetryError>(resends).expect("they are sent")
    };
    let left = Retried { late: 1, exhausted: 1, truncated: 1, of_others: 1, ..Retried::default() };
    let of_one_reason = Retried { sent: 1, exhausted: 1, of_others: 1, ..Retried::default() };
    assert_eq!(retry(false, Some("invalid")), of_one_reason);
    assert_eq!(retry(false, None), Retried { sent: 1, before: 1, ..left });
    assert_eq!(retry(false, None), Retried { before: 2, ..left });
    assert_eq!(retry(true, None), Retried { sent: 1, before: 2, late: 0, ..left });
    produce(vec![letter(6, "malformed", 1, false)]);
    assert_eq!(retry(true, None), Retried { sent: 1, before: 3, late: 0, ..left }, "new letters are sent");
    let mut reader = open(&source).reader(&[(Partition(0), Offset(0))]).expect("it reads");
    let mut got = Vec::new();
    let deadline = Instant::now() + TEN_SECONDS;
    while got.len() < 4 && Instant::now() < deadline {
        let each = &mut |raw: headwater::source::Raw<'_>| {
            assert_eq!(raw.key, Some(&[0xff][..]));
            got.push((String::from_utf8_lossy(raw.value.unwrap_or_default()).into_owned(), raw.retries));
        };
        reader.read(Budget::records(10), each).expect("it reads");
    }
    got.sort();
    let expected = [("0", 1), ("1", 3), ("3", 1), ("6", 2)];
    assert_eq!(got, expected.map(|(value, retries)| (value.to_owned(), retries)));
}

#[test]
fn a_topic_of_letters_is_paged_and_single_letters_are_sent_once() {
    let (letters, source) = (topic("paged", 3, &[]), topic("paged-back", 1, &[]));
    let pipeline = format!("paged-{}", std::process::id());
    let letter = |n: u32| {
        let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        let of = if n.is_multiple_of(10) { "another" } else { &pipeline };
        let field = if n.is_multiple_of(2) { "amount" } else { "user_id" };
        let headers = [("reason", "invalid"), ("field", field), ("pipeline", of), ("source-topic", &source)];
        let headers = headers.map(|(name, value)| header(name, value)).to_vec();
        Produced { partition: Some(n % 3), key: None, value: Some(n.to_string().into_bytes()), headers }
    };
    let kafka = Producer::connect(&brokers(), &Options::new(), &letters).expect("it connects");
    kafka.run((0..100).map(letter), None, &AtomicBool::new(false), &mut |_| {}).expect("they are produced");
    let place =
        |topic: &str| KafkaTopic { brokers: brokers(), options: Options::new(), topic: topic.to_owned() };
    let store = LetterStore {
        pipeline: pipeline.clone(),
        storage: Storage::Topic(place(&letters)),
        source: Some(place(&source)),
        mask: Vec::new(),
        producer_header: "producer".to_owned(),
        decoding: headwater::decode::JSON.standard(),
        last_read: LastRead::default(),
    };
    let (mut cursor, mut values, mut of_others) = (None, Vec::new(), 0);
    loop {
        let page = store.page(&Filter::default(), cursor.as_deref(), 17).expect("readable");
        values.extend(page.dead_letters.iter().map(|letter| (letter.id, letter.value.clone())));
        of_others += page.of_other_pipelines;
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!((values.len(), of_others), (90, 10));
    for partition in 0..3 {
        let of: Vec<_> =
            values.iter().filter(|(id, _)| id.partition == partition).map(|(id, _)| id.offset).collect();
        assert!(of.is_sorted_by(|one, next| one > next), "the newest first: {of:?}");
    }
    let groups = store.groups(&Filter::default()).expect("readable");
    assert_eq!(groups.groups.iter().map(|group| group.count).collect::<Vec<_>>(), [50, 40]);

    let retry = |request: RetryRequest| {
        let report = store.retry(&request).expect("sent");
        (report.sent, report.skipped.sent_before)
    };
    let one = RetryRequest { ids: vec![values[40].0], ..RetryRequest::default() };
    assert_eq!(retry(RetryRequest { dry_run: true, ..one.clone() }), (1, 0));
    assert_eq!((retry(one.clone()), retry(one.clone())), ((1, 0), (0, 1)));
    assert_eq!(store.letter(one.ids[0]).expect("readable").expect("it exists").sent_again, Some(true));
    let filter = Filter { field: Some("amount".to_owned()), ..Filter::default() };
    let of_field = retry(RetryRequest { filter, ..RetryRequest::default() });
    assert_eq!(of_field.0 + of_field.1, 40);
    assert_eq!(retry(RetryRequest::default()), (90 - 1 - of_field.0, 1 + of_field.0));
    assert_eq!(retry(RetryRequest::default()), (0, 90));
    assert_eq!(retry(one), (0, 1));
    let purged = store.purge(headwater::wall::wall_ms() + 1, false, false);
    assert!(purged.expect_err("10 are of others").to_string().contains("10 dead letters of other pipelines"));
}
