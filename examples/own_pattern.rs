//! A pattern of one's own, as an operator of a timely dataflow: a withdrawal right after a change of password, without a
//! confirmation in between. When the confirmation arrives after the withdrawal, the alert is revoked.
//!
//! `cargo run --example own_pattern` prints:
//!
//! ```text
//! epoch 0: +1 alert: ann withdraws at 30, 20 after a change of password
//! epoch 0: +1 total: 1 alerts for ann
//! epoch 1: -1 alert: ann withdraws at 30, 20 after a change of password
//! epoch 1: -1 total: 1 alerts for ann
//! epoch 2: +1 refused: ann confirms at 15, which is late
//! ```

use std::sync::mpsc;

use differential_dataflow::input::InputSession;
use differential_dataflow::operators::CountTotal;
use headwater_dataflows::{
    Admission, Admit, Clock, Emission, Epoch, Event, EventTime, Offset, Partition, Pattern, Position, Scan,
};
use serde::{Deserialize, Serialize};
use timely::dataflow::ProbeHandle;
use timely::dataflow::operators::{Inspect, Probe};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Action {
    ChangesPassword,
    Confirms,
    Withdraws,
}

/// An event of one's own: an action of a user, with its time and its place in the input.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Step(String, i64, i64, Action);

impl Event for Step {
    type Key = str;
    fn key(&self) -> &str {
        &self.0
    }
    fn time(&self) -> EventTime {
        EventTime(self.1)
    }
    fn position(&self) -> Position {
        Position { partition: Partition(0), offset: Offset(self.2) }
    }
}

/// The pattern: a small state machine over the steps of one user, in the order of event time.
struct Unconfirmed;

impl Pattern<Step> for Unconfirmed {
    /// The time of a change of password that nothing has confirmed.
    type State = Option<i64>;
    type Undo = Option<i64>;
    /// The time since that change.
    type Match = i64;

    fn step(&self, changed: &mut Option<i64>, step: &Step) -> (Option<i64>, Option<i64>) {
        let Step(_, time, _, action) = *step;
        let before = *changed;
        match action {
            Action::ChangesPassword => *changed = Some(time),
            Action::Confirms => *changed = None,
            Action::Withdraws => return (before.map(|changed| time - changed), before),
        }
        (None, before)
    }

    /// A step that arrives out of order undoes the later steps, and they are taken again after it.
    fn undo(&self, changed: &mut Option<i64>, _: &Step, before: Option<i64>) {
        *changed = before;
    }
}

fn main() -> Result<(), String> {
    let (results, inbox) = mpsc::channel();
    timely::execute_directly(move |worker| {
        let done = ProbeHandle::new();
        let (mut steps, mut clock) = worker.dataflow::<Epoch, _, _>(|scope| {
            let mut steps = InputSession::new();
            let (clock, control) = Clock::new(scope);
            let (keyed, refused) = steps.to_collection(scope).admit(control, Admission::default());
            let alerts = keyed.scan("Unconfirmed", Unconfirmed, Emission::Immediate, |step, after| {
                let Step(user, time, ..) = step;
                (user.clone(), format!("{user} withdraws at {time}, {after} after a change of password"))
            });
            // The alerts are a differential collection: operators downstream follow what is revoked.
            let totals = alerts.clone().map(|(user, _)| user).count_total();
            let totals = totals.map(|(user, n)| format!("total: {n} alerts for {user}"));
            let refused = refused.map(|refused| {
                format!("refused: {} confirms at {}, which is late", refused.event.0, refused.event.1)
            });
            let all = alerts.map(|(_, alert)| format!("alert: {alert}")).concat(totals).concat(refused);
            all.inner
                .inspect(move |(line, epoch, diff)| {
                    results.send(format!("epoch {epoch}: {diff:+} {line}")).expect("the inbox is open");
                })
                .probe_with(&done);
            (steps, clock)
        });
        let epochs = [
            // The steps that arrive in an epoch, and the watermark after it: earlier steps are late from then on.
            (vec![(10, Action::ChangesPassword), (30, Action::Withdraws)], 5),
            (vec![(20, Action::Confirms)], 25),
            (vec![(15, Action::Confirms)], 40),
        ];
        let mut offsets = 0..;
        for (arrived, watermark) in epochs {
            for ((time, action), offset) in arrived.into_iter().zip(&mut offsets) {
                steps.update(Step("ann".to_owned(), time, offset, action), 1);
            }
            clock.end_epoch(EventTime(watermark));
            steps.advance_to(steps.time().next());
            steps.flush();
            worker.step_while(|| done.less_than(steps.time()));
        }
    });
    let mut lines: Vec<_> = inbox.iter().collect();
    lines.sort();
    lines.iter().for_each(|line| println!("{line}"));
    let is_revoked = lines.iter().any(|line| line.starts_with("epoch 1: -1 alert"));
    if lines.len() != 5 || !is_revoked {
        return Err("expected an alert that is raised and revoked, and one late step".to_owned());
    }
    Ok(())
}
