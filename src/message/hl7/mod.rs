//! HL7 version 2: reading what routing, acknowledging, ordering and searching need, without copying and without
//! changing a byte. It validates nothing beyond that: many real senders are not conformant.

pub mod ack;
pub mod batch;
pub mod charset;
mod header;
mod message;
mod path;
mod patient;
mod text;

pub use ack::{Ack, AckCode, AckInfo, AckMode, When, acceptance, parse_ack};
pub use header::{Fault, Header, HeaderKind, Unreadable};
pub use message::Message;
pub use path::{Path, PathError};
pub use patient::{MAX_PATIENTS, ordering_patients, patients};
pub use text::{escape, unescape};

/// The delimiters of one message (HL7 v2.5.1, 2.5.4), as MSH-1 and MSH-2 give them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delimiters {
    /// MSH-1.
    pub field: u8,
    /// First of MSH-2.
    pub component: u8,
    /// Second of MSH-2.
    pub repetition: u8,
    /// Third of MSH-2; `None` where the message has none.
    pub escape: Option<u8>,
    /// Fourth of MSH-2; `None` where the message has none.
    pub subcomponent: Option<u8>,
    /// Fifth of MSH-2, from v2.7 on: the truncation character.
    pub truncation: Option<u8>,
}

impl Delimiters {
    /// Those that HL7 recommends: `|^~\&`.
    pub const STANDARD: Self =
        Self { field: b'|', component: b'^', repetition: b'~', escape: Some(b'\\'), subcomponent: Some(b'&'), truncation: None };

    /// From MSH-1 and the raw MSH-2. An empty MSH-2 gives the recommended ones; of a short one, the characters
    /// that are there.
    fn from_msh(field: u8, encoding: &[u8]) -> Self {
        if encoding.is_empty() {
            return Self { field, ..Self::STANDARD };
        }
        let at = |i: usize| encoding.get(i).copied();
        Self {
            field,
            component: encoding[0],
            // 0 never occurs in text, so that a delimiter that is not there is never found.
            repetition: at(1).unwrap_or(0),
            escape: at(2),
            subcomponent: at(3),
            truncation: at(4),
        }
    }
}

/// The bytes without byte-order mark, blanks and line ends before the first segment: real files have them.
pub(crate) fn trim_start(bytes: &[u8]) -> &[u8] {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    bytes.trim_ascii_start()
}

/// Splits at `by`, without the cost of a closure call per byte.
pub(crate) fn split(bytes: &[u8], by: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest?;
        match memchr::memchr(by, bytes) {
            Some(at) => {
                rest = Some(&bytes[at + 1..]);
                Some(&bytes[..at])
            }
            None => rest.take(),
        }
    })
}

/// The segments of a message in order, without their ends (CR, LF or both); empty lines are passed over.
pub(crate) fn segments(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        loop {
            if rest.is_empty() {
                return None;
            }
            let end = memchr::memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
            let segment = &rest[..end];
            rest = rest.get(end + 1..).unwrap_or(&[]);
            if !segment.is_empty() {
                return Some(segment);
            }
        }
    })
}
