//! The content of a file as text: decompressed, and without a byte order mark. Both are detected from the first bytes,
//! not from the file name.

use std::io::{Chain, Cursor, Read};
use std::path::Path;

use super::unavailable;
use crate::source::SourceError;

/// The number of leading bytes that identify a file's format.
const HEAD_LEN: usize = 6;

/// The magic bytes of formats that are not supported, each with the error and its remedy.
const UNSUPPORTED: [(&[u8], &str); 8] = [
    (b"\xff\xfe", "is UTF-16, but records must be UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`"),
    (b"\xfe\xff", "is UTF-16, but records must be UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`"),
    (b"{\0", "is UTF-16, but records must be UTF-8: convert it with `iconv -f UTF-16LE -t UTF-8`"),
    (b"\0{", "is UTF-16, but records must be UTF-8: convert it with `iconv -f UTF-16BE -t UTF-8`"),
    (b"BZh", "is compressed with bzip2; only gzip and zstd are supported: decompress it"),
    (b"\xfd7zXZ\0", "is compressed with xz; only gzip and zstd are supported: decompress it"),
    (b"PK\x03\x04", "is a zip archive; only gzip and zstd are supported: unpack it"),
    (b"\x04\x22\x4d\x18", "is compressed with lz4; only gzip and zstd are supported: decompress it"),
];

const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The decompressed content of a file or pipe.
pub(super) type Content = Box<dyn Read + Send>;

/// Decompresses a file and strips its byte order mark.
///
/// # Errors
/// If the file cannot be read, or its format is not supported.
pub(super) fn open_content(path: &Path, file: impl Read + Send + 'static) -> Result<Content, SourceError> {
    let (head, whole) = peek_head(file).map_err(|error| unavailable(path, error))?;
    let is_compressed = head.starts_with(GZIP) || head.starts_with(ZSTD);
    let text: Content = if head.starts_with(GZIP) {
        // A file may consist of several gzip members.
        Box::new(flate2::read::MultiGzDecoder::new(whole))
    } else if head.starts_with(ZSTD) {
        Box::new(zstd::stream::read::Decoder::new(whole).map_err(|error| unavailable(path, error))?)
    } else {
        Box::new(whole)
    };
    let (head, whole) = match is_compressed {
        true => peek_head(text).map(|(head, whole)| (head, Box::new(whole) as Content)),
        false => Ok((head, text)),
    }
    .map_err(|error| unavailable(path, error))?;
    if let Some((_, error)) = UNSUPPORTED.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(SourceError::Refused(format!("{} {error}", path.display())));
    }
    if head.starts_with(BYTE_ORDER_MARK) {
        let mut whole = whole;
        let mut mark = [0; BYTE_ORDER_MARK.len()];
        whole.read_exact(&mut mark).map_err(|error| unavailable(path, error))?;
        return Ok(whole);
    }
    Ok(whole)
}

/// A reader whose first bytes were read and put back.
type Rewound<R> = Chain<Cursor<Vec<u8>>, R>;

/// Returns the first bytes of a file, and a reader of the whole file.
fn peek_head<R: Read>(mut file: R) -> std::io::Result<(Vec<u8>, Rewound<R>)> {
    let mut head = Vec::with_capacity(HEAD_LEN);
    file.by_ref().take(HEAD_LEN as u64).read_to_end(&mut head)?;
    Ok((head.clone(), Cursor::new(head).chain(file)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn text(bytes: Vec<u8>) -> Result<String, String> {
        let mut text = String::new();
        let content =
            open_content(Path::new("a.ndjson"), Cursor::new(bytes)).map_err(|error| error.to_string())?;
        { content }.read_to_string(&mut text).map_err(|error| error.to_string())?;
        Ok(text)
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).expect("written");
        encoder.finish().expect("finished")
    }

    fn zstd(text: &str) -> Vec<u8> {
        zstd::stream::encode_all(text.as_bytes(), 1).expect("encoded")
    }

    #[test]
    fn compression_and_byte_order_marks_are_removed() {
        for plain in ["", "{", "{}\n", "{\"a\":1}\n{\"b\":2}\n"] {
            let marked = format!("\u{feff}{plain}");
            let twice = format!("{plain}{plain}");
            assert_eq!(text(plain.into()).as_deref(), Ok(plain));
            assert_eq!(text(marked.clone().into()).as_deref(), Ok(plain));
            for compress in [gzip as fn(&str) -> Vec<u8>, zstd] {
                assert_eq!(text(compress(plain)).as_deref(), Ok(plain));
                assert_eq!(text(compress(&marked)).as_deref(), Ok(plain));
                assert_eq!(text([compress(plain), compress(plain)].concat()).as_deref(), Ok(&*twice));
            }
        }
        assert!(text(gzip("{}\n{}\n{}\n")[..20].to_vec()).is_err(), "a truncated file is an error");
    }

    #[test]
    fn unsupported_formats_are_refused_by_name() {
        let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        for (bytes, what) in [
            (wide("\u{feff}{}"), "UTF-16"),
            (wide("{}"), "UTF-16"),
            (b"BZh91AY&SY".to_vec(), "bzip2"),
            (b"\xfd7zXZ\0\0".to_vec(), "xz"),
            (b"PK\x03\x04..".to_vec(), "zip"),
            (b"\x04\x22\x4d\x18..".to_vec(), "lz4"),
        ] {
            let refused = text(bytes).expect_err(what);
            assert!(refused.starts_with("source: a.ndjson is ") && refused.contains(what), "{refused}");
        }
    }
}
