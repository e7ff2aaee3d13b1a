//! Tokens: who has one can have the grant.

use std::{borrow::Cow, fmt};

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

    /// A text without the tokens that are in it: what somebody said is kept, and what gives a grant is not.
    pub fn hide(text: &str) -> Cow<'_, str> {
        if !text.contains(PREFIX) {
            return Cow::Borrowed(text);
        }
        let mut hidden = String::new();
        let mut parts = text.split(PREFIX);
        hidden.push_str(parts.next().unwrap_or_default());
        for part in parts {
            hidden.push_str(PREFIX);
            hidden.push_str("...");
            hidden.push_str(part.trim_start_matches(|c: char| c.is_ascii_hexdigit()));
        }
        Cow::Owned(hidden)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_told_without_the_tokens_in_it() {
        assert!(matches!(Token::hide("sh -c id"), Cow::Borrowed("sh -c id")));
        let (one, two) = (Token::random().unwrap(), Token::random().unwrap());
        let said = Token::hide(&format!("--as {} and {}x ls", one.reveal(), two.reveal())).into_owned();
        assert_eq!(said, "--as cofferdam-grant-... and cofferdam-grant-...x ls");
        // Half of one is hidden too: whoever cuts a text must not do so first.
        assert_eq!(Token::hide(&one.reveal()[..40]), "cofferdam-grant-...");
    }
}
