//! The other processes as one of them knows them: which have joined, are prepared for the run, or are lost. Threads that connect,
//! accept and read change it; the start and the run wait for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use super::ClusterSettings;
use super::identity::Identity;
use super::link::{Frame, Link, LinkReader, ReadEnd, beat_interval};
use super::loss::{Noticed, PeerLost};
use crate::metrics::Metrics;

/// The other processes, as this one knows them.
pub struct Members {
    /// The settings of the cluster.
    pub settings: ClusterSettings,
    /// The identity of this process.
    pub own: Identity,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    changed: Condvar,
}

/// The stage of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Processes join. A connection that is lost is made again.
    Joining,
    /// All have joined. A process that is lost ends the run.
    Running,
    /// The run has ended in this process.
    Ended,
}

/// A function that is called with the first process that is lost.
type OnLoss = Box<dyn Fn(PeerLost) + Send>;

struct State {
    stage: Stage,
    /// The connections, by process.
    links: Vec<Option<Arc<Link>>>,
    /// The receiving sides of processes whose next frames belong to the dataflow.
    readers: Vec<Option<LinkReader>>,
    is_prepared: Vec<bool>,
    /// The start data, from the first process.
    start: Option<Vec<u8>>,
    /// The newest generation that a process has had.
    generation: Option<u64>,
    /// The reasons why processes have not joined, of those that this one connects to.
    reasons: BTreeMap<usize, String>,
    loss: Option<PeerLost>,
    on_loss: Option<OnLoss>,
    have_workers_ended: bool,
}

