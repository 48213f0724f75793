//! A sink of one's own: it counts the events of each user in a JSON file. Counts and progress are in the same file, which
//! is replaced as a whole. So a restart counts no event twice and misses none, wherever the run before it crashed.
//!
//! `cargo run --example own_sink` starts one pipeline three times, and prints:
//!
//! ```text
//! run 1 crashed after a commit: what it committed is counted
//! run 2 resumed and reached the end: {"ann":500,"bob":300,"eve":200}
//! run 3 had nothing to do: {"ann":500,"bob":300,"eve":200}
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use headwater::config::OutputKind;
use headwater::dataflows::Epoch;
use headwater::sinks::{
    self, Changes, CommitError, CommitPermit, OpenError, Progress, StageError, WriterContext,
};
use headwater::{Pipeline, runtime::RunError};
use serde::{Deserialize, Serialize};

/// The content of the file. Ledger id, generation, shards and epoch are those of [`Progress`].
#[derive(Clone, Default, Serialize, Deserialize)]
struct Content {
    progress: Option<(String, u64, u64, u64)>,
    counts: BTreeMap<String, u64>,
}

#[derive(Default)]
struct CountSink {
    path: PathBuf,
    /// True if the first commit crashes once it is done, before the run hears of it.
    crashes: bool,
    /// Locked while the sink exists: a later start cannot open before an earlier one has ended.
    lock: Option<File>,
    context: Option<WriterContext>,
    content: Content,
    staged: BTreeMap<Epoch, Vec<Changes>>,
}

/// The contract of these methods is `sinks/SPEC.md`. This sink leaves out what `--reset-sink` needs.
impl sinks::Sink for CountSink {
    fn name(&self) -> &str {
        "counts"
    }

    fn peek_progress(&mut self, _pipeline: &str) -> Result<Vec<Progress>, OpenError> {
        self.content = read(&self.path).map_err(unavailable)?;
        let progress =
            self.content.progress.clone().map(|(ledger_id, generation, shards, through)| Progress {
                ledger_id: sinks::LedgerId(ledger_id),
                generation: sinks::Generation(generation),
                shards: sinks::Shards(shards),
                through: Epoch(through),
            });
        Ok(progress.into_iter().collect())
    }

    fn open(&mut self, context: &WriterContext) -> Result<Vec<Progress>, OpenError> {
        let lock = File::create(self.path.with_extension("lock")).map_err(unavailable)?;
        lock.try_lock().map_err(unavailable)?;
        let progress = self.peek_progress(&context.pipeline)?;
        if let Some(reason) = context.objection_to(self.name(), &progress, None) {
            return Err(OpenError::Refused { sink: self.name().into(), reason });
        }
        (self.lock, self.context) = (Some(lock), Some(context.clone()));
        Ok(progress)
    }

    fn stage(&mut self, epoch: Epoch, changes: Changes) -> Result<(), StageError> {
        self.staged.entry(epoch).or_default().push(changes);
        Ok(())
    }

    fn commit(&mut self, permit: CommitPermit) -> Result<(), CommitError> {
        let (sink, through) = (String::from(self.name()), permit.through());
        let mut content = self.content.clone();
        for changes in self.staged.range(..=through).flat_map(|(_, changes)| changes) {
            for message in changes.messages.iter() {
                let user = String::from_utf8_lossy(message.key.unwrap_or_default()).into_owned();
                *content.counts.entry(user).or_default() += 1;
            }
        }
        let context = self.context.as_ref().expect("a run opens a sink before it commits");
        content.progress =
            Some((context.ledger_id.0.clone(), context.generation.0, context.shards.0, through.0));

        let crash = if self.crashes { Err(io::Error::other("a crash")) } else { Ok(()) };
        // The file may have been replaced although an error came back: the next start finds out by its progress.
        let unknown =
            |error: io::Error| CommitError::Indeterminate { sink, through, reason: error.to_string() };
        replace(&self.path, &content).and(crash).map_err(unknown)?;
        self.content = content;
        self.staged = self.staged.split_off(&through.next());
        Ok(())
    }
}

fn unavailable(error: impl Error + Send + Sync + 'static) -> OpenError {
    OpenError::Unavailable { sink: "counts".into(), what: "its file".into(), source: Box::new(error) }
}

fn read(path: &Path) -> io::Result<Content> {
    if path.exists() { Ok(serde_json::from_slice(&fs::read(path)?)?) } else { Ok(Content::default()) }
}

/// Replaces the file as a whole: a reader, and a start after a crash, finds either the old content or the new.
fn replace(path: &Path, content: &Content) -> io::Result<()> {
    let next = path.with_extension("next");
    fs::write(&next, serde_json::to_vec(content)?)?;
    File::open(&next)?.sync_all()?;
    fs::rename(&next, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Runs the pipeline, and returns the counts after it.
fn run(folder: &Path, crashes: bool) -> Result<(Result<(), RunError>, String), Box<dyn Error>> {
    // The ledger records which events belong to which epoch, so that a start can replay exactly what is missing.
    let pipeline = Pipeline::from_toml(&format!(
        r#"
        pipeline = "counts"
        source = {{ kind = "file", paths = {:?}, epoch_records = 50 }}
        ledger = {{ kind = "sqlite", path = {:?} }}
        "#,
        folder.join("input.ndjson"),
        folder.join("ledger.db")
    ))?;
    let path = folder.join("counts.json");
    let sink = CountSink { path: path.clone(), crashes, ..CountSink::default() };
    let outcome = pipeline.message_sink(sink, &[OutputKind::Events]).run();
    Ok((outcome.map(drop), serde_json::to_string(&read(&path)?.counts)?))
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let users = ["ann", "bob", "ann", "eve", "ann", "bob", "ann", "eve", "ann", "bob"];
    let mut input = String::new();
    for (n, user) in users.iter().cycle().take(1000).enumerate() {
        let time = 1_772_366_400_000 + n;
        let event =
            format!(r#""event_id":{n},"event_type":"api_call","user_id":"{user}","event_time":{time}"#);
        input += &format!("{{{event}}}\n");
    }
    fs::write(folder.path().join("input.ndjson"), input)?;

    let (outcome, counts) = run(folder.path(), true)?;
    if !matches!(outcome, Err(RunError::Commit(CommitError::Indeterminate { .. }))) || counts == "{}" {
        return Err(format!("expected a crash after a commit, got {outcome:?} and {counts}").into());
    }
    println!("run 1 crashed after a commit: what it committed is counted");
    for (number, did) in [(2, "resumed and reached the end"), (3, "had nothing to do")] {
        let (outcome, counts) = run(folder.path(), false)?;
        println!("run {number} {did}: {counts}");
        if outcome.is_err() || counts != r#"{"ann":500,"bob":300,"eve":200}"# {
            return Err(format!("an event is missing or counted twice: {outcome:?}").into());
        }
    }
    Ok(())
}
