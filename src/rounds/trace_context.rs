//! The trace context of a record, as W3C's `traceparent` header carries it.

/// The name of the header.
pub const TRACEPARENT: &str = "traceparent";

/// A span of another system, by which a record was produced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The id of the trace.
    pub trace_id: [u8; 16],
    /// The id of the span within the trace.
    pub span_id: [u8; 8],
    /// The flags of the trace; the lowest bit says that it is sampled.
    pub flags: u8,
}

/// The flag of a trace that is sampled.
const SAMPLED: u8 = 1;

/// The length of the header's fields of version 00. Later versions may append fields, after another hyphen.
const LENGTH: usize = 55;

impl TraceContext {
    /// Parses the value of a header. Returns None if it is not valid, or if the trace is not sampled.
    pub fn sampled(header: &[u8]) -> Option<TraceContext> {
        let fields = header.get(..LENGTH)?;
        let [version] = hex(&fields[..2])?;
        let is_complete = match header.get(LENGTH) {
            None => true,
            Some(next) => version > 0 && *next == b'-',
        };
        let has_hyphens = [2, 35, 52].iter().all(|&at| fields[at] == b'-');
        if version == 0xff || !is_complete || !has_hyphens {
            return None;
        }
        let (trace_id, span_id): ([u8; 16], [u8; 8]) = (hex(&fields[3..35])?, hex(&fields[36..52])?);
        let [flags] = hex(&fields[53..55])?;
        let is_valid = trace_id != [0; 16] && span_id != [0; 8];
        (is_valid && flags & SAMPLED != 0).then_some(TraceContext { trace_id, span_id, flags })
    }
}

/// Decodes hexadecimal digits in lower case, which the specification demands.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_sampled_context_is_parsed() {
        let context = TraceContext::sampled(VALID.as_bytes()).expect("valid");
        assert_eq!(u128::from_be_bytes(context.trace_id), 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(u64::from_be_bytes(context.span_id), 0xb7ad_6b71_6920_3331);
        assert_eq!(context.flags, 1);
    }

    #[test]
    fn later_versions_may_append_fields() {
        let later = VALID.replacen("00", "01", 1);
        for (header, is_valid) in [
            (later.clone(), true),
            (format!("{later}-what-ever"), true),
            (format!("{later}x"), false),
            (format!("{VALID}-x"), false),
        ] {
            assert_eq!(TraceContext::sampled(header.as_bytes()).is_some(), is_valid, "{header}");
        }
    }

    #[test]
    fn other_contexts_give_no_link() {
        for (old, new) in [
            ("-01", "-00"),
            ("00-", "ff-"),
            ("0af7651916cd43dd8448eb211c80319c", "00000000000000000000000000000000"),
            ("b7ad6b7169203331", "0000000000000000"),
            ("0af7", "0AF7"),
            ("-b7", "_b7"),
            ("-01", "-0"),
            ("0af7", "0ag7"),
        ] {
            let header = VALID.replacen(old, new, 1);
            assert_eq!(TraceContext::sampled(header.as_bytes()), None, "{header}");
        }
        for header in [&b""[..], b"00", &[0xff; 55]] {
            assert_eq!(TraceContext::sampled(header), None);
        }
    }
}
