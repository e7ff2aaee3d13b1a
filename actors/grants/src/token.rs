//! Tokens: who has one can have the grant.

use std::fmt;

use cofferdam_types::{Algorithm, Digest, Error, Result};

/// What every token begins with, so that one that lies about is known for what it is.
const PREFIX: &str = "cofferdam-grant-";

/// 256 random bits as text. What is printed of it for debugging is nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A new one.
    pub fn random() -> Result<Token> {
        let mut bits = [0; 32];
        getrandom::fill(&mut bits).map_err(|e| Error::internal("random", "", e.to_string()))?;
        let hex: String = bits.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Token(format!("{PREFIX}{hex}")))
    }

    /// What somebody presents. An error doesn't repeat it.
    pub fn read(text: &str) -> Result<Token> {
        let hex = text.trim().strip_prefix(PREFIX).unwrap_or_default();
        if hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Token(format!("{PREFIX}{hex}")));
        }
        let why = format!("is not one: it has {PREFIX} and 64 hexadecimal digits");
        Err(Error::invalid("token", "", why))
    }

    /// What is kept of it. It is looked up by this: how long that takes says nothing of a token that isn't there.
    pub fn digest(&self) -> Digest {
        Digest::of(Algorithm::Sha256, self.0.as_bytes())
    }

    /// The text, for the one answer in which it stands.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}
