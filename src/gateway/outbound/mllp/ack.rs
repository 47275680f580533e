//! Reading an acknowledgment, byte for byte: MSA-2 is compared with MSH-10 as sent, whatever charset the receiver declares.

/// What matters of an acknowledgment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Msa<'a> {
    /// MSA-1 where it is a code of HL7 table 0008, in upper case.
    pub code: Option<&'static str>,
    /// MSA-2, blanks around it removed.
    pub control_id: &'a [u8],
}

/// The MSA segment of a message; `None` when it has no MSH or no MSA. Query responses have one too.
pub(crate) fn parse(message: &[u8]) -> Option<Msa<'_>> {
    let message = message.trim_ascii_start();
    let separator = *message.strip_prefix(b"MSH")?.first()?;
    let at = memchr::memmem::find_iter(message, b"MSA")
        .find(|at| matches!(message.get(at.wrapping_sub(1)), Some(b'\r' | b'\n')) && message.get(at + 3) == Some(&separator))?;
    let fields = &message[at + 4..];
    let end = memchr::memchr2(b'\r', b'\n', fields).unwrap_or(fields.len());
    let mut fields = fields[..end].split(|b| *b == separator).map(<[u8]>::trim_ascii);
    let code = fields.next()?;
    let known = ["AA", "AE", "AR", "CA", "CE", "CR"].into_iter().find(|known| known.as_bytes().eq_ignore_ascii_case(code));
    Some(Msa { code: known, control_id: fields.next().unwrap_or(b"") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        type Row = (&'static str, Option<(Option<&'static str>, &'static str)>);
        let table: &[Row] = &[
            ("MSH|^~\\&|A\rMSA|AA|7\r", Some((Some("AA"), "7"))),
            ("MSH|^~\\&|A\nMSA| ae | 7 \n", Some((Some("AE"), "7"))),
            ("\r\nMSH#^~\\&#A\rMSA#CR#7|8#x\r", Some((Some("CR"), "7|8"))),
            ("MSH|^~\\&|MSA|\rERR|MSA|\rMSA|CA", Some((Some("CA"), ""))),
            ("MSH|^~\\&|A\rMSA|XX|7", Some((None, "7"))),
            ("MSH|^~\\&|A\rMSA", None),
            ("MSH|^~\\&|A\rPID|1", None),
            ("MSA|AA|7\r", None),
            ("MSH", None),
            ("", None),
        ];
        for (text, expected) in table {
            let found = parse(text.as_bytes()).map(|msa| (msa.code, msa.control_id));
            assert_eq!(found, expected.map(|(code, id)| (code, id.as_bytes())), "{text}");
        }
    }
}
