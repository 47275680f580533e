//! Transport: accepted messages to workers.

pub mod embedded;
pub mod rabbitmq;
