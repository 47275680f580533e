//! Who may send: what an operator may configure for a client. Pure: text in, values out, no I/O.
//!
//! A file of `clients.d/` holds any number of `[[client]]` tables:
//!
//! ```toml
//! [[client]]
//! name = "lab"
//! roles = ["senders"]
//! password = "$argon2id$v=19$m=19456,t=2,p=1$…"   # written by `hie client hash-password`
//! token_sha256 = "9f86d0…"                        # sha256sum of the token
//! certificate = "lab.example.org"                 # subject CN, or the SHA-256 fingerprint
//! allow_ips = ["10.0.0.0/8"]
//! rate = { per_second = 50, burst = 200 }
//! ```

use super::load::in_words;
use argon2::password_hash::PasswordHash;
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf, time::Duration};

/// The name of senders that show no credential where none is asked for.
pub const ANONYMOUS: &str = "anonymous";

/// One client. Any one of its credentials identifies it; one without any is known only by listeners that name it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// Unique: letters, digits, `-`, `_`, `.`, `@`; at most 64; not `anonymous`.
    pub name: String,
    /// Names that a channel's `allow` may use instead of the client's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// For basic authentication (the user is the client's name): an Argon2 hash in PHC form, never the password itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// A file that holds such a hash, relative to the clients' folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// For `Authorization: Bearer`: the token's SHA-256 in hex. Tokens are random (32 bytes and more), so a fast hash is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_sha256: Option<String>,
    /// A file that holds the token itself, relative to the clients' folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// For client certificates: the subject's common name, or the certificate's SHA-256 fingerprint in hex (colons allowed).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// Addresses it may come from; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_ips: Vec<ipnet::IpNet>,
    /// How fast it may send; absent: as fast as the node takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// An alert begins when it has sent nothing for so long; absent: it may be silent for ever.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub silent_after: Option<Duration>,
    /// Refused whatever it shows when false.
    #[serde(default = "yes")]
    pub enabled: bool,
}

/// A rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Messages per second in the long run; may be a fraction.
    pub per_second: f64,
    /// Messages at once; default one second's worth, at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

fn yes() -> bool {
    true
}

// Written by hand: the hashes stay out of every log line and panic.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("name", &self.name)
            .field("roles", &self.roles)
            .field("enabled", &self.enabled)
            .finish_non_exhaustive()
    }
}

/// A mistake in a clients file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ClientError {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong and what to do; never a credential.
    pub message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    client: Vec<toml::Spanned<Client>>,
}

/// Reads one clients file. Every wrong client is told, each with its place; a syntax error or an unknown key ends the reading.
pub fn parse(text: &str) -> Result<Vec<Client>, Vec<ClientError>> {
    let file: File = toml::from_str(text).map_err(|e| vec![toml_error(text, &e)])?;
    let mut clients: Vec<Client> = Vec::with_capacity(file.client.len());
    let mut errors = Vec::new();
    for entry in file.client {
        let (line, column) = position(text, entry.span().start);
        let client = entry.into_inner();
        let problem = check(&client).err().or_else(|| {
            clients.iter().any(|c| c.name == client.name).then(|| format!("client \"{}\" is there twice", client.name))
        });
        match problem {
            Some(message) => errors.push(ClientError { line, column, message }),
            None => clients.push(client),
        }
    }
    if errors.is_empty() { Ok(clients) } else { Err(errors) }
}

/// Looks at one client by itself; the message says what is wrong and what to do, without the credential.
pub fn check(client: &Client) -> Result<(), String> {
    let name = &client.name;
    if !valid_name(name) {
        return Err("a client's name is 1 to 64 letters, digits, '-', '_', '.' or '@', beginning with a letter or digit, and not \"anonymous\"".into());
    }
    let fail = |text: &str| Err(format!("client \"{name}\": {text}"));
    if client.roles.iter().any(|r| r.is_empty() || r.len() > 64) {
        return fail("a role is a name of 1 to 64 characters");
    }
    if client.password.is_some() && client.password_file.is_some() {
        return fail("give password or password_file, not both");
    }
    if client.token_sha256.is_some() && client.token_file.is_some() {
        return fail("give token_sha256 or token_file, not both");
    }
    if let Some(password) = &client.password {
        check_password_hash(password).or_else(fail)?;
    }
    if client.token_sha256.as_ref().is_some_and(|t| hex32(t).is_none()) {
        return fail("token_sha256 is the token's SHA-256 as 64 hex digits: printf %s \"$TOKEN\" | sha256sum");
    }
    if client.certificate.as_ref().is_some_and(|c| c.trim().is_empty()) {
        return fail("certificate is a common name or a SHA-256 fingerprint; it is empty");
    }
    if let Some(rate) = client.rate {
        // The upper bound keeps one message's share above a nanosecond, which is the limiter's clock.
        if !(rate.per_second >= 0.001 && rate.per_second <= 1e6) {
            return fail("rate.per_second is a number from 0.001 to 1000000");
        }
        if rate.burst == Some(0) {
            return fail("rate.burst is at least 1");
        }
    }
    Ok(())
}

/// Is it an Argon2 hash in PHC form, with a cost that a flood of logins cannot turn against the node?
pub fn check_password_hash(text: &str) -> Result<(), &'static str> {
    const NOT_A_HASH: &str =
        "password is an Argon2 hash ($argon2id$…), never the password itself; make one with `hie client hash-password`";
    const COST: &str = "the password hash costs too much to check: at most m=262144 (KiB), t=16, p=8";
    let hash = PasswordHash::new(text).map_err(|_| NOT_A_HASH)?;
    argon2::Algorithm::try_from(hash.algorithm).map_err(|_| NOT_A_HASH)?;
    if hash.salt.is_none() || hash.hash.is_none() {
        return Err(NOT_A_HASH);
    }
    let params = argon2::Params::try_from(&hash).map_err(|_| NOT_A_HASH)?;
    if params.m_cost() > 262_144 || params.t_cost() > 16 || params.p_cost() > 8 {
        return Err(COST);
    }
    Ok(())
}

