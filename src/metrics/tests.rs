use std::collections::BTreeSet;

use super::*;
use crate::lists::{Lists, Schema};

#[test]
fn a_stalled_frontier_is_not_ready_and_names_the_cause() {
    let metrics = Metrics::default();
    let never = metrics.unready().expect("nothing has been committed");
    assert_eq!((never.standstill_s, never.lag_records, never.committing), (None, 0, None));

    metrics.starting("opening sink postgres");
    let starting = metrics.unready_at(Instant::now() + Duration::from_secs(9)).expect("nothing has begun");
    assert_eq!(starting.reason, "starting: opening sink postgres for 9 s");
    metrics.started();

    assert!(metrics.text().contains("\nheadwater_ready 0\n"));
    metrics.frontier(Epoch(7), Some(Instant::now()));
    assert_eq!(metrics.unready(), None);
    assert!(metrics.text().contains("\nheadwater_ready 1\n"));

    metrics.consumer_lag(Partition(0)).set(40);
    metrics.consumer_lag(Partition(3)).set(2);
    metrics.committing("sqlite");
    metrics.committing("postgres");
    metrics.committed("sqlite", Epoch(7), 3);
    let later = Instant::now() + Duration::from_secs(12);
    let unready = metrics.unready_at(later).expect("the frontier has not moved");
    assert_eq!(
        unready,
        Unready {
            reason:
                "nothing has been committed for 12 s; sink postgres has been committing for 12 s; 42 records \
                     are waiting to be read"
                    .into(),
            causes: vec![Cause::Sink],
            standstill_s: Some(12),
            lag_records: 42,
            committing: Some("postgres".into()),
        }
    );
    metrics.commits_every(Duration::from_secs(5));
    assert_eq!(metrics.unready_at(later), None, "within the commit interval it may stand still");
}

#[test]
fn a_held_watermark_is_a_stall_until_it_is_released() {
    let metrics = Metrics::default();
    metrics.frontier(Epoch(7), None);
    metrics.stalls_after(Duration::from_secs(2), Duration::from_secs(60));
    let gauge = |metrics: &Metrics, cause: &str| {
        let line = format!("headwater_stalled{{cause=\"{cause}\"}} ");
        let text = metrics.text();
        text.lines().find_map(|found| found.strip_prefix(&line)).expect("it is there").to_owned()
    };
    let held = |seconds| Some((Offset(8812), Duration::from_secs(seconds)));
    metrics.partition_holds(Partition(3), held(1));
    assert_eq!((metrics.unready(), gauge(&metrics, "transaction")), (None, "0".to_owned()));
    metrics.partition_holds(Partition(3), held(3));
    assert_eq!((metrics.unready(), gauge(&metrics, "transaction")), (None, "1".to_owned()));
    metrics.partition_holds(Partition(3), held(61));
    let unready = metrics.unready().expect("for more than a minute");
    assert_eq!(unready.causes, [Cause::Transaction]);
    let expected = "source partition 3 is held by a transaction that is open at offset 8812 for 61 s";
    assert!(unready.reason.starts_with(expected), "{unready:?}");
    metrics.partition_holds(Partition(3), None);
    assert_eq!((metrics.unready(), gauge(&metrics, "transaction")), (None, "0".to_owned()));

    metrics.topic_stalls(Some("the topic has 8 partitions, and 6 are read".into()));
    assert_eq!(metrics.unready().map(|unready| unready.causes), Some(vec![Cause::Topic]));
    assert_eq!(gauge(&metrics, "topic"), "1");
}

#[test]
fn quantiles_are_interpolated_within_their_bounds() {
    let metrics = Metrics::default();
    assert_eq!(metrics.epoch_times().quantile(0.5), None);
    metrics.computed(Duration::from_secs(1));
    let before = metrics.epoch_times();
    for n in 0..100 {
        metrics.computed(Duration::from_micros(10_000 + 100 * n));
    }
    let times = metrics.epoch_times().since(&before);
    for (share, ms) in [(0.5, 15.0), (0.9, 19.0), (0.99, 19.9)] {
        let found = times.quantile(share).expect("there are some") * 1e3;
        // Adjacent bounds differ by a factor of 1.25.
        assert!((1.0 / 1.25..1.25).contains(&(found / ms)), "{share}: {found} ms, expected {ms}");
    }
}

