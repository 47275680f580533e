//! The host: systemd, journald, signals, limits, listeners, the lock of the store. The only user of nix and rustix.

pub mod clock;
pub mod limits;
pub mod listeners;
pub mod lock;
pub mod log;
mod machine;
pub mod panics;
pub mod signals;
pub mod space;
pub mod systemd;
pub mod upgrade;
pub mod usage;

pub use crate::telemetry::resident_bytes as rss;
pub use clock::SystemClock;
pub use machine::{background, boot_id, hostname, user};
