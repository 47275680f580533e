//! RabbitMQ as transport: the only user of lapin.
//!
//! [`Link`] keeps one connection with any of the brokers; each connection is a [`Session`]. On sessions stand
//! [`Publisher`]s (confirmed, in order, repeated over lost connections), [`Consumer`]s, and [`topology`] (names and
//! declarations of queues).

mod confirms;
mod connect;
pub mod consumer;
pub mod link;
pub mod publisher;
mod publishing;
pub mod reason;
pub mod session;
pub mod settings;
mod socket;
pub mod topology;

pub use consumer::{Acks, ConsumeEnd, Consumer, Delivery, StreamStart};
pub use link::{Link, LinkState};
pub use publisher::{Confirmed, PublishError, Publisher, PublisherLimits};
pub use reason::Reason;
pub use session::Session;
pub use settings::{LinkSettings, PasswordSource, Tls};
pub use topology::{Depth, QueueKind, QueueSpec, TopologyError};
