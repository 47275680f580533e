//! FHIR: which resource a body holds, and whose. Sniffed from the head of a body, since bodies may be streamed.

mod json;
mod xml;

use std::fmt;

/// At most this many patient identifiers of one body are kept.
pub const MAX_PATIENTS: usize = 16;
/// Of a body, this much is looked at.
pub const MAX_HEAD: usize = 256 * 1024;
/// Longest id or identifier kept, in bytes; longer ones are left out.
const MAX_ID: usize = 256;

/// What a FHIR body is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fhir {
    /// `Patient`, `Bundle`, …
    pub resource_type: String,
    /// The resource's own id.
    pub id: Option<String>,
    /// Patients it is about, each once, at most [`MAX_PATIENTS`]: id and identifier values of Patient resources (itself, or the entries
    /// of a Bundle), and the ids of references to `Patient/…`.
    pub patients: Vec<String>,
}

/// Reads the head of a body. `head`: its beginning, the whole body where that is at hand; looked at up to [`MAX_HEAD`].
/// `content_type`: as declared, may be empty; one that says neither JSON nor XML leaves the choice to the first byte.
/// `None` when it is not FHIR, or not as far as the head goes.
pub fn sniff(head: &[u8], content_type: &str) -> Option<Fhir> {
    let head = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(head);
    let head = &head[..head.len().min(MAX_HEAD)];
    let says = |word: &[u8]| content_type.as_bytes().windows(word.len()).any(|w| w.eq_ignore_ascii_case(word));
    match head.trim_ascii_start().first()? {
        b'{' if !says(b"xml") => json::sniff(head),
        b'<' if !says(b"json") => xml::sniff(head),
        _ => None,
    }
}

/// Where a body stops being JSON. Holds no content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotJson {
    /// From 1.
    pub line: usize,
    /// From 1, in bytes.
    pub column: usize,
}

impl fmt::Display for NotJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not valid JSON at line {}, column {}", self.line, self.column)
    }
}

impl std::error::Error for NotJson {}

/// Checks that a whole body is one JSON value (RFC 8259), nested at most 128 deep. A byte-order mark is allowed.
pub fn check_json(body: &[u8]) -> Result<(), NotJson> {
    let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
    match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
        // Strings that are skipped are not checked for UTF-8 by the parser.
        Ok(_) => match std::str::from_utf8(body) {
            Ok(_) => Ok(()),
            Err(e) => {
                let before = &body[..e.valid_up_to()];
                let line = memchr::memchr_iter(b'\n', before).count() + 1;
                let column = before.len() - memchr::memrchr(b'\n', before).map_or(0, |at| at + 1) + 1;
                Err(NotJson { line, column })
            }
        },
        Err(e) => Err(NotJson { line: e.line(), column: e.column() }),
    }
}

/// As [`check_json`], yes or no.
pub fn valid_json(body: &[u8]) -> bool {
    check_json(body).is_ok()
}

/// One resource while it is read: its fields may come in any order.
#[derive(Default)]
struct Resource {
    kind: String,
    id: Option<String>,
    identifiers: Vec<String>,
}

/// What is found, as it is found.
#[derive(Default)]
struct Found {
    patients: Vec<String>,
}

impl Found {
    fn patient(&mut self, id: &str) {
        let full = self.patients.len() >= MAX_PATIENTS;
        if !full && !id.is_empty() && id.len() <= MAX_ID && !self.patients.iter().any(|p| p == id) {
            self.patients.push(id.to_owned());
        }
    }

    /// `Patient/123`, `https://server/fhir/Patient/123`, with or without `/_history/4`.
    fn reference(&mut self, reference: &str) {
        let mut parts = reference.split('/');
        while let Some(part) = parts.next() {
            if part == "Patient" {
                let id = parts.next().unwrap_or("");
                // FHIR R4, 2.24.0.1: the characters of an id. A search (`Patient?name=…`) is none.
                if id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.') {
                    self.patient(id);
                }
                return;
            }
        }
    }

    fn resource(&mut self, resource: &Resource) {
        if resource.kind == "Patient" {
            for id in resource.id.iter().chain(&resource.identifiers) {
                self.patient(id);
            }
        }
    }

    fn finish(self, top: Resource) -> Option<Fhir> {
        let mut letters = top.kind.bytes();
        let named = letters.next().is_some_and(|b| b.is_ascii_uppercase()) && letters.all(|b| b.is_ascii_alphanumeric());
        (named && top.kind.len() <= 64).then_some(Fhir { resource_type: top.kind, id: top.id, patients: self.patients })
    }
}

impl Resource {
    fn identifier(&mut self, value: &str) {
        if self.identifiers.len() < MAX_PATIENTS && value.len() <= MAX_ID {
            self.identifiers.push(value.to_owned());
        }
    }

