//! What `fuzz_short.rs` calls: everything that reads bytes of strangers or of operators, and what must hold of it.

use bytes::BytesMut;
use hie::message::{fhir, hl7, mllp, proxy};

/// MLLP framing: the frames found do not depend on how the bytes were cut into reads; nothing is held beyond the limit.
pub fn mllp(data: &[u8]) {
    const LIMIT: usize = 512;
    let (first, rest) = data.split_first().unwrap_or((&1, &[]));
    let whole = decode(rest, rest.len().max(1), LIMIT);
    let cut = decode(rest, usize::from(*first).max(1), LIMIT);
    assert_eq!(frames(&whole), frames(&cut), "frames depend on the reads");
    for event in &whole {
        if let mllp::Event::Frame(bytes) = event {
            assert!(bytes.len() <= LIMIT, "a frame over the limit");
        }
    }
    let joined = decode_pieces(rest, usize::from(*first).max(1), LIMIT);
    assert_eq!(frames(&joined), frames(&whole), "taken piece by piece the frames are others");
    let mut encoded = BytesMut::new();
    mllp::encode(rest, &mut encoded);
    if rest.len() <= LIMIT && !rest.contains(&mllp::END) && !rest.contains(&mllp::START) {
        let again = decode(&encoded, encoded.len(), LIMIT);
        assert!(matches!(&again[..], [mllp::Event::Frame(bytes)] if bytes == rest), "what was framed is not what comes out");
    }
}

fn decode(data: &[u8], read: usize, limit: usize) -> Vec<mllp::Event> {
    let mut decoder = mllp::Decoder::new(limit);
    let mut buffer = BytesMut::new();
    let mut events = Vec::new();
    for piece in data.chunks(read) {
        buffer.extend_from_slice(piece);
        while let Some(event) = decoder.decode(&mut buffer) {
            events.push(event);
        }
        assert!(buffer.len() <= limit + read + 4, "the buffer grows beyond the limit and one read");
    }
    events.extend(decoder.flush(&mut buffer));
    events
}

/// As [`decode`], frames of more than a few bytes taken piece by piece and joined again.
fn decode_pieces(data: &[u8], read: usize, limit: usize) -> Vec<mllp::Event> {
    let mut decoder = mllp::Decoder::new(limit);
    let (mut buffer, mut text) = (BytesMut::new(), Vec::new());
    let mut events = Vec::new();
    let mut take = |event, text: &mut Vec<u8>| match event {
        mllp::Event::Piece(piece) => text.extend_from_slice(&piece),
        mllp::Event::LastPiece(piece) => {
            text.extend_from_slice(&piece);
            events.push(mllp::Event::Frame(std::mem::take(text).into()));
        }
        event => {
            text.clear();
            events.push(event);
        }
    };
    for piece in data.chunks(read) {
        buffer.extend_from_slice(piece);
        while let Some(event) = decoder.decode(&mut buffer) {
            take(event, &mut text);
        }
        if decoder.begun() > 8
            && let Some(head) = decoder.begin_pieces(&mut buffer)
        {
            text.extend_from_slice(&head);
        }
    }
    if let Some(event) = decoder.flush(&mut buffer) {
        take(event, &mut text);
    }
    events
}

fn frames(events: &[mllp::Event]) -> Vec<&[u8]> {
    fn whole(event: &mllp::Event) -> Option<&[u8]> {
        match event {
            mllp::Event::Frame(bytes) => Some(&bytes[..]),
            _ => None,
        }
    }
    events.iter().filter_map(whole).collect()
}

/// HL7 v2 and FHIR reading: whatever comes, an answer; what is built can be read back.
pub fn hl7(data: &[u8]) {
    let view = hl7::charset::view(data, None);
    if let Ok(message) = view.message() {
        let header = message.header();
        let _ = (header.message_type(), header.control_id(), header.fault(), message.patients(), message.ordering_patients());
        for path in ["MSH-9.1", "PID-3(2).1", "OBX(3)-5.2.1", "PID-5", "MSH-18", "MSH-2"] {
            if let Ok(path) = hl7::Path::parse(path) {
                let _ = message.text(&path);
            }
        }
        let ack = hl7::Ack::refused(hl7::AckCode::AE, 207, "fixed text").build(Some(header), "ID", 0);
        let read = hl7::parse_ack(&ack).expect("an acknowledgment that is read back");
        assert_eq!(read.code, "AE");
        let mut framed = BytesMut::new();
        mllp::encode(&ack, &mut framed);
        assert_eq!(framed.len(), ack.len() + 3);
    }
    let mut last = 0;
    for range in hl7::batch::messages(data) {
        assert!(last <= range.start && range.start < range.end && range.end <= data.len(), "messages overlap or are empty");
        last = range.end;
    }
    let _ = hl7::parse_ack(data);
    let text = String::from_utf8_lossy(data);
    let _ = hl7::Path::parse(&text);
    let _ = fhir::sniff(data, "application/fhir+json");
    let _ = fhir::sniff(data, "application/fhir+xml");
    let _ = fhir::sniff(data, "");
    assert_eq!(fhir::check_json(data).is_ok(), fhir::valid_json(data));
    let escaped = hl7::escape(&text, &hl7::Delimiters::STANDARD);
    let back = hl7::unescape(&escaped, &hl7::Delimiters::STANDARD);
    if !text.bytes().any(|b| b.is_ascii_control()) {
        assert_eq!(&back[..], text.as_bytes(), "escaped and unescaped again");
    }
}

/// PROXY protocol header: never more than there is, and the answer does not change when more bytes follow.
pub fn proxy(data: &[u8]) {
    match proxy::parse(data) {
        proxy::Parsed::Complete { len, .. } => {
            assert!(len <= data.len() && len <= proxy::MAX_HEADER);
            assert_eq!(proxy::parse(data), proxy::parse(&[data, b"more"].concat()));
            for short in [len / 2, len.saturating_sub(1)] {
                assert_eq!(proxy::parse(&data[..short]), proxy::Parsed::Partial, "complete before its end");
            }
        }
        proxy::Parsed::Partial => assert!(data.len() < proxy::MAX_HEADER, "asks for more than the longest header"),
        proxy::Parsed::Invalid(_) => {}
    }
}

/// Configuration, channels, clients, rules: any text gives a value or an error that tells a place.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(error) = hie::config::parse(text, "fuzz.toml") {
        assert!(!error.to_string().is_empty());
    }
    if let Ok(channels) = hie::channel::load::parse(text, "fuzz.toml") {
        let _ = hie::channel::Set::compile(channels);
    }
    let _ = hie::channel::client::parse(text);
    let _ = hie::channel::rule::Rule::compile(text);
}
