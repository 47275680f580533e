//! What a message is: its envelope and the formats it may have. Pure: no I/O, no tokio.

pub mod envelope;

pub use envelope::{Envelope, HttpHead, MessageId, Protocol};
