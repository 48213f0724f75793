//! Input as real producers send it: odd optional fields, compressed files, pipes, files that grow, and what the tables say
//! of it. The answers are written by hand.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::{headwater, succeed};
use crate::live::wait_for;

const SECOND: Duration = Duration::from_secs(1);

/// A pipeline that reads one file into SQLite.
struct Pipeline(tempfile::TempDir);

impl Pipeline {
    fn new(input: impl AsRef<[u8]>, paths: &str, more: &str) -> Pipeline {
        let pipeline = Pipeline(tempfile::tempdir().expect("a directory"));
        fs::write(pipeline.path("input.ndjson"), input).expect("written");
        let text = format!(
            "pipeline = \"hunt\"\n[source]\nkind = \"file\"\npaths = {paths:?}\n{more}\n[sinks.sqlite]\npath = \"out.db\"\n"
        );
        fs::write(pipeline.path("config.toml"), text).expect("written");
        pipeline
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = headwater(&["run", "config.toml"]);
        command.current_dir(self.0.path());
        command
    }

    /// Runs it, and returns what it has logged.
    fn run(&self) -> String {
        log(&succeed(&mut self.command()))
    }

    fn refused(&self, code: i32) -> String {
        let output = self.command().output().expect("started");
        assert_eq!(output.status.code(), Some(code), "{}", log(&output));
        log(&output)
    }

    fn rows(&self, sql: &str) -> Vec<String> {
        let Ok(database) = rusqlite::Connection::open(self.path("out.db")) else { return Vec::new() };
        let Ok(mut statement) = database.prepare(sql) else { return Vec::new() };
        let rows = statement.query_map([], |row| row.get(0)).expect("rows");
        rows.collect::<Result<_, _>>().expect("texts")
    }
}

fn log(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A transaction of `u1` every 100 ms, one for each text: further members of it.
fn transactions<'a>(members: impl IntoIterator<Item = &'a str>) -> String {
    let line = |(at, members): (usize, &str)| {
        let time = 1_772_330_400_000_i64 + 100 * at as i64;
        let comma = if members.is_empty() { "" } else { "," };
        format!(
            "{{\"event_id\":\"e{at}\",\"event_type\":\"transaction\",\"user_id\":\"u1\",\"event_time\":{time}{comma}{members}}}\n"
        )
    };
    members.into_iter().enumerate().map(line).collect()
}

const BURST: &str = "[patterns.rapid_fire_burst]";
const LEDGER: &str = "[ledger]\nkind = \"sqlite\"\npath = \"ledger.db\"";

/// Ten events, of which most have an optional field of a wrong form.
const ODD: [&str; 10] = [
    r#""location":null"#,
    r#""location":{"lat":null,"lon":null}"#,
    r#""location":{}"#,
    r#""location":{"lat":1,"lng":2}"#,
    r#""location":[10.7,59.9]"#,
    r#""amount":1.1400000000000001"#,
    r#""amount":"1,50""#,
    r#""currency":978"#,
    r#""merchant_id":5411"#,
    r#""location":{"lat":91,"lon":0},"amount":1e13"#,
];

#[test]
fn odd_optional_fields_do_not_lose_an_event() {
    let pipeline = Pipeline::new(transactions(ODD), "input.ndjson", BURST);
    let said = pipeline.run();
    let alerts = "SELECT rule || ' ' || json_extract(event_ids, '$[0]') FROM alerts";
    assert_eq!(pipeline.rows(alerts), ["rapid_fire_burst e9"]);
    assert_eq!(pipeline.rows("SELECT amount_exact FROM events WHERE amount IS NOT NULL"), ["1.14"]);
    assert_eq!(pipeline.rows("SELECT merchant_id FROM events WHERE merchant_id IS NOT NULL"), ["5411"]);
    assert_eq!(pipeline.rows("SELECT event_id FROM events WHERE lat = 1 AND lon = 2"), ["e3"]);
    for example in ["location has no lat", "amount is not a decimal number", "currency must be a string"] {
        assert!(said.contains("optional field taken as absent") && said.contains(example), "{said}");
    }

    let strict = format!("strict_fields = true\n{BURST}");
    let pipeline = Pipeline::new(transactions(ODD), "input.ndjson", &strict);
    pipeline.run();
    assert_eq!(pipeline.rows(alerts), [""; 0]);
    let lost = pipeline.rows("SELECT reason || ' ' || field FROM dead_letters ORDER BY \"offset\"");
    let (invalid, malformed) = ("invalid location", "malformed location");
    let others = ["invalid amount", "malformed currency", "invalid amount"];
    assert_eq!(lost, [&[invalid, invalid, malformed][..], &others].concat());
}

