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
            // The capabilities of epochs that are not committed, and the changes that are not yet sent.
            let mut open: BTreeMap<Epoch, Capability<Epoch>> = BTreeMap::new();
            let mut gathered: BTreeMap<Epoch, Vec<Changes>> = BTreeMap::new();
            let mut unsent: VecDeque<Delivery> = VecDeque::new();
            let mut complete = Some(Epoch(0));
            let mut announced = Some(Epoch(0));
            move |(input, frontier), (nothing, durable), _output| {
                nothing.for_each(|_, _| {});
                input.for_each(|stamp, data| {
                    for (epoch, changes) in data.drain(..) {
                        if committed_through.is_some_and(|committed_through| epoch <= committed_through) {
                            continue;
                        }
                        open.entry(epoch).or_insert_with(|| stamp.delayed(&epoch, 0));
                        let gathered = gathered.entry(epoch).or_default();
                        gathered.extend((!changes.is_empty()).then_some(changes));
                    }
                });
                let reached = frontier.frontier().first().copied();
                if reached != complete {
                    let later = reached.map_or_else(BTreeMap::new, |reached| gathered.split_off(&reached));
                    for (epoch, changes) in std::mem::replace(&mut gathered, later) {
                        unsent.push_back(Delivery::Changes { epoch, changes });
                    }
                    complete = reached;
                }
                let durable = durable.frontier().first().copied();
                let reached = complete.into_iter().chain(durable).min();
                if reached != announced {
                    unsent.push_back(Delivery::Frontier { worker, reached });
                    announced = reached;
                    if let (Some(held), Some(reached)) = (&mut held, reached) {
                        held.downgrade(&reached);
                    }
                }
                while let Some(next) = unsent.pop_front() {
                    if let Err(back) = writer.send(next) {
                        unsent.push_front(back);
                        activator.activate_after(RETRY);
                        break;
                    }
                }
                if announced.is_none() && unsent.is_empty() {
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
