//! The state that is read of a key equals a recount of its events.

use std::collections::BTreeMap;

use differential_dataflow::{AsCollection, input::InputSession};
use proptest::prelude::*;
use timely::dataflow::operators::Inspect;
use timely::dataflow::operators::vec::Map;

use super::*;
use crate::patterns::{Diversity, Frequency, Grouped, Location, Outlier, Sequence, Travel};
use crate::testing::{Kit, Line};
use crate::windows::{EmitPolicy, Session, Sliding, Statistics, Summary, Window};
use crate::{
    Accumulate, Admission, Admit, Captures, Checkpoint, Clock, Emission, Engine, Keyed, Pattern, Rule, Scan,
};

const TTL_MS: i64 = 200;
const SIZE_MS: i64 = 40;
const SLIDE_MS: i64 = 10;
const GAP_MS: i64 = 15;
const WITHIN_MS: i64 = 30;
/// The counts up to which the patterns count.
const MANY: usize = 4;
const FEW: usize = 2;

fn value(line: &Line) -> i64 {
    line.id.parse().expect("the id is a number")
}

/// A row of a window: its bounds, and its count, sum and number of distinct values.
type Row = (i64, i64, u64, i128, u64);

/// The state of a key.
#[derive(Debug, Default, PartialEq)]
struct State {
    rows: BTreeMap<String, Vec<Row>>,
    count: u64,
    distinct: u64,
    amounts: u64,
    sum: f64,
    arrived: u64,
}

fn row(row: crate::windows::Row<'_, String, Summary>) -> Row {
    let crate::windows::Row { window: Window { start, end }, summary, .. } = row;
    (start.0, end.0, summary.count, summary.amounts.sum(), summary.distinct())
}

/// Builds an operator of each kind. Returns a number for each change, so that nothing is left out.
fn build<'s>(keyed: &Keyed<'s, Line>) -> differential_dataflow::VecCollection<'s, Epoch, Row> {
    let amount = |line: &Line| Some(value(line));
    let distinct = |line: &Line| Some(value(line).unsigned_abs());
    let immediate = Emission::Immediate;
    let none = (0, 0, 0, 0, 0);
    let rules = (
        Rule::new(Frequency::at_least(MANY, WITHIN_MS), immediate, move |_: &Line, _| none),
        (
            Rule::new(Diversity::at_least(FEW, WITHIN_MS, distinct), immediate, move |_: &Line, _| none),
            (Rule::new(Outlier::beyond(3.0, 2, 1.0, amount), immediate, move |_: &Line, _| none), ()),
        ),
    );
    let statistics = || Statistics::new(amount, distinct);
    let emit = EmitPolicy::Final;
    let numbered = keyed.clone().accumulate("Number", |_, seen: &mut u64, _, out: &mut Vec<u64>| {
        *seen += 1;
        out.push(*seen);
    });
    let numbered = numbered.flat_map(move |(epoch, all)| all.into_iter().map(move |_| (none, epoch, 1)));
    keyed
        .clone()
        .scan_all("Rules", rules)
        .concat(keyed.clone().sliding("Sliding", SIZE_MS, SLIDE_MS, emit, statistics(), row))
        .concat(keyed.clone().session("Session", GAP_MS, emit, statistics(), row))
        .concat(numbered.as_collection())
}

/// Reads the state of a key; None if it has none.
fn read(states: &KeyStates<Line>, key: &str) -> Option<State> {
    let mut state = State::default();
    let known = states.visit(key, &mut |operator, part| match part {
        StatePart::Window(row) => {
            let row = *row.downcast_ref::<Row>().expect("a window's row");
            state.rows.entry(operator.to_owned()).or_default().push(row);
        }
        StatePart::MoreWindows(more) => panic!("{more} windows are left out"),
        StatePart::Running(seen) => state.arrived = *seen.downcast_ref().expect("the state of Number"),
        StatePart::Rule { rule: 2, description: Description::Count { count, at_least, within_ms } } => {
            assert_eq!((at_least, within_ms), (MANY as u64, WITHIN_MS));
            state.count = count;
        }
        StatePart::Rule { rule: 1, description: Description::Distinct { distinct, .. } } => {
            state.distinct = distinct;
        }
        StatePart::Rule { rule: 0, description: Description::Amounts { n, mean, .. } } => {
            (state.amounts, state.sum) = (n, mean.map_or(0.0, |mean| (mean * n as f64).round()));
        }
        StatePart::Rule { rule, description } => panic!("rule {rule}: {description:?}"),
    });
    known.then_some(state)
}

