//! Every event.

use crate::{Event, Pattern};

/// Matches every event. It has no state.
///
/// ```
/// use headwater_dataflows::patterns::Every;
/// use headwater_dataflows::testing::{Kit, Line};
///
/// let mut kit = Kit::scan(Every, |line: &Line, ()| line.time);
/// kit.push_at(2, Line::of("ann", "a"));
/// kit.push_at(1, Line::of("ann", "b"));
/// kit.expect_raised([1, 2]);
/// kit.finish();
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Every;

impl<E: Event> Pattern<E> for Every {
    type State = ();
    type Undo = ();
    type Match = ();

    fn step(&self, _: &mut (), _: &E) -> (Option<()>, ()) {
        (Some(()), ())
    }

    fn undo(&self, _: &mut (), _: &E, _: ()) {}

    fn same(&self, _: &(), _: &()) -> bool {
        true
    }
}