impl Members {
    /// Returns a cluster that no process has joined.
    pub fn new(settings: ClusterSettings, own: Identity, metrics: Arc<Metrics>) -> Members {
        let processes = own.processes;
        let state = State {
            stage: Stage::Joining,
            links: vec![None; processes],
            readers: (0..processes).map(|_| None).collect(),
            is_prepared: vec![false; processes],
            start: None,
            generation: own.generation,
            reasons: BTreeMap::new(),
            loss: None,
            on_loss: None,
            have_workers_ended: false,
        };
        Members { settings, own, metrics, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the lock")
    }

    /// Waits until `find` finds something, and calls `wait` at intervals.
    fn wait_for<T>(&self, mut find: impl FnMut(&mut State) -> Option<T>, mut wait: impl FnMut(&State)) -> T {
        let mut state = self.lock();
        loop {
            if let Some(found) = find(&mut state) {
                return found;
            }
            wait(&state);
            let waited = self.changed.wait_timeout(state, Duration::from_millis(200));
            state = waited.expect("no thread panics while it holds the lock").0;
        }
    }

    /// Returns the stage.
    pub fn stage(&self) -> Stage {
        self.lock().stage
    }

    /// Waits until the process is to be connected to. Returns false once no process joins any more.
    pub fn wants(&self, process: usize) -> bool {
        let wanted = |state: &mut State| match state.stage {
            Stage::Joining => state.links[process].is_none().then_some(true),
            Stage::Running | Stage::Ended => Some(false),
        };
        self.wait_for(wanted, |_| {})
    }

    /// Decides whether a process may join.
    ///
    /// # Errors
    /// The reason why not.
    pub fn admit(&self, other: &Identity) -> Result<(), String> {
        let Identity { process, generation, .. } = *other;
        let mut state = self.lock();
        if let (Some(newest), Some(other)) = (state.generation, generation)
            && other < newest
        {
            return Err(format!("generation {other} is over: generation {newest} has started"));
        }
        if state.stage != Stage::Joining {
            let generation =
                state.generation.map_or(String::new(), |newest| format!(" of generation {newest}"));
            return Err(format!(
                "the run{generation} has not ended yet in process {}: a process can join the next one",
                self.own.process
            ));
        }
        if state.links.get(process).is_none_or(|link| link.is_some()) {
            return Err(format!("process {process} has already joined: is it started twice?"));
        }
        state.generation = state.generation.max(generation);
        Ok(())
    }

    /// Adds a process that has joined, and starts to read what it sends. Returns false if another one came before it.
    pub fn add(self: &Arc<Self>, link: Arc<Link>, reader: LinkReader) -> bool {
        let process = link.process;
        let mut state = self.lock();
        if state.stage != Stage::Joining || state.links[process].is_some() {
            drop(state);
            link.leave("another process has joined in its place");
            return false;
        }
        state.links[process] = Some(Arc::clone(&link));
        state.reasons.remove(&process);
        let (members, beating) = (Arc::clone(self), Arc::clone(&link));
        let reading = thread::Builder::new().name(format!("cluster:read-{process}"));
        let spawned = reading.spawn(move || members.read(reader)).and_then(|_| {
            let silence = self.metrics.peer_silence(process);
            let interval = beat_interval(self.settings.config.heartbeat_timeout);
            thread::Builder::new().name(format!("cluster:beat-{process}")).spawn(move || {
                while beating.beat() {
                    silence.set(beating.silence().as_secs_f64());
                    thread::sleep(interval);
                }
            })
        });
        drop(state);
        if let Err(error) = spawned {
            self.lose(&link, Noticed::Closed(error.to_string()));
            return false;
        }
        tracing::info!(process, address = self.address(process), "joined with a process of the cluster");
        self.changed.notify_all();
        true
    }

    /// Returns the address of a process in the host file.
    pub fn address(&self, process: usize) -> &str {
        &self.settings.addresses[process]
    }

    /// Stores the reason why a process has not joined.
    pub fn missing(&self, process: usize, reason: String) {
        self.lock().reasons.insert(process, reason);
    }

    /// Reads what a process sends before the dataflow begins.
    fn read(&self, mut reader: LinkReader) {
        let link = Arc::clone(&reader.link);
        let process = link.process;
        let noticed = loop {
            match reader.next(&|| self.stage() == Stage::Ended) {
                Ok(Frame::Start) if process == 0 => {
                    self.lock().start = Some(std::mem::take(&mut reader.content));
                }
                Ok(Frame::Prepared) => self.lock().is_prepared[process] = true,
                Ok(Frame::Go) => {
                    self.lock().readers[process] = Some(reader);
                    return self.changed.notify_all();
                }
                Ok(frame) => break ended(frame, &reader.content),
                Err(ReadEnd::Lost(noticed)) => break noticed,
                Err(ReadEnd::Over) => return,
            }
            self.changed.notify_all();
        };
        self.lose(&link, noticed);
    }

    /// Records that a process is lost. While processes join, it can join again; later the run ends.
    pub fn lose(&self, link: &Arc<Link>, noticed: Noticed) {
        let process = link.process;
        let mut state = self.lock();
        let is_current = state.links[process].as_ref().is_some_and(|current| Arc::ptr_eq(current, link));
        if is_current && !link.is_closed() {
            let address = self.address(process).to_owned();
            match state.stage {
                Stage::Joining => {
                    tracing::info!(process, address, %noticed, "lost a process of the cluster; waiting for it");
                    state.links[process] = None;
                    state.is_prepared[process] = false;
                    if process == 0 {
                        state.start = None;
                    }
                }
                Stage::Running => {
                    let lost = PeerLost { process, address, last_heard_ms: link.last_heard_ms(), noticed };
                    if state.loss.is_none() {
                        state.loss = Some(lost.clone());
                        if let Some(on_loss) = &state.on_loss {
                            on_loss(lost);
                        }
                    }
                }
                Stage::Ended => {}
            }
        }
        drop(state);
        link.close();
        self.changed.notify_all();
    }

    /// Calls a function with the first process that is lost from now on, or that was lost before.
    pub fn on_loss(&self, on_loss: OnLoss) {
        let mut state = self.lock();
        match &state.loss {
            Some(lost) => on_loss(lost.clone()),
            None => state.on_loss = Some(on_loss),
        }
    }

    /// Returns the first process that was lost as an error.
    ///
    /// # Errors
    /// If one was lost.
    pub fn check(&self) -> Result<(), PeerLost> {
        self.lock().loss.clone().map_or(Ok(()), Err)
    }

    /// Waits until all processes have joined. The first one sends `start` to the others, which return it.
    pub fn wait_for_all(&self, start: Option<Vec<u8>>) -> Vec<u8> {
        let own = self.own.process;
        let mut log = Interval::default();
        let mut last = String::new();
        let received = self.wait_for(
            |state| {
                let missing = missing(state, own).next().is_some();
                if missing || (start.is_none() && state.start.is_none()) {
                    return None;
                }
                state.stage = Stage::Running;
                Some(state.start.take())
            },
            |state| {
                let waits_for = self.describe_missing(state);
                if waits_for != last {
                    self.metrics.starting(waits_for.clone());
                    last.clone_from(&waits_for);
                }
                log.run(|| tracing::info!("{waits_for}"));
            },
        );
        self.changed.notify_all();
        match start {
            Some(start) => {
                self.send_all(Frame::Start, &start);
                start
            }
            None => received.unwrap_or_default(),
        }
    }

    /// Describes what the start waits for.
    fn describe_missing(&self, state: &State) -> String {
        let describe = |process: usize| {
            let reason = state.reasons.get(&process).map_or(String::new(), |reason| format!(" ({reason})"));
            format!("process {process} at {}{reason}", self.address(process))
        };
        let missing: Vec<_> = missing(state, self.own.process).map(describe).collect();
        if missing.is_empty() {
            return "waiting for the start data of process 0".to_owned();
        }
        format!("waiting for {}", missing.join(", "))
    }

    /// Says that this process is prepared, and waits until all are. Returns the receiving sides.
    ///
    /// # Errors
    /// If a process is lost.
    pub fn wait_for_prepared(&self) -> Result<Vec<Option<LinkReader>>, PeerLost> {
        let own = self.own.process;
        let is_all = |flags: &[bool]| flags.iter().enumerate().all(|(at, &flag)| flag || at == own);
        self.send_all(Frame::Prepared, &[]);
        self.wait_for(
            |state| match &state.loss {
                Some(lost) => Some(Err(lost.clone())),
                None => is_all(&state.is_prepared).then_some(Ok(())),
            },
            |_| {},
        )?;
        self.send_all(Frame::Go, &[]);
        self.wait_for(
            |state| {
                if let Some(lost) = &state.loss {
                    return Some(Err(lost.clone()));
                }
                let have: Vec<_> = state.readers.iter().map(Option::is_some).collect();
                is_all(&have).then(|| Ok(state.readers.iter_mut().map(Option::take).collect()))
            },
            |_| {},
        )
    }

    /// Sends a frame to all processes. A process to which it cannot be sent is lost.
    fn send_all(&self, frame: Frame, content: &[u8]) {
        let links = self.lock().links.clone();
        for link in links.iter().flatten() {
            if let Err(error) = link.send(frame, content) {
                self.lose(link, Noticed::Closed(error.to_string()));
            }
        }
    }

    /// Records that the workers of this process have ended.
    pub fn end_workers(&self) {
        self.lock().have_workers_ended = true;
        self.changed.notify_all();
    }

    /// Returns true if the workers of this process have run and ended.
    pub fn have_workers_ended(&self) -> bool {
        self.lock().have_workers_ended
    }

    /// Waits until the workers of this process have ended.
    pub fn wait_for_workers(&self) {
        self.wait_for(|state| state.have_workers_ended.then_some(()), |_| {});
    }

    /// Ends the run in this process: no process can be lost any more. With a reason, the others learn it, and lose this
    /// process.
    pub fn end(&self, reason: Option<&str>) {
        let mut state = self.lock();
        state.stage = Stage::Ended;
        state.on_loss = None;
        let links = state.links.clone();
        drop(state);
        self.changed.notify_all();
        for link in links.iter().flatten() {
            match reason {
                Some(reason) => link.leave(reason),
                None => link.close(),
            }
        }
    }
}

#[cfg(test)]
impl Members {
    /// Returns the reason why a process has not joined.
    pub fn reason(&self, process: usize) -> Option<String> {
        self.lock().reasons.get(&process).cloned()
    }

