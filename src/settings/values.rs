//! Durations and sizes with units.

/// Parses a duration such as `10ms`, `5s`, `1m`, `1h` or `30d`; returns milliseconds.
pub fn duration_ms(text: &str) -> Option<i64> {
    let (number, factor) =
        split(text, &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)])?;
    number.checked_mul(factor)
}

/// Parses a size such as `64MiB`; returns bytes.
pub fn size_bytes(text: &str) -> Option<i64> {
    let (number, factor) = split(text, &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)])?;
    number.checked_mul(factor)
}

fn split(text: &str, units: &[(&str, i64)]) -> Option<(i64, i64)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    Some((number.parse().ok()?, *factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_need_a_unit() {
        assert_eq!(duration_ms("10ms"), Some(10));
        assert_eq!(duration_ms("30d"), Some(2_592_000_000));
        assert_eq!(duration_ms("0s"), Some(0));
        assert_eq!(size_bytes("64MiB"), Some(67_108_864));
        for text in
            ["", "10", "ms", "-1s", "1.5s", "10 ms", "1y", "99999999999999999999s", "9223372036854775807d"]
        {
            assert_eq!(duration_ms(text), None, "{text}");
        }
    }
}
