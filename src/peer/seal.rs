//! The domain's secret at work.
//!
//! Keys are derived from it by HKDF-SHA256 (RFC 5869): one for proofs (HMAC-SHA256 over what is asked for and a nonce of the asking
//! side), and one for each answer, from the nonces of both sides and what was asked for, so that no key is used for two answers. An
//! answer is a row of pieces, each sealed with AES-256-GCM under a nonce that counts them; the last says that it is the last, so an
//! answer that is cut off is noticed.
//!
//! A piece on the wire: length of what follows in four bytes, big endian, whose highest bit marks the last; then the sealed bytes
//! with their tag of 16. The four bytes are authenticated with it.

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce as PieceNonce, UnboundKey},
    hkdf::{HKDF_SHA256, Prk, Salt},
    hmac,
};

/// The most that a piece holds.
pub const PIECE: usize = 64 * 1024;
const TAG: usize = 16;
const LAST: u32 = 1 << 31;
const SALT: &[u8] = b"hie peers 1";

/// A number that is used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce(u128);

impl Nonce {
    /// A new one.
    pub fn make() -> Self {
        Self(rand::random())
    }

    /// From 32 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl std::fmt::Display for Nonce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What is sealed cannot be opened: another secret, changed on the way, or cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Another secret, or changed on the way.
    #[error("it was not sealed with this domain's secret, or was changed on the way")]
    Changed,
    /// It ended too early.
    #[error("it was cut off")]
    CutOff,
}

/// The secret of a domain's nodes.
#[derive(Clone)]
pub struct Secret(Prk);

impl Secret {
    /// From its text, of which space around does not count.
    pub fn new(text: &str) -> Self {
        Self(Salt::new(HKDF_SHA256, SALT).extract(text.trim().as_bytes()))
    }

    /// Shows that whoever asks for `what` (domain, method, path and query, a line each) has the secret: 64 hexadecimal digits.
    pub fn proof(&self, nonce: Nonce, what: &str) -> Result<String, Broken> {
        let tag = hmac::sign(&self.proving()?, format!("{nonce}\n{what}").as_bytes());
        Ok(tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Is this such a proof? Takes the same time whatever is shown.
    pub fn proves(&self, nonce: Nonce, what: &str, proof: &str) -> bool {
        let bytes: Option<Vec<u8>> = proof
            .as_bytes()
            .chunks(2)
            .map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()))
            .collect();
        let (Some(bytes), Ok(key)) = (bytes, self.proving()) else { return false };
        hmac::verify(&key, format!("{nonce}\n{what}").as_bytes(), &bytes).is_ok()
    }

    /// Seals one answer.
    pub fn sealer(&self, asked: Nonce, answered: Nonce, what: &str) -> Result<Sealer, Broken> {
        Ok(Sealer { key: self.sealing(asked, answered, what)?, count: 0 })
    }

    /// Opens one answer.
    pub fn opener(&self, asked: Nonce, answered: Nonce, what: &str) -> Result<Opener, Broken> {
        Ok(Opener { key: self.sealing(asked, answered, what)?, count: 0, waiting: Vec::new(), ended: false })
    }

    fn proving(&self) -> Result<hmac::Key, Broken> {
        let key = self.0.expand(&[b"proof"], hmac::HMAC_SHA256).map_err(|_| Broken::Changed)?;
        Ok(key.into())
    }

    fn sealing(&self, asked: Nonce, answered: Nonce, what: &str) -> Result<LessSafeKey, Broken> {
        let (asked, answered) = (asked.0.to_be_bytes(), answered.0.to_be_bytes());
        let info = [b"seal".as_slice(), &asked, &answered, what.as_bytes()];
        let key = self.0.expand(&info, &AES_256_GCM).map_err(|_| Broken::Changed)?;
        // "less safe" because nonces are given: they count the pieces of the one answer that has this key.
        Ok(LessSafeKey::new(UnboundKey::from(key)))
    }
}

fn piece_nonce(count: u64) -> PieceNonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&count.to_be_bytes());
    PieceNonce::assume_unique_for_key(bytes)
}

/// Seals the pieces of one answer.
pub struct Sealer {
    key: LessSafeKey,
    count: u64,
}

impl Sealer {
    /// A piece of up to [`PIECE`] bytes as it goes over the wire.
    pub fn seal(&mut self, bytes: &[u8], last: bool) -> Result<Vec<u8>, Broken> {
        let length = u32::try_from(bytes.len() + TAG).map_err(|_| Broken::Changed)?;
        let head = (length | if last { LAST } else { 0 }).to_be_bytes();
        let mut sealed = Vec::with_capacity(4 + bytes.len() + TAG);
        sealed.extend(head);
        sealed.extend(bytes);
        let tag = self.key.seal_in_place_separate_tag(piece_nonce(self.count), Aad::from(head), &mut sealed[4..]);
        sealed.extend(tag.map_err(|_| Broken::Changed)?.as_ref());
        self.count += 1;
        Ok(sealed)
    }

    /// A whole answer.
    pub fn seal_all(mut self, bytes: &[u8]) -> Result<Vec<u8>, Broken> {
        let pieces = bytes.chunks(PIECE).count().max(1);
        let mut all = Vec::with_capacity(bytes.len() + pieces * (4 + TAG));
        let mut rest = bytes;
        for n in 1..=pieces {
            let (piece, after) = rest.split_at(rest.len().min(PIECE));
            all.extend(self.seal(piece, n == pieces)?);
            rest = after;
        }
        Ok(all)
    }
}

