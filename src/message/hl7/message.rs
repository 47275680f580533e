//! One message, read lazily.

use super::{Header, HeaderKind, Path, PathError, Unreadable, charset, segments, text, trim_start};
use encoding_rs::Encoding;
use std::borrow::Cow;

/// A message whose header has been read; everything else is looked up when asked for. Borrows the message's bytes.
///
/// Delimiters are searched as bytes, which holds for ASCII, UTF-8, ISO 8859 and EUC. For the charsets whose trail bytes may look
/// like delimiters (GB 18030, Big5, Shift JIS, ISO 2022), take the message from [`charset::view`] of the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
    header: Header<'a>,
    charset: Charset,
}

/// How a message's text is encoded.
#[derive(Clone, Copy, Debug)]
pub(super) enum Charset {
    /// As MSH-18 says; this one where it says nothing.
    Declared(Option<&'static Encoding>),
    /// This one, whatever MSH-18 says.
    Known(&'static Encoding),
}

impl<'a> Message<'a> {
    /// Reads the header. The charset where MSH-18 is empty: UTF-8, else Windows-1252.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        Self::with_charset(bytes, None)
    }

    /// As [`Message::new`]; `default` is the charset where MSH-18 is empty.
    pub fn with_charset(bytes: &'a [u8], default: Option<&'static Encoding>) -> Result<Self, Unreadable> {
        Self::read(bytes, Charset::Declared(default))
    }

    pub(super) fn read(bytes: &'a [u8], charset: Charset) -> Result<Self, Unreadable> {
        Ok(Self { bytes: trim_start(bytes), header: Header::parse(bytes)?, charset })
    }

    /// The header.
    pub fn header(&self) -> &Header<'a> {
        &self.header
    }

    /// The message's bytes from the header segment on.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// `ADT^A01`; see [`Header::message_type`].
    pub fn message_type(&self) -> String {
        self.header.message_type()
    }

    /// Identifiers to search by; see [`super::patients`].
    pub fn patients(&self) -> Vec<String> {
        super::patients(self)
    }

    /// Identifiers that decide order; see [`super::ordering_patients`].
    pub fn ordering_patients(&self) -> Vec<String> {
        super::ordering_patients(self)
    }

    /// The raw piece at a path; `None` when it is not there (an empty piece is there).
    pub fn get(&self, path: &Path) -> Option<&'a [u8]> {
        let of_header = path.segment == *b"MSH" && path.occurrence == 1 && self.header.kind == HeaderKind::Msh;
        // Most rules ask for the header, which has been read.
        if of_header
            && (path.repetition, path.subcomponent) == (1, 0)
            && let Some(raw) = self.header.kept(path.field, path.component)
        {
            return Some(raw);
        }
        let segment = match (&path.segment, path.occurrence) {
            // The header is the first segment.
            (b"MSH", 1) => segments(self.bytes).next().filter(|s| s.starts_with(b"MSH"))?,
            (name, n) => self.segments(name).nth(n as usize - 1)?,
        };
        path.find(segment, &self.header.delimiters)
    }

    /// As [`Message::get`], with the path as text.
    pub fn get_at(&self, path: &str) -> Result<Option<&'a [u8]>, PathError> {
        Ok(self.get(&Path::parse(path)?))
    }

    /// The piece at a path as text: escapes resolved, charset decoded; empty when it is not there.
    pub fn text(&self, path: &Path) -> Cow<'a, str> {
        self.get(path).map_or(Cow::Borrowed(""), |raw| self.decode(raw))
    }

    /// A raw piece of this message as text.
    pub fn decode(&self, raw: &'a [u8]) -> Cow<'a, str> {
        text::decode(raw, &self.header.delimiters, || match self.charset {
            Charset::Declared(default) => charset::of_header(&self.header, default),
            Charset::Known(encoding) => encoding,
        })
    }

    /// All segments of one name, in order.
    pub fn segments<'n>(&self, name: &'n [u8; 3]) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        let separator = self.header.delimiters.field;
        segments(self.bytes).filter(move |s| s.starts_with(name) && s.get(3).is_none_or(|b| *b == separator))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORU: &[u8] = b"MSH|^~\\&|A|B|C|D|2024||ORU^R01^ORU_R01|42|P|2.5.1\r\
PID|1||1^^^H&1.2.3&ISO^MR~2^^^N^NI||M\xC3\xBCller^J\\T\\J\r\n\
OBX|1|NM|a||5\nOBXX|junk\rOBX|2|ST|b||x\\F\\y|\r";

    fn text(path: &str) -> String {
        Message::new(ORU).unwrap().text(&Path::parse(path).unwrap()).into_owned()
    }

    #[test]
    fn finds_pieces() {
        for (path, expected) in [
            ("MSH-1", "|"),
            ("MSH-2", "^~\\&"),
            ("MSH-9", "ORU^R01^ORU_R01"),
            ("MSH-9.2", "R01"),
            ("PID-1", "1"),
            ("PID-3", "1^^^H&1.2.3&ISO^MR"),
            ("PID-3[2].1", "2"),
            ("PID-3.4.2", "1.2.3"),
            ("PID-3.4", "H&1.2.3&ISO"),
            ("PID-5.1", "M\u{fc}ller"),
            ("PID-5.2", "J&J"),
            ("OBX-5", "5"),
            ("OBX[2]-5", "x|y"),
            ("OBX[3]-5", ""),
            ("PID-3[3].1", ""),
            ("PID-30", ""),
            ("ZPI-1", ""),
            ("OBX", "OBX|1|NM|a||5"),
        ] {
            assert_eq!(text(path), expected, "{path}");
        }
    }

    #[test]
    fn absent_is_not_empty() {
        let message = Message::new(ORU).unwrap();
        assert_eq!(message.get_at("PID-2"), Ok(Some(&b""[..])));
        assert_eq!(message.get_at("PID-9"), Ok(None));
        assert!(message.get_at("pid").is_err());
    }

    #[test]
    fn decodes_by_msh_18() {
        let latin = b"MSH|^~\\&|A|B|C|D|||ADT^A01|1|P|2.5||||||8859/1\rPID|||1||M\xFCller\r";
        assert_eq!(Message::new(latin).unwrap().text(&Path::parse("PID-5.1").unwrap()), "M\u{fc}ller");
        let none = b"MSH|^~\\&|A|B|C|D|||ADT^A01|1|P|2.5\rPID|||1||\xCC\xE5\r";
        let message = Message::with_charset(none, Some(encoding_rs::ISO_8859_5)).unwrap();
        assert_eq!(message.text(&Path::parse("PID-5.1").unwrap()), "\u{42c}\u{445}");
    }
}
