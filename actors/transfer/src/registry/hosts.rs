//! The operator's table of hosts: a directory for each registry, with a `hosts.toml` as containerd's, or with certificates alone
//! as docker's.
//!
//! What can't be read is an error with its file and line, never a rule that is passed over: the next one could lead elsewhere.

use std::{
    io::{ErrorKind, Read},
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use cofferdam_types::{Error, Result};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};
use ureq::http::{HeaderName, HeaderValue, Uri};

use crate::plain::open_plain;

/// For every registry that has no directory of its own.
const DEFAULT: &str = "_default";
const FILE: &str = "hosts.toml";
/// Bytes of a file.
const MAX_FILE: u64 = 256 << 10;
/// Hosts in one file, and certificates in one directory.
const MAX_HOSTS: usize = 32;

/// What a host may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Can {
    /// For what a digest names.
    pub pull: bool,
    /// What a tag stands for.
    pub resolve: bool,
    /// To take what is pushed.
    pub push: bool,
}

impl Can {
    pub(super) const ALL: Can = Can { pull: true, resolve: true, push: true };

    /// As they are written.
    pub fn words(self) -> Vec<&'static str> {
        let all = [("pull", self.pull), ("resolve", self.resolve), ("push", self.push)];
        all.into_iter().filter(|(_, can)| *can).map(|(word, _)| word).collect()
    }
}

/// How one host is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manner {
    pub can: Can,
    pub ca: Vec<PathBuf>,
    /// A certificate, and its key if that is in another file.
    pub client: Option<(PathBuf, Option<PathBuf>)>,
    pub skip_verify: bool,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub override_path: bool,
    pub dial: Option<Duration>,
    /// Hosts of token services, with a port or without, that are given the credentials too.
    pub realms: Vec<String>,
}

impl Default for Manner {
    fn default() -> Manner {
        Manner {
            can: Can::ALL,
            ca: Vec::new(),
            client: None,
            skip_verify: false,
            headers: Vec::new(),
            override_path: false,
            dial: None,
            realms: Vec::new(),
        }
    }
}

/// Where a host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub https: bool,
    /// Host and port, as written but in lower case.
    pub authority: String,
    /// Before the repository: `/v2`, or what stands in its place.
    pub path: String,
}

/// What a directory says.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// In the order of the file.
    pub hosts: Vec<(Place, Manner)>,
    /// The one that is asked last. None: the registry itself.
    pub server: Option<Place>,
    pub own: Manner,
    /// Whether the registry itself is asked though other hosts are named and it is not.
    pub origin: bool,
    /// What it was read from.
    pub source: PathBuf,
}

/// What the table has for a registry, and which files were looked at for it.
pub(super) fn find(root: &Path, host: &str, looked: &mut Vec<PathBuf>) -> Result<Option<Listing>> {
    for name in names(host) {
        let dir = root.join(name);
        let file = dir.join(FILE);
        looked.push(file.clone());
        if let Some(text) = read(&file)? {
            return parse(&file, &text).map(Some);
        }
        // A directory that holds nothing of use hides no other.
        if let Some(listing) = certificates(&dir)? {
            return Ok(Some(listing));
        }
    }
    Ok(None)
}

/// The directories that a registry may have, the best first.
fn names(host: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((name, port)) = host.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
        names.push(format!("{name}_{port}_"));
    }
    names.extend([host.to_owned(), DEFAULT.to_owned()]);
    names
}

