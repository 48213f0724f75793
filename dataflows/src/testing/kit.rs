//! Virtual time: a test kit with events and watermarks one at a time, and checks of raised and revoked results.

use std::cell::RefCell;
use std::fmt::Debug;
use std::iter::repeat_n;
use std::rc::Rc;

use differential_dataflow::{Data, ExchangeData, VecCollection};

use crate::{
    Admission, Admit, Emission, Engine, Epoch, Event, EventTime, Keyed, Offset, Partition, Pattern, Position,
    Refused, Scan,
};

/// A dataflow under test, driven manually: push events, advance the watermark, and check the results.
///
/// Each push and each watermark is a separate epoch, which is complete when the call returns. Changes of the result are
/// kept until they are checked. [`finish`](Kit::finish) panics if unchecked changes are left.
///
/// A test of a custom pattern:
///
/// ```
/// use headwater_dataflows::{Pattern, testing::{Kit, Line}};
///
/// /// Matches two consecutive events with the same id.
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
/// kit.push_at(20, Line::of("ann", "logout")); // between the two
/// kit.expect_revoked([(30, "login".to_owned())]);
/// kit.advance_watermark(25);
/// kit.push_at(25, Line::of("ann", "login"));
/// kit.expect_late([25]);
/// kit.finish();
/// ```
pub struct Kit<E: Event + Data, D: Data> {
    engine: Engine<E>,
    /// The number of events pushed: the offset of the next one in the only partition.
    pushed: i64,
    unchecked: Rc<RefCell<Unchecked<D>>>,
}

/// The changes that have not been checked.
struct Unchecked<D> {
    raised: Vec<D>,
    revoked: Vec<D>,
    late: Vec<i64>,
}

/// An output of a dataflow under test.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome<D> {
    Result(D),
    Late(i64),
}

impl<E: Event + ExchangeData, D: Data> Kit<E, D> {
    /// Builds a dataflow over admitted events, on one worker and without deduplication.
    pub fn new(build: impl for<'s> FnOnce(Keyed<'s, E>) -> VecCollection<'s, Epoch, D>) -> Kit<E, D> {
        let unchecked =
            Rc::new(RefCell::new(Unchecked { raised: Vec::new(), revoked: Vec::new(), late: Vec::new() }));
        let list = Rc::clone(&unchecked);
        let engine = Engine::new(
            |events, control| {
                let (keyed, refused) = events.admit(control, Admission::default());
                let late = refused.map(|refused: Refused<E>| Outcome::Late(refused.event.time().0));
                build(keyed).map(Outcome::Result).concat(late)
            },
            move |outcome, _epoch, diff| {
                let Unchecked { raised, revoked, late } = &mut *list.borrow_mut();
                let times = diff.unsigned_abs();
                match outcome {
                    Outcome::Result(result) if diff > 0 => raised.extend(repeat_n(result, times)),
                    Outcome::Result(result) => revoked.extend(repeat_n(result, times)),
                    Outcome::Late(time) => late.extend(repeat_n(time, times)),
                }
            },
        );
        Kit { engine, pushed: 0, unchecked }
    }

    /// Builds a scan with one pattern. Matches are raised at once, as results made by `result`.
    pub fn scan<P: Pattern<E>>(pattern: P, result: impl Fn(&E, P::Match) -> D + 'static) -> Kit<E, D> {
        Kit::new(|keyed| keyed.scan("Kit", pattern, Emission::Immediate, result))
    }

    /// Pushes an event at `time`, in milliseconds. `event` makes it of its time and its position. Positions follow the
    /// order of the calls: of events at the same time, the one pushed first comes first.
    pub fn push_at(&mut self, time: i64, event: impl FnOnce(EventTime, Position) -> E) {
        let position = Position { partition: Partition(0), offset: Offset(self.pushed) };
        self.pushed += 1;
        self.engine.push(event(EventTime(time), position));
        self.end_epoch();
    }

    /// Retracts an event that was pushed before.
    pub fn retract(&mut self, event: E) {
        self.engine.retract(event);
        self.end_epoch();
    }

    /// Advances the watermark to `time`, in milliseconds: events at or below it are late. A lesser time has no effect.
    pub fn advance_watermark(&mut self, time: i64) {
        self.engine.end_epoch(EventTime(time));
    }

    /// Checks the results raised since the last such call.
    ///
    /// # Panics
    /// Panics unless exactly these results were raised, in any order.
    #[track_caller]
    pub fn expect_raised(&mut self, results: impl IntoIterator<Item = D>) {
        expect("raised", &mut self.unchecked.borrow_mut().raised, results);
    }

    /// Checks the results revoked since the last such call.
    ///
    /// # Panics
    /// Panics unless exactly these results were revoked, in any order.
    #[track_caller]
    pub fn expect_revoked(&mut self, results: impl IntoIterator<Item = D>) {
        expect("revoked", &mut self.unchecked.borrow_mut().revoked, results);
    }

    /// Checks the events refused since the last such call, by their times.
    ///
    /// # Panics
    /// Panics unless exactly these events were refused, in any order.
    #[track_caller]
    pub fn expect_late(&mut self, times: impl IntoIterator<Item = i64>) {
        expect("refused", &mut self.unchecked.borrow_mut().late, times);
    }

    /// Ends the test.
    ///
    /// # Panics
    /// Panics if raised, revoked or refused results are left that were not checked.
    #[track_caller]
    pub fn finish(mut self) {
        self.expect_raised([]);
        self.expect_revoked([]);
        self.expect_late([]);
    }

    /// Ends the epoch without advancing the watermark.
    fn end_epoch(&mut self) {
        self.engine.end_epoch(EventTime::MIN);
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
    use crate::windows::{EmitPolicy, Statistics, Tumbling};

    fn pairs() -> Kit<Line, i64> {
        Kit::scan(Frequency::at_least(2, 10), |line: &Line, _| line.time)
    }

    #[test]
    #[should_panic(expected = "raised: []\nexpected: [9]")]
    fn an_expected_result_that_is_not_raised_fails() {
        let mut kit = pairs();
        kit.push_at(9, Line::of("ann", "a"));
        kit.expect_raised([9]);
    }

    #[test]
    #[should_panic(expected = "raised: [12]\nexpected: []")]
    fn an_unexpected_result_fails_at_the_end() {
        let mut kit = pairs();
        kit.push_at(9, Line::of("ann", "a"));
        kit.push_at(12, Line::of("ann", "b"));
        kit.finish();
    }

    #[test]
    fn a_retracted_event_revokes_its_results() {
        let mut kit = pairs();
        kit.push_at(9, Line::of("ann", "a"));
        kit.push_at(12, Line::of("ann", "b"));
        kit.expect_raised([12]);
        kit.retract(Line::from(("ann", 9, 0, "a")));
        kit.expect_revoked([12]);
        kit.finish();
    }

    #[test]
    fn windows_close_when_the_watermark_reaches_their_end() {
        let mut kit = Kit::new(|keyed| {
            let count = Statistics::new(|_: &Line| None, |_: &Line| None);
            keyed.tumbling("Ten", 10, EmitPolicy::Final, count, |row| (row.window.start.0, row.summary.count))
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
