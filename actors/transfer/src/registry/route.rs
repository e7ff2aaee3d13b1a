//! The way to an image: which hosts are asked for it, in which order, and what must have happened before the next one is.
//!
//! The rule, which a report repeats: another host is asked where one can't be reached, hasn't got it (404), or is busy or failing
//! (429, 5xx). It is not where one refuses (401, 403), can't be trusted, or sends what doesn't fit: then the pull ends with that.
//! The registry itself is asked behind other hosts only where the table says so (D7 of the negative tests).

use std::path::PathBuf;

use cofferdam_types::{Error, Result};

use super::{
    Access, Wallet,
    guard::{self, Origin},
    hosts::{self, Can, Listing, Manner, Place},
    keys::bound,
    proxy::Proxies,
    tls,
};
use crate::Reference;

const FIRST: &str = "it is asked first";
const NEXT: &str = "it is asked where the one before can't be reached, hasn't got it (404), or is busy or failing (429, 5xx); not \
                    where that refuses (401, 403), can't be trusted, or sends what doesn't fit";

/// The operator's table, and the proxies.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    dir: Option<PathBuf>,
    pub(super) proxies: Proxies,
}

/// One host of a route.
#[derive(Debug)]
pub(super) struct Step {
    pub place: Place,
    pub manner: Manner,
    /// The file that names it.
    pub source: Option<PathBuf>,
    /// Whether it is the registry that the name says.
    pub own: bool,
    /// Nobody has said by which scheme.
    pub implied: bool,
}

/// The hosts for a registry.
#[derive(Debug)]
pub(super) struct Route {
    /// In the order in which they are asked.
    pub steps: Vec<Step>,
    files: Vec<PathBuf>,
}

/// What there is to say about a host of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// With scheme, port and the path before the repository.
    pub host: String,
    /// Whether it is the registry that the name says, and may be shown what a call has for that.
    pub own: bool,
    /// What it may be asked.
    pub can: Can,
    /// The file that names it.
    pub source: Option<PathBuf>,
    /// Where what it is shown comes from: `stored`, `file` or `none`.
    pub credential: &'static str,
    /// The proxy, without its user and password.
    pub proxy: Option<String>,
    /// Files of certificates.
    pub tls: Vec<PathBuf>,
    /// Whether whoever answers is believed.
    pub unverified: bool,
    /// What must have happened before it is asked.
    pub when: String,
}

impl Routes {
    /// With the table that lies in `dir`.
    pub fn new(dir: Option<PathBuf>, proxies: Proxies) -> Routes {
        Routes { dir, proxies }
    }

    /// The hosts for a registry. Reads files.
    pub(super) fn route(&self, host: &str) -> Result<Route> {
        let mut files = Vec::new();
        // The names of Docker Hub are one.
        let name = bound(host);
        let listing = match &self.dir {
            Some(dir) => hosts::find(dir, &name, &mut files)?,
            None => None,
        };
        Ok(Route { steps: steps(&name, listing), files })
    }

    /// Which hosts a pull would ask, and which files were looked at for that. Reads files, and asks nobody.
    pub fn explain(&self, reference: &Reference, wallet: &Wallet) -> Result<(Vec<Explained>, Vec<PathBuf>)> {
        let route = self.route(reference.host())?;
        let files = route.files.clone();
        let steps = route.of(&Access::Pull)?;
        let one = |(n, step): (usize, &Step)| self.explained(n, step, wallet);
        Ok((steps.iter().enumerate().map(one).collect::<Result<_>>()?, files))
    }

    fn explained(&self, n: usize, step: &Step, wallet: &Wallet) -> Result<Explained> {
        let (place, manner) = (&step.place, &step.manner);
        let https = step.https(false);
        let scheme = if https { "https" } else { "http" };
        let mut when = if n == 0 { FIRST } else { NEXT }.to_owned();
        match (manner.can.pull, manner.can.resolve) {
            (true, false) => when += "; only for what a digest names",
            (false, true) => when += "; only for what a tag stands for",
            _ => {}
        }
        let url = format!("{scheme}://{}{}", place.authority, place.path);
        let origin = url.parse().ok().as_ref().and_then(Origin::of);
        // Told without asking anybody.
        let certain = if https { tls::check(manner) } else { Ok(()) };
        let allowed = origin.as_ref().map_or(Ok(()), |origin| guard::check(origin, &origin.host));
        if let Err(error) = certain.and(allowed) {
            when += &format!("; as things are a pull ends with it: {error}");
        }
        let named = manner.headers.iter().any(|(name, _)| name == "authorization");
        let credential = match wallet.find(step.key())? {
            Some(_) => "stored",
            None if named => "file",
            None => "none",
        };
        let pair = manner.client.iter().flat_map(|(cert, key)| [Some(cert), key.as_ref()]);
        Ok(Explained {
            host: url,
            own: step.own,
            can: manner.can,
            source: step.source.clone(),
            credential,
            proxy: origin.and_then(|origin| self.proxies.shown_to(&origin)),
            tls: manner.ca.iter().map(Some).chain(pair).flatten().filter(|_| https).cloned().collect(),
            unverified: https && manner.skip_verify,
            when,
        })
    }
}

