//! `run` with a watched host file or `--peers`: a cluster whose members change while it runs.
//!
//! ```text
//!   list of members ─▶ Agent, in each process ─┬─ first member: Leader ── start, stop ──▶ the other Agents
//!                                              └─▶ engine: `run` in a child process, with the members of one run
//! ```
//!
//! The engine knows nothing of changes: for each, all engines stop in order at a checkpoint, and the next ones start from it,
//! with the same protocol as any other start. An engine is a process of its own, so that a start that waits for a lost member
//! can be given up at any time, and nothing of a run is left to the next. While no engine runs, the agent serves the probes.

mod leader;
mod member;
mod members;
mod membership;
mod sessions;
mod wire;

use std::ffi::OsString;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::command::RunArgs;
use super::hosts::{PLACEMENT_VARIABLE, Placement};
use super::supervise::{Program, Run};
use super::{check_secret, serve_http, stop};
use crate::cluster::tls_identity;
use crate::config::Config;
use crate::http;
use crate::metrics::Metrics;
use crate::runtime::{Peers, Queries, RuleControl, RunError};
use leader::{Leader, Led};
use member::{Ran, Waited};
use members::{ListWatcher, Own};
use wire::{Door, Shared};

/// The interval of looking for messages and at the engine.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The time of waiting after which the agent says what it waits for, and serves the probes.
const PATIENCE: Duration = Duration::from_secs(1);

/// The interval at which an unchanged state of waiting is logged again.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// The time after the limit of a stop, at which an engine ends itself, for killing it.
const KILL_AFTER: Duration = Duration::from_secs(5);

/// The part of a process that stays while engines come and go.
pub struct Agent {
    args: RunArgs,
    config: Config,
    shared: Shared,
    program: Program,
    /// The requests to stop.
    requests: Receiver<()>,
    list: ListWatcher,
    own: Own,
    waiting: Option<Waiting>,
}

/// The status of an agent that waits, and the server of its probes.
struct Waiting {
    text: String,
    logged: Instant,
    metrics: Arc<Metrics>,
    server: Option<http::Server>,
}

/// Runs this process's part of a cluster whose members change. Returns the exit code.
///
/// # Errors
/// If an engine cannot be started, signals cannot be handled, or a file of `cluster.tls` cannot be used.
pub fn run(args: RunArgs, config: Config, arguments: Vec<OsString>) -> anyhow::Result<u8> {
    let (list, own) = members::of_args(&args).context("the arguments name no list of members")?;
    let mut agent = Agent {
        shared: Shared {
            pipeline: config.plan.pipeline.to_string(),
            secret: config.cluster.secret.clone(),
            tls: tls_identity(&config.cluster).map_err(RunError::from)?,
        },
        program: Program::new(arguments)?,
        requests: stop::signals().context("cannot handle signals")?,
        list: ListWatcher::start(list).context("cannot watch the list of members")?,
        own,
        waiting: None,
        args,
        config,
    };
    let mut leader = None;
    loop {
        match agent.wait(leader.take()) {
            Waited::Exit(code) => return Ok(code),
            Waited::Lead(own, door) => match Leader::new(&mut agent, own).lead(door)? {
                Led::Exit(code) => return Ok(code),
                Led::Yield(connection) => leader = Some(connection),
            },
            Waited::Start(placement, connection) => match agent.serve(&placement, connection)? {
                Ran::Exit(code) => return Ok(code),
                Ran::Again(connection) => leader = connection,
            },
        }
    }
}

impl Agent {
    /// Opens the port of this process, if it is not open. Returns the reason if it cannot be opened.
    fn open_door(&self, own: &str, door: &mut Option<Door>) -> Option<String> {
        if let Err(error) = check_secret(&self.config, std::slice::from_ref(&own.to_owned())) {
            return Some(error.to_string());
        }
        if door.is_none() {
            match Door::open(own) {
                Ok(opened) => *door = Some(opened),
                Err(error) => {
                    return Some(format!("cannot listen on {own} for the cluster: {error}; trying again"));
                }
            }
        }
        None
    }

    /// Says what the agent waits for since then, in the log and to the probes.
    fn waits_for(&mut self, since: Instant, what: impl FnOnce() -> String) {
        if since.elapsed() < PATIENCE {
            return;
        }
        let text = what();
        if let Some(waiting) = &mut self.waiting {
            if waiting.text != text || waiting.logged.elapsed() >= LOG_EVERY {
                tracing::info!("{text}");
                waiting.metrics.starting(&text);
                (waiting.text, waiting.logged) = (text, Instant::now());
            }
            return;
        }
        tracing::info!("{text}");
        let metrics = Arc::new(Metrics::default());
        metrics.starting(&text);
        let placement = Placement { process: 0, workers: self.args.workers, members: Vec::new() };
        let control = RuleControl::of_config(&self.config);
        let (queries, peers) = (Queries::default(), Peers::default());
        let served = serve_http(&self.config, &placement, &control, &metrics, &queries, &peers);
        let server = served.map(|(server, _)| server).unwrap_or_else(|error| {
            tracing::warn!("cannot serve the probes while waiting: {error:#}");
            None
        });
        self.waiting = Some(Waiting { text, logged: Instant::now(), metrics, server });
    }

    /// Starts the engine of this process in this place among the members of a run.
    fn start(&mut self, process: usize, members: &[String]) -> anyhow::Result<Engine> {
        check_secret(&self.config, members)?;
        // The engine uses the port of the probes.
        drop(self.waiting.take().and_then(|waiting| waiting.server));
        let placement = Placement { process, workers: self.args.workers, members: members.to_vec() };
        let text = serde_json::to_string(&placement).context("cannot encode the members")?;
        tracing::info!(process, members = members.join(", "), "starting with these members");
        let run = self.program.start(&[(PLACEMENT_VARIABLE, text)])?;
        Ok(Engine { run, stopping: None, is_over: false, limit: self.config.shutdown_timeout + KILL_AFTER })
    }
}

/// A run in a child process.
struct Engine {
    run: Run,
    /// The time of the request to stop.
    stopping: Option<Instant>,
    /// True if it is not to be resumed at once.
    is_over: bool,
    /// The time after which it is killed.
    limit: Duration,
}

impl Engine {
    /// Requests it to stop, to be resumed at once with other members.
    fn rescale(&mut self) {
        if self.stopping.is_none() {
            self.stopping = Some(Instant::now());
            self.run.rescale();
        }
    }

    /// Requests it to stop at a checkpoint, once, also after [`rescale`](Engine::rescale); or kills it.
    fn stop(&mut self, kill: bool) -> std::io::Result<()> {
        let is_first = !std::mem::replace(&mut self.is_over, true);
        self.stopping.get_or_insert_with(Instant::now);
        if is_first || kill { self.run.stop() } else { Ok(()) }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Returns the status if it has ended. Kills it if it has not stopped in time.
    fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        let status = self.run.ended()?;
        if status.is_none() && self.stopping.is_some_and(|at| at.elapsed() >= self.limit) {
            let seconds = self.limit.as_secs();
            tracing::error!("the engine has not stopped within {seconds} s: killing it");
            (self.stopping, self.is_over) = (Some(Instant::now()), true);
            self.run.kill()?;
        }
        Ok(status)
    }
}
