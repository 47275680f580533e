//! The header segment: MSH, or FHS and BHS of a batch.

use super::{Delimiters, charset, split, text, trim_start};
use std::borrow::Cow;

/// Which header segment it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderKind {
    /// A message.
    Msh,
    /// A file of batches or messages.
    Fhs,
    /// A batch of messages.
    Bhs,
}

/// Why a header cannot be read. Fixed text, fit for an acknowledgment and a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// No bytes, or only blanks.
    #[error("the message is empty")]
    Empty,
    /// It begins with something else.
    #[error("the message does not begin with an MSH segment")]
    NoHeader,
    /// MSH is followed by nothing, or by something that cannot separate fields.
    #[error("MSH is not followed by a field separator")]
    NoSeparator,
    /// MSH can be read as it is, but not in the charset that MSH-18 names (the encoding's own name).
    #[error("MSH-18 declares the charset {0}, but the message is not in it; correct MSH-18, or send the message in {0}")]
    Charset(&'static str),
}

/// What the standard has a receiver complain about in a header that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Code of HL7 table 0357.
    pub code: u16,
    /// Segment, its sequence, field: `MSH^1^10`, with `^` whatever the message's delimiters.
    pub location: &'static str,
    /// Fixed text for the sender.
    pub text: &'static str,
}

/// The fields that routing and acknowledging need: raw slices of the message, empty where absent.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// Which segment.
    pub kind: HeaderKind,
    /// Field 1 and 2.
    pub delimiters: Delimiters,
    /// MSH-2 as sent.
    pub encoding_characters: &'a [u8],
    /// MSH-3.
    pub sending_application: &'a [u8],
    /// MSH-4.
    pub sending_facility: &'a [u8],
    /// MSH-5.
    pub receiving_application: &'a [u8],
    /// MSH-6.
    pub receiving_facility: &'a [u8],
    /// MSH-9.1, for example `ADT`.
    pub message_code: &'a [u8],
    /// MSH-9.2, for example `A01`.
    pub trigger: &'a [u8],
    /// MSH-9.3, for example `ADT_A01`.
    pub structure: &'a [u8],
    /// MSH-10; FHS-11 or BHS-11.
    pub control_id: &'a [u8],
    /// MSH-11.
    pub processing_id: &'a [u8],
    /// MSH-12.
    pub version: &'a [u8],
    /// MSH-15.
    pub accept_ack: &'a [u8],
    /// MSH-16.
    pub application_ack: &'a [u8],
    /// MSH-18, all repetitions.
    pub charset: &'a [u8],
}

/// Fields looked at: the last is MSH-18.
const FIELDS: usize = 18;

impl<'a> Header<'a> {
    /// Reads the header of a message, file or batch. Tolerates a byte-order mark, blanks and line ends before it, CR, LF
    /// or CRLF after it, any delimiters, and a header that ends early.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let bytes = trim_start(bytes);
        if bytes.is_empty() {
            return Err(Unreadable::Empty);
        }
        let kind = match bytes.get(..3) {
            Some(b"MSH") => HeaderKind::Msh,
            Some(b"FHS") => HeaderKind::Fhs,
            Some(b"BHS") => HeaderKind::Bhs,
            _ => return Err(Unreadable::NoHeader),
        };
        let separator = bytes.get(3).copied().filter(|b| is_separator(*b)).ok_or(Unreadable::NoSeparator)?;
        let end = memchr::memchr2(b'\r', b'\n', bytes).unwrap_or(bytes.len());

        // Field 1 is the separator itself, so that the first piece after it is field 2.
        let mut fields: [&[u8]; FIELDS + 1] = [&[]; FIELDS + 1];
        for (slot, field) in fields[2..].iter_mut().zip(split(&bytes[4..end], separator)) {
            *slot = field;
        }
        let msh = kind == HeaderKind::Msh;
        let delimiters = Delimiters::from_msh(separator, fields[2]);
        let message_type = if msh { split(fields[9], delimiters.repetition).next().unwrap_or(&[]) } else { &[] };
        let mut message_type = split(message_type, delimiters.component);
        let mut next = || message_type.next().unwrap_or(&[]);
        let if_msh = |field: usize| if msh { fields[field] } else { &[] };
        Ok(Self {
            kind,
            delimiters,
            encoding_characters: fields[2],
            sending_application: fields[3],
            sending_facility: fields[4],
            receiving_application: fields[5],
            receiving_facility: fields[6],
            message_code: next(),
            trigger: next(),
            structure: next(),
            control_id: fields[if msh { 10 } else { 11 }],
            processing_id: if_msh(11),
            version: if_msh(12),
            accept_ack: if_msh(15),
            application_ack: if_msh(16),
            charset: if_msh(18),
        })
    }

    /// `ADT^A01`, always with `^`; `ACK` where there is no trigger; empty where there is no type.
    pub fn message_type(&self) -> String {
        let mut text = self.text(self.message_code).into_owned();
        if !self.trigger.is_empty() {
            text.push('^');
            text.push_str(&self.text(self.trigger));
        }
        text
    }

    /// MSH-10 as text; `None` when absent, blank or the HL7 null `""`. The same text that [`super::ack::parse_ack`] gives for MSA-2.
    pub fn control_id(&self) -> Option<String> {
        let raw = self.control_id.trim_ascii();
        (!raw.is_empty() && raw != b"\"\"").then(|| self.text(raw).into_owned())
    }

    /// What HL7 has a receiver complain about: MSH-10 is required (v2.5.1, 2.15.9.10), so a message without it is
    /// answered by `AE` (`CE` in enhanced mode) and error 101 of table 0357, "Required field missing".
    pub fn fault(&self) -> Option<Fault> {
        let missing = self.kind == HeaderKind::Msh && self.control_id().is_none();
        missing.then_some(Fault { code: 101, location: "MSH^1^10", text: "Required field missing: MSH-10, message control ID" })
    }

    /// A field of MSH that is kept here and is not empty, from its first repetition's component on: the piece that a path
    /// names, without going through the segment again.
    pub(super) fn kept(&self, field: u16, component: u16) -> Option<&'a [u8]> {
        let raw = match (field, component) {
            (3, 0) => self.sending_application,
            (4, 0) => self.sending_facility,
            (5, 0) => self.receiving_application,
            (6, 0) => self.receiving_facility,
            (9, 1) => return Some(self.message_code).filter(|raw| !raw.is_empty()),
            (9, 2) => return Some(self.trigger).filter(|raw| !raw.is_empty()),
            (9, 3) => return Some(self.structure).filter(|raw| !raw.is_empty()),
            (10, 0) => self.control_id,
            (11, 0) => self.processing_id,
            (12, 0) => self.version,
            _ => return None,
        };
        split(raw, self.delimiters.repetition).next().filter(|raw| !raw.is_empty())
    }

    /// A raw piece of this message as text: escapes resolved, charset of MSH-18 decoded.
    pub fn text(&self, raw: &'a [u8]) -> Cow<'a, str> {
        text::decode(raw, &self.delimiters, || charset::of_header(self, None))
    }
}

