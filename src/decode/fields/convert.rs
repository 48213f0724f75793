//! Conversions of scanned values to typed ones.

use std::borrow::Cow;

use super::{Form, TimeFormat};
use crate::decode::number;
use crate::decode::scan::{Scanner, Value};

/// The fault of a value: a message that follows the name of the field.
pub(super) type Wrong = Cow<'static, str>;

/// Returns the text of a string value or a number.
fn text_of<'a>(text: &'a str, value: &Value) -> Option<Cow<'a, str>> {
    match value {
        Value::Number(span) => Some(Cow::Borrowed(&text[span.range()])),
        Value::Text(string) => Some(Scanner::new(text, 0).unescaped(string)),
        _ => None,
    }
}

/// Returns the text of a number, or of a string that is one.
fn number_text<'a>(text: &'a str, value: &Value, expected: &'static str) -> Result<Cow<'a, str>, Wrong> {
    let digits = text_of(text, value).ok_or(expected)?;
    if matches!(value, Value::Number(_)) || number::is_number(&digits) {
        Ok(digits)
    } else {
        Err(expected.into())
    }
}

/// Converts to a decimal number, in millionths.
pub(super) fn decimal(text: &str, value: &Value, form: &Form) -> Result<i64, Wrong> {
    let scale = match form {
        Form::Scaled(scale) => *scale,
        _ => 0,
    };
    let digits = number_text(text, value, "must be a decimal number, as a number or as text")?;
    number::scaled_micros(&digits, scale.into()).map_err(Cow::Borrowed)
}

/// Converts to a whole number.
pub(super) fn integer(text: &str, value: &Value) -> Result<i64, Wrong> {
    const EXPECTED: &str = "must be a whole number of 64 bits, as a number or as text";
    let digits = number_text(text, value, EXPECTED)?;
    digits.parse().map_err(|_| EXPECTED.into())
}

/// Converts to a floating-point number.
pub(super) fn float(text: &str, value: &Value) -> Result<f64, Wrong> {
    let digits = number_text(text, value, "must be a number, or a text that is one")?;
    // Adding zero makes a negative zero positive.
    let parsed = digits.parse::<f64>().ok().filter(|float| float.is_finite()).map(|float| float + 0.0);
    parsed.ok_or(Cow::Borrowed("is larger than a floating-point number can be"))
}

/// Converts to a boolean.
pub(super) fn boolean(text: &str, value: &Value, form: &Form) -> Result<bool, Wrong> {
    let negated = matches!(form, Form::Negated);
    let boolean = match value {
        Value::Bool(boolean) => *boolean,
        Value::Text(_) => match text_of(text, value).as_deref() {
            Some("true") => true,
            Some("false") => false,
            _ => return Err("must be true or false".into()),
        },
        _ => return Err("must be true or false".into()),
    };
    Ok(boolean != negated)
}

/// Converts to an instant, in milliseconds since 1970.
pub(super) fn timestamp(text: &str, value: &Value, form: &Form) -> Result<i64, Wrong> {
    let Form::Time(format) = form else {
        return match value {
            Value::Number(span) => number::millis(&text[span.range()]),
            Value::Text(_) => {
                number::rfc3339(&text_of(text, value).unwrap_or_default()).map_err(Cow::Borrowed)
            }
            _ => Err("must be a string or a number".into()),
        };
    };
    let unix = |digits: u32, expected| {
        let number = number_text(text, value, expected)?;
        number::unix_ms(&number, digits.into()).map_err(Cow::Borrowed)
    };
    match format {
        TimeFormat::UnixSeconds => unix(0, "must be a number of seconds since 1970"),
        TimeFormat::UnixMillis => unix(3, "must be a number of milliseconds since 1970"),
        TimeFormat::UnixMicros => unix(6, "must be a number of microseconds since 1970"),
        TimeFormat::UnixNanos => unix(9, "must be a number of nanoseconds since 1970"),
        TimeFormat::Rfc3339 => match value {
            Value::Text(_) => {
                number::rfc3339(&text_of(text, value).unwrap_or_default()).map_err(Cow::Borrowed)
            }
            _ => Err("must be an RFC 3339 time with an offset, as a string".into()),
        },
        TimeFormat::Pattern { pattern, zone } => {
            let text = text_of(text, value).ok_or("must be a string")?;
            by_pattern(&text, pattern, zone)
        }
    }
}

/// Parses a time by a strftime pattern. A time without an offset or zone is of `zone`; of a time that the zone has twice,
/// when clocks are put back, the first.
fn by_pattern(text: &str, pattern: &str, zone: &jiff::tz::TimeZone) -> Result<i64, Wrong> {
    let wrong =
        |error: jiff::Error| -> Wrong { format!("does not fit the format {pattern:?}: {error}").into() };
    let parsed = jiff::fmt::strtime::parse(pattern, text).map_err(wrong)?;
    let ms = match parsed.to_timestamp() {
        Ok(timestamp) => timestamp.as_millisecond(),
        Err(_) => {
            let date = parsed.to_date().map_err(wrong)?;
            let time = parsed.to_time().unwrap_or(jiff::civil::Time::midnight());
            let civil = jiff::civil::DateTime::from_parts(date, time);
            zone.to_timestamp(civil).map_err(wrong)?.as_millisecond()
        }
    };
    number::in_range(ms).ok_or(Cow::Borrowed("is not within the years 1970 to 9999"))
}

/// Converts latitude or longitude, in degrees of at most `limit`.
pub(super) fn degrees(text: &str, value: &Value, name: &str, limit: f64) -> Result<f64, Wrong> {
    let degrees = float(text, value).ok().filter(|degrees| degrees.abs() <= limit);
    degrees.ok_or_else(|| format!("has no {name} from -{limit} to {limit} degrees").into())
}
