//! What a rule looks at.

use super::MAX_VALUE;
use crate::message::{HttpHead, Protocol, fhir::Fhir, hl7};
use std::borrow::Cow;

/// One message as rules and orders see it. Everything is borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub protocol: Protocol,
    /// Name of the listener or watched folder.
    pub listener: &'a str,
    /// Name of the sender.
    pub client: &'a str,
    /// `ip:port`, or the file's name.
    pub remote: &'a str,
    pub http: Option<&'a HttpHead>,
    pub hl7: Option<&'a hl7::Message<'a>>,
    pub fhir: Option<&'a Fhir>,
    pub content_type: &'a str,
    /// `ADT^A01`, `Patient`; empty when unknown.
    pub kind: &'a str,
    /// Empty when absent.
    pub control_id: &'a str,
    /// Bytes of the body, as far as known.
    pub size: u64,
}

impl Subject<'_> {
    /// A message of which nothing is known.
    pub const EMPTY: Subject<'static> = Subject {
        protocol: Protocol::Mllp,
        listener: "",
        client: "",
        remote: "",
        http: None,
        hl7: None,
        fhir: None,
        content_type: "",
        kind: "",
        control_id: "",
        size: 0,
    };

    /// Patient identifiers to search by.
    pub fn patients(&self) -> Cow<'_, [String]> {
        match (self.hl7, self.fhir) {
            (Some(message), _) => Cow::Owned(message.patients()),
            (None, Some(fhir)) => Cow::Borrowed(&fhir.patients),
            (None, None) => Cow::Borrowed(&[]),
        }
    }

    /// Patient identifiers that decide order.
    pub fn ordering_patients(&self) -> Cow<'_, [String]> {
        match (self.hl7, self.fhir) {
            (Some(message), _) => Cow::Owned(message.ordering_patients()),
            (None, Some(fhir)) => Cow::Borrowed(&fhir.patients),
            (None, None) => Cow::Borrowed(&[]),
        }
    }
}

/// The variables that are strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variable {
    Protocol,
    Listener,
    Client,
    Remote,
    Method,
    Path,
    Query,
    ContentType,
    Kind,
    Resource,
    ControlId,
}

/// Their names; `size`, the only other variable, is a number.
pub(super) const VARIABLES: [(&str, Variable); 11] = [
    ("protocol", Variable::Protocol),
    ("listener", Variable::Listener),
    ("client", Variable::Client),
    ("remote", Variable::Remote),
    ("method", Variable::Method),
    ("path", Variable::Path),
    ("query", Variable::Query),
    ("content_type", Variable::ContentType),
    ("kind", Variable::Kind),
    ("resource", Variable::Resource),
    ("control_id", Variable::ControlId),
];

impl Variable {
    pub(super) fn of<'a>(self, subject: &Subject<'a>) -> &'a str {
        let value = match self {
            Self::Protocol => subject.protocol.as_str(),
            Self::Listener => subject.listener,
            Self::Client => subject.client,
            Self::Remote => subject.remote,
            Self::Method => subject.http.map_or("", |h| &h.method),
            Self::Path => subject.http.map_or("", |h| &h.path),
            Self::Query => subject.http.map_or("", |h| &h.query),
            Self::ContentType => subject.content_type,
            Self::Kind => subject.kind,
            Self::Resource => subject.fhir.map_or("", |f| &f.resource_type),
            Self::ControlId => subject.control_id,
        };
        bounded(value)
    }
}

/// A value as rules see it: its first [`MAX_VALUE`] bytes.
pub(super) fn bounded(value: &str) -> &str {
    &value[..value.floor_char_boundary(MAX_VALUE)]
}
