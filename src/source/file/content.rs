//! What a file holds, as lines see it: decompressed, and without a byte order mark. Both are told by the first bytes, not
//! by the name.

use std::io::{Chain, Cursor, Read};
use std::path::Path;

use super::unavailable;
use crate::source::SourceError;

/// As many bytes as tell what a file is.
const HEAD: usize = 6;

/// What begins a file of text that cannot be read, and what to do with it.
const UNREADABLE: [(&[u8], &str); 8] = [
    (b"\xff\xfe", "is UTF-16, and records are UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`"),
    (b"\xfe\xff", "is UTF-16, and records are UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`"),
    (b"{\0", "is UTF-16, and records are UTF-8: convert it with `iconv -f UTF-16LE -t UTF-8`"),
    (b"\0{", "is UTF-16, and records are UTF-8: convert it with `iconv -f UTF-16BE -t UTF-8`"),
    (b"BZh", "is compressed with bzip2, and gzip and zstd are known: decompress it"),
    (b"\xfd7zXZ\0", "is compressed with xz, and gzip and zstd are known: decompress it"),
    (b"PK\x03\x04", "is a zip archive, and gzip and zstd are known: unpack it"),
    (b"\x04\x22\x4d\x18", "is compressed with lz4, and gzip and zstd are known: decompress it"),
];

const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The content of a file, or of whatever else is read.
pub(super) type Content = Box<dyn Read + Send>;

/// The bytes that lines are made of.
///
/// # Errors
/// If it cannot be read, or is of a form that is not known.
pub(super) fn content(path: &Path, file: impl Read + Send + 'static) -> Result<Content, SourceError> {
    let (head, whole) = begun(file).map_err(|error| unavailable(path, error))?;
    let is_compressed = head.starts_with(GZIP) || head.starts_with(ZSTD);
    let text: Content = if head.starts_with(GZIP) {
        // A file may consist of several that were appended to each other.
        Box::new(flate2::read::MultiGzDecoder::new(whole))
    } else if head.starts_with(ZSTD) {
        Box::new(zstd::stream::read::Decoder::new(whole).map_err(|error| unavailable(path, error))?)
    } else {
        Box::new(whole)
    };
    let (head, whole) = match is_compressed {
        true => begun(text).map(|(head, whole)| (head, Box::new(whole) as Content)),
        false => Ok((head, text)),
    }
    .map_err(|error| unavailable(path, error))?;
    if let Some((_, what)) = UNREADABLE.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(SourceError::Refused(format!("{} {what}", path.display())));
    }
    if head.starts_with(BYTE_ORDER_MARK) {
        let mut whole = whole;
        let mut mark = [0; BYTE_ORDER_MARK.len()];
        whole.read_exact(&mut mark).map_err(|error| unavailable(path, error))?;
        return Ok(whole);
    }
    Ok(whole)
}

/// A file whose first bytes were read, from its beginning on.
type Begun<R> = Chain<Cursor<Vec<u8>>, R>;

/// The first bytes, and everything.
fn begun<R: Read>(mut file: R) -> std::io::Result<(Vec<u8>, Begun<R>)> {
    let mut head = Vec::with_capacity(HEAD);
    file.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    Ok((head.clone(), Cursor::new(head).chain(file)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn text(bytes: Vec<u8>) -> Result<String, String> {
        let mut text = String::new();
        let content =
            content(Path::new("a.ndjson"), Cursor::new(bytes)).map_err(|error| error.to_string())?;
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
    fn compressed_and_marked_files_have_the_text_that_is_in_them() {
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
        assert!(text(gzip("{}\n{}\n{}\n")[..20].to_vec()).is_err(), "it was cut off");
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_what_it_is() {
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
