//! Character sets: MSH-18 (HL7 table 0211) and IANA names. Only for reading; stored bytes are never changed.

use super::message::Charset;
use super::{Header, Message, Unreadable, split};
use encoding_rs::{BIG5, EUC_JP, EUC_KR, Encoding, GB18030, ISO_2022_JP, UTF_8, WINDOWS_1252};
use std::borrow::Cow;

/// The encoding of an HL7 table 0211 or IANA name, in any case. `None` when it is not known, and for UNICODE UTF-32.
///
/// ISO 8859-1 and ASCII are read as Windows-1252, which agrees with them and gives the remaining bytes a meaning.
pub fn encoding(label: &str) -> Option<&'static Encoding> {
    let name: String = label.trim().chars().take(40).map(|c| c.to_ascii_uppercase()).collect();
    if let Some(part) = name.strip_prefix("8859/") {
        return Encoding::for_label(format!("ISO-8859-{part}").as_bytes());
    }
    Some(match name.as_str() {
        "" => return None,
        "ASCII" | "ISO IR6" | "ISO IR 6" => WINDOWS_1252,
        "UNICODE" | "UNICODE UTF-8" => UTF_8,
        "UNICODE UTF-16" => encoding_rs::UTF_16BE,
        "ISO IR14" | "ISO IR 14" | "ISO IR87" | "ISO IR 87" => ISO_2022_JP,
        // JIS X 0212 is in EUC-JP, not in the ISO 2022 of the web.
        "ISO IR159" | "ISO IR 159" => EUC_JP,
        "GB 18030-2000" | "GB 18030" => GB18030,
        "KS X 1001" => EUC_KR,
        "CNS 11643-1992" | "BIG-5" => BIG5,
        other => return Encoding::for_label(other.as_bytes()),
    })
}

/// Names for people to choose from: HL7 table 0211 as far as it can be read, and the usual IANA names. [`encoding`] knows
/// more aliases of the same.
pub const NAMES: &[&str] = &[
    "ASCII",
    "8859/1",
    "8859/2",
    "8859/3",
    "8859/4",
    "8859/5",
    "8859/6",
    "8859/7",
    "8859/8",
    "8859/9",
    "8859/15",
    "ISO IR6",
    "ISO IR14",
    "ISO IR87",
    "ISO IR159",
    "GB 18030-2000",
    "KS X 1001",
    "BIG-5",
    "UNICODE",
    "UNICODE UTF-8",
    "UNICODE UTF-16",
    "UTF-8",
    "US-ASCII",
    "ISO-8859-1",
    "ISO-8859-2",
    "ISO-8859-5",
    "ISO-8859-7",
    "ISO-8859-9",
    "ISO-8859-15",
    "windows-1250",
    "windows-1251",
    "windows-1252",
    "windows-1253",
    "windows-1254",
    "windows-1256",
    "windows-1257",
    "KOI8-R",
    "Shift_JIS",
    "EUC-JP",
    "EUC-KR",
    "GBK",
    "Big5",
];

/// The encoding of a message: MSH-18's first known repetition, else `default`, else UTF-8 (see [`decode_with`]).
pub fn of_header(header: &Header<'_>, default: Option<&'static Encoding>) -> &'static Encoding {
    split(header.charset, header.delimiters.repetition)
        .filter_map(|label| std::str::from_utf8(label).ok())
        // The plain set often comes first, the one with shifts after it.
        .filter_map(encoding)
        .reduce(|first, other| if first == WINDOWS_1252 && other == ISO_2022_JP { other } else { first })
        .or(default)
        .unwrap_or(UTF_8)
}

/// Bytes as text for searching. `label` as for [`encoding`]; empty or unknown: UTF-8. The flag says that some bytes had no meaning in
/// that charset.
pub fn decode<'a>(bytes: &'a [u8], label: &str) -> (Cow<'a, str>, bool) {
    decode_with(bytes, encoding(label).unwrap_or(UTF_8))
}

/// As [`decode`], with the encoding itself. What claims to be UTF-8 and is not is read as Windows-1252 (with the flag set): senders
/// that say nothing often mean that.
pub fn decode_with<'a>(bytes: &'a [u8], encoding: &'static Encoding) -> (Cow<'a, str>, bool) {
    let (text, had_errors) = encoding.decode_without_bom_handling(bytes);
    if had_errors && encoding == UTF_8 {
        return (WINDOWS_1252.decode_without_bom_handling(bytes).0, true);
    }
    (text, had_errors)
}

/// True when delimiters can be searched as bytes in this encoding: no trail byte or shifted byte looks like one.
pub fn delimiters_are_bytes(encoding: &'static Encoding) -> bool {
    encoding.is_ascii_compatible() && ![GB18030, encoding_rs::GBK, BIG5, encoding_rs::SHIFT_JIS].contains(&encoding)
}

