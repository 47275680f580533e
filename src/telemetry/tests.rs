use super::{
    encode,
    engine::{Accepted, ChannelMetrics},
    text::classic,
};
use std::time::{Duration, Instant};

#[test]
fn counters_carry_their_samples_name() {
    let text =
        classic("# HELP hie_a Some.\n# TYPE hie_a counter\nhie_a_total 3\n# HELP b B.\n# TYPE b gauge\n# UNIT b x\nb 1\n# EOF\n");
    assert_eq!(text, "# HELP hie_a_total Some.\n# TYPE hie_a_total counter\nhie_a_total 3\n# HELP b B.\n# TYPE b gauge\nb 1\n");
}

#[test]
fn the_text_is_well_formed() {
    for line in encode().lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            assert!(rest.starts_with("HELP ") || rest.starts_with("TYPE "), "{line}");
        } else {
            let (_, number) = line.rsplit_once(' ').unwrap();
            number.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
        }
    }
}

#[test]
fn the_hot_path_is_cheap() {
    // A generous deadline: 50 ns each are the aim, 2 µs would be a lock or an allocation gone wrong.
    let channel = ChannelMetrics::of("telemetry.hot");
    let start = Instant::now();
    for i in 0..100_000u64 {
        Accepted { channel: &channel, bytes: i, took: Duration::from_nanos(i * 13) }.emit();
    }
    let each = start.elapsed() / 100_000;
    println!("one accepted event: {each:?}");
    assert!(each < Duration::from_micros(2), "{each:?}");
}
