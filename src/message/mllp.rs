//! MLLP framing (HL7 "Transport Specification: MLLP, Release 1"): `<VT> message <FS> <CR>`.
//!
//! The decoder works on a growing buffer and never looks at a byte twice, whatever the sizes of the reads.
//!
//! What it makes of input that the specification does not allow, so that every sender gets an answer:
//!
//! - Bytes between frames: CR and LF are passed over in silence (some senders end a frame with CR LF), anything
//!   else is reported as [`Event::Garbage`] and skipped.
//! - A second `<VT>` before the end block: what came before it is reported as [`Event::Truncated`] and dropped; the
//!   frame that begins there is read as usual.
//! - `<FS>` followed directly by `<VT>`: ends the frame; its CR was forgotten.
//! - `<FS>` followed by any other byte: text. The specification forbids `<FS>` in a message, but cutting a message short
//!   and acknowledging it would be worse than passing one odd byte on.
//! - A frame that has become large can be taken piece by piece from then on, see [`Decoder::begin_pieces`].
//! - `<FS>` as the last byte there is: the decoder waits for the next one. A sender that leaves out the CR and waits for
//!   its acknowledgment never sends it, so when nothing more has come for a short while (or at the end of the
//!   connection) the caller asks [`Decoder::flush`] for the frame; [`Decoder::awaits_cr`] says when that is worth a timer.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Start block, `<VT>`.
pub const START: u8 = 0x0B;
/// First byte of the end block, `<FS>`.
pub const END: u8 = 0x1C;
/// Second byte of the end block.
pub const CR: u8 = 0x0D;

/// Bytes of a frame over the limit that are kept, enough to read its MSH and acknowledge it by its own control id.
pub const HEAD: usize = 4096;

/// What the decoder found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole frame, without its start and end blocks.
    Frame(Bytes),
    /// More of the frame that is taken piece by piece; never empty.
    Piece(Bytes),
    /// The last of it, before its end block; may be empty.
    LastPiece(Bytes),
    /// A frame over the limit has ended (at its end block or at the next start block). `len` is its length in bytes,
    /// `head` its first [`HEAD`] bytes (`max_frame` where that is less), empty where it was taken piece by piece.
    TooLarge { len: u64, head: Bytes },
    /// A start block came before the end block: `bytes` of a frame were dropped.
    Truncated { bytes: u64 },
    /// Bytes between frames that are neither CR nor LF; skipped.
    Garbage { bytes: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a start block.
    Between,
    /// The buffer begins with the frame's first byte; the first `scanned` bytes hold no end.
    Frame { scanned: usize },
    /// In a frame of which `taken` bytes were given out.
    Pieces { taken: u64 },
    /// In a frame over the limit; `dropped` bytes of it are gone from the buffer.
    Skip { dropped: u64 },
}

/// Incremental decoder for one connection. Holds no bytes of its own but the head of a frame over the limit.
#[derive(Debug)]
pub struct Decoder {
    max_frame: usize,
    state: State,
    head: Bytes,
}

/// Where a frame ends in the buffer.
enum End {
    /// Text length, and length of text and end block together.
    Block(usize, usize),
    /// A start block at this position.
    Restart(usize),
    /// Not yet; this many bytes need not be looked at again.
    NotYet(usize),
}

impl Decoder {
    /// `max_frame`: largest frame in bytes, without start and end blocks.
    pub fn new(max_frame: usize) -> Self {
        Self { max_frame, state: State::Between, head: Bytes::new() }
    }

