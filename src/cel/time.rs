//! Instants and spans of time, in milliseconds.

use std::ops::RangeInclusive;

use crate::exact;
use crate::json::{civil_from_days, days_from_civil};

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// A part of an instant, or of a duration, that a function returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    FullYear,
    /// From 0.
    Month,
    /// The day of the month, from 1.
    Date,
    /// The day of the month, from 0.
    DayOfMonth,
    /// From 0, a Sunday.
    DayOfWeek,
    /// From 0.
    DayOfYear,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

impl Part {
    /// The names of the functions.
    pub const NAMES: [(&str, Part); 10] = [
        ("getFullYear", Part::FullYear),
        ("getMonth", Part::Month),
        ("getDate", Part::Date),
        ("getDayOfMonth", Part::DayOfMonth),
        ("getDayOfWeek", Part::DayOfWeek),
        ("getDayOfYear", Part::DayOfYear),
        ("getHours", Part::Hours),
        ("getMinutes", Part::Minutes),
        ("getSeconds", Part::Seconds),
        ("getMilliseconds", Part::Milliseconds),
    ];

    /// Returns the part of an instant in UTC.
    pub fn of_instant(self, ms: i64) -> i64 {
        let (days, of_day) = (ms.div_euclid(DAY), ms.rem_euclid(DAY));
        let (year, month, day) = civil_from_days(days);
        match self {
            Part::FullYear => year,
            Part::Month => i64::from(month) - 1,
            Part::Date => day.into(),
            Part::DayOfMonth => i64::from(day) - 1,
            // 1970-01-01 was a Thursday.
            Part::DayOfWeek => (days + 4).rem_euclid(7),
            Part::DayOfYear => days - days_from_civil(year, 1, 1),
            Part::Hours => of_day / HOUR,
            Part::Minutes => of_day / MINUTE % 60,
            Part::Seconds => of_day / SECOND % 60,
            Part::Milliseconds => of_day % SECOND,
        }
    }

    /// Returns a duration in the unit of the function; of milliseconds, what is beyond whole seconds.
    pub fn of_duration(self, ms: i64) -> i64 {
        match self {
            Part::Hours => ms / HOUR,
            Part::Minutes => ms / MINUTE,
            Part::Seconds => ms / SECOND,
            _ => ms % SECOND,
        }
    }

    /// Returns true if durations have the part.
    pub fn is_of_durations(self) -> bool {
        matches!(self, Part::Hours | Part::Minutes | Part::Seconds | Part::Milliseconds)
    }
}

/// Reads a number of exactly `len` digits from the start of the text.
fn digits(text: &mut &[u8], len: usize) -> Option<i64> {
    let (digits, rest) = text.split_at_checked(len)?;
    *text = rest;
    digits
        .iter()
        .try_fold(0, |value, digit| digit.is_ascii_digit().then(|| value * 10 + i64::from(digit - b'0')))
}

fn expect(text: &mut &[u8], byte: u8) -> Option<()> {
    let (first, rest) = text.split_first()?;
    *text = rest;
    first.eq_ignore_ascii_case(&byte).then_some(())
}

/// Reads an offset from UTC such as `+01:00`, in milliseconds.
pub(super) fn read_offset(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.as_bytes() {
        [b'Z' | b'z'] | b"UTC" => return Some(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let hours = digits(&mut rest, 2).filter(|&hours| hours < 24)?;
    expect(&mut rest, b':')?;
    let minutes = digits(&mut rest, 2).filter(|&minutes| minutes < 60)?;
    rest.is_empty().then_some(sign * (hours * HOUR + minutes * MINUTE))
}

/// The first and the last millisecond of the years 1 to 9999.
const INSTANTS: RangeInclusive<i64> = -62_135_596_800_000..=253_402_300_799_999;

/// Reads an instant in RFC 3339 between the years 1 and 9999: see [`exact::read_instant`].
pub(super) fn read_instant(text: &str) -> Option<i64> {
    exact::read_instant(text).ok().filter(|ms| INSTANTS.contains(ms))
}

/// Reads a duration such as `1h30m`, `-1.5s` or `250ms`; None if it is not one, or not of whole milliseconds.
pub(super) fn read_duration(text: &str) -> Option<i64> {
    const NANOSECONDS: [(&str, i128); 7] = [
        ("ms", 1_000_000),
        ("us", 1000),
        ("µs", 1000),
        ("ns", 1),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total: i128 = 0;
    let mut first = true;
    while first || !rest.is_empty() {
        first = false;
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(end);
        let (name, unit_ns) = NANOSECONDS.into_iter().find(|(name, _)| unit.starts_with(name))?;
        rest = &unit[name.len()..];
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if number.len() > 30 || whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return None;
        }
        let scale = 10i128.checked_pow(fraction.len().try_into().ok()?)?;
        let value = format!("{whole}{fraction}").parse::<i128>().ok()?.checked_mul(unit_ns)?;
        if value % scale != 0 {
            return None;
        }
        total = total.checked_add(value / scale)?;
    }
    (total % 1_000_000 == 0).then(|| i64::try_from(sign * total / 1_000_000).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-01-02T03:04:05.678Z", 1_767_323_045_678),
            ("2026-01-02t04:04:05.6789+01:00", 1_767_323_045_678),
            ("2026-01-02T03:04:05.6z", 1_767_323_045_600),
            ("2024-02-29T00:00:00-00:30", 1_709_166_600_000),
            ("2026-01-02 03:04:05+0100", 1_767_319_445_000),
            ("2016-12-31T23:59:60Z", 1_483_228_800_000),
            ("0001-01-01T00:00:00Z", *INSTANTS.start()),
            ("9999-12-31T23:59:59.999Z", *INSTANTS.end()),
        ] {
            assert_eq!(read_instant(text), Some(ms), "{text}");
        }
        for text in [
            "",
            "2026-01-02",
            "2026-02-29T00:00:00Z",
            "2026-01-02T24:00:00Z",
            "2026-01-02T03:04:05",
            "2026-01-02T03:04:05UTC",
            "2026-01-02T03:04:05.Z",
            "2026-13-02T03:04:05Z",
            "2026-01-02T03:04:05+25:00",
            "0000-12-31T23:59:59Z",
            "9999-12-31T23:59:59-00:01",
        ] {
            assert_eq!(read_instant(text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_read() {
        for (text, ms) in [
            ("0", 0),
            ("1h30m", 90 * MINUTE),
            ("-1.5s", -1500),
            ("250ms", 250),
            ("2000us", 2),
            ("0.25m", 15_000),
        ] {
            assert_eq!(read_duration(text), Some(ms), "{text}");
        }
        let long = "9".repeat(31) + "h";
        for text in ["", "-", "1", "h", "1.2.3s", "1us", "1d", "1h ", "99999999999999999999h", ".s", &long] {
            assert_eq!(read_duration(text), None, "{text}");
        }
    }

    #[test]
    fn parts_are_those_of_utc() {
        let at = read_instant("2026-11-29T12:43:24.005Z").expect("an instant");
        let expected = [2026, 10, 29, 28, 0, 332, 12, 43, 24, 5];
        assert_eq!(Part::NAMES.map(|(_, part)| part.of_instant(at)), expected);
        assert_eq!(Part::DayOfWeek.of_instant(-1), 3);
    }
}
