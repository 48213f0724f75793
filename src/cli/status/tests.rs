use headwater_dataflows::EventTime;
use headwater_sinks::{Generation, LedgerId, Shards};

use super::*;
use crate::coordination::Manifest;
use crate::coordination::ingest::TimeRules;
use crate::ledger::Genesis;

const AS_EVER: &str = "patterns.velocity_spike.more_than = 1\n";

fn wanted(semantics: &str) -> Wanted {
    Wanted { semantics: semantics.into(), operators: Vec::new(), resets: Resets::default() }
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
        operators: Vec::new(),
        keys: Some(12),
        parts: Vec::new(),
    };
    let damaged = || LedgerError::Refused("it is damaged".into());
    StoredManifest { epoch: Epoch(epoch), manifest: readable.then_some(manifest).ok_or_else(damaged) }
}

/// Recorded through 9, with checkpoints of 4 and 6, of which the newer is damaged; sinks have 8 and 5.
fn facts() -> Facts {
    let ledger_id = LedgerId("ab".into());
    let genesis = Some(Genesis { starts: Vec::new(), semantics: AS_EVER.into() });
    let record = |epoch| EpochRecord {
        epoch: Epoch(epoch),
        wall_ms: 0,
        bindings: Vec::new(),
        closes: false,
        rules: TimeRules::default(),
    };
    let progress = |through| Progress {
        ledger_id: ledger_id.clone(),
        generation: Generation(3),
        shards: Shards::ALL,
        through: Epoch(through),
    };
    Facts {
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
    }
}

fn refused(facts: &Facts) -> String {
    match facts.outlook(&wanted(AS_EVER)) {
        Outlook::Refuses(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_status_says_what_is_there_and_what_a_start_would_do() {
    let facts = facts();
    let outlook = facts.outlook(&wanted(AS_EVER));
    assert_eq!(
        facts.text(&outlook, 15_999),
        "pipeline fraud: ledger ab, generation 3, recorded through epoch 9\n\
         checkpoint of epoch 6: ledger: it is damaged\n\
         checkpoint of epoch 4: 8 s old, 0 bytes in 0 parts, 12 keys\n\
         sink a: through epoch 8\n\
         sink b: through epoch 5\n\
         skipped: b:6:events/3/42\n\
         a start would go on from the checkpoint of epoch 4 and do 5 epochs again, through 9\n"
    );
    let json = facts.json(&outlook, 15_999);
    assert_eq!((&json["generation"], &json["recorded_through"]), (&json!(3), &json!(9)));
    assert_eq!(json["checkpoints"][1], json!({ "epoch": 4, "age_s": 8, "bytes": 0, "parts": 0, "keys": 12 }));
    assert_eq!(json["checkpoints"][0]["error"], "ledger: it is damaged");
    assert_eq!(json["sinks"][1], json!({ "name": "b", "through": 5, "generation": 3 }));
    let start = json!({ "does": "go on", "after": 4, "replay": 5, "through": 9, "closed": false, "changed": null, "forgets": null, "adopts": [] });
    assert_eq!(json["start"], start);
}

#[test]
fn a_change_waits_for_a_stop_and_names_what_it_forgets() {
    let changed = Wanted {
        resets: Resets { sections: ["patterns".to_owned()].into(), ..Resets::default() },
        ..wanted("patterns.velocity_spike.more_than = 2\n")
    };
    let outlook = facts().outlook(&changed);
    let waits = "and not everything through epoch 9 is in a checkpoint and in every sink";
    assert!(matches!(&outlook, Outlook::Refuses(reason) if reason.contains(waits)), "{outlook:?}");

    let mut stopped = facts();
    stopped.manifests = vec![manifest(9, true)];
    for (_, progress) in &mut stopped.sinks {
        progress.as_mut().expect("readable")[0].through = Epoch(9);
    }
    assert_eq!(
        stopped.outlook(&changed).to_string(),
        "a start would go on from the checkpoint of epoch 9, with nothing to replay, with a changed configuration: the \
         pipeline has had `patterns.velocity_spike.more_than = 1` and is configured with `patterns.velocity_spike.more_than = 2`, forgetting patterns.velocity_spike"
    );
}

#[test]
fn a_start_that_would_be_refused_is_foretold_with_its_reason() {
    let changed = facts().outlook(&wanted("patterns.velocity_spike.more_than = 2\n"));
    assert!(
        matches!(&changed, Outlook::Refuses(reason) if reason.contains("`patterns.velocity_spike.more_than = 1`")),
        "{changed:?}"
    );

    let mut other = facts();
    other.claim.as_mut().expect("claimed").ledger_id = LedgerId("cd".into());
    let stranger = refused(&other);
    assert!(stranger.starts_with("sink a: its progress belongs to another ledger (ab)"), "{stranger}");
    assert!(stranger.contains("`--reset-sink a --accept-duplicates`"), "{stranger}");
    let resets = |accept_duplicates| Resets {
        sinks: ["a", "b"].map(str::to_owned).into(),
        accept_duplicates,
        ..Resets::default()
    };
    let unaware = other.outlook(&Wanted { resets: resets(false), ..wanted(AS_EVER) });
    assert!(matches!(&unaware, Outlook::Refuses(reason) if reason.contains("a second time")), "{unaware:?}");
    let aware = other.outlook(&Wanted { resets: resets(true), ..wanted(AS_EVER) });
    assert!(matches!(&aware, Outlook::GoesOn { adopted, .. } if adopted.len() == 2), "{aware:?}");
    assert!(refused(&Facts { claim: None, ..facts() }).contains("another ledger"));

    let mut restored = facts();
    restored.claim.as_mut().expect("claimed").generation = Generation(2);
    assert!(refused(&restored).starts_with("sink a: generation 3 has written here"));
    let gone = Facts { sinks: vec![("a".into(), Ok(Vec::new()))], pruned: Epoch(0), ..facts() };
    assert!(refused(&gone).contains("its progress is gone"), "it has committed before");

    let mut new = facts();
    new.sinks.push(("c".into(), Ok(Vec::new())));
    assert!(refused(&new).starts_with("sink c has results through epoch 0 only"));

    let older = Facts { epochs: Vec::new(), ..facts() };
    assert!(
        refused(&older).starts_with("sink a: it has results through epoch 8, and the ledger ends at epoch 6")
    );
}

#[test]
fn what_cannot_be_read_is_not_guessed() {
    let mut facts = facts();
    facts.sinks[1].1 = Err("no answer".into());
    let outlook = facts.outlook(&wanted(AS_EVER));
    assert_eq!(outlook, Outlook::Unknown("no answer".into()));
    assert!(facts.text(&outlook, 0).contains("sink b: cannot be read: no answer\n"));
}

#[test]
fn a_pipeline_that_never_began_would_begin() {
    let nothing = || Facts {
        manifests: Vec::new(),
        epochs: Vec::new(),
        sinks: Vec::new(),
        pruned: Epoch(0),
        ..facts()
    };
    assert_eq!(Facts { claim: None, ..nothing() }.outlook(&wanted(AS_EVER)), Outlook::Begins);
    let mut claimed = nothing();
    claimed.claim.as_mut().expect("claimed").genesis = None;
    assert_eq!(claimed.outlook(&wanted(AS_EVER)), Outlook::Begins);
}
