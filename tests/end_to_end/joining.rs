//! Processes that join a cluster: those that do not fit are refused with a reason in both logs, and end no start that waits.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

use crate::common::headwater;
use crate::live::{Process, wait_for};

const SECRET: &str = "correct-horse-battery";

/// Two processes that read a pipe each.
struct Pair {
    dir: tempfile::TempDir,
    hosts: String,
    /// The ends at which events could be written. While they are open, the input does not end.
    _inputs: Vec<File>,
}

impl Pair {
    fn new() -> Pair {
        let dir = tempfile::tempdir().expect("a directory");
        let free: Vec<_> = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port")).into();
        let hosts: String =
            free.iter().map(|free| format!("{}\n", free.local_addr().expect("bound"))).collect();
        fs::write(dir.path().join("hosts"), &hosts).expect("written");
        let open = |name: &str| {
            let path = dir.path().join(name);
            assert!(std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
            File::options().read(true).write(true).open(path).expect("a pipe")
        };
        let inputs = ["pipe-0", "pipe-1"].map(open).into();
        Pair { dir, hosts, _inputs: inputs }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a process with further sections and arguments. Its log and its standard output are files of this name.
    fn start(&self, name: &str, process: usize, sections: &str, arguments: &[&str]) -> Process {
        let config = format!(
            "pipeline = \"pair\"\n[source]\nkind = \"file\"\npaths = [\"pipe-0\", \"pipe-1\"]\n[sinks.sqlite]\npath = \
             \"{name}.db\"\n[patterns.velocity_spike]\n{sections}"
        );
        fs::write(self.path(&format!("{name}.toml")), config).expect("written");
        let mut command = headwater(&["run", &format!("{name}.toml"), "-h", "hosts", "-n", "2"]);
        command.args(["-p", &process.to_string()]).args(arguments).current_dir(self.dir.path());
        let output = File::create(self.path(&format!("{name}.out"))).expect("created");
        Process::start_with_output(command, output, self.path(&format!("{name}.log")))
    }
}

fn secret(secret: &str) -> String {
    format!("[cluster]\nsecret = \"{secret}\"\n")
}

#[test]
fn processes_that_do_not_fit_never_end_a_waiting_start() {
    let pair = Pair::new();
    fs::write(pair.path("secret"), format!("{SECRET}\n")).expect("written");
    let mut first = pair.start("first", 0, "[cluster]\nsecret_file = \"secret\"\n", &[]);
    let own = secret(SECRET);
    let changed = format!("{own}[time]\nmax_out_of_orderness = \"9s\"\n");
    for (name, sections, arguments, reason) in [
        ("wrong-secret", &*secret("another-horse-battery"), &[][..], "does not know the secret of process 0"),
        ("no-secret", "", &[], "process 0 has one secret, and the other end none"),
        ("other-settings", &changed, &[], "start all processes with the same configuration"),
        ("other-workers", &own, &["-w", "2"], "start all processes with the same -n and -w"),
    ] {
        let mut other = pair.start(name, 1, sections, arguments);
        wait_for("a reason in both logs", || {
            let is_in = |process: &Process| process.log().contains(reason);
            (is_in(&first) && is_in(&other)).then_some(())
        });
        assert!(other.try_wait().is_none(), "it waits as well\n{}", other.log());
        other.kill();
    }
    let port = pair.hosts.lines().next().expect("an address");
    let mut strangers = Vec::new();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"", &[0xff; 4096]] {
        let mut stranger = TcpStream::connect(port).expect("connected");
        stranger.write_all(bytes).expect("sent");
        strangers.push(stranger);
    }
    wait_for("a refusal", || {
        first.log().contains("it is not a process of a Headwater cluster").then_some(())
    });

    let mut second = pair.start("second", 1, &own, &[]);
    for process in [&first, &second] {
        wait_for("a run", || process.log().contains("joined with a process of the cluster").then_some(()));
    }
    // It is refused in the run, too.
    let mut late = TcpStream::connect(port).expect("connected");
    late.write_all(b"hw-join9").expect("sent");
    let mut answer = Vec::new();
    // The connection may be reset once the answer has been read.
    let _ = late.read_to_end(&mut answer);
    assert!(String::from_utf8_lossy(&answer).contains("start all processes with the same program"));
    assert!(first.try_wait().is_none() && second.try_wait().is_none());
    first.terminate();
    [&mut first, &mut second].into_iter().for_each(Process::expect_success);
    for name in ["first", "second", "wrong-secret"] {
        let output = fs::read_to_string(pair.path(&format!("{name}.out"))).expect("text");
        assert_eq!(output, "", "{name} wrote to standard output");
    }
    let log = first.log();
    assert!(!log.contains(SECRET) && !log.contains("another-horse"), "{log}");
}

/// A supervisor can request the stop before the start has come to anything that it waits for.
#[test]
fn a_start_that_is_stopped_at_once_waits_for_no_other_process() {
    let pair = Pair::new();
    let config = "pipeline = \"pair\"\n[source]\nkind = \"file\"\npaths = [\"pipe-0\", \"pipe-1\"]\n[sinks.sqlite]\npath = \"a.db\"\n";
    fs::write(pair.path("stopped.toml"), config).expect("written");
    let mut command = headwater(&["run", "stopped.toml", "-h", "hosts", "-n", "2", "-p", "0"]);
    // The end of the standard input is the request of a supervisor.
    command.env("HEADWATER_RESTARTS", "0").stdin(std::process::Stdio::null()).current_dir(pair.dir.path());
    let mut stopped = Process::start(command, pair.path("stopped.log"));
    stopped.expect_success();
    assert!(stopped.log().contains("no records were read"), "{}", stopped.log());
}

#[test]
fn addresses_that_others_reach_need_a_secret() {
    let pair = Pair::new();
    fs::write(pair.path("hosts"), "0.0.0.0:2101\n127.0.0.1:2102\n").expect("written");
    let mut process = pair.start("exposed", 0, "", &[]);
    assert_eq!(process.wait().code(), Some(2), "{}", process.log());
    for part in ["cluster.secret_file: 0.0.0.0:2101", "openssl rand -hex 32", "HEADWATER__CLUSTER__SECRET"] {
        assert!(process.log().contains(part), "{part}\n{}", process.log());
    }
}

#[cfg(feature = "tls")]
#[test]
fn processes_with_certificates_join_and_others_do_not() {
    let pair = Pair::new();
    ["one", "two"].iter().for_each(|name| crate::peers::certify(pair.dir.path(), name));
    let tls = |identity: &str, authority: &str| {
        format!(
            "{}tls = {{ cert_file = \"{identity}.pem\", key_file = \"{identity}.key\", ca_file = \"{authority}-ca.pem\" }}\n",
            secret(SECRET)
        )
    };
    let mut first = pair.start("first", 0, &tls("one", "one"), &[]);
    for (name, sections, reason, reason_of_first) in [
        ("plain", &*secret(SECRET), "process 0 has `cluster.tls`, and the other end has not", None),
        ("untrusted", &tls("two", "one"), "TLS: ", Some("invalid peer certificate")),
        ("distrusting", &tls("one", "two"), "invalid peer certificate", Some("TLS: ")),
    ] {
        let mut other = pair.start(name, 1, sections, &[]);
        wait_for("a reason in both logs", || {
            let is_in = |process: &Process, reason: &str| process.log().contains(reason);
            (is_in(&first, reason_of_first.unwrap_or(reason)) && is_in(&other, reason)).then_some(())
        });
        assert!(other.try_wait().is_none(), "it waits as well\n{}", other.log());
        other.kill();
    }
    let mut second = pair.start("second", 1, &tls("one", "one"), &[]);
    for process in [&first, &second] {
        wait_for("a run", || process.log().contains("joined with a process of the cluster").then_some(()));
    }
    first.terminate();
    [&mut first, &mut second].into_iter().for_each(Process::expect_success);
}
