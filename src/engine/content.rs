//! What an arriving message says of itself: type, control id, patients; read once, used by rules, keys and the envelope.

use super::ports::{Arrival, Refusal};
use crate::{
    channel::{Subject, client::ANONYMOUS},
    message::{
        Protocol,
        fhir::{self, Fhir},
        hl7::{Header, Message, charset::View},
    },
};
use xxhash_rust::xxh3::Xxh3;

/// The parsed beginning of a message. Borrows the message's bytes.
pub struct Content<'a> {
    pub hl7: Option<Message<'a>>,
    pub fhir: Option<Fhir>,
    pub kind: String,
    pub control_id: Option<String>,
    pub content_type: String,
    /// See [`super::fact::Accepted::resend_key`].
    pub resend_key: u64,
}

/// Media types of HL7 v2 over HTTP (HAPI's convention and the common others).
fn is_hl7_type(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    matches!(
        essence.as_str(),
        "application/hl7-v2" | "application/hl7-v2+er7" | "x-application/hl7-v2+er7" | "text/hl7" | "text/hl7v2"
    )
}

impl<'a> Content<'a> {
    /// Reads what the message says of itself from its first bytes (`head`: the whole of a small one).
    /// Refuses what cannot be read as what it claims to be.
    /// `view`: the same bytes, in a form in which delimiters can be searched.
    pub fn read(arrival: &Arrival, head: &'a [u8], view: &'a View<'a>, complete: bool) -> Result<Self, Refusal> {
        let content_type = declared_type(arrival);
        let claims_hl7 = arrival.protocol == Protocol::Mllp || is_hl7_type(&content_type);
        if claims_hl7 || (arrival.protocol == Protocol::File && looks_like_hl7(head)) {
            return Self::read_hl7(arrival, view, content_type);
        }
        let fhir = fhir::sniff(head, &content_type);
        if complete && content_type.starts_with("application/fhir+json") && !head.is_empty() && !fhir::valid_json(head) {
            return Err(Refusal::Unreadable("the body is not valid JSON".into()));
        }
        let resend_key = idempotency_key(arrival).unwrap_or(0);
        Ok(Self {
            hl7: None,
            kind: fhir.as_ref().map(|f| f.resource_type.clone()).unwrap_or_default(),
            control_id: fhir.as_ref().and_then(|f| f.id.clone()),
            fhir,
            content_type,
            resend_key,
        })
    }

    fn read_hl7(arrival: &Arrival, view: &'a View<'a>, content_type: String) -> Result<Self, Refusal> {
        let message = view.message().map_err(|e| Refusal::Unreadable(e.to_string()))?;
        let header = message.header();
        if let Some(fault) = header.fault() {
            return Err(Refusal::Unreadable(fault.text.into()));
        }
        let control_id = header.control_id();
        let resend_key = match (idempotency_key(arrival), &control_id) {
            (Some(key), _) => key,
            (None, Some(id)) => resend_key(arrival, &[header.sending_application, header.sending_facility, id.as_bytes()]),
            (None, None) => 0,
        };
        Ok(Self {
            kind: message.message_type(),
            control_id,
            hl7: Some(message),
            fhir: None,
            content_type: if content_type.is_empty() { "x-application/hl7-v2+er7".into() } else { content_type },
            resend_key,
        })
    }

    /// What rules and order expressions see.
    pub fn subject<'s>(&'s self, arrival: &'s Arrival, size: u64) -> Subject<'s> {
        Subject {
            protocol: arrival.protocol,
            listener: &arrival.listener,
            client: &arrival.client,
            remote: &arrival.remote,
            http: arrival.http.as_ref(),
            hl7: self.hl7.as_ref(),
            fhir: self.fhir.as_ref(),
            content_type: &self.content_type,
            kind: &self.kind,
            control_id: self.control_id.as_deref().unwrap_or_default(),
            size,
        }
    }

    /// Patient identifiers to search by, at most 16.
    pub fn patients(&self) -> Vec<String> {
        let mut all = match (&self.hl7, &self.fhir) {
            (Some(message), _) => message.patients(),
            (None, Some(fhir)) => fhir.patients.clone(),
            (None, None) => Vec::new(),
        };
        all.truncate(16);
        all
    }
}

fn declared_type(arrival: &Arrival) -> String {
    arrival.http.as_ref().and_then(|h| h.header("content-type")).unwrap_or_default().to_owned()
}

fn looks_like_hl7(head: &[u8]) -> bool {
    Header::parse(head).is_ok()
}

/// The resend key of a request with an `Idempotency-Key`. A key belongs to one request of one sender: senders count from 1, and
/// a repetition is answered with what is stored, so the same key on another method, path or query, or from another address where
/// the sender is not known, is another request (draft-ietf-httpapi-idempotency-key-header, 2.7).
fn idempotency_key(arrival: &Arrival) -> Option<u64> {
    let head = arrival.http.as_ref()?;
    let key = head.header("idempotency-key")?;
    let unknown = &*arrival.client == ANONYMOUS;
    // Without the port, which changes with every connection.
    let address = if unknown { arrival.remote.rsplit_once(':').map_or(&*arrival.remote, |(ip, _)| ip) } else { "" };
    let parts = ["idempotency-key", key, &head.method, &head.path, &head.query, address];
    Some(resend_key(arrival, &parts.map(str::as_bytes)))
}

fn resend_key(arrival: &Arrival, parts: &[&[u8]]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(arrival.client.as_bytes());
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    // 0 means "has none".
    hasher.digest().max(1)
}
