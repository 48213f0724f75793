//! Exact arithmetic of decimals, which are whole numbers of millionths.

use super::eval::Fault;
use crate::exact::{self, Decimal};

/// The number of millionths in one.
pub(super) const MICROS: i64 = 1_000_000;

/// Divides and rounds half to even. The divisor is not zero.
fn divide_half_even(dividend: i128, divisor: i128) -> i128 {
    let (quotient, rest) = (dividend / divisor, dividend % divisor);
    // No overflow: a rest is less than a divisor, which has at most 64 bits.
    let twice = (rest * 2).unsigned_abs();
    let size = divisor.unsigned_abs();
    if twice > size || (twice == size && quotient % 2 != 0) {
        quotient + if (dividend < 0) == (divisor < 0) { 1 } else { -1 }
    } else {
        quotient
    }
}

/// Multiplies decimals, rounding half to even at the sixth digit after the point.
pub(super) fn multiply(a: i64, b: i64) -> Result<i64, Fault> {
    let product = divide_half_even(i128::from(a) * i128::from(b), MICROS.into());
    i64::try_from(product).map_err(|_| Fault::Error)
}

/// Divides decimals, rounding half to even at the sixth digit after the point.
pub(super) fn divide(a: i64, b: i64) -> Result<i64, Fault> {
    if b == 0 {
        return Err(Fault::Error);
    }
    let quotient = divide_half_even(i128::from(a) * i128::from(MICROS), b.into());
    i64::try_from(quotient).map_err(|_| Fault::Error)
}

/// Rounds a floating-point number half to even to millionths; None beyond the range of decimals.
pub(super) fn from_float(value: f64) -> Option<i64> {
    let micros = (value * MICROS as f64).round_ties_even();
    (micros.is_finite() && micros.abs() < 9.2e18).then_some(micros as i64)
}

/// Returns the decimal as the nearest floating-point number.
pub(super) fn to_float(micros: i64) -> f64 {
    micros as f64 / MICROS as f64
}

/// Reads a number such as `-1.5`, `.5` or `25e-3`: None if it is not one, or beyond the range of decimals.
pub(super) fn read_decimal(text: &str) -> Option<Decimal> {
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    let is_number = whole.len() + fraction.len() > 0 && !exponent.is_empty();
    if !is_number || ![whole, fraction, exponent].into_iter().all(are_digits) {
        return None;
    }
    exact::read_decimal(text, 0, 1 << 63)
}

/// Compares a whole number with a decimal, exactly.
pub(super) fn compare_mixed(whole: i64, micros: i64) -> std::cmp::Ordering {
    (i128::from(whole) * i128::from(MICROS)).cmp(&micros.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_and_quotients_are_rounded_half_to_even() {
        for (a, b, product) in [
            (1, 500_000, 0),
            (3, 500_000, 2),
            (5, 500_000, 2),
            (-1, 500_000, 0),
            (-3, 500_000, -2),
            (7, 500_001, 4),
            (2_500_000, 4_000_000, 10_000_000),
        ] {
            assert_eq!(multiply(a, b), Ok(product), "{a} * {b}");
        }
        for (a, b, quotient) in [
            (1_000_000, 3_000_000, 333_333),
            (2_000_000, 3_000_000, 666_667),
            (-2_000_000, 3_000_000, -666_667),
            (1, 2_000_000, 0),
            (3, 2_000_000, 2),
            (3, -2_000_000, -2),
        ] {
            assert_eq!(divide(a, b), Ok(quotient), "{a} / {b}");
        }
        assert_eq!(multiply(i64::MAX, 2_000_000), Err(Fault::Error));
        assert_eq!(divide(1, 0), Err(Fault::Error));
        assert_eq!(divide(i64::MIN, -1_000_000), Err(Fault::Error));
    }

    #[test]
    fn decimals_are_read_from_their_digits() {
        for (text, micros, is_exact) in [
            ("0", 0, true),
            ("1", 1_000_000, true),
            ("-1.50", -1_500_000, true),
            (".5", 500_000, true),
            ("1e3", 1_000_000_000, true),
            ("25e-3", 25_000, true),
            ("0.0000005", 0, false),
            ("0.0000015", 2, false),
            ("0.00000051", 1, false),
            ("5e-7", 0, false),
            ("51e-8", 1, false),
            ("9e-8", 0, false),
            ("0.0000000", 0, true),
            ("0e99999999999", 0, true),
            ("1e-99999999999999999999", 0, false),
            ("9223372036854.775807", i64::MAX, true),
            ("-9223372036854.775808", i64::MIN, true),
        ] {
            assert_eq!(read_decimal(text), Some(Decimal { micros, is_exact }), "{text}");
        }
        for text in ["", "-", ".", "1.2.3", "1e", "1e+", "x", "1e20", "9223372036854.775808", "--1", "1e5000"]
        {
            assert_eq!(read_decimal(text), None, "{text}");
        }
    }
}
