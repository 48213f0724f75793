use crate::coordination::ingest::TimeRules;
use headwater_dataflows::{EventTime, Offset, Partition};

use super::*;
use crate::coordination::{Binding, Change, Versions};

fn record(epoch: u64, wall_ms: i64) -> EpochRecord {
    let binding = Binding {
        partition: Partition(0),
        end: Offset(1),
        timestamp: None,
        max_event_time: None,
        pushing_time: None,
        candidate: None,
        idle: false,
    };
    let rules = TimeRules::default();
    EpochRecord {
        epoch: Epoch(epoch),
        wall_ms,
        bindings: vec![binding],
        closes: false,
        rules,
        change: Change::default(),
    }
}

fn part(generation: u64, epoch: u64, shard: u32, kind: PartKind, bytes: u64) -> Part {
    let (ledger_id, generation) = (LedgerId("a".into()), Generation(generation));
    let name = PartName { ledger_id, generation, epoch: Epoch(epoch), shard: ShardId(shard), kind };
    Part { name, hash: [0; 32], bytes }
}

fn manifest(epoch: u64, parts: Vec<Part>) -> Manifest {
    Manifest {
        epoch: Epoch(epoch),
        generation: Generation(1),
        wall_ms: 0,
        watermark: EventTime::MIN,
        positions: Vec::new(),
        unfinal: Vec::new(),
        all_idle: None,
        in_force: Versions::default(),
        operators: Vec::new(),
        keys: None,
        parts,
    }
}

use PartKind::{Base, Delta};

#[test]
fn marks_are_an_interval_apart_and_one_at_a_time() {
    let mut marks = Marks::new(100, Epoch(0));
    assert!(!marks.mark(&record(1, 1_000)), "the interval begins");
    assert!(!marks.mark(&record(2, 1_099)));
    assert!(marks.mark(&record(3, 1_100)));
    assert!(!marks.mark(&record(4, 5_000)), "one is in flight");
    marks.concluded(Epoch(2));
    assert!(!marks.mark(&record(4, 5_000)), "it still is in flight");
    marks.concluded(Epoch(3));
    assert!(!marks.mark(&EpochRecord { bindings: vec![], ..record(5, 5_000) }), "it is not recorded");
    assert!(marks.mark(&record(6, 5_001)));
    marks.concluded(Epoch(6));
    assert!(!marks.mark(&record(7, 5_050)));
    assert!(marks.mark(&record(8, 10)), "the clock was set back");
}

#[test]
fn a_demanded_mark_does_not_wait_for_the_interval() {
    let mut marks = Marks::new(10_000, Epoch(0));
    marks.demand(1_000);
    assert!(marks.is_settled(), "nothing is new");
    assert!(!marks.mark(&record(1, 1_000)));
    marks.demand(1_001);
    assert!(!marks.is_settled());
    assert!(
        marks.mark(&EpochRecord { bindings: vec![], ..record(2, 2_000) }),
        "there may be no more records"
    );
    assert!(!marks.is_settled() && !marks.mark(&record(3, 2_500)), "it is in flight");
    marks.demand(9_000);
    marks.concluded(Epoch(2));
    assert!(marks.is_settled(), "the one in flight is enough");
    assert!(!marks.mark(&record(4, 9_000)), "only one was demanded");
    marks.demand(2_999);
    assert!(marks.is_settled(), "the last mark was just before");
    marks.demand(1_000);
    assert!(!marks.is_settled(), "the clock was set back");
}

#[test]
fn epochs_up_to_the_newest_manifest_are_not_marked() {
    let mut marks = Marks::new(0, Epoch(4));
    assert!(!marks.mark(&record(3, 1)) && !marks.mark(&record(4, 2)) && marks.mark(&record(5, 3)));
}

#[test]
fn a_checkpoint_is_complete_with_every_shard_and_every_sink() {
    let mut checkpoint = Checkpoint::of(Epoch(7));
    let low = Shards(u64::MAX >> 1);
    checkpoint.stored(low, vec![part(1, 7, 0, Base, 5), part(1, 7, 9, Delta, 5)]).expect("of its shards");
    let sinks = [Some(Epoch(7)), Some(Epoch(9))];
    assert!(!checkpoint.is_complete(&sinks), "a shard is missing");
    assert_eq!(checkpoint.stored(Shards(1), vec![]), Err(InvalidPart::Twice(ShardId(0))));
    let high = Shards(1 << 63);
    for stray in [part(1, 7, 62, Base, 5), part(1, 6, 63, Base, 5)] {
        let shard = stray.name.shard;
        assert_eq!(checkpoint.stored(high, vec![stray]), Err(InvalidPart::Stray(shard)));
    }
    checkpoint.stored(high, vec![]).expect("a shard that did not change");
    assert!(checkpoint.is_complete(&sinks) && checkpoint.is_complete(&[]));
    assert!(!checkpoint.is_complete(&[Some(Epoch(6)), Some(Epoch(9))]), "a sink is behind");
    assert!(!checkpoint.is_complete(&[None]), "a sink has nothing");
}

#[test]
fn a_delta_follows_its_shards_parts_and_a_base_replaces_them() {
    let before =
        [part(1, 5, 0, Base, 9), part(1, 6, 0, Delta, 1), part(1, 5, 1, Base, 9), part(1, 6, 1, Delta, 1)];
    let mut checkpoint = Checkpoint::of(Epoch(7));
    let (delta, base) = (part(1, 7, 0, Delta, 1), part(1, 7, 1, Base, 9));
    checkpoint.stored(Shards::ALL, vec![base.clone(), delta.clone()]).expect("of its shards");
    let after = [before[0].clone(), before[1].clone(), delta, base];
    assert_eq!(checkpoint.parts_after(&before), Ok(after.to_vec()));
    assert!(are_chains(&after));
    assert_eq!(checkpoint.parts_after(&before[2..]), Err(InvalidPart::Stray(ShardId(0))), "no base");
    assert_eq!(
        checkpoint.parts_after(&after),
        Err(InvalidPart::Stray(ShardId(0))),
        "the epoch is already there"
    );

    assert!(!are_chains(&before[1..]) && !are_chains(&[before[2].clone(), before[0].clone()]));
    assert!(!are_chains(&[before[0].clone(), before[0].clone()]), "two bases");
}

