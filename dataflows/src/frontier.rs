//! What a frontier says about an epoch, and control messages that wait for it.

use std::collections::BTreeMap;

use timely::progress::frontier::MutableAntichain;

use crate::{Control, Epoch, EventTime};

/// Whether everything of `epoch` has arrived.
pub(crate) fn passed(frontier: &MutableAntichain<Epoch>, epoch: Epoch) -> bool {
    !frontier.less_equal(&epoch)
}

/// Whether everything before `epoch` has arrived.
pub(crate) fn reached(frontier: &MutableAntichain<Epoch>, epoch: Epoch) -> bool {
    !frontier.less_than(&epoch)
}

/// Watermarks that have arrived and not been looked at.
#[derive(Default)]
pub(crate) struct Watermarks(BTreeMap<Epoch, EventTime>);

impl Watermarks {
    pub fn insert(&mut self, epoch: Epoch, control: Control) {
        self.0.insert(epoch, control.watermark);
    }

    /// The latest watermark of the epochs before `epoch`, unless it was taken before.
    pub fn take_before(&mut self, epoch: Epoch) -> Option<EventTime> {
        let later = self.0.split_off(&epoch);
        std::mem::replace(&mut self.0, later).pop_last().map(|(_, watermark)| watermark)
    }
}
