//! Escape sequences (HL7 v2.5.1, 2.7) and text.

use super::Delimiters;
use encoding_rs::Encoding;
use std::borrow::Cow;

/// Resolves the escape sequences of a raw piece: `\F\ \S\ \T\ \R\ \E\ \P\` to the delimiters, `\Xhh..\` to bytes, `\.br\` to LF;
/// `\H\` and `\N\` (highlighting) go. What is not understood or has no end stays as it is. Borrowed when there is nothing to do.
pub fn unescape<'a>(raw: &'a [u8], delimiters: &Delimiters) -> Cow<'a, [u8]> {
    let Some(escape) = delimiters.escape else { return Cow::Borrowed(raw) };
    let Some(first) = memchr::memchr(escape, raw) else { return Cow::Borrowed(raw) };
    let mut out = Vec::with_capacity(raw.len());
    out.extend_from_slice(&raw[..first]);
    let mut rest = &raw[first..];
    // `rest` begins with an escape character in every turn.
    while let Some(length) = memchr::memchr(escape, &rest[1..]) {
        let name = &rest[1..1 + length];
        let mut used = length + 2;
        if !resolve(name, delimiters, &mut out) {
            // Perhaps a stray escape character: the one that seemed to close it may open a sequence.
            out.extend_from_slice(&rest[..1 + length]);
            used = 1 + length;
        }
        rest = &rest[used..];
        let next = memchr::memchr(escape, rest).unwrap_or(rest.len());
        out.extend_from_slice(&rest[..next]);
        rest = &rest[next..];
        if rest.is_empty() {
            break;
        }
    }
    out.extend_from_slice(rest);
    Cow::Owned(out)
}

/// Appends what one sequence stands for; false when it is not known.
fn resolve(name: &[u8], delimiters: &Delimiters, out: &mut Vec<u8>) -> bool {
    match name {
        b"F" => out.push(delimiters.field),
        b"S" => out.push(delimiters.component),
        b"R" => out.push(delimiters.repetition),
        b"T" => out.extend(delimiters.subcomponent),
        b"E" => out.extend(delimiters.escape),
        b"P" => out.extend(delimiters.truncation),
        b"H" | b"N" => {}
        b".br" => out.push(b'\n'),
        [b'X', hex @ ..] if !hex.is_empty() && hex.len() % 2 == 0 && hex.iter().all(u8::is_ascii_hexdigit) => {
            let digit = |b: u8| (b as char).to_digit(16).unwrap_or(0) as u8;
            out.extend(hex.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])));
        }
        _ => return false,
    }
    true
}

/// Our own text as a field's content: delimiters escaped (where the message has an escape character, else replaced
/// by blanks), control characters replaced by blanks.
pub fn escape(text: &str, delimiters: &Delimiters) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        let name = match byte {
            b if b == delimiters.field => b'F',
            b if b == delimiters.component => b'S',
            b if b == delimiters.repetition => b'R',
            b if Some(b) == delimiters.subcomponent => b'T',
            b if Some(b) == delimiters.escape => b'E',
            b if Some(b) == delimiters.truncation => b'P',
            b if b.is_ascii_control() => {
                out.push(b' ');
                continue;
            }
            b => {
                out.push(b);
                continue;
            }
        };
        match delimiters.escape {
            Some(e) => out.extend_from_slice(&[e, name, e]),
            None => out.push(b' '),
        }
    }
    out
}

/// A raw piece as text: escapes resolved, then decoded. `encoding` is asked only when the bytes are not plain ASCII.
pub(super) fn decode<'a>(raw: &'a [u8], delimiters: &Delimiters, encoding: impl FnOnce() -> &'static Encoding) -> Cow<'a, str> {
    match unescape(raw, delimiters) {
        Cow::Borrowed(bytes) => to_text(bytes, encoding),
        Cow::Owned(bytes) => Cow::Owned(to_text(&bytes, encoding).into_owned()),
    }
}

fn to_text(bytes: &[u8], encoding: impl FnOnce() -> &'static Encoding) -> Cow<'_, str> {
    // ESC starts the shifts of ISO 2022, which are ASCII bytes too.
    if bytes.is_ascii()
        && !bytes.contains(&0x1B)
        && let Ok(text) = std::str::from_utf8(bytes)
    {
        return Cow::Borrowed(text);
    }
    super::charset::decode_with(bytes, encoding()).0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(raw: &str) -> String {
        String::from_utf8(unescape(raw.as_bytes(), &Delimiters::STANDARD).into_owned()).unwrap()
    }

    #[test]
    fn resolves_every_sequence() {
        assert_eq!(plain(r"a\F\b\S\c\T\d\R\e\E\f"), r"a|b^c&d~e\f");
        assert_eq!(plain(r"\X41C3A9\ \.br\line \H\bold\N\"), "A\u{e9} \nline bold");
    }

    #[test]
    fn leaves_what_it_does_not_know() {
        for raw in [r"C:\dir\file", r"\", r"\\", r"end\", r"\X4\", r"\XZZ\", r"\Zx\", r"\.sp3\", "", "none"] {
            assert_eq!(plain(raw), raw);
        }
        assert_eq!(plain(r"50\60 \F\"), r"50\60 |");
        assert!(matches!(unescape(b"none", &Delimiters::STANDARD), Cow::Borrowed(_)));
    }

    #[test]
    fn escape_is_undone_by_unescape() {
        let text = r"a|b^c~d\e&f";
        let escaped = escape(text, &Delimiters::STANDARD);
        assert!(!escaped.iter().any(|b| b"|^~&".contains(b)));
        assert_eq!(unescape(&escaped, &Delimiters::STANDARD).as_ref(), text.as_bytes());
        assert_eq!(escape("a\r\nb", &Delimiters::STANDARD), b"a  b");
        let none = Delimiters { escape: None, ..Delimiters::STANDARD };
        assert_eq!(escape("a|b", &none), b"a b");
    }
}
