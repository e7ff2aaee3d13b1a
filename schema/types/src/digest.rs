//! Content digests (OCI image-spec, "Digests") and the hashers that make them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{
    Digest as _,
    digest::common::hazmat::{SerializableState, SerializedState},
};

use crate::{Error, halfway::Halfway};

/// The digest algorithms that the store knows. `blake3` is registered in OCI image-spec 1.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// The one that everybody uses.
    Sha256,
    /// 64 bytes.
    Sha512,
    /// The fast one.
    Blake3,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Algorithm; 3] = [Algorithm::Sha256, Algorithm::Sha512, Algorithm::Blake3];

    /// The name in front of the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
            Algorithm::Blake3 => "blake3",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Algorithm::Sha256 | Algorithm::Blake3 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// A checked digest, `algorithm:lowercase-hex` of exactly the right length: safe as a path component.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

impl Digest {
    /// Which hash made it.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The part after the colon.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The digest of `bytes`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut digester = Digester::new(algorithm);
        digester.update(bytes);
        digester.finish()
    }

    /// The chain id of a layer on top of `parent` (OCI image-spec, config, "Layer ChainID").
    pub fn chain(parent: Option<&Digest>, diff_id: &Digest) -> Digest {
        match parent {
            None => diff_id.clone(),
            Some(parent) => Digest::of(Algorithm::Sha256, format!("{parent} {diff_id}").as_bytes()),
        }
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Digest, Error> {
        let bad = |why: &str| {
            let shown: String = text.chars().take(200).collect();
            Error::invalid("digest", shown, format!("{why}; a digest looks like sha256:<64 lowercase hex digits>"))
        };
        let (name, hex) = text.split_once(':').ok_or_else(|| bad("has no algorithm"))?;
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|a| a.as_str() == name)
            .ok_or_else(|| bad("has an unknown algorithm (known: sha256, sha512, blake3)"))?;
        if hex.len() != algorithm.hex_len() {
            return Err(bad("has the wrong length"));
        }
        if !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad("has characters other than lowercase hex digits"));
        }
        Ok(Digest { algorithm, hex: hex.into() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A running hash.
#[derive(Clone)]
pub struct Digester(Hasher);

#[derive(Clone)]
enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
    Blake3(Box<Halfway>),
}

impl Digester {
    /// The hash of nothing yet.
    pub fn new(algorithm: Algorithm) -> Digester {
        Digester(match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(sha2::Sha512::new()),
            Algorithm::Blake3 => Hasher::Blake3(Box::default()),
        })
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Hasher::Sha256(h) => h.update(bytes),
            Hasher::Sha512(h) => h.update(bytes),
            Hasher::Blake3(h) => h.update(bytes),
        }
    }

    /// What it takes to go on from here later, in another process.
    pub fn state(&self) -> Vec<u8> {
        match &self.0 {
            Hasher::Sha256(h) => h.serialize().to_vec(),
            Hasher::Sha512(h) => h.serialize().to_vec(),
            Hasher::Blake3(h) => h.state(),
        }
    }

    /// Goes on from a [`Digester::state`] that had come to the digest `so_far`. `None`: it didn't, or is no state.
    pub fn resume(so_far: &Digest, state: &[u8]) -> Option<Digester> {
        fn read<H: SerializableState>(state: &[u8]) -> Option<H> {
            H::deserialize(&SerializedState::<H>::try_from(state).ok()?).ok()
        }
        let digester = Digester(match so_far.algorithm {
            Algorithm::Sha256 => Hasher::Sha256(read(state)?),
            Algorithm::Sha512 => Hasher::Sha512(read(state)?),
            Algorithm::Blake3 => Hasher::Blake3(Box::new(Halfway::resume(state)?)),
        });
        // The form of a state is the crate's own: one of another release is found out before it is gone on with.
        (digester.clone().finish() == *so_far).then_some(digester)
    }

    /// The digest of all that was added.
    pub fn finish(self) -> Digest {
        match self.0 {
            Hasher::Sha256(h) => Digest { algorithm: Algorithm::Sha256, hex: hex(&h.finalize()) },
            Hasher::Sha512(h) => Digest { algorithm: Algorithm::Sha512, hex: hex(&h.finalize()) },
            Hasher::Blake3(h) => Digest { algorithm: Algorithm::Blake3, hex: hex(h.finish().as_bytes()) },
        }
    }
}

impl fmt::Debug for Digester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digester")
    }
}

fn hex(bytes: &[u8]) -> Box<str> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        assert_eq!(
            Digest::of(Algorithm::Sha256, b"").to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(
            Digest::of(Algorithm::Blake3, b"").to_string(),
            "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
        assert!(Digest::of(Algorithm::Sha512, b"").to_string().starts_with("sha512:cf83e1357eefb8bd"));
    }

    #[test]
    fn a_hash_goes_on_where_its_state_was_taken() {
        for algorithm in Algorithm::ALL {
            for split in [0, 1, 63, 64, 127, 128, 129, 1000] {
                let bytes: Vec<u8> = (0..2000u32).map(|i| (i * 7) as u8).collect();
                let mut digester = Digester::new(algorithm);
                digester.update(&bytes[..split]);
                let (state, so_far) = (digester.state(), digester.finish());
                let mut again = Digester::resume(&so_far, &state).unwrap();
                again.update(&bytes[split..]);
                assert_eq!(again.finish(), Digest::of(algorithm, &bytes), "{algorithm:?} at {split}");
                // What it doesn't come to, and what is none.
                assert!(Digester::resume(&Digest::of(algorithm, b"other"), &state).is_none());
                assert!(Digester::resume(&so_far, &state[1..]).is_none());
                assert!(Digester::resume(&so_far, &vec![0xff; state.len()]).is_none());
            }
        }
        assert!(Digester::resume(&Digest::of(Algorithm::Blake3, b""), b"").is_none());
    }

    // M3 of the negative tests.
    #[test]
    fn m3_bad_digests_are_refused() {
        let good = Digest::of(Algorithm::Sha256, b"x").to_string();
        assert!(good.parse::<Digest>().is_ok());
        for bad in [
            "",
            "sha256",
            "sha256:",
            "sha256:../../../../etc/passwd",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &good.to_uppercase(),
            &good[..good.len() - 1],
            &format!("{good}0"),
            &good.replace("sha256", "sha512"),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn chain_ids_follow_the_image_spec() {
        let a = Digest::of(Algorithm::Sha256, b"a");
        let b = Digest::of(Algorithm::Sha256, b"b");
        assert_eq!(Digest::chain(None, &a), a);
        let text = format!("{a} {b}");
        assert_eq!(Digest::chain(Some(&a), &b), Digest::of(Algorithm::Sha256, text.as_bytes()));
    }
}