impl Step {
    /// What credentials for it are bound to.
    pub fn key(&self) -> &str {
        &self.place.authority
    }

    /// Whether it is spoken to by TLS. A host that is this machine is not, where nobody says that it has a certificate.
    pub fn https(&self, certified: bool) -> bool {
        let manner = &self.manner;
        let said = certified || !manner.ca.is_empty() || manner.client.is_some() || manner.skip_verify;
        self.place.https && !(self.implied && !said && guard::is_loopback(name_of(&self.place.authority)))
    }
}

impl Route {
    /// Those that may be asked for it. What is pushed goes to one host, and never to another instead.
    pub fn of(self, access: &Access) -> Result<Vec<Step>> {
        let source = self.steps.iter().find_map(|step| step.source.clone()).unwrap_or_default();
        let (may, most, what): (fn(Can) -> bool, usize, &str) = match access {
            Access::Pull => (|can| can.pull || can.resolve, usize::MAX, "pulled from"),
            Access::Push(_) => (|can| can.push, 1, "pushed to"),
        };
        let steps: Vec<Step> = self.steps.into_iter().filter(|step| may(step.manner.can)).take(most).collect();
        match steps.is_empty() {
            false => Ok(steps),
            true => {
                let why = format!("names no host that may be {what}: see the capabilities in it");
                Err(Error::failed_precondition("hosts", source.display(), why))
            }
        }
    }
}

fn steps(name: &str, listing: Option<Listing>) -> Vec<Step> {
    let authority = if name == "docker.io" { "registry-1.docker.io" } else { name };
    let origin = || Place { https: true, authority: authority.to_owned(), path: "/v2".into() };
    let Some(Listing { hosts, server, own: manner, origin: wanted, source }) = listing else {
        return vec![Step { place: origin(), manner: Manner::default(), source: None, own: true, implied: true }];
    };
    let source = Some(source);
    let is_own = |place: &Place| bound(&place.authority) == name;
    let alone = hosts.is_empty();
    let mut steps: Vec<Step> = hosts
        .into_iter()
        .map(|(place, manner)| Step { own: is_own(&place), place, manner, source: source.clone(), implied: false })
        .collect();
    let last = match server {
        Some(place) => Some((place, false)),
        None if alone || wanted => Some((origin(), true)),
        None => None,
    };
    if let Some((place, implied)) = last {
        steps.push(Step { own: is_own(&place), place, manner, source, implied });
    }
    steps
}