/// A file of the table, whole; `None` where there is none.
fn read(path: &Path) -> Result<Option<String>> {
    let unreadable = |e| crate::from_io("hosts", path.display(), "can't be read", e);
    let file = match open_plain("hosts", path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(unreadable(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        let why = format!("has more than {MAX_FILE} bytes: a table of hosts has a few lines");
        return Err(Error::failed_precondition("hosts", path.display(), why));
    }
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|_| Error::failed_precondition("hosts", path.display(), "is not UTF-8"))
}

/// A directory as docker has them: `*.crt` is trusted, `*.cert` is shown, with the key in `*.key`.
fn certificates(dir: &Path) -> Result<Option<Listing>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(Error::io("hosts", dir.display(), "can't be listed", &e)),
    };
    let wrong = |path: &Path, why: &str| Err(Error::failed_precondition("hosts", path.display(), why));
    let (mut ca, mut certs, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    for entry in entries.take(MAX_HOSTS * 4) {
        let path = entry.map_err(|e| Error::io("hosts", dir.display(), "can't be listed", &e))?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => ca.push(path),
            Some("cert") => certs.push(path),
            Some("key") => keys.push(path),
            _ => {}
        }
    }
    ca.sort();
    let client = match &*certs {
        [] => match keys.first() {
            Some(key) => return wrong(key, "has no certificate beside it: the same name with .cert"),
            None => None,
        },
        [cert] => {
            let key = cert.with_extension("key");
            if !keys.contains(&key) {
                return wrong(cert, "has no key beside it: the same name with .key");
            }
            Some((cert.clone(), Some(key)))
        }
        [_, second, ..] => return wrong(second, "is one certificate too many: a registry is shown one"),
    };
    if ca.is_empty() && client.is_none() {
        return Ok(None);
    }
    let own = Manner { ca, client, ..Manner::default() };
    Ok(Some(Listing { own, origin: true, source: dir.to_owned(), ..Listing::default() }))
}

/// A file that is being read.
struct Reader<'t> {
    file: &'t Path,
    text: &'t str,
}

type Value<'t> = Spanned<DeValue<'t>>;

fn parse(file: &Path, text: &str) -> Result<Listing> {
    let reader = Reader { file, text };
    let document = DeTable::parse(text)
        .map_err(|e| reader.wrong(e.span().unwrap_or_default(), format!("is no TOML: {}", e.message())))?;
    let mut listing = Listing { source: file.to_owned(), ..Listing::default() };
    for (key, value) in document.get_ref() {
        match &**key.get_ref() {
            // How its path is read depends on the rest of the file.
            "server" => {}
            "origin" => listing.origin = reader.flag(value)?,
            "host" => listing.hosts = reader.hosts(value)?,
            word => reader.manner(word, key.span(), value, &mut listing.own)?,
        }
    }
    if let Some((_, value)) = document.get_ref().iter().find(|(key, _)| key.get_ref() == "server") {
        listing.server = Some(reader.place(reader.text_of(value)?, value.span(), listing.own.override_path)?);
    }
    Ok(listing)
}

impl<'t> Reader<'t> {
    fn wrong(&self, at: Range<usize>, why: impl std::fmt::Display) -> Error {
        let line = self.text.bytes().take(at.start).filter(|b| *b == b'\n').count() + 1;
        Error::failed_precondition("hosts", format!("{}:{line}", self.file.display()), why.to_string())
    }