#[test]
fn a_shard_needs_a_base_when_its_deltas_outgrow_it() {
    let chain = |base, deltas: &[u64]| -> Vec<Part> {
        let deltas = deltas.iter().enumerate().map(|(at, &bytes)| part(1, 2 + at as u64, 0, Delta, bytes));
        std::iter::once(part(1, 1, 0, Base, base)).chain(deltas).collect()
    };
    assert!(wants_base(&[]), "it has no parts");
    assert!(!wants_base(&chain(10, &[5, 5])) && wants_base(&chain(10, &[5, 6])), "more bytes than the base");
    assert!(!wants_base(&chain(10, &[1; 8])) && wants_base(&chain(10, &[1; 9])), "more than eight");
    assert!(wants_base(&chain(10, &[u64::MAX, u64::MAX])), "without overflow");
}

#[test]
fn the_beginning_counts_among_the_kept_checkpoints() {
    let epochs = [10, 20, 30, 40].map(Epoch);
    assert_eq!(prune(&[], 3), Prune::Nothing);
    assert_eq!(prune(&epochs[..2], 3), Prune::Nothing, "the beginning is the third");
    assert_eq!(prune(&epochs[..3], 3), Prune::Before(Epoch(10)));
    assert_eq!(prune(&epochs, 3), Prune::Before(Epoch(20)));
    assert_eq!(prune(&epochs, 0), Prune::Before(Epoch(40)), "the newest is always kept");
    assert_eq!(prune(&epochs, 5), Prune::Nothing);
}

#[test]
fn a_start_resumes_from_the_newest_checkpoint_below_all_sinks() {
    let readable = [10, 20, 30].map(Epoch);
    let sinks = |a: u64, b: u64| [("a", Some(Epoch(a))), ("b", Some(Epoch(b)))];
    let (beginning, pruned) = (Epoch(0), Epoch(10));
    assert_eq!(
        origins(&readable, beginning, Epoch(30), &sinks(30, 99)),
        Ok([30, 20, 10, 0].map(Epoch).to_vec()),
        "equal"
    );
    assert_eq!(
        origins(&readable, pruned, Epoch(30), &sinks(30, 29)),
        Ok([20, 10].map(Epoch).to_vec()),
        "one below"
    );
    assert_eq!(origins(&readable, beginning, Epoch(30), &sinks(99, 3)), Ok(vec![Epoch(0)]), "far below");
    let behind = NoOrigin::Behind { sink: "b".into(), has: Epoch(9), oldest: Epoch(10) };
    assert_eq!(origins(&readable, pruned, Epoch(30), &sinks(99, 9)), Err(behind));
    assert_eq!(origins(&readable, pruned, Epoch(30), &[]), Ok([30, 20, 10].map(Epoch).to_vec()));
}

#[test]
fn a_sink_without_progress_needs_the_beginning() {
    let new = [("old", Some(Epoch(30))), ("new", None)];
    assert_eq!(origins(&[Epoch(10)], Epoch(0), Epoch(10), &new), Ok(vec![Epoch(0)]));
    let behind = NoOrigin::Behind { sink: "new".into(), has: Epoch(0), oldest: Epoch(10) };
    assert_eq!(origins(&[Epoch(10)], Epoch(10), Epoch(10), &new), Err(behind));
}

#[test]
fn a_pruned_ledger_without_a_manifest_is_refused() {
    assert_eq!(
        origins(&[], Epoch(10), Epoch(12), &[]),
        Err(NoOrigin::Unreadable { pruned: Epoch(10), durable: Epoch(12) })
    );
    assert_eq!(origins(&[], Epoch(0), Epoch(0), &[]), Ok(vec![Epoch(0)]));
}

#[test]
fn a_fully_pruned_ledger_ends_at_its_newest_manifest() {
    assert_eq!(durable(None, &[]), Epoch(0));
    assert_eq!(durable(None, &[Epoch(10), Epoch(20)]), Epoch(20));
    assert_eq!(durable(Some(Epoch(25)), &[Epoch(20)]), Epoch(25));
}

#[test]
fn only_parts_that_no_manifest_needs_are_deleted() {
    let base = part(1, 10, 0, Base, 1);
    let (lone, shared) = (part(1, 11, 0, Delta, 1), part(1, 10, 1, Base, 1));
    let dropped = [manifest(11, vec![base.clone(), lone.clone(), shared.clone()])];
    let kept = [manifest(20, vec![shared.clone(), part(1, 20, 0, Base, 1)])];
    let gone: Vec<_> = unreferenced(&dropped, &kept).into_iter().collect();
    assert_eq!(gone, [base.name.clone(), lone.name.clone()]);

    let other = PartName { ledger_id: LedgerId("b".into()), ..lone.name.clone() };
    let own = PartName { generation: Generation(3), ..lone.name.clone() };
    let found = [&lone.name, &shared.name, &other, &own].map(PartName::to_string);
    let found = found.iter().map(String::as_str).chain(["another file"]);
    assert_eq!(left_behind(found, &LedgerId("a".into()), Generation(3), &kept), [lone.name]);
}