    /// Takes the next event out of `buf`, with the bytes that led to it; `None` when more bytes are needed. The caller appends
    /// what it reads to `buf` and calls again until `None`. `buf` never needs to grow beyond `max_frame` and one read.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Option<Event> {
        loop {
            match self.state {
                State::Between => {
                    let start = memchr::memchr(START, buf);
                    let before = start.unwrap_or(buf.len());
                    let garbage = buf[..before].iter().filter(|b| !matches!(b, b'\r' | b'\n')).count();
                    buf.advance(start.map_or(before, |s| s + 1));
                    if start.is_some() {
                        self.state = State::Frame { scanned: 0 };
                    }
                    if garbage > 0 {
                        return Some(Event::Garbage { bytes: garbage });
                    }
                    start?;
                }
                State::Frame { scanned } => match find_end(buf, scanned) {
                    End::Block(len, with_block) => return Some(self.take(buf, len, with_block, State::Between)),
                    End::Restart(at) if at > self.max_frame => {
                        return Some(self.take(buf, at, at + 1, State::Frame { scanned: 0 }));
                    }
                    End::Restart(at) => {
                        buf.advance(at + 1);
                        self.state = State::Frame { scanned: 0 };
                        return Some(Event::Truncated { bytes: at as u64 });
                    }
                    End::NotYet(scanned) if scanned > self.max_frame => {
                        self.head = Bytes::copy_from_slice(&buf[..self.max_frame.min(HEAD)]);
                        buf.advance(scanned);
                        self.state = State::Skip { dropped: scanned as u64 };
                    }
                    End::NotYet(scanned) => {
                        self.state = State::Frame { scanned };
                        return None;
                    }
                },
                State::Pieces { taken } => match find_end(buf, 0) {
                    End::NotYet(0) => return None,
                    End::Block(len, _) | End::Restart(len) | End::NotYet(len) if taken + len as u64 > self.max_frame as u64 => {
                        self.state = State::Skip { dropped: taken };
                    }
                    End::NotYet(len) => {
                        self.state = State::Pieces { taken: taken + len as u64 };
                        return Some(Event::Piece(buf.split_to(len).freeze()));
                    }
                    End::Block(len, with_block) => {
                        self.state = State::Between;
                        let last = buf.split_to(len).freeze();
                        buf.advance(with_block - len);
                        return Some(Event::LastPiece(last));
                    }
                    End::Restart(at) => {
                        buf.advance(at + 1);
                        self.state = State::Frame { scanned: 0 };
                        return Some(Event::Truncated { bytes: taken + at as u64 });
                    }
                },
                State::Skip { dropped } => {
                    let (len, used, next) = match find_end(buf, 0) {
                        End::Block(len, with_block) => (len, with_block, State::Between),
                        End::Restart(at) => (at, at + 1, State::Frame { scanned: 0 }),
                        End::NotYet(scanned) => {
                            buf.advance(scanned);
                            self.state = State::Skip { dropped: dropped + scanned as u64 };
                            return None;
                        }
                    };
                    buf.advance(used);
                    self.state = next;
                    return Some(Event::TooLarge { len: dropped + len as u64, head: std::mem::take(&mut self.head) });
                }
            }
        }
    }

    /// Bytes of a frame that has begun and not ended which are in the buffer and belong to its text.
    pub fn begun(&self) -> usize {
        match self.state {
            State::Frame { scanned } => scanned,
            State::Between | State::Pieces { .. } | State::Skip { .. } => 0,
        }
    }

    /// Takes what is there of a frame that has begun and not ended; what follows comes as [`Event::Piece`] and
    /// [`Event::LastPiece`], or its end as [`Event::Truncated`] or [`Event::TooLarge`]. To be called when [`Decoder::decode`] has given
    /// `None`. `None` when no frame has begun.
    pub fn begin_pieces(&mut self, buf: &mut BytesMut) -> Option<Bytes> {
        let State::Frame { scanned } = self.state else { return None };
        self.state = State::Pieces { taken: scanned as u64 };
        Some(buf.split_to(scanned).freeze())
    }

    /// Ends a frame whose `<FS>` is the last byte that came (see the module's text). `None` when there is none.
    pub fn flush(&mut self, buf: &mut BytesMut) -> Option<Event> {
        if !self.awaits_cr(buf) {
            return None;
        }
        let len = buf.len() - 1;
        match self.state {
            State::Between => None,
            State::Frame { .. } => Some(self.take(buf, len, len + 1, State::Between)),
            State::Pieces { .. } => {
                buf.clear();
                self.state = State::Between;
                Some(Event::LastPiece(Bytes::new()))
            }
            State::Skip { dropped } => {
                buf.clear();
                self.state = State::Between;
                Some(Event::TooLarge { len: dropped + len as u64, head: std::mem::take(&mut self.head) })
            }
        }
    }

    /// True when [`Decoder::decode`] waits for nothing but the CR of an end block.
    pub fn awaits_cr(&self, buf: &BytesMut) -> bool {
        match self.state {
            State::Between => false,
            State::Frame { scanned } => scanned + 1 == buf.len() && buf.last() == Some(&END),
            State::Pieces { .. } | State::Skip { .. } => buf.len() == 1 && buf.first() == Some(&END),
        }
    }

    /// True while a frame has begun and not ended.
    pub fn in_frame(&self) -> bool {
        self.state != State::Between
    }

    /// Takes a frame of `len` bytes out of the buffer and goes on to `next`.
    fn take(&mut self, buf: &mut BytesMut, len: usize, used: usize, next: State) -> Event {
        self.state = next;
        let frame = buf.split_to(len);
        buf.advance(used - len);
        if len <= self.max_frame {
            return Event::Frame(frame.freeze());
        }
        // Copied, so that the large allocation can go.
        Event::TooLarge { len: len as u64, head: Bytes::copy_from_slice(&frame[..self.max_frame.min(HEAD)]) }
    }
}

