//! Where the messages of a large HL7 file begin and end, found without holding the file.

use std::ops::Range;

/// Looks at a file's bytes in order, as they come.
#[derive(Default)]
pub(super) struct Splitter {
    /// Bytes seen.
    at: u64,
    /// The first bytes of the present segment.
    name: [u8; 4],
    known: usize,
    segment: u64,
    /// Where the present message begins.
    message: Option<u64>,
    /// There are batch segments.
    batch: bool,
    found: u64,
}

impl Splitter {
    /// Looks at the next bytes; `message` is called with each range that has come to its end.
    pub fn feed(&mut self, mut bytes: &[u8], mut message: impl FnMut(Range<u64>)) {
        while !bytes.is_empty() {
            if self.known == self.name.len() {
                // The rest of the segment.
                let skip = memchr::memchr2(b'\r', b'\n', bytes).unwrap_or(bytes.len());
                self.pass(&mut bytes, skip);
                if !bytes.is_empty() {
                    self.known = 0;
                }
                continue;
            }
            let byte = bytes[0];
            if self.known == 0 && (byte.is_ascii_whitespace() || matches!(byte, 0xEF | 0xBB | 0xBF)) {
                // Blank lines, and the byte-order mark.
                self.pass(&mut bytes, 1);
                continue;
            }
            if self.known == 0 {
                self.segment = self.at;
            }
            if matches!(byte, b'\r' | b'\n') {
                self.name[self.known..].fill(0);
                self.known = self.name.len();
            } else {
                self.name[self.known] = byte;
                self.known += 1;
                self.pass(&mut bytes, 1);
            }
            if self.known == self.name.len() {
                self.segment_begins(&mut message);
            }
        }
    }

    /// The file's end. Returns whether it is one message without batch segments, which is then the file as it is.
    pub fn end(mut self, mut message: impl FnMut(Range<u64>)) -> bool {
        if self.known > 0 && self.known < self.name.len() {
            self.name[self.known..].fill(0);
            self.segment_begins(&mut message);
        }
        if let Some(start) = self.message.take() {
            self.found += 1;
            message(start..self.at);
        }
        self.found == 1 && !self.batch
    }

    fn pass(&mut self, bytes: &mut &[u8], n: usize) {
        *bytes = &bytes[n..];
        self.at += n as u64;
    }

    fn segment_begins(&mut self, message: &mut impl FnMut(Range<u64>)) {
        // A name that merely begins alike is another segment.
        if self.name[3].is_ascii_alphanumeric() {
            return;
        }
        let begins = match &self.name[..3] {
            b"MSH" => true,
            b"FHS" | b"BHS" | b"BTS" | b"FTS" => false,
            _ => return,
        };
        self.batch |= !begins;
        if let Some(start) = self.message.take() {
            self.found += 1;
            message(start..self.segment);
        }
        self.message = begins.then_some(self.segment);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::hl7::batch;

    fn ranges(bytes: &[u8], size: usize) -> (Vec<Range<usize>>, bool) {
        let (mut splitter, mut found) = (Splitter::default(), Vec::new());
        let mut take = |r: Range<u64>| found.push(r.start as usize..r.end as usize);
        for piece in bytes.chunks(size) {
            splitter.feed(piece, &mut take);
        }
        let single = splitter.end(&mut take);
        (found, single)
    }

    #[test]
    fn finds_what_the_batch_reader_finds_in_pieces_of_any_size() {
        for (file, single) in [
            (&b"FHS|^~\\&|A\rBHS|^~\\&|A\rMSH|^~\\&|1\r\nPID|1\r\n\r\nMSH|^~\\&|2\rNTE|MSH|\rBTS|2\rFTS|1\r"[..], false),
            (b"MSH|^~\\&|1\rPID|1\r", true),
            (b"\n\nMSH|^~\\&|1\nPID\n\nMSH|^~\\&|2\nZ\n", false),
            (b"BHS|^~\\&\rMSHX|1\rMSH|^~\\&|last", false),
            (b"FHS|^~\\&|A\rFTS|0", false),
            (b"MSH|^~\\&|1\rA\rBTS", false),
        ] {
            for size in 1..file.len() + 1 {
                let (found, one) = ranges(file, size);
                assert_eq!(found, batch::messages(file).collect::<Vec<_>>(), "{:?} by {size}", String::from_utf8_lossy(file));
                assert_eq!(one, single);
            }
        }
    }
}
