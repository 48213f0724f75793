//! Changes of rules and lists: requested by any thread, bound to an epoch by worker 0, and announced to every worker.
//!
//! ```text
//!   API, watcher, reader of a list ─▶ ChangeRequests ─▶ Bind, with the epoch's record ─▶ Notice, broadcast ─▶ Apply ─▶ control
//! ```
//!
//! `Apply` runs on every worker before its operators see the epoch's control message, so before they evaluate an event of
//! a later epoch. The position of an event says to which epochs it belongs, so it does not matter how far the operators
//! are then.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard};

use headwater_dataflows::{Control, ControlStream, Epoch, EventTime, Since};
use headwater_sinks::crash;
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;

use crate::coordination::{Change, InForce, StoredPasts};
use crate::pipeline::{LiveRules, RulePlan};

/// The contents of a list, or the pasts of rules, by their SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// The SHA-256.
    pub hash: [u8; 32],
    /// The contents, which the workers of a process share.
    #[serde(with = "shared")]
    pub bytes: Arc<Vec<u8>>,
}

/// Bytes that are shared within a process, and copied to another one.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(bytes: &Arc<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        (**bytes).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Vec<u8>>, D::Error> {
        Vec::deserialize(deserializer).map(Arc::new)
    }
}

/// A request to change what later events are judged by.
pub struct ChangeRequest {
    /// Makes the change, given where it begins.
    pub make: Box<dyn FnOnce(&Since) -> Change + Send>,
    /// The contents of the lists in the change, and the pasts of its rules.
    pub contents: Vec<Contents>,
    /// Receives the change once its epoch is durable, so that no start can do without it.
    pub bound: SyncSender<InForce>,
}

impl ChangeRequest {
    /// Returns the request that these rules come into force. `file` is the identity of the rules of the configuration, if
    /// these are they.
    pub fn of_rules(
        live: &LiveRules,
        rules: Vec<RulePlan>,
        file: Option<u64>,
        bound: SyncSender<InForce>,
    ) -> ChangeRequest {
        let live = live.clone();
        let make = move |since: &Since| {
            let text = live.bind(rules, file, since).to_text();
            Change { rules: Some(text), ..Change::default() }
        };
        ChangeRequest { make: Box::new(make), contents: Vec::new(), bound }
    }

    /// Returns the request that rules enter that wait, by the ids of their states: with their pasts up to a time, or without.
    /// It changes nothing if they wait no more.
    pub fn of_entry(
        live: &LiveRules,
        ids: Vec<u64>,
        pasts: Option<(EventTime, Contents)>,
        bound: SyncSender<InForce>,
    ) -> ChangeRequest {
        let live = live.clone();
        let (after, contents) = pasts.unzip();
        let stored = contents
            .as_ref()
            .map(|Contents { hash, bytes }| StoredPasts { hash: *hash, bytes: bytes.len() as u64 });
        let make = move |since: &Since| match live.bind_entry(&ids, after.map(|after| after.0), since) {
            Some(set) => Change { rules: Some(set.to_text()), pasts: stored, ..Change::default() },
            None => Change::default(),
        };
        ChangeRequest { make: Box::new(make), contents: contents.into_iter().collect(), bound }
    }
}

/// The requests that are not bound yet. Clones share them.
#[derive(Clone, Default)]
pub struct ChangeRequests(Arc<Mutex<Requests>>);

#[derive(Default)]
struct Requests {
    unbound: Vec<ChangeRequest>,
    /// True once the run has ended, which binds no more.
    is_ended: bool,
}

impl ChangeRequests {
    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.0.lock().expect("no thread panics while it holds the lock")
    }

    /// Adds a request. Its sender is dropped if the run ends without binding it.
    pub fn add(&self, request: ChangeRequest) {
        let mut requests = self.lock();
        if !requests.is_ended {
            requests.unbound.push(request);
        }
        drop(requests);
        crash::point("rules.requested");
    }

    /// Drops all requests, those to come included: the run has ended.
    pub fn end(&self) {
        let mut requests = self.lock();
        (requests.unbound, requests.is_ended) = (Vec::new(), true);
    }

    /// Binds all requests to an epoch: makes one change of them, in order, with the contents of its lists. Returns None if
    /// there are none.
    pub fn bind(&self, since: impl FnOnce() -> Since) -> Option<BoundChange> {
        let requests = std::mem::take(&mut self.lock().unbound);
        if requests.is_empty() {
            return None;
        }
        Some(bind_all(requests, since()))
    }
}

