//! Tokens: got from whom a registry names, with what that may be shown.

use std::{io::Read, time::Duration};

use cofferdam_types::{Error, Result};
use ureq::http::{Request, Uri, uri::Authority};

use super::{
    Access,
    auth::{self, Bearer, TokenReply},
    guard::{self, Origin},
    retry,
    way::{Fault, Way},
};

const MAX_TOKEN_REPLY: u64 = 64 << 10;

impl Way {
    /// A header for what is challenged, and how long it is good for where that is said.
    pub(super) fn token(&self, bearer: &Bearer) -> Result<(String, Option<Duration>), Fault> {
        let common = &self.common;
        let realm: Uri =
            bearer.realm.parse().map_err(|_| self.error(Error::denied, "names a token realm that is not a URL"))?;
        let origin = self.origin(&realm)?;
        let trusted = realm_trust(&self.base, &origin, &self.realms)
            .ok_or_else(|| self.error(Error::denied, "names a token realm over plain http: refused"))?;
        // Of those who wait for this token one at a time asks: what the one before was told counts for the next.
        self.let_be()?;
        let credentials = self.credentials.as_ref().filter(|_| trusted);
        let mut fields: Vec<(&str, String)> =
            bearer.service.iter().map(|service| ("service", service.clone())).collect();
        let scopes = auth::scopes(&common.path, &common.access, bearer.scope.as_deref());
        let unsendable = |_| self.error(Error::denied, "names a token realm that is not a URL");
        let (within, proxy) = (Some(common.limits.header), self.proxy_to(&origin));
        let answer = match credentials {
            // Only a refresh token needs the OAuth2 form; everybody takes the other.
            Some(c) if c.user.is_empty() => {
                fields.push(("scope", scopes.join(" ")));
                fields.push(("client_id", "cofferdam".into()));
                fields.push(("grant_type", "refresh_token".into()));
                fields.push(("refresh_token", c.secret.clone()));
                let request = Request::post(realm).header("content-type", "application/x-www-form-urlencoded");
                let request = request.body(form(&fields)).map_err(unsendable)?;
                self.agent.run(self.agent.configure_request(request).proxy(proxy).timeout_recv_body(within).build())
            }
            other => {
                fields.extend(scopes.into_iter().map(|s| ("scope", s)));
                let mark = if realm.query().is_some() { '&' } else { '?' };
                let mut request = Request::get(format!("{realm}{mark}{}", form(&fields)));
                if let Some(c) = other {
                    request = request.header("authorization", c.basic());
                }
                let request = request.body(()).map_err(unsendable)?;
                self.agent.run(self.agent.configure_request(request).proxy(proxy).timeout_recv_body(within).build())
            }
        };
        let mut response = answer.map_err(|e| self.failed(&e, &origin))?;
        let status = response.status().as_u16();
        if status != 200 {
            let asked = retry::after(response.headers());
            if retry::passes(status) {
                self.note(asked);
            }
            let alone = asked.map(|time| format!(", and wants to be left alone for {} s", time.as_secs()));
            let what =
                format!("its authorization server {} answered {status}{}", origin.host, alone.unwrap_or_default());
            let again = matches!(status, 429 | 500..=599) && asked.is_none_or(|asked| asked <= common.limits.patience);
            let error = match status {
                401 | 403 if self.credentials.is_some() && !trusted => self.error(
                    Error::denied,
                    format!(
                        "{what}; it is not the registry's own host and port, so your credentials were not sent: if it is right, \
                         name {origin} in trusted_realms of the registry's hosts.toml"
                    ),
                ),
                400..=403 => self.refused().context(what),
                _ => self.error(Error::unavailable, what),
            };
            return Err(Fault { again, asked, ..error.into() });
        }
        let mut text = Vec::new();
        let read = response.body_mut().as_reader().take(MAX_TOKEN_REPLY).read_to_end(&mut text);
        let stopped = || self.error(Error::unavailable, "its authorization server stopped half-way");
        read.map_err(|_| Fault { again: true, nobody: true, ..stopped().into() })?;
        let reply: TokenReply = serde_json::from_slice(&text)
            .map_err(|_| self.error(Error::denied, "its authorization server sent no token"))?;
        let lasts = reply.lasts();
        Ok((reply.header(&origin.host)?, lasts))
    }

