//! Whom a host is believed to be, and what it is shown of us.

use std::{
    cell::OnceCell,
    fmt,
    io::Read as _,
    path::{Path, PathBuf},
};

use cofferdam_types::{Error, Result};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::hosts::Manner;
use crate::plain::open_plain;

/// A certificate to be shown, and its key; both in PEM form.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and what vouches for it.
    pub certificate: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(hidden)")
    }
}

/// The host's own roots: there are many, and they are read once for all hosts of a route.
#[derive(Default)]
pub(super) struct Roots(OnceCell<Vec<Certificate<'static>>>);

impl Roots {
    fn get(&self) -> &[Certificate<'static>] {
        self.0.get_or_init(|| {
            let found = rustls_native_certs::load_native_certs();
            found.certs.iter().map(|cert| Certificate::from_der(cert).to_owned()).collect()
        })
    }
}

/// What a host of a route is believed by. `ca` and `identity` are what a call has for it.
pub(super) fn config(
    manner: &Manner,
    ca: Option<&[u8]>,
    identity: Option<&Identity>,
    roots: &Roots,
) -> Result<TlsConfig> {
    let mut own = Vec::new();
    if let Some(pem) = ca {
        own.extend(certificates(pem, "ca", "")?);
    }
    own.extend(trusted(manner)?);
    // Where the host has none, Mozilla's as built in.
    let trusted = match (roots.get(), own.is_empty()) {
        ([], true) => RootCerts::WebPki,
        (known, _) => RootCerts::new_with_certs(&[known, own.as_slice()].concat()),
    };
    let client = match (identity, &manner.client) {
        (Some(identity), _) => Some(shown(&identity.certificate, &identity.key, "")?),
        (None, Some(files)) => Some(own_pair(files)?),
        (None, None) => None,
    };
    let config = TlsConfig::builder().root_certs(trusted).client_cert(client);
    Ok(config.disable_verification(manner.skip_verify).build())
}

/// Whether what the table names for a host can be read.
pub(super) fn check(manner: &Manner) -> Result<()> {
    trusted(manner)?;
    manner.client.as_ref().map(own_pair).transpose().map(drop)
}

/// What the table has a host believed by.
fn trusted(manner: &Manner) -> Result<Vec<Certificate<'static>>> {
    let mut all = Vec::new();
    for path in &manner.ca {
        all.extend(certificates(&read(path)?, "ca", &path.display().to_string())?);
    }
    Ok(all)
}

/// What the table has a host shown.
fn own_pair((cert, key): &(PathBuf, Option<PathBuf>)) -> Result<ClientCert> {
    let (pem, place) = (read(cert)?, cert.display().to_string());
    let key = key.as_ref().map(|key| read(key)).transpose()?;
    shown(&pem, key.as_deref().unwrap_or(&pem), &place)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = open_plain("certificate", path).and_then(|mut file| file.read_to_end(&mut bytes));
    read.map_err(|e| crate::from_io("certificate", path.display(), "can't be read", e))?;
    Ok(bytes)
}

fn certificates(pem: &[u8], kind: &'static str, place: &str) -> Result<Vec<Certificate<'static>>> {
    let mut certs = Vec::new();
    for item in parse_pem(pem) {
        match item {
            Ok(PemItem::Certificate(cert)) => certs.push(cert),
            Ok(_) => {}
            Err(_) => return Err(Error::invalid(kind, place, "is not PEM")),
        }
    }
    match certs.is_empty() {
        true => Err(Error::invalid(kind, place, "holds no certificate in PEM form")),
        false => Ok(certs),
    }
}

/// A pair. What doesn't belong together is found here: the library would panic over it.
fn shown(certificate: &[u8], key: &[u8], place: &str) -> Result<ClientCert> {
    const KIND: &str = "client certificate";
    let chain = certificates(certificate, KIND, place)?;
    let keyless = |_| Error::invalid(KIND, place, "has no private key in PEM form beside it");
    let der = PrivateKeyDer::from_pem_slice(key).map_err(keyless)?;
    let key =
        PrivateKey::from_pem(key).map_err(|_| Error::invalid(KIND, place, "has a private key that can't be read"))?;
    let certs = chain.iter().map(|cert| CertificateDer::from(cert.der().to_vec())).collect();
    let provider = rustls::crypto::ring::default_provider();
    let pair = CertifiedKey::from_der(certs, der, &provider);
    pair.map_err(|e| Error::invalid(KIND, place, format!("and its key are no pair: {e}")))?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A certificate and its key, made by openssl.
    fn pair(dir: &Path, name: &str) -> Identity {
        let file = |end: &str| dir.join(format!("{name}.{end}"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=us", "-keyout"])
            .arg(file("key"))
            .arg("-out")
            .arg(file("cert"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        Identity { certificate: std::fs::read(file("cert")).unwrap(), key: std::fs::read(file("key")).unwrap() }
    }

    #[test]
    fn what_is_no_pair_is_an_error_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (pair(dir.path(), "one"), pair(dir.path(), "other"));
        let with = |identity: &Identity| config(&Manner::default(), None, Some(identity), &Roots::default()).map(drop);
        with(&one).unwrap();
        let both = [one.certificate.clone(), one.key.clone()].concat();
        with(&Identity { certificate: both.clone(), key: both }).unwrap();
        for (identity, word) in [
            (Identity { key: other.key.clone(), ..one.clone() }, "no pair"),
            (Identity { key: one.certificate.clone(), ..one.clone() }, "no private key"),
            (Identity { certificate: b"x".to_vec(), ..one.clone() }, "no certificate"),
        ] {
            let error = with(&identity).unwrap_err();
            assert!(error.message.contains(word), "{error}");
        }
        assert_eq!(format!("{one:?}"), "Identity(hidden)");
        let manner = Manner { ca: vec![dir.path().join("none.crt")], ..Manner::default() };
        let error = config(&manner, None, None, &Roots::default()).unwrap_err();
        assert!(error.id.ends_with("none.crt"), "{error}");
        let fifo = dir.path().join("fifo.crt");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let manner = Manner { ca: vec![fifo], ..Manner::default() };
        let error = config(&manner, None, None, &Roots::default()).unwrap_err();
        assert!(error.message.contains("not a regular file"), "{error}");
    }
}
