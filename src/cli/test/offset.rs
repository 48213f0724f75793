//! Virtual times: offsets from a fixed beginning.

use crate::settings::duration_ms;

/// The beginning of every test, in milliseconds since 1970: 2030-01-01T00:00:00Z, a Tuesday.
pub const BEGINNING_MS: i64 = 1_893_456_000_000;

/// The greatest distance from the beginning, in milliseconds: 365,000 days. All times stay before the year 9999.
pub const MOST_MS: i64 = 365_000 * 86_400_000;

/// Parses an offset: a duration, or several with decreasing units, such as `90s` or `1h30m`. Returns milliseconds.
pub fn parse(text: &str) -> Option<i64> {
    let mut sum = 0_i64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let unit = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let (part, after) = rest.split_at(digits + unit);
        sum = sum.checked_add(duration_ms(part)?)?;
        rest = after;
    }
    (!text.is_empty() && sum <= MOST_MS).then_some(sum)
}

/// Parses an offset that may be negative, such as `-90d`.
pub fn parse_signed(text: &str) -> Option<i64> {
    match text.strip_prefix('-') {
        Some(before) => parse(before).map(|ms| -ms),
        None => parse(text),
    }
}

/// Displays an offset as [`parse_signed`] reads it.
pub fn display(ms: i64) -> String {
    let mut text = if ms < 0 { "-".to_owned() } else { String::new() };
    let mut rest = ms.unsigned_abs();
    for (unit, length) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        if rest >= length {
            text += &format!("{}{unit}", rest / length);
            rest %= length;
        }
    }
    if ms == 0 { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_durations_one_after_the_other() {
        for (text, ms) in [("0s", 0), ("190s", 190_000), ("1h30m", 5_400_000), ("2d1s5ms", 172_801_005)] {
            assert_eq!(parse(text), Some(ms), "{text}");
            assert_eq!(parse_signed(&display(ms)), Some(ms), "{text}");
        }
        assert_eq!(parse_signed("-1h"), Some(-3_600_000));
        assert_eq!(parse_signed(&display(-3_600_001)), Some(-3_600_001));
        for text in ["", "1", "s", "1.5s", "-1s", "1h 5m", "400000d", "99999999999999d99999999999999d"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(crate::json::rfc3339(BEGINNING_MS), "2030-01-01T00:00:00.000Z");
    }
}
