//! Delivery: sends a worker's outputs to the writer of a sink, and keeps their epochs open until they are committed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use headwater_dataflows::Epoch;
use headwater_sinks::Changes;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;

use crate::runtime::commit::sink_writer::{Delivery, WriterHandle};

/// The time until the next attempt when the writer's queue is full.
const RETRY: Duration = Duration::from_millis(1);

/// Sends the changes of each complete epoch to the writer. The writer commits them once the frontier of `durable` has
/// passed the epoch, too; for an epoch with empty changes it commits its progress. Epochs that the sink has already
/// committed, through `committed_through`, are dropped. The returned stream has no data; its frontier is what the sink
/// has committed.
pub fn deliver<'scope>(
    changes: StreamVec<'scope, Epoch, (Epoch, Changes)>,
    durable: StreamVec<'scope, Epoch, ()>,
    writer: WriterHandle,
) -> StreamVec<'scope, Epoch, ()> {
    let scope = changes.scope();
    let worker = scope.index();
    let name = format!("Deliver: {}", writer.sink());
    let committed_through = writer.committed_through();
    changes.binary_frontier::<_, CapacityContainerBuilder<Vec<()>>, _, _, _, _>(
        durable,
        Pipeline,
        Pipeline,
        &name,
        move |capability, info| {
            // Keeps the operator alive until everything is sent.
            let mut held = Some(capability);
            let activator = scope.activator_for(info.address.clone());
            writer.add_activator(worker, scope.worker().sync_activator_for(info.address.to_vec()));
            // The capabilities of epochs that are not committed.
            let mut open: BTreeMap<Epoch, Capability<Epoch>> = BTreeMap::new();
            let mut outbox = Outbox::new(worker);
            move |(input, frontier), (nothing, durable), _output| {
                nothing.for_each(|_, _| {});
                input.for_each(|stamp, data| {
                    for (epoch, changes) in data.drain(..) {
                        if committed_through.is_some_and(|committed_through| epoch <= committed_through) {
                            continue;
                        }
                        open.entry(epoch).or_insert_with(|| stamp.delayed(&epoch, 0));
                        outbox.add(epoch, changes);
                    }
                });
                outbox.complete(frontier.frontier().first().copied());
                if outbox.announce(durable.frontier().first().copied())
                    && let (Some(held), Some(reached)) = (&mut held, outbox.announced)
                {
                    held.downgrade(&reached);
                }
                if !outbox.send(&writer) {
                    activator.activate_after(RETRY);
                } else if outbox.announced.is_none() {
                    held = None;
                }
                open = match writer.committed() {
                    None => BTreeMap::new(),
                    Some(committed) => open.split_off(&committed),
                };
            }
        },
    )
}

/// The messages of a worker to a writer.
struct Outbox {
    worker: usize,
    /// The changes of epochs that are not complete.
    gathered: BTreeMap<Epoch, Vec<Changes>>,
    /// The messages that the writer's queue had no room for.
    unsent: VecDeque<Delivery>,
    /// The first epoch that may have further changes.
    complete: Option<Epoch>,
    /// The frontier that the writer was sent last.
    announced: Option<Epoch>,
}

impl Outbox {
    fn new(worker: usize) -> Outbox {
        let start = Some(Epoch(0));
        let (gathered, unsent) = (BTreeMap::new(), VecDeque::new());
        Outbox { worker, gathered, unsent, complete: start, announced: start }
    }

    /// Adds changes of an epoch that is not complete; may be empty.
    fn add(&mut self, epoch: Epoch, changes: Changes) {
        let gathered = self.gathered.entry(epoch).or_default();
        gathered.extend((!changes.is_empty()).then_some(changes));
    }

    /// Queues the changes of the epochs before `reached`, which are complete.
    fn complete(&mut self, reached: Option<Epoch>) {
        if reached == self.complete {
            return;
        }
        let later = reached.map_or_else(BTreeMap::new, |reached| self.gathered.split_off(&reached));
        for (epoch, changes) in std::mem::replace(&mut self.gathered, later) {
            self.unsent.push_back(Delivery::Changes { epoch, changes });
        }
        self.complete = reached;
    }

    /// Queues the frontier before which all epochs are complete, and durable before `durable`. Returns true if it has
    /// advanced.
    fn announce(&mut self, durable: Option<Epoch>) -> bool {
        let reached = self.complete.into_iter().chain(durable).min();
        if reached == self.announced {
            return false;
        }
        self.unsent.push_back(Delivery::Frontier { worker: self.worker, reached });
        self.announced = reached;
        true
    }