/// The events of one key, from which its state is counted.
#[derive(Default)]
struct Events {
    live: Vec<Line>,
    arrived: u64,
    last: Option<i64>,
}

impl Events {
    /// Discards the key's events when it expires.
    fn expire(&mut self, watermark: i64) {
        if self.last.is_some_and(|last| last + TTL_MS <= watermark) {
            *self = Events::default();
        }
    }

    fn insert(&mut self, line: Line) {
        self.last = self.last.max(Some(line.time));
        self.arrived += 1;
        self.live.push(line);
        self.live.sort_by_key(|line| (line.time, line.offset));
    }

    /// Returns the row of a window of some events.
    fn row<'a>(start: i64, end: i64, lines: impl Iterator<Item = &'a Line> + Clone) -> Row {
        let distinct: std::collections::BTreeSet<_> = lines.clone().map(value).collect();
        let sum = lines.clone().map(value).sum::<i64>();
        (start, end, lines.count() as u64, sum.into(), distinct.len() as u64)
    }

    fn count(&self, watermark: i64) -> Option<State> {
        self.last?;
        let mut rows = BTreeMap::<String, Vec<Row>>::new();
        let mut sessions: Vec<Vec<&Line>> = Vec::new();
        for line in &self.live {
            match sessions.last_mut() {
                Some(open) if line.time < open[open.len() - 1].time + GAP_MS => open.push(line),
                _ => sessions.push(vec![line]),
            }
        }
        for session in sessions.iter().rev() {
            let (start, end) = (session[0].time, session[session.len() - 1].time + GAP_MS);
            if watermark < end - 1 {
                let row = Events::row(start, end, session.iter().copied());
                rows.entry("Session".into()).or_default().push(row);
            }
        }
        let first = self.live.first().map_or(0, |line| line.time);
        let last = self.live.last().map_or(-SIZE_MS, |line| line.time);
        for start in ((first - SIZE_MS).div_euclid(SLIDE_MS)..=last.div_euclid(SLIDE_MS)).rev() {
            let (start, end) = (start * SLIDE_MS, start * SLIDE_MS + SIZE_MS);
            let lines = self.live.iter().filter(|line| (start..end).contains(&line.time));
            if watermark < end - 1 && lines.clone().count() > 0 {
                rows.entry("Sliding".into()).or_default().push(Events::row(start, end, lines));
            }
        }
        let present = watermark.max(last);
        let recent = self.live.iter().filter(|line| line.time > present - WITHIN_MS);
        let distinct: std::collections::BTreeSet<_> = recent.clone().map(value).collect();
        Some(State {
            rows,
            count: recent.count().min(MANY) as u64,
            distinct: distinct.len().min(FEW) as u64,
            amounts: self.live.len() as u64,
            sum: self.live.iter().map(value).sum::<i64>() as f64,
            arrived: self.arrived,
        })
    }
}

