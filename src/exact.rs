//! Decimals and instants, read exactly from their digits: those of records, and those of expressions.

use crate::json::{civil_from_days, days_from_civil};

/// A decimal that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decimal {
    /// The value in millionths, rounded half to even.
    pub micros: i64,
    /// False if digits were lost.
    pub is_exact: bool,
}

/// Reads a decimal such as `-1.5` or `25e-3` that counts units of ten to the power of −`scale`. Returns None if it is more
/// than `limit` millionths in size; `limit` is at most 2^63. The text must be digits with at most one point, a sign before
/// them and an exponent after them.
pub fn read_decimal(text: &str, scale: i64, limit: u64) -> Option<Decimal> {
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match digits.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, read_exponent(exponent)),
        None => (digits, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = || whole.bytes().chain(fraction.bytes());
    let (len, decimals) = (whole.len() + fraction.len(), fraction.len() as i64 - exponent + scale);
    // The number of digits after the sixth decimal. It may exceed the number of digits: the first dropped one is then a
    // zero before them.
    let dropped = usize::try_from(decimals - 6).unwrap_or(0);
    let kept = len.saturating_sub(dropped);
    let mut micros: u64 = 0;
    for digit in all().take(kept) {
        micros = micros.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    let mut is_exact = true;
    if dropped > 0 {
        is_exact = all().skip(kept).all(|digit| digit == b'0');
        let (is_half, is_more) = if dropped > len { (false, false) } else { half(all().skip(kept)) };
        micros += u64::from(is_half && (is_more || micros % 2 == 1));
    } else if micros > 0 {
        let power = u32::try_from(6 - decimals).ok()?;
        micros = 10u64.checked_pow(power).and_then(|power| micros.checked_mul(power))?;
    }
    if micros > limit {
        return None;
    }
    let micros = match is_negative {
        true => 0i64.checked_sub_unsigned(micros)?,
        false => i64::try_from(micros).ok()?,
    };
    Some(Decimal { micros, is_exact })
}

/// Reads an exponent. One with more digits than twelve is out of range for any number of decimals.
fn read_exponent(text: &str) -> i64 {
    let size = text.trim_start_matches(['+', '-']).trim_start_matches('0');
    let size = if size.len() > 12 { 1_000_000_000_000 } else { size.parse().unwrap_or(0) };
    if text.starts_with('-') { -size } else { size }
}

/// Compares dropped digits with half a unit of the last kept digit: returns whether they are at least half, and whether
/// they are more than half.
fn half(mut dropped: impl Iterator<Item = u8>) -> (bool, bool) {
    let first = dropped.next().unwrap_or(b'0');
    (first >= b'5', first > b'5' || dropped.any(|digit| digit != b'0'))
}

/// The reason why a text is no instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoInstant {
    /// It has not the form of RFC 3339 with an offset.
    Form,
    /// The date or the time of day does not exist.
    Missing,
}

/// Reads an RFC 3339 time with an offset. Returns milliseconds since 1970; finer digits are dropped. A space instead of the
/// `T` and an offset without a colon are accepted, too. A leap second is the instant that follows it.
///
/// # Errors
/// If the text is no such time.
pub fn read_instant(text: &str) -> Result<i64, NoInstant> {
    let bytes = text.as_bytes();
    let head: &[u8; 19] = bytes.first_chunk().ok_or(NoInstant::Form)?;
    let mut has_form = true;
    let mut number = |bytes: &[u8]| {
        bytes.iter().fold(0, |sum, byte| {
            has_form &= byte.is_ascii_digit();
            sum * 10 + u32::from(byte.wrapping_sub(b'0'))
        })
    };
    let (year, month, day) = (number(&head[..4]), number(&head[5..7]), number(&head[8..10]));
    let (hour, minute, second) = (number(&head[11..13]), number(&head[14..16]), number(&head[17..]));
    let has_marks = (head[4], head[7], head[13], head[16]) == (b'-', b'-', b':', b':');
    if !has_form || !has_marks || !matches!(head[10], b'T' | b't' | b' ') {
        return Err(NoInstant::Form);
    }
    let mut at = 19;
    let mut ms = 0;
    if bytes.get(at) == Some(&b'.') {
        let digits = bytes[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return Err(NoInstant::Form);
        }
        for place in 0..3 {
            ms = ms * 10 + if place < digits { i64::from(bytes[at + 1 + place] - b'0') } else { 0 };
        }
        at += 1 + digits;
    }
    let offset_minutes = match bytes.get(at) {
        Some(b'Z' | b'z') => {
            at += 1;
            0
        }
        Some(sign @ (b'+' | b'-')) => {
            let colon = usize::from(bytes.get(at + 3) == Some(&b':'));
            let pair = |at: usize| match bytes.get(at..at + 2) {
                Some([tens @ b'0'..=b'9', ones @ b'0'..=b'9']) => {
                    Ok(u32::from(tens - b'0') * 10 + u32::from(ones - b'0'))
                }
                _ => Err(NoInstant::Form),
            };
            let (hours, minutes) = (pair(at + 1)?, pair(at + 3 + colon)?);
            if hours > 23 || minutes > 59 {
                return Err(NoInstant::Form);
            }
            at += 5 + colon;
            let offset = i64::from(hours * 60 + minutes);
            if *sign == b'-' { -offset } else { offset }
        }
        _ => return Err(NoInstant::Form),
    };
    if at != bytes.len() {
        return Err(NoInstant::Form);
    }
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days_in_month = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    if day == 0 || day > days_in_month || hour > 23 || minute > 59 || second > 60 {
        return Err(NoInstant::Missing);
    }
    let days = days_from_civil(year.into(), month, day);
    let minutes = days * 1440 + i64::from(hour * 60 + minute) - offset_minutes;
    if second == 60 && !is_first_of_month(minutes + 1) {
        return Err(NoInstant::Missing);
    }
    Ok(minutes * 60_000 + i64::from(second) * 1000 + ms)
}

/// Returns true if a minute is the first of a month in UTC: leap seconds precede such a minute.
fn is_first_of_month(minutes: i64) -> bool {
    minutes % 1440 == 0 && civil_from_days(minutes / 1440).2 == 1
}
