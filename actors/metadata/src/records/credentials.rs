//! Credentials: what the pulls and pushes of a namespace show to a registry, each bound to one host.
//!
//! No event tells of them, and nothing but [`Credential::secret`] gives the secret: it is for who speaks to that host.

use std::fmt;

use cofferdam_types::{Ceiling, Error, Namespace, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Record, namespaces};
use crate::{Read, Tx, codec, table::Table};

/// The most bytes of a host with its port, of a user, and of a secret.
const MAX_HOST: usize = 300;
const MAX_USER: usize = 1024;
const MAX_SECRET: usize = 64 << 10;

/// What a secret is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A password, or a token in the place of one.
    Password,
    /// A token by which tokens are got (OAuth2's refresh token).
    Identity,
}

/// A credential.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// The registry to which it is shown: host, and port if one is written.
    pub host: String,
    /// The user; of an identity token it only says whose that is.
    pub user: String,
    /// What the secret is.
    pub kind: Kind,
    #[serde(with = "serde_bytes")]
    secret: Vec<u8>,
    /// When there was one for the host first.
    pub created: Timestamp,
    /// When it was replaced last.
    pub updated: Timestamp,
    /// The bounds of the authority that gave it.
    pub ceiling: Ceiling,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential {{ host: {:?}, user: {:?}, kind: {:?} }}", self.host, self.user, self.kind)
    }
}

impl Record for Credential {
    const TABLE: Table = Table::CREDENTIALS;
    const KIND: &'static str = "credential";

    fn name(&self) -> Vec<u8> {
        self.host.as_bytes().to_vec()
    }
}

impl Credential {
    /// One that isn't stored yet.
    pub fn new(host: String, user: String, kind: Kind, secret: &str) -> Credential {
        Credential {
            host,
            user,
            kind,
            secret: secret.as_bytes().to_vec(),
            created: Timestamp::default(),
            updated: Timestamp::default(),
            ceiling: Ceiling::default(),
        }
    }

    /// The secret.
    pub fn secret(&self) -> &str {
        // What was stored is a text: `put` takes no other.
        std::str::from_utf8(&self.secret).unwrap_or_default()
    }

    fn check(&self) -> Result<()> {
        let bad = |why: &str| Err(Error::invalid("credential", self.host.chars().take(80).collect::<String>(), why));
        let plain = |text: &str| !text.bytes().any(|b| b.is_ascii_control() || matches!(b, b' ' | b'/' | b'@'));
        if self.host.is_empty() || self.host.len() > MAX_HOST || !plain(&self.host) {
            return bad("is not the host of a registry: give host or host:port");
        }
        if self.user.len() > MAX_USER || self.user.chars().any(char::is_control) {
            return bad("has a user that is none: give a name of at most 1024 bytes without control characters");
        }
        if self.kind == Kind::Password && (self.user.is_empty() || self.user.contains(':')) {
            return bad("has a password and no user that it could be of: give a name without a colon");
        }
        if self.secret.is_empty() || self.secret.len() > MAX_SECRET || self.secret.iter().any(u8::is_ascii_control) {
            return bad("has a secret that can't be sent: give 1 byte to 64 KiB without control characters");
        }
        Ok(())
    }
}

/// The credential for a host, if there is one.
pub fn find(read: &dyn Read, ns: &Namespace, host: &str) -> Result<Option<Credential>> {
    // A key of other parts could be made with a NUL.
    if host.contains('\0') {
        return Ok(None);
    }
    super::find(read, &codec::key(&[ns, host]))
}

/// The credential for a host.
pub fn get(read: &dyn Read, ns: &Namespace, host: &str) -> Result<Credential> {
    find(read, ns, host)?
        .ok_or_else(|| Error::not_found("credential", host, "is not stored: `coffer login` stores one"))
}

/// A page of them, by host.
pub fn list(read: &dyn Read, ns: &Namespace, after: Option<&str>, max: usize) -> Result<Vec<Credential>> {
    super::page(read, &codec::prefix(&[ns]), after, max)
}

/// Stores one, in the place of what there was for its host.
pub fn put(tx: &mut Tx<'_>, ns: &Namespace, mut credential: Credential) -> Result<()> {
    namespaces::require(tx, ns)?;
    credential.check()?;
    // One that can't be read is replaced like any other.
    let before = super::readable(find(tx, ns, &credential.host))?.flatten();
    credential.updated = tx.now();
    credential.created = before.map_or(credential.updated, |old| old.created);
    credential.ceiling = tx.authority().ceiling.clone();
    super::save(tx, &codec::key(&[ns, &credential.host]), &credential)
}

/// Forgets one.
pub fn delete(tx: &mut Tx<'_>, ns: &Namespace, host: &str) -> Result<()> {
    get(tx, ns, host)?;
    tx.remove(Table::CREDENTIALS, &codec::key(&[ns, host])).map(drop)
}
