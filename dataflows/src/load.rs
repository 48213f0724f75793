//! What a worker's keyed operators hold: counts to be looked at from outside the dataflow.

use std::cell::Cell;
use std::rc::Rc;

/// What the keyed operators behind one [`admit`](crate::Admit::admit) hold on this worker, as of its last step.
#[derive(Clone, Debug, Default)]
pub struct Load(Rc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    keys: Cell<usize>,
    open_windows: Cell<usize>,
}

impl Load {
    /// How many keys there are.
    pub fn keys(&self) -> usize {
        self.0.keys.get()
    }

    /// How many windows are not final, over all keys and window operators.
    pub fn open_windows(&self) -> usize {
        self.0.open_windows.get()
    }

    /// Of some keys, `before` were known and now `after` are.
    pub(crate) fn keys_changed(&self, before: usize, after: usize) {
        self.0.keys.set(self.0.keys.get() + after - before);
    }

    /// Of an operator's windows, `before` were open and now `after` are.
    pub(crate) fn windows(&self, before: usize, after: usize) {
        self.0.open_windows.set(self.0.open_windows.get() + after - before);
    }
}

#[cfg(test)]
mod tests {
    use differential_dataflow::input::InputSession;

    use crate::testing::Line;
    use crate::windows::{Refresh, Session, Statistics, Tumbling};
    use crate::{Admission, Admit, Clock, Epoch, EventTime};

    #[test]
    fn keys_stay_and_windows_count_until_they_are_final() {
        timely::execute_directly(|worker| {
            let (mut events, mut clock, load) = worker.dataflow::<Epoch, _, _>(|scope| {
                let mut events = InputSession::new();
                let (clock, control) = Clock::new(scope);
                let (keyed, _) = events.to_collection(scope).admit(control, Admission::default());
                let load = keyed.load();
                let count = || Statistics::new(|_: &Line| None, |_: &Line| None);
                keyed.clone().tumbling("Tumbling", 60, Refresh::Final, count(), |row| row.window.start.0);
                keyed.session("Session", 30, Refresh::Final, count(), |row| row.window.start.0);
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
            // The first two sessions of ann become one.
            assert_eq!(holds(&[("ann", 30, 4)], 5), (2, 3 + 2));
            assert_eq!(holds(&[], 59), (2, 2 + 2), "the window that ends at 60 is final");
            assert_eq!(holds(&[("bob", 20, 5)], i64::MAX), (2, 0), "a late event opens nothing");
        });
    }
}
