//! One host after the other, proxies, and hosts that ask to be left alone (D of the negative tests).

use std::{
    io::{BufRead, BufReader, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Instant,
};

use super::*;

/// A table of the operator's for one registry.
struct Table(tempfile::TempDir);

impl Table {
    /// For a server of a test.
    fn of(server: &Server, text: &str) -> Table {
        let table = Table(tempfile::tempdir().unwrap());
        let dir = table.0.path().join(format!("127.0.0.1_{}_", server.port));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), text).unwrap();
        table
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint { routes: Routes::new(Some(self.0.path().into()), Proxies::default()), ..with_credentials() }
    }
}

/// A table that has the mirror before the registry.
fn mirrored(origin: &Server, mirror: &Server, more: &str) -> Table {
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n{more}\n", origin.host(), mirror.host());
    Table::of(origin, &text)
}

fn good() -> Server {
    Server::new(|seen| match seen.path().contains("/blobs/") {
        true => Reply::ranged(seen, &blob()),
        false => manifest_reply(),
    })
}

fn paths(server: &Server) -> Vec<String> {
    server.seen().into_iter().map(|seen| format!("{} {}", seen.method, seen.target)).collect()
}

#[test]
fn the_next_host_is_asked_where_one_is_gone_has_nothing_or_is_busy() {
    let dead = Server::new(|_| Reply::ok(""));
    let dead_host = dead.host();
    drop(dead);
    for status in [404, 429, 500, 503] {
        let (origin, mirror) = (good(), Server::new(move |_| Reply::new(status, "{}")));
        let table = mirrored(&origin, &mirror, "");
        let repository = repository(&origin, &table.endpoint());
        repository.resolve(&Target::Tag("t".into())).unwrap();
        let bytes = blob();
        assert_eq!(read(&repository, &layer(&bytes), 0).unwrap(), bytes, "{status}");
        assert_eq!(paths(&mirror)[0], format!("HEAD /v2/a/b/manifests/t?ns={}", origin.host()), "it is told for whom");
        assert_eq!(paths(&origin)[0], "HEAD /v2/a/b/manifests/t");
        assert!(mirror.seen().iter().all(|seen| seen.header("authorization").is_none()), "D2");
    }
    // One that can't be reached is not tried again by the same job.
    let origin = good();
    let text = format!("server = \"http://{}\"\n[host.\"http://{dead_host}\"]\n", origin.host());
    let repository = repository(&origin, &Table::of(&origin, &text).endpoint());
    repository.resolve(&Target::Tag("t".into())).unwrap();
    repository.manifest(&Descriptor::new(media::OCI_MANIFEST, sha(MANIFEST), MANIFEST.len() as u64)).unwrap();
    assert_eq!(origin.seen().len(), 2);
}

#[test]
fn d7_a_host_that_refuses_or_lies_is_not_passed_over() {
    for (status, code, word) in [(403, Code::Denied, "forbids"), (401, Code::Denied, "without credentials")] {
        let origin = good();
        let mirror = Server::new(move |_| Reply::new(status, "{}").with("www-authenticate", "Basic realm=x"));
        let table = mirrored(&origin, &mirror, "");
        let error = fails(resolve(&origin, &table.endpoint()), code, word);
        assert!(error.message.contains(&format!("by way of {}", mirror.host())), "{error}");
        assert!(origin.seen().is_empty(), "{status}: {:?}", paths(&origin));
    }
    // A certificate that nobody vouches for: not even a registry that is spoken to in the clear is asked instead.
    let origin = good();
    let mirror = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = mirror.local_addr().unwrap();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = mirror.accept().unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 no TLS\r\n\r\n");
        let _ = stream.shutdown(Shutdown::Both);
    });
    let text = format!("server = \"http://{}\"\n[host.\"https://{at}\"]\n", origin.host());
    fails(resolve(&origin, &Table::of(&origin, &text).endpoint()), Code::Unavailable, "cannot be trusted");
    answering.join().unwrap();
    assert!(origin.seen().is_empty());
}

#[test]
fn d6_what_a_mirror_changes_is_refused_and_no_other_is_asked() {
    let origin = good();
    let mirror = Server::new(|_| Reply::ok("{}").with("content-type", media::OCI_MANIFEST));
    let table = mirrored(&origin, &mirror, "capabilities = [\"pull\"]");
    let repository = repository(&origin, &table.endpoint());
    let descriptor = repository.resolve(&Target::Tag("t".into())).unwrap().descriptor;
    fails(repository.manifest(&descriptor), Code::DataLoss, "sent");
    assert_eq!(paths(&origin), ["HEAD /v2/a/b/manifests/t"], "only the tag is the registry's to say");
}

#[test]
fn d7_without_a_word_of_the_table_the_registry_itself_is_not_asked() {
    let (origin, mirror) = (good(), Server::new(|_| Reply::new(404, "{}")));
    let table = Table::of(&origin, &format!("[host.\"http://{}\"]\n", mirror.host()));
    fails(resolve(&origin, &table.endpoint()), Code::NotFound, "check the name");
    assert!(origin.seen().is_empty());
}