#[derive(Clone, Debug)]
enum Move {
    /// Pushes an event this long after the watermark, with this value.
    Push(i64, i64),
    /// Retracts one of the live events.
    Retract(prop::sample::Index),
    /// Advances the watermark.
    Advance(i64),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        6 => (-5i64..60, 0i64..5).prop_map(|(ahead, value)| Move::Push(ahead, value)),
        1 => any::<prop::sample::Index>().prop_map(Move::Retract),
        2 => (0i64..40).prop_map(Move::Advance),
        1 => (150i64..300).prop_map(Move::Advance),
    ];
    prop::collection::vec(one, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Random events, out of order and late, retractions, watermarks and expiry.
    #[test]
    fn the_state_of_a_key_equals_a_recount(moves in moves()) {
        let mut states = None;
        let admission = Admission { ttl_ms: Some(TTL_MS), ..Admission::default() };
        let mut engine = Engine::new(|events, control| {
            let (keyed, _) = events.admit(control, admission);
            states = Some(keyed.key_states());
            build(&keyed)
        }, |_, _, _| ());
        let states = states.expect("the dataflow is built");
        let (mut events, mut watermark) = (Events::default(), 1_000);
        engine.end_epoch(EventTime(watermark));
        for (at, step) in moves.into_iter().enumerate() {
            match step {
                Move::Push(ahead, value) => {
                    let time = watermark + ahead;
                    let line = Line::from(("ann", time, at as i64, &*value.to_string()));
                    engine.push(line.clone());
                    if time > watermark {
                        events.insert(line);
                    }
                }
                Move::Retract(which) if !events.live.is_empty() => {
                    let which = which.index(events.live.len());
                    engine.retract(events.live[which].clone());
                    if events.live[which].time > watermark {
                        events.live.remove(which);
                    }
                }
                Move::Retract(_) => {}
                Move::Advance(by) => watermark += by,
            }
            engine.end_epoch(EventTime(watermark));
            events.expire(watermark);
            let epoch = Some(Epoch(at as u64 + 1));
            prop_assert_eq!(states.as_of(), AsOf { epoch, watermark: EventTime(watermark) });
            prop_assert_eq!(read(&states, "ann"), events.count(watermark));
            prop_assert_eq!(read(&states, "bob"), None);
        }
    }

    /// An amount beyond a described bound matches, and one within the bounds does not.
    #[test]
    fn described_bounds_are_those_of_matches(amounts in prop::collection::vec(-50i64..50, 0..8), share in 0.0..0.5) {
        let outlier = || Outlier::beyond(2.0, 3, 1.5, |line: &Line| Some(value(line))).with_min_relative_sigma(share);
        let mut state = Default::default();
        let line = |amount: i64| Line::from(("ann", 0, 0, &*amount.to_string()));
        for amount in &amounts {
            outlier().step(&mut state, &line(*amount));
        }
        let Some(Description::Amounts { n, bounds, .. }) = outlier().describe(&state, EventTime::MIN) else {
            panic!("an outlier describes its amounts");
        };
        prop_assert_eq!((n, bounds.is_some()), (amounts.len() as u64, amounts.len() >= 3));
        for amount in -300..300 {
            let matched = outlier().step(&mut state.clone(), &line(amount)).0.is_some();
            let (low, high) = bounds.unwrap_or((f64::MIN, f64::MAX));
            let near = |bound: f64| (amount as f64 - bound).abs() < 1e-6;
            prop_assert!(near(low) || near(high) || matched != (low..=high).contains(&(amount as f64)), "{amount}");
        }
    }
}

/// Returns the descriptions of a key's rules, by the names of their operators.
fn descriptions(states: &KeyStates<Line>, key: &str) -> Vec<(String, Description)> {
    let mut all = Vec::new();
    states.visit(key, &mut |operator, part| {
        if let StatePart::Rule { description, .. } = part {
            all.push((operator.to_owned(), description));
        }
    });
    all
}

#[test]
fn counts_decrease_as_the_watermark_advances() {
    let mut states = None;
    let mut kit = Kit::new(|keyed| {
        states = Some(keyed.key_states());
        keyed.scan("Three", Frequency::at_least(3, 10), Emission::Final, |line: &Line, _| line.time)
    });
    let states = states.expect("the dataflow is built");
    let count = || match descriptions(&states, "ann")[..] {
        [(_, Description::Count { count, .. })] => count,
        ref other => panic!("{other:?}"),
    };
    kit.push_at(15, Line::of("ann", "a"));
    kit.push_at(11, Line::of("ann", "b"));
    assert_eq!(count(), 2, "out of order");
    kit.push_at(16, Line::of("ann", "c"));
    kit.push_at(17, Line::of("ann", "d"));
    assert_eq!(count(), 3, "the pattern counts up to its threshold");
    for (watermark, expected) in [(20, 3), (25, 2), (26, 1), (27, 0), (28, 0), (i64::MAX, 3)] {
        kit.advance_watermark(watermark);
        assert_eq!(count(), expected, "{watermark}");
        assert_eq!(descriptions(&states, "ann")[0].1.is_empty(), expected == 0);
    }
    kit.expect_raised([16]);
    kit.finish();
}

