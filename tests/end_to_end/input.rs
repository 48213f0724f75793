//! Input as real producers send it: malformed optional fields, compressed files, pipes, files that grow. The expected
//! rows are written by hand.

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

    /// Runs the pipeline and returns its log.
    fn run(&self) -> String {
        log(&succeed(&mut self.command()))
    }

    fn run_failing(&self, code: i32) -> String {
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

/// Returns one transaction of `u1` every 100 ms; each text adds JSON members to one of them.
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

/// Ten events, most of which have a malformed optional field.
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
fn malformed_optional_fields_do_not_reject_an_event() {
    let pipeline = Pipeline::new(transactions(ODD), "input.ndjson", BURST);
    let stderr = pipeline.run();
    let alerts = "SELECT rule || ' ' || json_extract(event_ids, '$[0]') FROM alerts";
    assert_eq!(pipeline.rows(alerts), ["rapid_fire_burst e9"]);
    assert_eq!(pipeline.rows("SELECT amount_exact FROM events WHERE amount IS NOT NULL"), ["1.14"]);
    assert_eq!(pipeline.rows("SELECT merchant_id FROM events WHERE merchant_id IS NOT NULL"), ["5411"]);
    assert_eq!(pipeline.rows("SELECT event_id FROM events WHERE lat = 1 AND lon = 2"), ["e3"]);
    for example in ["location has no lat", "amount is not a decimal number", "currency must be a string"] {
        assert!(
            stderr.contains("malformed optional field treated as absent") && stderr.contains(example),
            "{stderr}"
        );
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
fn times_in_seconds_are_rejected_and_leap_seconds_accepted() {
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
fn compressed_files_and_byte_order_marks_are_read() {
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
    let stderr = Pipeline::new(wide, "input.ndjson", "").run_failing(3);
    assert!(stderr.contains("input.ndjson is UTF-16") && stderr.contains("iconv"), "{stderr}");
}

/// Waits until the table has this number of events, and returns how long that took.
fn wait_until_visible(pipeline: &Pipeline, events: usize) -> Duration {
    let started = Instant::now();
    wait_for("events in the table", || {
        (pipeline.rows("SELECT event_id FROM events").len() == events).then_some(())
    });
    started.elapsed()
}

fn stop(mut child: Child) {
    let started = Instant::now();
    succeed(Command::new("kill").args(["-TERM", &child.id().to_string()]));
    let status = child.wait().expect("exited");
    assert!(status.success(), "{status}");
    assert!(started.elapsed() < 3 * SECOND, "{:?}", started.elapsed());
}

#[test]
fn pipe_input_is_visible_at_once_and_does_not_block_a_stop() {
    let pipeline = Pipeline::new("", "/dev/stdin", "");
    let mut child = pipeline.command().stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("started");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(transactions(["", ""]).as_bytes()).expect("written");
    wait_until_visible(&pipeline, 2);
    input.write_all(transactions(["", "", ""]).lines().last().expect("three").as_bytes()).expect("written");
    input.write_all(b"\n").expect("written");
    assert!(wait_until_visible(&pipeline, 3) < 2 * SECOND);
    stop(child);
    drop(input);
    // The end of the pipe ends the run.
    let pipeline = Pipeline::new("", "/dev/stdin", "");
    let mut child = pipeline.command().stdin(Stdio::piped()).spawn().expect("started");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(transactions([""]).trim_end().as_bytes()).expect("written");
    drop(input);
    assert!(child.wait().expect("exited").success());
    assert_eq!(pipeline.rows("SELECT event_id FROM events"), ["e0"]);
}

#[test]
fn a_pipe_is_refused_where_replay_is_required() {
    let pipeline = Pipeline::new("", "pipe", LEDGER);
    succeed(Command::new("mkfifo").arg(pipeline.path("pipe")));
    let stderr = pipeline.run_failing(3);
    assert!(stderr.contains("pipe is not a regular file and cannot be read again"), "{stderr}");
    assert!(!pipeline.path("ledger.db").exists(), "nothing was claimed");
}

fn append(path: &Path, text: &str) {
    let mut file = fs::File::options().append(true).open(path).expect("an existing file");
    file.write_all(text.as_bytes()).expect("written");
}

#[test]
fn lines_appended_to_a_completed_file_are_reported() {
    let pipeline = Pipeline::new(transactions(["", ""]), "input.ndjson", LEDGER);
    assert!(!pipeline.run().contains("lines"));
    assert!(!pipeline.run().contains("lines"), "nothing has changed");
    append(&pipeline.path("input.ndjson"), &transactions(["", "", ""]));
    let stderr = pipeline.run();
    assert!(stderr.contains("WARN") && stderr.contains("input.ndjson has 3 more lines"), "{stderr}");
    assert_eq!(pipeline.rows("SELECT event_id FROM events"), ["e0", "e1"]);
}

#[test]
fn the_amount_in_an_alert_has_all_its_digits() {
    let common_points =
        std::iter::repeat_n(r#""amount":10"#, 40).chain([r#""amount":10.01"#, r#""amount":1234567.89"#]);
    let pipeline = Pipeline::new(transactions(common_points), "input.ndjson", "[patterns.amount_anomaly]");
    pipeline.run();
    let details = pipeline.rows("SELECT details FROM alerts");
    assert_eq!(details.len(), 1, "{details:?}");
    assert!(details[0].starts_with("{\"amount\":1234567.89,\"mean\":10.0002,\"n\":41,"), "{details:?}");
    assert_eq!(pipeline.rows("SELECT event_id FROM events WHERE amount > 1000"), ["e41"]);
}

/// The cost is linear in the number of windows: 200 events, each in 10,080 windows.
#[test]
fn a_sliding_window_of_a_week_every_minute_takes_seconds() {
    let window = "[[windows]]\nname = \"w\"\nkind = \"sliding\"\nsize = \"7d\"\nslide = \"1m\"";
    let pipeline = Pipeline::new(transactions(std::iter::repeat_n("", 200)), "input.ndjson", window);
    let started = Instant::now();
    let stderr = pipeline.run();
    assert!(started.elapsed() < 30 * SECOND, "{:?}", started.elapsed());
    assert!(stderr.contains("each event is in 10080 windows of its key"), "{stderr}");
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

/// The ledger's epochs were bound by the decoder of another version.
#[test]
fn epochs_of_another_decoder_are_not_replayed() {
    let pipeline = Pipeline::new(transactions(["", ""]), "input.ndjson", LEDGER);
    pipeline.run();
    let ledger = rusqlite::Connection::open(pipeline.path("ledger.db")).expect("the ledger");
    let older = "UPDATE headwater_ledger SET meaning = replace(meaning, 'decoder = 2', 'decoder = 1')";
    assert_eq!(ledger.execute(older, []).expect("updated"), 1);
    drop(ledger);
    let stderr = pipeline.run_failing(3);
    assert!(
        stderr.contains("was configured with `decoder = 1` and is now configured with `decoder = 2`"),
        "{stderr}"
    );
    assert!(stderr.contains("undo the change, start once, stop with SIGTERM"), "{stderr}");
}