#[test]
fn times_in_seconds_are_refused_and_a_leap_second_is_the_next_instant() {
    let times = ["1772330400", "1772331000", "\"2016-12-31T23:59:60Z\"", "\"2017-01-01 01:00:01+0100\""];
    let lines = times.map(|time| {
        format!("{{\"event_id\":{time},\"event_type\":\"api_call\",\"user_id\":18446744073709551615,\"event_time\":{time}}}\n")
    });
    let pipeline = Pipeline::new(lines.concat(), "input.ndjson", "");
    pipeline.run();
    let seconds =
        "event_time 1772330400 looks like seconds: a number is in milliseconds since 1970, 10^11 or more";
    assert_eq!(pipeline.rows("SELECT message FROM dead_letters WHERE \"offset\" = 0"), [seconds]);
    let times = pipeline.rows("SELECT key || ' ' || event_time FROM events ORDER BY \"offset\"");
    let key = "18446744073709551615";
    assert_eq!(times, ["00", "01"].map(|second| format!("{key} 2017-01-01T00:00:{second}.000Z")));
}

#[test]
fn compressed_files_and_those_with_a_byte_order_mark_are_read() {
    let text = format!("\u{feff}{}", transactions(["", ""]));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).expect("written");
    let zstd = zstd::stream::encode_all(text.as_bytes(), 1).expect("encoded");
    for input in [text.clone().into_bytes(), gzip.finish().expect("finished"), zstd] {
        let pipeline = Pipeline::new(input, "input.ndjson", "");
        pipeline.run();
        assert_eq!(pipeline.rows("SELECT event_id FROM events"), ["e0", "e1"]);
        assert_eq!(pipeline.rows("SELECT message FROM dead_letters"), [""; 0]);
    }
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let said = Pipeline::new(wide, "input.ndjson", "").refused(3);
    assert!(said.contains("input.ndjson is UTF-16") && said.contains("iconv"), "{said}");
}

/// Waits until so many events are in the table; says how long it took.
fn visible(pipeline: &Pipeline, events: usize) -> Duration {
    let begun = Instant::now();
    wait_for("the events are in the table", || {
        (pipeline.rows("SELECT event_id FROM events").len() == events).then_some(())
    });
    begun.elapsed()
}

fn stop(mut child: Child) {
    let begun = Instant::now();
    succeed(Command::new("kill").args(["-TERM", &child.id().to_string()]));
    let status = child.wait().expect("it ends");
    assert!(status.success(), "{status}");
    assert!(begun.elapsed() < 3 * SECOND, "{:?}", begun.elapsed());
}

#[test]
fn what_a_pipe_says_is_seen_at_once_and_a_stop_does_not_wait_for_it() {
    let pipeline = Pipeline::new("", "/dev/stdin", "");
    let mut child = pipeline.command().stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("started");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(transactions(["", ""]).as_bytes()).expect("written");
    visible(&pipeline, 2);
    input.write_all(transactions(["", "", ""]).lines().last().expect("three").as_bytes()).expect("written");
    input.write_all(b"\n").expect("written");
    assert!(visible(&pipeline, 3) < 2 * SECOND);
    stop(child);
    drop(input);
    // A pipe that ends, ends the run.
    let pipeline = Pipeline::new("", "/dev/stdin", "");
    let mut child = pipeline.command().stdin(Stdio::piped()).spawn().expect("started");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(transactions([""]).trim_end().as_bytes()).expect("written");
    drop(input);
    assert!(child.wait().expect("it ends").success());
    assert_eq!(pipeline.rows("SELECT event_id FROM events"), ["e0"]);
}

