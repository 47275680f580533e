//! Secrets that the configuration refers to: a file, or a credential that systemd passes on.

use std::{env, fs::File, io::Read, path::Path};

/// What marks a systemd credential: `credential:NAME` is `$CREDENTIALS_DIRECTORY/NAME` (systemd.exec(5)).
pub const CREDENTIAL: &str = "credential:";
/// Where systemd puts them.
const FOLDER: &str = "CREDENTIALS_DIRECTORY";
/// Larger than any secret.
const LARGEST: u64 = 64 * 1024;

/// Is this the name of a systemd credential, and no path?
pub fn is_credential(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with(CREDENTIAL))
}

/// Is this a credential, and systemd passes none on to this process?
pub fn is_elsewhere(path: &Path) -> bool {
    path.to_str().and_then(|text| text.strip_prefix(CREDENTIAL)).is_some_and(is_name) && env::var_os(FOLDER).is_none()
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && !name.starts_with('.')
}

/// Reads a secret, without the line end that editors leave. The error names the file and what to do, never what is in it.
pub fn read(path: &Path) -> Result<String, String> {
    let path = match path.to_str().and_then(|text| text.strip_prefix(CREDENTIAL)) {
        None => path.to_owned(),
        Some(name) => {
            if !is_name(name) {
                return Err(format!(
                    "{CREDENTIAL}{name} names no credential; write {CREDENTIAL}NAME, as in LoadCredential=NAME:/etc/…"
                ));
            }
            let folder = env::var_os(FOLDER).ok_or_else(|| {
                format!(
                    "systemd passes no credentials on; add LoadCredential={name}:PATH to the unit, or name a file instead of {CREDENTIAL}{name} \
                     (there is no ${FOLDER} here)"
                )
            })?;
            Path::new(&folder).join(name)
        }
    };
    let wrong = |e: std::io::Error| format!("{} cannot be read: {e}", path.display());
    let mut text = String::new();
    File::open(&path).and_then(|file| file.take(LARGEST + 1).read_to_string(&mut text)).map_err(wrong)?;
    if text.len() as u64 > LARGEST {
        return Err(format!("{} is larger than {LARGEST} bytes: no secret", path.display()));
    }
    let text = text.trim_end_matches(['\r', '\n']);
    match text.is_empty() {
        true => Err(format!("{} is empty", path.display())),
        false => Ok(text.to_owned()),
    }
}
