//! Routes: every change of an alert arrives at least once, in order and with a stable id, through crashes and failing
//! receivers, none of which hold up the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{FLOW, headwater, succeed};
use crate::crash::Files;
use crate::crash_points::crash_at;
use crate::postgres::Database;
use crate::receiver::{Received, Receiver};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Returns a route to a path of a receiver, with further keys.
fn route(receiver: &Receiver, path: &str, also: &str) -> String {
    let url = receiver.url(path);
    format!(
        "[[routes]]\nname = {path:?}\nallow_private = true\n\
         to = {{ kind = \"webhook\", url = {url:?}, secret = {SECRET:?} }}\n{also}"
    )
}

/// Writes the configuration of a flow with short epochs.
fn configure(files: &Files, flow: &str) {
    files.configure(flow);
    replace(files, "kind = \"file\"\npaths", "kind = \"file\"\nepoch_records = 20\npaths");
}

fn replace(files: &Files, from: &str, to: &str) {
    let text = fs::read_to_string(files.path("run.toml")).expect("readable");
    assert!(text.contains(from), "{text}");
    fs::write(files.path("run.toml"), text.replace(from, to)).expect("written");
}

/// A change of an alert: alert id, epoch and status.
type Change = (String, u64, String);

fn change(alert: &Value) -> Change {
    let text = |name: &str| alert[name].as_str().expect("text").to_owned();
    (text("alert_id"), alert["epoch"].as_u64().expect("a number"), text("status"))
}

/// Returns the changes that the file sink of the pipeline has.
fn changes(files: &Files) -> BTreeSet<Change> {
    let lines = fs::read_to_string(files.path("results/alerts.ndjson")).expect("readable");
    lines.lines().map(|line| change(&serde_json::from_str(line).expect("JSON"))).collect()
}

/// Returns the changes in requests that were accepted, in order.
fn accepted(requests: &[Received]) -> Vec<Change> {
    let alerts = requests.iter().filter(|received| received.accepted).flat_map(|received| {
        received.body["data"]["alerts"].as_array().expect("a list of alerts").iter().map(change)
    });
    alerts.collect()
}

/// Checks that the changes of each alert are in order.
fn assert_ordered(accepted: &[Change]) {
    let mut latest = BTreeMap::new();
    for (id, epoch, status) in accepted {
        let before = latest.insert(id, *epoch);
        assert!(before <= Some(*epoch), "{id}: {status} in epoch {epoch} after epoch {before:?}");
    }
}

fn deliveries(config: &Path) -> Vec<Value> {
    let output = succeed(headwater(&["deliveries", "list", "--json", "--limit", "100000"]).arg(config));
    let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    listed["deliveries"].as_array().expect("a list").clone()
}

fn of_route<'a>(deliveries: &'a [Value], route: &'a str) -> impl Iterator<Item = &'a Value> {
    deliveries.iter().filter(move |delivery| delivery["route"] == route)
}

/// Starts the pipeline again and again until a condition holds.
fn run_until(files: &Files, is_done: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_done() {
        assert!(started.elapsed() < Duration::from_secs(180), "deliveries are missing");
        succeed(&mut files.command("1"));
    }
}

#[test]
fn every_change_arrives_in_order_through_crashes_and_failures() {
    let (files, receiver) = (Files::into_directory(72, 3_000), Receiver::start());
    let routes = [
        route(&receiver, "flaky", ""),
        route(&receiver, "hang", ""),
        route(&receiver, "refuse", "rules = [\"rapid_fire_burst\"]\n"),
        route(&receiver, "group", "group_by = [\"rule\"]\n"),
        route(&receiver, "raised", "send_revoked = false\nmin_severity = \"high\"\n"),
    ];
    configure(&files, &format!("{FLOW}{}", routes.concat()));
    for (point, nth) in [("sink.commit.after", 2), ("sqlite.written", 1), ("sink.commit.before", 3)] {
        crash_at(files.command("2"), point, nth);
    }
    succeed(&mut files.command("2"));
    files.judge();
    let expected = changes(&files);
    let revoked = expected.iter().filter(|(.., status)| status == "revoked").count();
    assert!(expected.len() > 30 && revoked > 0, "{} changes, {revoked} revoked", expected.len());
    let arrived = |path: &str| -> BTreeSet<_> { accepted(&receiver.requests(path)).into_iter().collect() };
    run_until(&files, || arrived("flaky") == expected);

    let requests = receiver.requests("flaky");
    assert_ordered(&accepted(&requests));
    assert!(requests.iter().any(|received| !received.accepted));
    let mut bodies = BTreeMap::new();
    for Received { headers, body, .. } in &requests {
        let (id, epoch, status) = change(&body["data"]["alerts"][0]);
        assert_eq!(headers["webhook-id"], format!("{id}:{status}:{epoch}"));
        assert_eq!(bodies.entry(headers["webhook-id"].clone()).or_insert(body), &body, "a retry is the same");
        assert!(headers["webhook-signature"].starts_with("v1,"));
    }
    let raised = arrived("raised");
    assert!(!raised.is_empty() && raised.is_subset(&expected));
    assert!(raised.iter().all(|(.., status)| status == "raised"));

    // Each alert that is still raised is in a group; what was revoked before its group was sent need not be.
    let (mut latest, grouped) = (BTreeMap::new(), arrived("group"));
    expected.iter().for_each(|(id, epoch, status)| _ = latest.insert(id, (*epoch, status)));
    assert!(grouped.is_subset(&expected));
    for (id, (epoch, status)) in latest.into_iter().filter(|(_, (_, status))| *status == "raised") {
        assert!(grouped.contains(&(id.clone(), epoch, status.clone())), "{id}");
    }
    let groups = receiver.requests("group");
    assert!(
        groups
            .iter()
            .any(|received| received.body["data"]["alerts"].as_array().is_some_and(|all| all.len() > 1))
    );
    assert!(groups.iter().all(|received| received.body["data"]["group"]["rule"].is_string()));

    let listed = deliveries(&files.path("run.toml"));
    assert_eq!(of_route(&listed, "flaky").count(), 0);
    let hanging: BTreeSet<_> = of_route(&listed, "hang").map(|delivery| delivery["id"].to_string()).collect();
    assert_eq!(hanging.len(), expected.len(), "all of them wait");
    retry_dead(&files, &receiver, &listed);
}

