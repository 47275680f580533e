//! Acknowledgments (HL7 v2.5.1, 2.9.2 and 2.9.3): which to send, how they look, and reading those that come back.

use super::{Delimiters, Fault, Header, Message, Path, escape};

/// MSA-1 (HL7 table 0008).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AckCode {
    /// Application accept.
    AA,
    /// Application error.
    AE,
    /// Application reject.
    AR,
    /// Accept acknowledgment: commit accept.
    CA,
    /// Accept acknowledgment: commit error.
    CE,
    /// Accept acknowledgment: commit reject.
    CR,
}

impl AckCode {
    /// The two letters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AA => "AA",
            Self::AE => "AE",
            Self::AR => "AR",
            Self::CA => "CA",
            Self::CE => "CE",
            Self::CR => "CR",
        }
    }

    /// From the two letters, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::AA, Self::AE, Self::AR, Self::CA, Self::CE, Self::CR].into_iter().find(|c| c.as_str().eq_ignore_ascii_case(text))
    }

    /// The accept-level code that says the same; used in enhanced mode.
    pub fn commit(self) -> Self {
        match self {
            Self::AA | Self::CA => Self::CA,
            Self::AE | Self::CE => Self::CE,
            Self::AR | Self::CR => Self::CR,
        }
    }

    /// AA and CA.
    pub fn is_accept(self) -> bool {
        matches!(self, Self::AA | Self::CA)
    }

    /// CA, CE and CR.
    pub fn is_commit(self) -> bool {
        matches!(self, Self::CA | Self::CE | Self::CR)
    }
}

/// When an acknowledgment is wanted (HL7 table 0155).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// `AL`, and whatever is not in the table.
    Always,
    /// `NE`, and empty where the other field is not.
    Never,
    /// `ER`: errors and rejections only.
    Error,
    /// `SU`: successes only.
    Success,
}

impl When {
    fn parse(raw: &[u8]) -> Self {
        match raw.trim_ascii() {
            b"" | b"\"\"" => Self::Never,
            raw if raw.eq_ignore_ascii_case(b"NE") => Self::Never,
            raw if raw.eq_ignore_ascii_case(b"ER") => Self::Error,
            raw if raw.eq_ignore_ascii_case(b"SU") => Self::Success,
            _ => Self::Always,
        }
    }

    fn wants(self, accepted: bool) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Error => !accepted,
            Self::Success => accepted,
        }
    }
}

/// Which acknowledgments a sender wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckMode {
    /// Neither MSH-15 nor MSH-16: one application acknowledgment, always.
    Original,
    /// MSH-15 or MSH-16: an accept acknowledgment on receipt, an application acknowledgment when it was processed.
    Enhanced { accept: When, application: When },
}

impl AckMode {
    /// Is this one wanted?
    pub fn should_send(self, code: AckCode) -> bool {
        match self {
            Self::Original => !code.is_commit(),
            Self::Enhanced { accept, application } => if code.is_commit() { accept } else { application }.wants(code.is_accept()),
        }
    }

    /// The code for the acknowledgment on receipt: commit codes in enhanced mode.
    pub fn on_receipt(self, code: AckCode) -> AckCode {
        match self {
            Self::Original => code,
            Self::Enhanced { .. } => code.commit(),
        }
    }
}

/// Reads MSH-15 and MSH-16.
pub fn acceptance(header: &Header<'_>) -> AckMode {
    if header.accept_ack.trim_ascii().is_empty() && header.application_ack.trim_ascii().is_empty() {
        return AckMode::Original;
    }
    AckMode::Enhanced { accept: When::parse(header.accept_ack), application: When::parse(header.application_ack) }
}

/// An acknowledgment to build.
#[derive(Clone, Copy, Debug)]
pub struct Ack<'a> {
    /// MSA-1.
    pub code: AckCode,
    /// MSA-3 and ERR-8: for the person at the other end. Fixed text, never content. May be empty.
    pub text: &'a str,
    /// Where there is an error: what table 0357 calls it and where it is. See [`Ack::refused`] and [`Ack::fault`].
    pub error: Option<ErrorDetail<'a>>,
}

