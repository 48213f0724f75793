use std::collections::{HashMap, HashSet};

use super::*;
use crate::decode::{Decoder, JsonDecoder, Reason};

fn raw<'a>(maker: &'a RecordMaker, partition: u32, offset: u64, timestamp: i64) -> Raw<'a> {
    let position = Position { partition: Partition(partition), offset: Offset(offset as i64) };
    Raw { position, timestamp, key: Some(&maker.key), value: Some(&maker.value), retries: 0, producer: None }
}

#[test]
fn a_record_depends_on_seed_partition_and_offset_alone() {
    let mut one = RecordMaker::new(GeneratorSettings::default());
    let mut other = RecordMaker::new(GeneratorSettings::default());
    for offset in (0..2000).rev() {
        other.make(3, offset, None);
    }
    for offset in 0..2000 {
        let times = (one.make(3, offset, None), other.make(3, offset, None));
        assert_eq!(times.0, times.1);
        assert_eq!((&one.key, &one.value), (&other.key, &other.value));
    }
    let mut seeded = RecordMaker::new(GeneratorSettings { seed: 2, ..GeneratorSettings::default() });
    seeded.make(3, 1999, None);
    assert_ne!(one.value, seeded.value);
}

#[test]
fn rates_match_the_settings_and_disorder_is_bounded() {
    let settings = GeneratorSettings { disorder: 0.1, duplicates: 0.05, ..GeneratorSettings::default() };
    let mut maker = RecordMaker::new(settings);
    let mut decoder = JsonDecoder::default();
    let mut rejected: HashMap<Reason, u64> = HashMap::new();
    let (mut ids, mut duplicates, mut disordered, mut late) = (HashSet::new(), 0u64, 0u64, 0u64);
    let n = 100_000;
    for offset in 0..n {
        let timestamp = maker.make(1, offset, None);
        match decoder.decode(raw(&maker, 1, offset, timestamp)) {
            Ok(event) => {
                let behind = timestamp - event.event_time().0;
                assert!(
                    (0..4000).contains(&behind)
                        || behind < 4000 + 2400
                        || (120_000..600_000).contains(&behind)
                );
                duplicates += u64::from(!ids.insert(event.id().to_owned()));
                disordered += u64::from((1..6400).contains(&behind));
                late += u64::from(behind >= 120_000);
            }
            Err(rejection) => *rejected.entry(rejection.reason).or_default() += 1,
        }
    }
    let about = |count: u64, rate: f64| (count as f64 / n as f64 - rate).abs() < 0.2 * rate + 0.001;
    assert!(
        about(rejected[&Reason::Malformed], 0.001) && about(rejected[&Reason::Invalid], 0.001),
        "{rejected:?}"
    );
    assert!(
        about(duplicates, 0.05) && about(disordered, 0.15) && about(late, 0.001),
        "{duplicates} {disordered} {late}"
    );
}

#[test]
fn every_rule_is_injected_and_marked_at_expected_offsets() {
    let settings = GeneratorSettings::default();
    let mut maker = RecordMaker::new(settings.clone());
    let end = 40_000;
    let mut rules = HashSet::new();
    for partition in 0..settings.partitions {
        let expected: HashMap<u64, &str> =
            maker.injections(partition, end).map(|(rule, at)| (at, rule)).collect();
        rules.extend(expected.values().copied());
        for offset in 0..end {
            maker.make(partition, offset, None);
            let text = String::from_utf8_lossy(&maker.value);
            match expected.get(&offset) {
                Some(rule) => assert!(text.contains(&format!("\"injected\":\"{rule}\"")), "{text}"),
                None => assert!(!text.contains("injected"), "{text}"),
            }
        }
    }
    assert_eq!(rules.len(), 5);
}

#[test]
fn a_reader_respects_its_budget_and_ends_after_all_records() {
    let settings = GeneratorSettings { records: Some(1001), ..GeneratorSettings::default() };
    let source = GeneratorSource::new(settings).expect("valid");
    let owned: Vec<_> = (0..6).map(|partition| (Partition(partition), Offset(0))).collect();
    let mut reader = source.reader(&owned).expect("readable");
    let mut read = 0;
    let mut seen = HashSet::new();
    loop {
        let n = reader
            .read(Budget::records(100), &mut |raw| assert!(seen.insert(raw.position)))
            .expect("readable");
        assert!(n <= 100);
        read += n;
        if n == 0 {
            break;
        }
    }
    assert_eq!((read, seen.len()), (1001, 1001));
    assert!(reader.partitions().iter().all(|state| state.ended));
}

#[test]
fn a_live_source_emits_records_as_time_passes() {
    let source = GeneratorSource::live(GeneratorSettings::default(), 6_000.0).expect("valid settings");
    let mut reader = source.reader(&[(Partition(0), Offset(0))]).expect("a reader");
    let budget = Budget::records(1 << 20);
    let begun = std::time::Instant::now();
    let (mut read, now) = (0, crate::wall::wall_ms());
    while read < 100 {
        read += reader
            .read(budget, &mut |raw| {
                assert!((now..now + 60_000).contains(&raw.timestamp), "the time of reading")
            })
            .expect("readable");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(begun.elapsed().as_millis() >= 99, "a thousand records a second in each of six partitions");
    assert!(!source.is_counted() && !reader.partitions()[0].ended);
    assert!(reader.partitions()[0].backlog < 60_000, "only what has appeared");
}

#[test]
fn a_straggler_follows_its_burst_with_an_earlier_time() {
    let settings = GeneratorSettings { stragglers: true, ..GeneratorSettings::default() };
    let mut maker = RecordMaker::new(settings);
    let (_, trigger) = maker
        .injections(1, 1 << 20)
        .into_iter()
        .find(|(rule, _)| *rule == "rapid_fire_burst")
        .expect("a burst");
    maker.make(1, trigger, Some(1_800_000_000_000));
    let (key, burst) = (maker.key.clone(), String::from_utf8_lossy(&maker.value).into_owned());
    maker.make(1, trigger + 1, Some(1_800_000_000_000));
    assert_eq!(maker.key, key, "the same user");
    let straggler = String::from_utf8_lossy(&maker.value).into_owned();
    let time = |text: &str| {
        let record: serde_json::Value = serde_json::from_str(text).expect("JSON");
        record["event_time"].clone()
    };
    assert_ne!(time(&burst), time(&straggler));
    maker.make(1, trigger + 1, None);
    assert_ne!(maker.key, key, "the records of a replayable stream stay as they were");
}
