//! `Credentials` (credential.capnp).

use std::rc::Rc;

use cofferdam_metadata::records::credentials::{self as records, Credential as Record, Kind};
use cofferdam_transfer::{Reference, bound};
use cofferdam_types::{Error, Result};
use cofferdam_wire::{
    convert::text,
    credential_capnp::{credential_cursor, credential_info, credentials},
};

use super::{Place, cursor::Cursor, rpc, trail};

/// What a namespace shows to registries. There is no way to get a secret out again.
pub struct Credentials(pub Place);

/// The host that a client means, as credentials are bound to it.
fn host(given: &str) -> Result<String> {
    let why = "is not the host of a registry: give host or host:port, as it is written in the names of images";
    // A path would be a registry's no more than a user in front of it.
    let whole = Reference::parse(&format!("{given}/x:y")).ok().filter(|whole| whole.host() == given);
    whole.map(|whole| bound(whole.host())).ok_or_else(|| {
        let shown: String = given.chars().take(80).collect();
        Error::invalid("credential", shown, why)
    })
}

fn set_info(mut builder: credential_info::Builder<'_>, record: &Record) {
    builder.set_host(&record.host);
    builder.set_user(&record.user);
    builder.set_kind(match record.kind {
        Kind::Password => credential_info::Kind::Password,
        Kind::Identity => credential_info::Kind::Identity,
    });
    builder.set_updated(record.updated.0);
}

impl credentials::Server for Credentials {
    async fn put(self: Rc<Self>, params: credentials::PutParams, _: credentials::PutResults) -> capnp::Result<()> {
        let params = params.get()?;
        let info = params.get_info()?;
        let host = rpc(text(info.get_host()).and_then(host))?;
        trail::object("credential", &host);
        let kind = match info.get_kind()? {
            credential_info::Kind::Password => Kind::Password,
            credential_info::Kind::Identity => Kind::Identity,
        };
        let (user, secret) = (rpc(text(info.get_user()))?.to_owned(), rpc(text(params.get_secret()))?);
        let (record, namespace) = (Record::new(host, user, kind, secret), self.0.namespace.clone());
        let write = move |tx: &mut cofferdam_metadata::Tx<'_>| records::put(tx, &namespace, record.clone());
        rpc(self.0.services().metadata.write(self.0.authority(), write).await)
    }

    async fn get(
        self: Rc<Self>,
        params: credentials::GetParams,
        mut results: credentials::GetResults,
    ) -> capnp::Result<()> {
        let host = rpc(text(params.get()?.get_host()).and_then(host))?;
        let view = rpc(self.0.services().metadata.read())?;
        set_info(results.get().init_info(), &rpc(records::get(&view, &self.0.namespace, &host))?);
        Ok(())
    }

    async fn list(
        self: Rc<Self>,
        _: credentials::ListParams,
        mut results: credentials::ListResults,
    ) -> capnp::Result<()> {
        let (metadata, namespace) = (self.0.services().metadata.clone(), self.0.namespace.clone());
        let cursor = Cursor::new(
            Box::new(move |after, max| records::list(&metadata.read()?, &namespace, after, max)),
            |record: &Record| record.host.clone(),
            |_| true,
        );
        results.get().set_cursor(self.0.hand_out(CredentialCursor(cursor)));
        Ok(())
    }

    async fn remove(
        self: Rc<Self>,
        params: credentials::RemoveParams,
        _: credentials::RemoveResults,
    ) -> capnp::Result<()> {
        let host = rpc(text(params.get()?.get_host()).and_then(host))?;
        trail::object("credential", &host);
        let namespace = self.0.namespace.clone();
        let write = move |tx: &mut cofferdam_metadata::Tx<'_>| records::delete(tx, &namespace, &host);
        rpc(self.0.services().metadata.write(self.0.authority(), write).await)
    }
}

struct CredentialCursor(Cursor<Record>);

impl credential_cursor::Server for CredentialCursor {
    async fn next(
        self: Rc<Self>,
        params: credential_cursor::NextParams,
        mut results: credential_cursor::NextResults,
    ) -> capnp::Result<()> {
        let (block, end) = rpc(self.0.next(params.get()?.get_max()))?;
        let mut answer = results.get();
        answer.set_end(end);
        let mut items = answer.init_items(block.len() as u32);
        for (n, record) in block.iter().enumerate() {
            set_info(items.reborrow().get(n as u32), record);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_written_as_in_the_names_of_images() {
        for (given, want) in [
            ("h.io", "h.io"),
            ("H.io:5000", "h.io:5000"),
            ("index.docker.io", "docker.io"),
            ("[::1]:5000", "[::1]:5000"),
            ("localhost", "localhost"),
        ] {
            assert_eq!(host(given).unwrap(), want);
        }
        for bad in ["", "https://h.io", "h.io/team", "me@h.io", "h.io:port", "h io", "h.io?x", "h.io\0x"] {
            assert!(host(bad).is_err(), "{bad:?}");
        }
    }
}