/// Makes one change of requests, in order, with its contents.
pub fn bind_all(requests: Vec<ChangeRequest>, since: Since) -> BoundChange {
    let (mut all, mut contents, mut waiting) = (Change::default(), Vec::new(), Vec::new());
    for ChangeRequest { make, contents: of_request, bound } in requests {
        let Change { rules, lists, pasts } = make(&since);
        (all.rules, all.pasts) = (rules.or(all.rules), pasts.or(all.pasts));
        all.lists.retain(|before| lists.iter().all(|list| list.name != before.name));
        all.lists.extend(lists);
        contents.extend(of_request);
        waiting.push(bound);
    }
    contents.retain(|contents| all.hashes().any(|hash| hash == contents.hash));
    crash::point("rules.bound");
    BoundChange { in_force: InForce { since, change: all }, contents, waiting }
}

/// Answers those who asked for a change.
pub type Answer = Box<dyn FnOnce() + Send>;

/// The change that is bound to an epoch.
pub struct BoundChange {
    /// The change.
    pub in_force: InForce,
    /// The contents of its lists.
    pub contents: Vec<Contents>,
    /// Those who asked for it.
    waiting: Vec<SyncSender<InForce>>,
}

impl BoundChange {
    /// Returns a change without those who asked for it, and a function that answers them.
    pub fn split(self) -> (Option<(InForce, Vec<Contents>)>, Answer) {
        let BoundChange { in_force, contents, waiting } = self;
        let answer = in_force.clone();
        let change = (!in_force.change.is_empty()).then_some((in_force, contents));
        // Who asked may have given up.
        (change, Box::new(move || waiting.iter().for_each(|bound| _ = bound.try_send(answer.clone()))))
    }
}

/// A message of worker 0 to all workers at the end of an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The watermark and the mark.
    pub control: Control,
    /// The change that is in force from the next epoch on, and the contents of its lists that are new.
    pub change: Option<(InForce, Vec<Contents>)>,
}

/// Applies the changes in notices on this worker, and passes on the control messages.
pub fn apply<'scope>(
    notices: StreamVec<'scope, Epoch, Notice>,
    mut change: impl FnMut(&InForce, &[Contents]) + 'static,
) -> ControlStream<'scope> {
    notices.unary::<CapacityContainerBuilder<Vec<Control>>, _, _, _>(Pipeline, "Apply", |capability, _| {
        drop(capability);
        move |input, output| {
            input.for_each(|stamp, data| {
                let controls = data.drain(..).map(|notice| {
                    if let Some((in_force, contents)) = &notice.change {
                        change(in_force, contents);
                    }
                    notice.control
                });
                output.session(&stamp).give_iterator(controls);
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;

    fn request(requests: &ChangeRequests, rules: &str) -> Receiver<InForce> {
        let (bound, answers) = sync_channel(1);
        let change = Change { rules: Some(rules.to_owned()), ..Change::default() };
        requests.add(ChangeRequest { make: Box::new(|_| change), contents: Vec::new(), bound });
        answers
    }

    #[test]
    fn the_last_request_of_an_epoch_comes_into_force() {
        let requests = ChangeRequests::default();
        let answers = ["a", "b"].map(|rules| request(&requests, rules));
        let bound = requests.bind(Since::beginning).expect("a change");
        let (change, answer) = bound.split();
        assert_eq!(change.expect("a change").0.change.rules.as_deref(), Some("b"));
        assert!(answers.iter().all(|answers| answers.try_recv().is_err()), "it is not durable");
        answer();
        for answers in answers {
            assert_eq!(answers.recv().expect("answered").change.rules.as_deref(), Some("b"));
        }
        assert!(requests.bind(Since::beginning).is_none());
    }

    #[test]
    fn nobody_waits_for_a_run_that_has_ended() {
        let requests = ChangeRequests::default();
        let before = request(&requests, "a");
        requests.end();
        let after = request(&requests, "b");
        assert!(before.recv().is_err() && after.recv().is_err());
        assert!(requests.bind(Since::beginning).is_none());
    }
}
