//! A panic in the log without what it says: its message may hold what was being worked on.

use crate::telemetry::host::Panicked;

/// Panics of any thread are counted and logged with thread, file and line; the message is dropped.
pub fn hook() {
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let location = info.location();
        Panicked {
            thread: thread.name().unwrap_or("unnamed"),
            file: location.map_or("unknown", |l| l.file()),
            line: location.map_or(0, |l| l.line()),
        }
        .emit();
    }));
}
