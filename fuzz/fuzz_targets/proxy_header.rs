#![no_main]
use hie::message::proxy::{MAX_HEADER, Parsed, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let whole = parse(data);
    match &whole {
        Parsed::Complete { len, .. } => {
            assert!(*len <= data.len() && *len <= MAX_HEADER);
            assert_eq!(parse(&data[..*len]), whole);
            for cut in 0..*len {
                assert_eq!(parse(&data[..cut]), Parsed::Partial);
            }
            assert_eq!(parse(&[data, b"\nmore"].concat()), whole);
        }
        Parsed::Partial => {
            assert!(data.len() < MAX_HEADER);
            for cut in 0..data.len() {
                assert_eq!(parse(&data[..cut]), Parsed::Partial);
            }
        }
        Parsed::Invalid(_) => assert!(matches!(parse(&[data, b"x\r\n"].concat()), Parsed::Invalid(_))),
    }
});