    fn text_of<'v>(&self, value: &'v Value<'_>) -> Result<&'v str> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text),
            _ => Err(self.wrong(value.span(), "must be a text")),
        }
    }

    fn flag(&self, value: &Value<'_>) -> Result<bool> {
        match value.get_ref() {
            DeValue::Boolean(flag) => Ok(*flag),
            _ => Err(self.wrong(value.span(), "must be true or false")),
        }
    }

    /// A text, or a list of them.
    fn texts<'v>(&self, value: &'v Value<'_>) -> Result<Vec<&'v str>> {
        match value.get_ref() {
            DeValue::String(text) => Ok(vec![&**text]),
            DeValue::Array(all) => all.iter().map(|one| self.text_of(one)).collect(),
            _ => Err(self.wrong(value.span(), "must be a text or a list of texts")),
        }
    }

    fn hosts(&self, value: &Value<'_>) -> Result<Vec<(Place, Manner)>> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.wrong(value.span(), "must be tables: write [host.\"https://name\"]"));
        };
        if table.len() > MAX_HOSTS {
            return Err(self.wrong(value.span(), format!("has {} hosts, and may have {MAX_HOSTS}", table.len())));
        }
        let mut hosts = Vec::new();
        for (name, value) in table {
            let DeValue::Table(fields) = value.get_ref() else {
                return Err(self.wrong(value.span(), "must be a table: write [host.\"https://name\"]"));
            };
            let mut manner = Manner::default();
            for (key, value) in fields {
                self.manner(key.get_ref(), key.span(), value, &mut manner)?;
            }
            let place = self.place(name.get_ref(), name.span(), manner.override_path)?;
            hosts.push((name.span().start, (place, manner)));
        }
        // The order of the file is that in which they are asked.
        hosts.sort_by_key(|(at, _)| *at);
        Ok(hosts.into_iter().map(|(_, host)| host).collect())
    }

    fn manner(&self, word: &str, at: Range<usize>, value: &Value<'_>, manner: &mut Manner) -> Result<()> {
        match word {
            "capabilities" => {
                let mut can = Can { pull: false, resolve: false, push: false };
                for word in self.texts(value)? {
                    match word {
                        "pull" => can.pull = true,
                        "resolve" => can.resolve = true,
                        "push" => can.push = true,
                        other => {
                            let why = format!("{other:?} is no capability: give pull, resolve and push");
                            return Err(self.wrong(value.span(), why));
                        }
                    }
                }
                manner.can = can;
            }
            "ca" => manner.ca = self.texts(value)?.into_iter().map(|path| self.beside(path)).collect(),
            "client" => manner.client = Some(self.client(value)?),
            "skip_verify" => manner.skip_verify = self.flag(value)?,
            "override_path" => manner.override_path = self.flag(value)?,
            "header" => manner.headers = self.headers(value)?,
            "dial_timeout" => {
                let dial = span(self.text_of(value)?).filter(|span| !span.is_zero());
                let wrong = || self.wrong(value.span(), "must be a time such as 10s, 500ms or 1m30s");
                manner.dial = Some(dial.ok_or_else(wrong)?);
            }
            "trusted_realms" => manner.realms = self.texts(value)?.into_iter().map(str::to_owned).collect(),
            other => {
                let why = format!(
                    "{other:?} is not known: a host has capabilities, ca, client, skip_verify, override_path, header, \
                     dial_timeout and trusted_realms, and the file server, origin and host"
                );
                return Err(self.wrong(at, why));
            }
        }
        Ok(())
    }

    /// A file with both, or a list of one such file or of one pair.
    fn client(&self, value: &Value<'_>) -> Result<(PathBuf, Option<PathBuf>)> {
        let several = || self.wrong(value.span(), "names several certificates: a registry is shown one");
        let one = match value.get_ref() {
            DeValue::Array(all) if all.len() > 1 => return Err(several()),
            DeValue::Array(all) => all.first().ok_or_else(|| self.wrong(value.span(), "is empty"))?,
            _ => value,
        };
        match &*self.texts(one)? {
            [both] => Ok((self.beside(both), None)),
            [cert, key] if !key.is_empty() => Ok((self.beside(cert), Some(self.beside(key)))),
            [cert, _] => Ok((self.beside(cert), None)),
            _ => Err(self.wrong(one.span(), "must be a certificate and its key")),
        }
    }

    fn headers(&self, value: &Value<'_>) -> Result<Vec<(HeaderName, HeaderValue)>> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.wrong(value.span(), "must be a table of names and values"));
        };
        let mut headers = Vec::new();
        for (name, value) in table {
            // What an exchange is made of is not up to a file.
            const OURS: [&str; 7] = [
                "host",
                "content-length",
                "content-type",
                "transfer-encoding",
                "connection",
                "range",
                "accept-encoding",
            ];
            let parsed = HeaderName::from_bytes(name.get_ref().as_bytes());
            let known = parsed.ok().filter(|name| !OURS.contains(&name.as_str()));
            let name = known.ok_or_else(|| self.wrong(name.span(), "is no header that can be set"))?;
            for text in self.texts(value)? {
                // Not the text itself: it may be a secret.
                let mut value = HeaderValue::from_str(text)
                    .map_err(|_| self.wrong(value.span(), format!("is no value of the header {name}")))?;
                value.set_sensitive(true);
                headers.push((name.clone(), value));
            }
        }
        Ok(headers)
    }

    fn place(&self, text: &str, at: Range<usize>, override_path: bool) -> Result<Place> {
        let whole = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let wrong = |why: &str| self.wrong(at.clone(), format!("{why}: give such as https://name:5000"));
        let uri: Uri = whole.parse().map_err(|_| wrong("is no URL of a host"))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("is neither https nor http")),
        };
        let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        if authority.is_empty() || authority.contains('@') || uri.query().is_some() {
            return Err(wrong("is not the URL of a host alone"));
        }
        let written = uri.path().trim_end_matches('/');
        if written.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(wrong("has a path with dots"));
        }
        let path = match override_path || written.ends_with("/v2") {
            true => written.to_owned(),
            false => format!("{written}/v2"),
        };
        Ok(Place { https, authority: authority.to_ascii_lowercase(), path })
    }

    fn beside(&self, path: &str) -> PathBuf {
        self.file.parent().map_or_else(|| path.into(), |dir| dir.join(path))
    }
}

