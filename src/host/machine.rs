//! What the kernel says about this machine and who this process is.

use nix::unistd::{User, geteuid};

/// Nice value of threads whose work can wait: a tenth of the share of the others.
const BACKGROUND: i32 = 10;

/// Lets other threads go before the calling one where there is not enough processor for all: for work that can wait.
pub fn background() {
    // One that may not is as quick as the others, which is no fault.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), BACKGROUND);
}

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
