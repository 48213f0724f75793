//! Virtual time: events and watermarks one at a time, and what is raised and revoked in between.

use std::cell::RefCell;
use std::fmt::Debug;
use std::rc::Rc;

use differential_dataflow::input::InputSession;
use differential_dataflow::{Data, ExchangeData, VecCollection, consolidation};
use timely::WorkerConfig;
use timely::communication::Allocator;
use timely::communication::allocator::thread::Thread;
use timely::dataflow::ProbeHandle;
use timely::dataflow::operators::{Inspect, Probe};
use timely::worker::Worker;

use crate::{
    Admission, Admit, Clock, Emission, Epoch, Event, EventTime, Keyed, Offset, Partition, Pattern, Position,
    Scan,
};

/// A dataflow under test, driven by hand: push events, advance the watermark, and say what is expected.
///
/// Each push and each watermark is an epoch of its own, done with when the call returns. What has changed in the
/// result is kept until it is expected; [`finish`](Kit::finish) demands that nothing is left.
///
/// A pattern of one's own, tested:
///
/// ```
/// use headwater_dataflows::{Pattern, testing::{Kit, Line}};
///
/// /// Matches where the same thing happens twice in a row.
/// struct Twice;
///
/// impl Pattern<Line> for Twice {
///     type State = Option<String>;
///     type Undo = Option<String>;
///     type Match = String;
///     fn step(&self, last: &mut Option<String>, line: &Line) -> (Option<String>, Option<String>) {
///         let before = last.replace(line.id.clone());
///         ((*last == before).then(|| line.id.clone()), before)
///     }
///     fn undo(&self, last: &mut Option<String>, _: &Line, before: Option<String>) {
///         *last = before;
///     }
/// }
///
/// let mut kit = Kit::scan(Twice, |line: &Line, what| (line.time, what));
/// kit.push_at(10, Line::of("ann", "login"));
/// kit.push_at(30, Line::of("ann", "login"));
/// kit.expect_raised([(30, "login".to_owned())]);
/// kit.push_at(20, Line::of("ann", "logout")); // comes in between
/// kit.expect_revoked([(30, "login".to_owned())]);
/// kit.advance_watermark(25);
/// kit.push_at(25, Line::of("ann", "login"));
/// kit.expect_late([25]);
/// kit.finish();
/// ```
pub struct Kit<E: Event + Data, D: Data> {
    events: InputSession<Epoch, E, isize>,
    clock: Clock,
    epoch: Epoch,
    watermark: EventTime,
    /// How many events there have been: the place of the next one in the only partition.
    pushed: i64,
    probe: ProbeHandle<Epoch>,
    changes: Rc<RefCell<Vec<(D, Epoch, isize)>>>,
    late: Rc<RefCell<Vec<i64>>>,
    raised: Vec<D>,
    revoked: Vec<D>,
    worker: Worker,
}

