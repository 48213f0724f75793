//! Bounds of sums and averages.

/// A bound that a sum or an average must satisfy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// More than this number.
    MoreThan(i64),
    /// This number or more.
    AtLeast(i64),
}

impl Bound {
    /// Returns true if a sum of `n` numbers satisfies the bound on average, exactly.
    pub(super) fn is_satisfied(self, sum: i128, n: u64) -> bool {
        match self {
            Bound::MoreThan(number) => sum > i128::from(number) * i128::from(n),
            Bound::AtLeast(number) => sum >= i128::from(number) * i128::from(n),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Bound::{AtLeast, MoreThan};

    #[test]
    fn averages_are_compared_without_rounding() {
        // 10^15 numbers whose average is the bound and a millionth of a millionth of a thousandth.
        let (n, number) = (1_000_000_000_000_000, 1_000_000_000_000_000_000);
        let sum = i128::from(number) * n;
        for (sum, more, at_least) in [(sum - 1, false, false), (sum, false, true), (sum + 1, true, true)] {
            assert_eq!(MoreThan(number).is_satisfied(sum, n as u64), more);
            assert_eq!(AtLeast(number).is_satisfied(sum, n as u64), at_least);
        }
    }
}
