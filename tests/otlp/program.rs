//! The program, run as a user runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A directory with a configuration.
pub struct Program {
    dir: tempfile::TempDir,
}

impl Program {
    /// Writes a configuration, with the section `[otlp]` of this collector.
    pub fn new(config: &str, collector: &str) -> Program {
        let dir = tempfile::tempdir().expect("a directory");
        let text = format!("{config}\n[otlp]\nendpoint = {collector:?}\n");
        std::fs::write(dir.path().join("run.toml"), text).expect("written");
        Program { dir }
    }

    /// Returns the path of a file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        Path::join(self.dir.path(), name)
    }

    /// Returns the command that runs the pipeline in the directory.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headwater"));
        command.current_dir(self.dir.path()).args(["run", "run.toml"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the pipeline to its end; returns the log.
    pub fn run(&self, arguments: &[&str]) -> String {
        log(self.command(arguments).output().expect("it starts"))
    }
}

/// Returns the log of a run that has succeeded.
pub fn log(output: Output) -> String {
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}\n{log}", output.status);
    log
}

/// Waits for a condition, far longer than a correct program needs.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
