//! The schemas of a registry by id, which a thread fetches when a record needs one.
//!
//! ```text
//!   find(id) ──▶ known? ─────────────────────────▶ Found
//!       └─▶ pending ─▶ thread ─▶ SchemaRegistry ─┬▶ a schema: known for ever
//!              ▲                                 ├▶ unavailable: tried again, with growing pauses
//!              └──── pause ◀─────────────────────┴▶ no usable schema: held, or refused for a while
//! ```
//!
//! The thread exists only while something is pending, and ends with the last owner of the schemas.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::Schema;

/// A registry of schemas.
pub trait SchemaRegistry: Send + Sync + fmt::Debug {
    /// Fetches the schema with an id. Blocks within bounds.
    fn fetch(&self, id: u32) -> Fetched;

    /// Returns the address of the registry, without secrets.
    fn place(&self) -> String;
}

/// The answer of a registry.
#[derive(Clone, Debug)]
pub enum Fetched {
    /// The schema.
    Schema(Schema),
    /// The registry has no such schema, or one that cannot be used: the reason.
    Unusable(String),
    /// The registry did not answer, or refuses to: the reason.
    Unavailable(String),
}

/// The fate of records whose id has no usable schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownId {
    /// They wait until it has one.
    Hold,
    /// They become dead letters.
    DeadLetter,
}

/// The result of looking up a schema.
#[derive(Clone, Debug)]
pub enum Found {
    /// The schema.
    Schema(Arc<Schema>),
    /// Records with the id are dead letters: the reason.
    Refused(Arc<str>),
    /// It is not known yet: the reason, after a first attempt, and the time of the first request.
    Waiting(Option<Arc<str>>, Instant),
}

/// The pauses of the thread.
#[derive(Clone, Copy, Debug)]
struct Pauses {
    /// The first pause after a failure, which doubles up to the longest.
    first: Duration,
    longest: Duration,
    /// The time after which an id without a schema is asked for again: it may just be being registered.
    confirm: Duration,
    /// The time for which an id is refused without asking again.
    refuse: Duration,
    /// The interval of log lines while the registry is unavailable.
    log: Duration,
}

const PAUSES: Pauses = Pauses {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(5),
    confirm: Duration::from_secs(1),
    refuse: Duration::from_secs(30),
    log: Duration::from_secs(30),
};

/// The longest time for which the thread does not look at what is pending, while the registry is available.
const STEP: Duration = Duration::from_millis(20);

/// The maximum number of refused ids that are remembered.
const MAX_REFUSED: usize = 10_000;

/// The time after the first request of a schema for which decoders wait for it where nothing withholds the record.
const WAIT: Duration = Duration::from_secs(10);

/// The schemas of a registry.
#[derive(Debug)]
pub struct Schemas {
    registry: Box<dyn SchemaRegistry>,
    unknown_id: UnknownId,
    pauses: Pauses,
    this: Weak<Schemas>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ids: HashMap<u32, Entry>,
    /// The number of answers since refused ids were last forgotten.
    answers: usize,
    /// True while the thread exists.
    is_fetching: bool,
}

#[derive(Debug)]
enum Entry {
    Known(Arc<Schema>),
    Pending(Pending),
    Refused { reason: Arc<str>, until: Instant, is_due: bool },
}

#[derive(Debug)]
struct Pending {
    /// The time of the next attempt.
    next: Instant,
    reason: Option<Arc<str>>,
    /// The time of the first request.
    since: Instant,
    /// The number of times that the registry had no usable schema.
    unusable: u32,
}

impl Schemas {
    /// Creates the schemas of a registry, without asking it.
    pub fn new(registry: Box<dyn SchemaRegistry>, unknown_id: UnknownId) -> Arc<Schemas> {
        Schemas::with_pauses(registry, unknown_id, PAUSES)
    }

