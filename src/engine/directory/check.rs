//! From what a sender shows to the client that it is.

use super::{
    Failure,
    compile::{Compiled, Known},
    password,
    verified::{Key, Verified},
};
use crate::engine::ports::{Credentials, Denied};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::sync::Arc;

/// A claim: settled, or a password to be checked.
pub(super) enum Claim {
    Done(Result<Arc<str>, Failure>),
    Password(PasswordCheck),
}

/// What the credentials amount to.
pub(super) enum Found {
    /// None were given.
    Nothing,
    /// Right.
    Known(Arc<Known>),
    /// Wrong.
    Failed(Failure),
    /// Not seen before.
    Password(PasswordCheck),
}

/// A password that has to go through Argon2.
pub(super) struct PasswordCheck {
    /// The client that was named, if there is one with a password.
    known: Option<Arc<Known>>,
    password: Vec<u8>,
    key: Key,
}

/// The largest `Authorization` value looked at; more is not a credential.
const LONGEST: usize = 8 * 1024;

pub(super) fn claim(compiled: &Compiled, verified: &Verified, credentials: &Credentials) -> Found {
    let Some(header) = &credentials.authorization else {
        return match credentials.certificate.as_ref().and_then(|der| compiled.by_certificate(der)) {
            Some(known) => Found::Known(known.clone()),
            None => Found::Nothing,
        };
    };
    let failed = |kind| Found::Failed(Failure::new(Denied::BadCredentials, kind));
    if header.0.len() > LONGEST {
        return failed("malformed");
    }
    let Ok(text) = std::str::from_utf8(&header.0) else { return failed("malformed") };
    let (scheme, value) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return match compiled.by_token(value.as_bytes()) {
            Some(known) => Found::Known(known.clone()),
            None => failed("unknown-token"),
        };
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return failed("scheme");
    }
    let Ok(pair) = STANDARD.decode(value) else { return failed("malformed") };
    let Some(colon) = pair.iter().position(|b| *b == b':') else { return failed("malformed") };
    let (user, password) = (&pair[..colon], &pair[colon + 1..]);
    let known = std::str::from_utf8(user).ok().and_then(|u| compiled.by_name(u)).filter(|k| k.client.password.is_some());
    let hash = known.and_then(|k| k.client.password.as_deref()).unwrap_or(password::decoy());
    // For an unknown user the name is part of what is remembered, so that trying another one costs as much as ever.
    let salt = if known.is_some() { &b""[..] } else { user };
    let key = verified.key(hash, salt, password);
    match (verified.get(&key), known) {
        (Some(true), Some(known)) => Found::Known(known.clone()),
        (Some(_), known) => Found::Failed(wrong(known)),
        (None, known) => Found::Password(PasswordCheck { known: known.cloned(), password: password.to_vec(), key }),
    }
}

fn wrong(known: Option<&Arc<Known>>) -> Failure {
    match known {
        Some(known) => Failure::of(Denied::BadCredentials, "wrong-password", known),
        None => Failure::new(Denied::BadCredentials, "unknown-client"),
    }
}

impl PasswordCheck {
    /// Takes some 20 ms of CPU and 19 MiB, whether or not there is such a client; nothing when another thread has just done it.
    pub fn run(self, verified: &Verified) -> Result<Arc<Known>, Failure> {
        let right = verified.get(&self.key).unwrap_or_else(|| {
            let hash = self.known.as_ref().and_then(|k| k.client.password.as_deref()).unwrap_or(password::decoy());
            let right = password::verify(hash, &self.password);
            verified.put(self.key, right && self.known.is_some());
            right
        });
        match self.known {
            Some(known) if right => Ok(known),
            known => Err(wrong(known.as_ref())),
        }
    }
}