#[test]
fn dropping_a_workers_share_lowers_the_gauge() {
    let metrics = Metrics::default();
    let (mut one, mut other) = (metrics.keys(), metrics.keys());
    one.set(5);
    other.set(7);
    one.set(3);
    assert!(metrics.text().contains("\nheadwater_keys 10\n"));
    drop(other);
    assert!(metrics.text().contains("\nheadwater_keys 3\n"));
}

#[test]
fn the_documentation_lists_exactly_the_metrics() {
    let metrics = Metrics::default();
    metrics.alert("velocity_spike", "raised", "live");
    metrics.consumer_lag(Partition(0));
    metrics.partition_waits(Partition(0));
    drop(metrics.worker_busy(0));
    drop(metrics.peer_silence(1));
    metrics.committing("sqlite");
    metrics.committed("sqlite", Epoch(1), 0);
    metrics.delivery("desk", DeliveryOutcome::Delivered);
    metrics.deliveries_waiting("desk", 2, 1500);
    metrics.route_errors("desk", 3);
    metrics.route_errors("desk", 4);
    metrics.watch_rules(vec![RuleErrors { rule: "own".to_owned(), count: Box::new(|| 3), reported: 0 }]);
    let lists = Lists::new([("blocked".into(), Schema::set())]);
    lists.iter().for_each(|list| list.note(|health| (health.is_reader, health.errors) = (true, 2)));
    metrics.watch_lists(lists);
    let text = metrics.text();
    assert!(text.contains("headwater_list_errors_total{list=\"blocked\"} 2\n"), "{text}");
    assert!(text.contains("headwater_rule_errors_total{rule=\"own\"} 3\n"), "{text}");
    assert!(text.contains("headwater_route_errors_total{route=\"desk\"} 4\n"), "{text}");
    assert!(text.contains("headwater_deliveries_total{outcome=\"delivered\",route=\"desk\"} 1\n"), "{text}");
    assert!(
        text.contains("headwater_deliveries_total{outcome=\"dead\",route=\"desk\"} 0\n"),
        "it exists at once"
    );
    let served: BTreeSet<_> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let documented: BTreeSet<_> = include_str!("../../docs/metrics.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .filter_map(|(name, rest)| Some((name, rest.split_once(" |")?.0)))
        .filter(|(name, _)| !name.starts_with('/'))
        .collect();
    assert_eq!(served, documented);
}

#[test]
fn lags_are_measured_when_the_metrics_are_read() {
    let value = |metrics: &Metrics, name: &str| {
        let text = metrics.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("it is there");
        line.trim().parse::<f64>().expect("a number")
    };
    let metrics = Metrics::default();
    std::thread::sleep(Duration::from_millis(2));
    assert!(value(&metrics, "headwater_watermark_lag_seconds ") > 0.001, "for as long as it has run");
    metrics.closed(Epoch(3), EventTime(wall_ms() - 5_000));
    metrics.frontier(Epoch(3), Instant::now().checked_sub(Duration::from_secs(2)));
    assert!((5.0..60.0).contains(&value(&metrics, "headwater_watermark_lag_seconds ")));
    assert!((2.0..60.0).contains(&value(&metrics, "headwater_frontier_lag_seconds ")));
    metrics.closed(Epoch(4), EventTime::MAX);
    assert_eq!(value(&metrics, "headwater_watermark_lag_seconds "), 0.0);
    assert!(value(&metrics, "process_resident_memory_bytes ") > 1e6, "more than a megabyte");
}

#[test]
fn renamed_metrics_are_served_under_their_old_names_and_units() {
    let metrics = Metrics::default();
    assert!(metrics.text().contains("\nheadwater_watermark_timestamp_seconds -inf\n"), "{}", metrics.text());
    metrics.closed(Epoch(3), EventTime(1_772_330_400_250));
    metrics.rejected("malformed", 2);
    metrics.checkpoint(Epoch(2), 1_772_330_400_000, 9);
    let text = metrics.text();
    for line in [
        "headwater_watermark_timestamp_seconds 1772330400.25",
        "headwater_watermark_ms 1772330400250",
        "headwater_checkpoint_timestamp_seconds 1772330400",
        "headwater_checkpoint_time_ms 1772330400000",
        "headwater_dead_letters_total{reason=\"malformed\"} 2",
        "headwater_rejected_total{reason=\"malformed\"} 2",
        "# HELP headwater_rejected_total Deprecated: use headwater_dead_letters_total",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line}: {text}");
    }
    assert_eq!(metrics.latest(), (3, 1_772_330_400_250));
}