/// ERR-2 and ERR-3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorDetail<'a> {
    /// Code of HL7 table 0357, for example 101.
    pub code: u16,
    /// `MSH^1^10`, with `^`; empty for the message as a whole.
    pub location: &'a str,
}

/// Names of HL7 table 0357.
fn error_name(code: u16) -> &'static str {
    match code {
        0 => "Message accepted",
        100 => "Segment sequence error",
        101 => "Required field missing",
        102 => "Data type error",
        103 => "Table value not found",
        200 => "Unsupported message type",
        201 => "Unsupported event code",
        202 => "Unsupported processing id",
        203 => "Unsupported version id",
        204 => "Unknown key identifier",
        205 => "Duplicate key identifier",
        206 => "Application record locked",
        _ => "Application internal error",
    }
}

impl<'a> Ack<'a> {
    /// `AA` or `CA`: no text, no error.
    pub fn accepted(code: AckCode) -> Self {
        Self { code, text: "", error: None }
    }

    /// A refusal of the whole message, error 207 of table 0357 unless it says better.
    pub fn refused(code: AckCode, error: u16, text: &'a str) -> Self {
        Self { code, text, error: Some(ErrorDetail { code: error, location: "" }) }
    }

    /// A fault of the header: `AE`, or `CE` in enhanced mode.
    pub fn fault(mode: AckMode, fault: &Fault) -> Self {
        let error = Some(ErrorDetail { code: fault.code, location: fault.location });
        Self { code: mode.on_receipt(AckCode::AE), text: fault.text, error }
    }

    /// The message, segments ended by CR. `request`: the header it answers; `None` when that could not be read (MSA-2 is then empty
    /// and the delimiters are the recommended ones). `id`: MSH-10 of the acknowledgment, fresh. `now_ms`: Unix milliseconds, for MSH-7.
    ///
    /// The sender's own delimiters are kept, its application and facility change places with ours, MSH-10 comes back in MSA-2,
    /// MSH-11, MSH-12 and MSH-18 as they were.
    pub fn build(&self, request: Option<&Header<'_>>, id: &str, now_ms: i64) -> Vec<u8> {
        let d = request.map_or(Delimiters::STANDARD, |h| h.delimiters);
        let part = |get: fn(&Header<'_>) -> Vec<u8>| request.map(get).unwrap_or_default();
        let or = |value: Vec<u8>, default: &str| if value.is_empty() { default.as_bytes().to_vec() } else { value };

        let encoding = or(part(|h| h.encoding_characters.to_vec()), "^~\\&");
        let trigger = part(|h| h.trigger.to_vec());
        let mut kind = b"ACK".to_vec();
        if !trigger.is_empty() {
            kind.push(d.component);
            kind.extend_from_slice(&trigger);
            kind.push(d.component);
            kind.extend_from_slice(b"ACK");
        }
        let version = or(part(|h| h.version.to_vec()), "2.5.1");

        let mut out = Vec::with_capacity(256);
        segment(
            &mut out,
            d.field,
            &[
                b"MSH",
                &encoding,
                &part(|h| h.receiving_application.to_vec()),
                &part(|h| h.receiving_facility.to_vec()),
                &part(|h| h.sending_application.to_vec()),
                &part(|h| h.sending_facility.to_vec()),
                timestamp(now_ms).as_bytes(),
                b"",
                &kind,
                &escape(id, &d),
                &or(part(|h| h.processing_id.to_vec()), "P"),
                &version,
                b"",
                b"",
                b"",
                b"",
                b"",
                &part(|h| h.charset.to_vec()),
            ],
        );
        let text = escape(self.text, &d);
        segment(&mut out, d.field, &[b"MSA", self.code.as_str().as_bytes(), &part(|h| h.control_id.to_vec()), &text]);
        if let Some(error) = &self.error {
            self.error_segment(&mut out, error, &d, before_2_5(&version), &text);
        }
        out
    }

    /// ERR as the sender's version has it: until v2.4 one field with location and code, from v2.5 on ERR-2, ERR-3, ERR-4 and ERR-8.
    fn error_segment(&self, out: &mut Vec<u8>, error: &ErrorDetail<'_>, d: &Delimiters, old: bool, text: &[u8]) {
        let location: Vec<u8> = error.location.bytes().map(|b| if b == b'^' { d.component } else { b }).collect();
        // ERR-1.4 is a coded element within a component, so its parts are sub-components.
        let by = if old { d.subcomponent.unwrap_or(b' ') } else { d.component };
        let code = [error.code.to_string().as_bytes(), error_name(error.code).as_bytes(), b"HL70357"].join(&by);
        if old {
            let missing = 3usize.saturating_sub(error.location.split('^').count());
            let mut field = location;
            field.extend(std::iter::repeat_n(d.component, missing + 1));
            field.extend_from_slice(&code);
            return segment(out, d.field, &[b"ERR", &field]);
        }
        segment(out, d.field, &[b"ERR", b"", &location, &code, b"E", b"", b"", b"", text]);
    }
}

/// True for versions 2.1 to 2.4; what does not look like a version counts as new.
fn before_2_5(version: &[u8]) -> bool {
    matches!(version.get(..3), Some([b'2', b'.', b'0'..=b'4'])) && !version.get(3).is_some_and(u8::is_ascii_digit)
}

/// Appends a segment: `fields[0]` is its name. Empty fields at the end are left out.
fn segment(out: &mut Vec<u8>, separator: u8, fields: &[&[u8]]) {
    let last = fields.iter().rposition(|f| !f.is_empty()).unwrap_or(0);
    for (i, field) in fields[..=last].iter().enumerate() {
        if i > 0 {
            out.push(separator);
        }
        out.extend_from_slice(field);
    }
    out.push(b'\r');
}

/// Unix milliseconds as HL7 TS in UTC: `20240131235959.123+0000`.
fn timestamp(ms: i64) -> String {
    let time = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        // Only a clock outside the years ±9999 gets here.
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, (h, m, s, milli)) = (time.date(), time.time().as_hms_milli());
    format!("{:04}{:02}{:02}{h:02}{m:02}{s:02}.{milli:03}+0000", date.year(), u8::from(date.month()), date.day())
}

