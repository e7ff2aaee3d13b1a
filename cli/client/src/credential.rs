//! What a namespace shows to registries.

use std::rc::Rc;

use cofferdam_types::{Result, Timestamp};
use cofferdam_wire::{
    convert::text,
    credential_capnp::{credential_info, credentials},
    error::malformed,
};
use serde::Serialize;

use crate::{
    call::{Reply, done_by, reply_by},
    connect::Link,
    cursor::Cursor,
    image::Secret,
};

/// What a secret is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum CredentialKind {
    /// A password, or a token in the place of one.
    #[default]
    Password,
    /// A token by which tokens are got.
    Identity,
}

/// A credential, without its secret: there is no way to get that out again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialInfo {
    /// host[:port] of the registry to which it is shown, and to no other.
    pub host: String,
    /// Whose it is.
    pub user: String,
    /// What its secret is.
    pub kind: CredentialKind,
    /// When it was stored.
    #[serde(serialize_with = "crate::json::time")]
    pub updated: Timestamp,
}

fn info(reader: credential_info::Reader<'_>) -> Result<CredentialInfo> {
    let kind = reader.get_kind().map_err(|e| malformed(e.into()))?;
    Ok(CredentialInfo {
        host: text(reader.get_host())?.to_owned(),
        user: text(reader.get_user())?.to_owned(),
        kind: match kind {
            credential_info::Kind::Password => CredentialKind::Password,
            credential_info::Kind::Identity => CredentialKind::Identity,
        },
        updated: Timestamp(reader.get_updated()),
    })
}

/// The credentials of a namespace.
#[derive(Clone)]
pub struct Credentials {
    pub(crate) link: Rc<Link>,
    pub(crate) client: credentials::Client,
}

impl Credentials {
    /// Stores one, in the place of what there was for its host. When it was stored is not for you to say.
    pub fn put(&self, credential: &CredentialInfo, secret: &Secret) -> Reply<()> {
        let mut request = self.client.put_request();
        let mut info = request.get().init_info();
        info.set_host(&credential.host);
        info.set_user(&credential.user);
        info.set_kind(match credential.kind {
            CredentialKind::Password => credential_info::Kind::Password,
            CredentialKind::Identity => credential_info::Kind::Identity,
        });
        request.get().set_secret(&secret.0);
        done_by(&self.link, &self.client, request)
    }

    /// What there is for a host.
    pub fn get(&self, host: &str) -> Reply<CredentialInfo> {
        let mut request = self.client.get_request();
        request.get().set_host(host);
        reply_by(&self.link, &self.client, request, |answer| info(answer.get_info().map_err(malformed)?))
    }

    /// All of them, by host.
    pub fn list(&self) -> Cursor<CredentialInfo> {
        Cursor::of(&self.link, self.client.list_request().send().pipeline.get_cursor(), info)
    }

    /// Forgets one.
    pub fn remove(&self, host: &str) -> Reply<()> {
        let mut request = self.client.remove_request();
        request.get().set_host(host);
        done_by(&self.link, &self.client, request)
    }
}
