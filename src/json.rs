//! Hand-written JSON encoding, for speed: it is used for every event.

/// Appends `text` as a JSON string.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(control >> 4)]);
                out.push(HEX[usize::from(control & 15)]);
            }
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Appends a whole number.
pub fn write_int(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    write_digits(out, value.unsigned_abs());
}

fn write_digits(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends millionths as a decimal number without trailing zeros.
pub fn write_micros(out: &mut Vec<u8>, micros: i64) {
    if micros < 0 {
        out.push(b'-');
    }
    let size = micros.unsigned_abs();
    write_digits(out, size / 1_000_000);
    let mut fraction = size % 1_000_000;
    if fraction > 0 {
        out.push(b'.');
        let mut unit = 100_000;
        while fraction > 0 {
            out.push(b'0' + (fraction / unit) as u8);
            fraction %= unit;
            unit /= 10;
        }
    }
}

/// Returns millionths as a decimal number without trailing zeros.
pub fn decimal(micros: i128) -> String {
    let sign = if micros < 0 { "-" } else { "" };
    let size = micros.unsigned_abs();
    let text = format!("{sign}{}.{:06}", size / 1_000_000, size % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Returns a value in TOML, as effective configurations have it, as JSON.
pub fn of_toml(text: &str) -> serde_json::Value {
    let parsed = toml::from_str::<toml::Table>(&format!("value = {text}")).ok();
    let value = parsed.and_then(|mut table| serde_json::to_value(table.remove("value")?).ok());
    value.unwrap_or_else(|| text.into())
}

/// Appends a number rounded to six significant digits; `null` if it is not finite.
pub fn write_rounded(out: &mut Vec<u8>, value: f64) {
    use std::io::Write;
    if value.is_finite() {
        write!(out, "{}", round6(value)).expect("writing to a Vec cannot fail");
    } else {
        out.extend_from_slice(b"null");
    }
}

/// Appends a number in the shortest form that parses to the same value.
pub fn write_float(out: &mut Vec<u8>, value: f64) {
    use std::io::Write;
    write!(out, "{value}").expect("writing to a Vec cannot fail");
}

/// Rounds a number to six significant digits.
pub fn round6(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powi(5 - value.abs().log10().floor() as i32);
    if scale.is_finite() && scale != 0.0 { (value * scale).round() / scale } else { value }
}

/// Returns the days since 1970-01-01 of a date in the proleptic Gregorian calendar.
///
/// Years are counted from March, so that the leap day is the last of the year, in eras of 400 years (146,097 days); see
/// H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", 2013.
pub fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = i64::from((month + 9) % 12);
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Returns the date, as (year, month, day), of a number of days since 1970-01-01: the inverse of [`days_from_civil`].
pub fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u32;
    let month = (if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 }) as u32;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Appends a time, in milliseconds since 1970, as RFC 3339 in UTC: `2026-01-02T03:04:05.678Z`.
pub fn write_time(out: &mut Vec<u8>, ms: i64) {
    let (year, month, day) = civil_from_days(ms.div_euclid(86_400_000));
    let of_day = ms.rem_euclid(86_400_000) as u64;
    let mut padded = |value: u64, width: u32, after: u8| {
        let mut unit = 10u64.pow(width - 1);
        while unit > 0 {
            out.push(b'0' + (value / unit % 10) as u8);
            unit /= 10;
        }
        out.push(after);
    };
    padded(year.unsigned_abs(), 4, b'-');
    padded(month.into(), 2, b'-');
    padded(day.into(), 2, b'T');
    padded(of_day / 3_600_000, 2, b':');
    padded(of_day / 60_000 % 60, 2, b':');
    padded(of_day / 1000 % 60, 2, b'.');
    padded(of_day % 1000, 3, b'Z');
}

/// Formats a time, in milliseconds since 1970, as RFC 3339 in UTC.
pub fn rfc3339(ms: i64) -> String {
    let mut out = Vec::with_capacity(24);
    write_time(&mut out, ms);
    String::from_utf8(out).expect("digits and punctuation are UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("JSON is UTF-8")
    }

    #[test]
    fn written_strings_parse_to_the_same_text() {
        let text: String = (0u8..0x80).map(char::from).chain("é€𝄞".chars()).collect();
        let json = written(|out| write_string(out, &text));
        assert_eq!(serde_json::from_str::<String>(&json).expect("JSON"), text);
    }

    #[test]
    fn numbers_have_no_superfluous_digits() {
        for (micros, text) in [
            (0, "0"),
            (1, "0.000001"),
            (-1_500_000, "-1.5"),
            (10_000_000, "10"),
            (i64::MIN, "-9223372036854.775808"),
        ] {
            assert_eq!(written(|out| write_micros(out, micros)), text);
        }
        for (value, text) in [
            (0.0, "0"),
            (1234567.0, "1234570"),
            (-0.000123456789, "-0.000123457"),
            (f64::INFINITY, "null"),
            (99999.95, "100000"),
        ] {
            assert_eq!(written(|out| write_rounded(out, value)), text);
        }
        assert_eq!(written(|out| write_int(out, i64::MIN)), i64::MIN.to_string());
    }

    #[test]
    fn dates_and_days_are_inverse_from_1970_to_9999() {
        for (date, days) in [
            ((1970, 1, 1), 0),
            ((2000, 2, 29), 11_016),
            ((2026, 11, 23), 20_780),
            ((9999, 12, 31), 2_932_896),
        ] {
            assert_eq!(days_from_civil(date.0, date.1, date.2), days);
            assert_eq!(civil_from_days(days), date);
        }
        for days in -1000..2_932_897 {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
        assert_eq!(rfc3339(1_767_323_045_678), "2026-01-02T03:04:05.678Z");
        assert_eq!(rfc3339(253_402_300_799_999), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn decimal_numbers_have_no_superfluous_digits() {
        for (micros, text) in [(0, "0"), (120_500_000, "120.5"), (-1, "-0.000001"), (10_000_000, "10")] {
            assert_eq!(decimal(micros), text);
        }
        assert_eq!(decimal(i128::MAX), "170141183460469231731687303715884.105727");
    }
}
