//! docker's config file, `config.json`: what it has for a registry, and the helpers that it names.
//!
//! It is the caller's own file, and its helpers are run here, by the caller: no daemon reads the one or runs the others.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use cofferdam_types::{Error, Result};
use serde::Deserialize;

use crate::{credential::CredentialKind, image::Secret};

/// How long a helper may take: it may ask its user for something.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of the file, and of what a helper says.
const MAX_FILE: u64 = 1 << 20;
const MAX_SAID: u64 = 64 << 10;
/// How Docker Hub is called in the file, and by helpers.
const HUB: &str = "https://index.docker.io/v1/";
/// What helpers say where they have nothing.
const NOTHING: &str = "credentials not found";

/// The file.
#[derive(Debug)]
pub struct DockerConfig {
    path: PathBuf,
    file: File,
}

/// What the file, or a helper, has for a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerCredential {
    /// The user; of an identity token there is none.
    pub user: String,
    /// The secret.
    pub secret: Secret,
    /// What that is.
    pub kind: CredentialKind,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "File {{ auths: {:?}, helpers: {:?} }}", self.auths.keys(), self.cred_helpers)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// The registry of an image's name, short or whole.
pub fn registry_of(name: &str) -> String {
    match name.split_once('/') {
        Some((first, _)) if first.contains(['.', ':', '[']) || first == "localhost" => bound(first),
        _ => "docker.io".into(),
    }
}

/// A key of the file as a host: with or without a scheme, and whatever path is behind it.
fn bound(key: &str) -> String {
    let bare = key.split_once("://").map_or(key, |(_, rest)| rest);
    match bare.split('/').next().unwrap_or_default().to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".into(),
        host => host.into(),
    }
}

