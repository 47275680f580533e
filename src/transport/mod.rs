//! Transport: accepted messages to workers.

pub mod embedded;
mod queue;
pub mod rabbitmq;
