//! The evaluation of one side of a backtest: the rules in force, or the candidate's.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::mpsc::Receiver;

use super::store::Store;
use crate::outputs::RecentAlert;
use crate::pipeline::{EpochResults, Plan, VirtualRun};
use crate::runtime::rereading::EpochInput;

/// A side of a backtest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The rules in force.
    Before,
    /// The rules of the candidate.
    After,
}

impl Side {
    /// Both sides.
    pub const ALL: [Side; 2] = [Side::Before, Side::After];

    /// Returns the name in reports and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Side::Before => "before",
            Side::After => "after",
        }
    }
}

/// The events that admission has refused, by reason.
pub type Refused = BTreeMap<String, u64>;

/// Evaluates the rules of a plan over epochs until their sender is dropped, and stores the alerts whose event times lie in
/// `times`. Memory is that of the operators: alerts are written after each epoch.
///
/// # Errors
/// If the alerts cannot be written.
pub fn evaluate(
    plan: &Plan,
    epochs: &Receiver<EpochInput>,
    times: &Range<i64>,
    store: &Mutex<Store>,
    side: Side,
) -> anyhow::Result<Refused> {
    let mut run = VirtualRun::new(plan);
    let mut refused = Refused::new();
    while let Ok(EpochInput { events, watermark }) = epochs.recv() {
        let EpochResults { alerts, refused: letters } = run.arrive_with_watermark(events, watermark);
        for letter in letters {
            *refused.entry(letter.reason).or_default() += 1;
        }
        let is_within = |change: &&RecentAlert| times.contains(&change.alert.event_time.0);
        let changes: Vec<_> = alerts.iter().filter(is_within).collect();
        if !changes.is_empty() {
            store.lock().expect("no holder of the lock panics").write(side, &changes)?;
        }
    }
    Ok(refused)
}
