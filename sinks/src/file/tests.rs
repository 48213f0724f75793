//! Tests of the lines, of what lies behind the committed length, and of directories that are refused.
//! `tests/contract.rs` tests the contract of all sinks.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;
use crate::Cell;
use crate::contract::{Generation, LedgerId, Shards};
use crate::tables::{ALERTS, DEAD_LETTERS, WINDOW_AGGREGATES};

fn context(generation: u64) -> WriterContext {
    WriterContext {
        pipeline: "fraud".to_owned(),
        ledger_id: LedgerId("00112233445566778899aabbccddeeff".to_owned()),
        generation: Generation(generation),
        process: 0,
        shards: Shards::ALL,
        max_processes: 1,
        adopt: None,
    }
}

fn alert(id: &str, details: &str) -> Changes {
    let mut changes = Changes::default();
    let mut row = changes.rows.row(ALERTS);
    row.cell(Cell::Text(id)).cell(Cell::Text("raised")).cell(Cell::Text("velocity_spike")).cell(Cell::Int(1));
    row.cell(Cell::Text("high")).cell(Cell::Text("user")).cell(Cell::Text("u1")).cell(Cell::Json("[\"e\"]"));
    row.cell(Cell::Time(0)).cell(Cell::Int(7)).cell(Cell::Bool(false)).cell(Cell::Json(details));
    row.cell(Cell::Text("live")).end();
    changes
}

