//! RabbitMQ as transport: the only user of lapin.
//!
//! [`Link`] keeps one connection with any of the brokers; each connection is a [`Session`]. On sessions stand
//! [`Publisher`]s (confirmed, in order, repeated over lost connections), [`Consumer`]s, and [`topology`] (names and
//! declarations of queues).

mod accepting;
pub mod admission;
mod confirms;
mod connect;
pub mod consumer;
pub mod declared;
mod epochs;
mod hands;
mod holding;
mod inbox;
pub mod link;
mod members;
mod place;
mod position;
pub mod publisher;
mod publishing;
pub mod rabbit;
pub mod reason;
mod routes;
mod seal;
pub mod session;
pub mod settings;
mod shipping;
mod socket;
mod targets;
pub mod topology;
mod wire;
mod work;

pub use admission::LayoutKeeper;
pub use consumer::{Acks, ConsumeEnd, Consumer, Delivery, StreamStart};
pub use link::{Link, LinkState};
pub use publisher::{Confirmed, PublishError, Publisher, PublisherLimits};
pub use reason::Reason;
pub use session::Session;
pub use settings::{LinkSettings, PasswordSource, Tls};
pub use topology::{Depth, QueueKind, QueueSpec, TopologyError};
