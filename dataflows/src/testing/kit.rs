//! Virtual time: events and watermarks one at a time, and what is raised and revoked in between.

use std::cell::RefCell;
use std::fmt::Debug;
use std::iter::repeat_n;
use std::rc::Rc;

use differential_dataflow::{Data, ExchangeData, VecCollection};

use crate::{
    Admission, Admit, Emission, Engine, Epoch, Event, EventTime, Keyed, Offset, Partition, Pattern, Position,
    Refused, Scan,
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
    engine: Engine<E>,
    /// How many events there have been: the place of the next one in the only partition.
    pushed: i64,
    seen: Rc<RefCell<Seen<D>>>,
}

/// What was not expected yet.
struct Seen<D> {
    raised: Vec<D>,
    revoked: Vec<D>,
    late: Vec<i64>,
}

/// What comes out of a dataflow under test.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome<D> {
    Result(D),
    Late(i64),
}

impl<E: Event + ExchangeData, D: Data> Kit<E, D> {
    /// Builds a dataflow over admitted events, on one worker; nothing is deduplicated.
    pub fn new(build: impl for<'s> FnOnce(Keyed<'s, E>) -> VecCollection<'s, Epoch, D>) -> Kit<E, D> {
        let seen = Rc::new(RefCell::new(Seen { raised: Vec::new(), revoked: Vec::new(), late: Vec::new() }));
        let list = Rc::clone(&seen);
        let engine = Engine::new(
            |events, control| {
                let (keyed, refused) = events.admit(control, Admission::default());
                let late = refused.map(|refused: Refused<E>| Outcome::Late(refused.event.time().0));
                build(keyed).map(Outcome::Result).concat(late)
            },
            move |outcome, _epoch, diff| {
                let Seen { raised, revoked, late } = &mut *list.borrow_mut();
                let times = diff.unsigned_abs();
                match outcome {
                    Outcome::Result(result) if diff > 0 => raised.extend(repeat_n(result, times)),
                    Outcome::Result(result) => revoked.extend(repeat_n(result, times)),
                    Outcome::Late(time) => late.extend(repeat_n(time, times)),
                }
            },
        );
        Kit { engine, pushed: 0, seen }
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
        self.engine.push(event(EventTime(time), position));
        self.end_epoch();
    }

    /// Takes an event back that was pushed before.
    pub fn retract(&mut self, event: E) {
        self.engine.retract(event);
        self.end_epoch();
    }

    /// Says that no event at or below `time`, in milliseconds, is to be expected. The watermark never goes back.
    pub fn advance_watermark(&mut self, time: i64) {
        self.engine.end_epoch(EventTime(time));
    }

    /// # Panics
    /// Unless just these results were raised since the last such call, in whatever order.
    #[track_caller]
    pub fn expect_raised(&mut self, results: impl IntoIterator<Item = D>) {
        expect("raised", &mut self.seen.borrow_mut().raised, results);
    }

    /// # Panics
    /// Unless just these results were revoked since the last such call, in whatever order.
    #[track_caller]
    pub fn expect_revoked(&mut self, results: impl IntoIterator<Item = D>) {
        expect("revoked", &mut self.seen.borrow_mut().revoked, results);
    }

    /// # Panics
    /// Unless just the events at these times were refused since the last such call, in whatever order.
    #[track_caller]
    pub fn expect_late(&mut self, times: impl IntoIterator<Item = i64>) {
        expect("refused", &mut self.seen.borrow_mut().late, times);
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

    /// Ends the epoch with the watermark as it is: it does not go back.
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
