//! Image references: `host[:port]/path[:tag][@digest]`.
//!
//! Two things are kept apart. [`Reference::parse`] is the strict grammar (no default host, no default tag), which is
//! what names in the store mean. [`normalize`] is the operator's shorthand (`redis` means
//! `docker.io/library/redis:latest`); it is applied once, at the edge, and never to a name that is already stored.

use std::{fmt, str::FromStr};

use cofferdam_types::{Digest, Error, Result};

/// The host whose names may be written without it.
const DEFAULT_HOST: &str = "docker.io";
const MAX_TAG: usize = 128;
/// Of the path alone, as in the distribution project's `RepositoryNameTotalLengthMax`.
const MAX_PATH: usize = 255;
/// Of all of it; more can't be a name in the store.
const MAX_TEXT: usize = 1024;
/// How much of a text that is none is shown.
const SHOWN: usize = 256;

/// A parsed reference. The *object* is what follows the path: `tag`, `tag@digest` or `@digest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    path: String,
    object: String,
}

impl Reference {
    /// Parses the strict grammar. A query string is dropped, as in containerd.
    pub fn parse(text: &str) -> Result<Reference> {
        let bad = |why: &str| {
            Error::invalid("reference", shown(text), format!("{why}; write host/path:tag or host/path@sha256:..."))
        };
        let bare = text.split_once('?').map_or(text, |(bare, _)| bare);
        if bare.len() > MAX_TEXT {
            return Err(bad(&format!("has {} characters, and may have {MAX_TEXT}", bare.len())));
        }
        if bare.is_empty() || bare.bytes().any(|b| b.is_ascii_control() || b == b' ' || b == b'#') {
            return Err(bad("is not a reference"));
        }
        let (host, rest) = bare.split_once('/').ok_or_else(|| bad("has no host"))?;
        if host.is_empty() {
            return Err(bad("hostname required"));
        }
        if !valid_host(host) {
            return Err(bad("has a host that is not one"));
        }
        let cut = rest.find([':', '@']).unwrap_or(rest.len());
        let (path, object) = rest.split_at(cut);
        if path.len() > MAX_PATH {
            return Err(bad(&format!("has a repository name of {} characters, which may have {MAX_PATH}", path.len())));
        }
        // `..` and empty components would be cleaned away by some and not by others: two names, one image.
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(bad("has an empty or dotted path component"));
        }
        let object = object.strip_prefix(':').unwrap_or(object);
        Ok(Reference { host: host.to_owned(), path: path.to_owned(), object: object.to_owned() })
    }

    /// Host with its port, as written.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository within the host.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Host and path.
    pub fn locator(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// What follows the path; empty where nothing does.
    pub fn object(&self) -> &str {
        &self.object
    }

    /// The text after `@`, checked by nobody yet (containerd accepts short ones in names).
    pub fn digest_text(&self) -> Option<&str> {
        self.object.split_once('@').map(|(_, digest)| digest)
    }

    /// The tag, if there is one.
    pub fn tag(&self) -> Option<&str> {
        let tag = self.object.split_once('@').map_or(self.object.as_str(), |(tag, _)| tag);
        (!tag.is_empty()).then_some(tag)
    }

    /// What a registry is to be asked for. Here the grammar is the distribution specification's: whatever becomes
    /// part of a URL is checked first, and a tag can never pass for a digest nor a digest for a tag.
    pub fn target(&self) -> Result<Target> {
        let bad = |why: String| Error::invalid("reference", shown(&self.to_string()), why);
        if !self.path.split('/').all(valid_component) {
            return Err(bad(format!(
                "the repository name {:?} must be lowercase letters and digits with '.', '_', '__' or dashes between them",
                self.path
            )));
        }
        if let Some(tag) = self.tag()
            && !valid_tag(tag)
        {
            if tag.len() > MAX_TAG {
                return Err(bad(format!("the tag has {} characters, and may have {MAX_TAG}", tag.len())));
            }
            return Err(bad(format!("the tag {tag:?} must be 1 to {MAX_TAG} letters, digits, '_', '.' and '-'")));
        }
        match self.digest_text() {
            Some(digest) => Ok(Target::Digest(digest.parse::<Digest>().map_err(|e| bad(e.to_string()))?)),
            None => match self.tag() {
                Some(tag) => Ok(Target::Tag(tag.to_owned())),
                None => Err(bad("object required: add :tag or @digest".into())),
            },
        }
    }
}

