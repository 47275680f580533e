//! `hie`: a Health Information Exchange node.
//!
//! # Layout
//!
//! Arrows point down only: a module uses those below it.
//!
//! - [`cli`]: one file per subcommand
//! - [`app`]: the composition root
//! - [`admin`]: management API, health, metrics
//! - [`gateway`]: connectors in and out, receivers of alerts
//! - [`alert`]: what operators have to know without looking
//! - [`discovery`]: the Consul agent: names, members, shared channels
//! - [`peer`]: what the nodes of a domain hand each other: proof of the domain's secret, sealed answers, the asking side
//! - [`transport`]: accepted messages to workers
//! - [`ledger`]: the log of facts and bodies, and the views folded from it
//! - [`engine`]: accept, dispatch, deliver
//! - [`channel`]: what an operator may configure for a channel (pure)
//! - [`preset`]: tiers, planner, rendering of derived settings (pure)
//! - [`message`]: envelope, HL7 v2, FHIR, MLLP framing (pure)
//! - [`config`]: one small file per section
//! - [`host`]: systemd, journald, signals, limits, listeners
//! - [`telemetry`]: typed events

pub mod admin;
pub mod alert;
pub mod app;
pub mod channel;
pub mod cli;
pub mod config;
pub mod discovery;
pub mod engine;
pub mod gateway;
pub mod host;
pub mod ledger;
pub mod message;
pub mod peer;
pub mod preset;
pub mod telemetry;
pub mod transport;
