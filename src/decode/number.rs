//! Amounts and times, read from their text.

/// An amount in millionths, from a JSON number's text: at most six decimals and 10^12 in size.
pub(super) fn micros(text: &str) -> Result<i64, &'static str> {
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
            // With that many digits it is out of every range, whatever decimals a record has room for.
            let size = if size.len() > 12 { 1_000_000_000_000 } else { size.parse().unwrap_or(0) };
            if text.starts_with('-') { -size } else { size }
        }
    };
    let decimals = fraction.len() as i64 - exponent;
    if decimals > 6 {
        return Err("has more than six decimals");
    }
    let mut micros: u128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        micros = micros * 10 + u128::from(digit - b'0');
        if micros > 10u128.pow(18) {
            return Err(TOO_LARGE);
        }
    }
    if micros > 0 {
        let power = u32::try_from(6 - decimals).ok().filter(|&power| power <= 18).ok_or(TOO_LARGE)?;
        micros *= 10u128.pow(power);
    }
    if micros > 10u128.pow(18) {
        return Err(TOO_LARGE);
    }
    let size = micros as i64;
    Ok(if negative { -size } else { size })
}

/// Whether a text is a JSON number and nothing else.
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

/// A time in milliseconds since 1970, from a JSON number's text.
pub(super) fn millis(text: &str) -> Result<i64, &'static str> {
    if text.contains(['.', 'e', 'E']) {
        return Err("is not a whole number of milliseconds");
    }
    text.parse().ok().and_then(in_range).ok_or("is not within the years 1970 to 9999")
}

fn in_range(ms: i64) -> Option<i64> {
    (0..=LAST_MS).contains(&ms).then_some(ms)
}

/// A time in milliseconds since 1970, from RFC 3339 with an offset. Digits finer than milliseconds are dropped.
pub(super) fn rfc3339(text: &str) -> Result<i64, &'static str> {
    const FORM: &str = "is not an RFC 3339 time with an offset";
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
    expect(10, b"Tt")?;
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
            let (hours, minutes) = (number(at + 1..at + 3)?, number(at + 4..at + 6)?);
            expect(at + 3, b":")?;
            if hours > 23 || minutes > 59 {
                return Err(FORM);
            }
            at += 6;
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
    if day == 0 || day > days_in_month || hour > 23 || minute > 59 || second > 59 {
        return Err("is not a date and time of day that exists");
    }
    let days = crate::json::days_from_civil(year.into(), month, day);
    let minutes = days * 1440 + i64::from(hour * 60 + minute) - offset_minutes;
    in_range(minutes * 60_000 + i64::from(second) * 1000 + ms).ok_or("is not within the years 1970 to 9999")
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
            ("1000000000000", 1_000_000_000_000_000_000),
            ("-1e12", -1_000_000_000_000_000_000),
            ("0e999", 0),
        ] {
            assert!(is_number(text));
            assert_eq!(micros(text), Ok(expected), "{text}");
        }
        for text in [
            "1.0000000",
            "1e-7",
            "0e-7",
            "1000000000000.000001",
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
        ] {
            assert_eq!(rfc3339(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "2026-01-02",
            "2026-01-02T03:04:05",
            "2026-01-02 03:04:05Z",
            "2026-1-2T03:04:05Z",
            "2026-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2026-01-02T24:00:00Z",
            "2026-01-02T03:04:60Z",
            "2026-01-02T03:04:05.Z",
            "2026-13-01T00:00:00Z",
            "2026-01-02T03:04:05+24:00",
            "2026-01-02T03:04:05+0100",
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
        for text in ["-1", "253402300800000", "1.0", "1e3", "99999999999999999999"] {
            assert!(millis(text).is_err(), "{text}");
        }
    }
}
