//! Free text in bodies.

use super::core::Core;
use super::damage;
use super::read::{self, ReadError};
use super::sql::FileError;
use crate::engine::fact::{BodyRef, Seq};

/// Does a body contain the text, without regard to case? Bodies are read as UTF-8 or, where they are not, as Latin-1. A body that
/// is no longer stored contains nothing; a damaged one is told and contains nothing.
pub fn in_body(core: &Core, seq: Seq, body: &BodyRef, text: &str) -> Result<bool, FileError> {
    let wanted = text.to_lowercase();
    let (pieces, transient) = read::pieces(seq, body);
    // What a piece ends with may be the beginning of the text.
    let mut tail = String::new();
    for piece in pieces {
        match read::piece(core, piece, transient) {
            Ok(bytes) => {
                let mut here = tail;
                here.push_str(&decode(&bytes).to_lowercase());
                if here.contains(&wanted) {
                    return Ok(true);
                }
                let mut keep = here.len().saturating_sub(wanted.len());
                while !here.is_char_boundary(keep) {
                    keep -= 1;
                }
                tail = here.split_off(keep);
            }
            Err(ReadError::Gone) => return Ok(false),
            Err(ReadError::File(e @ FileError::Damaged(_))) => {
                damage::noticed(core, piece, &e);
                return Ok(false);
            }
            Err(ReadError::File(e)) => return Err(e),
        }
    }
    Ok(false)
}

fn decode(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|b| char::from(*b)).collect(),
    }
}
