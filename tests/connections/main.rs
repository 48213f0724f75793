//! Connections as they are in production: encrypted, authenticated, and every way in which they must fail closed, with a
//! sentence that names the address and what to check, within a bound. Each test starts the services that it needs, with
//! a CA of their own.

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

/// How long a failure to connect may take to be told.
const BOUND: Duration = Duration::from_secs(15);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Services of a test's own, which end with it.
struct Services(BTreeMap<String, String>);

impl Services {
    fn up(words: &[&str]) -> Services {
        let mut up = Command::new(root().join("tests/services/up"));
        let output = up.args(words).stderr(Stdio::inherit()).output().expect("started");
        assert!(output.status.success(), "services: {}", output.status);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let variables =
            text.lines().filter_map(|line| line.strip_prefix("export HEADWATER_")?.split_once('='));
        Services(variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// `TEST_KAFKA` and the like.
    fn of(&self, name: &str) -> &str {
        &self.0[name]
    }

    /// A file of the CA's.
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

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs `headwater` with a configuration, to its end.
fn headwater(dir: &Path, command: &[&str], config: &str) -> Ended {
    std::fs::write(dir.join("c.toml"), config).expect("written");
    let begun = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_headwater"))
        .current_dir(dir)
        .args(command)
        .arg("c.toml")
        .output()
        .expect("it can be started");
    assert!(begun.elapsed() < 4 * BOUND, "{command:?} took {:?}", begun.elapsed());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let ended = Ended { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) };
    let secrets = ["alice-secret", "locked-secret", "ops-secret", "app-secret", "canary"];
    let told = secrets.iter().any(|secret| ended.out.contains(secret) || ended.err.contains(secret));
    assert!(!told, "a secret shows: {ended:?}");
    ended
}

/// Has `check --connect` fail with these words, in time.
fn fails(dir: &Path, config: &str, code: i32, words: &str) {
    let begun = Instant::now();
    let ended = headwater(dir, &["check", "--connect"], config);
    assert_eq!(ended.code, Some(code), "{ended:?}\n{config}");
    let line = ended.out.lines().find(|line| line.starts_with("failed"));
    let line = line.unwrap_or_else(|| panic!("no failure in {ended:?}"));
    assert!(line.contains(words), "{words:?} is not in {line}");
    assert!(begun.elapsed() < BOUND, "{words}: {:?}", begun.elapsed());
}

/// A port at which connections are accepted, and nothing is ever said.
fn silent() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let accepting = listener.try_clone().expect("a listener");
    std::thread::spawn(move || {
        // Read until the other side gives up: what came is kept open, not closed.
        for mut stream in accepting.incoming().flatten() {
            std::thread::spawn(move || while stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {});
        }
    });
    (listener, port)
}

/// A port at which nobody listens.
fn closed() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}