/// A time as Go writes them.
fn span(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
        rest = &rest[letters..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Code;

    use super::*;

    fn parsed(text: &str) -> Result<Listing> {
        parse(Path::new("/etc/h.io/hosts.toml"), text)
    }

    #[test]
    fn a_file_as_containerd_has_it() {
        let listing = parsed(
            r#"
server = "https://registry-1.docker.io"
[host."https://z.mirror:5000"]
  capabilities = ["pull", "resolve"]
  ca = "ca.pem"
  client = [["/abs/a.cert", "a.key"]]
  dial_timeout = "1m30s"
  [host."https://z.mirror:5000".header]
    x-one = "1"
    x-two = ["2", "3"]
[host."http://A.mirror/harbor/proxy"]
  capabilities = ["pull"]
  override_path = true
  skip_verify = true
[host."plain.name/some/v2"]
"#,
        )
        .unwrap();
        let at = |https, authority: &str, path: &str| Place { https, authority: authority.into(), path: path.into() };
        let places: Vec<_> = listing.hosts.iter().map(|(place, _)| place.clone()).collect();
        let want = [
            at(true, "z.mirror:5000", "/v2"),
            at(false, "a.mirror", "/harbor/proxy"),
            at(true, "plain.name", "/some/v2"),
        ];
        assert_eq!(places, want, "in the order of the file");
        assert_eq!(listing.server, Some(at(true, "registry-1.docker.io", "/v2")));
        let first = &listing.hosts[0].1;
        assert_eq!(first.can.words(), ["pull", "resolve"]);
        assert_eq!(first.ca, [PathBuf::from("/etc/h.io/ca.pem")]);
        assert_eq!(first.client, Some(("/abs/a.cert".into(), Some("/etc/h.io/a.key".into()))));
        assert_eq!((first.dial, first.headers.len()), (Some(Duration::from_secs(90)), 3));
        assert!(listing.hosts[1].1.skip_verify && listing.hosts[2].1.can == Can::ALL);
        assert!(!format!("{first:?}").contains("\"1\""), "a header may hold a secret");
    }

    #[test]
    fn what_is_wrong_has_its_file_and_line() {
        for (text, line, word) in [
            ("server = \"https://a\"\nserver = 1", 2, "is no TOML"),
            ("[host", 1, "is no TOML"),
            ("\n\nserver = 7", 3, "must be a text"),
            ("server = \"ftp://a\"", 1, "neither https nor http"),
            ("server = \"https://user@a\"", 1, "URL of a host alone"),
            ("server = \"https://a/x/../y\"", 1, "dots"),
            ("skip-verify = true", 1, "\"skip-verify\" is not known"),
            ("[host.\"https://a\"]\nskip_verify = \"yes\"", 2, "true or false"),
            ("[host.\"https://a\"]\n\ncapabilities = [\"pull\", \"fly\"]", 3, "\"fly\" is no capability"),
            ("[host.\"https://a\"]\ndial_timeout = \"10\"", 2, "must be a time"),
            ("[host.\"https://a\"]\nclient = [[\"a\",\"b\"],[\"c\",\"d\"]]", 2, "several certificates"),
            ("[host.\"https://a\".header]\nhost = \"evil\"", 2, "no header that can be set"),
            ("[host.\"https://a\".header]\nx = \"s3cret\\n\"", 2, "no value of the header"),
            ("host = 3", 1, "must be tables"),
        ] {
            let error = parsed(text).unwrap_err();
            assert_eq!(
                (error.code, error.id.as_ref()),
                (Code::FailedPrecondition, &*format!("/etc/h.io/hosts.toml:{line}")),
                "{error}"
            );
            assert!(error.message.contains(word) && !error.message.contains("s3cret"), "{text}: {error}");
        }
    }

    #[test]
    fn the_directory_of_a_host_comes_before_the_default_and_one_without_use_hides_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let found = |host: &str| {
            let mut looked = Vec::new();
            let found = find(dir.path(), host, &mut looked).unwrap();
            let short = |path: &Path| path.strip_prefix(dir.path()).unwrap().display().to_string();
            (found.map(|listing| short(&listing.source)), looked.iter().map(|path| short(path)).collect::<Vec<_>>())
        };
        assert_eq!(found("h.io"), (None, vec!["h.io/hosts.toml".into(), "_default/hosts.toml".into()]));
        put("_default/hosts.toml", "origin = true");
        assert_eq!(found("h.io").0.as_deref(), Some("_default/hosts.toml"));
        // A directory in which something else is kept.
        put("h.io/auth.json", "{}");
        assert_eq!(found("h.io").0.as_deref(), Some("_default/hosts.toml"));
        put("h.io/ca.crt", "");
        assert_eq!(found("h.io").0.as_deref(), Some("h.io"));
        put("h.io/hosts.toml", "");
        assert_eq!(found("h.io").0.as_deref(), Some("h.io/hosts.toml"));
        assert_eq!(found("h.io:5000").0.as_deref(), Some("_default/hosts.toml"));
        put("h.io_5000_/hosts.toml", "");
        assert_eq!(found("h.io:5000").0.as_deref(), Some("h.io_5000_/hosts.toml"));
        assert_eq!(names("[::1]:5000"), ["[::1]_5000_", "[::1]:5000", "_default"]);
        assert_eq!(names("[::1]"), ["[::1]", "_default"]);

        // What would be waited for without end.
        std::fs::create_dir(dir.path().join("fifo")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo/hosts.toml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = find(dir.path(), "fifo", &mut Vec::new()).unwrap_err();
        assert!(error.code == Code::FailedPrecondition && error.id.ends_with("fifo/hosts.toml"), "{error}");

        put("one/a.cert", "");
        let error = find(dir.path(), "one", &mut Vec::new()).unwrap_err();
        assert!(error.id.ends_with("one/a.cert") && error.message.contains(".key"), "{error}");
        put("one/a.key", "");
        assert!(find(dir.path(), "one", &mut Vec::new()).unwrap().unwrap().own.client.is_some());
    }

    #[test]
    fn times_are_written_as_in_go() {
        let ms = Duration::from_millis;
        for (text, want) in [("10s", Some(ms(10_000))), ("1m0.5s", Some(ms(60_500))), ("250ms", Some(ms(250)))] {
            assert_eq!(span(text), want, "{text}");
        }
        for text in ["", "10", "s", "1x", "-1s", "1s2"] {
            assert_eq!(span(text), None, "{text:?}");
        }
    }
}
