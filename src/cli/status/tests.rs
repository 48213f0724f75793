use headwater_dataflows::EventTime;
use headwater_sinks::{Generation, LedgerId, Shards};

use super::*;
use crate::coordination::ingest::TimeRules;
use crate::coordination::{Change, Manifest, Versions};
use crate::ledger::Genesis;

const UNCHANGED: &str = "patterns.velocity_spike.more_than = 1\n";

fn request(semantics: &str) -> StartRequest {
    StartRequest { semantics: semantics.into(), operators: Vec::new(), resets: Resets::default() }
}

fn manifest(epoch: u64, readable: bool) -> StoredManifest {
    let manifest = Manifest {
        epoch: Epoch(epoch),
        generation: Generation(2),
        wall_ms: 7_000,
        watermark: EventTime(0),
        positions: Vec::new(),
        unfinal: Vec::new(),
        all_idle: None,
        in_force: Versions::default(),
        operators: Vec::new(),
        keys: Some(12),
        parts: Vec::new(),
    };
    let damaged = || LedgerError::Refused("it is damaged".into());
    StoredManifest { epoch: Epoch(epoch), manifest: readable.then_some(manifest).ok_or_else(damaged) }
}

/// Epochs are recorded through 9. Checkpoint 4 is valid and checkpoint 6 damaged. The sinks have committed through 8
/// and 5.
fn state() -> PipelineState {
    let ledger_id = LedgerId("ab".into());
    let genesis = Some(Genesis { starts: Vec::new(), semantics: UNCHANGED.into() });
    let record = |epoch| EpochRecord {
        epoch: Epoch(epoch),
        wall_ms: 0,
        bindings: Vec::new(),
        closes: false,
        rules: TimeRules::default(),
        change: Change::default(),
    };
    let progress = |through| Progress {
        ledger_id: ledger_id.clone(),
        generation: Generation(3),
        shards: Shards::ALL,
        through: Epoch(through),
    };
    PipelineState {
        pipeline: "fraud".into(),
        claim: Some(Claim { ledger_id: ledger_id.clone(), generation: Generation(3), genesis }),
        manifests: vec![manifest(4, true), manifest(6, false)],
        pruned: Epoch(4),
        epochs: (5..10).map(record).collect(),
        sinks: vec![("a".into(), Ok(vec![progress(8)])), ("b".into(), Ok(vec![progress(5)]))],
        skips: vec!["b:6:events/3/42".parse().expect("a skip")],
        losses: Vec::new(),
        committed: vec!["a".into()],
        attempts: 0,
        rules: None,
    }
}