impl<E: Event + ExchangeData, D: Data> Kit<E, D> {
    /// Builds a dataflow over admitted events, on one worker; nothing is deduplicated.
    pub fn new(build: impl for<'s> FnOnce(Keyed<'s, E>) -> VecCollection<'s, Epoch, D>) -> Kit<E, D> {
        let mut worker = Worker::new(WorkerConfig::default(), Allocator::Thread(Thread::default()), None);
        let probe = ProbeHandle::new();
        let changes: Rc<RefCell<Vec<(D, Epoch, isize)>>> = Rc::default();
        let late: Rc<RefCell<Vec<i64>>> = Rc::default();
        let (results, refusals) = (Rc::clone(&changes), Rc::clone(&late));
        let (events, clock) = worker.dataflow::<Epoch, _, _>(|scope| {
            let mut events: InputSession<Epoch, E, isize> = InputSession::new();
            let (clock, control) = Clock::new(scope);
            let (keyed, refused) = events.to_collection(scope).admit(control, Admission::default());
            refused
                .inner
                .inspect(move |(refused, _, _)| refusals.borrow_mut().push(refused.event.time().0))
                .probe_with(&probe);
            build(keyed)
                .inner
                .inspect(move |change: &(D, Epoch, isize)| results.borrow_mut().push(change.clone()))
                .probe_with(&probe);
            (events, clock)
        });
        Kit {
            events,
            clock,
            epoch: Epoch(0),
            watermark: EventTime::MIN,
            pushed: 0,
            probe,
            changes,
            late,
            raised: Vec::new(),
            revoked: Vec::new(),
            worker,
        }
    }

    /// Scans with a pattern; matches are raised at once, as what `result` makes of them.
    pub fn scan<P: Pattern<E>>(pattern: P, result: impl Fn(&E, P::Match) -> D + 'static) -> Kit<E, D> {
        Kit::new(|keyed| keyed.scan("Kit", pattern, Emission::Immediate, result))
    }

    /// Pushes an event that happens at `time`, in milliseconds. `event` makes it of its time and its place in the
    /// input, which is that of the call: of events at the same time the one pushed first comes first.
    pub fn push_at(&mut self, time: i64, event: impl FnOnce(EventTime, Position) -> E) {
        let position = Position { partition: Partition(0), offset: Offset(self.pushed) };
        self.pushed += 1;
        self.update(event(EventTime(time), position), 1);
    }

    /// Takes an event back that was pushed before.
    pub fn retract(&mut self, event: E) {
        self.update(event, -1);
    }

    /// Says that no event at or below `time`, in milliseconds, is to be expected. The watermark never goes back.
    pub fn advance_watermark(&mut self, time: i64) {
        self.watermark = self.watermark.max(EventTime(time));
        self.end_epoch();
    }

    /// # Panics
    /// Unless just these results were raised since the last such call, in whatever order.
    #[track_caller]
    pub fn expect_raised(&mut self, results: impl IntoIterator<Item = D>) {
        expect("raised", &mut self.raised, results);
    }

    /// # Panics
    /// Unless just these results were revoked since the last such call, in whatever order.
    #[track_caller]
    pub fn expect_revoked(&mut self, results: impl IntoIterator<Item = D>) {
        expect("revoked", &mut self.revoked, results);
    }

    /// # Panics
    /// Unless just the events at these times were refused since the last such call, in whatever order.
    #[track_caller]
    pub fn expect_late(&mut self, times: impl IntoIterator<Item = i64>) {
        expect("refused", &mut self.late.borrow_mut(), times);
    }

    /// Ends the test where it stands.
    ///
    /// # Panics
    /// If anything was raised, revoked or refused that was not expected.
    #[track_caller]
    pub fn finish(mut self) {
        self.expect_raised([]);
        self.expect_revoked([]);
        self.expect_late([]);
    }

    fn update(&mut self, event: E, diff: isize) {
        self.events.update(event, diff);
        self.end_epoch();
    }

    /// Ends the epoch and waits for what comes of it.
    fn end_epoch(&mut self) {
        self.clock.end_epoch(self.watermark);
        self.epoch = self.epoch.next();
        self.events.advance_to(self.epoch);
        self.events.flush();
        while self.probe.less_than(&self.epoch) {
            self.worker.step();
        }
        let mut changes = self.changes.take();
        consolidation::consolidate_updates(&mut changes);
        for (result, _, diff) in changes {
            let list = if diff > 0 { &mut self.raised } else { &mut self.revoked };
            list.extend(std::iter::repeat_n(result, diff.unsigned_abs()));
        }
    }
}

#[track_caller]
fn expect<D: Ord + Debug>(what: &str, got: &mut Vec<D>, want: impl IntoIterator<Item = D>) {
    let mut got = std::mem::take(got);
    let mut want: Vec<D> = want.into_iter().collect();
    got.sort();
    want.sort();
    assert!(got == want, "{what}: {got:?}\nexpected: {want:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patterns::Frequency;
    use crate::testing::Line;
    use crate::windows::{Refresh, Statistics, Tumbling};

    fn pairs() -> Kit<Line, i64> {
        Kit::scan(Frequency::at_least(2, 10), |line: &Line, _| line.time)
    }

    #[test]
    #[should_panic(expected = "raised: []\nexpected: [9]")]
    fn what_is_expected_and_not_raised_fails() {
        let mut kit = pairs();
        kit.push_at(9, Line::of("ann", "a"));
        kit.expect_raised([9]);
    }

    #[test]
    #[should_panic(expected = "raised: [12]\nexpected: []")]
    fn what_is_raised_and_not_expected_fails_at_the_end() {
        let mut kit = pairs();
        kit.push_at(9, Line::of("ann", "a"));
        kit.push_at(12, Line::of("ann", "b"));
        kit.finish();
    }

    #[test]
    fn an_event_taken_back_revokes_what_it_raised() {
        let mut kit = pairs();
        kit.push_at(9, Line::of("ann", "a"));
        kit.push_at(12, Line::of("ann", "b"));
        kit.expect_raised([12]);
        kit.retract(Line::from(("ann", 9, 0, "a")));
        kit.expect_revoked([12]);
        kit.finish();
    }

    #[test]
    fn windows_close_when_the_watermark_is_advanced_to_their_last_instant() {
        let mut kit = Kit::new(|keyed| {
            let count = Statistics::new(|_: &Line| None, |_: &Line| None);
            keyed.tumbling("Ten", 10, Refresh::Final, count, |row| (row.window.start.0, row.summary.count))
        });
        kit.push_at(3, Line::of("ann", "a"));
        kit.advance_watermark(8);
        kit.expect_raised([]);
        kit.advance_watermark(9);
        kit.expect_raised([(0, 1)]);
        kit.advance_watermark(5);
        kit.push_at(7, Line::of("ann", "b"));
        kit.expect_late([7]);
        kit.finish();
    }
}