impl DockerConfig {
    /// Where it lies: in `DOCKER_CONFIG`, or in the home directory.
    pub fn usual() -> Option<PathBuf> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        set("DOCKER_CONFIG").or_else(|| Some(set("HOME")?.join(".docker"))).map(|dir| dir.join("config.json"))
    }

    /// Reads one; `None` where there is none.
    pub fn load(path: &Path) -> Result<Option<DockerConfig>> {
        let unreadable = |e: &std::io::Error| Error::io("docker-config", path.display(), "can't be read", e);
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(unreadable(&e)),
        };
        let mut text = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut text).map_err(|e| unreadable(&e))?;
        // Not what the reader says is wrong: it could repeat a secret.
        let file = serde_json::from_slice(&text).map_err(|e| {
            let why = format!("is not docker's config file: see line {}, column {}", e.line(), e.column());
            Error::invalid("docker-config", path.display(), why)
        })?;
        Ok(Some(DockerConfig { path: path.to_owned(), file }))
    }

    /// Whether there is anything for a registry, or a helper that may have something. Runs none.
    pub fn names(&self, host: &str) -> bool {
        let host = bound(host);
        let mut keys = self.file.cred_helpers.keys().chain(self.file.auths.keys());
        !self.file.creds_store.is_empty() || keys.any(|key| bound(key) == host)
    }

    /// What there is for a registry. May run a helper, and waits for it. One that is named for this registry and fails is an
    /// error: nothing else is shown in its place.
    pub fn find(&self, host: &str) -> Result<Option<DockerCredential>> {
        let host = bound(host);
        let named = self.file.cred_helpers.iter().find(|(key, _)| bound(key) == host).map(|(_, helper)| helper);
        let store = Some(&self.file.creds_store).filter(|store| !store.is_empty());
        if let Some(helper) = named.or(store) {
            return ask(helper, &host);
        }
        let entries = self.file.auths.iter().filter(|(key, _)| bound(key) == host);
        for (_, entry) in entries {
            if let Some(found) = self.read(&host, entry)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn read(&self, host: &str, entry: &Entry) -> Result<Option<DockerCredential>> {
        if !entry.identitytoken.is_empty() {
            return Ok(Some(credential("<token>", &entry.identitytoken)));
        }
        if !entry.username.is_empty() && !entry.password.is_empty() {
            return Ok(Some(credential(&entry.username, &entry.password)));
        }
        if entry.auth.is_empty() {
            return Ok(None);
        }
        let wrong = || {
            Error::invalid(
                "docker-config",
                self.path.display(),
                format!("has no user and password for {host} in its auth"),
            )
        };
        let text = STANDARD.decode(entry.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let text = text.ok_or_else(wrong)?;
        let (user, secret) = text.split_once(':').ok_or_else(wrong)?;
        Ok(Some(credential(user, secret.trim_end_matches('\0'))))
    }
}

fn credential(user: &str, secret: &str) -> DockerCredential {
    // docker's mark of an identity token.
    let (user, kind) = match user {
        "<token>" => ("", CredentialKind::Identity),
        user => (user, CredentialKind::Password),
    };
    DockerCredential { user: user.to_owned(), secret: Secret(secret.to_owned()), kind }
}

/// Asks `docker-credential-NAME`, which is looked for as any other program of the caller's.
fn ask(helper: &str, host: &str) -> Result<Option<DockerCredential>> {
    let program = format!("docker-credential-{helper}");
    let failed = |why: String| Error::failed_precondition("credential-helper", &program, why);
    if helper.is_empty() || !helper.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        return Err(failed("is no name of a program: see credHelpers and credsStore in docker's config file".into()));
    }
    asked(Path::new(&program), host)
}

fn asked(program: &Path, host: &str) -> Result<Option<DockerCredential>> {
    let failed = |why: String| Error::failed_precondition("credential-helper", program.display(), why);
    let mut command = Command::new(program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn().map_err(|e| {
        failed(format!("can't be run for {host} ({}): install it, or take it out of docker's config file", e.kind()))
    })?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let (tell, told) = mpsc::sync_channel(1);
    let server = if host == "docker.io" { HUB.to_owned() } else { host.to_owned() };
    std::thread::spawn(move || {
        // One that reads nothing may have ended already: it is its answer that counts.
        let _ = stdin.map(|mut stdin| stdin.write_all(server.as_bytes()));
        let mut said = Vec::new();
        let read = stdout.map_or(Ok(0), |stdout| stdout.take(MAX_SAID).read_to_end(&mut said));
        let _ = tell.send(read.map(|_| said));
    });
    let said = told.recv_timeout(PATIENCE);
    if said.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|e| failed(format!("can't be waited for: {}", e.kind())))?;
    let said = match said {
        Ok(Ok(said)) => said,
        Ok(Err(e)) => return Err(failed(format!("can't be read: {}", e.kind()))),
        Err(_) => return Err(failed(format!("said nothing about {host} for {} s", PATIENCE.as_secs()))),
    };
    if !status.success() {
        let text = String::from_utf8_lossy(&said);
        if text.contains(NOTHING) {
            return Ok(None);
        }
        let why: String = text.trim().chars().filter(|c| !c.is_control()).take(200).collect();
        return Err(failed(format!("failed for {host} with {status}: {why}")));
    }
    let answer: Answer = serde_json::from_slice(&said)
        .map_err(|_| failed(format!("said something about {host} that is no credential")))?;
    Ok(Some(credential(&answer.username, &answer.secret)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use cofferdam_types::Code;

    use super::*;

    fn config(text: &str) -> Result<Option<DockerConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        DockerConfig::load(&path)
    }

    #[test]
    fn each_registry_has_its_own_and_no_other_gets_it() {
        let text = r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"aHViOmh1bnRlcjIy"},
            "h.io":{"auth":"bWU6cGE6c3M="},
            "https://T.io/v2/":{"identitytoken":"tok","auth":"bWU6eA=="},
            "p.io:5000":{"username":"u","password":"p"},
            "empty.io":{}},"HttpHeaders":{"x":"y"}}"#;
        let config = config(text).unwrap().unwrap();
        let found = |host: &str| config.find(host).unwrap().map(|c| (c.user, c.secret.0, c.kind));
        let password = |user: &str, secret: &str| Some((user.into(), secret.into(), CredentialKind::Password));
        assert_eq!(found("docker.io"), password("hub", "hunter22"));
        assert_eq!(found("registry-1.docker.io"), password("hub", "hunter22"));
        assert_eq!(found("h.io"), password("me", "pa:ss"));
        assert_eq!(found("t.io"), Some((String::new(), "tok".into(), CredentialKind::Identity)));
        assert_eq!(found("p.io:5000"), password("u", "p"));
        for other in ["p.io", "h.io:443", "sub.h.io", "h.io.evil.io", "empty.io", "none.io"] {
            assert_eq!(found(other), None, "D1: {other}");
        }
        assert!(!format!("{config:?}").contains("hunter22"));
    }

    // D8 of the negative tests.
    #[test]
    fn d8_what_is_wrong_with_the_file_is_said_without_what_is_in_it() {
        for text in ["{\"auths\":\"hunter22\"}", "hunter22", "{\"auths\":{\"h.io\":{\"auth\":7}},\"x\":\"hunter22\"}"] {
            let error = config(text).unwrap_err();
            assert!(!error.to_string().contains("hunter22") && error.message.contains("line 1"), "{error}");
        }
        let config = config("{\"auths\":{\"h.io\":{\"auth\":\"hunter22\"}}}").unwrap().unwrap();
        let error = config.find("h.io").unwrap_err();
        assert!(!error.to_string().contains("hunter22") && error.message.contains("h.io"), "{error}");
        assert!(DockerConfig::load(Path::new("/nowhere/config.json")).unwrap().is_none());
    }

    #[test]
    fn names_lead_to_their_registries() {
        for (name, host) in [
            ("redis", "docker.io"),
            ("me/app:1", "docker.io"),
            ("index.docker.io/me/app", "docker.io"),
            ("H.io/app", "h.io"),
            ("localhost/app", "localhost"),
            ("h.io:5000/a/b@sha256:0", "h.io:5000"),
        ] {
            assert_eq!(registry_of(name), host, "{name}");
        }
    }

    // D1 of the negative tests, as in CVE-2021-41092: a helper that isn't there.
    #[test]
    fn d1_a_helper_that_fails_is_an_error_and_nothing_is_shown_in_its_place() {
        let text = r#"{"auths":{"h.io":{"auth":"bWU6aHVudGVyMjI="}},
            "credHelpers":{"h.io":"no-such-helper","bad.io":"../sh","other.io":"no-such-helper"}}"#;
        let config = config(text).unwrap().unwrap();
        for (host, word) in [("h.io", "can't be run"), ("bad.io", "no name of a program")] {
            let error = config.find(host).unwrap_err();
            assert_eq!(error.code, Code::FailedPrecondition);
            assert!(error.message.contains(word), "{error}");
        }
        assert_eq!(config.find("third.io").unwrap(), None);
        assert!(config.names("h.io") && config.names("other.io") && !config.names("third.io"));
    }

    #[test]
    fn helpers_are_run_and_asked_for_one_registry() {
        let dir = tempfile::tempdir().unwrap();
        let helper = |name: &str, script: &str| {
            let path = dir.path().join(format!("docker-credential-{name}"));
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        helper(
            "good",
            r#"read server; [ "$1" = get ] && printf '{"ServerURL":"%s","Username":"me","Secret":"for %s"}' "$server" "$server""#,
        );
        helper("token", r#"echo '{"Username":"<token>","Secret":"tok"}'"#);
        helper("none", "echo 'credentials not found in native keychain'; exit 1");
        helper("odd", "echo hunter22; exit 3");
        helper("mute", "echo '{}'");
        let program = |name: &str| dir.path().join(format!("docker-credential-{name}"));
        let run = |name: &str, host: &str| asked(&program(name), host);
        assert_eq!(run("good", "h.io:5000").unwrap().unwrap().secret, Secret("for h.io:5000".into()));
        assert_eq!(run("good", "docker.io").unwrap().unwrap().secret, Secret(format!("for {HUB}")));
        assert_eq!(run("token", "h.io").unwrap().unwrap().kind, CredentialKind::Identity);
        assert_eq!(run("none", "h.io").unwrap(), None);
        assert!(run("odd", "h.io").unwrap_err().message.contains("failed for h.io"));
        assert!(run("mute", "h.io").unwrap_err().message.contains("no credential"));
    }
}
