#![no_main]
use hie::message::fhir;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let found = fhir::sniff(data, "");
    if let Some(fhir) = &found {
        assert!(fhir.patients.len() <= fhir::MAX_PATIENTS && !fhir.resource_type.is_empty());
    }
    let valid = fhir::check_json(data);
    if let Err(place) = &valid {
        assert!(place.line >= 1 && place.line <= data.iter().filter(|b| **b == b'\n').count() + 1);
    }
    // A whole parser takes the last of two equal keys; so must the scan, which a `contains` cannot tell from escapes: only
    // bodies without escapes are compared.
    if valid.is_ok() && data.len() < fhir::MAX_HEAD && !data.contains(&b'\\') {
        let value: Result<serde_json::Value, _> = serde_json::from_slice(data);
        if let (Ok(serde_json::Value::Object(object)), true) = (value, data.trim_ascii_start().first() == Some(&b'{')) {
            let expected = object.get("resourceType").and_then(|v| v.as_str());
            if let Some(fhir) = &found {
                if data.windows(14).filter(|w| w == b"\"resourceType\"").count() == 1 {
                    assert_eq!(Some(fhir.resource_type.as_str()), expected);
                }
            }
        }
    }
    for cut in [data.len() / 2, data.len() / 3] {
        fhir::sniff(&data[..cut], "application/fhir+json");
        fhir::sniff(&data[..cut], "application/fhir+xml");
    }
});