    fn with_pauses(registry: Box<dyn SchemaRegistry>, unknown_id: UnknownId, pauses: Pauses) -> Arc<Schemas> {
        Arc::new_cyclic(|this| Schemas {
            registry,
            unknown_id,
            pauses,
            this: this.clone(),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Looks up a schema, and requests it if it is not known. Does not block.
    pub fn find(&self, id: u32) -> Found {
        let mut state = self.lock();
        let now = Instant::now();
        let found = match state.ids.get_mut(&id) {
            Some(Entry::Known(schema)) => return Found::Schema(Arc::clone(schema)),
            Some(Entry::Pending(pending)) => Found::Waiting(pending.reason.clone(), pending.since),
            Some(Entry::Refused { reason, until, is_due }) => {
                // It stays refused while the registry is asked again.
                *is_due |= *until <= now;
                if !*is_due {
                    return Found::Refused(Arc::clone(reason));
                }
                Found::Refused(Arc::clone(reason))
            }
            None => {
                let pending = Pending { next: now, reason: None, since: now, unusable: 0 };
                state.ids.insert(id, Entry::Pending(pending));
                Found::Waiting(None, now)
            }
        };
        if !state.is_fetching {
            state.is_fetching = self.spawn();
        }
        found
    }

    /// Returns a schema, and waits for it within bounds.
    ///
    /// # Errors
    /// If the registry has no usable schema with the id, or does not answer: the reason.
    pub fn wait(&self, id: u32) -> Result<Arc<Schema>, String> {
        loop {
            match self.find(id) {
                Found::Schema(schema) => return Ok(schema),
                Found::Refused(reason) => return Err(reason.to_string()),
                Found::Waiting(reason, since) => {
                    let left = (since + WAIT).saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(match reason {
                            Some(reason) => reason.to_string(),
                            None => format!("schema {id}: the schema registry has not answered"),
                        });
                    }
                    let state = self.lock();
                    let pause = left.min(Duration::from_millis(50));
                    drop(self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner));
                }
            }
        }
    }

    /// Asks the registry for any schema. Blocks within bounds. Returns what was found.
    ///
    /// # Errors
    /// If it does not answer, or refuses to.
    pub fn check(&self) -> Result<String, String> {
        match self.registry.fetch(1) {
            Fetched::Unavailable(reason) => Err(reason),
            Fetched::Schema(_) | Fetched::Unusable(_) => {
                Ok(format!("{} answers requests for schemas", self.registry.place()))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread; returns false if it cannot be started.
    fn spawn(&self) -> bool {
        let schemas = Weak::clone(&self.this);
        let thread = std::thread::Builder::new().name("schemas".into()).spawn(move || fetch(&schemas));
        thread
            .map_err(|error| tracing::error!(%error, "cannot start the thread that fetches schemas"))
            .is_ok()
    }

    /// Returns the ids to ask for now, those first that have been due for longest, and the time until others; None if
    /// nothing is pending, which ends the thread.
    fn due(&self) -> Option<(Vec<u32>, Duration)> {
        let mut state = self.lock();
        let now = Instant::now();
        let (mut due, mut later) = (Vec::new(), None);
        for (&id, entry) in &state.ids {
            let next = match entry {
                Entry::Pending(pending) => pending.next,
                Entry::Refused { until, is_due: true, .. } => *until,
                _ => continue,
            };
            match next.checked_duration_since(now).filter(|left| !left.is_zero()) {
                None => due.push((next, id)),
                Some(left) => later = Some(later.map_or(left, |later: Duration| later.min(left))),
            }
        }
        due.sort_unstable();
        state.is_fetching = !due.is_empty() || later.is_some();
        let ids = due.into_iter().map(|(_, id)| id).collect();
        state.is_fetching.then(|| (ids, later.unwrap_or_default()))
    }

    /// Enters an answer. An unavailable registry is asked again after a pause.
    fn enter(&self, id: u32, fetched: Fetched, pause: Duration) {
        let mut state = self.lock();
        let (now, refuse) = (Instant::now(), self.pauses.refuse);
        let (mut unusable, mut since) = (0, now);
        if let Some(Entry::Pending(pending)) = state.ids.get(&id) {
            (unusable, since) = (pending.unusable, pending.since);
        }
        let entry = match (fetched, state.ids.remove(&id)) {
            (Fetched::Schema(schema), _) => Entry::Known(Arc::new(schema)),
            (Fetched::Unavailable(_), Some(Entry::Refused { reason, .. })) => {
                Entry::Refused { reason, until: now + refuse, is_due: false }
            }
            (Fetched::Unavailable(reason), _) => {
                let (next, reason) = (now + pause, Some(reason.into()));
                Entry::Pending(Pending { next, reason, since, unusable })
            }
            (Fetched::Unusable(reason), before) => {
                let is_confirmed = unusable > 0 || matches!(before, Some(Entry::Refused { .. }));
                if self.unknown_id == UnknownId::DeadLetter && is_confirmed {
                    Entry::Refused { reason: reason.into(), until: now + refuse, is_due: false }
                } else {
                    self.log_unusable(id, &reason, unusable);
                    unusable += 1;
                    let next = now + self.pauses.confirm * unusable.min(10);
                    Entry::Pending(Pending { next, reason: Some(reason.into()), since, unusable })
                }
            }
        };
        state.ids.insert(id, entry);
        state.answers += 1;
        if state.answers > MAX_REFUSED {
            state.ids.retain(|_, entry| !matches!(entry, Entry::Refused { .. }));
            state.answers = 0;
        }
        self.changed.notify_all();
    }

    /// Logs that records wait for a schema which the registry does not have: the first and each tenth time.
    fn log_unusable(&self, id: u32, reason: &str, times: u32) {
        if self.unknown_id == UnknownId::Hold && times.is_multiple_of(10) {
            tracing::warn!(
                schema = id,
                reason,
                "records wait for a schema: register it, or stop and set `source.schema_registry.unknown_id = \"dead_letter\"`"
            );
        }
    }
}

/// A registry that does not answer.
#[derive(Default)]
struct Outage {
    began: Option<Instant>,
    logged: Option<Instant>,
    pause: Duration,
}

impl Outage {
    fn note(&mut self, reason: &str, pauses: &Pauses) {
        let now = Instant::now();
        let began = *self.began.get_or_insert(now);
        self.pause = (self.pause * 2).clamp(pauses.first, pauses.longest);
        if self.logged.is_none_or(|at| now.duration_since(at) >= pauses.log) {
            self.logged = Some(now);
            let for_s = now.duration_since(began).as_secs();
            tracing::warn!(
                reason,
                for_s,
                "the schema registry is unavailable; records wait for their schemas"
            );
        }
    }

    fn end(&mut self) {
        if let Some(began) = std::mem::take(self).began {
            tracing::info!(after_s = began.elapsed().as_secs(), "the schema registry responds again");
        }
    }
}

/// Fetches what is pending until nothing is, or the schemas have no owner any more. After a failure nothing is asked for
/// until a pause is over, and then what failed comes last, so that one id cannot hold up others.
fn fetch(schemas: &Weak<Schemas>) {
    let mut outage = Outage::default();
    while let Some(owned) = schemas.upgrade() {
        let Some((due, later)) = owned.due() else { return };
        // Something else may become pending meanwhile.
        let mut pause = if due.is_empty() { later.min(STEP) } else { Duration::ZERO };
        for id in due {
            let fetched = owned.registry.fetch(id);
            if let Fetched::Unavailable(reason) = &fetched {
                outage.note(reason, &owned.pauses);
                pause = outage.pause;
                owned.enter(id, fetched, pause);
                break;
            }
            outage.end();
            owned.enter(id, fetched, Duration::ZERO);
        }
        drop(owned);
        sleep(schemas, pause);
    }
}

/// Sleeps, but not longer than the schemas have an owner.
fn sleep(schemas: &Weak<Schemas>, pause: Duration) {
    let end = Instant::now() + pause;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        && schemas.strong_count() > 0
    {
        std::thread::sleep(left.min(STEP));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::decode::BinaryKind;

    /// A registry whose answers the test sets.
    #[derive(Clone, Debug, Default)]
    struct Scripted {
        answers: Arc<Mutex<HashMap<u32, Fetched>>>,
        requests: Arc<AtomicU32>,
    }

    impl Scripted {
        fn answer(&self, id: u32, fetched: Fetched) {
            self.answers.lock().expect("a lock").insert(id, fetched);
        }

        fn requests(&self) -> u32 {
            self.requests.load(Ordering::SeqCst)
        }
    }

    impl SchemaRegistry for Scripted {
        fn fetch(&self, id: u32) -> Fetched {
            self.requests.fetch_add(1, Ordering::SeqCst);
            let answers = self.answers.lock().expect("a lock");
            answers.get(&id).cloned().unwrap_or(Fetched::Unavailable("down".to_owned()))
        }

        fn place(&self) -> String {
            "here".to_owned()
        }
    }

    fn schema() -> Fetched {
        Fetched::Schema(BinaryKind::Avro.compile("\"string\"", &[]).expect("valid"))
    }

    fn schemas(unknown_id: UnknownId) -> (Scripted, Arc<Schemas>) {
        let ms = Duration::from_millis;
        let pauses =
            Pauses { first: ms(5), longest: ms(20), confirm: ms(30), refuse: ms(200), log: ms(1000) };
        let scripted = Scripted::default();
        (scripted.clone(), Schemas::with_pauses(Box::new(scripted), unknown_id, pauses))
    }

    fn until(mut condition: impl FnMut() -> bool) {
        let started = Instant::now();
        while !condition() {
            assert!(started.elapsed() < Duration::from_secs(10), "waited too long");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_schema_is_fetched_once() {
        let (scripted, schemas) = schemas(UnknownId::Hold);
        scripted.answer(7, schema());
        assert!(matches!(schemas.find(7), Found::Waiting(None, _)));
        until(|| matches!(schemas.find(7), Found::Schema(_)));
        assert!(schemas.wait(7).is_ok());
        assert_eq!(scripted.requests(), 1);
        until(|| !schemas.lock().is_fetching);
        scripted.answer(8, schema());
        assert!(schemas.wait(8).is_ok(), "another thread is started");
    }

    #[test]
    fn an_unavailable_registry_is_asked_again() {
        let (scripted, schemas) = schemas(UnknownId::DeadLetter);
        schemas.find(7);
        schemas.find(8);
        until(|| matches!(schemas.find(8), Found::Waiting(Some(reason), _) if &*reason == "down"));
        std::thread::sleep(Duration::from_millis(100));
        assert!(scripted.requests() < 30, "the pauses grow: {}", scripted.requests());
        scripted.answer(7, schema());
        scripted.answer(8, schema());
        until(|| [7, 8].iter().all(|id| matches!(schemas.find(*id), Found::Schema(_))));
    }

    /// A registry may fail for one schema only.
    #[test]
    fn an_id_that_fails_does_not_hold_up_others() {
        let (scripted, schemas) = schemas(UnknownId::Hold);
        for id in 10..40 {
            schemas.find(7);
            scripted.answer(id, schema());
            until(|| matches!(schemas.find(id), Found::Schema(_)));
        }
        assert!(matches!(schemas.find(7), Found::Waiting(..)));
    }

    #[test]
    fn an_unknown_id_is_held_until_it_is_registered() {
        let (scripted, schemas) = schemas(UnknownId::Hold);
        scripted.answer(7, Fetched::Unusable("unknown".to_owned()));
        schemas.find(7);
        until(|| scripted.requests() >= 3);
        assert!(matches!(schemas.find(7), Found::Waiting(Some(reason), _) if &*reason == "unknown"));
        scripted.answer(7, schema());
        until(|| matches!(schemas.find(7), Found::Schema(_)));
    }

    #[test]
    fn an_unknown_id_is_refused_once_it_is_confirmed() {
        let (scripted, schemas) = schemas(UnknownId::DeadLetter);
        scripted.answer(7, Fetched::Unusable("unknown".to_owned()));
        let asked = Instant::now();
        until(|| matches!(schemas.find(7), Found::Refused(_)));
        assert_eq!(scripted.requests(), 2);
        assert!(asked.elapsed() >= Duration::from_millis(30), "not at once");
        for _ in 0..100 {
            assert!(matches!(schemas.find(7), Found::Refused(_)));
        }
        assert_eq!(scripted.requests(), 2, "the answer is remembered");
        assert_eq!(schemas.wait(7).expect_err("refused"), "unknown");
        // After a while it is asked for again, and stays refused meanwhile.
        scripted.answer(7, schema());
        std::thread::sleep(Duration::from_millis(210));
        assert!(matches!(schemas.find(7), Found::Refused(_)));
        until(|| matches!(schemas.find(7), Found::Schema(_)));
        assert_eq!(scripted.requests(), 3);
    }

    #[test]
    fn many_unknown_ids_take_bounded_memory() {
        let (scripted, schemas) = schemas(UnknownId::DeadLetter);
        let many = 2 * MAX_REFUSED as u32;
        for id in 0..many {
            scripted.answer(id, Fetched::Unusable("unknown".to_owned()));
            schemas.find(id);
        }
        until(|| scripted.requests() >= 2 * many);
        assert!(schemas.lock().ids.len() <= MAX_REFUSED + 1, "{}", schemas.lock().ids.len());
    }

    #[test]
    fn the_thread_ends_with_the_schemas() {
        let (scripted, schemas) = schemas(UnknownId::Hold);
        schemas.find(7);
        until(|| scripted.requests() > 1);
        let weak = Arc::downgrade(&schemas);
        drop(schemas);
        until(|| weak.strong_count() == 0);
        let requests = scripted.requests();
        std::thread::sleep(Duration::from_millis(60));
        assert!(scripted.requests() <= requests + 1);
    }
}