/// A message's bytes in a form in which delimiters can be searched as bytes.
#[derive(Clone, Debug)]
pub struct View<'a> {
    bytes: Cow<'a, [u8]>,
    default: Option<&'static Encoding>,
    /// Decoded to UTF-8 from this, whatever MSH-18 says.
    decoded: Option<&'static Encoding>,
}

/// The message's own bytes, or, for a charset in which delimiters cannot be searched as bytes, the whole in UTF-8.
/// `default` is the charset where MSH-18 is empty. Nearly always borrowed.
pub fn view<'a>(bytes: &'a [u8], default: Option<&'static Encoding>) -> View<'a> {
    let encoding = Header::parse(bytes).map_or(UTF_8, |header| of_header(&header, default));
    // ESC begins every shift of ISO 2022; without one, ASCII bytes are ASCII.
    let plain = || bytes.is_ascii() && memchr::memchr(0x1B, bytes).is_none();
    if delimiters_are_bytes(encoding) || plain() {
        return View { bytes: Cow::Borrowed(bytes), default, decoded: None };
    }
    let bytes = match decode_with(bytes, encoding).0 {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    };
    View { bytes, default, decoded: Some(encoding) }
}

impl View<'_> {
    /// Reads the header; see [`Message`].
    pub fn message(&self) -> Result<Message<'_>, Unreadable> {
        let Some(encoding) = self.decoded else { return Message::read(&self.bytes, Charset::Declared(self.default)) };
        // The header named the charset, so it could be read before; decoded it is none any more.
        Message::read(&self.bytes, Charset::Known(UTF_8)).map_err(|_| Unreadable::Charset(encoding.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_table_0211() {
        for (label, name) in [
            ("ASCII", "windows-1252"),
            ("8859/1", "windows-1252"),
            ("8859/2", "ISO-8859-2"),
            ("8859/5", "ISO-8859-5"),
            ("8859/9", "windows-1254"),
            ("8859/15", "ISO-8859-15"),
            ("ISO IR6", "windows-1252"),
            ("ISO IR87", "ISO-2022-JP"),
            ("GB 18030-2000", "gb18030"),
            ("KS X 1001", "EUC-KR"),
            ("BIG-5", "Big5"),
            ("UNICODE", "UTF-8"),
            ("UNICODE UTF-8", "UTF-8"),
            ("utf-8", "UTF-8"),
            (" UTF-8 ", "UTF-8"),
            ("windows-1250", "windows-1250"),
        ] {
            assert_eq!(encoding(label).map(|e| e.name()), Some(name), "{label}");
        }
        for label in ["", "KLINGON", "8859/99", "UNICODE UTF-32"] {
            assert_eq!(encoding(label), None, "{label}");
        }
    }

    #[test]
    fn every_name_to_choose_from_is_known() {
        for name in NAMES {
            assert!(encoding(name).is_some(), "{name}");
        }
    }

    #[test]
    fn decodes_and_says_when_bytes_have_no_meaning() {
        assert_eq!(decode(b"M\xFCller", "8859/1"), ("M\u{fc}ller".into(), false));
        assert_eq!(decode("M\u{fc}ller".as_bytes(), ""), ("M\u{fc}ller".into(), false));
        assert_eq!(decode(b"M\xFCller", ""), ("M\u{fc}ller".into(), true));
        assert!(decode(b"\xFF\xFF\xFF", "GB 18030-2000").1);
    }

    #[test]
    fn a_charset_that_the_message_is_not_in_is_named() {
        let message = b"MSH|^~\\&|A|B|C|D|||ADT^A01|1|P|2.5||||||UNICODE UTF-16\rPID|||1||M\xFCller\r";
        let error = view(message, None).message().err();
        assert_eq!(error, Some(Unreadable::Charset("UTF-16BE")));
    }

    #[test]
    fn trail_bytes_are_no_delimiters() {
        // U+5E60 in GB 18030 is 8E 7C: its second byte is `|`.
        let header = b"MSH|^~\\&|A|B|C|D|||ADT^A01|1|P|2.5||||||GB 18030-2000\r";
        let message = [&header[..], b"PID|||1||\x8E\x7C^X\r"].concat();
        let view = view(&message, None);
        let parsed = view.message().unwrap();
        let text = |path: &str| parsed.text(&super::super::Path::parse(path).unwrap()).into_owned();
        assert_eq!((text("PID-5.1"), text("PID-5.2")), (decode(b"\x8E\x7C", "GB 18030-2000").0.into_owned(), "X".into()));
    }
}
