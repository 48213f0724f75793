//! Delivery: a worker's outputs go to the writer of a sink; their epochs stay open until it has committed them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use headwater_dataflows::Epoch;
use headwater_sinks::Changes;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;

use super::writer::{Delivered, WriterHandle};

/// How soon to try again when the writer's queue is full.
const RETRY: Duration = Duration::from_millis(1);

/// Hands each epoch's changes to the writer once they are complete, and lets it commit them once the frontier of
/// `durable` has passed the epoch, too. An epoch with empty changes has it commit its progress. What the sink has taken
/// before, through `committed_through`, it is not given again. The frontier of the stream that comes out is what the sink has
/// committed; nothing flows in it.
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
            // As long as it is held the operator lives, whatever is still to be sent.
            let mut held = Some(capability);
            let activator = scope.activator_for(info.address.clone());
            writer.wakes(worker, scope.worker().sync_activator_for(info.address.to_vec()));
            // Capabilities of epochs whose outputs are not committed; the outputs themselves until they are sent.
            let mut open: BTreeMap<Epoch, Capability<Epoch>> = BTreeMap::new();
            let mut gathered: BTreeMap<Epoch, Vec<Changes>> = BTreeMap::new();
            let mut unsent: VecDeque<Delivered> = VecDeque::new();
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
                        unsent.push_back(Delivered::Changes { epoch, changes });
                    }
                    complete = reached;
                }
                let durable = durable.frontier().first().copied();
                let reached = complete.into_iter().chain(durable).min();
                if reached != announced {
                    unsent.push_back(Delivered::Frontier { worker, reached });
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
