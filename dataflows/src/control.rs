//! The control stream: what every worker must know about an epoch beside its events.

use serde::{Deserialize, Serialize};
use timely::dataflow::operators::vec::input::Handle;
use timely::dataflow::operators::vec::{Broadcast, Input};
use timely::dataflow::{Scope, StreamVec};

use crate::{Epoch, EventTime};

/// What holds at the end of an epoch, on every worker alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Control {
    /// The watermark W(e): no event at or below it is accepted in a later epoch.
    pub watermark: EventTime,
    /// Whether operators that can are to capture their state as it is at the end of this epoch.
    pub checkpoint: bool,
}

/// A stream that carries, on every worker, the same one [`Control`] for each epoch that has any.
pub type ControlStream<'scope> = StreamVec<'scope, Epoch, Control>;

/// Sets the watermark by hand: for tests, examples and programs that know their own time.
///
/// One worker advances it; the control stream reaches all.
pub struct Clock {
    input: Handle<Epoch, Control>,
}

impl Clock {
    /// A clock and the control stream that it drives.
    pub fn new<'scope>(scope: Scope<'scope, Epoch>) -> (Clock, ControlStream<'scope>) {
        let (input, stream) = scope.new_input();
        (Clock { input }, stream.broadcast())
    }

    /// Ends the current epoch with this watermark, and goes on to the next one.
    pub fn end_epoch(&mut self, watermark: EventTime) {
        self.end(Control { watermark, checkpoint: false });
    }

    /// As [`end_epoch`](Clock::end_epoch), and asks for a checkpoint of the epoch.
    pub fn checkpoint(&mut self, watermark: EventTime) {
        self.end(Control { watermark, checkpoint: true });
    }

    fn end(&mut self, control: Control) {
        self.input.send(control);
        self.advance_to(self.input.time().next());
    }

    /// Goes on to `epoch` without a word about those in between.
    pub fn advance_to(&mut self, epoch: Epoch) {
        self.input.advance_to(epoch);
        self.input.flush();
    }
}
