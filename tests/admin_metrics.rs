//! What is counted shows up in the metrics, under configured names only.

use hie::{
    engine::{fact::Outcome, ports::Refusal},
    telemetry::{
        encode,
        engine::{Accepted, Attempt, ChannelMetrics, Refused, retain},
    },
};
use std::time::Duration;

fn value(text: &str, sample: &str) -> Option<f64> {
    text.lines().find_map(|l| l.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn events_show_up_and_removed_channels_go() {
    let channel = ChannelMetrics::of("telemetry.one");
    let route = channel.route("ehr");
    Accepted { channel: &channel, bytes: 700, took: Duration::from_millis(2) }.emit();
    Attempt { route: &route, outcome: Outcome::Retry, took: Duration::from_secs(1), age: None }.emit();
    Refused { refusal: &Refusal::NotAllowed, channel: Some(&channel) }.emit();
    let text = encode();
    assert_eq!(value(&text, r#"hie_messages_accepted_total{channel="telemetry.one"}"#), Some(1.0));
    assert_eq!(value(&text, r#"hie_messages_accepted_bytes_total{channel="telemetry.one"}"#), Some(700.0));
    assert_eq!(value(&text, r#"hie_accept_seconds_bucket{le="0.002048",channel="telemetry.one"}"#), Some(1.0));
    assert_eq!(value(&text, r#"hie_accept_seconds_bucket{le="+Inf",channel="telemetry.one"}"#), Some(1.0));
    assert_eq!(value(&text, r#"hie_accept_seconds_count{channel="telemetry.one"}"#), Some(1.0));
    assert_eq!(value(&text, r#"hie_delivery_attempts_total{channel="telemetry.one",route="ehr",outcome="retry"}"#), Some(1.0));
    assert_eq!(value(&text, r#"hie_messages_not_allowed_total{channel="telemetry.one"}"#), Some(1.0));
    assert!(value(&text, r#"hie_messages_refused_total{reason="not-allowed"}"#) >= Some(1.0));
    assert!(value(&text, "process_resident_memory_bytes") > Some(1e6));
    assert!(value(&text, "process_open_fds") >= Some(3.0));

    // The same handles after a reload, none after removal.
    assert!(std::sync::Arc::ptr_eq(&channel, &ChannelMetrics::of("telemetry.one")));
    retain([]);
    assert!(!encode().contains("telemetry.one"));
}