/// What a registry is asked for. A digest beats a tag beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A name that may move.
    Tag(String),
    /// Exactly these bytes.
    Digest(Digest),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tag(tag) => f.write_str(tag),
            Target::Digest(digest) => digest.fmt(f),
        }
    }
}

impl FromStr for Reference {
    type Err = Error;
    fn from_str(text: &str) -> Result<Reference> {
        Reference::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        match self.object.as_str() {
            "" => Ok(()),
            object if object.starts_with('@') => f.write_str(object),
            object => write!(f, ":{object}"),
        }
    }
}

/// Writes an operator's shorthand out in full: the default host, its `library/`, and `:latest` where nothing is named.
pub fn normalize(text: &str) -> Result<String> {
    // As the parser does, but before a `/` behind it is taken for one of the path.
    let text = text.split_once('?').map_or(text, |(bare, _)| bare);
    if text.ends_with([':', '@']) {
        return Err(Error::invalid("reference", shown(text), "ends before its tag or digest"));
    }
    let first = text.split_once('/').map(|(first, _)| first);
    let has_host = first.is_some_and(|f| f.contains(['.', ':', '[']) || f == "localhost");
    let (host, rest) = match first {
        Some(first) if has_host => (first, &text[first.len() + 1..]),
        _ => (DEFAULT_HOST, text),
    };
    let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
    let library = if host == DEFAULT_HOST && !rest.contains('/') { "library/" } else { "" };
    let reference = Reference::parse(&format!("{host}/{library}{rest}"))?;
    let full = if reference.object.is_empty() { format!("{reference}:latest") } else { reference.to_string() };
    Reference::parse(&full)?.target()?;
    Ok(full)
}

/// Whether an operator's shorthand names neither tag nor digest.
pub(crate) fn is_bare(text: &str) -> bool {
    let text = text.split_once('?').map_or(text, |(bare, _)| bare);
    !text.rsplit('/').next().unwrap_or(text).contains([':', '@'])
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

fn valid_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((address, port)) => {
                return address.parse::<std::net::Ipv6Addr>().is_ok()
                    && (port.is_empty() || port.strip_prefix(':').is_some_and(valid_port));
            }
            None => return false,
        },
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= 253 && name.split('.').all(label) && port.is_none_or(valid_port)
}

