//! The folder of client files: `clients.d/*.toml`, read in the order of their names; and the files that they refer to.

use crate::channel::client::{self, Client};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

/// The largest clients file read.
const LARGEST: u64 = 16 * 1024 * 1024;

/// A mistake in the clients' folder.
#[derive(Debug, thiserror::Error)]
pub enum ClientsError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// A file holds a mistake.
    #[error("{}, {error}", path.display())]
    Wrong { path: PathBuf, error: client::ClientError },
    /// Something about one client that only shows with its files or the other ones.
    #[error("{}: {message}", path.display())]
    Client { path: PathBuf, message: String },
}

/// All clients of a folder, with their secret files read: `password` and `token_sha256` are filled in. A folder that is not
/// there holds none. Tells every mistake at once.
pub fn load(folder: &Path) -> Result<Vec<Client>, Vec<ClientsError>> {
    let mut clients = Vec::new();
    let mut errors = Vec::new();
    let mut seen: HashMap<String, PathBuf> = HashMap::new();
    let files = toml_files(folder).map_err(|source| vec![ClientsError::Read { path: folder.into(), source }])?;
    for path in files {
        let text = match read_text(&path) {
            Ok(text) => text,
            Err(source) => {
                errors.push(ClientsError::Read { path, source });
                continue;
            }
        };
        match client::parse(&text) {
            Err(wrong) => errors.extend(wrong.into_iter().map(|error| ClientsError::Wrong { path: path.clone(), error })),
            Ok(found) => {
                for client in found {
                    if let Some(first) = seen.insert(client.name.clone(), path.clone()) {
                        let message = format!("client \"{}\" is in {} already", client.name, first.display());
                        errors.push(ClientsError::Client { path: path.clone(), message });
                    }
                    match resolve(client, folder) {
                        Ok(client) => clients.push(client),
                        Err(message) => errors.push(ClientsError::Client { path: path.clone(), message }),
                    }
                }
            }
        }
    }
    if errors.is_empty() { Ok(clients) } else { Err(errors) }
}

/// Reads the files that a client refers to (relative ones in `folder`). The message names the file, never what is in it.
pub fn resolve(mut client: Client, folder: &Path) -> Result<Client, String> {
    let read = |path: &Path| {
        let path = folder.join(path);
        let text = read_text(&path).map_err(|e| format!("client \"{}\": {}: {e}", client.name, path.display()))?;
        let text = text.trim().to_owned();
        if text.is_empty() {
            return Err(format!("client \"{}\": {} is empty", client.name, path.display()));
        }
        Ok((text, path))
    };
    if let Some(path) = &client.password_file {
        let (hash, path) = read(path)?;
        client::check_password_hash(&hash).map_err(|e| format!("client \"{}\": {}: {e}", client.name, path.display()))?;
        client.password = Some(hash);
        client.password_file = None;
    }
    if let Some(path) = &client.token_file {
        let (token, _) = read(path)?;
        client.token_sha256 = Some(token_sha256(token.as_bytes()));
        client.token_file = None;
    }
    Ok(client)
}

/// A token as `token_sha256` holds it.
pub fn token_sha256(token: &[u8]) -> String {
    Sha256::digest(token).iter().map(|b| format!("{b:02x}")).collect()
}

/// The folder's `*.toml`, sorted; hidden files (half-written ones) left out.
pub fn toml_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|e| e == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_text(path: &Path) -> io::Result<String> {
    let size = fs::metadata(path)?.len();
    if size > LARGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{size} bytes; at most {LARGEST} are read")));
    }
    fs::read_to_string(path)
}
