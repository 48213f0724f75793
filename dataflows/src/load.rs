//! Counts of the keys and windows that the keyed operators of a worker hold, readable from outside the dataflow.

use std::cell::Cell;
use std::rc::Rc;

/// The counts of the keys and windows that the operators of one [`admit`](crate::Admit::admit) hold on this worker, as
/// of its last step.
#[derive(Clone, Debug, Default)]
pub struct Load(Rc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    keys: Cell<usize>,
    open_windows: Cell<usize>,
}

impl Load {
    /// Returns the number of keys.
    pub fn keys(&self) -> usize {
        self.0.keys.get()
    }

    /// Returns the number of un-final windows, over all keys and window operators.
    pub fn open_windows(&self) -> usize {
        self.0.open_windows.get()
    }

    /// Replaces `before` keys in the count by `after` keys.
    pub(crate) fn keys_changed(&self, before: usize, after: usize) {
        self.0.keys.set(self.0.keys.get() + after - before);
    }

    /// Replaces `before` open windows in the count by `after` open windows.
    pub(crate) fn windows(&self, before: usize, after: usize) {
        self.0.open_windows.set(self.0.open_windows.get() + after - before);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use differential_dataflow::input::InputSession;

    use crate::testing::Line;
    use crate::windows::{EmitPolicy, Session, Statistics, Tumbling};
    use crate::{Admission, Admit, Clock, Epoch, EventTime};

    #[test]
    fn windows_are_counted_until_they_are_final() {
        assert_eq!(rows_of_counted_windows(EmitPolicy::Final), 3 + 2);
        assert_eq!(rows_of_counted_windows(EmitPolicy::Never), 0);
    }

    /// Returns the number of emitted rows.
    fn rows_of_counted_windows(emit: EmitPolicy) -> usize {
        timely::execute_directly(move |worker| {
            let rows = Rc::new(Cell::new(0));
            let (of_tumbling, of_sessions) = (Rc::clone(&rows), Rc::clone(&rows));
            let (mut events, mut clock, load) = worker.dataflow::<Epoch, _, _>(|scope| {
                let mut events = InputSession::new();
                let (clock, control) = Clock::new(scope);
                let (keyed, _) = events.to_collection(scope).admit(control, Admission::default());
                let load = keyed.load();
                let count = || Statistics::new(|_: &Line| None, |_: &Line| None);
                let tumbling =
                    keyed.clone().tumbling("Tumbling", 60, emit, count(), |row| row.window.start.0);
                tumbling.inspect(move |_| of_tumbling.set(of_tumbling.get() + 1));
                let sessions = keyed.session("Session", 30, emit, count(), |row| row.window.start.0);
                sessions.inspect(move |_| of_sessions.set(of_sessions.get() + 1));
                (events, clock, load)
            });
            let mut epoch = Epoch(0);
            let mut holds = |lines: &[(&'static str, i64, i64)], watermark| {
                for &(key, time, offset) in lines {
                    events.insert(Line::from((key, time, offset, "id")));
                }
                epoch = epoch.next();
                events.advance_to(epoch);
                events.flush();
                clock.end_epoch(EventTime(watermark));
                for _ in 0..20 {
                    worker.step();
                }
                (load.keys(), load.open_windows())
            };
            let lines = [("ann", 10, 0), ("ann", 50, 1), ("ann", 70, 2), ("bob", 80, 3)];
            assert_eq!(holds(&lines, 5), (2, 3 + 3));
            // The first two sessions of ann are merged.
            assert_eq!(holds(&[("ann", 30, 4)], 5), (2, 3 + 2));
            assert_eq!(holds(&[], 59), (2, 2 + 2), "the window that ends at 60 is final");
            assert_eq!(holds(&[("bob", 20, 5)], i64::MAX), (2, 0), "a late event opens no window");
            rows.get()
        })
    }
}
