//! What a message asks of its receiver: MSH-10, MSH-15 and MSH-16 (HL7 v2.5.1 chapter 2.9, acknowledgment modes).

use crate::message::hl7::{
    Header, HeaderKind,
    ack::{AckMode, When, acceptance},
};
use bytes::Bytes;

/// Read ahead of a large message to find its MSH segment.
pub(crate) const HEAD: usize = 16 * 1024;

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// An acknowledgment.
    Answer,
    /// None (neither accept nor application acknowledgment is asked for): delivered when written.
    Nothing,
    /// One only in case of an error (`ER`): silence means success, and cannot be told from loss; a short wait for the
    /// error, then delivered.
    OnlyErrors,
}

/// What a message asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// MSH-10 as sent. Empty (absent, or no MSH at the beginning, as in a batch): any acknowledgment is taken for this
    /// message, since only one message is under way on a connection.
    pub control_id: Bytes,
    /// What to wait for.
    pub expect: Expect,
    /// After an accept acknowledgment (`CA`) no application acknowledgment is to follow.
    pub accept_is_all: bool,
}

impl Plan {
    /// From the first bytes of a message.
    pub(crate) fn of(head: &Bytes) -> Self {
        let any = Self { control_id: Bytes::new(), expect: Expect::Answer, accept_is_all: false };
        let start = &head[..head.len().min(HEAD)];
        let Some(header) = Header::parse(start).ok().filter(|h| h.kind == HeaderKind::Msh) else { return any };
        let (expect, accept_is_all) = match acceptance(&header) {
            AckMode::Original => (Expect::Answer, false),
            AckMode::Enhanced { accept, application } => {
                let expect = match (accept, application) {
                    (When::Never, When::Never) => Expect::Nothing,
                    (When::Never | When::Error, When::Never | When::Error) => Expect::OnlyErrors,
                    _ => Expect::Answer,
                };
                (expect, application == When::Never)
            }
        };
        Self { control_id: head.slice_ref(header.control_id.trim_ascii()), expect, accept_is_all }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let table: &[(&str, &str, Expect, bool)] = &[
            ("MSH|^~\\&|A|B|C|D|2026||ADT^A01|id-1|P|2.5\rPID|1", "id-1", Expect::Answer, false),
            ("MSH|^~\\&|A|B|C|D|2026||ADT^A01|id-1|P|2.5|||AL|NE\r", "id-1", Expect::Answer, true),
            ("MSH|^~\\&|A|B|C|D|2026||ADT^A01|id-1|P|2.5|||NE|NE|X\r", "id-1", Expect::Nothing, true),
            ("MSH|^~\\&|A|B|C|D|2026||ADT^A01|id-1|P|2.5|||NE\r", "id-1", Expect::Nothing, true),
            ("MSH|^~\\&|A|B|C|D|2026||ADT^A01|id-1|P|2.5|||ER|NE\r", "id-1", Expect::OnlyErrors, true),
            ("MSH|^~\\&|A|B|C|D|2026||ADT^A01|id-1|P|2.5|||NE|AL\r", "id-1", Expect::Answer, false),
            ("MSH|^~\\&|A|B|C|D|2026||ADT^A01|id-1|P|2.5|||SU|NE\r", "id-1", Expect::Answer, true),
            ("MSH#^~\\&#A#B#C#D#2026##ADT^A01# id|2 #P", "id|2", Expect::Answer, false),
            ("MSH|^~\\&|A|B|C|D|2026||ADT^A01||P|2.5\r", "", Expect::Answer, false),
            ("MSH|^~\\&|A\rX|||||||||not-this", "", Expect::Answer, false),
            ("FHS|^~\\&|||||||||batch|", "", Expect::Answer, false),
            ("MSH|", "", Expect::Answer, false),
            ("MSH", "", Expect::Answer, false),
            ("", "", Expect::Answer, false),
            ("{\"resourceType\":\"Patient\"}", "", Expect::Answer, false),
        ];
        for (text, control_id, expect, accept_is_all) in table {
            let plan = Plan::of(&Bytes::copy_from_slice(text.as_bytes()));
            assert_eq!(plan.control_id, control_id.as_bytes(), "{text}");
            assert_eq!((plan.expect, plan.accept_is_all), (*expect, *accept_is_all), "{text}");
        }
    }
}
