use std::sync::Arc;
use std::time::Duration;

use super::*;

/// A recorder, and the rounds that it has emitted.
fn recorder() -> (RoundRecorder, Arc<Mutex<Vec<Round>>>) {
    let rounds = Arc::<Mutex<Vec<Round>>>::default();
    let emitted = Arc::clone(&rounds);
    let emit = move |round| emitted.lock().expect("no panic").push(round);
    (RoundRecorder::new(Box::new(emit)), rounds)
}

fn context(id: u8) -> TraceContext {
    TraceContext { trace_id: [id; 16], span_id: [id; 8], flags: 1 }
}

fn transaction(first: u64, last: u64) -> Transaction {
    let now = Instant::now();
    Transaction { first: Epoch(first), last: Epoch(last), step: Step { begun: now, ended: now } }
}

fn of_sink(sink: &str, first: u64, last: u64) -> SinkTransaction {
    let transaction = transaction(first, last);
    SinkTransaction { sink: sink.into(), transaction, outputs: 2, attempts: 1, error: None }
}

fn epochs(first: u64, last: u64) -> Epochs {
    let now = Instant::now();
    let (bound, computed) = (Some(now), Some(now));
    Epochs { first: Epoch(first), last: Epoch(last), opened: now, bound, computed, ended: now }
}

#[test]
fn a_transaction_belongs_to_the_round_of_its_last_epoch() {
    let (recorder, rounds) = recorder();
    recorder.read(Epoch(1), 3, vec![context(1)]);
    recorder.read(Epoch(1), 4, vec![context(2)]);
    recorder.read(Epoch(5), 10, vec![context(5)]);
    recorder.appended(transaction(1, 2));
    recorder.appended(transaction(3, 5));
    recorder.transacted(of_sink("fast", 1, 2));
    recorder.transacted(of_sink("fast", 3, 5));
    recorder.transacted(of_sink("slow", 1, 4));
    recorder.committed(epochs(1, 4));
    recorder.committed(epochs(5, 5));

    let rounds = rounds.lock().expect("no panic");
    let of = |round: &Round| {
        let sinks = round.transactions.iter().map(|of| (of.sink.clone(), of.transaction.last.0));
        (round.records, round.appends.len(), sinks.collect::<Vec<_>>(), round.links.clone())
    };
    let (fast, slow) = ("fast".to_owned(), "slow".to_owned());
    assert_eq!(rounds.len(), 2);
    let first = (7, 1, vec![(fast.clone(), 2), (slow, 4)], vec![context(1), context(2)]);
    assert_eq!(of(&rounds[0]), first);
    assert_eq!(of(&rounds[1]), (10, 1, vec![(fast, 5)], vec![context(5)]));
}

#[test]
fn epochs_without_a_transaction_give_no_round() {
    let (recorder, rounds) = recorder();
    recorder.read(Epoch(1), 3, vec![context(1)]);
    recorder.committed(epochs(1, 1));
    recorder.transacted(of_sink("sqlite", 2, 2));
    recorder.committed(epochs(2, 3));
    let rounds = rounds.lock().expect("no panic");
    assert_eq!(rounds.len(), 1);
    assert_eq!((rounds[0].records, rounds[0].links.len()), (0, 0), "those of epoch 1 are forgotten");
}

#[test]
fn a_round_has_a_bounded_number_of_links() {
    let (recorder, rounds) = recorder();
    for epoch in 1..=3 {
        recorder.read(Epoch(epoch), 20, vec![context(epoch as u8); 20]);
        recorder.read(Epoch(epoch), 20, vec![context(9); 20]);
    }
    recorder.transacted(of_sink("sqlite", 1, 3));
    recorder.committed(epochs(1, 3));
    let links = &rounds.lock().expect("no panic")[0].links;
    let count = |id| links.iter().filter(|link| **link == context(id)).count();
    assert_eq!((links.len(), count(1), count(9)), (MAX_LINKS, 20, 12), "as they come");
}

#[test]
fn a_failed_transaction_is_emitted_at_the_end() {
    let (recorder, rounds) = recorder();
    recorder.finish();
    assert_eq!(rounds.lock().expect("no panic").len(), 0);
    recorder.transacted(of_sink("fast", 1, 9));
    recorder.transacted(SinkTransaction { error: Some("fenced".into()), ..of_sink("slow", 1, 2) });
    recorder.finish();
    let rounds = rounds.lock().expect("no panic");
    assert_eq!(rounds.len(), 1);
    assert_eq!(rounds[0].transactions.len(), 1);
    assert_eq!(rounds[0].transactions[0].error.as_deref(), Some("fenced"));
}

#[test]
fn an_epoch_is_passed_by_the_first_greater_frontier() {
    let mut advances = Advances::default();
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(advances.passed(Epoch(0)), None);
    for (frontier, seconds) in [(1, 1), (4, 2), (4, 3), (6, 4)] {
        advances.note(Some(Epoch(frontier)), at(seconds));
    }
    assert_eq!(advances.passed(Epoch(1)), Some(at(2)));
    assert_eq!(advances.passed(Epoch(3)), Some(at(2)));
    assert_eq!(advances.passed(Epoch(5)), Some(at(4)));
    assert_eq!(advances.passed(Epoch(6)), None);
    advances.note(None, at(9));
    assert_eq!(advances.passed(Epoch(6)), Some(at(9)));
}