/// Checks that deliveries that were refused are dead, and are sent again only by hand.
fn retry_dead(files: &Files, receiver: &Receiver, listed: &[Value]) {
    let dead: Vec<_> = of_route(listed, "refuse").collect();
    assert!(!dead.is_empty());
    for delivery in &dead {
        assert_eq!((&delivery["state"], &delivery["attempts"]), (&"dead".into(), &1.into()));
        assert_eq!(delivery["error"], "the receiver answered 400 Bad Request");
    }
    receiver.accept_all();
    let config = files.path("run.toml");
    let unknown =
        headwater(&["deliveries", "retry", "--route", "refused"]).arg(&config).output().expect("started");
    assert_eq!(unknown.status.code(), Some(2));
    let retried = succeed(headwater(&["deliveries", "retry", "--route", "refuse"]).arg(&config)).stdout;
    let noun = if dead.len() == 1 { "delivery" } else { "deliveries" };
    let sentence = format!("{} {noun} will be sent again by the run of crash\n", dead.len());
    assert_eq!(String::from_utf8_lossy(&retried), sentence);
    succeed(&mut files.command("1"));
    let requests = receiver.requests("refuse");
    assert_eq!(accepted(&requests).len(), dead.len());
    assert_ordered(&accepted(&requests));
    assert_eq!(of_route(&deliveries(&config), "refuse").count(), 0);
}

/// A condition decides by the values of an alert, and one with an error delivers nothing. Alerts of shadow rules are stored
/// and delivered by no route.
#[test]
fn a_condition_selects_what_a_route_delivers() {
    const RULES: &str = "[[rules]]\nid = \"tried\"\ncount = { at_least = 2, within = \"1m\" }\n\
                         severity = \"critical\"\nmode = \"shadow\"\n\
                         [[rules]]\nid = \"pair\"\ncount = { at_least = 2, within = \"1m\" }\nseverity = \"low\"\n";
    let (files, receiver) = (Files::into_directory(72, 3_000), Receiver::start());
    let condition = "alert.severity in ['high', 'critical'] || alert.details.distinct >= 4";
    let routes = [
        route(&receiver, "all", ""),
        route(&receiver, "chosen", &format!("where = {condition:?}\n")),
        route(&receiver, "wrong", "where = \"alert.details.within_ms > 'x'\"\n"),
    ];
    configure(&files, &format!("{FLOW}{RULES}{}", routes.concat()));
    succeed(&mut files.command("2"));
    let lines = fs::read_to_string(files.path("results/alerts.ndjson")).expect("readable");
    let stored: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let (live, shadow): (Vec<_>, Vec<_>) = stored.iter().partition(|alert| alert["mode"] == "live");
    assert!(shadow.len() > 10 && shadow.iter().all(|alert| alert["rule"] == "tried"), "{}", shadow.len());
    let is_chosen =
        |alert: &&&Value| alert["severity"] == "high" || alert["details"]["distinct"].as_u64() >= Some(4);
    let (all, chosen): (BTreeSet<_>, BTreeSet<_>) = (
        live.iter().map(|alert| change(alert)).collect(),
        live.iter().filter(is_chosen).map(|alert| change(alert)).collect(),
    );
    assert!(chosen.len() > 5 && chosen.len() < all.len(), "{} of {}", chosen.len(), all.len());
    let arrived = |path: &str| -> BTreeSet<_> { accepted(&receiver.requests(path)).into_iter().collect() };
    run_until(&files, || arrived("all") == all && arrived("chosen").len() >= chosen.len());
    assert_eq!(arrived("chosen"), chosen);
    assert_eq!(arrived("wrong"), BTreeSet::new());
}