    /// What is done with the repository, in a word.
    pub(super) fn act(&self) -> &'static str {
        if self.common.access == Access::Pull { "pull" } else { "push to" }
    }

    pub(super) fn refused(&self) -> Error {
        let act = self.act();
        self.error(Error::denied, match &self.credentials {
            Some(c) if c.user.is_empty() => {
                format!("the registry refused the identity token: log in again, and check that it is for who may {act} this repository")
            }
            Some(_) => format!("the registry refused the user and secret: check them, and that they may {act} this repository"),
            None if self.withheld => format!(
                "the registry lets nobody {act} this without credentials, and what is stored for it isn't shown over plain http, nor \
                 to who is vouched for by a certificate of the caller's: give a user and a secret, or have hosts.toml say how it is reached"
            ),
            None => format!("the registry lets nobody {act} this without credentials (or it does not exist): give a user and a secret"),
        })
    }
}

/// Whether a token realm may be asked at all, and then whether with the credentials (D3): another host only over https, and with
/// them only a trusted one. Another port of the host may be somebody else's.
fn realm_trust(base: &Origin, realm: &Origin, trusted: &[String]) -> Option<bool> {
    let encrypted_enough = realm.https || (realm.host == base.host && !base.https);
    encrypted_enough.then(|| realm == base || trusted.iter().any(|one| is_named(realm, one)))
}

/// Whether `HOST`, or `HOST:PORT`, is where a realm is.
fn is_named(realm: &Origin, entry: &str) -> bool {
    let whole = |entry: &Authority| guard::bare(entry.host()) == realm.host && entry.port_u16() == Some(realm.port);
    guard::bare(entry) == realm.host || entry.parse().is_ok_and(|entry| whole(&entry))
}

fn form(fields: &[(&str, String)]) -> String {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    let one = |(key, value): &(&str, String)| format!("{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
    fields.iter().map(one).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    // D3 of the negative tests.
    #[test]
    fn d3_a_foreign_realm_gets_no_credentials_unless_trusted() {
        let origin = |url: &str| Origin::of(&url.parse().unwrap()).unwrap();
        let trusted = ["Auth.h.io", "h.io:8444", "[::1]:81", "::2"].map(str::to_owned);
        for (base, realm, want) in [
            ("https://h.io", "https://h.io/token", Some(true)),
            ("https://h.io", "https://h.io:8443/token", Some(false)),
            ("https://h.io", "https://h.io:8444/token", Some(true)),
            ("https://h.io:8443", "https://h.io:8443/token", Some(true)),
            ("https://h.io:8443", "https://h.io/token", Some(false)),
            ("https://h.io", "https://auth.h.io/token", Some(true)),
            ("https://h.io", "https://auth.h.io:8443/token", Some(true)),
            ("https://h.io", "https://[::1]:81/token", Some(true)),
            ("https://h.io", "https://[::1]:82/token", Some(false)),
            ("https://h.io", "https://[::2]:82/token", Some(true)),
            ("https://h.io", "https://evil.io/token", Some(false)),
            ("https://h.io", "https://h.io.evil.io/token", Some(false)),
            ("https://h.io", "http://h.io/token", None),
            ("https://h.io", "http://auth.h.io/token", None),
            ("http://h.io", "http://h.io/token", Some(true)),
            ("http://h.io", "http://h.io:81/token", Some(false)),
            ("http://h.io", "https://h.io/token", Some(false)),
            ("http://h.io", "http://h.io:8444/token", Some(true)),
            ("http://h.io", "http://evil.io/token", None),
        ] {
            assert_eq!(realm_trust(&origin(base), &origin(realm), &trusted), want, "{base} names {realm}");
        }
    }
}
