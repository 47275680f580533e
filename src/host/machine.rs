//! What the kernel says about this machine and who this process is.

use nix::unistd::{User, geteuid};

/// Changes with every boot of the machine (`/proc/sys/kernel/random/boot_id`).
pub fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// The machine's name; `hie` where the kernel does not tell.
pub fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "hie".into(),
        name => name.to_owned(),
    }
}

/// The user that this process acts as, for messages: its name, else its number.
pub fn user() -> String {
    let uid = geteuid();
    match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => format!("uid {uid}"),
    }
}
