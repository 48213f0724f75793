//! The control stream: watermarks and checkpoint requests, the same on every worker.

use serde::{Deserialize, Serialize};
use timely::dataflow::operators::vec::input::Handle;
use timely::dataflow::operators::vec::{Broadcast, Input};
use timely::dataflow::{Scope, StreamVec};

use crate::{Epoch, EventTime};

/// The control message of an epoch, the same on every worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Control {
    /// The watermark W(e) at the end of the epoch: no event at or below it is accepted in a later epoch.
    pub watermark: EventTime,
    /// True if the operators that can must capture their state at the end of this epoch.
    pub checkpoint: bool,
}

/// A stream with at most one [`Control`] for each epoch, the same on every worker.
pub type ControlStream<'scope> = StreamVec<'scope, Epoch, Control>;

/// A manually driven watermark, for tests, examples and programs that determine their own time.
///
/// One worker advances it. The control stream carries it to all workers.
pub struct Clock {
    input: Handle<Epoch, Control>,
}

impl Clock {
    /// Creates a clock and the control stream that it drives.
    pub fn new<'scope>(scope: Scope<'scope, Epoch>) -> (Clock, ControlStream<'scope>) {
        let (input, stream) = scope.new_input();
        (Clock { input }, stream.broadcast())
    }

    /// Ends the current epoch with this watermark, and starts the next one.
    pub fn end_epoch(&mut self, watermark: EventTime) {
        self.end(Control { watermark, checkpoint: false });
    }

    /// Like [`end_epoch`](Clock::end_epoch), and requests a checkpoint of the epoch.
    pub fn checkpoint(&mut self, watermark: EventTime) {
        self.end(Control { watermark, checkpoint: true });
    }

    fn end(&mut self, control: Control) {
        self.input.send(control);
        self.advance_to(self.input.time().next());
    }

    /// Advances to `epoch` without control messages for the epochs in between.
    pub fn advance_to(&mut self, epoch: Epoch) {
        self.input.advance_to(epoch);
        self.input.flush();
    }
}