fn valid_port(port: &str) -> bool {
    port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p != 0)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` of the distribution specification.
fn valid_component(part: &str) -> bool {
    let bytes = part.as_bytes();
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    word(first)
        && word(last)
        && bytes
            .split(|b| word(*b))
            .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'))
}

fn valid_tag(tag: &str) -> bool {
    tag.len() <= MAX_TAG
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA512: &str = "sha512:abcdef";

    #[test]
    fn the_table_of_the_reference() {
        for (text, locator, object, digest, host) in [
            ("docker.io/library/redis:foo?x=y", "docker.io/library/redis", "foo", None, "docker.io"),
            (
                "docker.io/library/redis:foo@sha256:abcdef",
                "docker.io/library/redis",
                "foo@sha256:abcdef",
                Some("sha256:abcdef"),
                "docker.io",
            ),
            (
                "docker.io/library/redis@sha256:abcdef?fooo=asdf",
                "docker.io/library/redis",
                "@sha256:abcdef",
                Some("sha256:abcdef"),
                "docker.io",
            ),
            (
                "docker.io/library/redis:obj@abcdef",
                "docker.io/library/redis",
                "obj@abcdef",
                Some("abcdef"),
                "docker.io",
            ),
            (
                "localhost:5000/library/redis:obj@abcdef",
                "localhost:5000/library/redis",
                "obj@abcdef",
                Some("abcdef"),
                "localhost:5000",
            ),
            ("docker.io/library/redis", "docker.io/library/redis", "", None, "docker.io"),
            (
                "sub-dom1.foo.com/bar/baz/quux:some-long-tag",
                "sub-dom1.foo.com/bar/baz/quux",
                "some-long-tag",
                None,
                "sub-dom1.foo.com",
            ),
            (
                "b.gcr.io/test.example.com/my-app:test.example.com",
                "b.gcr.io/test.example.com/my-app",
                "test.example.com",
                None,
                "b.gcr.io",
            ),
            (
                "xn--7o8h.com/myimage:xn--7o8h.com@sha512:abcdef",
                "xn--7o8h.com/myimage",
                "xn--7o8h.com@sha512:abcdef",
                Some(SHA512),
                "xn--7o8h.com",
            ),
            ("[::1]:5000/a:b", "[::1]:5000/a", "b", None, "[::1]:5000"),
        ] {
            let r = Reference::parse(text).unwrap();
            assert_eq!(
                (r.locator().as_str(), r.object(), r.digest_text(), r.host()),
                (locator, object, digest, host),
                "{text}"
            );
            assert_eq!(Reference::parse(&r.to_string()).unwrap(), r, "{text} is stable");
        }
    }

    #[test]
    fn what_is_not_a_reference() {
        for text in [
            "",
            "redis",
            "/docker.io/library/redis:obj",
            "docker.io/",
            "docker.io//a",
            "docker.io/a/../b:c",
            "docker.io/./b",
            "host:0/a",
            "host:99999/a",
            "host:x/a",
            "-h/a",
            "h-/a",
            "a b/c",
            "h/a\n",
            "h\0/a",
            "[::1/a",
            "[x]/a",
            "u@h/a",
            "h/a#b",
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_tag_is_the_tag_and_a_digest_is_whole() {
        let hex = "a".repeat(64);
        let r = Reference::parse(&format!("h.io/a:t@sha256:{hex}")).unwrap();
        assert_eq!(r.tag(), Some("t"));
        assert!(matches!(r.target().unwrap(), Target::Digest(d) if d.hex() == hex));
        assert_eq!(Reference::parse("h.io/a:t").unwrap().target().unwrap(), Target::Tag("t".into()));
        for bad in [
            "h.io/a",
            "h.io/A:t",
            "h.io/a_-b:t",
            "h.io/a___b:t",
            "h.io/-a:t",
            "h.io/a:-t",
            "h.io/a@sha256:abc",
            "h.io/a:b:c",
            "h.io/a:é",
        ] {
            let error = Reference::parse(bad).and_then(|r| r.target()).unwrap_err();
            assert_eq!(error.code, cofferdam_types::Code::InvalidArgument, "{bad}");
        }
        assert!(Reference::parse(&format!("h.io/a:{}", "t".repeat(128))).unwrap().target().is_ok());
        assert!(Reference::parse(&format!("h.io/a:{}", "t".repeat(129))).unwrap().target().is_err());
        for good in ["h.io/a--b/c__d/e.f:t", "h.io/0/1:2"] {
            assert!(Reference::parse(good).unwrap().target().is_ok(), "{good}");
        }
    }

    #[test]
    fn names_that_are_too_long_are_told_so_and_not_repeated() {
        let told = |text: &str, words: &str| {
            let error = normalize(text).unwrap_err();
            assert_eq!(error.code, cofferdam_types::Code::InvalidArgument);
            assert!(error.message.contains(words), "{error}");
            assert!(error.to_string().len() < 600, "{} bytes", error.to_string().len());
        };
        let host = format!("{}.example:5000", "h".repeat(200));
        assert!(normalize(&format!("{host}/{}:1", "a".repeat(255))).is_ok(), "the host is not counted");
        told(&format!("{host}/{}:1", "a".repeat(256)), "a repository name of 256 characters, which may have 255");
        assert!(normalize(&"a".repeat(255 - "library/".len())).is_ok());
        told(&"a".repeat(300), "a repository name of 308 characters");
        told(&format!("h.io/{}", ["a"; 150].join("/")), "a repository name of 299 characters");
        told(&format!("h.io/a:{}", "t".repeat(300)), "the tag has 300 characters, and may have 128");
        told(&"a".repeat(100_000), "100018 characters, and may have 1024");
        told(&format!("{}:", "a".repeat(100_000)), "ends before its tag");
        told(&format!("{}.io/a", "h".repeat(300)), "has a host that is not one");
    }

    #[test]
    fn upper_case_and_odd_characters_are_told_so() {
        for text in
            ["Redis", "h.io/Me/app", "h.io/a%2fb", "h.io/a+b", "h.io/\u{e9}", "h.io/a\\b", "h.io/$(id)", "h.io/a;b"]
        {
            let error = normalize(text).unwrap_err();
            assert!(error.message.contains("must be lowercase letters and digits"), "{error}");
        }
        for text in ["h.io/a:t+1", "h.io/a:\u{e9}", "h.io/a:t/x"] {
            let error = normalize(text).unwrap_err();
            assert!(error.message.contains("the tag \""), "{error}");
        }
        assert!(normalize("h.io/a:UPPER").is_ok(), "a tag may");
        for text in ["h.io/a\u{0}", "h.io/a b", "h.io/a\tb", "\u{1b}[2Jx"] {
            assert!(normalize(text).unwrap_err().message.contains("is not a reference"), "{text:?}");
        }
    }

    // M10 of the negative tests.
    #[test]
    fn m10_a_tag_that_looks_like_a_digest_stays_a_tag() {
        let hex = "a".repeat(64);
        assert_eq!(
            Reference::parse(&format!("h.io/a:sha256-{hex}")).unwrap().target().unwrap(),
            Target::Tag(format!("sha256-{hex}"))
        );
        assert!(Reference::parse(&format!("h.io/a:sha256:{hex}")).unwrap().target().is_err());
    }

    #[test]
    fn shorthand() {
        let hex = "a".repeat(64);
        for (text, full) in [
            ("redis", "docker.io/library/redis:latest".to_owned()),
            ("redis:7", "docker.io/library/redis:7".to_owned()),
            (&format!("redis@sha256:{hex}"), format!("docker.io/library/redis@sha256:{hex}")),
            ("redis?a/b", "docker.io/library/redis:latest".to_owned()),
            ("me/app", "docker.io/me/app:latest".to_owned()),
            ("docker.io/redis", "docker.io/library/redis:latest".to_owned()),
            ("index.docker.io/me/app:1", "docker.io/me/app:1".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("localhost:5000/app:1", "localhost:5000/app:1".to_owned()),
            ("h.io/app", "h.io/app:latest".to_owned()),
            ("[::1]:5000/app", "[::1]:5000/app:latest".to_owned()),
        ] {
            assert_eq!(normalize(text).unwrap(), full);
            assert_eq!(normalize(&full).unwrap(), full, "a full name stays as it is");
        }
        for (text, bare) in
            [("redis", true), ("h:5000/a", true), ("a?b:c", true), ("redis:7", false), ("h:1/a@x", false)]
        {
            assert_eq!(is_bare(text), bare, "{text}");
        }
        for bad in ["", "Redis", "a b", "redis:", "/redis", "redis@", "redis:a:b", "h.io/"] {
            assert!(normalize(bad).is_err(), "{bad:?}");
        }
    }
}
