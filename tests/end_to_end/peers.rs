//! Queries of keys in a cluster: any process answers about every key, by asking the process that owns it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
#[cfg(feature = "tls")]
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{FLOW, headwater};
use crate::live::{Process, get, wait_for};

const TOKEN: &str = "correct-horse-battery";

/// The number of users with events, some of which belong to each process.
const USERS: usize = 24;

/// A cluster with one worker a process, which reads a pipe for each process.
struct Cluster {
    processes: Vec<Process>,
    /// The ends at which events are written. While they are open, the input does not end.
    inputs: Vec<File>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts a process for each section `[http]`. The token is in the file `token` of the working directory.
    fn start(sections: &[String]) -> Cluster {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("token"), TOKEN).expect("written");
        // All listeners stay open until every port is chosen, so that the ports differ.
        let free: Vec<_> =
            sections.iter().map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let hosts = free.iter().map(|free| format!("{}\n", free.local_addr().expect("bound")));
        fs::write(at("hosts"), hosts.collect::<String>()).expect("written");
        drop(free);
        let names: Vec<_> = (0..sections.len()).map(|process| format!("pipe-{process}")).collect();
        let open = |name: &String| {
            assert!(Command::new("mkfifo").arg(at(name)).status().expect("mkfifo").success());
            // Also for reading, so that it opens without a reader.
            File::options().read(true).write(true).open(at(name)).expect("a pipe")
        };
        let inputs = names.iter().map(open).collect();
        let start = |(process, section): (usize, &String)| {
            let text = format!(
                "pipeline = \"peers\"\n[source]\nkind = \"file\"\npaths = {names:?}\n{FLOW}[sinks.sqlite]\npath = \
                 \"results-{process}.db\"\n{section}[log]\nformat = \"json\"\n[cluster]\nheartbeat_timeout = \"1m\"\n"
            );
            fs::write(at(&format!("config-{process}.toml")), text).expect("written");
            let mut command = headwater(&["run", &format!("config-{process}.toml"), "-h", "hosts"]);
            command.args(["-n", &sections.len().to_string(), "-p", &process.to_string()]);
            Process::start(
                {
                    command.current_dir(dir.path());
                    command
                },
                at(&format!("log-{process}")),
            )
        };
        let processes = sections.iter().enumerate().map(start).collect();
        Cluster { processes, inputs, _dir: dir }
    }

    /// Writes events of the users, spread over the pipes.
    fn push_events(&mut self) {
        for n in 0..4 * USERS {
            let line = format!(
                r#"{{"event_id":"e{n}","event_type":"transaction","user_id":"user {}/ü","event_time":"2026-11-29T07:00:{:02}Z","amount":{n}}}"#,
                n % USERS,
                n / 4,
            );
            let at = n % self.inputs.len();
            writeln!(self.inputs[at], "{line}").expect("the pipe has room");
        }
    }

    fn address(&mut self, process: usize) -> SocketAddr {
        self.processes[process].address()
    }

    /// Stops all processes.
    fn stop(mut self) {
        self.processes[0].terminate();
        self.processes.iter_mut().for_each(Process::expect_success);
    }
}

fn http(rest: &str) -> String {
    format!("[http]\nlisten = \"127.0.0.1:0\"\n{rest}\n")
}

/// Returns the path of a user with events, percent-encoded.
fn path(user: usize) -> String {
    format!("/api/v1/keys/user/user%20{user}%2F%C3%BC")
}

/// Sends a request with further headers. Returns the status, and the body as JSON.
fn ask(address: SocketAddr, path: &str, headers: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("the option is set");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n")
        .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let kind = if status == 200 {
        "content-type: application/json\r\n"
    } else {
        "content-type: application/problem+json\r\n"
    };
    assert!(head.contains(kind), "{head}");
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}")))
}

fn with_token(address: SocketAddr, path: &str) -> (u16, Value) {
    ask(address, path, &format!("authorization: Bearer {TOKEN}\r\n"))
}

/// Asks until all events of a user have been read. Returns the answer without the epoch, which advances by itself.
fn state(address: SocketAddr, user: usize) -> Value {
    wait_for("the events of a user", || {
        let (status, mut state) = with_token(address, &path(user));
        assert!(status == 404 || status == 200 || is_busy(status), "{status} {state}");
        // The watermark advances until all partitions are idle.
        let is_whole = status == 200 && state["profile"]["events"] == 4;
        state.as_object_mut().expect("an object").remove("as_of_epoch");
        is_whole.then_some(state)
    })
}

/// Returns true for the status of an answer that took too long, on a machine that does other work, too.
fn is_busy(status: u16) -> bool {
    matches!(status, 503 | 504)
}

/// Sends a request until the answer does not take too long.
fn patiently(mut ask: impl FnMut() -> (u16, Value)) -> (u16, Value) {
    wait_for("an answer in time", || Some(ask()).filter(|(status, _)| !is_busy(*status)))
}

