//! The policy as it is written down, and which of its rules counts for a name.
//!
//! Strict: an unknown word, a key that can't be read, two rules for the same, or a file that others may write to make all of it
//! bad, and a bad policy lets nothing in.

use std::{collections::BTreeSet, io::Read as _, os::unix::fs::MetadataExt as _, path::Path};

use cofferdam_types::{Digest, Error, Namespace, Result};
use serde::Deserialize;

use super::signature::Key;
use crate::{Reference, from_io, normalize, plain::open_plain};

/// Of the policy, and of a key.
const MAX_FILE: u64 = 1 << 20;
const MAX_RULES: usize = 1000;

/// What a rule wants.
#[derive(Debug)]
pub(super) enum Demand {
    Nothing,
    /// Nothing comes in.
    Reject,
    /// One of these.
    Digest(BTreeSet<Digest>),
    Signature {
        /// One of them must have signed.
        keys: Vec<Key>,
        /// What the signature must be for; none: the repository that the name says.
        repositories: Vec<String>,
    },
}

/// A rule, and what it is for.
#[derive(Debug)]
pub(super) struct Rule {
    /// Host and path as [`repository`] has them; empty: all names.
    pub prefix: String,
    /// Empty: all of them.
    pub namespaces: Vec<String>,
    pub demand: Demand,
}