#[test]
fn what_failed_before_is_told_with_what_fails_last() {
    let (origin, mirror) = (Server::new(|_| Reply::new(404, "{}")), Server::new(|_| Reply::new(500, "{}")));
    let table = mirrored(&origin, &mirror, "");
    let error = fails(resolve(&origin, &table.endpoint()), Code::NotFound, "check the name");
    assert!(error.message.contains(&format!("(before that: {} answered 500)", mirror.host())), "{error}");
}

#[test]
fn d2_what_a_host_is_shown_goes_to_that_host_alone() {
    let elsewhere = Server::new(|_| Reply::new(404, ""));
    let challenge = |_: &Seen| Reply::new(401, "").with("www-authenticate", "Basic realm=\"r\"");
    let origin = Server::new(move |seen| match seen.header("authorization") {
        Some(_) => manifest_reply(),
        None => challenge(seen),
    });
    let to = format!("http://{}/stored", elsewhere.host());
    let mirror = Server::new(move |seen| match seen.path().contains("/blobs/") {
        true => Reply::new(307, "").with("location", &to),
        false => Reply::new(404, ""),
    });
    let table = mirrored(&origin, &mirror, "[host.\"http://HOST\".header]\nx-mirror = \"mirrors-secret\"");
    let file = table.0.path().join(format!("127.0.0.1_{}_/hosts.toml", origin.port));
    let text = std::fs::read_to_string(&file).unwrap().replace("HOST", &mirror.host());
    std::fs::write(&file, text).unwrap();
    let repository = repository(&origin, &table.endpoint());
    repository.resolve(&Target::Tag("t".into())).unwrap();
    assert_eq!(mirror.seen()[0].header("x-mirror"), Some("mirrors-secret"));
    assert!(mirror.seen().iter().all(|seen| seen.header("authorization").is_none()));
    let asked = origin.seen();
    assert!(asked.iter().any(|seen| seen.header("authorization").is_some()));
    assert!(asked.iter().all(|seen| seen.header("x-mirror").is_none()));
    // D4: the mirror leads to this machine, which nobody has named at that place. D2: nothing goes along where it leads.
    let bytes = blob();
    let _ = read(&repository, &layer(&bytes), 0);
    assert!(
        elsewhere.seen().iter().all(|seen| seen.header("x-mirror").is_none() && seen.header("authorization").is_none())
    );
}

#[test]
fn a_host_that_may_only_be_pulled_from_is_not_asked_what_a_tag_stands_for() {
    let (origin, mirror) = (good(), good());
    let table = mirrored(&origin, &mirror, "capabilities = [\"pull\"]");
    let repository = repository(&origin, &table.endpoint());
    let found = repository.resolve(&Target::Tag("t".into())).unwrap();
    repository.manifest(&found.descriptor).unwrap();
    assert_eq!(paths(&origin), ["HEAD /v2/a/b/manifests/t"]);
    assert_eq!(mirror.seen().len(), 1);
    let table = Table::of(&origin, &format!("[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n", mirror.host()));
    fails(resolve(&origin, &table.endpoint()), Code::FailedPrecondition, "by its digest");
}

#[test]
fn a_mirror_may_lie_below_a_path() {
    let (origin, mirror) = (good(), good());
    for (url, more, want) in [
        ("/cache", "", "/cache/v2/a/b/manifests/t"),
        ("/cache/v2", "", "/cache/v2/a/b/manifests/t"),
        ("/cache", "override_path = true", "/cache/a/b/manifests/t"),
    ] {
        let text = format!("[host.\"http://{}{url}\"]\n{more}\n", mirror.host());
        resolve(&origin, &Table::of(&origin, &text).endpoint()).unwrap();
        assert_eq!(mirror.seen().last().unwrap().path(), want);
    }
}

#[test]
fn a_host_that_is_busy_is_left_alone_for_as_long_as_it_asks() {
    let count = AtomicUsize::new(0);
    let server = Server::new(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(429, "").with("retry-after", 1),
        1 => Reply::new(503, "").with("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
        _ => manifest_reply(),
    });
    let begun = Instant::now();
    resolve(&server, &endpoint()).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    // One in between that knows when the registry will be there.
    let count = AtomicUsize::new(0);
    let server = Server::new(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(504, "").with("retry-after", 1),
        _ => manifest_reply(),
    });
    let begun = Instant::now();
    resolve(&server, &endpoint()).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(900) && server.seen().len() == 2, "{:?}", begun.elapsed());
    // Longer than anybody would wait: that is said, at once.
    let server = Server::new(|_| Reply::new(429, "").with("retry-after", 86400));
    let begun = Instant::now();
    fails(resolve(&server, &endpoint()), Code::Unavailable, "left alone, for 86400 s");
    assert!(begun.elapsed() < Duration::from_secs(30) && server.seen().len() == 2, "HEAD, and GET for the reason");
}