#[test]
fn a_pipe_is_refused_where_a_start_may_have_to_read_it_again() {
    let pipeline = Pipeline::new("", "pipe", LEDGER);
    succeed(Command::new("mkfifo").arg(pipeline.path("pipe")));
    let said = pipeline.refused(3);
    assert!(said.contains("pipe is no regular file and cannot be read again"), "{said}");
    assert!(!pipeline.path("ledger.db").exists(), "nothing was claimed");
}

fn append(path: &Path, text: &str) {
    let mut file = fs::File::options().append(true).open(path).expect("it exists");
    file.write_all(text.as_bytes()).expect("written");
}

#[test]
fn lines_that_come_to_a_file_that_was_read_to_its_end_are_announced() {
    let pipeline = Pipeline::new(transactions(["", ""]), "input.ndjson", LEDGER);
    assert!(!pipeline.run().contains("lines"));
    assert!(!pipeline.run().contains("lines"), "nothing has changed");
    append(&pipeline.path("input.ndjson"), &transactions(["", "", ""]));
    let said = pipeline.run();
    assert!(said.contains("WARN") && said.contains("input.ndjson has 3 lines more"), "{said}");
    assert_eq!(pipeline.rows("SELECT event_id FROM events"), ["e0", "e1"]);
}

#[test]
fn the_amount_in_an_alert_has_all_its_digits() {
    let usual =
        std::iter::repeat_n(r#""amount":10"#, 40).chain([r#""amount":10.01"#, r#""amount":1234567.89"#]);
    let pipeline = Pipeline::new(transactions(usual), "input.ndjson", "[patterns.amount_anomaly]");
    pipeline.run();
    let details = pipeline.rows("SELECT details FROM alerts");
    assert_eq!(details.len(), 1, "{details:?}");
    assert!(details[0].starts_with("{\"amount\":1234567.89,\"mean\":10.0002,\"n\":41,"), "{details:?}");
    assert_eq!(pipeline.rows("SELECT event_id FROM events WHERE amount > 1000"), ["e41"]);
}

/// Linear in the windows: 200 events, each in 10,080 of them.
#[test]
fn a_sliding_window_of_a_week_every_minute_takes_seconds() {
    let window = "[[windows]]\nname = \"w\"\nkind = \"sliding\"\nsize = \"7d\"\nevery = \"1m\"";
    let pipeline = Pipeline::new(transactions(std::iter::repeat_n("", 200)), "input.ndjson", window);
    let begun = Instant::now();
    let said = pipeline.run();
    assert!(begun.elapsed() < 30 * SECOND, "{:?}", begun.elapsed());
    assert!(said.contains("each event is in 10080 windows of its key"), "{said}");
    let rows = "SELECT count(*) || ' ' || sum(count) FROM window_aggregates";
    assert_eq!(pipeline.rows(rows), [format!("10080 {}", 200 * 10_080)]);
    let many = window.replace("1m", "1s");
    let output = headwater(&["check", "config.toml"])
        .current_dir(Pipeline::new("", "input.ndjson", &many).0.keep())
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(2), "{}", log(&output));
    assert!(log(&output).contains("the most is 100000"), "{}", log(&output));
}

/// A ledger whose epochs were bound by the decoder of another version.
#[test]
fn epochs_that_another_decoder_bound_are_not_done_again() {
    let pipeline = Pipeline::new(transactions(["", ""]), "input.ndjson", LEDGER);
    pipeline.run();
    let ledger = rusqlite::Connection::open(pipeline.path("ledger.db")).expect("the ledger");
    let older = "UPDATE headwater_ledger SET meaning = replace(meaning, 'decoder = 2', 'decoder = 1')";
    assert_eq!(ledger.execute(older, []).expect("updated"), 1);
    drop(ledger);
    let said = pipeline.refused(3);
    assert!(said.contains("has had `decoder = 1` and is configured with `decoder = 2`"), "{said}");
    assert!(said.contains("have it stopped once as it was"), "{said}");
}