fn find_end(buf: &[u8], from: usize) -> End {
    let mut at = from;
    while let Some(found) = memchr::memchr2(END, START, &buf[at..]) {
        let i = at + found;
        if buf[i] == START {
            return End::Restart(i);
        }
        match buf.get(i + 1) {
            Some(&CR) => return End::Block(i, i + 2),
            // The start block stays for the next frame.
            Some(&START) => return End::Block(i, i + 1),
            Some(_) => at = i + 1,
            None => return End::NotYet(i),
        }
    }
    End::NotYet(buf.len())
}

/// Appends `message` as a frame to `out`.
pub fn encode(message: &[u8], out: &mut BytesMut) {
    out.reserve(message.len() + 3);
    out.put_u8(START);
    out.put_slice(message);
    out.put_slice(&[END, CR]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `input` in pieces of the given sizes (cycled) and returns all events.
    fn run(input: &[u8], sizes: &[usize], max: usize) -> Vec<Event> {
        let mut decoder = Decoder::new(max);
        let (mut buf, mut events, mut rest) = (BytesMut::new(), vec![], input);
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            rest = after;
            buf.extend_from_slice(piece);
            while let Some(event) = decoder.decode(&mut buf) {
                events.push(event);
            }
            assert!(buf.len() <= max + size + 1, "buffer holds {} bytes", buf.len());
        }
        events.extend(decoder.flush(&mut buf));
        events
    }

    fn frame(text: &str) -> Event {
        Event::Frame(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn frames_are_the_same_in_any_pieces() {
        let input = b"\r\n\x0bMSH|1\rPID\r\x1c\r\n\x0b\x1c\r\x0bthree\x1c\x0bfour\x1cx\x1c\r\x0bfive\x1c";
        let expected = vec![frame("MSH|1\rPID\r"), frame(""), frame("three"), frame("four\x1cx"), frame("five")];
        for size in 1..input.len() + 1 {
            assert_eq!(run(input, &[size], 100), expected, "pieces of {size}");
        }
        assert_eq!(run(input, &[1, 7, 2, 3], 100), expected);
    }

    #[test]
    fn a_start_block_inside_a_frame_reports_the_truncated_one() {
        assert_eq!(run(b"\x0bhalf\x0bwhole\x1c\r", &[3], 100), vec![Event::Truncated { bytes: 4 }, frame("whole")]);
    }

    #[test]
    fn garbage_is_counted_and_skipped() {
        let events = run(b"GET /\r\n\x0bok\x1c\rjunk", &[100], 100);
        assert_eq!(events, vec![Event::Garbage { bytes: 5 }, frame("ok"), Event::Garbage { bytes: 4 }]);
    }

    #[test]
    fn a_frame_over_the_limit_is_skipped_to_its_end_in_bounded_memory() {
        let mut input = b"\x0bMSH|head".to_vec();
        input.resize(20_000, b'x');
        input.extend_from_slice(b"\x1cy\x1c\r\x0bnext\x1c\r");
        for size in [1, 999, 4096, 30_000] {
            let events = run(&input, &[size], 8192);
            let [Event::TooLarge { len: 20_001, head }, next] = &events[..] else { panic!("pieces of {size}: {events:?}") };
            assert_eq!((head.len(), &head[..8], next), (HEAD, &b"MSH|head"[..], &frame("next")));
        }
    }

    #[test]
    fn the_limit_itself_is_allowed() {
        for size in [1, 4, 100] {
            assert_eq!(run(b"\x0bfive5\x1c\r", &[size], 5), vec![frame("five5")]);
            assert!(matches!(run(b"\x0bsix666\x1c\r", &[size], 5)[..], [Event::TooLarge { len: 6, .. }]));
        }
    }

    #[test]
    fn a_frame_without_its_cr_is_flushed_and_a_late_cr_is_passed_over() {
        let mut decoder = Decoder::new(100);
        let mut buf = BytesMut::from(&b"\x0bquery\x1c"[..]);
        assert_eq!(decoder.decode(&mut buf), None);
        assert!(decoder.awaits_cr(&buf) && decoder.in_frame());
        assert_eq!(decoder.flush(&mut buf), Some(frame("query")));
        buf.extend_from_slice(b"\r\x0bnext\x1c\r");
        assert_eq!(decoder.decode(&mut buf), Some(frame("next")));
        assert_eq!(decoder.flush(&mut buf), None);
        assert!(!decoder.in_frame());
    }

    /// As [`run`], a frame of more than `large` bytes taken piece by piece; the pieces are joined to a frame again.
    fn run_pieces(input: &[u8], size: usize, max: usize, large: usize) -> (Vec<Event>, usize) {
        let mut decoder = Decoder::new(max);
        let (mut buf, mut events, mut text, mut begun) = (BytesMut::new(), vec![], vec![], 0);
        let mut take = |event: Event, text: &mut Vec<u8>| match event {
            Event::Piece(piece) => text.extend_from_slice(&piece),
            Event::LastPiece(piece) => {
                text.extend_from_slice(&piece);
                events.push(Event::Frame(std::mem::take(text).into()));
            }
            event => {
                text.clear();
                events.push(event);
            }
        };
        for piece in input.chunks(size) {
            buf.extend_from_slice(piece);
            while let Some(event) = decoder.decode(&mut buf) {
                take(event, &mut text);
            }
            if decoder.begun() > large
                && let Some(head) = decoder.begin_pieces(&mut buf)
            {
                text.extend_from_slice(&head);
                begun += 1;
            }
            assert!(buf.len() <= large + size + 1, "buffer holds {} bytes", buf.len());
        }
        if let Some(event) = decoder.flush(&mut buf) {
            take(event, &mut text);
        }
        (events, begun)
    }

    #[test]
    fn pieces_make_up_the_same_frames() {
        let input =
            b"\x0bshort\x1c\r\x0ba long one\x1cwith FS\x1c\x1c\r\x0bcut off again\x0bthis is whole\x1c\r\x0bwithout a CR\x1c";
        for size in 1..input.len() {
            let (events, begun) = run_pieces(input, size, 100, 6);
            assert_eq!(events, run(input, &[size], 100), "pieces of {size}");
            assert!(begun >= 1 || size > 10, "pieces of {size}");
        }
    }

    #[test]
    fn a_frame_over_the_limit_is_told_when_its_pieces_were_taken() {
        let input = b"\x0bmore than twenty bytes it is\x1c\r\x0bnext\x1c\r\x0bmore than twenty bytes again\x0bx\x1c\r";
        for size in [1, 3, 8] {
            let (events, begun) = run_pieces(input, size, 20, 6);
            assert!(
                matches!(&events[..], [Event::TooLarge { len: 28, .. }, next, Event::TooLarge { len: 28, .. }, x]
                    if *next == frame("next") && *x == frame("x")),
                "pieces of {size}: {events:?}"
            );
            assert_eq!(begun, 2);
        }
    }

    #[test]
    fn encode_is_the_inverse() {
        let mut out = BytesMut::new();
        encode(b"MSH|\r", &mut out);
        assert_eq!(Decoder::new(10).decode(&mut out), Some(frame("MSH|\r")));
    }
}
