//! What is shown to whom. A credential is bound to one host: it is found by that host's name, and by no other.

use std::fmt;

use cofferdam_metadata::{
    Metadata,
    records::credentials::{self, Kind},
};
use cofferdam_types::{Namespace, Result};

use super::Credentials;

/// What a namespace has stored for hosts.
#[derive(Clone, Default)]
pub struct Wallet(Option<(Metadata, Namespace)>);

impl fmt::Debug for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some((_, namespace)) => write!(f, "Wallet({namespace})"),
            None => f.write_str("Wallet(empty)"),
        }
    }
}

impl Wallet {
    /// That of a namespace.
    pub fn of(metadata: &Metadata, namespace: &Namespace) -> Wallet {
        Wallet(Some((metadata.clone(), namespace.clone())))
    }

    /// What is stored for a host: host, and port where one is written.
    pub(super) fn find(&self, host: &str) -> Result<Option<Credentials>> {
        let Some((metadata, namespace)) = &self.0 else { return Ok(None) };
        let found = credentials::find(&metadata.read()?, namespace, &bound(host))?;
        Ok(found.map(|found| Credentials {
            // By an empty user the other side of an exchange is told that it is a token.
            user: if found.kind == Kind::Identity { String::new() } else { found.user.clone() },
            secret: found.secret().to_owned(),
        }))
    }
}

/// A host in the form in which credentials are bound to it: Docker Hub's names are one.
pub fn bound(host: &str) -> String {
    match host.to_ascii_lowercase().as_str() {
        "registry-1.docker.io" | "index.docker.io" => "docker.io".into(),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_docker_hub_are_one_and_no_others() {
        for (host, want) in [
            ("registry-1.docker.io", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("H.io:5000", "h.io:5000"),
            ("docker.io.evil.io", "docker.io.evil.io"),
            ("h.io", "h.io"),
        ] {
            assert_eq!(bound(host), want);
        }
    }
}