/// Opens the pieces of one answer.
pub struct Opener {
    key: LessSafeKey,
    count: u64,
    waiting: Vec<u8>,
    ended: bool,
}

impl Opener {
    /// Takes what came over the wire, however it is cut; gives what whole pieces of it say to `take`.
    pub fn open(&mut self, bytes: &[u8], take: &mut dyn FnMut(&[u8])) -> Result<(), Broken> {
        self.waiting.extend(bytes);
        let mut at = 0;
        while let Some(head) = self.waiting.get(at..at + 4).and_then(|head| <[u8; 4]>::try_from(head).ok()) {
            let (length, last) = (u32::from_be_bytes(head) & !LAST, u32::from_be_bytes(head) & LAST != 0);
            let length = usize::try_from(length).map_err(|_| Broken::Changed)?;
            if self.ended || !(TAG..=PIECE + TAG).contains(&length) {
                return Err(Broken::Changed);
            }
            let Some(sealed) = self.waiting.get_mut(at + 4..at + 4 + length) else { break };
            let opened = self.key.open_in_place(piece_nonce(self.count), Aad::from(head), sealed).map_err(|_| Broken::Changed)?;
            take(opened);
            self.count += 1;
            self.ended = last;
            at += 4 + length;
        }
        self.waiting.drain(..at);
        Ok(())
    }

    /// Was all of it there?
    pub fn end(self) -> Result<(), Broken> {
        if self.ended && self.waiting.is_empty() { Ok(()) } else { Err(Broken::CutOff) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHAT: &str = "north\nGET\n/peer/ledger";

    fn opened(secret: &Secret, nonces: (Nonce, Nonce), what: &str, wire: &[u8], cut: usize) -> Result<Vec<u8>, Broken> {
        let mut opener = secret.opener(nonces.0, nonces.1, what)?;
        let mut all = Vec::new();
        for part in wire.chunks(cut) {
            opener.open(part, &mut |bytes| all.extend(bytes))?;
        }
        opener.end().map(|()| all)
    }

    #[test]
    fn only_who_has_the_secret_asks_and_opens() {
        let (secret, other) = (Secret::new("one that is long enough\n"), Secret::new("another"));
        let (asked, answered) = (Nonce::make(), Nonce::make());
        let proof = secret.proof(asked, WHAT).unwrap();
        assert!(Secret::new("one that is long enough").proves(asked, WHAT, &proof), "the line's end does not count");
        assert!(!other.proves(asked, WHAT, &proof) && !secret.proves(answered, WHAT, &proof));
        assert!(!secret.proves(asked, "south\nGET\n/peer/ledger", &proof), "for another domain");
        for garbage in ["", "0", "xx", "äöü", &proof[2..]] {
            assert!(!secret.proves(asked, WHAT, garbage), "{garbage}");
        }
        let text: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let wire = secret.sealer(asked, answered, WHAT).unwrap().seal_all(&text).unwrap();
        for cut in [1000, 70_000, usize::MAX] {
            assert_eq!(opened(&secret, (asked, answered), WHAT, &wire, cut), Ok(text.clone()));
        }
        assert_eq!(opened(&other, (asked, answered), WHAT, &wire, 1000), Err(Broken::Changed));
        assert_eq!(opened(&secret, (answered, asked), WHAT, &wire, 1000), Err(Broken::Changed));
        assert_eq!(opened(&secret, (asked, answered), "else", &wire, 1000), Err(Broken::Changed));
        assert!(!wire.windows(64).any(|w| w == &text[..64]), "nothing is readable on the way");
    }

    #[test]
    fn what_is_cut_changed_or_longer_is_noticed() {
        let secret = Secret::new("one that is long enough");
        let nonces = (Nonce::make(), Nonce::make());
        let wire = secret.sealer(nonces.0, nonces.1, WHAT).unwrap().seal_all(&[7; 150_000]).unwrap();
        let first = 4 + PIECE + TAG;
        for cut in [0, 3, 100, first, 2 * first, wire.len() - 1] {
            assert_eq!(opened(&secret, nonces, WHAT, &wire[..cut], 1 << 20), Err(Broken::CutOff), "{cut}");
        }
        for at in [0, 2, 4, first - 1, first, 2 * first, wire.len() - 1] {
            let mut changed = wire.clone();
            changed[at] ^= 1;
            assert!(opened(&secret, nonces, WHAT, &changed, 1 << 20).is_err(), "{at}");
        }
        let swapped = [&wire[first..2 * first], &wire[..first], &wire[2 * first..]].concat();
        assert_eq!(opened(&secret, nonces, WHAT, &swapped, 1 << 20), Err(Broken::Changed));
        assert_eq!(opened(&secret, nonces, WHAT, &[&wire[..], &wire[2 * first..]].concat(), 1 << 20), Err(Broken::Changed));
        let empty = secret.sealer(nonces.0, nonces.1, WHAT).unwrap().seal_all(b"").unwrap();
        assert_eq!(opened(&secret, nonces, WHAT, &empty, 5), Ok(vec![]));
        assert!(
            Nonce::parse(&nonces.0.to_string()) == Some(nonces.0)
                && Nonce::parse("0").is_none()
                && Nonce::parse(&"x".repeat(32)).is_none()
        );
    }
}
