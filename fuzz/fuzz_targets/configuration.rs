#![no_main]
use hie::{
    channel::{Order, Rule, Set, Subject, load},
    message::{fhir::Fhir, hl7::Message},
};
use libfuzzer_sys::fuzz_target;

const ADT: &[u8] = b"MSH|^~\\&|LAB|HOSP|B|C|2024||ADT^A01|42|P|2.5.1\rPID|1||7^^^H~8||Doe^J\rOBX|1|NM|a||5\r";

fn rule(text: &str) {
    let compiled = match Rule::compile(text) {
        Ok(rule) => rule,
        Err(error) => {
            assert!(error.line >= 1 && error.column >= 1 && !error.message.is_empty());
            return;
        }
    };
    let message = Message::new(ADT).unwrap();
    let fhir = Fhir { resource_type: "Patient".into(), id: None, patients: vec!["7".into()] };
    let hl7 = Subject { client: "lab", kind: "ADT^A01", hl7: Some(&message), size: 120, ..Subject::EMPTY };
    for subject in [hl7, Subject { fhir: Some(&fhir), ..Subject::EMPTY }, Subject::EMPTY] {
        assert_eq!(compiled.matches(&subject), Rule::interpret(text, &subject), "{text}");
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match load::parse(text, "fuzz.toml") {
        Ok(channels) => {
            // What a file may hold can be put in force.
            Set::compile(channels).unwrap();
        }
        Err(error) => {
            assert!(error.line >= 1 && error.line <= text.matches('\n').count() + 1, "{error}");
            assert!(error.column >= 1 && error.column <= text.len() + 1, "{error}");
        }
    }
    if text.len() <= 512 {
        rule(text);
        let _ = Order::compile(text);
    }
});
