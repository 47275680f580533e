//! Transport: accepted messages to workers.
