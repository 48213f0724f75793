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

use super::writer::{Delivery, WriterHandle};

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
