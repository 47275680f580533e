//! Channel files for tests.

use super::Receiver;

/// A `[[channel]]` header that takes what `when` says, in queue mode, ordered by patient.
pub fn queue(name: &str, when: &str) -> String {
    format!("[[channel]]\nname = \"{name}\"\nwhen = '{when}'\nmode = \"queue\"\norder = \"patient\"\n")
}

/// A `[[channel.route]]` to a receiver, quick to retry; `more` adds lines.
pub fn route(name: &str, target: &str, more: &str) -> String {
    format!(
        "[[channel.route]]\nname = \"{name}\"\n{target}\ntimeout = \"2s\"\nretry = {{ first = \"20ms\", max = \"500ms\" }}\n\
         eject_for = \"500ms\"\n{more}\n"
    )
}

/// One channel for everything, one route to one receiver.
pub fn all_to(receiver: &Receiver) -> String {
    queue("test.all", "true") + &route("primary", &receiver.target(), "primary = true")
}
