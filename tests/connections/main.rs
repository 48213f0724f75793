//! Connections as in production: encrypted and authenticated. Every failure must fail closed, within a time limit, with
//! a message that names the address and what to check. Each test starts the services that it needs, with their own CA.

mod kafka;
#[cfg(feature = "tls")]
mod postgres;
#[cfg(feature = "tls")]
mod redis;

use std::collections::BTreeMap;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The time within which a failure to connect must be reported.
const BOUND: Duration = Duration::from_secs(15);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Services for one test, by their variables; they are stopped when this value is dropped.
struct Services(BTreeMap<String, String>);

impl Services {
    fn up(arguments: &[&str]) -> Services {
        let mut up = Command::new(root().join("tests/services/up"));
        let output = up.args(arguments).stderr(Stdio::inherit()).output().expect("started");
        assert!(output.status.success(), "services: {}", output.status);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let variables =
            text.lines().filter_map(|line| line.strip_prefix("export HEADWATER_")?.split_once('='));
        Services(variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// Returns the value of a variable such as `TEST_KAFKA`.
    fn of(&self, name: &str) -> &str {
        &self.0[name]
    }

    /// Returns the path of a file of the CA.
    #[cfg(feature = "tls")]
    fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.of("TEST_TLS"))
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        let mut down = Command::new(root().join("tests/services/down"));
        assert!(down.arg(self.of("SERVICES_DIR")).status().is_ok_and(|status| status.success()));
    }
}

/// The exit code and output of a command.
#[derive(Debug)]
struct CommandResult {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs `headwater` with a configuration to completion.
fn headwater(dir: &Path, command: &[&str], config: &str) -> CommandResult {
    std::fs::write(dir.join("c.toml"), config).expect("written");
    let started = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_headwater"))
        .current_dir(dir)
        .args(command)
        .arg("c.toml")
        .output()
        .expect("the command starts");
    assert!(started.elapsed() < 4 * BOUND, "{command:?} took {:?}", started.elapsed());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let result =
        CommandResult { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) };
    let secrets = ["alice-secret", "locked-secret", "ops-secret", "app-secret", "canary"];
    let has_secret = secrets.iter().any(|secret| result.out.contains(secret) || result.err.contains(secret));
    assert!(!has_secret, "the output has a secret: {result:?}");
    result
}

/// Checks that `check --connect` fails with this text within `BOUND`.
fn assert_connect_fails(dir: &Path, config: &str, code: i32, expected: &str) {
    let started = Instant::now();
    let result = headwater(dir, &["check", "--connect"], config);
    assert_eq!(result.code, Some(code), "{result:?}\n{config}");
    let line = result.out.lines().find(|line| line.starts_with("failed"));
    let line = line.unwrap_or_else(|| panic!("no failure in {result:?}"));
    assert!(line.contains(expected), "{expected:?} is not in {line}");
    assert!(started.elapsed() < BOUND, "{expected}: {:?}", started.elapsed());
}

/// Opens a port that accepts connections and never responds.
fn silent_port() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let accepting = listener.try_clone().expect("a listener");
    std::thread::spawn(move || {
        // The connection stays open until the other side closes it.
        for mut stream in accepting.incoming().flatten() {
            std::thread::spawn(move || while stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {});
        }
    });
    (listener, port)
}

/// Returns a port without a listener.
fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}
