//! What a message is: its envelope and the formats it may have. Pure: no I/O, no tokio.

pub mod envelope;
pub mod fhir;
pub mod hl7;
pub mod mllp;
pub mod proxy;

pub use envelope::{Envelope, HttpHead, MessageId, Protocol};
