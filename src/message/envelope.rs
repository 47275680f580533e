//! The envelope: everything the node knows about a message besides its bytes.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, sync::Arc};

/// The version of the stored and transported form. A reader takes any version up to its own;
/// fields are named in the encoding, so that an addition with a default needs no new version.
pub const FORMAT_VERSION: u8 = 1;

/// A message's id: a UUIDv7 (RFC 9562), so that ids sort by time of arrival.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MessageId(pub uuid::Uuid);

impl MessageId {
    /// A fresh id for a message that arrives now.
    pub fn now() -> Self {
        Self(uuid::Uuid::now_v7())
    }

    /// The 16 bytes as stored in the ledger.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id from its 16 stored bytes; `None` for any other length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        uuid::Uuid::from_slice(bytes).ok().map(Self)
    }

    /// A number that spreads evenly: the id's random end.
    pub fn spread(&self) -> u64 {
        self.0.as_u64_pair().1
    }

    /// Unix milliseconds of arrival that the id carries; `None` when it is not a UUIDv7.
    pub fn unix_ms(&self) -> Option<i64> {
        let (seconds, nanos) = self.0.get_timestamp()?.to_unix();
        i64::try_from(seconds * 1000 + u64::from(nanos) / 1_000_000).ok()
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for MessageId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// How a message came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HL7 v2 over MLLP.
    Mllp,
    /// HTTP or HTTPS.
    Http,
    /// A watched folder.
    File,
}

impl Protocol {
    /// The name used in rules, configuration and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mllp => "mllp",
            Self::Http => "http",
            Self::File => "file",
        }
    }
}

/// Request line and headers of a message that came by HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpHead {
    /// Method as sent, for example `POST`.
    pub method: String,
    /// Path without query, as sent (still percent-encoded).
    pub path: String,
    /// Query without `?`, as sent; empty when there was none.
    pub query: String,
    /// End-to-end headers in order, names in lower case, values byte for byte.
    /// Hop-by-hop headers and `Authorization` are not kept.
    pub headers: Vec<(String, HeaderBytes)>,
}

impl HttpHead {
    /// The first value of a header, when it is valid UTF-8; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).and_then(|(_, v)| std::str::from_utf8(&v.0).ok())
    }
}

/// A header's value, byte for byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderBytes(pub Vec<u8>);

impl Serialize for HeaderBytes {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for HeaderBytes {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> serde::de::Visitor<'de> for V {
            type Value = HeaderBytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("header bytes")
            }
            fn visit_bytes<E>(self, v: &[u8]) -> Result<HeaderBytes, E> {
                Ok(HeaderBytes(v.to_vec()))
            }
            fn visit_str<E>(self, v: &str) -> Result<HeaderBytes, E> {
                Ok(HeaderBytes(v.as_bytes().to_vec()))
            }
        }
        d.deserialize_bytes(V)
    }
}

/// Everything known of a message besides its bytes. Stored with the accept fact.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// [`FORMAT_VERSION`] of the node that wrote it.
    #[serde(rename = "v")]
    pub version: u8,
    /// The message's id.
    pub id: MessageId,
    /// Unix milliseconds of arrival.
    #[serde(rename = "at")]
    pub received_ms: i64,
    /// How it came in.
    #[serde(rename = "p")]
    pub protocol: Protocol,
    /// Name of the listener or watched folder.
    #[serde(rename = "l")]
    pub listener: Arc<str>,
    /// Name of the client; `anonymous` when the listener asks for no identity.
    #[serde(rename = "c")]
    pub client: Arc<str>,
    /// Address of the sender (`ip:port`), or the file's name.
    #[serde(rename = "r", default)]
    pub remote: String,
    /// HL7 message type and trigger (`ADT^A01`) or FHIR resource type (`Patient`); empty when unknown.
    #[serde(rename = "k", default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// MSH-10, or the Bundle's or resource's id; `None` when absent or empty.
    #[serde(rename = "cid", default, skip_serializing_if = "Option::is_none")]
    pub control_id: Option<String>,
    /// Patient identifiers (PID-3.1, MRG-1.1, FHIR Patient references), at most 16.
    #[serde(rename = "pat", default, skip_serializing_if = "Vec::is_empty")]
    pub patients: Vec<String>,
    /// Hashes of the ordering keys; several make the message a barrier between their sequences;
    /// none: the message waits for nobody.
    #[serde(rename = "keys", default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<u64>,
    /// MIME type as declared, or as the protocol implies.
    #[serde(rename = "ct", default, skip_serializing_if = "String::is_empty")]
    pub content_type: String,
    /// Request line and headers, for HTTP.
    #[serde(rename = "h", default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpHead>,
    /// Body length in bytes as received.
    #[serde(rename = "n")]
    pub body_len: u64,
    /// The transaction this one reruns.
    #[serde(rename = "par", default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<MessageId>,
    /// Same control id as an earlier message within the resend window, but another body.
    #[serde(rename = "dup", default, skip_serializing_if = "std::ops::Not::not")]
    pub control_id_reused: bool,
}