    fn set_id(&mut self, id: &str) {
        if !id.is_empty() && id.len() <= MAX_ID {
            self.id = Some(id.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENT: &str = r#"{"id":"p1","resourceType":"Patient","identifier":[{"system":"s","value":"M\u00fc-1"},{"value":"2"}],
        "contact":[{"identifier":{"value":"no"}}],"link":[{"other":{"reference":"Patient/p0"}}]}"#;
    const BUNDLE: &str = r#"{"resourceType":"Bundle","id":"b","entry":[
        {"fullUrl":"urn:x","resource":{"resourceType":"Patient","id":"p1","identifier":{"value":"i1"}},"request":{"method":"PUT","url":"Patient/p1"}},
        {"resource":{"resourceType":"Observation","id":"o","subject":{"reference":"https://h/fhir/Patient/p2/_history/3"}}},
        {"resource":{"resourceType":"Encounter","subject":{"reference":"Group/g"}},"request":{"url":"Patient?name=x"}},
        {"request":{"method":"DELETE","url":"Patient/p3"}}]}"#;

    fn ids(fhir: &Fhir) -> Vec<&str> {
        fhir.patients.iter().map(String::as_str).collect()
    }

    #[test]
    fn json_patient() {
        let fhir = sniff(PATIENT.as_bytes(), "application/fhir+json").unwrap();
        assert_eq!((fhir.resource_type.as_str(), fhir.id.as_deref()), ("Patient", Some("p1")));
        assert_eq!(ids(&fhir), ["p0", "p1", "M\u{fc}-1", "2"]);
    }

    #[test]
    fn json_bundle() {
        let fhir = sniff(BUNDLE.as_bytes(), "").unwrap();
        assert_eq!((fhir.resource_type.as_str(), fhir.id.as_deref()), ("Bundle", Some("b")));
        assert_eq!(ids(&fhir), ["p1", "i1", "p2", "p3"]);
    }

    #[test]
    fn a_cut_body_gives_what_was_there_and_never_something_else() {
        let whole = sniff(BUNDLE.as_bytes(), "").unwrap();
        for cut in 0..BUNDLE.len() {
            if let Some(fhir) = sniff(&BUNDLE.as_bytes()[..cut], "") {
                assert_eq!(fhir.resource_type, "Bundle", "cut at {cut}");
                assert!(fhir.patients.iter().all(|p| whole.patients.contains(p)), "cut at {cut}: {fhir:?}");
            }
        }
        assert_eq!(sniff(&BUNDLE.as_bytes()[..200], "").unwrap().patients, ["p1", "i1"]);
    }

    #[test]
    fn xml() {
        let xml = r#"<?xml version="1.0"?><!-- c --><f:Bundle xmlns:f="http://hl7.org/fhir"><f:id value="b"/><f:entry><f:resource>
            <f:Patient><f:id value="p&amp;1"></f:id><f:identifier><f:value value="i1"/></f:identifier></f:Patient></f:resource></f:entry>
            <f:entry><f:resource><f:Observation><f:id value="o"/><f:subject><f:reference value="Patient/p2"/></f:subject></f:Observation>
            </f:resource><f:request><f:url value="Patient/p3"/></f:request></f:entry></f:Bundle>"#;
        let fhir = sniff(xml.as_bytes(), "application/fhir+xml").unwrap();
        assert_eq!((fhir.resource_type.as_str(), fhir.id.as_deref()), ("Bundle", Some("b")));
        assert_eq!(ids(&fhir), ["p&1", "i1", "p2", "p3"]);
        let fhir = sniff(br#"<Patient xmlns="http://hl7.org/fhir"><id value="7"/><iden"#, "").unwrap();
        assert_eq!((fhir.resource_type.as_str(), ids(&fhir)), ("Patient", vec!["7"]));
        for other in [
            r#"<ClinicalDocument xmlns="urn:hl7-org:v3"><id value="1"/>"#,
            "<Patient/>",
            "<",
            "<a",
            "<!DOCTYPE a [<!ENTITY b 'c'>]>",
        ] {
            assert_eq!(sniff(other.as_bytes(), ""), None, "{other}");
        }
    }

    #[test]
    fn other_bodies_are_not_fhir() {
        for other in
            ["", " ", "{}", "[]", "[{\"resourceType\":\"Patient\"}]", "{\"a\":{\"resourceType\":\"Patient\"}}", "MSH|", "null"]
        {
            assert_eq!(sniff(other.as_bytes(), ""), None, "{other}");
        }
        for kind in ["\"patient\"", "\"\"", "1", "\"Pat ient\"", "[\"Patient\"]"] {
            assert_eq!(sniff(format!("{{\"resourceType\":{kind}}}").as_bytes(), ""), None, "{kind}");
        }
        assert_eq!(sniff(PATIENT.as_bytes(), "application/xml"), None);
        assert_eq!(sniff(&b"{\"a\":".repeat(10_000), ""), None);
    }

    #[test]
    fn tells_where_json_ends() {
        assert_eq!(check_json(BUNDLE.as_bytes()), Ok(()));
        assert_eq!(check_json(b"\xEF\xBB\xBF[]"), Ok(()));
        assert_eq!(check_json(b"{\n \"a\": }"), Err(NotJson { line: 2, column: 7 }));
        assert_eq!(check_json(b"{} x").unwrap_err().to_string(), "not valid JSON at line 1, column 4");
        assert!(check_json(b"[\n\"\xFF\"]").is_err());
        assert!(check_json(&b"[".repeat(100_000)).is_err());
        assert!(check_json(b"").is_err());
        assert!(valid_json(b"1") && !valid_json(b"1,"));
    }
}
