//! Password hashes: Argon2id with the parameters that OWASP names first (19 MiB, two passes).

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{Output, ParamsString, PasswordHash, PasswordHasher, PasswordVerifier, SaltString},
};
use std::sync::LazyLock;

/// The hash of a password as a client's `password` holds it (PHC form, random salt). Takes some 20 ms.
/// Fails when the system gives no random bytes.
pub fn hash_password(password: &[u8]) -> Result<String, String> {
    let salt = salt()?;
    Argon2::default()
        .hash_password(password, &salt)
        .map(|hash| hash.to_string())
        .map_err(|e| format!("cannot hash the password: {e}"))
}

/// Does the password belong to the hash? False for a text that is no hash.
pub(super) fn verify(hash: &str, password: &[u8]) -> bool {
    PasswordHash::new(hash).is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
}

/// A hash that no password has, with the usual cost: what an unknown user's password is checked against.
pub(super) fn decoy() -> &'static str {
    static DECOY: LazyLock<String> = LazyLock::new(|| {
        let build = || {
            let mut output = [0; 32];
            getrandom::fill(&mut output).ok()?;
            let salt = salt().ok()?;
            let hash = PasswordHash {
                algorithm: Algorithm::Argon2id.ident(),
                version: Some(Version::V0x13.into()),
                params: ParamsString::try_from(&Params::default()).ok()?,
                salt: Some(salt.as_salt()),
                hash: Some(Output::new(&output).ok()?),
            };
            Some(hash.to_string())
        };
        build().unwrap_or_default()
    });
    &DECOY
}

fn salt() -> Result<SaltString, String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| format!("no random bytes: {e}"))?;
    SaltString::encode_b64(&bytes).map_err(|e| format!("no salt: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_fits_its_password_only() {
        let hash = hash_password(b"right").unwrap();
        assert!(crate::channel::client::check_password_hash(&hash).is_ok());
        assert!(verify(&hash, b"right"));
        assert!(!verify(&hash, b"wrong"));
        assert!(!verify("", b""));
        assert_ne!(hash, hash_password(b"right").unwrap());
    }

    #[test]
    fn the_decoy_costs_what_a_hash_costs() {
        let (decoy, real) = (PasswordHash::new(decoy()).unwrap(), hash_password(b"x").unwrap());
        let real = PasswordHash::new(&real).unwrap();
        assert_eq!((decoy.algorithm, decoy.version, &decoy.params), (real.algorithm, real.version, &real.params));
    }
}
