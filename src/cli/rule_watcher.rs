//! The watcher of a run's configuration: lets changed rules come into force, with `rules_reload = "auto"`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::pipeline::identity;
use crate::runtime::{FollowingRule, RuleChangeError, RuleControl};

/// The interval between two looks at the files.
const INTERVAL: Duration = Duration::from_secs(1);

/// The maximum time until a change is bound to an epoch. After it, the change is still requested.
const APPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// A thread that watches the configuration file and its files of rules. It ends when this is dropped.
pub struct RuleWatcher {
    is_ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl RuleWatcher {
    /// Starts the watcher, if the configuration asks for it. Only the first process of a cluster has one.
    pub fn start(path: &Path, config: &Config, process: usize, control: &RuleControl) -> Option<RuleWatcher> {
        if !config.reloads_rules || process != 0 {
            return None;
        }
        let is_ended = Arc::new(AtomicBool::new(false));
        let watched = Watched {
            path: path.to_owned(),
            contents: Vec::new(),
            applied: identity(&config.plan.rules),
            control: control.clone(),
        };
        let ended = Arc::clone(&is_ended);
        let thread = std::thread::Builder::new().name("rules".to_owned()).spawn(move || watched.run(&ended));
        match thread {
            Ok(thread) => Some(RuleWatcher { is_ended, thread: Some(thread) }),
            Err(error) => {
                tracing::warn!(%error, "cannot watch the rules: changes need `headwater rules apply`");
                None
            }
        }
    }
}

impl Drop for RuleWatcher {
    fn drop(&mut self) {
        self.is_ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic in it ends the process.
            let _ = thread.join();
        }
    }
}

struct Watched {
    path: PathBuf,
    /// The contents of the files that were read last.
    contents: Vec<(PathBuf, Vec<u8>)>,
    /// The identity of the rules that were applied last.
    applied: u64,
    control: RuleControl,
}

impl Watched {
    fn run(mut self, is_ended: &AtomicBool) {
        self.contents = self.read().unwrap_or_default();
        let mut looked = Instant::now();
        // The last error, and how often it occurred in sequence.
        let mut unreadable = (String::new(), 0);
        while !is_ended.load(Ordering::Relaxed) {
            std::thread::park_timeout(INTERVAL.saturating_sub(looked.elapsed()));
            if looked.elapsed() < INTERVAL {
                continue;
            }
            looked = Instant::now();
            let contents = match self.read() {
                Ok(contents) => contents,
                Err(error) => {
                    let times = if error == unreadable.0 { unreadable.1 + 1 } else { 1 };
                    // A file that is being replaced may be missing for a moment.
                    if times == 2 {
                        tracing::error!("the rules stay as they are, because a file of them {error}");
                    }
                    unreadable = (error, times);
                    continue;
                }
            };
            unreadable.1 = 0;
            if contents != self.contents {
                self.contents = contents;
                self.apply();
            }
        }
    }

    fn read(&self) -> Result<Vec<(PathBuf, Vec<u8>)>, String> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| format!("cannot be read: {}: {error}", path.display()))
        };
        let text = read(&self.path)?;
        let of_rules = Config::rule_files(&String::from_utf8_lossy(&text));
        let of_rules = of_rules.into_iter().map(|path| Ok((path.clone(), read(&path)?)));
        std::iter::once(Ok((self.path.clone(), text))).chain(of_rules).collect()
    }

    /// Lets the rules of the files come into force, if they have changed.
    fn apply(&mut self) {
        let path = self.path.display();
        let parsed = std::fs::read_to_string(&self.path)
            .map_err(anyhow::Error::from)
            .and_then(|text| Ok(Config::parse(&text, Config::environment()?.into_iter())?));
        let config = match parsed {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(
                    "{path} has changed and is not valid, so the rules stay as they are: {error:#}"
                );
                return;
            }
        };
        if let Err(error) = self.control.check_settings(&config.semantics()) {
            tracing::error!("{path} has changed in more than rules, so the rules stay as they are: {error}");
            return;
        }
        let file = identity(&config.plan.rules);
        if file == self.applied {
            return;
        }
        match self.control.apply(config.plan.rules, Some(file), APPLY_TIMEOUT) {
            Ok(change) => {
                self.applied = file;
                tracing::info!(
                    version = change.version,
                    epoch = change.epoch,
                    added = ids(&change.added),
                    removed = change.removed.join(", "),
                    changed =
                        change.changed.iter().map(|rule| rule.id.as_str()).collect::<Vec<_>>().join(", "),
                    "the changed rules are in force"
                );
            }
            Err(RuleChangeError::Starting) => self.contents.clear(),
            Err(error) => tracing::error!("the rules of {path} have changed: {error}"),
        }
    }
}

fn ids(rules: &[FollowingRule]) -> String {
    rules.iter().map(|rule| rule.id.as_str()).collect::<Vec<_>>().join(", ")
}