    /// Sends as many messages as the writer's queue has room for; returns true if none is left.
    fn send(&mut self, writer: &WriterHandle) -> bool {
        while let Some(next) = self.unsent.pop_front() {
            if let Err(back) = writer.send(next) {
                self.unsent.push_front(back);
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use timely::dataflow::operators::probe::{Handle as Frontier, Probe};
    use timely::dataflow::operators::vec::Input;
    use timely::dataflow::operators::vec::input::Handle;
    use timely::worker::Worker;

    use super::*;
    use crate::runtime::fakes::{rows, settle, worker};
    use crate::runtime::ingest::clock::committed;

    /// The operator, with a writer that the test plays.
    struct Fixture {
        worker: Worker,
        changes: Handle<Epoch, (Epoch, Changes)>,
        durable: Handle<Epoch, ()>,
        writer: WriterHandle,
        received: Receiver<Delivery>,
        behind: Frontier<Epoch>,
    }

    fn fixture(committed_through: Option<Epoch>) -> Fixture {
        let mut worker = worker();
        let (writer, received) = WriterHandle::detached("memory", committed_through);
        let behind = Frontier::new();
        let (changes, durable) = worker.dataflow(|scope| {
            let (changes, stream) = scope.new_input();
            let (durable, frontier) = scope.new_input();
            deliver(stream, frontier, writer.clone()).probe_with(&behind);
            (changes, durable)
        });
        Fixture { worker, changes, durable, writer, received, behind }
    }

    impl Fixture {
        /// Computes changes of the current epoch.
        fn send(&mut self, changes: Changes) {
            let epoch = *self.changes.time();
            self.changes.send((epoch, changes));
            self.changes.flush();
        }

        /// Advances both frontiers, and returns what the writer receives.
        fn reach(&mut self, complete: u64, durable: u64) -> Vec<Delivery> {
            self.changes.advance_to(Epoch(complete));
            self.durable.advance_to(Epoch(durable));
            self.received()
        }

        fn received(&mut self) -> Vec<Delivery> {
            settle(&mut self.worker);
            self.received.try_iter().collect()
        }
    }

    fn changes(epoch: u64, changes: impl Into<Vec<Changes>>) -> Delivery {
        Delivery::Changes { epoch: Epoch(epoch), changes: changes.into() }
    }

    fn frontier(reached: u64) -> Delivery {
        Delivery::Frontier { worker: 0, reached: Some(Epoch(reached)) }
    }

    #[test]
    fn changes_are_sent_when_their_epoch_is_complete() {
        let mut fixture = fixture(None);
        assert_eq!(fixture.reach(1, 9), [frontier(1)]);
        fixture.send(rows([10]));
        assert_eq!(fixture.received(), [], "epoch 1 may have further changes");
        fixture.send(rows([11]));
        fixture.changes.advance_to(Epoch(2));
        fixture.send(rows([12]));
        fixture.durable.advance_to(Epoch(9));
        assert_eq!(fixture.received(), [changes(1, [rows([10]), rows([11])]), frontier(2)]);
        assert_eq!(fixture.reach(3, 9), [changes(2, [rows([12])]), frontier(3)]);
    }

    #[test]
    fn an_epoch_is_announced_only_once_it_is_durable() {
        let mut fixture = fixture(None);
        fixture.reach(1, 1);
        fixture.send(rows([10]));
        assert_eq!(fixture.reach(2, 1), [changes(1, [rows([10])])], "it is staged and not committed");
        assert_eq!(fixture.reach(5, 2), [frontier(2)]);
        assert_eq!(fixture.reach(5, 9), [frontier(5)]);
    }

    #[test]
    fn an_epoch_stays_open_until_it_is_committed() {
        let mut fixture = fixture(None);
        fixture.reach(1, 1);
        fixture.send(rows([10]));
        fixture.reach(5, 5);
        let is_committed = |fixture: &Fixture, epoch| committed(&fixture.behind, Epoch(epoch));
        assert!(is_committed(&fixture, 0) && !is_committed(&fixture, 1));
        fixture.writer.set_committed(Some(Epoch(1)));
        settle(&mut fixture.worker);
        assert!(!is_committed(&fixture, 1), "epoch 0 only");
        fixture.writer.set_committed(Some(Epoch(2)));
        settle(&mut fixture.worker);
        assert!(is_committed(&fixture, 4) && !is_committed(&fixture, 5), "later epochs have no changes");
    }

    #[test]
    fn epochs_that_the_sink_has_are_not_sent_again() {
        let mut fixture = fixture(Some(Epoch(3)));
        for epoch in 2..=4 {
            fixture.changes.advance_to(Epoch(epoch));
            fixture.send(rows([epoch as i64]));
        }
        assert_eq!(fixture.reach(5, 5), [changes(4, [rows([4])]), frontier(5)]);
        assert!(committed(&fixture.behind, Epoch(3)), "they do not wait for a commit");
    }

    #[test]
    fn a_marked_epoch_is_sent_without_changes() {
        let mut fixture = fixture(None);
        fixture.reach(1, 1);
        fixture.send(Changes::default());
        assert_eq!(fixture.reach(2, 2), [changes(1, []), frontier(2)]);
        assert!(!committed(&fixture.behind, Epoch(1)), "its progress is not committed yet");
    }

    #[test]
    fn a_full_queue_delays_messages_and_keeps_their_order() {
        let mut fixture = fixture(None);
        let last = 400;
        for epoch in 1..=last {
            fixture.changes.advance_to(Epoch(epoch));
            fixture.send(rows([epoch as i64]));
        }
        let first = fixture.reach(last + 1, last + 1);
        assert!(first.len() < last as usize, "the queue is full");
        let mut all = first;
        while all.len() <= last as usize {
            let more = fixture.received();
            assert!(!more.is_empty(), "after {}", all.len());
            all.extend(more);
        }
        let expected = (1..=last).map(|epoch| changes(epoch, [rows([epoch as i64])]));
        assert!(all.into_iter().eq(expected.chain([frontier(last + 1)])));
    }

    #[test]
    fn the_operator_ends_once_all_is_sent_and_committed() {
        let mut fixture = fixture(None);
        fixture.reach(1, 1);
        fixture.send(rows([10]));
        let Fixture { mut worker, changes: input, durable, writer, received, behind } = fixture;
        input.close();
        durable.close();
        settle(&mut worker);
        let end = Delivery::Frontier { worker: 0, reached: None };
        assert_eq!(received.try_iter().collect::<Vec<_>>(), [changes(1, [rows([10])]), end]);
        assert!(!behind.done(), "epoch 1 is not committed");
        writer.set_committed(None);
        settle(&mut worker);
        assert!(behind.done());
    }
}