/// A name that is safe as a file's name, a label and a user name.
pub fn valid_name(name: &str) -> bool {
    name.len() <= 64
        && name != ANONYMOUS
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@'))
}

/// 32 bytes from 64 hex digits, colons between them allowed.
pub fn hex32(text: &str) -> Option<[u8; 32]> {
    let mut digits = text.trim().bytes().filter(|b| *b != b':').map(|b| (b as char).to_digit(16));
    let mut out = [0; 32];
    for byte in &mut out {
        *byte = u8::try_from(digits.next()?? * 16 + digits.next()??).ok()?;
    }
    digits.next().is_none().then_some(out)
}

fn toml_error(text: &str, error: &toml::de::Error) -> ClientError {
    let (line, column) = position(text, error.span().map_or(0, |s| s.start));
    // Only the names of keys are repeated from the file; values may be credentials.
    let message = match error.message() {
        m if m.starts_with("unknown field") => with_nearest(m),
        m if m.starts_with("missing field") || m.starts_with("duplicate") || m.starts_with("invalid type") => before_value(m),
        m => before_value(m),
    };
    ClientError { line, column, message }
}

/// `invalid type: string "secret", expected f64`: the value goes, the expectation stays.
fn before_value(message: &str) -> String {
    match (message.split_once(": "), message.rsplit_once(", expected ")) {
        (Some((what, _)), Some((_, expected))) => {
            let (expected, hint) = in_words(expected.trim_end());
            format!("{what}: expected {expected}{hint}")
        }
        _ => message.to_owned(),
    }
}

fn with_nearest(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(given) = quoted.next() else { return message.to_owned() };
    let nearest = quoted.max_by(|a, b| strsim::jaro_winkler(given, a).total_cmp(&strsim::jaro_winkler(given, b)));
    match nearest {
        Some(key) => format!("unknown key `{given}`; the nearest known one is `{key}`"),
        None => format!("unknown key `{given}`"),
    }
}

fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$qJ3mJVCkqeRxaJJP8hM3hkxRYeV4Yvqzyp7hcbOGsPs";

    #[test]
    fn a_full_client_is_read_and_written_back() {
        let text = format!(
            "[[client]]\nname = \"lab\"\nroles = [\"senders\"]\npassword = \"{HASH}\"\ntoken_sha256 = \"{}\"\ncertificate = \"lab.example.org\"\nallow_ips = [\"10.0.0.0/8\", \"::1/128\"]\nrate = {{ per_second = 50, burst = 200 }}\n",
            "ab".repeat(32)
        );
        let clients = parse(&text).unwrap();
        assert_eq!(clients[0].rate, Some(Rate { per_second: 50.0, burst: Some(200) }));
        assert!(clients[0].enabled);
        let again = toml::to_string(&std::collections::BTreeMap::from([("client", &clients)])).unwrap();
        assert_eq!(parse(&again).unwrap(), clients);
    }

    #[test]
    fn an_unknown_key_names_the_nearest_and_its_place() {
        let errors = parse("[[client]]\nname = \"lab\"\n  pasword = \"x\"\n").unwrap_err();
        assert_eq!((errors[0].line, errors[0].column), (3, 3));
        assert!(errors[0].message.contains("`password`"), "{}", errors[0]);
    }

    #[test]
    fn every_wrong_client_is_told() {
        let text = "[[client]]\nname = \"../x\"\n\n[[client]]\nname = \"a\"\n[[client]]\nname = \"a\"\n[[client]]\nname = \"b\"\nrate = { per_second = 0 }\n[[client]]\nname=\"anonymous\"\n";
        let errors = parse(text).unwrap_err();
        let lines: Vec<usize> = errors.iter().map(|e| e.line).collect();
        assert_eq!(lines, [1, 6, 8, 11], "{errors:?}");
    }

    #[test]
    fn credentials_are_not_repeated() {
        for text in [
            "[[client]]\nname = \"a\"\npassword = \"canary-secret\"\n",
            "[[client]]\nname = \"a\"\npassword = [\"canary-secret\"]\n",
            "[[client]]\nname = \"a\"\nallow_ips = [\"canary-secret\"]\n",
            "[[client]]\nname = \"a\"\ntoken_sha256 = \"canary-secret\"\n",
            "[[client]]\nname = \"a\"\nenabled = \"canary-secret\"\n",
            "[[client]]\nname = \"a\"\npassword = \"canary-secret\n",
        ] {
            let errors = parse(text).unwrap_err();
            assert!(!format!("{errors:?}").contains("canary"), "{errors:?}");
        }
        assert!(!format!("{:?}", parse(&format!("[[client]]\nname = \"a\"\npassword = \"{HASH}\"")).unwrap()).contains("argon2"));
    }

    #[test]
    fn a_hash_that_costs_too_much_is_refused() {
        for (params, ok) in [("m=19456,t=2,p=1", true), ("m=4194304,t=2,p=1", false), ("m=19456,t=200,p=1", false)] {
            assert_eq!(check_password_hash(&HASH.replace("m=19456,t=2,p=1", params)).is_ok(), ok, "{params}");
        }
    }

    #[test]
    fn fingerprints_with_and_without_colons() {
        assert_eq!(hex32(&["0f"; 32].join(":")), Some([15; 32]));
        assert_eq!(hex32("0f"), None);
        assert_eq!(hex32(&"0f".repeat(33)), None);
        assert_eq!(hex32(&"zz".repeat(32)), None);
    }
}
