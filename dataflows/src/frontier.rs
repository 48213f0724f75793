//! Tests of a frontier against an epoch, and control messages that wait for the frontier.

use std::collections::BTreeMap;

use timely::progress::frontier::MutableAntichain;

use crate::{Control, Epoch, EventTime};

/// Returns true if all input of `epoch` has arrived.
pub(crate) fn passed(frontier: &MutableAntichain<Epoch>, epoch: Epoch) -> bool {
    !frontier.less_equal(&epoch)
}

/// Returns true if all input before `epoch` has arrived.
pub(crate) fn reached(frontier: &MutableAntichain<Epoch>, epoch: Epoch) -> bool {
    !frontier.less_than(&epoch)
}

/// Watermarks that have arrived and have not been processed.
#[derive(Default)]
pub(crate) struct Watermarks(BTreeMap<Epoch, EventTime>);

impl Watermarks {
    pub fn insert(&mut self, epoch: Epoch, control: Control) {
        self.0.insert(epoch, control.watermark);
    }

    /// Removes the watermarks of the epochs before `epoch` and returns the latest; `None` if there are none.
    pub fn take_before(&mut self, epoch: Epoch) -> Option<EventTime> {
        let later = self.0.split_off(&epoch);
        std::mem::replace(&mut self.0, later).pop_last().map(|(_, watermark)| watermark)
    }
}
