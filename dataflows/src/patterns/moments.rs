//! Exact sums, from which mean and standard deviation are computed.

use serde::{Deserialize, Serialize};

/// The exact count, sum and sum of squares of integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moments {
    n: u64,
    sum: i128,
    /// The sum of squares is `squares_high` · 2^128 + `squares`.
    squares: u128,
    squares_high: u64,
}

impl Moments {
    /// Adds a number.
    pub fn add(&mut self, x: i64) {
        self.n += 1;
        self.sum += i128::from(x);
        let (squares, carry) = self.squares.overflowing_add(square(x));
        self.squares = squares;
        self.squares_high += u64::from(carry);
    }

    /// Removes a number.
    pub fn remove(&mut self, x: i64) {
        self.n -= 1;
        self.sum -= i128::from(x);
        let (squares, borrow) = self.squares.overflowing_sub(square(x));
        self.squares = squares;
        self.squares_high -= u64::from(borrow);
    }

    /// Adds all numbers of `other`.
    pub fn merge(&mut self, other: &Moments) {
        self.n += other.n;
        self.sum += other.sum;
        let (squares, carry) = self.squares.overflowing_add(other.squares);
        self.squares = squares;
        self.squares_high += other.squares_high + u64::from(carry);
    }

    /// Returns the count of the numbers.
    pub fn count(&self) -> u64 {
        self.n
    }

    /// Returns the sum of the numbers.
    pub fn sum(&self) -> i128 {
        self.sum
    }

    /// Returns the mean of the numbers; `None` if there are none.
    pub fn mean(&self) -> Option<f64> {
        (self.n > 0).then(|| self.sum as f64 / self.n as f64)
    }

    /// Returns the sample standard deviation; `None` for fewer than two numbers.
    pub fn stddev(&self) -> Option<f64> {
        let n = self.n as f64;
        (self.n > 1).then(|| (self.spread() / (n * (n - 1.0))).sqrt())
    }

    /// Returns n · Σx² − (Σx)², which is n(n − 1) times the sample variance: computed exactly, then rounded once.
    pub(super) fn spread(&self) -> f64 {
        let sum = self.sum.unsigned_abs();
        if self.squares_high == 0
            && let (Some(left), Some(right)) =
                (self.squares.checked_mul(u128::from(self.n)), sum.checked_mul(sum))
        {
            return (left - right) as f64;
        }
        // With 256 bits. n · Σx² ≥ (Σx)², so the difference is never negative.
        let (low, carry) = wide_mul(self.squares, u128::from(self.n));
        let high = carry + u128::from(self.squares_high) * u128::from(self.n);
        let (sum_low, sum_high) = wide_mul(sum, sum);
        let (difference, borrow) = low.overflowing_sub(sum_low);
        (high - sum_high - u128::from(borrow)) as f64 * 2f64.powi(128) + difference as f64
    }
}

fn square(x: i64) -> u128 {
    let x = u128::from(x.unsigned_abs());
    x * x
}

/// Returns the 256-bit product, low half first.
fn wide_mul(a: u128, b: u128) -> (u128, u128) {
    const MASK: u128 = u64::MAX as u128;
    let (a1, a0, b1, b0) = (a >> 64, a & MASK, b >> 64, b & MASK);
    let (low, middle, cross, high) = (a0 * b0, a1 * b0, a0 * b1, a1 * b1);
    let carries = (low >> 64) + (middle & MASK) + (cross & MASK);
    let low = (low & MASK) | (carries << 64);
    (low, high + (middle >> 64) + (cross >> 64) + (carries >> 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_amounts_neither_overflow_nor_lose_precision() {
        // 10^9 amounts, half of them +10^18 and half −10^18: mean 0, variance 10^36 · n ÷ (n − 1).
        let mut moments = Moments::default();
        let mut block = Moments::default();
        block.add(1_000_000_000_000_000_000);
        block.add(-1_000_000_000_000_000_000);
        let mut left = 500_000_000u64;
        while left > 0 {
            if left & 1 == 1 {
                moments.merge(&block);
            }
            let copy = block;
            block.merge(&copy);
            left >>= 1;
        }
        assert_eq!(moments.count(), 1_000_000_000);
        assert_eq!(moments.sum(), 0);
        let expected = 1e18 * (1e9f64 / (1e9 - 1.0)).sqrt();
        let stddev = moments.stddev().expect("there are two or more numbers");
        assert!((stddev / expected - 1.0).abs() < 1e-9, "{stddev}");
    }

    #[test]
    fn large_amounts_that_differ_little_have_an_exact_deviation() {
        let mut moments = Moments::default();
        for i in 0..1000 {
            moments.add(999_999_999_999_000_000 + i);
        }
        let stddev = moments.stddev().expect("there are two or more numbers");
        let expected = (1000.0 * 1001.0 / 12.0f64).sqrt();
        assert!((stddev / expected - 1.0).abs() < 1e-9, "{stddev} {expected}");
    }

    #[test]
    fn removing_is_the_inverse_of_adding_across_the_carry() {
        let mut moments = Moments::default();
        let amounts = [i64::MAX, 3, i64::MIN + 1, i64::MAX, i64::MAX, i64::MAX, -5, i64::MAX];
        for x in amounts {
            moments.add(x);
        }
        assert!(moments.squares_high > 0);
        for x in amounts {
            moments.remove(x);
        }
        assert_eq!(moments, Moments::default());
    }
}
