//! Parsing of amounts and times.

use std::borrow::Cow;

/// The maximum amount, in millionths: 10^12.
const MAX_AMOUNT: u64 = 10u64.pow(18);

/// Parses a JSON number as an amount in millionths: at most 10^12 in absolute value, rounded half to even at the sixth
/// decimal.
pub(super) fn micros(text: &str) -> Result<i64, &'static str> {
    scaled_micros(text, 0)
}

/// Parses a JSON number that counts units of ten to the power of −`scale`, as [`micros`] does.
pub(super) fn scaled_micros(text: &str, scale: i64) -> Result<i64, &'static str> {
    const TOO_LARGE: &str = "is larger than 10^12";
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match digits.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (digits, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent = match exponent {
        None => 0,
        Some(text) => {
            let size = text.trim_start_matches(['+', '-']).trim_start_matches('0');
            // An exponent with more digits is out of range for any number of decimals that fit into a record.
            let size = if size.len() > 12 { 1_000_000_000_000 } else { size.parse().unwrap_or(0) };
            if text.starts_with('-') { -size } else { size }
        }
    };
    let decimals = fraction.len() as i64 - exponent + scale;
    // The number of digits after the sixth decimal.
    let dropped = usize::try_from(decimals - 6).unwrap_or(0);
    let kept = (whole.len() + fraction.len()).saturating_sub(dropped);
    let mut micros: u64 = 0;
    for digit in whole.bytes().chain(fraction.bytes()).take(kept) {
        // No overflow: ten times the largest amount and a digit fit.
        micros = micros * 10 + u64::from(digit - b'0');
        if micros > MAX_AMOUNT {
            return Err(TOO_LARGE);
        }
    }
    if dropped > 0 {
        // If more digits are dropped than there are, the first dropped digit is a zero.
        let rest =
            if dropped > whole.len() + fraction.len() { (false, false) } else { half(whole, fraction, kept) };
        micros += u64::from(rest.0 && (rest.1 || micros % 2 == 1));
    } else if micros > 0 {
        let power = u32::try_from(6 - decimals).ok().filter(|&power| power <= 18).ok_or(TOO_LARGE)?;
        micros = micros.checked_mul(10u64.pow(power)).ok_or(TOO_LARGE)?;
    }
    if micros > MAX_AMOUNT {
        return Err(TOO_LARGE);
    }
    let size = micros as i64;
    Ok(if negative { -size } else { size })
}

/// Compares the digits from `kept` on with half a unit of the last kept digit: returns whether they are at least half,
/// and whether they are more than half.
fn half(whole: &str, fraction: &str, kept: usize) -> (bool, bool) {
    let mut rest = whole.bytes().chain(fraction.bytes()).skip(kept);
    let first = rest.next().unwrap_or(b'0');
    (first >= b'5', first > b'5' || rest.any(|digit| digit != b'0'))
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

/// Parses an RFC 3339 time with an offset. Returns milliseconds since 1970; finer digits are dropped. A space instead
/// of the `T` and an offset without a colon are accepted, too. A leap second is the instant that follows it.
pub(super) fn rfc3339(text: &str) -> Result<i64, &'static str> {
    const NO_TIME: &str = "is not a date and time of day that exists";
    const FORM: &str = "is not an RFC 3339 time with an offset, such as 2026-01-02T03:04:05.678Z";
    let bytes = text.as_bytes();
    let number = |range: std::ops::Range<usize>| -> Result<u32, &'static str> {
        let digits = bytes.get(range).ok_or(FORM)?;
        digits.iter().try_fold(0, |sum, byte| {
            if byte.is_ascii_digit() { Ok(sum * 10 + u32::from(byte - b'0')) } else { Err(FORM) }
        })
    };
    let expect =
        |at: usize, any: &[u8]| bytes.get(at).filter(|byte| any.contains(byte)).map(drop).ok_or(FORM);
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    expect(4, b"-")?;
    expect(7, b"-")?;
    expect(10, b"Tt ")?;
    expect(13, b":")?;
    expect(16, b":")?;
    let mut at = 19;
    let mut ms = 0;
    if bytes.get(at) == Some(&b'.') {
        let digits = bytes[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return Err(FORM);
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
            let (hours, minutes) = (number(at + 1..at + 3)?, number(at + 3 + colon..at + 5 + colon)?);
            if hours > 23 || minutes > 59 {
                return Err(FORM);
            }
            at += 5 + colon;
            let offset = i64::from(hours * 60 + minutes);
            if *sign == b'-' { -offset } else { offset }
        }
        _ => return Err(FORM),
    };
    if at != bytes.len() {
        return Err(FORM);
    }
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days_in_month = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    if day == 0 || day > days_in_month || hour > 23 || minute > 59 || second > 60 {
        return Err(NO_TIME);
    }
    let days = crate::json::days_from_civil(year.into(), month, day);
    let minutes = days * 1440 + i64::from(hour * 60 + minute) - offset_minutes;
    if second == 60 && !is_first_of_month(minutes + 1) {
        return Err(NO_TIME);
    }
    in_range(minutes * 60_000 + i64::from(second) * 1000 + ms).ok_or("is not within the years 1970 to 9999")
}

/// Returns true if a minute is the first of a month in UTC: leap seconds precede such a minute.
fn is_first_of_month(minutes: i64) -> bool {
    minutes % 1440 == 0 && crate::json::civil_from_days(minutes / 1440).2 == 1
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
