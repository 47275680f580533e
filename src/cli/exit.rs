//! Exit codes, after sysexits(3).

use std::fmt::Display;

/// Not done: the command ran, and what was asked for did not come about.
pub const FAILED: u8 = 1;
/// Wrong arguments.
pub const USAGE: u8 = 64;
/// Wrong configuration.
pub const CONFIG: u8 = 65;
/// Something needed is away: the running node, the store, a port.
pub const UNAVAILABLE: u8 = 69;
/// A bug.
pub const BUG: u8 = 70;

/// Why a command ends badly: the exit code and what the operator is told.
#[derive(Debug)]
pub struct Failure {
    /// One of the codes above.
    pub code: u8,
    /// What happened and what to do next.
    pub message: String,
}

impl Failure {
    /// [`FAILED`]
    pub fn failed(message: impl Display) -> Self {
        Self { code: FAILED, message: message.to_string() }
    }

    /// [`USAGE`]
    pub fn usage(message: impl Display) -> Self {
        Self { code: USAGE, message: message.to_string() }
    }

    /// [`CONFIG`]
    pub fn config(message: impl Display) -> Self {
        Self { code: CONFIG, message: message.to_string() }
    }

    /// [`UNAVAILABLE`]
    pub fn unavailable(message: impl Display) -> Self {
        Self { code: UNAVAILABLE, message: message.to_string() }
    }

    /// [`BUG`]
    pub fn bug(message: impl Display) -> Self {
        Self { code: BUG, message: message.to_string() }
    }

    /// Says it on standard error.
    pub fn tell(&self) {
        for line in self.message.lines() {
            eprintln!("hie: {line}");
        }
    }
}

/// What the libraries' errors come to when nothing more is known: not done.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(format!("{error:#}"))
    }
}
