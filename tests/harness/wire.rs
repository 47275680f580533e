//! MLLP framing (HL7 Implementation Guide for Version 2, appendix B; `<VT> message <FS><CR>`) and HL7 v2 fields
//! (chapter 2), just enough for a witness.

use std::io::{self, BufRead, BufReader, Read};

pub const VT: u8 = 0x0b;
pub const FS: u8 = 0x1c;
pub const CR: u8 = 0x0d;

/// The message in its frame.
pub fn frame(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 3);
    out.push(VT);
    out.extend_from_slice(message);
    out.extend_from_slice(&[FS, CR]);
    out
}

/// Reads frames from a stream.
pub struct Frames<R>(BufReader<R>);

impl<R: Read> Frames<R> {
    pub fn new(stream: R) -> Self {
        Self(BufReader::with_capacity(64 * 1024, stream))
    }

    /// The next message without its frame; `None` at an end between frames.
    /// A byte between frames, or an end within one, is an error.
    pub fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut first = [0];
        if self.0.read(&mut first)? == 0 {
            return Ok(None);
        }
        if first[0] != VT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("byte {:#04x} where a frame begins", first[0])));
        }
        let mut message = Vec::new();
        loop {
            let n = self.0.read_until(FS, &mut message)?;
            if n == 0 || message.last() != Some(&FS) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut next = [0];
            self.0.read_exact(&mut next)?;
            if next[0] == CR {
                message.pop();
                return Ok(Some(message));
            }
            message.push(next[0]);
        }
    }
}

/// The field `index` (MSH-1 is the separator itself) of the first segment `name`; empty when there is none.
/// Segments end at CR, LF or both; the separator is the byte after `MSH`.
pub fn field<'a>(message: &'a [u8], name: &str, index: usize) -> &'a [u8] {
    let Some(start) = header_start(message) else { return b"" };
    let message = &message[start..];
    let Some(&separator) = message.get(3) else { return b"" };
    for segment in message.split(|b| *b == b'\r' || *b == b'\n') {
        if segment.len() > 3 && &segment[..3] == name.as_bytes() && segment[3] == separator {
            let shift = usize::from(name == "MSH" || name == "BHS" || name == "FHS");
            if shift == 1 && index == 1 {
                return &segment[3..4];
            }
            return segment.split(|b| *b == separator).nth(index - shift).unwrap_or(b"");
        }
    }
    b""
}

/// Where the header segment begins: after a byte-order mark and white space.
pub fn header_start(message: &[u8]) -> Option<usize> {
    let after_mark = if message.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    let blank = message[after_mark..].iter().take_while(|b| b.is_ascii_whitespace()).count();
    let start = after_mark + blank;
    let head = message.get(start..start + 4)?;
    matches!(&head[..3], b"MSH" | b"FHS" | b"BHS").then_some(start)
}

/// `field` as text.
pub fn text(message: &[u8], name: &str, index: usize) -> String {
    String::from_utf8_lossy(field(message, name, index)).into_owned()
}

/// An original-mode acknowledgment of `message`.
pub fn ack(message: &[u8], code: &str, note: &str) -> Vec<u8> {
    let id = text(message, "MSH", 10);
    format!("MSH|^~\\&|WITNESS|T|HIE|T|20250101120000||ACK|W{id}|P|2.5.1\rMSA|{code}|{id}|{note}\r").into_bytes()
}

/// A number that stands for these bytes, to compare them without keeping them.
pub fn digest(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// What a harness message says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag {
    /// The ordering key, also the patient's identifier.
    pub key: String,
    /// 1 for the key's first message.
    pub seq: u64,
    /// MSH-10.
    pub id: String,
}

impl Tag {
    /// The tag of a received message; `None` when it is no harness message.
    pub fn of(message: &[u8]) -> Option<Self> {
        let seq = text(message, "ZSQ", 2).parse().ok()?;
        Some(Self { key: text(message, "ZSQ", 1), seq, id: text(message, "MSH", 10) })
    }
}

/// An ADT^A08 of one patient that carries its tag, padded to about `size` bytes with `pad` (repeated).
pub fn adt(tag: &Tag, size: usize, pad: &str) -> Vec<u8> {
    let Tag { key, seq, id } = tag;
    let mut out = format!(
        "MSH|^~\\&|HARNESS|SENDER|HIE|TEST|20250101120000||ADT^A08^ADT_A01|{id}|P|2.5.1\rEVN|A08|20250101120000\r\
         PID|1||{key}^^^HARNESS^MR||WITNESS^WILMA||19700101|F\rZSQ|{key}|{seq}\r"
    );
    while !pad.is_empty() && out.len() + pad.len() + 7 < size {
        out.push_str("NTE|1||");
        out.push_str(pad);
        out.push('\r');
    }
    out.into_bytes()
}