/// All rules.
#[derive(Debug)]
pub(super) struct Policy {
    rules: Vec<Rule>,
    otherwise: Rule,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    default: Otherwise,
    #[serde(default)]
    rules: Vec<WrittenRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Otherwise {
    Accept,
    Reject,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    namespaces: Vec<String>,
    require: Wanted,
    keys: Option<Vec<String>>,
    repositories: Option<Vec<String>>,
    digests: Option<Vec<String>>,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Wanted {
    Nothing,
    Reject,
    Digest,
    Signature,
}

/// Host and path of a name, in the one way of several in which rules are compared with it.
pub(super) fn repository(name: &str) -> String {
    let parsed = normalize(name).and_then(|full| Reference::parse(&full));
    match parsed {
        Ok(reference) => {
            let host = reference.host().to_ascii_lowercase();
            format!("{}/{}", host.strip_suffix(":443").unwrap_or(&host), reference.path())
        }
        // A name that no registry could have is under no prefix but the empty one.
        Err(_) => String::new(),
    }
}

impl Policy {
    /// Reads it, and the keys that it names.
    pub fn read(path: &Path) -> Result<Policy> {
        Policy::parse(&trusted_file(path)?).map_err(|why| bad(path, why))
    }

    pub fn parse(text: &[u8]) -> Result<Policy, String> {
        let written: Written = serde_json::from_slice(text).map_err(|e| format!("is not a policy: {e}"))?;
        if written.rules.len() > MAX_RULES {
            return Err(format!("has {} rules, and may have {MAX_RULES}", written.rules.len()));
        }
        let mut rules: Vec<Rule> = Vec::new();
        for (n, rule) in written.rules.into_iter().enumerate() {
            let rule = rule.checked().map_err(|why| format!("rule {}: {why}", n + 1))?;
            let same = |other: &Rule| {
                let shared = other.namespaces.iter().any(|ns| rule.namespaces.contains(ns));
                other.prefix == rule.prefix && (shared || (other.namespaces.is_empty() && rule.namespaces.is_empty()))
            };
            if rules.iter().any(same) {
                return Err(format!("rule {}: there is one for {:?} already", n + 1, rule.prefix));
            }
            rules.push(rule);
        }
        let demand = match written.default {
            Otherwise::Accept => Demand::Nothing,
            Otherwise::Reject => Demand::Reject,
        };
        Ok(Policy { rules, otherwise: Rule { prefix: String::new(), namespaces: Vec::new(), demand } })
    }

    /// The rule that counts: of those for the namespace the one of the longest prefix; where it has none for the name, of
    /// those for all namespaces.
    pub fn rule(self, ns: &Namespace, name: &str) -> Rule {
        let repository = repository(name);
        let fits = |rule: &Rule| {
            let rest = repository.strip_prefix(&rule.prefix);
            rule.prefix.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let chosen = self.rules.into_iter().filter(fits).filter(|rule| {
            let own = rule.namespaces.iter().any(|name| name.as_str() == &**ns);
            own || rule.namespaces.is_empty()
        });
        chosen.max_by_key(|rule| (!rule.namespaces.is_empty(), rule.prefix.len())).unwrap_or(self.otherwise)
    }
}

impl WrittenRule {
    fn checked(self) -> Result<Rule, String> {
        let Some(prefix) = prefix(&self.prefix) else {
            return Err(format!(
                "{:?} is not HOST[:PORT][/PATH]: write docker.io/library/NAME for short names",
                self.prefix
            ));
        };
        for name in &self.namespaces {
            Namespace::new(name.clone()).map_err(|e| e.to_string())?;
        }
        let unused = |what: &str, given: bool| match given {
            true => Err(format!("has {what}, which this kind of rule has no use for")),
            false => Ok(()),
        };
        unused("digests", self.digests.is_some() && self.require != Wanted::Digest)?;
        unused("keys", self.keys.is_some() && self.require != Wanted::Signature)?;
        unused("repositories", self.repositories.is_some() && self.require != Wanted::Signature)?;
        let demand = match self.require {
            Wanted::Nothing => Demand::Nothing,
            Wanted::Reject => Demand::Reject,
            Wanted::Digest => {
                let digests = self.digests.unwrap_or_default();
                if digests.is_empty() {
                    return Err("names no digests".into());
                }
                Demand::Digest(
                    digests.iter().map(|d| d.parse::<Digest>()).collect::<Result<_>>().map_err(|e| e.to_string())?,
                )
            }
            Wanted::Signature => {
                let keys = self.keys.unwrap_or_default();
                if keys.is_empty() {
                    return Err("names no keys".into());
                }
                let keys = keys.iter().map(|path| Key::read(Path::new(path))).collect::<Result<_>>();
                let repositories = self.repositories.unwrap_or_default().iter().map(|one| repository(one)).collect();
                Demand::Signature { keys: keys.map_err(|e| e.to_string())?, repositories }
            }
        };
        Ok(Rule { prefix, namespaces: self.namespaces, demand })
    }
}

/// A prefix as names are compared with it.
fn prefix(text: &str) -> Option<String> {
    let text = text.trim_end_matches('/');
    if text.is_empty() {
        return Some(String::new());
    }
    let (host, path) = text.split_once('/').unwrap_or((text, ""));
    let host = host.to_ascii_lowercase();
    let is_host = host.contains(['.', ':']) || host == "localhost";
    let whole = Reference::parse(&format!("{host}/{}", if path.is_empty() { "x" } else { path }));
    if !is_host || whole.is_err() || path.contains([':', '@', '?']) {
        return None;
    }
    let host = host.strip_suffix(":443").unwrap_or(&host);
    Some(if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") })
}

/// A file that nobody but its owner, who is root or ourselves, may write to.
pub(super) fn trusted_file(path: &Path) -> Result<Vec<u8>> {
    let failed = |e| bad(path, from_io("trust policy", path.display(), "can't be read", e).message);
    let file = open_plain("trust policy", path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let own = nix::unistd::geteuid().as_raw();
    if meta.mode() & 0o022 != 0 || ![0, own].contains(&meta.uid()) {
        return Err(bad(path, "must be a file that belongs to root and that nobody else may write to".into()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(bad(path, format!("is larger than {MAX_FILE} bytes"))),
        false => Ok(bytes),
    }
}

/// Who is refused by it can do nothing about it: the operator can.
pub(super) fn bad(path: &Path, why: String) -> Error {
    let why = format!("{why}; until that is mended no image comes in");
    Error::failed_precondition("trust policy", path.display(), why)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn policy(value: &serde_json::Value) -> Result<Policy, String> {
        Policy::parse(value.to_string().as_bytes())
    }

    fn rules() -> serde_json::Value {
        json!({ "default": "accept", "rules": [
            { "prefix": "Registry.Example/", "require": "reject" },
            { "prefix": "registry.example/shop", "require": "nothing" },
            { "prefix": "docker.io", "require": "nothing" },
            { "namespaces": ["prod"], "require": "reject" },
            { "prefix": "registry.example/shop", "namespaces": ["prod", "other"], "require": "digest",
              "digests": [format!("sha256:{}", "a".repeat(64))] },
        ]})
    }

    #[test]
    fn the_rule_of_the_namespace_goes_before_and_then_the_longest_prefix() {
        let shown = |ns: &str, name: &str| {
            let rule = policy(&rules()).unwrap().rule(&Namespace::new(ns).unwrap(), name);
            let demand = match rule.demand {
                Demand::Nothing => "nothing",
                Demand::Reject => "reject",
                Demand::Digest(_) => "digest",
                Demand::Signature { .. } => "signature",
            };
            format!("{demand} {}", rule.prefix)
        };
        for (ns, name, want) in [
            ("default", "registry.example/app:1", "reject registry.example"),
            ("default", "REGISTRY.example:443/app:1", "reject registry.example"),
            ("default", "registry.example/shop:1", "nothing registry.example/shop"),
            ("default", "registry.example/shop/a@sha256:aa", "nothing "),
            ("default", "registry.example/shopping:1", "reject registry.example"),
            ("default", "registry.example.org/x:1", "nothing "),
            ("default", "busybox", "nothing docker.io"),
            // What another rule lets in doesn't go past the one of the namespace.
            ("prod", "busybox", "reject "),
            ("prod", "registry.example/shop/app:1", "digest registry.example/shop"),
            ("other", "registry.example/shop/app:1", "digest registry.example/shop"),
            ("other", "registry.example/x:1", "reject registry.example"),
        ] {
            assert_eq!(shown(ns, name), want, "{name} in {ns}");
        }
    }

    #[test]
    fn a_policy_that_is_not_one_is_bad_as_a_whole() {
        for (what, word) in [
            (json!({}), "default"),
            (json!({ "default": "maybe" }), "maybe"),
            (json!({ "default": "accept", "rule": [] }), "rule"),
            (json!({ "default": "accept", "rules": [{ "require": "signed" }] }), "signed"),
            (json!({ "default": "accept", "rules": [{ "require": "signature" }] }), "names no keys"),
            (json!({ "default": "accept", "rules": [{ "require": "signature", "keys": ["/nowhere"] }] }), "/nowhere"),
            (json!({ "default": "accept", "rules": [{ "require": "digest", "digests": ["sha256:x"] }] }), "rule 1"),
            (json!({ "default": "accept", "rules": [{ "require": "digest" }] }), "names no digests"),
            (json!({ "default": "accept", "rules": [{ "prefix": "shop", "require": "reject" }] }), "docker.io/library"),
            (json!({ "default": "accept", "rules": [{ "prefix": "h.io/a:1", "require": "reject" }] }), "HOST"),
            (json!({ "default": "accept", "rules": [{ "namespaces": [".."], "require": "reject" }] }), "rule 1"),
            (json!({ "default": "accept", "rules": [{ "require": "reject", "keys": [] }] }), "no use"),
            (json!({ "default": "accept", "rules": [{ "require": "reject" }, { "require": "nothing" }] }), "already"),
        ] {
            let why = policy(&what).unwrap_err();
            assert!(why.contains(word), "{what}: {why}");
        }
        assert!(Policy::parse(br#"{"default": "reject", "default": "accept"}"#).is_err(), "twice");
    }

    #[test]
    fn a_file_that_others_may_write_to_is_bad() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trust.json");
        fs::write(&path, br#"{"default": "reject"}"#).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Policy::read(&path).is_ok());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        let error = Policy::read(&path).unwrap_err();
        assert!(error.message.contains("nobody else") && error.message.contains("no image comes in"), "{error}");
        assert!(Policy::read(dir.path()).is_err());
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = Policy::read(&fifo).unwrap_err();
        assert!(error.message.contains("not a regular file") && error.message.contains("no image comes in"), "{error}");
        assert!(Policy::read(&dir.path().join("none")).is_err());
    }
}
