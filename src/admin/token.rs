//! The management API's token: generated at first start, kept in a file that only its owner reads.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use subtle::ConstantTimeEq;

/// The token, as its hash: comparing takes the same time whatever is shown.
#[derive(Clone)]
pub struct Token([u8; 32]);

/// A token file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Others than its owner may read it.
    #[error("{} may be read by others (mode {mode:04o}); if they should not have seen it, delete it (a new one is made at start), else: chmod 600 {}", path.display(), path.display())]
    Open { path: PathBuf, mode: u32 },
    /// Too short to be a secret.
    #[error("{} holds less than 16 characters; delete it (a new one is made at start) or write a longer one", path.display())]
    Short { path: PathBuf },
    /// It cannot be read or made.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl Token {
    /// Whether [`Token::load_or_create`] would refuse the file. One that is not there, or that only the node's own user may
    /// read, is not judged.
    pub fn check(path: &Path) -> Result<(), TokenError> {
        match Self::read(path) {
            Err(TokenError::Io { source, .. })
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) =>
            {
                Ok(())
            }
            read => read.map(drop),
        }
    }

    /// Reads the file, or makes it: 32 random bytes in base64url, mode 0600. `true`: it was made now.
    pub fn load_or_create(path: &Path) -> Result<(Self, bool), TokenError> {
        let failed = |source| TokenError::Io { path: path.into(), source };
        match create(path) {
            Ok(token) => return Ok((Self::new(&token), true)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed(e)),
        }
        Ok((Self::read(path)?, false))
    }

    fn read(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::Io { path: path.into(), source };
        let mode = fs::metadata(path).map_err(failed)?.mode() & 0o7777;
        // Its group may read it: that is how a secret is mounted into a container.
        if mode & 0o027 != 0 {
            return Err(TokenError::Open { path: path.into(), mode });
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        match text.trim() {
            token if token.len() < 16 => Err(TokenError::Short { path: path.into() }),
            token => Ok(Self::new(token)),
        }
    }

    /// A token from its text.
    pub fn new(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// Is this it? Takes the same time whatever is shown.
    pub fn matches(&self, shown: &[u8]) -> bool {
        let shown: [u8; 32] = Sha256::digest(shown).into();
        self.0.ct_eq(&shown).into()
    }
}

fn create(path: &Path) -> io::Result<String> {
    if path.exists() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
    let token = URL_SAFE_NO_PAD.encode(bytes);
    // Written aside and linked into place: whoever looks at the same time sees a whole token or none.
    let aside = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    let made = writeln!(file, "{token}").and_then(|()| file.sync_all()).and_then(|()| fs::hard_link(&aside, path));
    fs::remove_file(&aside)?;
    made.map(|()| token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn made_once_private_and_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin-token");
        let (_, made) = Token::load_or_create(&path).unwrap();
        assert!(made);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.trim().len(), 43);
        let (token, made) = Token::load_or_create(&path).unwrap();
        assert!(!made && token.matches(text.trim().as_bytes()) && !token.matches(b"") && !token.matches(b"x"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_that_others_may_read_is_refused_with_the_cure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin-token");
        fs::write(&path, "0123456789abcdef").unwrap();
        for (mode, fine) in [(0o644, false), (0o604, false), (0o620, false), (0o640, true), (0o600, true), (0o400, true)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            match Token::load_or_create(&path) {
                Ok(_) => assert!(fine, "{mode:o}"),
                Err(e) => assert!(!fine && e.to_string().contains("chmod 600"), "{e}"),
            }
        }
        fs::write(&path, "short").unwrap();
        assert!(matches!(Token::load_or_create(&path), Err(TokenError::Short { .. })));
    }
}
