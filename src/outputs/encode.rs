//! From collections to sinks: consolidates the changes of an epoch, encodes each once, and splits them by sink.

use std::collections::BTreeMap;
use std::sync::Arc;

use differential_dataflow::{Data, VecCollection, consolidation};
use headwater_dataflows::Epoch;
use headwater_sinks::Changes;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::{Operator, OutputBuilder};

use super::{EncodedOutputs, Output, SinkRoute, Status, encode_for_sinks};

/// An output that can have several versions. Its order compares the identity first.
pub trait Identity {
    /// Returns true if both are versions of the same output.
    fn is_version_of(&self, other: &Self) -> bool;
}

/// Encodes the changes of each epoch for every sink that accepts them: for each output its latest version, or its
/// removal. Calls `observe` for each.
pub fn encode_outputs<'scope, O: Output + Identity + Data>(
    name: &str,
    collection: VecCollection<'scope, Epoch, O>,
    routes: Arc<[SinkRoute]>,
    mut observe: impl FnMut(&O, Epoch, Status) + 'static,
) -> StreamVec<'scope, Epoch, (Epoch, EncodedOutputs)> {
    let mut epochs = BTreeMap::new();
    collection.inner.unary_frontier::<CapacityContainerBuilder<Vec<(Epoch, EncodedOutputs)>>, _, _, _>(
        Pipeline,
        name,
        move |capability, _| {
            drop(capability);
            move |(input, frontier), output| {
                input.for_each(|stamp, data| {
                    let epoch = *stamp.least().expect("data travels with a time");
                    let (_, updates) =
                        epochs.entry(epoch).or_insert_with(|| (stamp.delayed(&epoch, 0), Vec::new()));
                    updates.extend(data.drain(..).map(|(output, _, diff)| (output, diff)));
                });
                while let Some(first) = epochs.first_entry().filter(|first| !frontier.less_equal(first.key()))
                {
                    let (epoch, (capability, mut updates)) = first.remove_entry();
                    consolidation::consolidate(&mut updates);
                    let mut encoded = EncodedOutputs::new();
                    for versions in updates.chunk_by(|a: &(O, isize), b| a.0.is_version_of(&b.0)) {
                        let latest = versions.iter().rfind(|(_, diff)| *diff > 0);
                        let (output, status) = match latest {
                            Some((output, _)) => (output, Status::Raised),
                            None => (&versions[0].0, Status::Revoked),
                        };
                        observe(output, epoch, status);
                        encode_for_sinks(output, epoch, status, &routes, &mut encoded);
                    }
                    output.session(&capability).give((epoch, encoded));
                }
            }
        },
    )
}

/// Splits encoded changes by sink.
pub fn split_by_sink<'scope>(
    encoded: StreamVec<'scope, Epoch, (Epoch, EncodedOutputs)>,
    sinks: usize,
) -> Vec<StreamVec<'scope, Epoch, (Epoch, Changes)>> {
    let mut builder = OperatorBuilder::new("Part by sink".to_owned(), encoded.scope());
    let mut input = builder.new_input(encoded, Pipeline);
    let (mut outputs, streams): (Vec<_>, Vec<_>) = (0..sinks)
        .map(|_| {
            let (output, stream) = builder.new_output();
            (OutputBuilder::<_, CapacityContainerBuilder<Vec<(Epoch, Changes)>>>::from(output), stream)
        })
        .unzip();
    builder.build(move |capabilities| {
        drop(capabilities);
        move |_frontiers| {
            input.for_each(|stamp, data| {
                let epoch = *stamp.least().expect("data travels with a time");
                for (encoded_epoch, encoded) in data.drain(..) {
                    debug_assert_eq!(epoch, encoded_epoch);
                    for (sink, changes) in
                        encoded.into_iter().enumerate().filter(|(_, changes)| !changes.is_empty())
                    {
                        let capability = stamp.delayed(&epoch, sink);
                        outputs[sink].activate().session(&capability).give((epoch, changes));
                    }
                }
            });
        }
    });
    streams
}
