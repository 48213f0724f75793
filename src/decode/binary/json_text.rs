//! The JSON text of a record in another format. Its size and depth are bounded, whatever the record says.

use super::Malformed;
use crate::json;

/// The maximum size of the text, in bytes: that of a record in JSON.
const MAX_TEXT: usize = 1 << 20;

/// The maximum nesting of objects and arrays, as in JSON.
const MAX_DEPTH: usize = 64;

/// The maximum size of a decimal number, in bytes.
const MAX_DECIMAL: usize = 128;

/// JSON that is being written.
#[derive(Debug, Default)]
pub struct JsonText {
    out: Vec<u8>,
    depth: usize,
}

impl JsonText {
    /// Empties the text, and keeps its memory.
    pub fn clear(&mut self) {
        self.out.clear();
        self.depth = 0;
    }

    /// Returns the text.
    pub fn bytes(&self) -> &[u8] {
        &self.out
    }

    /// Begins an object or array; `open` is its bracket.
    pub fn open(&mut self, open: u8) -> Result<(), Malformed> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("its values nest deeper than 64".into());
        }
        self.out.push(open);
        self.check_size()
    }

    /// Ends an object or array.
    pub fn close(&mut self, close: u8) {
        self.depth -= 1;
        self.out.push(close);
    }

    fn check_size(&self) -> Result<(), Malformed> {
        if self.out.len() > MAX_TEXT {
            return Err("as JSON, it has more than 1 MiB".into());
        }
        Ok(())
    }

    /// Writes a comma, unless the last written byte opens an object or array.
    pub fn separate(&mut self) {
        if !matches!(self.out.last(), Some(b'{' | b'[')) {
            self.out.push(b',');
        }
    }

    /// Begins a member of an object.
    pub fn name(&mut self, name: &str) {
        self.separate();
        json::write_string(&mut self.out, name);
        self.out.push(b':');
    }

    /// Writes text as it is: a number, or a literal.
    pub fn literal(&mut self, text: &str) -> Result<(), Malformed> {
        self.out.extend_from_slice(text.as_bytes());
        self.check_size()
    }

    /// Writes a string.
    pub fn string(&mut self, text: &str) -> Result<(), Malformed> {
        if text.len() > MAX_TEXT {
            return Err("as JSON, it has more than 1 MiB".into());
        }
        json::write_string(&mut self.out, text);
        self.check_size()
    }

    /// Writes a string of UTF-8.
    pub fn utf8(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.string(text),
            Err(error) => Err(format!("a text is not UTF-8 at byte {}", error.valid_up_to()).into()),
        }
    }

    /// Writes a whole number.
    pub fn int(&mut self, value: i64) -> Result<(), Malformed> {
        json::write_int(&mut self.out, value);
        self.check_size()
    }

    /// Writes a whole number without a sign.
    pub fn unsigned(&mut self, value: u64) -> Result<(), Malformed> {
        match i64::try_from(value) {
            Ok(value) => self.int(value),
            Err(_) => self.literal(&value.to_string()),
        }
    }

    /// Writes a floating-point number in the shortest form that parses to the same value; a string for the values that
    /// JSON does not have.
    pub fn float(
        &mut self,
        value: impl std::fmt::Display + std::fmt::LowerExp + Into<f64> + Copy,
    ) -> Result<(), Malformed> {
        use std::io::Write;
        let wide: f64 = value.into();
        let size = wide.abs();
        let written = if wide.is_nan() {
            write!(self.out, "\"NaN\"")
        } else if wide.is_infinite() {
            write!(self.out, "\"{}Infinity\"", if wide < 0.0 { "-" } else { "" })
        } else if size != 0.0 && !(1e-5..1e16).contains(&size) {
            write!(self.out, "{value:e}")
        } else {
            write!(self.out, "{value}")
        };
        written.expect("writing to a Vec cannot fail");
        self.check_size()
    }

    /// Writes a boolean.
    pub fn boolean(&mut self, value: bool) -> Result<(), Malformed> {
        self.literal(if value { "true" } else { "false" })
    }

    /// Writes bytes, in Base64.
    pub fn base64(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        use base64::Engine;
        if bytes.len() > MAX_TEXT {
            return Err("as JSON, it has more than 1 MiB".into());
        }
        self.literal(&format!("\"{}\"", base64::engine::general_purpose::STANDARD.encode(bytes)))
    }

    /// Writes an instant, of `units` since 1970, `per_second` of which are a second, as RFC 3339 with `digits` decimal
    /// digits. An instant beyond the years 0 to 9999 is written as the number.
    pub fn timestamp(
        &mut self,
        units: i64,
        per_second: i64,
        digits: u32,
        is_local: bool,
    ) -> Result<(), Malformed> {
        let seconds = units.div_euclid(per_second);
        self.instant(seconds, units.rem_euclid(per_second), digits, is_local, units)
    }

    /// Writes an instant of seconds since 1970 and a fraction in units of ten to the power of −`digits`; `number` is
    /// written instead if it has no RFC 3339 form.
    pub fn instant(
        &mut self,
        seconds: i64,
        fraction: i64,
        digits: u32,
        is_local: bool,
        number: i64,
    ) -> Result<(), Malformed> {
        /// The first second of the year 0, and the one after the year 9999.
        const YEARS: std::ops::Range<i64> = -62_167_219_200..253_402_300_800;
        if !YEARS.contains(&seconds) {
            return self.int(number);
        }
        self.out.push(b'"');
        self.date(seconds.div_euclid(86_400));
        self.out.push(b'T');
        self.time_of_day(seconds.rem_euclid(86_400), fraction, digits);
        self.out.extend_from_slice(if is_local { b"\"" } else { b"Z\"" });
        self.check_size()
    }

    fn padded(&mut self, value: i64, digits: u32) {
        for digit in (0..digits).rev() {
            self.out.push(b'0' + (value / 10i64.pow(digit) % 10) as u8);
        }
    }

    fn date(&mut self, days: i64) {
        let (year, month, day) = json::civil_from_days(days);
        self.padded(year, 4);
        self.out.push(b'-');
        self.padded(month.into(), 2);
        self.out.push(b'-');
        self.padded(day.into(), 2);
    }

    fn time_of_day(&mut self, second: i64, fraction: i64, digits: u32) {
        self.padded(second / 3600, 2);
        self.out.push(b':');
        self.padded(second / 60 % 60, 2);
        self.out.push(b':');
        self.padded(second % 60, 2);
        self.out.push(b'.');
        self.padded(fraction, digits);
    }

    /// Writes a day, as `2026-01-31`; the number of days since 1970 if it is beyond the years 0 to 9999.
    pub fn day(&mut self, days: i64) -> Result<(), Malformed> {
        if !(-719_528..2_932_897).contains(&days) {
            return self.int(days);
        }
        self.out.push(b'"');
        self.date(days);
        self.out.push(b'"');
        self.check_size()
    }

    /// Writes the time of a day, as `23:59:59.999`; the number if a day is shorter.
    pub fn time(&mut self, units: i64, per_second: i64, digits: u32) -> Result<(), Malformed> {
        if !(0..86_400 * per_second).contains(&units) {
            return self.int(units);
        }
        self.out.push(b'"');
        self.time_of_day(units / per_second, units % per_second, digits);
        self.out.push(b'"');
        self.check_size()
    }

    /// Writes a decimal number exactly: a whole number in two's complement, the highest byte first, with this many
    /// decimal places.
    pub fn decimal(&mut self, bytes: &[u8], scale: u32) -> Result<(), Malformed> {
        if bytes.len() > MAX_DECIMAL {
            return Err(format!("a decimal number has {} bytes, more than {MAX_DECIMAL}", bytes.len()).into());
        }
        let is_negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
        let mut size = bytes.to_vec();
        if is_negative {
            negate(&mut size);
        }
        let mut digits = decimal_digits(&size);
        let scale = scale as usize;
        while digits.len() <= scale {
            digits.insert(0, b'0');
        }
        let whole = digits.len() - scale;
        if is_negative {
            self.out.push(b'-');
        }
        self.out.extend_from_slice(&digits[..whole]);
        if scale > 0 {
            self.out.push(b'.');
            self.out.extend_from_slice(&digits[whole..]);
        }
        self.check_size()
    }
}

/// Negates a number in two's complement.
fn negate(bytes: &mut [u8]) {
    let mut carry = true;
    for byte in bytes.iter_mut().rev() {
        (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
    }
}

/// Returns the decimal digits of a number, whose highest byte is the first.
fn decimal_digits(bytes: &[u8]) -> Vec<u8> {
    if let Some(small) = small(bytes) {
        return small.to_string().into_bytes();
    }
    let mut number = bytes.to_vec();
    let mut digits = Vec::new();
    while number.iter().any(|&byte| byte != 0) {
        let mut rest = 0u32;
        for byte in &mut number {
            let value = rest << 8 | u32::from(*byte);
            *byte = (value / 10) as u8;
            rest = value % 10;
        }
        digits.push(b'0' + rest as u8);
    }
    digits.reverse();
    digits
}

/// Returns the number if it fits.
fn small(bytes: &[u8]) -> Option<u128> {
    (bytes.len() <= 16).then(|| bytes.iter().fold(0, |number, byte| number << 8 | u128::from(*byte)))
}
