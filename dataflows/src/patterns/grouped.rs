//! A pattern evaluated per group of a key's events: amounts by currency, logins by device.

use serde::{Deserialize, Serialize};

use super::Description;
use crate::{Event, EventTime, Pattern};

/// Evaluates a pattern separately for each group of events, as if each (key, group) were a key.
///
/// It keeps a pattern state for every group that a key has ever had, so a key should have few groups.
///
/// ```
/// use headwater_dataflows::patterns::{Frequency, Grouped};
/// use headwater_dataflows::{Pattern, testing::Line};
///
/// // Two events of the same parity within 10 ms.
/// let pair = Grouped::by(Frequency::at_least(2, 10), |event: &Line| Some(event.time.unsigned_abs() % 2));
/// let mut state = Default::default();
/// let found = [1, 2, 5].map(|time| pair.step(&mut state, &Line::from(("ann", time, 0, "a"))).0.is_some());
/// assert_eq!(found, [false, false, true]);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Grouped<P, G> {
    pattern: P,
    group: G,
}

impl<P, G> Grouped<P, G> {
    /// Creates the pattern. `group` returns the group of an event. Events without a group (`None`) form a group, too.
    pub fn by(pattern: P, group: G) -> Grouped<P, G> {
        Grouped { pattern, group }
    }
}

/// The maximum number of groups that are described.
const MAX_DESCRIBED: usize = 100;

/// The state of a pattern for each group of a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Groups<S> {
    /// The groups, in the order of their first events.
    by_group: Vec<(Option<u64>, S)>,
}

impl<S> Default for Groups<S> {
    fn default() -> Self {
        Groups { by_group: Vec::new() }
    }
}

/// Returns the groups, each with its state.
pub(crate) fn all<S>(groups: &Option<Box<Groups<S>>>) -> &[(Option<u64>, S)] {
    groups.as_ref().map_or(&[], |groups| &groups.by_group)
}

/// The data needed to undo one step of a [`Grouped`] pattern.
#[derive(Clone, Copy, Debug)]
pub struct Stepped<U> {
    at: usize,
    /// True if the event was the first of its group.
    fresh: bool,
    undo: U,
}

impl<E, P, G> Pattern<E> for Grouped<P, G>
where
    E: Event,
    P: Pattern<E>,
    G: Fn(&E) -> Option<u64> + 'static,
{
    /// Boxed, so that keys without events need one machine word.
    type State = Option<Box<Groups<P::State>>>;
    type Undo = Stepped<P::Undo>;
    type Match = P::Match;

    fn step(&self, state: &mut Self::State, event: &E) -> (Option<P::Match>, Self::Undo) {
        let group = (self.group)(event);
        let by_group = &mut state.get_or_insert_default().by_group;
        let known = by_group.iter().position(|(known, _)| *known == group);
        let at = known.unwrap_or_else(|| {
            by_group.push((group, P::State::default()));
            by_group.len() - 1
        });
        let (found, undo) = self.pattern.step(&mut by_group[at].1, event);
        (found, Stepped { at, fresh: known.is_none(), undo })
    }

    fn undo(&self, state: &mut Self::State, event: &E, Stepped { at, fresh, undo }: Self::Undo) {
        let by_group = &mut state.get_or_insert_default().by_group;
        self.pattern.undo(&mut by_group[at].1, event, undo);
        if fresh {
            // Steps are undone latest first, so this group is the last.
            by_group.pop();
        }
    }

    fn same(&self, one: &Self::State, other: &Self::State) -> bool {
        let same =
            |((group, one), (of, other)): (&(_, _), &(_, _))| group == of && self.pattern.same(one, other);
        let (one, other) = (all(one), all(other));
        one.len() == other.len() && one.iter().zip(other).all(same)
    }

    fn describe(&self, state: &Self::State, watermark: EventTime) -> Option<Description> {
        let all = all(state);
        let described = all.iter().take(MAX_DESCRIBED);
        let groups = described.map(|(group, state)| Some((*group, self.pattern.describe(state, watermark)?)));
        Some(Description::Groups {
            groups: groups.collect::<Option<_>>()?,
            more: all.len().saturating_sub(MAX_DESCRIBED),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::patterns::Frequency;
    use crate::testing::Line;

    proptest! {
        /// Random steps and undos: each match equals that of the pattern over the group's events alone.
        #[test]
        fn each_group_is_evaluated_like_a_key(moves in prop::collection::vec((0u64..3, any::<bool>()), 1..60)) {
            let alone = Frequency::at_least(3, 20);
            let grouped = Grouped::by(alone, |event: &Line| Some(event.offset.unsigned_abs() % 3));
            let mut state = None;
            let mut done: Vec<(Line, _)> = Vec::new();
            for (n, (group, back)) in moves.into_iter().enumerate() {
                if back && let Some((event, undo)) = done.pop() {
                    grouped.undo(&mut state, &event, undo);
                    continue;
                }
                let event = Line::from(("ann", 5 * n as i64, group as i64, "a"));
                let mut only = Default::default();
                for (before, _) in done.iter().filter(|(before, _)| before.offset == event.offset) {
                    alone.step(&mut only, before);
                }
                let expected = alone.step(&mut only, &event).0;
                let (found, undo) = grouped.step(&mut state, &event);
                prop_assert_eq!(found, expected);
                done.push((event, undo));
            }
            for (event, undo) in done.into_iter().rev() {
                grouped.undo(&mut state, &event, undo);
            }
            prop_assert!(state.is_none_or(|state| state.by_group.is_empty()));
        }
    }
}
