//! Batches (HL7 v2.5.1, 2.10.3): `[FHS] { [BHS] { message } [BTS] } [FTS]`.

use super::{Header, HeaderKind};
use std::ops::Range;

/// The messages inside a batch, in order, as byte ranges of `bytes`: from `M` of MSH to the byte before the next header or trailer
/// segment. `None` when `bytes` is not a batch (it does not begin with FHS or BHS). The batch's own segments are left out.
pub fn split(bytes: &[u8]) -> Option<Messages<'_>> {
    match Header::parse(bytes) {
        Ok(header) if header.kind != HeaderKind::Msh => Some(messages(bytes)),
        _ => None,
    }
}

/// All messages in `bytes`, batch or not: each begins at an MSH segment. A plain message is one, a file of several
/// without batch segments is several. What comes before the first MSH belongs to none.
pub fn messages(bytes: &[u8]) -> Messages<'_> {
    let from = bytes.len() - super::trim_start(bytes).len();
    Messages { bytes, from: (from < bytes.len()).then_some(from) }
}

/// Iterator of [`split`] and [`messages`]. Lazy, so that a frame full of `MSH|` costs no memory.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    bytes: &'a [u8],
    /// Where a segment begins that has not been looked at.
    from: Option<usize>,
}

impl Iterator for Messages<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let mut start = None;
        while let Some(at) = self.from {
            match (kind(&self.bytes[at..]), start) {
                (Kind::Message, None) => start = Some(at),
                (Kind::Message | Kind::Batch, Some(begin)) => return Some(begin..at),
                _ => {}
            }
            self.from = next_segment(self.bytes, at);
        }
        start.map(|begin| begin..self.bytes.len())
    }
}

enum Kind {
    Message,
    Batch,
    Other,
}

fn kind(segment: &[u8]) -> Kind {
    let segment = segment.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(segment);
    // A name that merely begins alike is another segment.
    let ends = segment.get(3).is_none_or(|b| !b.is_ascii_alphanumeric());
    match segment.get(..3) {
        Some(b"MSH") if ends => Kind::Message,
        Some(b"FHS" | b"BHS" | b"BTS" | b"FTS") if ends => Kind::Batch,
        _ => Kind::Other,
    }
}

/// Where the next segment begins: after the line end, blank lines passed over.
fn next_segment(bytes: &[u8], from: usize) -> Option<usize> {
    let end = from + memchr::memchr2(b'\r', b'\n', &bytes[from..])?;
    let skip = bytes[end..].iter().take_while(|b| b.is_ascii_whitespace()).count();
    (end + skip < bytes.len()).then_some(end + skip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(bytes: &[u8]) -> Option<Vec<&str>> {
        Some(split(bytes)?.map(|r| std::str::from_utf8(&bytes[r]).unwrap()).collect())
    }

    #[test]
    fn takes_the_messages_byte_for_byte() {
        let batch = b"\xEF\xBB\xBF\r\nFHS|^~\\&|A\rBHS|^~\\&|A\rMSH|^~\\&|1\r\nPID|1\r\n\r\nMSH|^~\\&|2\rNTE|MSH|\rBTS|2\rBHS|^~\\&\rMSH|^~\\&|3\rBTS|1\rFTS|1\r";
        assert_eq!(pieces(batch).unwrap(), ["MSH|^~\\&|1\r\nPID|1\r\n\r\n", "MSH|^~\\&|2\rNTE|MSH|\r", "MSH|^~\\&|3\r"]);
    }

    #[test]
    fn a_message_is_no_batch() {
        assert_eq!(pieces(b"MSH|^~\\&|1\rMSH|^~\\&|2\r"), None);
        assert_eq!(pieces(b"junk"), None);
        assert_eq!(pieces(b"FHS|^~\\&|A\rFTS|0\r").unwrap(), Vec::<&str>::new());
        assert_eq!(pieces(b"BHS|^~\\&|A\rMSHX|1\rMSH|^~\\&|last").unwrap(), ["MSH|^~\\&|last"]);
    }

    #[test]
    fn several_messages_without_batch_segments() {
        let file = b"\n\nMSH|^~\\&|1\nPID\n\nMSH|^~\\&|2\n";
        assert_eq!(messages(file).collect::<Vec<_>>(), [2..18, 18..29]);
        assert_eq!(messages(b"").count(), 0);
    }
}