/// What can separate fields: no letter or digit (MSHA…), no line end or blank, nothing outside ASCII.
fn is_separator(byte: u8) -> bool {
    byte.is_ascii() && !byte.is_ascii_alphanumeric() && !matches!(byte, b'\r' | b'\n' | b' ' | 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADT: &[u8] = b"MSH|^~\\&|APP|FAC|RAPP|RFAC|20240101||ADT^A01^ADT_A01|C1|P|2.5.1|||AL|NE||8859/1\rPID|1\r";

    #[test]
    fn reads_every_field() {
        let h = Header::parse(ADT).unwrap();
        assert_eq!(h.kind, HeaderKind::Msh);
        assert_eq!(h.delimiters, Delimiters::STANDARD);
        assert_eq!((h.sending_application, h.sending_facility), (&b"APP"[..], &b"FAC"[..]));
        assert_eq!((h.receiving_application, h.receiving_facility), (&b"RAPP"[..], &b"RFAC"[..]));
        assert_eq!((h.message_code, h.trigger, h.structure), (&b"ADT"[..], &b"A01"[..], &b"ADT_A01"[..]));
        assert_eq!((h.control_id, h.processing_id, h.version), (&b"C1"[..], &b"P"[..], &b"2.5.1"[..]));
        assert_eq!((h.accept_ack, h.application_ack, h.charset), (&b"AL"[..], &b"NE"[..], &b"8859/1"[..]));
        assert_eq!(h.message_type(), "ADT^A01");
        assert_eq!(h.control_id().as_deref(), Some("C1"));
        assert_eq!(h.fault(), None);
    }

    #[test]
    fn tolerates_what_real_files_begin_with() {
        for prefix in [&b"\xEF\xBB\xBF"[..], b"\r\n\r\n", b"  \t\n", b"\xEF\xBB\xBF\r\n"] {
            for end in [&b"\r"[..], b"\n", b"\r\n", b""] {
                let message = [prefix, b"MSH|^~\\&|A|B|C|D|||ORU^R01|77", end].concat();
                let h = Header::parse(&message).unwrap();
                assert_eq!((h.control_id, h.message_type()), (&b"77"[..], "ORU^R01".to_owned()));
            }
        }
    }

    #[test]
    fn takes_other_delimiters_and_the_fifth() {
        let h = Header::parse(b"MSH$%~\\&$A$B$C$D$$$ADT%A08$9$P$2.3\r").unwrap();
        assert_eq!((h.delimiters.field, h.delimiters.component), (b'$', b'%'));
        assert_eq!(h.message_type(), "ADT^A08");
        let h = Header::parse(b"MSH|^~\\&#|A|B|C|D|||ADT^A08|9|P|2.7\r").unwrap();
        assert_eq!(h.delimiters.truncation, Some(b'#'));
        let h = Header::parse(b"MSH|^|A\r").unwrap();
        assert_eq!((h.delimiters.repetition, h.delimiters.escape), (0, None));
    }

    #[test]
    fn a_short_header_has_empty_fields_and_a_fault() {
        for short in [&b"MSH|"[..], b"MSH|^~\\&", b"MSH|^~\\&|APP\r", b"MSH|^~\\&|A|B|C|D|||ADT^A01||P|2.3\r"] {
            let h = Header::parse(short).unwrap();
            assert_eq!((h.control_id(), h.fault().map(|f| f.code)), (None, Some(101)));
        }
    }

    #[test]
    fn says_why_it_cannot_read() {
        for (bytes, reason) in [
            (&b""[..], Unreadable::Empty),
            (b"\r\n ", Unreadable::Empty),
            (b"PID|1", Unreadable::NoHeader),
            (b"MS", Unreadable::NoHeader),
            (b"MSH", Unreadable::NoSeparator),
            (b"MSH\r", Unreadable::NoSeparator),
            (b"MSHA|", Unreadable::NoSeparator),
            (b"MSH\xC3\xA9", Unreadable::NoSeparator),
        ] {
            assert_eq!(Header::parse(bytes).map(|_| ()), Err(reason));
        }
    }

    #[test]
    fn reads_batch_headers() {
        let h = Header::parse(b"FHS|^~\\&|A|B|C|D|2024||name|comment|F1\r").unwrap();
        assert_eq!((h.kind, h.control_id, h.message_type()), (HeaderKind::Fhs, &b"F1"[..], String::new()));
        assert_eq!(h.fault(), None);
    }
}