/// What an acknowledgment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AckInfo {
    /// MSA-1 in upper case; usually one of [`AckCode`], but whatever the receiver wrote.
    pub code: String,
    /// MSA-2 as text, as [`Header::control_id`] gives MSH-10; empty when absent.
    pub control_id: String,
    /// MSA-3, or ERR-8 where that is empty. Content of the receiver: not for logs.
    pub text: String,
}

/// Reads an acknowledgment; any message with an MSA segment is one (query responses carry it too). `None` for everything else.
pub fn parse_ack(bytes: &[u8]) -> Option<AckInfo> {
    let message = Message::new(bytes).ok()?;
    let msa = message.segments(b"MSA").next()?;
    let field = |n: usize| super::split(msa, message.header().delimiters.field).nth(n).unwrap_or(&[]).trim_ascii();
    let code = message.decode(field(1)).to_ascii_uppercase();
    if code.is_empty() {
        return None;
    }
    let mut text = message.decode(field(3)).into_owned();
    if text.is_empty()
        && let Ok(path) = Path::parse("ERR-8")
    {
        text = message.text(&path).into_owned();
    }
    Some(AckInfo { code, control_id: message.decode(field(2)).into_owned(), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(ack: Ack<'_>, request: &str) -> String {
        let header = Header::parse(request.as_bytes()).ok();
        String::from_utf8(ack.build(header.as_ref(), "own-1", 1_706_745_599_123)).unwrap()
    }

    const REQUEST: &str = "MSH|^~\\&|APP|FAC|RAPP|RFAC|2024||ADT^A01^ADT_A01|C1|T|2.4||||||8859/1\r";

    #[test]
    fn accepts() {
        assert_eq!(
            built(Ack::accepted(AckCode::AA), REQUEST),
            "MSH|^~\\&|RAPP|RFAC|APP|FAC|20240131235959.123+0000||ACK^A01^ACK|own-1|T|2.4||||||8859/1\rMSA|AA|C1\r"
        );
    }

    #[test]
    fn keeps_other_delimiters() {
        let ack = built(Ack::refused(AckCode::AE, 207, "a$b"), "MSH$%~\\&$A$B$C$D$$$ADT%A08$9$P$2.5\r");
        assert_eq!(
            ack.split_once('\r').unwrap().1,
            "MSA$AE$9$a\\F\\b\rERR$$$207%Application internal error%HL70357$E$$$$a\\F\\b\r"
        );
        assert!(ack.starts_with("MSH$%~\\&$C$D$A$B$"), "{ack}");
    }

    #[test]
    fn the_error_segment_follows_the_version() {
        let missing = "MSH|^~\\&|A|B|C|D|||ADT^A01||P|";
        let fault = Header::parse(missing.as_bytes()).unwrap().fault().unwrap();
        let text = |version: &str| built(Ack::fault(AckMode::Original, &fault), &format!("{missing}{version}\r"));
        let msa = "MSA|AE||Required field missing: MSH-10, message control ID\r";
        assert!(text("2.3").ends_with(&format!("{msa}ERR|MSH^1^10^101&Required field missing&HL70357\r")), "{}", text("2.3"));
        for new in ["2.5.1", "2.8", "", "2.10"] {
            let ack = text(new);
            assert!(ack.contains("\rERR||MSH^1^10|101^Required field missing^HL70357|E||||Required"), "{ack}");
        }
        let whole = built(Ack::refused(AckCode::AR, 207, ""), REQUEST);
        assert!(whole.ends_with("ERR|^^^207&Application internal error&HL70357\r"), "{whole}");
    }

    #[test]
    fn answers_what_has_no_header() {
        let ack = built(Ack::refused(AckCode::AR, 100, "no MSH"), "junk");
        assert!(
            ack.contains("||ACK|own-1|P|2.5.1\rMSA|AR||no MSH\rERR|||100^Segment sequence error^HL70357|E||||no MSH\r"),
            "{ack}"
        );
        assert_eq!(
            parse_ack(ack.as_bytes()).unwrap(),
            AckInfo { code: "AR".into(), control_id: "".into(), text: "no MSH".into() }
        );
    }

    #[test]
    fn is_read_back() {
        let info = parse_ack(built(Ack::refused(AckCode::CE, 207, "x|y"), REQUEST).as_bytes()).unwrap();
        assert_eq!(info, AckInfo { code: "CE".into(), control_id: "C1".into(), text: "x|y".into() });
        let lower = parse_ack(b"MSH|^~\\&|A\nMSA| aa |7 \n").unwrap();
        assert_eq!((lower.code.as_str(), lower.control_id.as_str()), ("AA", "7"));
        for none in [&b"MSH|^~\\&|A\rPID|1\r"[..], b"MSA|AA|1", b"", b"MSH|^~\\&\rMSA||1\r"] {
            assert_eq!(parse_ack(none), None);
        }
    }

    #[test]
    fn modes_follow_msh_15_and_16() {
        let mode = |a: &str, b: &str| acceptance(&Header::parse(format!("MSH|^~\\&|||||||||||||{a}|{b}\r").as_bytes()).unwrap());
        assert_eq!(mode("", ""), AckMode::Original);
        assert_eq!(mode("AL", ""), AckMode::Enhanced { accept: When::Always, application: When::Never });
        assert_eq!(mode("", "er"), AckMode::Enhanced { accept: When::Never, application: When::Error });
        assert_eq!(mode("SU", "??"), AckMode::Enhanced { accept: When::Success, application: When::Always });
    }

    #[test]
    fn sends_what_is_wanted() {
        use AckCode::*;
        let sent = |mode: AckMode| [AA, AE, AR, CA, CE, CR].map(|c| mode.should_send(c));
        assert_eq!(sent(AckMode::Original), [true, true, true, false, false, false]);
        let mode = AckMode::Enhanced { accept: When::Error, application: When::Success };
        assert_eq!(sent(mode), [true, false, false, false, true, true]);
        assert_eq!((mode.on_receipt(AR), AckMode::Original.on_receipt(AR)), (CR, AR));
        assert_eq!(AckCode::parse("ca"), Some(CA));
        assert_eq!(AckCode::parse("XX"), None);
    }
}