/// The host of an authority without its port.
pub(super) fn name_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Code;

    use super::*;

    struct Table(tempfile::TempDir);

    impl Table {
        fn of(files: &[(&str, &str)]) -> Table {
            let dir = tempfile::tempdir().unwrap();
            for (host, text) in files {
                std::fs::create_dir(dir.path().join(host)).unwrap();
                std::fs::write(dir.path().join(host).join("hosts.toml"), text).unwrap();
            }
            Table(dir)
        }

        fn routes(&self) -> Routes {
            Routes::new(Some(self.0.path().into()), Proxies::default())
        }

        fn hosts(&self, reference: &str) -> Vec<String> {
            let reference = Reference::parse(reference).unwrap();
            let (steps, _) = self.routes().explain(&reference, &Wallet::default()).unwrap();
            steps.into_iter().map(|step| step.host).collect()
        }
    }

    // D7 of the negative tests.
    #[test]
    fn d7_the_registry_itself_is_asked_behind_others_only_where_the_table_says_so() {
        let mirrors = "[host.\"https://m1\"]\n[host.\"https://m2\"]\n";
        let server = format!("server = \"https://h.io\"\n{mirrors}");
        let origin = format!("origin = true\n{mirrors}");
        for (text, want) in [
            (mirrors, &["https://m1/v2", "https://m2/v2"][..]),
            (&server, &["https://m1/v2", "https://m2/v2", "https://h.io/v2"]),
            (&origin, &["https://m1/v2", "https://m2/v2", "https://h.io/v2"]),
            ("", &["https://h.io/v2"]),
            ("server = \"http://other:80/x\"", &["http://other:80/x/v2"]),
            ("server = \"https://other/x\"\noverride_path = true", &["https://other/x"]),
        ] {
            assert_eq!(Table::of(&[("h.io", text)]).hosts("h.io/a:t"), want, "{text}");
        }
        let of_all = Table::of(&[("_default", &origin)]);
        assert_eq!(
            of_all.hosts("docker.io/library/a:t"),
            ["https://m1/v2", "https://m2/v2", "https://registry-1.docker.io/v2"]
        );
    }

    #[test]
    fn a_host_that_is_this_machine_is_spoken_to_without_tls_unless_somebody_says_that_it_has_a_certificate() {
        for (text, want) in [
            ("", "http://127.0.0.1:5000/v2"),
            ("skip_verify = true", "https://127.0.0.1:5000/v2"),
            ("ca = \"ca.crt\"", "https://127.0.0.1:5000/v2"),
            ("server = \"https://127.0.0.1:5000\"", "https://127.0.0.1:5000/v2"),
        ] {
            assert_eq!(Table::of(&[("127.0.0.1_5000_", text)]).hosts("127.0.0.1:5000/a:t"), [want], "{text}");
        }
        assert_eq!(Table::of(&[]).hosts("localhost:5000/a:t"), ["http://localhost:5000/v2"]);
    }

    #[test]
    fn a_report_says_why_each_is_asked_and_shows_no_secret() {
        let text = "server = \"https://h.io\"\nskip_verify = true\n[host.\"https://m1\"]\ncapabilities = [\"pull\"]\nca = \"m1.crt\"\n\
                    [host.\"https://m1\".header]\nauthorization = \"Basic hunter22\"\n";
        let table = Table::of(&[("h.io", text)]);
        let proxied = |name: &str| (name == "HTTPS_PROXY").then(|| "http://me:hunter22@p:3128".to_owned());
        let routes = Routes::new(Some(table.0.path().into()), Proxies::of(proxied).unwrap());
        let (steps, files) = routes.explain(&Reference::parse("h.io/a:t").unwrap(), &Wallet::default()).unwrap();
        assert!(!format!("{steps:?}").contains("hunter22"));
        let [first, second] = &*steps else { panic!("{steps:?}") };
        assert_eq!((first.credential, first.own, first.unverified), ("file", false, false));
        assert!(first.when.contains("asked first; only for what a digest names"), "{first:?}");
        assert_eq!(first.tls, [table.0.path().join("h.io/m1.crt")]);
        assert_eq!(first.proxy.as_deref(), Some("http://p:3128"));
        assert_eq!((second.credential, second.own, second.unverified), ("none", true, true));
        assert!(second.when.contains("404") && second.when.contains("not where that refuses"), "{second:?}");
        assert_eq!(files, [table.0.path().join("h.io/hosts.toml")]);
    }

    #[test]
    fn a_report_says_with_what_a_pull_ends() {
        let text = "server = \"http://169.254.169.254\"\n[host.\"https://m1\"]\nca = \"none.crt\"\n[host.\"https://m2\"]\n\
                    client = \"none.cert\"\n[host.\"https://m3\"]\n[host.\"http://m4\"]\nca = \"none.crt\"\n";
        let table = Table::of(&[("h.io", text)]);
        let (steps, _) = table.routes().explain(&Reference::parse("h.io/a:t").unwrap(), &Wallet::default()).unwrap();
        let ends: Vec<_> = steps.iter().map(|step| step.when.split_once("a pull ends with it: ")).collect();
        for (end, word) in [(0, "none.crt"), (1, "none.cert"), (4, "link-local")] {
            assert!(ends[end].is_some_and(|(_, why)| why.contains(word)), "{steps:?}");
        }
        // In the clear no certificate is looked at.
        assert_eq!((ends.len(), ends[2], ends[3]), (5, None, None), "{steps:?}");
    }

    #[test]
    fn what_is_pushed_goes_to_one_host() {
        let text = "server = \"https://h.io\"\n[host.\"https://m1\"]\ncapabilities = [\"pull\", \"resolve\"]\n";
        let pushed = |text: &str| {
            let route = Table::of(&[("h.io", text)]).routes().route("h.io").unwrap().of(&Access::Push(Vec::new()));
            route.map(|steps| steps.into_iter().map(|step| step.place.authority).collect::<Vec<_>>())
        };
        assert_eq!(pushed(text).unwrap(), ["h.io"]);
        assert_eq!(pushed("[host.\"https://m1\"]\n[host.\"https://m2\"]").unwrap(), ["m1"]);
        let error = pushed("[host.\"https://m1\"]\ncapabilities = [\"pull\"]").unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition);
        assert!(error.id.ends_with("h.io/hosts.toml") && error.message.contains("pushed to"), "{error}");
    }
}
