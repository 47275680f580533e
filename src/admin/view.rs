//! A transaction as OpenHIM shows one.

mod build;

pub(super) use build::build;

use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// One transaction.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Transaction {
    #[serde(rename = "_id")]
    pub id: String,
    #[serde(rename = "clientID")]
    pub client: String,
    /// Address of the sender.
    #[serde(rename = "clientIP")]
    pub client_ip: String,
    #[serde(rename = "channelID", skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// The transaction that this one reruns.
    #[serde(rename = "parentID", skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Transactions that rerun this one (not in simple lists).
    #[serde(rename = "childIDs", skip_serializing_if = "Option::is_none")]
    pub children: Option<Vec<String>>,
    pub status: String,
    #[serde(rename = "canRerun")]
    pub can_rerun: bool,
    #[serde(rename = "wasRerun", skip_serializing_if = "Option::is_none")]
    pub was_rerun: Option<bool>,
    /// Does the node try again by itself?
    #[serde(rename = "autoRetry")]
    pub auto_retry: bool,
    /// Attempts on the primary route.
    #[serde(rename = "autoRetryAttempt", skip_serializing_if = "Option::is_none")]
    pub auto_retry_attempt: Option<u32>,
    pub request: Request,
    /// Proxy mode: what the sender was answered. Queue mode: the primary route's latest answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<Response>,
    /// The secondary routes.
    pub routes: Vec<Route>,
    /// The pipeline's steps.
    pub orchestrations: Vec<Orchestration>,
    pub properties: BTreeMap<String, String>,
    /// Why the primary route's latest attempt failed, or the message was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
    pub hie: Extra,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Request {
    pub host: String,
    pub port: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub querystring: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    pub method: String,
    pub timestamp: String,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Response {
    /// HTTP status; 0 where the receiver does not speak HTTP.
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    pub timestamp: String,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Route {
    pub name: String,
    pub request: RouteRequest,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<Response>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
    pub orchestrations: Vec<Orchestration>,
    /// `Waiting`, `Delivered`, `Retry`, `Parked`, `Failed`.
    pub state: String,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct RouteRequest {
    pub host: String,
    pub timestamp: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Orchestration {
    pub name: String,
    pub group: String,
    pub timestamp: String,
    /// How the step ended.
    pub outcome: String,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Problem {
    pub message: String,
    pub stack: String,
}

/// What OpenHIM has no word for.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Extra {
    pub protocol: String,
    pub listener: String,
    /// Address of the sender with its port, or the file's name.
    pub remote: String,
    /// Message type, as `ADT^A01` or `Patient`.
    pub r#type: String,
    #[serde(rename = "controlId", skip_serializing_if = "Option::is_none")]
    pub control_id: Option<String>,
    /// The control id was used before, for another body.
    #[serde(rename = "controlIdReused")]
    pub control_id_reused: bool,
    pub patients: Vec<String>,
    #[serde(rename = "contentType")]
    pub content_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// How often the sender sent it again.
    pub resends: u32,
    /// The transaction, accepted on another node, that this one repeats; it was delivered there, not here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeats: Option<String>,
    /// Every delivery attempt, in order.
    pub attempts: Vec<AttemptView>,
    /// What else happened: requeued, discarded, carried, handed on to the broker.
    pub events: Vec<Event>,
    /// Where the bodies are, by `request`, `response` or route name.
    pub bodies: BTreeMap<String, BodyView>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AttemptView {
    pub route: String,
    pub attempt: u32,
    pub target: String,
    pub timestamp: String,
    #[serde(rename = "tookMs")]
    pub took_ms: u32,
    /// `Delivered`, `Retry`, `Parked`, `Failed`.
    pub outcome: String,
    pub status: u16,
    /// `AA`, `CE`, …, where there was an acknowledgment.
    pub ack: String,
    pub error: String,
    /// Bytes of the answer.
    pub length: u64,
    /// Where the answer is; absent when none is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub href: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Event {
    pub timestamp: String,
    pub what: String,
    pub route: String,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct BodyView {
    /// Bytes as they came.
    pub length: u64,
    /// Is it stored?
    pub stored: bool,
    /// Of the text above: `utf-8` or `base64`; absent when it is not shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// Only its beginning is shown.
    pub truncated: bool,
    /// All of it, byte for byte; absent when none is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub href: Option<String>,
}
