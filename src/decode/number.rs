//! Parsing of amounts and times.

use std::borrow::Cow;

use crate::exact::{NoInstant, read_decimal, read_instant};

/// The maximum amount, in millionths: 10^12.
const MAX_AMOUNT: u64 = 10u64.pow(18);

/// Parses a JSON number as an amount in millionths: at most 10^12 in absolute value, rounded half to even at the sixth
/// decimal.
pub(super) fn micros(text: &str) -> Result<i64, &'static str> {
    scaled_micros(text, 0)
}

/// Parses a JSON number that counts units of ten to the power of −`scale`, as [`micros`] does.
pub(super) fn scaled_micros(text: &str, scale: i64) -> Result<i64, &'static str> {
    let read = read_decimal(text, scale, MAX_AMOUNT);
    read.map(|decimal| decimal.micros).ok_or("is larger than 10^12")
}

/// Returns true if the whole text is a JSON number.
pub(super) fn is_number(text: &str) -> bool {
    fn digits(bytes: &[u8]) -> usize {
        bytes.iter().take_while(|byte| byte.is_ascii_digit()).count()
    }
    let mut rest = text.strip_prefix('-').unwrap_or(text).as_bytes();
    let whole = digits(rest);
    if whole == 0 || (whole > 1 && rest[0] == b'0') {
        return false;
    }
    rest = &rest[whole..];
    if let Some(fraction) = rest.strip_prefix(b".") {
        let len = digits(fraction);
        if len == 0 {
            return false;
        }
        rest = &fraction[len..];
    }
    if let [b'e' | b'E', exponent @ ..] = rest {
        let exponent = exponent.strip_prefix(b"+").or(exponent.strip_prefix(b"-")).unwrap_or(exponent);
        let len = digits(exponent);
        if len == 0 {
            return false;
        }
        rest = &exponent[len..];
    }
    rest.is_empty()
}

/// The last millisecond of the year 9999.
const LAST_MS: i64 = 253_402_300_799_999;

/// Returns true if a JSON number has neither fraction nor exponent.
pub(super) fn is_whole(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
}

/// The minimum number of milliseconds. Smaller numbers are assumed to be seconds: as milliseconds they are before March
/// 1973, as seconds they extend to the year 5138.
const MIN_MS: u64 = 100_000_000_000;

/// Parses a JSON number as a time in milliseconds since 1970.
pub(super) fn millis(text: &str) -> Result<i64, Cow<'static, str>> {
    if !is_whole(text) {
        return Err("is not a whole number of milliseconds".into());
    }
    let ms = text.parse::<i64>().ok();
    if ms.is_some_and(|ms| ms.unsigned_abs() < MIN_MS) {
        return Err(format!(
            "{text} looks like seconds: a number is in milliseconds since 1970, 10^11 or more"
        )
        .into());
    }
    ms.and_then(in_range).ok_or(Cow::Borrowed("is not within the years 1970 to 9999"))
}

/// Parses a JSON number that counts units of ten to the power of −`scale` seconds since 1970. Returns milliseconds;
/// finer digits are dropped.
pub(super) fn unix_ms(text: &str, scale: i64) -> Result<i64, &'static str> {
    let micros = scaled_micros(text, scale).ok().map(|micros| micros.div_euclid(1000));
    micros.and_then(in_range).ok_or("is not within the years 1970 to 9999")
}

/// Returns an instant that is within the years 1970 to 9999.
pub(super) fn in_range(ms: i64) -> Option<i64> {
    (0..=LAST_MS).contains(&ms).then_some(ms)
}