/// Returns the owner of each user, from the answers of process 0.
fn owners(address: SocketAddr) -> Vec<usize> {
    let owner = |user| state(address, user)["process"].as_u64().expect("an index") as usize;
    (0..USERS).map(owner).collect()
}

fn detail(problem: &Value) -> &str {
    problem["detail"].as_str().expect("a text")
}

#[test]
fn every_process_answers_about_every_key() {
    let mut cluster = Cluster::start(&[0; 3].map(|_| http("token_file = \"token\"")));
    cluster.push_events();
    let addresses: Vec<_> = (0..3).map(|process| cluster.address(process)).collect();
    let owners = owners(addresses[0]);
    assert_eq!(owners.iter().collect::<BTreeSet<_>>().len(), 3, "a process owns no user: {owners:?}");
    for (user, &owner) in owners.iter().enumerate() {
        wait_for("equal answers", || {
            let answers: Vec<_> = addresses.iter().map(|&address| state(address, user)).collect();
            assert!(answers.iter().all(|answer| answer["process"] == owner), "{answers:?}");
            assert!(answers.iter().all(|answer| answer["key"] == format!("user {user}/ü")), "{answers:?}");
            answers.iter().all(|answer| answer == &answers[0]).then_some(())
        });
    }
    for (process, &address) in addresses.iter().enumerate() {
        for n in 0..8 {
            let (status, problem) =
                patiently(|| with_token(address, &format!("/api/v1/keys/device/nobody-{n}")));
            assert_eq!(status, 404, "{problem}");
        }
        for (user, &owner) in owners.iter().enumerate() {
            let (status, problem) =
                ask(address, &path(user), "authorization: Bearer wrong-horse-battery\r\n");
            assert_eq!(status, 401, "{problem}");
            // A request that was forwarded is answered by the owner alone.
            let forwarded = format!("authorization: Bearer {TOKEN}\r\nheadwater-forwarded: 1\r\n");
            let (status, answer) = patiently(|| ask(address, &path(user), &forwarded));
            assert_eq!(status, if owner == process { 200 } else { 421 }, "{answer}");
            assert!(
                owner == process || detail(&answer).contains(&format!("ask process {owner}")),
                "{answer}"
            );
        }
    }
    cluster.stop();
}

#[test]
fn a_process_that_is_stopped_gives_a_problem_in_time() {
    let mut cluster = Cluster::start(&[0; 3].map(|_| http("token_file = \"token\"")));
    cluster.push_events();
    let addresses: Vec<_> = (0..3).map(|process| cluster.address(process)).collect();
    let owners = owners(addresses[0]);
    let of = |process| owners.iter().position(|&owner| owner == process).expect("each process owns a user");

    cluster.processes[2].signal("STOP");
    let begun = Instant::now();
    let (status, problem) = with_token(addresses[0], &path(of(2)));
    assert_eq!(status, 504, "{problem}");
    assert!(
        detail(&problem).contains("process 2 owns the key, but does not answer at http://127.0.0.1:"),
        "{problem}"
    );
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());

    // So many requests that some are refused at once; probes and keys of other processes are answered meanwhile.
    let stuck = path(of(2));
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..20).map(|_| scope.spawn(|| with_token(addresses[0], &stuck).0)).collect();
        std::thread::sleep(Duration::from_millis(200));
        let begun = Instant::now();
        assert_eq!(get(addresses[0], "/livez").0, 200);
        assert_eq!(with_token(addresses[0], &path(of(0))).0, 200);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        asking.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let count = |wanted| statuses.iter().filter(|&&status| status == wanted).count();
    assert_eq!((count(504), count(429)), (8, 12), "{statuses:?}");

    cluster.processes[2].signal("CONT");
    assert_eq!(state(addresses[0], of(2))["process"], 2);
    cluster.stop();
}

#[test]
fn processes_that_cannot_be_asked_are_named() {
    let other = http("token = \"another-horse-battery\"");
    let mut cluster = Cluster::start(&[http("token_file = \"token\""), other, String::new()]);
    cluster.push_events();
    let address = cluster.address(0);
    let expected = |text: &str| {
        wait_for("the problem", || {
            let answers = (0..USERS).map(|user| with_token(address, &path(user)));
            let problems = answers.filter(|(status, _)| *status != 200 && *status != 404);
            problems
                .map(|(status, problem)| format!("{status} {}", detail(&problem)))
                .find(|problem| problem.contains(text))
        })
    };
    let refused = expected("does not accept the token of this process");
    assert!(refused.starts_with("502 process 1 owns the key, but http://127.0.0.1:"), "{refused}");
    let silent = expected("it serves no HTTP");
    assert!(silent.starts_with("421 the key belongs to process 2, and it serves no HTTP: add"), "{silent}");
    cluster.stop();
}