/// The example of a receiver accepts what is signed with its secret, and prints each change once.
#[test]
fn the_example_receiver_prints_every_change_once() {
    let files = Files::into_directory(73, 2_000);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/receiver/receiver.py");
    let mut python = Command::new("python3");
    python.arg(script).arg("0").env("WEBHOOK_SECRET", SECRET).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = python.spawn().expect("python3 starts");
    let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
    let first = lines.next().expect("a line").expect("text");
    let port = first.strip_prefix("listening on port ").expect("the port");
    let read = std::thread::spawn(move || lines.map(|line| line.expect("text")).collect::<Vec<_>>());
    let mut stderr = process.stderr.take().expect("piped");
    let refused = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });

    let route = |name: &str, secret: &str| {
        format!(
            "[[routes]]\nname = {name:?}\nallow_private = true\n\
             to = {{ kind = \"webhook\", url = \"http://127.0.0.1:{port}/\", secret = {secret:?} }}\n"
        )
    };
    let forged = route("forged", &SECRET.replace("whsec_M", "whsec_N"));
    configure(&files, &format!("{FLOW}{}{forged}", route("signed", SECRET)));
    succeed(&mut files.command("1"));
    let listed = || deliveries(&files.path("run.toml"));
    run_until(&files, || of_route(&listed(), "signed").count() == 0);
    process.kill().expect("it runs");
    process.wait().expect("it was killed");

    let (printed, expected) = (read.join().expect("no panic"), changes(&files));
    assert_eq!(printed.len(), expected.len());
    let revoked = expected.iter().filter(|(.., status)| status == "revoked").count();
    assert_eq!(printed.iter().filter(|line| line.starts_with("revoked ")).count(), revoked);
    assert_eq!(of_route(&listed(), "forged").count(), expected.len(), "none of them is accepted");
    let refused = refused.join().expect("no panic").expect("text");
    assert!(refused.starts_with("refused: the signature is not of this secret\n"), "{refused}");
}

/// In PostgreSQL, too; and routes can be added to a pipeline, from then on, and removed from it.
#[test]
fn routes_join_a_pipeline_and_leave_it() {
    let (files, receiver) = (Files::into_directory(71, 6_000), Receiver::start());
    let database = Database::create("routes");
    let configure = |routes: &str| {
        configure(&files, &format!("{FLOW}{routes}"));
        let sqlite = format!("kind = \"sqlite\"\npath = {:?}", files.path("ledger.db").display().to_string());
        replace(&files, &sqlite, &format!("kind = \"postgres\"\nurl = {:?}", database.url()));
    };
    configure("");
    // A commit has as many epochs as have ended by then, at first maybe none with an alert.
    while !files.path("results/alerts.ndjson").exists() {
        crash_at(files.command("2"), "sink.commit.after", 2);
    }
    let before = changes(&files);

    let routes = route(&receiver, "flaky", "");
    configure(&routes);
    let config = files.path("run.toml").display().to_string();
    let checked = succeed(&mut headwater(&["check", "--connect", &config])).stdout;
    let checked = String::from_utf8_lossy(&checked).into_owned();
    assert!(checked.contains("schema headwater_outbox_crash will be created"), "{checked}");
    succeed(&mut headwater(&["status", &config]));
    crash_at(files.command("2"), "postgres.written", 1);
    run_until(&files, || {
        let delivered: BTreeSet<_> = accepted(&receiver.requests("flaky")).into_iter().collect();
        let all =
            fs::read_to_string(files.path("results/alerts.ndjson")).map_or(0, |text| text.lines().count());
        let first = delivered.iter().map(|(_, epoch, _)| *epoch).min().unwrap_or(u64::MAX);
        let expected: BTreeSet<_> =
            changes(&files).into_iter().filter(|(_, epoch, _)| *epoch >= first).collect();
        let is_complete = deliveries(&files.path("run.toml")).is_empty() && !delivered.is_empty();
        assert!(!is_complete || delivered == expected, "{} of {all}", delivered.len());
        is_complete
    });
    let requests = accepted(&receiver.requests("flaky"));
    assert_ordered(&requests);
    let last = before.iter().map(|(_, epoch, _)| *epoch).max().expect("alerts");
    assert!(requests.iter().all(|(_, epoch, _)| *epoch > last), "what was before is not delivered");
    assert!(
        succeed(&mut headwater(&["status", &config])).stdout.windows(12).any(|text| text == b"sink routes:")
    );

    configure("");
    succeed(&mut files.command("1"));
    assert_eq!(database.query("SELECT count(*) FROM headwater_outbox_crash.headwater_outbox"), ["0"]);
}