fn refused(state: &PipelineState) -> String {
    match state.predict(&request(UNCHANGED)) {
        StartOutcome::Refuse(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn status_shows_the_state_and_predicts_a_start() {
    let state = state();
    let outcome = state.predict(&request(UNCHANGED));
    assert_eq!(
        state.text(&outcome, 15_999),
        "pipeline fraud: ledger ab, generation 3, recorded through epoch 9\n\
         checkpoint of epoch 6: ledger: it is damaged\n\
         checkpoint of epoch 4: 8 s old, 0 bytes in 0 parts, 12 keys\n\
         sink a: through epoch 8\n\
         sink b: through epoch 5\n\
         skipped: b:6:events/3/42\n\
         a start would resume from the checkpoint of epoch 4 and replay 5 epochs, through epoch 9\n"
    );
    let json = state.json(&outcome, 15_999);
    assert_eq!((&json["generation"], &json["recorded_through"]), (&json!(3), &json!(9)));
    assert_eq!(json["checkpoints"][1], json!({ "epoch": 4, "age_s": 8, "bytes": 0, "parts": 0, "keys": 12 }));
    assert_eq!(json["checkpoints"][0]["error"], "ledger: it is damaged");
    assert_eq!(json["sinks"][1], json!({ "name": "b", "through": 5, "generation": 3 }));
    let start = json!({ "outcome": "resume", "after": 4, "replay": 5, "through": 9, "closed": false, "changes": null, "discards": null, "adopts": [] });
    assert_eq!(json["start"], start);
}

#[test]
fn a_change_needs_a_stop_and_names_the_discarded_state() {
    let changed = StartRequest {
        resets: Resets { sections: ["patterns".to_owned()].into(), ..Resets::default() },
        ..request("patterns.velocity_spike.more_than = 2\n")
    };
    let outcome = state().predict(&changed);
    let waits = "and not every epoch through 9 is in a checkpoint and in every sink";
    assert!(matches!(&outcome, StartOutcome::Refuse(reason) if reason.contains(waits)), "{outcome:?}");

    let mut stopped = state();
    stopped.manifests = vec![manifest(9, true)];
    for (_, progress) in &mut stopped.sinks {
        progress.as_mut().expect("readable")[0].through = Epoch(9);
    }
    assert_eq!(
        stopped.predict(&changed).to_string(),
        "a start would resume from the checkpoint of epoch 9, with nothing to replay, with a changed configuration: the \
         pipeline was configured with `patterns.velocity_spike.more_than = 1` and is now configured with `patterns.velocity_spike.more_than = 2`, discarding the state of patterns.velocity_spike"
    );
}

#[test]
fn status_predicts_refusals_with_their_reasons() {
    let changed = state().predict(&request("patterns.velocity_spike.more_than = 2\n"));
    assert!(
        matches!(&changed, StartOutcome::Refuse(reason) if reason.contains("`patterns.velocity_spike.more_than = 1`")),
        "{changed:?}"
    );

    let mut other = state();
    other.claim.as_mut().expect("claimed").ledger_id = LedgerId("cd".into());
    let stranger = refused(&other);
    assert!(stranger.starts_with("sink a: its progress belongs to another ledger (ab)"), "{stranger}");
    assert!(stranger.contains("`--adopt-sink a --accept-duplicates`"), "{stranger}");
    let resets = |accept_duplicates| Resets {
        sinks: ["a", "b"].map(str::to_owned).into(),
        accept_duplicates,
        ..Resets::default()
    };
    let unaware = other.predict(&StartRequest { resets: resets(false), ..request(UNCHANGED) });
    assert!(
        matches!(&unaware, StartOutcome::Refuse(reason) if reason.contains("a second time")),
        "{unaware:?}"
    );
    let aware = other.predict(&StartRequest { resets: resets(true), ..request(UNCHANGED) });
    assert!(matches!(&aware, StartOutcome::Resume { adopted, .. } if adopted.len() == 2), "{aware:?}");
    assert!(refused(&PipelineState { claim: None, ..state() }).contains("another ledger"));

    let mut restored = state();
    restored.claim.as_mut().expect("claimed").generation = Generation(2);
    assert!(refused(&restored).starts_with("sink a: generation 3 has written here"));
    let gone = PipelineState { sinks: vec![("a".into(), Ok(Vec::new()))], pruned: Epoch(0), ..state() };
    assert!(refused(&gone).contains("its progress is gone"), "it has committed before");

    let mut new = state();
    new.sinks.push(("c".into(), Ok(Vec::new())));
    assert!(refused(&new).starts_with("sink c has results through epoch 0 only"));

    let older = PipelineState { epochs: Vec::new(), ..state() };
    assert!(
        refused(&older).starts_with("sink a: it has results through epoch 8, and the ledger ends at epoch 6")
    );
}

#[test]
fn unreadable_progress_is_a_refusal_or_unknown() {
    let mut state = state();
    state.sinks[1].1 = Err(Unreadable { reason: "no answer".into(), is_refusal: false });
    let outcome = state.predict(&request(UNCHANGED));
    assert_eq!(outcome, StartOutcome::Unknown("no answer".into()));
    assert!(state.text(&outcome, 0).contains("sink b: cannot read its progress: no answer\n"));
    state.sinks[1].1 = Err(Unreadable { reason: "of another pipeline".into(), is_refusal: true });
    assert_eq!(state.predict(&request(UNCHANGED)), StartOutcome::Refuse("of another pipeline".into()));
}

#[test]
fn a_pipeline_without_records_would_begin() {
    let nothing = || PipelineState {
        manifests: Vec::new(),
        epochs: Vec::new(),
        sinks: Vec::new(),
        pruned: Epoch(0),
        ..state()
    };
    assert_eq!(PipelineState { claim: None, ..nothing() }.predict(&request(UNCHANGED)), StartOutcome::Begin);
    let mut claimed = nothing();
    claimed.claim.as_mut().expect("claimed").genesis = None;
    assert_eq!(claimed.predict(&request(UNCHANGED)), StartOutcome::Begin);
}
