//! Paths to a piece of a message: `PID-3.1`, `PID-3[2].4.1`, `OBX[2]-5`.

use super::{Delimiters, split};
use std::{fmt, str::FromStr};

/// A compiled path. Numbers count from 1, as in HL7's own notation.
///
/// - `PID`: the whole segment, so that its presence can be asked for
/// - `PID-3`: the field's first repetition, `PID-3[2]` its second
/// - `PID-3.1`, `PID-3.4.2`: component, sub-component (of the first repetition)
/// - `OBX[2]-5`: of the second OBX segment
///
/// MSH-1 is the field separator and MSH-2 the encoding characters, never taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    pub(super) segment: [u8; 3],
    pub(super) occurrence: u32,
    /// 0: the whole segment.
    pub(super) field: u16,
    pub(super) repetition: u16,
    /// 0: the whole repetition.
    pub(super) component: u16,
    /// 0: the whole component.
    pub(super) subcomponent: u16,
}

/// What is wrong with a path, for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("a path begins with a segment name of three capital letters or digits, as in PID-3.1")]
    Segment,
    #[error("after the segment name a path has `-` and a field number, as in PID-3.1")]
    Field,
    #[error("a number in a path is from 1 to 9999, as in PID-3[2].1")]
    Number,
    #[error("nothing may follow the sub-component, as in PID-3[2].4.1")]
    Trailing,
}

impl Path {
    /// Compiles a path; see the type for its notation.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let bytes = text.as_bytes();
        let segment = *bytes.first_chunk::<3>().ok_or(PathError::Segment)?;
        let named = segment[0].is_ascii_uppercase() && segment.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
        if !named {
            return Err(PathError::Segment);
        }
        let mut cursor = Cursor(&bytes[3..]);
        let mut path = Self { segment, occurrence: 1, field: 0, repetition: 1, component: 0, subcomponent: 0 };
        if let Some(n) = cursor.index()? {
            path.occurrence = u32::from(n);
        }
        if cursor.0.is_empty() {
            return Ok(path);
        }
        if !cursor.eat(b'-') {
            return Err(PathError::Field);
        }
        path.field = cursor.number()?;
        if let Some(n) = cursor.index()? {
            path.repetition = n;
        }
        if cursor.eat(b'.') {
            path.component = cursor.number()?;
            if cursor.eat(b'.') {
                path.subcomponent = cursor.number()?;
            }
        }
        if cursor.0.is_empty() { Ok(path) } else { Err(PathError::Trailing) }
    }

    /// The piece within its segment (segment text without line end); `None` when it is not there.
    pub(super) fn find<'a>(&self, segment: &'a [u8], delimiters: &Delimiters) -> Option<&'a [u8]> {
        if self.field == 0 {
            return Some(segment);
        }
        let header = matches!(&self.segment, b"MSH" | b"FHS" | b"BHS");
        let (skip, literal) = match (header, self.field) {
            (true, 1) => return segment.get(3..4),
            (true, 2) => (1, true),
            (true, n) => (usize::from(n) - 1, false),
            (false, n) => (usize::from(n), false),
        };
        let field = split(segment, delimiters.field).nth(skip)?;
        if literal {
            return Some(field);
        }
        let repetition = split(field, delimiters.repetition).nth(usize::from(self.repetition) - 1)?;
        if self.component == 0 {
            return Some(repetition);
        }
        let component = split(repetition, delimiters.component).nth(usize::from(self.component) - 1)?;
        match (self.subcomponent, delimiters.subcomponent) {
            (0, _) => Some(component),
            (n, Some(by)) => split(component, by).nth(usize::from(n) - 1),
            (1, None) => Some(component),
            (_, None) => None,
        }
    }
}

impl FromStr for Path {
    type Err = PathError;
    fn from_str(text: &str) -> Result<Self, PathError> {
        Self::parse(text)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.segment {
            write!(f, "{}", byte as char)?;
        }
        if self.occurrence > 1 {
            write!(f, "[{}]", self.occurrence)?;
        }
        if self.field == 0 {
            return Ok(());
        }
        write!(f, "-{}", self.field)?;
        if self.repetition > 1 {
            write!(f, "[{}]", self.repetition)?;
        }
        if self.component > 0 {
            write!(f, ".{}", self.component)?;
        }
        if self.subcomponent > 0 {
            write!(f, ".{}", self.subcomponent)?;
        }
        Ok(())
    }
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn eat(&mut self, byte: u8) -> bool {
        let found = self.0.first() == Some(&byte);
        if found {
            self.0 = &self.0[1..];
        }
        found
    }

    fn number(&mut self) -> Result<u16, PathError> {
        let digits = self.0.iter().take_while(|b| b.is_ascii_digit()).count();
        let (number, rest) = self.0.split_at(digits);
        if !(1..=4).contains(&digits) {
            return Err(PathError::Number);
        }
        self.0 = rest;
        match number.iter().fold(0, |n: u16, b| n * 10 + u16::from(b - b'0')) {
            0 => Err(PathError::Number),
            n => Ok(n),
        }
    }

    fn index(&mut self) -> Result<Option<u16>, PathError> {
        if !self.eat(b'[') {
            return Ok(None);
        }
        let n = self.number()?;
        if self.eat(b']') { Ok(Some(n)) } else { Err(PathError::Number) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        for text in ["PID", "PID-3", "PID-3.1", "PID-3[2].4.1", "OBX[12]-5", "ZZ1-1.2.3", "MSH-9.1", "OBX[2]"] {
            assert_eq!(Path::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Path::parse("PID[1]-3[1].1"), Path::parse("PID-3.1"));
    }

    #[test]
    fn refuses_with_a_reason() {
        for (text, reason) in [
            ("", PathError::Segment),
            ("PI", PathError::Segment),
            ("pid-3", PathError::Segment),
            ("1PD-3", PathError::Segment),
            ("P\u{e9}-3", PathError::Segment),
            ("PID3", PathError::Field),
            ("PID.3", PathError::Field),
            ("PID-", PathError::Number),
            ("PID-0", PathError::Number),
            ("PID-99999", PathError::Number),
            ("PID-3[0]", PathError::Number),
            ("PID-3[1", PathError::Number),
            ("PID-3.", PathError::Number),
            ("PID-3.1.1.1", PathError::Trailing),
            ("PID-3 ", PathError::Trailing),
        ] {
            assert_eq!(Path::parse(text), Err(reason), "{text:?}");
        }
    }
}