#[test]
fn a_token_that_has_ended_is_replaced_before_it_is_refused() {
    let count = AtomicUsize::new(0);
    let server = Server::new(move |seen| {
        if seen.path() == "/token" {
            let n = count.fetch_add(1, Ordering::SeqCst);
            return Reply::ok(format!("{{\"token\":\"tok-{n}\",\"expires_in\":0.02}}"));
        }
        let challenge = format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap());
        match seen.header("authorization") {
            Some(_) => manifest_reply(),
            None => Reply::new(401, "").with("www-authenticate", challenge),
        }
    });
    let repository = repository(&server, &endpoint());
    repository.resolve(&Target::Tag("t".into())).unwrap();
    // The time that it was good for goes by.
    std::thread::sleep(Duration::from_millis(30));
    repository.resolve(&Target::Tag("t".into())).unwrap();
    let last = server.seen().pop().unwrap();
    assert_ne!(last.header("authorization"), Some("Bearer tok-0"));
    let refused =
        server.seen().iter().filter(|seen| seen.path() != "/token" && seen.header("authorization").is_none()).count();
    assert_eq!(refused, 1, "only the first was sent without a token");
}

#[test]
fn a_token_that_a_registry_refuses_later_is_replaced() {
    // Both are on the way: that it has ended, and that a registry forgets it.
    let count = Arc::new(AtomicUsize::new(0));
    let good = count.clone();
    let server = Server::new(move |seen| {
        if seen.path() == "/token" {
            return Reply::ok(format!("{{\"token\":\"tok-{}\"}}", good.load(Ordering::SeqCst)));
        }
        let want = format!("Bearer tok-{}", good.load(Ordering::SeqCst));
        let challenge = format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap());
        match seen.header("authorization") == Some(&want) {
            true => manifest_reply(),
            false => Reply::new(401, "").with("www-authenticate", challenge),
        }
    });
    let repository = repository(&server, &endpoint());
    for n in 0..3 {
        count.store(n, Ordering::SeqCst);
        repository.resolve(&Target::Tag("t".into())).unwrap();
    }
}

/// A proxy that leads everywhere to one server, and what it was asked.
struct Proxy {
    at: String,
    asked: Arc<Mutex<Vec<String>>>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    fn to(server: &Server, status: &'static str) -> Proxy {
        let (listener, to) = (TcpListener::bind("127.0.0.1:0").unwrap(), server.host());
        let at = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut head, mut line) = (String::new(), String::new());
                while reader.read_line(&mut line).unwrap() > 2 {
                    head += &std::mem::take(&mut line);
                }
                if head.is_empty() {
                    return;
                }
                log.lock().unwrap().push(head);
                let mut client = stream;
                client.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).unwrap();
                if !status.starts_with("200") {
                    continue;
                }
                let mut server = TcpStream::connect(&to).unwrap();
                let mut back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut reader, &mut server);
                    let _ = server.shutdown(Shutdown::Write);
                });
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut back.0, &mut back.1);
                    let _ = back.1.shutdown(Shutdown::Both);
                });
            }
        });
        Proxy { at, asked, accepting: Some(accepting) }
    }

    fn proxies(&self, without: &str) -> Proxies {
        let of = |name: &str| match name {
            "HTTP_PROXY" => Some(format!("http://me:proxys-own@{}", self.at)),
            "NO_PROXY" => Some(without.to_owned()),
            _ => None,
        };
        Proxies::of(of).unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // An empty request ends it.
        drop(TcpStream::connect(&self.at));
        self.accepting.take().unwrap().join().unwrap();
    }
}

#[test]
fn a_proxy_is_asked_for_the_host_and_alone_is_told_its_password() {
    let server = good();
    let proxy = Proxy::to(&server, "200 OK");
    let through = |proxies: Proxies| {
        let routes = Routes::new(None, proxies);
        let endpoint = Endpoint { plain_http: true, routes, ..with_credentials() };
        let reference = Reference::parse("registry.invalid:5000/a/b:t").unwrap();
        Repository::new(&reference, &endpoint, &Cancel::new()).unwrap().resolve(&Target::Tag("t".into()))
    };
    through(proxy.proxies("")).unwrap();
    let asked = proxy.asked.lock().unwrap().clone();
    assert!(asked[0].starts_with("CONNECT registry.invalid:5000 "), "{asked:?}");
    assert!(asked[0].contains("Proxy-Authorization: Basic bWU6cHJveHlzLW93bg=="), "{asked:?}");
    assert!(server.seen().iter().all(|seen| seen.header("proxy-authorization").is_none()));
    // Without it the name leads nowhere.
    fails(through(proxy.proxies(".invalid")), Code::Unavailable, "cannot be reached at registry.invalid:5000");
    assert_eq!(proxy.asked.lock().unwrap().len(), asked.len());
    // One that refuses is said to, and what it was told isn't.
    let refusing = Proxy::to(&server, "407 no");
    let error =
        fails(through(refusing.proxies("")), Code::Unavailable, &format!("by the proxy http://{}", refusing.at));
    assert!(!error.to_string().contains("proxys-own"), "D8: {error}");
}
