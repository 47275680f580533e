#![no_main]
use hie::message::hl7::{self, Ack, AckCode, Delimiters, Header, Message, Path, batch, charset};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static PATHS: LazyLock<Vec<Path>> = LazyLock::new(|| {
    ["MSH", "MSH-1", "MSH-2", "MSH-9.1", "MSH-10", "PID-3[2].4.2", "PID-5", "OBX[2]-5.1", "MRG-1.1", "ZZZ-9999[9999].9999.9999"]
        .map(|p| Path::parse(p).unwrap())
        .into()
});

fuzz_target!(|data: &[u8]| {
    let inside = |piece: &[u8]| piece.is_empty() || data.as_ptr_range().start <= piece.as_ptr() && piece.as_ptr_range().end <= data.as_ptr_range().end;
    let mut end = 0;
    for range in batch::messages(data) {
        assert!(range.start >= end && range.end > range.start && range.end <= data.len());
        end = range.end;
        assert!(data[range].windows(3).take(4).any(|w| w == b"MSH"));
    }
    if let Some(batch) = batch::split(data) {
        assert!(Header::parse(data).is_ok_and(|h| h.kind != hl7::HeaderKind::Msh));
        batch.for_each(drop);
    }
    let view = charset::view(data, None);
    if let Ok(message) = view.message() {
        PATHS.iter().for_each(|p| drop(message.text(p)));
    }
    hl7::parse_ack(data);
    let Ok(message) = Message::new(data) else {
        assert!(Header::parse(data).is_err());
        return;
    };
    let header = message.header();
    for path in PATHS.iter() {
        if let Some(piece) = message.get(path) {
            assert!(inside(piece));
            hl7::unescape(piece, &header.delimiters);
        }
        message.text(path);
    }
    let (all, order) = (message.patients(), message.ordering_patients());
    assert!(all.len() <= hl7::MAX_PATIENTS && order.iter().all(|id| all.contains(id)));
    hl7::acceptance(header);
    header.fault();
    header.message_type();
    let ack = Ack::refused(AckCode::AE, 207, "why | not").build(Some(header), "id", i64::MIN);
    let back = Header::parse(&ack).unwrap();
    assert_eq!(back.delimiters.field, header.delimiters.field);
    if header.delimiters == Delimiters::STANDARD && header.encoding_characters.len() == 4 && header.charset.is_empty() {
        let info = hl7::parse_ack(&ack).unwrap();
        assert_eq!((info.code.as_str(), info.text.as_str()), ("AE", "why | not"));
        assert_eq!(info.control_id, header.text(header.control_id.trim_ascii()));
    }
    let text = String::from_utf8_lossy(data).replace(|c: char| c.is_ascii_control(), "");
    let escaped = hl7::escape(&text, &Delimiters::STANDARD);
    assert_eq!(hl7::unescape(&escaped, &Delimiters::STANDARD).as_ref(), text.as_bytes());
});
