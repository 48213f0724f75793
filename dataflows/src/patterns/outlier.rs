//! Amounts far from a key's mean: |x − mean| > kσ over all earlier amounts.

use super::{Description, Moments};
use crate::{Event, EventTime, Pattern};

/// Matches an amount further than `sigmas` sample standard deviations from the mean of all earlier amounts of the key.
///
/// Every such event matches, and is then added to the statistics. Amounts are integers (for example micro-units). Their
/// count, sum and sum of squares are exact, so neither order nor rounding changes the result. Mean and σ are exact to
/// 1e-9, and nothing overflows up to 10^9 amounts of size 10^18.
pub struct Outlier<F> {
    sigmas: f64,
    at_least: u64,
    min_sigma: f64,
    min_relative_sigma: f64,
    amount: F,
}

/// A match of [`Outlier`], in the unit of the amounts.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Deviation {
    /// The amount that matched.
    pub amount: i64,
    /// The mean of the earlier amounts.
    pub mean: f64,
    /// The sample standard deviation of the earlier amounts, or the minimum if it is below the minimum.
    pub stddev: f64,
    /// The distance between amount and mean, in standard deviations.
    pub sigmas: f64,
    /// The number of earlier amounts.
    pub n: u64,
}

impl<F> Outlier<F> {
    /// Creates the pattern: an amount beyond `sigmas` σ of at least `at_least` (two or more) earlier amounts. A σ below
    /// `min_sigma` counts as `min_sigma`. `amount` returns the amount of an event, if it has one.
    pub fn beyond(sigmas: f64, at_least: u64, min_sigma: f64, amount: F) -> Outlier<F> {
        Outlier { sigmas, at_least: at_least.max(2), min_sigma, min_relative_sigma: 0.0, amount }
    }

    /// Sets a second minimum for σ, as a share of the absolute value of the mean. A key that always pays the same
    /// amount then matches when it pays much more, but not when it pays a little more.
    #[must_use]
    pub fn with_min_relative_sigma(self, share: f64) -> Outlier<F> {
        Outlier { min_relative_sigma: share, ..self }
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

    fn describe(&self, state: &Moments, _watermark: EventTime) -> Option<Description> {
        let (mean, stddev) = (state.mean(), state.stddev());
        let bounds =
            mean.zip(stddev).filter(|_| state.count() >= self.at_least).and_then(|(mean, stddev)| {
                let sigma = stddev.max(self.min_sigma).max(self.min_relative_sigma * mean.abs());
                (sigma > 0.0).then_some((mean - self.sigmas * sigma, mean + self.sigmas * sigma))
            });
        Some(Description::Amounts { n: state.count(), mean, stddev, at_least: self.at_least, bounds })
    }
}

impl<F> Outlier<F> {
    fn judge(&self, earlier: &Moments, amount: i64) -> Option<Deviation> {
        let n = earlier.count() as f64;
        // Compares n²(x − mean)² with k²·n²·σ², where n(n − 1)σ² = spread: the usual event needs no division or root.
        let distance =
            (i128::from(amount) * i128::from(earlier.count()) - earlier.sum()).unsigned_abs() as f64;
        let spread = earlier.spread();
        if distance * distance * (n - 1.0) <= self.sigmas * self.sigmas * spread * n {
            return None;
        }
        let stddev = (spread / (n * (n - 1.0))).sqrt();
        let size = earlier.sum().unsigned_abs() as f64;
        // The minimum times n, because distance and sum are also multiplied by n.
        let floor = (self.min_sigma * n).max(self.min_relative_sigma * size);
        if distance <= self.sigmas * self.min_sigma * n || !self.is_beyond_share(distance, size) {
            return None;
        }
        let stddev = stddev.max(floor / n);
        (stddev > 0.0).then(|| Deviation {
            amount,
            mean: earlier.sum() as f64 / n,
            stddev,
            sigmas: distance / n / stddev,
            n: earlier.count(),
        })
    }

    /// Returns true if the distance is more than `sigmas` times the minimum of σ that depends on the mean. `distance`
    /// and `size` are both multiplied by n.
    ///
    /// After equal amounts, an amount that is (for example) 3% larger lies exactly on this bound. The product is
    /// rounded once, to a number with few digits, so that such a bound has its exact decimal value.
    fn is_beyond_share(&self, distance: f64, size: f64) -> bool {
        const DIGITS: f64 = 1e9;
        let share = (self.sigmas * self.min_relative_sigma * DIGITS).round();
        distance * DIGITS > share * size
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Line;

    #[test]
    fn an_amount_exactly_at_the_bound_does_not_match() {
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

    /// Returns the match when a key that has paid `usual` `n` times pays `amount`.
    fn after_equal_amounts(usual: i64, n: i64, amount: i64) -> Option<Deviation> {
        let outlier = Outlier::beyond(3.0, 30, 10_000.0, |event: &Line| Some(event.offset));
        let outlier = outlier.with_min_relative_sigma(0.01);
        let mut state = Moments::default();
        for _ in 0..n {
            assert_eq!(outlier.step(&mut state, &Line::from(("ann", 0, usual, "a"))).0, None);
        }
        outlier.step(&mut state, &Line::from(("ann", 0, amount, "a"))).0
    }

    #[test]
    fn after_equal_amounts_only_a_much_larger_amount_matches() {
        const UNIT: i64 = 1_000_000;
        for n in [30, 31, 1000, 99_999] {
            for (usual, amount) in [(10 * UNIT, 10_010_000), (10 * UNIT, 10_300_000), (10 * UNIT, 9_700_000)]
            {
                assert_eq!(after_equal_amounts(usual, n, amount), None, "{amount}");
            }
            let found = after_equal_amounts(10 * UNIT, n, 10_000 * UNIT).expect("the amount matches");
            assert_eq!((found.stddev, found.mean, found.n), (1e5, 1e7, n as u64));
            assert!((found.sigmas - 99_900.0).abs() < 1e-6, "{}", found.sigmas);
            // The bound itself does not match, and a millionth more does.
            for usual in [100 * UNIT, 19_990_000, -20_600_000, 7_000_000, 333_333_300] {
                let bound = usual + usual.abs() * 3 / 100;
                assert_eq!(after_equal_amounts(usual, n, bound), None, "{usual}");
                assert!(after_equal_amounts(usual, n, bound + 1).is_some(), "{usual}");
            }
            // For amounts below one unit, and for zero, the minimum of σ is one cent.
            assert_eq!(after_equal_amounts(0, n, 30_000), None);
            assert!(after_equal_amounts(0, n, 30_001).is_some());
        }
    }
}
