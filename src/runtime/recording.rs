//! Recording: bound epochs become durable in the ledger before any sink may commit them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use headwater_dataflows::{Control, ControlStream, Epoch};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;
use timely::scheduling::activate::SyncActivator;

use super::failure::Failure;
use crate::coordination::EpochRecord;
use crate::ledger::{Ledger, LedgerError};

/// How many epochs one round may hold: what the queue has, but not for ever.
const ROUND: usize = 4096;

/// Worker 0's end of the thread that writes the ledger.
pub struct LedgerHandle {
    sender: Sender<EpochRecord>,
    shared: Arc<Shared>,
}

struct Shared {
    /// The last epoch that is durable.
    durable: AtomicU64,
    activator: Mutex<Option<SyncActivator>>,
}

impl LedgerHandle {
    /// Gives an epoch to be recorded. A writer that has failed takes everything: the run is about to end.
    pub fn record(&self, record: EpochRecord) {
        let _ = self.sender.send(record);
    }

    /// What tells how far the ledger is.
    pub fn durable(&self) -> Durable {
        Durable(Arc::clone(&self.shared))
    }
}

/// Tells how far the ledger is.
pub struct Durable(Arc<Shared>);

/// Starts the thread that writes the ledger, which has everything through `durable`. It ends when the handle is gone.
pub fn spawn(
    mut ledger: Box<dyn Ledger>,
    durable: Epoch,
    failure: Failure,
) -> std::io::Result<(LedgerHandle, JoinHandle<()>)> {
    let (sender, receiver) = channel();
    let shared = Arc::new(Shared { durable: AtomicU64::new(durable.0), activator: Mutex::default() });
    let handle = LedgerHandle { sender, shared: Arc::clone(&shared) };
    let thread = std::thread::Builder::new().name("ledger".into()).spawn(move || {
        if let Err(error) = write(&mut *ledger, &receiver, &shared) {
            failure.report(error.into());
        }
    })?;
    Ok((handle, thread))
}

fn write(
    ledger: &mut dyn Ledger,
    receiver: &Receiver<EpochRecord>,
    shared: &Shared,
) -> Result<(), LedgerError> {
    while let Ok(first) = receiver.recv() {
        let mut round = vec![first];
        round.extend(receiver.try_iter().take(ROUND - 1));
        ledger.append(&round)?;
        shared.durable.store(round[round.len() - 1].epoch.0, Ordering::Release);
        if let Some(activator) = &*shared.activator.lock().expect("no holder of the lock panics") {
            // A worker that has shut down needs no waking.
            let _ = activator.activate();
        }
    }
    Ok(())
}

/// A stream without data whose frontier is behind every epoch of `control` that is not durable. `control` comes from
/// worker 0 alone, which has `durable`; elsewhere, and without a ledger, nothing is held.
pub fn durable<'scope>(
    control: ControlStream<'scope>,
    durable: Option<Durable>,
) -> StreamVec<'scope, Epoch, ()> {
    let scope = control.scope();
    control.unary_frontier::<CapacityContainerBuilder<Vec<()>>, _, _, _>(
        Pipeline,
        "Record",
        move |capability, info| {
            drop(capability);
            if let Some(Durable(shared)) = &durable {
                let activator = scope.worker().sync_activator_for(info.address.to_vec());
                *shared.activator.lock().expect("no holder of the lock panics") = Some(activator);
            }
            let mut open = BTreeMap::new();
            move |(input, _), _output| {
                input.for_each(|stamp, data: &mut Vec<Control>| {
                    data.clear();
                    let epoch = *stamp.least().expect("control travels with a time");
                    if durable.is_some() {
                        open.entry(epoch).or_insert_with(|| stamp.delayed(&epoch, 0));
                    }
                });
                if let Some(Durable(shared)) = &durable {
                    open = open.split_off(&Epoch(shared.durable.load(Ordering::Acquire)).next());
                }
            }
        },
    )
}