    /// Returns the processes that have not joined.
    pub fn missing_processes(&self) -> impl Iterator<Item = usize> {
        missing(&self.lock(), self.own.process).collect::<Vec<_>>().into_iter()
    }

    /// Closes all connections without a word, as the operating system does when it ends a process.
    pub fn close_all(&self) {
        self.lock().links.iter().flatten().for_each(|link| link.shut_down());
    }
}

/// Returns the processes that have not joined.
fn missing(state: &State, own: usize) -> impl Iterator<Item = usize> {
    let missing =
        state.links.iter().enumerate().filter(move |(process, link)| *process != own && link.is_none());
    missing.map(|(process, _)| process)
}

/// Returns how the end of a process was noticed by a frame.
pub fn ended(frame: Frame, content: &[u8]) -> Noticed {
    match frame {
        Frame::Leave => Noticed::Ended(super::handshake::printable(&String::from_utf8_lossy(content))),
        _ => Noticed::Closed("it has sent something unexpected".to_owned()),
    }
}

/// Runs something at once, and then at intervals.
#[derive(Default)]
struct Interval(Option<Instant>);

/// The interval at which the missing processes are logged.
const LOG_EVERY: Duration = Duration::from_secs(10);

impl Interval {
    fn run(&mut self, log: impl FnOnce()) {
        if self.0.is_none_or(|last| last.elapsed() >= LOG_EVERY) {
            self.0 = Some(Instant::now());
            log();
        }
    }
}
