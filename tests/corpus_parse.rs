//! Reading messages, on real material: never a panic, a header or a clear reason, the same pieces as another parser finds, and the
//! same resource types as a full JSON parser finds. Also on the project's own samples, which are always there.

use hie::message::{
    fhir,
    hl7::{self, Header, Message, Path as Hl7Path, Unreadable, batch, charset},
    mllp,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

fn corpus() -> Option<PathBuf> {
    let corpus = std::env::var_os("HIE_CORPUS").map(PathBuf::from);
    if corpus.is_none() {
        println!("not run: HIE_CORPUS is not set");
    }
    corpus
}

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("samples")
}

/// All files below a folder with one of these endings, in order, with their bytes.
fn files(folder: &Path, endings: &[&str]) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = vec![];
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| endings.contains(&e)) {
                found.push((path.clone(), std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no files in {}", folder.display());
    found
}

#[derive(Debug, Default, PartialEq)]
struct Counts {
    files: usize,
    messages: usize,
    batches: usize,
    missing_control_id: usize,
    with_patient: usize,
    unreadable: BTreeMap<String, usize>,
    /// Messages that the other parser takes too, and pieces compared.
    compared: usize,
    pieces: usize,
}

/// Everything that the node does with a message's bytes when it arrives, with what must hold for any bytes.
fn examine(bytes: &[u8], counts: &mut Counts, name: &str) {
    let header = match Header::parse(bytes) {
        Ok(header) => header,
        Err(reason) => {
            assert!(!bytes.windows(4).take(4).any(|w| w == b"MSH|"), "{name} begins with MSH and is {reason}");
            *counts.unreadable.entry(reason.to_string()).or_default() += 1;
            return;
        }
    };
    let view = charset::view(bytes, None);
    let message = view.message().unwrap();
    counts.with_patient += usize::from(!hl7::patients(&message).is_empty());
    counts.missing_control_id += usize::from(header.fault().is_some());

    // Its acknowledgment names its control id and goes back to the sender.
    let ack = hl7::Ack::accepted(hl7::AckCode::AA).build(Some(&header), "id", 0);
    let info = hl7::parse_ack(&ack).unwrap_or_else(|| panic!("{name}: the acknowledgment cannot be read"));
    assert_eq!((info.code.as_str(), info.control_id), ("AA", header.text(header.control_id.trim_ascii()).into_owned()), "{name}");
    let back = Header::parse(&ack).unwrap();
    assert_eq!(
        (back.receiving_application, back.sending_facility),
        (header.sending_application, header.receiving_facility),
        "{name}"
    );

    compare(bytes, &Message::new(bytes).unwrap(), counts, name);
}

/// Every piece that hl7-parser finds in the message, found by path.
fn compare(bytes: &[u8], message: &Message<'_>, counts: &mut Counts, name: &str) {
    // It takes text only, without a byte-order mark or blanks before MSH.
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // One delimiter in two meanings (`&&&&`), or none given (`MSH||`): no right answer to compare.
    let all = message.header().encoding_characters;
    if all.len() < 4 || (1..all.len()).any(|i| all[..i].contains(&all[i])) {
        return;
    }
    // It does not know the fifth delimiter, so it gets the message without it.
    let known =
        String::from_utf8_lossy(&message.header().encoding_characters[..message.header().encoding_characters.len().min(4)]);
    let text = text.replacen(&*String::from_utf8_lossy(message.header().encoding_characters), &known, 1);
    let Ok(oracle) = hl7_parser::Message::parse_with_lenient_newlines(&text, true) else { return };
    counts.compared += 1;
    let get = |path: String| message.get(&Hl7Path::parse(&path).unwrap()).map(|raw| String::from_utf8_lossy(raw).into_owned());
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for segment in oracle.segments() {
        let occurrence = seen.entry(segment.name).or_default();
        *occurrence += 1;
        if Hl7Path::parse(segment.name).is_err() {
            continue;
        }
        for (f, field) in segment.fields().enumerate() {
            let header = matches!(segment.name, "MSH" | "FHS" | "BHS");
            let at = format!("{}[{occurrence}]-{}", segment.name, f + 1);
            // It counts the fields of a header segment that is not the first as those of others, and has no fifth delimiter here.
            if header && *occurrence > 1 {
                continue;
            }
            if header && f < 2 {
                assert!(get(at.clone()).is_some_and(|v| v.starts_with(field.raw_value())), "{name} {at}");
                continue;
            }
            for (r, repeat) in field.repeats().enumerate() {
                let at = format!("{at}[{}]", r + 1);
                for (c, component) in repeat.components().enumerate() {
                    let at = format!("{at}.{}", c + 1);
                    assert_eq!(get(at.clone()).as_deref(), Some(component.raw_value()), "{name} {at}");
                    counts.pieces += 1;
                }
            }
        }
    }
    // What acknowledging, routing and searching rest on.
    let field = |segment: &str, n: usize| oracle.segment(segment).and_then(|s| s.field(n));
    let first = |f: &hl7_parser::message::Field<'_>| {
        f.repeat(1).and_then(|r| r.component(1)).map_or(String::new(), |c| c.raw_value().to_owned())
    };
    let header = message.header();
    assert_eq!(String::from_utf8_lossy(header.control_id), field("MSH", 10).map_or("", |f| f.raw_value()), "{name} MSH-10");
    assert_eq!(String::from_utf8_lossy(header.message_code), field("MSH", 9).map(first).unwrap_or_default(), "{name} MSH-9.1");
    // It stops at a segment without fields.
    if let Some(pid) = oracle.segment("PID") {
        assert_eq!(get("PID-3.1".into()).unwrap_or_default(), pid.field(3).map(first).unwrap_or_default(), "{name} PID-3.1");
    }
}

fn hl7_folder(folder: &Path) -> Counts {
    let mut counts = Counts::default();
    for (path, bytes) in files(folder, &["hl7"]) {
        counts.files += 1;
        let name = path.display().to_string();
        match batch::split(&bytes) {
            Some(ranges) => {
                counts.batches += 1;
                for range in ranges {
                    counts.messages += 1;
                    assert!(bytes[range.clone()].starts_with(b"MSH"), "{name}");
                    examine(&bytes[range], &mut counts, &name);
                }
            }
            None => {
                counts.messages += 1;
                examine(&bytes, &mut counts, &name);
            }
        }
        // Nothing may be made of pieces of it but an answer.
        for cut in [1, 3, 4, 8, bytes.len() / 3, bytes.len() / 2] {
            if let Ok(message) = Message::new(&bytes[..cut.min(bytes.len())]) {
                hl7::patients(&message);
                hl7::ordering_patients(&message);
            }
        }
    }
    counts
}

#[test]
fn every_hl7_file_is_read_or_has_a_reason() {
    let Some(corpus) = corpus() else { return };
    let counts = hl7_folder(&corpus.join("hl7v2"));
    println!("{counts:#?}");
    assert!(counts.files >= 1000 && counts.compared * 10 > counts.messages * 8, "too little was compared: {counts:?}");
    let unreadable: usize = counts.unreadable.values().sum();
    assert!(unreadable * 20 < counts.messages, "too much was not readable: {counts:?}");
}

#[test]
fn every_hl7_file_survives_framing() {
    let Some(corpus) = corpus() else { return };
    let all = files(&corpus.join("hl7v2"), &["hl7"]);
    let mut wire = bytes::BytesMut::new();
    // A file may itself hold a start block, which is not text: such a frame is cut by design.
    let framed: Vec<_> = all.iter().filter(|(_, b)| !b.contains(&mllp::START)).collect();
    framed.iter().for_each(|(_, bytes)| mllp::encode(bytes, &mut wire));
    let (mut decoder, mut buf, mut at) = (mllp::Decoder::new(64 << 20), bytes::BytesMut::new(), 0);
    for (n, piece) in wire.chunks(1021).enumerate() {
        // Pieces of changing size.
        let (a, b) = piece.split_at(piece.len().min(n % 1021));
        for part in [a, b] {
            buf.extend_from_slice(part);
            while let Some(event) = decoder.decode(&mut buf) {
                assert_eq!(event, mllp::Event::Frame(framed[at].1.clone().into()), "{}", framed[at].0.display());
                at += 1;
            }
        }
    }
    println!("{at} of {} files framed and taken out again", all.len());
    assert_eq!(at, framed.len());
}

#[test]
fn every_fhir_file_is_recognised() {
    let Some(corpus) = corpus() else { return };
    let (mut count, mut patients) = (0, 0);
    for (path, bytes) in files(&corpus.join("fhir"), &["json"]) {
        let (resource, found) = fhir_file(&path, &bytes);
        count += usize::from(resource.is_some());
        patients += usize::from(found > 0);
        // A cut head gives the same type or none.
        for cut in [10, 100, 1000, bytes.len() / 2] {
            if let Some(cut) = fhir::sniff(&bytes[..cut.min(bytes.len())], "") {
                assert_eq!(Some(cut.resource_type), resource, "{}", path.display());
            }
        }
    }
    println!("{count} FHIR files recognised, {patients} with patients");
    assert!(count > 700 && patients > 100, "{count} recognised, {patients} with patients");
}

#[test]
fn documents_that_are_not_fhir_are_not_taken_for_it() {
    let Some(corpus) = corpus() else { return };
    let all = files(&corpus.join("cda"), &["xml"]);
    for (path, bytes) in &all {
        assert_eq!(fhir::sniff(bytes, "application/xml"), None, "{}", path.display());
        assert_eq!(Header::parse(bytes).map(|_| ()), Err(Unreadable::NoHeader), "{}", path.display());
    }
    println!("{} CDA documents passed over", all.len());
}

/// Type, and number of patients; the type must be the one that a full parser finds.
fn fhir_file(path: &Path, bytes: &[u8]) -> (Option<String>, usize) {
    let value: serde_json::Value = serde_json::from_slice(bytes).unwrap();
    assert!(fhir::valid_json(bytes), "{}", path.display());
    let expected = value["resourceType"].as_str().map(str::to_owned);
    let found = fhir::sniff(bytes, "application/fhir+json");
    assert_eq!(found.as_ref().map(|f| f.resource_type.clone()), expected, "{}", path.display());
    let found = found.unwrap_or_default();
    // Ids after the first 256 KiB may be missed; the corpus has no such file.
    assert_eq!(found.id.as_deref(), value["id"].as_str(), "{}", path.display());
    if let Some(reference) = value["subject"]["reference"].as_str().and_then(|r| r.strip_prefix("Patient/")) {
        assert!(found.patients.iter().any(|p| p == reference), "{}", path.display());
    }
    (expected, found.patients.len())
}

#[test]
fn the_samples_are_read() {
    let counts = hl7_folder(&samples().join("hl7v2"));
    assert_eq!((counts.files, counts.messages, counts.with_patient, counts.missing_control_id), (6, 6, 6, 0));
    assert!(counts.unreadable.is_empty());
    // All but the one in ISO 8859-1.
    assert_eq!(counts.compared, 5);
    let read = |name: &str| std::fs::read(samples().join("hl7v2").join(name)).unwrap();
    let text = |bytes: &[u8], path: &str| Message::new(bytes).unwrap().text(&Hl7Path::parse(path).unwrap()).into_owned();

    let latin = read("adt-a08-update-latin1.hl7");
    assert!(std::str::from_utf8(&latin).is_err());
    assert_eq!(text(&latin, "PID-5.1"), "M\u{fc}\u{df}ig");
    let merge = read("adt-a40-merge.hl7");
    let message = Message::new(&merge).unwrap();
    assert_eq!(hl7::ordering_patients(&message), ["700411", "1975031288", "811902", "T-5512"]);
    assert_eq!(text(&read("oru-r01-laboratory.hl7"), "OBX[3]-5"), "Fasting | non-fasting not stated\nSample slightly haemolysed");
    let kinds: Vec<String> =
        files(&samples().join("hl7v2"), &["hl7"]).iter().map(|(_, b)| Message::new(b).unwrap().message_type()).collect();
    assert_eq!(kinds, ["ADT^A01", "ADT^A08", "ADT^A40", "ORM^O01", "ORU^R01", "SIU^S12"]);
}

#[test]
fn the_fhir_samples_are_recognised() {
    let mut kinds = vec![];
    for (path, bytes) in files(&samples().join("fhir"), &["json"]) {
        let (kind, patients) = fhir_file(&path, &bytes);
        assert!(patients > 0, "{}", path.display());
        kinds.extend(kind);
    }
    assert_eq!(kinds, ["Bundle", "Observation", "Patient"]);
    let xml = std::fs::read(samples().join("fhir/encounter.xml")).unwrap();
    let encounter = fhir::sniff(&xml, "application/fhir+xml").unwrap();
    assert_eq!((encounter.resource_type.as_str(), encounter.id.as_deref()), ("Encounter", Some("visit-5502")));
    assert_eq!(encounter.patients, ["lindqvist-700411"]);
}
