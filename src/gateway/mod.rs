//! Gateways: connectors to the world outside. They carry bytes and decide nothing.
pub mod inbound;
pub mod outbound;