#[test]
fn all_patterns_describe_their_states() {
    let mut states = None;
    let mut kit = Kit::new(|keyed| {
        states = Some(keyed.key_states());
        let place =
            |line: &Line| line.id.strip_prefix("at ")?.parse().ok().map(|lat| Location { lat, lon: 1.0 });
        let travel = Travel::beyond(50.0, 900.0, place, |line: &Line| &line.offset);
        let pair = Sequence::first(|line: &Line| (line.id == "a").then_some(1))
            .then(|_, line| (line.id == "b").then_some(2))
            .within(10);
        let unanswered = Sequence::first(|line: &Line| (line.id == "a").then_some(1))
            .then_not(|_, line| line.id == "c")
            .within(20);
        let grouped = Grouped::by(Frequency::at_least(9, 50), |line: &Line| Some(line.id.len() as u64));
        keyed
            .clone()
            .scan("Travel", travel, Emission::Immediate, |line: &Line, _| line.time)
            .concat(keyed.clone().scan("Pair", pair, Emission::Immediate, |line: &Line, _| line.time))
            .concat(keyed.clone().scan("Grouped", grouped, Emission::Immediate, |line: &Line, _| line.time))
            .concat(keyed.scan_absence("Unanswered", unanswered, |_, _| 0))
    });
    let states = states.expect("the dataflow is built");
    kit.push_at(10, Line::of("ann", "a"));
    kit.push_at(14, Line::of("ann", "at 4"));
    kit.push_at(12, Line::of("ann", "at 3"));
    let runs = |runs: &[(i64, u64)]| {
        let runs = runs.iter().map(|&(start, taken)| (EventTime(start), taken)).collect();
        Description::Runs { runs, steps: 2 }
    };
    let place = Description::Place {
        last: Some((Location { lat: 4.0, lon: 1.0 }, EventTime(14))),
        km: 50.0,
        kmh: 900.0,
    };
    let count = |count| Description::Count { count, at_least: 9, within_ms: 50 };
    let groups = Description::Groups { groups: vec![(Some(1), count(1)), (Some(4), count(2))], more: 0 };
    let expected = |pair: &[_], unanswered: &[_]| {
        let of = [("Travel", place.clone()), ("Pair", runs(pair)), ("Grouped", groups.clone())];
        let all = of.into_iter().chain([("Unanswered", runs(unanswered))]);
        all.map(|(name, description)| (name.to_owned(), description)).collect::<Vec<_>>()
    };
    assert_eq!(descriptions(&states, "ann"), expected(&[(10, 1)], &[(10, 1)]));
    kit.advance_watermark(19);
    assert_eq!(descriptions(&states, "ann"), expected(&[], &[(10, 1)]), "its time has passed");
    let empty: Vec<_> = descriptions(&states, "ann").iter().map(|(_, state)| state.is_empty()).collect();
    assert_eq!(empty, [false, true, false, false]);
    kit.expect_raised([14]);
    kit.finish();
}

#[test]
fn operators_describe_the_keys_that_they_select() {
    let mut states = None;
    let mut kit = Kit::new(|keyed| {
        states = Some(keyed.key_states());
        let pair = || Frequency::at_least(2, 10);
        let ann = keyed.clone().only(|key| key == "ann");
        ann.scan("Of ann", pair(), Emission::Final, |line: &Line, _| line.time).concat(keyed.scan(
            "Of all",
            pair(),
            Emission::Final,
            |line: &Line, _| line.time,
        ))
    });
    kit.push_at(1, Line::of("ann", "a"));
    kit.push_at(2, Line::of("bob", "a"));
    let states = states.expect("the dataflow is built");
    let operators = |key| descriptions(&states, key).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(operators("ann"), ["Of ann", "Of all"]);
    assert_eq!(operators("bob"), ["Of all"]);
    assert_eq!(operators("carl"), [""; 0]);
    kit.finish();
}

