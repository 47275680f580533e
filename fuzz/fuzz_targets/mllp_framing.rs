#![no_main]
use bytes::BytesMut;
use hie::message::mllp::{Decoder, Event, START, encode};
use libfuzzer_sys::fuzz_target;

/// All events of `input`, read in pieces whose sizes `next` gives; neighbouring garbage counted together.
fn events(input: &[u8], max: usize, mut next: impl FnMut() -> usize) -> Vec<Event> {
    let (mut decoder, mut buf, mut found, mut rest) = (Decoder::new(max), BytesMut::new(), vec![], input);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(next().clamp(1, rest.len()));
        rest = after;
        buf.extend_from_slice(piece);
        while let Some(event) = decoder.decode(&mut buf) {
            match (found.last_mut(), event) {
                (Some(Event::Garbage { bytes: all }), Event::Garbage { bytes }) => *all += bytes,
                (_, event) => found.push(event),
            }
        }
        assert!(buf.len() <= max + piece.len() + 1);
        assert!(decoder.in_frame() || buf.is_empty());
    }
    found.extend(decoder.flush(&mut buf));
    found
}

fuzz_target!(|data: &[u8]| {
    let [max, seed, input @ ..] = data else { return };
    let max = usize::from(*max);
    let whole = events(input, max, || usize::MAX);
    assert_eq!(whole, events(input, max, || 1));
    let mut state = u32::from(*seed) | 1;
    let random = events(input, max, || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as usize % 40 + 1
    });
    assert_eq!(whole, random);
    for event in &whole {
        if let Event::Frame(frame) = event {
            assert!(frame.len() <= max && !frame.contains(&START));
        }
    }
    // A message without framing bytes comes out as it went in.
    let text: Vec<u8> = input.iter().copied().filter(|b| !matches!(b, 0x0B | 0x1C)).collect();
    let mut wire = BytesMut::new();
    encode(&text, &mut wire);
    assert_eq!(events(&wire, text.len(), || 3), [Event::Frame(text.into())]);
});
