//! Amounts far from a key's mean: |x − mean| > kσ over all earlier amounts.

use super::Moments;
use crate::{Event, Pattern};

/// An amount further than `sigmas` sample standard deviations from the mean of all earlier amounts of the key.
///
/// Every such event matches, and enters the statistics afterwards. Amounts are whole numbers (say, micro-units),
/// summed exactly: count, sum and sum of squares, so that neither order nor rounding matters. Mean and σ are
/// exact to 1e-9 and nothing overflows up to 10^9 amounts of size 10^18.
pub struct Outlier<F> {
    sigmas: f64,
    at_least: u64,
    min_sigma: f64,
    amount: F,
}

/// What [`Outlier`] found, in the unit of the amounts.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Deviation {
    /// The amount that matched.
    pub amount: i64,
    /// The mean of the earlier amounts.
    pub mean: f64,
    /// Their sample standard deviation.
    pub stddev: f64,
    /// How many standard deviations lie between the two.
    pub sigmas: f64,
    /// How many earlier amounts there were.
    pub n: u64,
}

impl<F> Outlier<F> {
    /// Beyond `sigmas` σ of at least `at_least` (two or more) earlier amounts, if σ itself is not below
    /// `min_sigma`. `amount` gives an event's amount, if it has one.
    pub fn beyond(sigmas: f64, at_least: u64, min_sigma: f64, amount: F) -> Outlier<F> {
        Outlier { sigmas, at_least: at_least.max(2), min_sigma, amount }
    }
}

impl<E: Event, F: Fn(&E) -> Option<i64> + 'static> Pattern<E> for Outlier<F> {
    type State = Moments;
    type Undo = ();
    type Match = Deviation;

    fn step(&self, state: &mut Moments, event: &E) -> (Option<Deviation>, ()) {
        let Some(amount) = (self.amount)(event) else { return (None, ()) };
        let found = (state.count() >= self.at_least).then(|| self.judge(state, amount)).flatten();
        state.add(amount);
        (found, ())
    }

    fn undo(&self, state: &mut Moments, event: &E, _undo: ()) {
        if let Some(amount) = (self.amount)(event) {
            state.remove(amount);
        }
    }

    fn same(&self, one: &Moments, other: &Moments) -> bool {
        one == other
    }
}

impl<F> Outlier<F> {
    fn judge(&self, earlier: &Moments, amount: i64) -> Option<Deviation> {
        let n = earlier.count() as f64;
        // n²(x − mean)² against k²·n²·σ², with n(n − 1)σ² = spread: no division and no root for the usual event.
        let distance =
            (i128::from(amount) * i128::from(earlier.count()) - earlier.sum()).unsigned_abs() as f64;
        let spread = earlier.spread();
        if distance * distance * (n - 1.0) <= self.sigmas * self.sigmas * spread * n {
            return None;
        }
        let stddev = (spread / (n * (n - 1.0))).sqrt();
        (stddev > 0.0 && stddev >= self.min_sigma).then(|| Deviation {
            amount,
            mean: earlier.sum() as f64 / n,
            stddev,
            sigmas: distance / n / stddev,
            n: earlier.count(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Line;

    #[test]
    fn an_amount_that_is_exactly_so_many_sigmas_away_does_not_match() {
        // Amounts are offsets here. The mean of −1, 0 and 1 is 0, their σ is 1.
        let outlier = Outlier::beyond(2.0, 3, 1.0, |event: &Line| Some(event.offset));
        for (amount, found) in [(2, false), (-2, false), (3, true), (-3, true)] {
            let mut state = Moments::default();
            for earlier in [-1, 0, 1] {
                assert_eq!(outlier.step(&mut state, &Line::from(("ann", 0, earlier, "a"))).0, None);
            }
            let deviation = outlier.step(&mut state, &Line::from(("ann", 0, amount, "a"))).0;
            assert_eq!(deviation.map(|deviation| deviation.sigmas), found.then_some(3.0));
        }
    }
}