fn dead_letter(key: Cell<'_>, value: &[u8]) -> Changes {
    let mut changes = Changes::default();
    let mut row = changes.rows.row(DEAD_LETTERS);
    row.cell(Cell::Int(3)).cell(Cell::Int(42)).cell(Cell::Text("late")).cell(Cell::Null);
    row.cell(Cell::Text("\"too\" late")).cell(key).cell(Cell::Bytes(value)).cell(Cell::Time(0));
    row.cell(Cell::Int(7)).cell(Cell::Int(0)).end();
    changes
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { folder: tempfile::tempdir().expect("a folder") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("results").join(name)
    }

    fn sink(&self) -> FileSink {
        FileConfig { name: "file".into(), path: self.folder.path().join("results") }.build()
    }

    fn opened(&self, generation: u64) -> FileSink {
        let mut sink = self.sink();
        sink.open(&context(generation)).expect("opened");
        sink
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Checks that a start is refused with this reason and changes nothing.
    fn assert_refused(&self, generation: u64, reason: &str) {
        let before = (self.text("alerts.ndjson"), self.text("progress.json"));
        let error = self.sink().open(&context(generation)).expect_err("refused");
        assert!(matches!(error, OpenError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!((self.text("alerts.ndjson"), self.text("progress.json")), before);
    }
}

fn commit(sink: &mut FileSink, through: u64) -> Result<(), CommitError> {
    sink.commit(CommitPermit::granted(Epoch(through)))
}

fn alert_ids(place: &Place) -> Vec<String> {
    let id = |line: &str| line.split('"').nth(3).expect("an alert id").to_owned();
    place.text("alerts.ndjson").lines().map(id).collect()
}

#[test]
fn a_line_has_the_columns_of_its_table() {
    let place = Place::new();
    let mut sink = place.opened(1);
    sink.stage(Epoch(7), alert("a", "{\"n\":\r\n1}")).expect("staged");
    sink.stage(Epoch(7), dead_letter(Cell::Null, "é\n".as_bytes())).expect("staged");
    sink.stage(Epoch(7), dead_letter(Cell::Bytes(b"k"), &[0, 255])).expect("staged");
    let mut deletion = Changes::default();
    let mut row = deletion.rows.delete(WINDOW_AGGREGATES);
    row.cell(Cell::Text("visit")).cell(Cell::Text("user")).cell(Cell::Text("u1")).cell(Cell::Time(0)).end();
    sink.stage(Epoch(7), deletion).expect("staged");
    commit(&mut sink, 7).expect("committed");
    let alert =
        r#"{"alert_id":"a","status":"raised","rule":"velocity_spike","rule_version":1,"severity":"high","#
            .to_owned()
            + r#""key_kind":"user","key":"u1","event_ids":["e"],"event_time":"1970-01-01T00:00:00.000Z","epoch":7,"#
            + r#""final":false,"details":{"n":  1},"mode":"live"}"#;
    assert_eq!(place.text("alerts.ndjson"), alert + "\n");
    let letter = |bytes: &str| {
        r#"{"partition":3,"offset":42,"reason":"late","field":null,"message":"\"too\" late","#.to_owned()
            + bytes
            + r#","timestamp":"1970-01-01T00:00:00.000Z","epoch":7,"retries":0}"#
            + "\n"
    };
    let letters = letter(r#""key":null,"value":"é\n""#) + &letter(r#""key":"k","value_base64":"AP8=""#);
    assert_eq!(place.text("dead-letters.ndjson"), letters);
    let window = r#"{"window_name":"visit","key_kind":"user","key":"u1","start":"1970-01-01T00:00:00.000Z","#
        .to_owned()
        + r#""epoch":7,"deleted":true}"#;
    assert_eq!(place.text("windows.ndjson"), window + "\n");
    assert!(!place.path("enriched-events.ndjson").exists(), "a file begins with its first line");
}

#[test]
fn an_output_that_json_cannot_represent_is_refused() {
    let place = Place::new();
    let mut sink = place.opened(1);
    let mut changes = alert("a", "{}");
    let mut row = changes.rows.row(WINDOW_AGGREGATES);
    row.cell(Cell::Text("w")).cell(Cell::Text("user")).cell(Cell::Text("u")).cell(Cell::Time(0));
    row.cell(Cell::Time(1)).cell(Cell::Int(1)).cell(Cell::Int(1)).cell(Cell::Micros(1));
    row.cell(Cell::Float(f64::NAN)).end();
    let error = sink.stage(Epoch(1), changes).expect_err("refused");
    let reason = "window_aggregates.mean: JSON has no number NaN; with a ledger, `--skip file:1:window_aggregates/w/user/u/";
    assert!(error.to_string().contains(reason), "{error}");
    let mut message = Changes::default();
    message.messages.push(0, None, &[], |_| {});
    sink.stage(Epoch(1), message).expect_err("refused");
    commit(&mut sink, 1).expect("committed");
    assert_eq!(place.text("alerts.ndjson"), "", "a refused call has no effect");
}

#[test]
fn a_start_cuts_off_what_was_not_committed() {
    let place = Place::new();
    let mut sink = place.opened(1);
    sink.stage(Epoch(1), alert("a", "{}")).expect("staged");
    commit(&mut sink, 1).expect("committed");
    let committed = place.text("alerts.ndjson");
    fs::write(place.path("alerts.ndjson"), committed.clone() + "{\"alert_id\":\"b").expect("written");
    fs::write(place.path("windows.ndjson"), "{\"window_name\":\"w\"}\n").expect("written");
    let mut next = place.opened(2);
    assert_eq!((place.text("alerts.ndjson"), place.text("windows.ndjson")), (committed, String::new()));
    next.stage(Epoch(2), alert("c", "{}")).expect("staged");
    commit(&mut next, 2).expect("committed");
    assert_eq!(alert_ids(&place), ["a", "c"]);
}

#[test]
fn a_round_that_does_not_fit_on_the_disk_is_retried() {
    let place = Place::new();
    let mut sink = place.opened(1);
    sink.stage(Epoch(1), alert("a", "{}")).expect("staged");
    sink.stage(Epoch(1), dead_letter(Cell::Null, b"")).expect("staged");
    let file = place.path("dead-letters.ndjson");
    symlink("/dev/full", &file).expect("linked");
    for _ in 0..2 {
        let error = commit(&mut sink, 1).expect_err("the disk is full");
        assert!(matches!(error, CommitError::Failed { .. }), "{error:?}");
        assert!(error.to_string().contains("dead-letters.ndjson: No space left"), "{error}");
        assert_eq!(place.text("alerts.ndjson"), "", "the round is cut off");
    }
    fs::remove_file(file).expect("removed");
    commit(&mut sink, 1).expect("committed");
    assert_eq!(alert_ids(&place), ["a"]);
    assert_eq!(place.text("dead-letters.ndjson").lines().count(), 1);
}

#[test]
fn a_commit_waits_for_the_lock() {
    let place = Place::new();
    let mut sink = place.opened(1);
    sink.stage(Epoch(1), alert("a", "{}")).expect("staged");
    let lock = Directory::new(place.folder.path().join("results")).lock().expect("locked");
    let committing = std::thread::spawn(move || commit(&mut sink, 1));
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(!committing.is_finished() && place.text("alerts.ndjson").is_empty(), "it does not wait");
    drop(lock);
    committing.join().expect("no panic").expect("committed");
    assert_eq!(alert_ids(&place), ["a"]);
}

#[test]
fn a_file_shorter_than_committed_is_refused() {
    let place = Place::new();
    let mut sink = place.opened(1);
    for epoch in [1, 2] {
        sink.stage(Epoch(epoch), alert("a", "{}")).expect("staged");
        commit(&mut sink, epoch).expect("committed");
    }
    let whole = place.text("alerts.ndjson");
    fs::write(place.path("alerts.ndjson"), &whole[..100]).expect("written");
    sink.stage(Epoch(3), alert("c", "{}")).expect("staged");
    let error = commit(&mut sink, 3).expect_err("a committed line is gone");
    assert!(error.to_string().contains("alerts.ndjson has 100 bytes"), "{error}");
    place.assert_refused(2, "alerts.ndjson has 100 bytes, and ");
    fs::remove_file(place.path("alerts.ndjson")).expect("removed");
    place.assert_refused(2, "alerts.ndjson has 0 bytes, and ");
    fs::write(place.path("alerts.ndjson"), &whole).expect("restored");
    commit(&mut sink, 3).expect("committed after the file was restored");
    assert_eq!(alert_ids(&place), ["a", "a", "c"]);
}

#[test]
fn a_damaged_progress_file_is_refused() {
    let place = Place::new();
    let mut sink = place.opened(1);
    sink.stage(Epoch(1), alert("a", "{}")).expect("staged");
    commit(&mut sink, 1).expect("committed");
    let whole = place.text("progress.json");
    for damaged in [
        "",
        &whole[..whole.len() / 2],
        &whole.replace("\"epoch\": 1", "\"epoch\": -1"),
        &whole.replace("\"process\"", "\"procces\""),
        &whole.replace("alerts.ndjson", "other.ndjson"),
    ] {
        fs::write(place.path("progress.json"), damaged).expect("written");
        place.assert_refused(2, "restore it from a copy of the whole directory; or move the directory away");
        assert!(matches!(place.sink().peek_progress("fraud"), Err(OpenError::Refused { .. })));
    }
    fs::write(place.path("progress.json"), whole.replace("\"version\": 1", "\"version\": 2"))
        .expect("written");
    place.assert_refused(2, "it has version 2, and this program knows version 1");
    fs::remove_file(place.path("progress.json")).expect("removed");
    place.assert_refused(2, "there is no progress.json that says whose they are");
    let error = commit(&mut sink, 2).expect_err("the directory was changed");
    assert!(matches!(error, CommitError::Fenced { .. }), "{error:?}");
    fs::write(place.path("progress.json"), whole).expect("restored");
    assert_eq!(place.sink().open(&context(2)).expect("opened")[0].through, Epoch(1));
}

#[test]
fn a_directory_belongs_to_the_pipeline_that_opened_it() {
    let place = Place::new();
    let mut sink = place.opened(1);
    let other = WriterContext { pipeline: "payments".to_owned(), ..context(2) };
    let error = place.sink().open(&other).expect_err("refused");
    assert!(error.to_string().contains("belong to pipeline \"fraud\""), "{error}");
    commit(&mut sink, 1).expect("the refused start has changed nothing");
}

#[test]
fn progress_of_older_starts_is_removed_once_it_is_passed() {
    let place = Place::new();
    for generation in 1..5 {
        let mut sink = place.opened(generation);
        let progress = |sink: &mut FileSink| sink.peek_progress("fraud").expect("readable").len();
        assert_eq!(progress(&mut sink), usize::from(generation > 1));
        commit(&mut sink, 10 * generation).expect("committed");
        assert_eq!(progress(&mut sink), 1);
    }
    let half = WriterContext { shards: Shards(1), ..context(5) };
    let mut sink = place.sink();
    sink.open(&half).expect("opened");
    commit(&mut sink, 50).expect("committed");
    let progress = sink.peek_progress("fraud").expect("readable");
    let found: Vec<_> = progress.iter().map(|found| (found.generation.0, found.through.0)).collect();
    assert_eq!(found, [(4, 40), (5, 50)], "the other shards are only at 40");
}