/// Parses an RFC 3339 time with an offset, within the years 1970 to 9999: see [`read_instant`].
pub(super) fn rfc3339(text: &str) -> Result<i64, &'static str> {
    let ms = read_instant(text).map_err(|reason| match reason {
        NoInstant::Form => "is not an RFC 3339 time with an offset, such as 2026-01-02T03:04:05.678Z",
        NoInstant::Missing => "is not a date and time of day that exists",
    })?;
    in_range(ms).ok_or("is not within the years 1970 to 9999")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact_and_bounded() {
        for (text, expected) in [
            ("0", 0),
            ("-0", 0),
            ("-0.000000", 0),
            ("12.5", 12_500_000),
            ("1E3", 1_000_000_000),
            ("1.50e-2", 15_000),
            ("0.000001", 1),
            ("1.0000000e1", 10_000_000),
            ("1.0000000", 1_000_000),
            ("1.1400000000000001", 1_140_000),
            ("0.30000000000000004", 300_000),
            ("0.0000005", 0),
            ("0.00000050000000000000000000000000001", 1),
            ("0.0000015", 2),
            ("0.0000025", 2),
            ("-0.0000035", -4),
            ("5e-7", 0),
            ("15e-7", 2),
            ("9e-7", 1),
            ("99e-9", 0),
            ("9e-8", 0),
            ("0e-7", 0),
            ("1e-999", 0),
            ("1e-99999999999999999999", 0),
            ("999999999999.9999995", 1_000_000_000_000_000_000),
            ("1000000000000.0000005", 1_000_000_000_000_000_000),
            ("1000000000000", 1_000_000_000_000_000_000),
            ("-1e12", -1_000_000_000_000_000_000),
            ("0e999", 0),
        ] {
            assert!(is_number(text));
            assert_eq!(micros(text), Ok(expected), "{text}");
        }
        for text in [
            "1000000000000.000001",
            "1000000000000.00000050001",
            "1e999",
            "1e13",
            "123456789012345678901234567890",
            "1e99999999999999999999",
        ] {
            assert!(is_number(text));
            assert!(micros(text).is_err(), "{text}");
        }
        for text in ["", "-", "+1", " 1", "1 ", "01", "1.", ".5", "1e", "1e+", "NaN", "0x1", "1_000", "１"] {
            assert!(!is_number(text), "{text}");
        }
    }

    #[test]
    fn times_need_an_offset_and_must_exist() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-01-02t03:04:05.6789z", 1_767_323_045_678),
            ("2026-01-02T03:04:05.6+01:30", 1_767_323_045_600 - 5_400_000),
            ("1969-12-31T23:00:00-01:00", 0),
            ("9999-12-31T23:59:59.999999Z", LAST_MS),
            ("2000-02-29T00:00:00Z", 951_782_400_000),
            ("2026-01-02 03:04:05Z", 1_767_323_045_000),
            ("2026-01-02T03:04:05+0100", 1_767_319_445_000),
            ("2016-12-31T23:59:60Z", 1_483_228_800_000),
            ("1990-12-31T15:59:60.5-08:00", 662_688_000_500),
        ] {
            assert_eq!(rfc3339(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "2026-01-02",
            "2026-01-02T03:04:05",
            "2026-1-2T03:04:05Z",
            "2026-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2026-01-02T24:00:00Z",
            "2026-01-02T03:04:60Z",
            "2026-01-02T03:04:05.Z",
            "2026-13-01T00:00:00Z",
            "2026-01-02T03:04:05+24:00",
            "2026-01-02T03:04:05+01",
            "2026-01-02T03:04:05+010",
            "2026-01-02T03:04:05+01:000",
            "2026-01-02T23:59:60Z",
            "2016-12-31T23:59:61Z",
            "2016-12-31T23:59:60+01:00",
            "9999-12-31T23:59:60Z",
            "2026-01-02T03:04:05Zx",
            "1969-12-31T23:59:59Z",
            "10000-01-01T00:00:00Z",
            "0000-01-01T00:00:00Z",
            "2026-01-02T03:04:05é",
            "9999-12-31T23:59:59-00:01",
        ] {
            assert!(rfc3339(text).is_err(), "{text}");
        }
        assert_eq!(millis("253402300799999"), Ok(LAST_MS));
        assert_eq!(millis("100000000000"), Ok(100_000_000_000));
        for text in ["-100000000000", "253402300800000", "1767323045678.0", "1767e9", "99999999999999999999"]
        {
            assert!(millis(text).is_err_and(|what| !what.contains("looks like")), "{text}");
        }
        for text in ["0", "-1", "1772330400", "99999999999", "-99999999999"] {
            assert!(
                millis(text).is_err_and(|what| what.starts_with(text) && what.contains("looks like seconds"))
            );
        }
    }
}