#[test]
fn the_latest_of_many_windows_have_rows() {
    let mut states = None;
    let mut kit = Kit::new(|keyed| {
        states = Some(keyed.key_states());
        let count = || Statistics::new(|_: &Line| None, |_: &Line| None);
        let start = |row: crate::windows::Row<'_, String, Summary>| row.window.start.0;
        let sliding = keyed.clone().sliding("Sliding", 150, 1, EmitPolicy::Final, count(), start);
        sliding.concat(keyed.session("Session", 5, EmitPolicy::Final, count(), start))
    });
    for n in 0..102 {
        kit.push_at(1000 + 5 * n, Line::of("ann", "a"));
    }
    let (mut rows, mut more) = (Vec::new(), Vec::new());
    states.expect("the dataflow is built").visit("ann", &mut |operator, part| match part {
        StatePart::Window(row) => {
            rows.push((operator.to_owned(), *row.downcast_ref::<i64>().expect("a start")))
        }
        StatePart::MoreWindows(count) => more.push((operator.to_owned(), count)),
        _ => panic!("there are only windows"),
    });
    assert_eq!(rows.len(), 200);
    assert_eq!((&rows[0], &rows[99]), (&("Sliding".into(), 1505), &("Sliding".into(), 1406)));
    assert_eq!((&rows[100], &rows[199]), (&("Session".into(), 1505), &("Session".into(), 1010)));
    assert_eq!(more, [("Sliding".into(), 1505 - 851 + 1 - 100), ("Session".into(), 2)]);
}

/// Steps a dataflow with capture through some lines, and takes a checkpoint. Returns the descriptions of ann, the
/// progress before the first step and after the last, and the checkpoint.
fn captured(
    lines: &'static [(i64, i64)],
    from: Option<Checkpoint>,
) -> (Vec<(String, Description)>, [AsOf; 2], Checkpoint) {
    timely::execute_directly(move |worker| {
        let records = Rc::new(RefCell::new(Vec::new()));
        let list = Rc::clone(&records);
        let first = from.as_ref().map_or(Epoch(0), |from| from.epoch.next());
        let (mut events, mut clock, states) = worker.dataflow::<Epoch, _, _>(|scope| {
            let mut events = InputSession::new();
            let (clock, control) = Clock::new(scope);
            let captures = from.map_or_else(|| Captures::new(scope), |from| Captures::restore(scope, from));
            let (keyed, _) =
                captures.admit("Admit", events.to_collection(scope), control, Admission::default());
            let states = keyed.key_states();
            keyed.scan("Many", Frequency::at_least(9, 10), Emission::Final, |line: &Line, _| line.time);
            let captured = captures.finish().expect("the checkpoint fits");
            captured.inspect(move |record| list.borrow_mut().push(record.clone()));
            (events, clock, states)
        });
        let before = states.as_of();
        clock.advance_to(first);
        events.advance_to(first);
        for &(time, offset) in lines {
            events.insert(Line::from(("ann", time, offset, "a")));
        }
        events.advance_to(first.next());
        events.flush();
        clock.checkpoint(EventTime(20));
        for _ in 0..50 {
            worker.step_or_park(Some(std::time::Duration::from_millis(1)));
        }
        let result = (descriptions(&states, "ann"), [before, states.as_of()]);
        let checkpoint = Checkpoint { epoch: first, watermark: EventTime(20), records: records.take() };
        (result.0, result.1, checkpoint)
    })
}

#[test]
fn captured_and_restored_state_can_be_read() {
    let as_of = |epoch, watermark| AsOf { epoch, watermark };
    let many = |count| vec![("Many".to_owned(), Description::Count { count, at_least: 9, within_ms: 10 })];
    let (described, progress, checkpoint) = captured(&[(15, 0), (18, 1), (30, 2)], None);
    assert_eq!(described, many(1), "at the time of the last event");
    let end = as_of(Some(Epoch(0)), EventTime(20));
    assert_eq!(progress, [as_of(None, EventTime::MIN), end]);
    let (described, progress, _) = captured(&[(25, 3)], Some(checkpoint));
    assert_eq!(described, many(2), "with the un-final event that was restored");
    assert_eq!(progress, [end, as_of(Some(Epoch(1)), EventTime(20))]);
}