/// Makes a certificate authority, and a certificate of it for 127.0.0.1, with the command `openssl`.
#[cfg(feature = "tls")]
pub fn certify(dir: &Path, name: &str) {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout"];
    let openssl = |arguments: &[&[&str]]| {
        let mut command = Command::new("openssl");
        crate::common::succeed(command.args(arguments.concat()).current_dir(dir));
    };
    let file = |end: &str| format!("{name}{end}");
    let (ca, ca_key, cert, cert_key) = (file("-ca.pem"), file("-ca.key"), file(".pem"), file(".key"));
    openssl(&[&["req", "-x509", "-days", "30", "-subj", "/CN=authority", "-out", &ca], &key, &[&ca_key]]);
    openssl(&[
        &[
            "req",
            "-x509",
            "-days",
            "30",
            "-subj",
            "/CN=process",
            "-out",
            &cert,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
        ],
        &["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"],
        &key,
        &[&cert_key],
    ]);
}

/// Asks over HTTPS for the path of a user.
#[cfg(feature = "tls")]
fn ask_encrypted(address: SocketAddr, ca: &Path, user: usize) -> (u16, Value) {
    use headwater::client::{Client, Endpoint, HttpOptions};
    use http_body_util::BodyExt;
    let endpoint = Endpoint::parse(&format!("https://{address}{}", path(user))).expect("a URL");
    let token = hyper::header::HeaderValue::from_str(&format!("Bearer {TOKEN}")).expect("valid");
    let headers = hyper::HeaderMap::from_iter([(hyper::header::AUTHORIZATION, token)]);
    let request = endpoint.request(hyper::Method::GET, headers, Vec::new()).expect("a request");
    let timeout = Duration::from_secs(20);
    let options = HttpOptions { allow_private: true, connect_timeout: timeout, timeout };
    let client = Client::with_authorities(ca).expect("a certificate");
    let read = async |response: hyper::Response<hyper::body::Incoming>| {
        let status = response.status().as_u16();
        (status, response.into_body().collect().await.expect("a body").to_bytes())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (status, body) = runtime.block_on(client.send(&endpoint, options, request, read)).expect("answered");
    (status, serde_json::from_slice(&body).expect("JSON"))
}

#[cfg(feature = "tls")]
#[test]
fn certificates_of_other_processes_are_verified() {
    let certificates = tempfile::tempdir().expect("a directory");
    ["one", "two"].iter().for_each(|name| certify(certificates.path(), name));
    let at = |name: &str| certificates.path().join(name);
    let section = |identity: &str, rest: &str| {
        let (cert, key) = (at(&format!("{identity}.pem")), at(&format!("{identity}.key")));
        http(&format!("token_file = \"token\"\n{rest}\ntls = {{ cert_file = {cert:?}, key_file = {key:?} }}"))
    };
    let trusts = |name: &str| format!("peer_ca_file = {:?}", at(name));
    // Process 0 trusts 1, which trusts another authority, and not 2, whose certificate is of another. Process 3 has no TLS.
    let mut cluster = Cluster::start(&[
        section("one", &trusts("one-ca.pem")),
        section("one", &trusts("two-ca.pem")),
        section("two", ""),
        http("token_file = \"token\""),
    ]);
    cluster.push_events();
    let (first, second) = (cluster.address(0), cluster.address(1));
    let ca = at("one-ca.pem");
    let answers = |address: SocketAddr, user: usize| {
        wait_for("a start", || {
            Some(ask_encrypted(address, &ca, user)).filter(|(status, _)| *status != 404 && !is_busy(*status))
        })
    };
    let (mut owners, mut problems) = (BTreeSet::new(), BTreeSet::new());
    for user in 0..USERS {
        let (status, answer) = answers(first, user);
        if status == 200 {
            owners.insert(answer["process"].as_u64().expect("an index"));
            if answer["process"] == 0 {
                let (status, problem) = answers(second, user);
                assert_eq!(status, 502, "{problem}");
                assert!(
                    detail(&problem).contains("process 0 owns the key, but cannot be asked"),
                    "{problem}"
                );
                assert!(detail(&problem).contains("TLS: invalid peer certificate"), "{problem}");
            }
        } else {
            assert_eq!(status, 502, "{answer}");
            problems.insert(detail(&answer).to_owned());
        }
    }
    assert_eq!(owners, BTreeSet::from([0, 1]));
    let named =
        |process: &str, text: &str| problems.iter().any(|at| at.starts_with(process) && at.contains(text));
    assert!(named("process 2 owns the key", "TLS: invalid peer certificate"), "{problems:?}");
    assert!(named("process 3 owns the key", "is not encrypted, so the token is not sent"), "{problems:?}");
    cluster.stop();
}
