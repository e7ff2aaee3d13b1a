//! A registry that misbehaves, and what comes of it (D and M of the negative tests).

use std::{
    io::Read,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cofferdam_types::{Algorithm, Code, Descriptor, Digest, Error, Result, media};

use super::*;
use crate::{
    from_io,
    testing::server::{Reply, Seen, Server, Then},
};

mod routes;

fn limits() -> Limits {
    Limits {
        connect: Duration::from_secs(5),
        header: Duration::from_millis(300),
        idle: Duration::from_millis(300),
        backoff: Duration::from_millis(1),
        ..Limits::default()
    }
}

fn endpoint() -> Endpoint {
    Endpoint { limits: limits(), ..Endpoint::default() }
}

/// As users have it, but for the pauses: what is slow here isn't the registry.
fn unhurried() -> Endpoint {
    let limits = Limits { backoff: Duration::from_millis(1), ..Limits::default() };
    Endpoint { limits, ..Endpoint::default() }
}

fn with_credentials() -> Endpoint {
    Endpoint { credentials: Some(Credentials { user: "me".into(), secret: "hunter22".into() }), ..endpoint() }
}

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;

fn sha(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

fn manifest_reply() -> Reply {
    Reply::ok(MANIFEST).with("content-type", media::OCI_MANIFEST).with("docker-content-digest", sha(MANIFEST))
}

fn repository(server: &Server, endpoint: &Endpoint) -> Repository {
    let reference = Reference::parse(&format!("{}/a/b:t", server.host())).unwrap();
    Repository::new(&reference, endpoint, &Cancel::new()).unwrap()
}

fn resolve(server: &Server, endpoint: &Endpoint) -> Result<Resolved> {
    repository(server, endpoint).resolve(&Target::Tag("t".into()))
}

fn blob() -> Vec<u8> {
    (0..200_000u32).flat_map(|n| n.to_le_bytes()).collect()
}

fn layer(bytes: &[u8]) -> Descriptor {
    Descriptor::new(media::OCI_LAYER, sha(bytes), bytes.len() as u64)
}

fn read(repository: &Repository, descriptor: &Descriptor, offset: u64) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    repository.blob(descriptor, offset)?.read_to_end(&mut out).map_err(|e| from_io("blob", "", "read", e))?;
    Ok(out)
}

fn fails(what: Result<impl std::fmt::Debug>, code: Code, word: &str) -> Error {
    let error = what.unwrap_err();
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.contains(word), "{error} should say {word:?}");
    error
}

#[test]
fn a_head_answer_is_enough() {
    let server = Server::new(|_| manifest_reply());
    let resolved = resolve(&server, &endpoint()).unwrap();
    assert_eq!(resolved.descriptor, Descriptor::new(media::OCI_MANIFEST, sha(MANIFEST), MANIFEST.len() as u64));
    assert!(resolved.body.is_none());
    let seen = server.seen();
    assert_eq!((seen.len(), seen[0].method.as_str(), seen[0].target.as_str()), (1, "HEAD", "/v2/a/b/manifests/t"));
}

#[test]
fn a_registry_that_refuses_head_or_leaves_out_the_digest() {
    for (status, described) in [(405, true), (200, false)] {
        let server = Server::new(move |seen| match (seen.method.as_str(), described) {
            ("HEAD", true) => Reply::new(status, ""),
            _ => Reply::ok(MANIFEST).with("content-type", media::OCI_MANIFEST),
        });
        let resolved = resolve(&server, &endpoint()).unwrap();
        assert_eq!(resolved.descriptor.digest, sha(MANIFEST));
        assert_eq!(resolved.body.as_deref(), Some(MANIFEST));
    }
}

#[test]
fn a_dead_registry_is_unavailable() {
    let port = Server::new(|_| Reply::ok("")).port;
    let reference = Reference::parse(&format!("127.0.0.1:{port}/a:t")).unwrap();
    let repository = Repository::new(&reference, &endpoint(), &Cancel::new()).unwrap();
    let error = repository.resolve(&Target::Tag("t".into())).unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    let (where_, why) =
        (format!("cannot be reached at 127.0.0.1:{port}"), "connection refused: check its name and port");
    assert!(error.message.contains(&where_) && error.message.contains(why), "{error}");
}

#[test]
fn statuses_have_their_codes() {
    for (status, code, word) in [
        (404, Code::NotFound, "check the name"),
        (403, Code::Denied, "right to pull"),
        (401, Code::Denied, "neither Basic nor Bearer"),
        (429, Code::Unavailable, "too many requests"),
        (500, Code::Unavailable, "try again later"),
        (418, Code::FailedPrecondition, "unexpected status 418"),
    ] {
        let server = Server::new(move |_| Reply::new(status, r#"{"errors":[{"code":"C","message":"m\u001b[31m"}]}"#));
        let error = fails(resolve(&server, &endpoint()), code, word);
        assert!(!error.message.contains('\u{1b}'));
    }
}

#[test]
fn a_busy_registry_is_asked_again() {
    for busy in [|| Reply::new(503, "").with("retry-after", 0), || Reply::new(500, "")] {
        let count = AtomicUsize::new(0);
        let server = Server::new(move |_| match count.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => busy(),
            _ => manifest_reply(),
        });
        resolve(&server, &unhurried()).unwrap();
        assert!(server.seen().iter().all(|seen| seen.method == "HEAD"));
    }
}

#[test]
fn a_manifest_that_breaks_off_is_asked_for_again_a_few_times() {
    for (times, there) in [(1, true), (2, true), (usize::MAX, false)] {
        let count = AtomicUsize::new(0);
        let server = Server::new(move |seen| match seen.method.as_str() {
            "GET" if count.fetch_add(1, Ordering::SeqCst) < times => manifest_reply().then(Then::Cut(10)),
            _ => manifest_reply(),
        });
        let descriptor = Descriptor::new(media::OCI_MANIFEST, sha(MANIFEST), MANIFEST.len() as u64);
        let got = repository(&server, &unhurried()).manifest(&descriptor);
        if there {
            assert_eq!(got.unwrap(), MANIFEST);
            assert_eq!(server.seen().len(), times + 1);
        } else {
            fails(got, Code::Unavailable, "");
            assert_eq!(server.seen().len(), TRIES as usize);
        }
    }
    // A connection that ends before there is an answer: as a server does that is restarted.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let once = std::thread::spawn(move || {
        drop(listener.accept().unwrap());
        listener
    });
    let reference = Reference::parse(&format!("127.0.0.1:{port}/a:t")).unwrap();
    let repository = Repository::new(&reference, &unhurried(), &Cancel::new()).unwrap();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| repository.resolve(&Target::Tag("t".into())));
        // It comes again.
        let mut stream = once.join().unwrap().accept().unwrap().0;
        let mut head = [0; 4096];
        assert!(stream.read(&mut head).unwrap() > 0);
        let answer = format!(
            "HTTP/1.1 200 x\r\ncontent-type: {}\r\ndocker-content-digest: {}\r\ncontent-length: {}\r\n\r\n",
            media::OCI_MANIFEST,
            sha(MANIFEST),
            MANIFEST.len()
        );
        std::io::Write::write_all(&mut stream, answer.as_bytes()).unwrap();
        assert_eq!(asked.join().unwrap().unwrap().descriptor.digest, sha(MANIFEST));
    });
}

#[test]
fn basic_auth() {
    let server = Server::new(|seen| match seen.header("authorization") {
        Some("Basic bWU6aHVudGVyMjI=") => manifest_reply(),
        _ => Reply::new(401, "").with("www-authenticate", "Basic realm=\"r\""),
    });
    resolve(&server, &with_credentials()).unwrap();
    fails(resolve(&server, &endpoint()), Code::Denied, "give a user and a secret");
    let mut wrong = with_credentials();
    wrong.credentials.as_mut().unwrap().secret = "wrong-secret".into();
    let error = fails(resolve(&server, &wrong), Code::Denied, "refused the user and secret");
    assert!(!error.to_string().contains("wrong-secret"), "D8");
}

fn token_server(token_reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Server {
    Server::new(move |seen| {
        if seen.path() == "/token" {
            return token_reply(seen);
        }
        match seen.header("authorization") {
            Some("Bearer tok-12345") => manifest_reply(),
            _ => {
                let host = seen.header("host").unwrap();
                let challenge =
                    format!("Bearer realm=\"http://{host}/token\",service=\"svc\",scope=\"repository:a/b:pull\"");
                Reply::new(401, "").with("www-authenticate", challenge)
            }
        }
    })
}

#[test]
fn token_auth_anonymous_with_a_user_and_with_a_refresh_token() {
    let server = token_server(|_| Reply::ok(r#"{"token":"tok-12345"}"#));
    let repository = repository(&server, &endpoint());
    repository.resolve(&Target::Tag("t".into())).unwrap();
    repository.resolve(&Target::Tag("t".into())).unwrap();
    let seen = server.seen();
    let tokens: Vec<&Seen> = seen.iter().filter(|s| s.path() == "/token").collect();
    assert_eq!(tokens.len(), 1, "the token is kept");
    assert_eq!(tokens[0].target, "/token?service=svc&scope=repository%3Aa%2Fb%3Apull");
    assert_eq!(tokens[0].header("authorization"), None);

    resolve(&server, &with_credentials()).unwrap();
    let asked = server.seen().into_iter().rfind(|s| s.path() == "/token").unwrap();
    assert_eq!(asked.header("authorization"), Some("Basic bWU6aHVudGVyMjI="));

    let mut refresh = with_credentials();
    refresh.credentials.as_mut().unwrap().user.clear();
    resolve(&server, &refresh).unwrap();
    let asked = server.seen().into_iter().rfind(|s| s.path() == "/token").unwrap();
    assert_eq!(asked.method, "POST");
    let body = String::from_utf8(asked.body).unwrap();
    assert!(body.contains("grant_type=refresh%5Ftoken") && body.contains("refresh_token=hunter22"), "{body}");
}

// D3 of the negative tests: on a host that several share the other port is somebody else's.
#[test]
fn d3_another_port_of_the_registrys_host_gets_no_credentials_unless_it_is_named() {
    for named in [false, true] {
        let other = Server::new(|seen| match seen.header("authorization") {
            Some(_) => Reply::ok(r#"{"token":"tok-12345"}"#),
            None => Reply::new(401, ""),
        });
        let challenge = format!("Bearer realm=\"http://{}/token\"", other.host());
        let server = Server::new(move |seen| match seen.header("authorization") {
            Some("Bearer tok-12345") => manifest_reply(),
            _ => Reply::new(401, "").with("www-authenticate", &challenge),
        });
        let trusted_realms = named.then(|| other.host()).into_iter().collect();
        let resolved = resolve(&server, &Endpoint { trusted_realms, ..with_credentials() });
        assert_eq!(other.seen()[0].header("authorization").is_some(), named);
        if named {
            resolved.unwrap();
        } else {
            fails(resolved, Code::Denied, &format!("name {} in trusted_realms", other.host()));
        }
    }
}

#[test]
fn a_token_server_that_fails_for_a_moment_is_asked_again() {
    let count = AtomicUsize::new(0);
    let token = || Reply::ok(r#"{"token":"tok-12345"}"#);
    let server = token_server(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(502, ""),
        1 => token().then(Then::Cut(3)),
        _ => token(),
    });
    resolve(&server, &unhurried()).unwrap();
    assert_eq!(tokens(&server), TRIES as usize);
}

/// How often a server was asked for a token.
fn tokens(server: &Server) -> usize {
    server.seen().iter().filter(|seen| seen.path() == "/token").count()
}

#[test]
fn a_token_server_is_left_alone_for_as_long_as_it_asks() {
    let (challenged, refused) = (AtomicUsize::new(0), Mutex::new(None::<Instant>));
    let token = || Reply::ok(r#"{"token":"tok-12345"}"#);
    let server = Server::new(move |seen| {
        if seen.path() != "/token" {
            if seen.header("authorization") == Some("Bearer tok-12345") {
                return manifest_reply();
            }
            challenged.fetch_add(1, Ordering::SeqCst);
            let challenge = format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap());
            return Reply::new(401, "").with("www-authenticate", challenge);
        }
        let mut refused = refused.lock().unwrap();
        if refused.is_some_and(|at| at.elapsed() >= Duration::from_millis(900)) {
            return token();
        }
        // All four want one by then, and three of them wait for what comes of this.
        while challenged.load(Ordering::SeqCst) < 4 {
            std::thread::yield_now();
        }
        refused.get_or_insert_with(Instant::now);
        Reply::new(429, "").with("retry-after", 1)
    });
    let repository = repository(&server, &unhurried());
    std::thread::scope(|scope| {
        let resolve = || scope.spawn(|| repository.resolve(&Target::Tag("t".into())));
        let all: Vec<_> = (0..4).map(|_| resolve()).collect();
        assert!(all.into_iter().all(|one| one.join().unwrap().is_ok()));
    });
    assert_eq!(tokens(&server), 2, "once before it asked for that, and once after");

    // Longer than anybody would wait: that is said, at once.
    let server = token_server(|_| Reply::new(503, "").with("retry-after", 86400));
    fails(resolve(&server, &unhurried()), Code::Unavailable, "left alone for 86400 s");
    assert_eq!(tokens(&server), 1);
}

// It is there, and says no: that is no network that is away.
#[test]
fn a_token_server_that_answers_is_not_asked_for_as_long_as_a_layer_may_bring_nothing() {
    for (after, times) in [(None, Limits::default().attempts as usize), (Some(86400), 1)] {
        let server = token_server(move |_| {
            let reply = Reply::new(429, "");
            after.into_iter().fold(reply, |reply, seconds| reply.with("retry-after", seconds))
        });
        let mut endpoint = unhurried();
        endpoint.limits.idle = Duration::from_secs(5);
        let bytes = blob();
        fails(read(&repository(&server, &endpoint), &layer(&bytes), 0), Code::Unavailable, "answered 429");
        assert_eq!(tokens(&server), times, "{after:?}");
    }
}

#[test]
fn token_servers_that_do_not_give_one() {
    for (reply, code, word) in [
        (|| Reply::new(401, ""), Code::Denied, "refused the user"),
        (|| Reply::new(500, ""), Code::Unavailable, "authorization server"),
        (|| Reply::ok("{}"), Code::Denied, "did not include a token"),
        (|| Reply::ok("not json"), Code::Denied, "sent no token"),
        (|| Reply::ok(r#"{"token":"tok-wrong"}"#), Code::Denied, "refused the user"),
        (|| Reply::ok(r#"{"token":"tok"}"#).then(Then::Cut(3)), Code::Unavailable, "half-way"),
    ] as [(fn() -> Reply, Code, &str); 6]
    {
        let server = token_server(move |_| reply());
        let error = fails(resolve(&server, &with_credentials()), code, word);
        assert!(!error.to_string().contains("hunter22") && !error.to_string().contains("tok-wrong"), "D8: {error}");
    }
}

#[test]
fn d1_a_foreign_url_never_gets_credentials() {
    // The foreign store is another port of the named host: loopback may be spoken to, credentials may not go there.
    let bytes = blob();
    let foreign = Server::new({
        let bytes = bytes.clone();
        move |seen| Reply::ranged(seen, &bytes)
    });
    let server = Server::new(|seen| match seen.header("authorization") {
        None => Reply::new(401, "").with("www-authenticate", "Basic"),
        Some(_) => Reply::new(404, ""),
    });
    let mut descriptor = layer(&bytes);
    descriptor.urls = vec!["http://169.254.169.254/x".into(), format!("http://{}/blob", foreign.host())];
    assert_eq!(read(&repository(&server, &with_credentials()), &descriptor, 0).unwrap(), bytes);
    assert!(foreign.seen().iter().all(|s| s.header("authorization").is_none()));
    // Nor when it challenges.
    let greedy = Server::new(|_| Reply::new(401, "").with("www-authenticate", "Basic"));
    descriptor.urls = vec![format!("http://{}/blob", greedy.host())];
    fails(read(&repository(&server, &with_credentials()), &descriptor, 0), Code::NotFound, "no such blob");
    assert_eq!(greedy.seen().len(), 1);
    assert!(greedy.seen()[0].header("authorization").is_none());
}

#[test]
fn d2_a_redirect_to_another_host_drops_the_authorization() {
    let bytes = blob();
    let storage = Server::new({
        let bytes = bytes.clone();
        move |seen| Reply::ranged(seen, &bytes)
    });
    let location = format!("http://{}/signed?sig=s3cr3t-signature", storage.host());
    let server = Server::new(move |seen| match (seen.header("authorization"), seen.path()) {
        (None, _) => Reply::new(401, "").with("www-authenticate", "Basic"),
        // A redirect within the registry keeps it.
        (_, path) if path.ends_with("/moved") => Reply::new(307, "").with("location", &location),
        _ => Reply::new(302, "").with("location", "moved"),
    });
    assert_eq!(read(&repository(&server, &with_credentials()), &layer(&bytes), 0).unwrap(), bytes);
    assert_eq!(server.seen().last().unwrap().path(), "/v2/a/b/blobs/moved");
    let seen = storage.seen();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].header("authorization").is_none());
    drop(storage);
    let error = fails(read(&repository(&server, &with_credentials()), &layer(&bytes), 0), Code::Unavailable, "reached");
    assert!(!error.to_string().contains("s3cr3t"), "D8: {error}");
}

#[test]
fn d4_redirects_and_realms_to_the_inside_are_refused() {
    for target in [
        "http://169.254.169.254/latest",
        "http://[fe80::1]/x",
        "http://localhost:1/x",
        "ftp://127.0.0.1/x",
        "http://a@127.0.0.1/",
    ] {
        let server = Server::new(move |_| Reply::new(302, "").with("location", target));
        let error = read(&repository(&server, &endpoint()), &layer(b"x"), 0).unwrap_err();
        assert!(matches!(error.code, Code::Denied | Code::Unavailable), "{error}");
        let server =
            Server::new(move |_| Reply::new(401, "").with("www-authenticate", format!("Bearer realm=\"{target}\"")));
        resolve(&server, &with_credentials()).unwrap_err();
    }
    let server = Server::new(|seen| Reply::new(302, "").with("location", &seen.target));
    fails(resolve(&server, &endpoint()), Code::Unavailable, "without end");
}

#[test]
fn d5_silence_and_headers_without_end() {
    let silent = Server::new(|_| Reply::ok(MANIFEST).then(Then::Hang(10)).with("content-type", media::OCI_MANIFEST));
    fails(resolve(&silent, &endpoint()), Code::Unavailable, "silent or too slow");
    let endless = Server::new(|_| Reply::ok("").then(Then::EndlessHeader));
    fails(resolve(&endless, &endpoint()), Code::Unavailable, "");
    let bytes = blob();
    let silent = Server::new({
        let bytes = bytes.clone();
        move |seen| Reply::ranged(seen, &bytes).then(Then::Hang(10))
    });
    let mut short = endpoint();
    short.limits.idle = Duration::from_millis(200);
    fails(read(&repository(&silent, &short), &layer(&bytes), 0), Code::Unavailable, "stopped at byte");
    assert_eq!(silent.seen().len(), 5);
}

// A cache in between may have to get it first.
#[test]
fn a_manifest_may_take_longer_than_a_blob_may_be_silent() {
    let mut slow = unhurried();
    slow.limits.idle = Duration::from_millis(50);
    let server = Server::new(|_| {
        std::thread::sleep(Duration::from_millis(200));
        manifest_reply()
    });
    let repository = repository(&server, &slow);
    let found = repository.resolve(&Target::Tag("t".into())).unwrap();
    assert_eq!(repository.manifest(&found.descriptor).unwrap(), MANIFEST);
    assert_eq!(server.seen().len(), 2, "each asked once");
}

#[test]
fn d5_a_blob_that_drips_is_given_up() {
    let bytes = blob();
    let dripping = Server::new({
        let bytes = bytes.clone();
        move |seen| Reply::ranged(seen, &bytes)
    });
    let mut strict = endpoint();
    // Every read is slower than a pace of all at once.
    (strict.limits.pace, strict.limits.pace_bytes) = (Duration::ZERO, u64::MAX);
    fails(read(&repository(&dripping, &strict), &layer(&bytes), 0), Code::Unavailable, "too slowly");
}

#[test]
fn a_blob_that_stops_half_way_is_resumed() {
    let bytes = blob();
    let server = Server::new({
        let bytes = bytes.clone();
        move |seen| match seen.from() {
            None => Reply::ok(&*bytes).then(Then::Cut(300_000)),
            Some(from) if from < 500_000 => Reply::ranged(seen, &bytes).then(Then::Cut(200_000)),
            // The last one knows no ranges.
            Some(_) => Reply::ok(&*bytes),
        }
    });
    assert_eq!(read(&repository(&server, &endpoint()), &layer(&bytes), 0).unwrap(), bytes);
    let froms: Vec<_> = server.seen().iter().map(Seen::from).collect();
    assert_eq!(froms.len(), 3);
    assert!(froms[0].is_none() && froms[1].is_some() && froms[2] > froms[1]);
    assert_eq!(read(&repository(&server, &endpoint()), &layer(&bytes), 799_000).unwrap(), bytes[799_000..]);
    assert!(read(&repository(&server, &endpoint()), &layer(&bytes), 800_000).unwrap().is_empty());
}

#[test]
fn a_network_that_is_away_is_waited_for_as_long_as_a_layer_may_bring_nothing() {
    let bytes = blob();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = Reference::parse(&format!("{}/a:t", listener.local_addr().unwrap())).unwrap();
    let repository = |idle| {
        let limits = Limits { idle, backoff: Duration::from_millis(1), ..limits() };
        Repository::new(&reference, &Endpoint { limits, ..Endpoint::default() }, &Cancel::new()).unwrap()
    };
    // More often than a registry may answer with half of it.
    let (away, all) = (3 * Limits::default().attempts, bytes.clone());
    let served = std::thread::spawn(move || {
        for _ in 0..away {
            drop(listener.accept().unwrap());
        }
        let mut stream = listener.accept().unwrap().0;
        assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
        let head = format!("HTTP/1.1 200 x\r\ncontent-length: {}\r\n\r\n", all.len());
        std::io::Write::write_all(&mut stream, &[head.as_bytes(), &all].concat()).unwrap();
        listener
    });
    assert_eq!(read(&repository(Duration::from_secs(20)), &layer(&bytes), 0).unwrap(), bytes);
    drop(served.join().unwrap());
    let began = Instant::now();
    let error = read(&repository(Duration::from_millis(100)), &layer(&bytes), 0).unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error}");
    assert!(began.elapsed() >= Duration::from_millis(200) && error.message.contains("stopped at byte 0"), "{error}");
}

#[test]
fn a_blob_that_always_stops_is_given_up() {
    let bytes = blob();
    let server = Server::new({
        let bytes = bytes.clone();
        move |seen| Reply::ranged(seen, &bytes).then(Then::Cut(1000))
    });
    fails(read(&repository(&server, &endpoint()), &layer(&bytes), 0), Code::Unavailable, "of 800000");
    assert_eq!(server.seen().len(), 5);
}

#[test]
fn d5_lying_lengths_and_ranges() {
    let bytes = blob();
    let lies: [fn(&[u8]) -> Reply; 5] = [
        |b| Reply::ok(&b[1..]),
        |b| Reply::ok([b, b"x"].concat()),
        |b| Reply::new(206, b).with("content-range", format!("bytes 0-{}/{}", b.len() - 1, b.len())),
        |b| Reply::new(206, &b[5..]).with("content-range", format!("bytes 5-{}/{}", b.len() - 1, b.len())),
        |_| Reply::new(416, ""),
    ];
    for (n, lie) in lies.into_iter().enumerate() {
        let server = Server::new({
            let bytes = bytes.clone();
            move |_| lie(&bytes)
        });
        // The first four lie about the whole, all but the first two about a part.
        if n < 4 {
            assert_eq!(
                read(&repository(&server, &endpoint()), &layer(&bytes), 0).unwrap_err().code,
                Code::DataLoss,
                "{n}"
            );
        }
        if n >= 2 {
            assert_eq!(
                read(&repository(&server, &endpoint()), &layer(&bytes), 10).unwrap_err().code,
                Code::DataLoss,
                "{n}"
            );
        }
    }
}

#[test]
fn m2_m4_manifests_that_are_not_what_they_should_be() {
    let other = media::OCI_INDEX;
    let big = vec![b' '; MAX_MANIFEST as usize + 1];
    for (body, content_type, code, word) in [
        (MANIFEST.to_vec(), other, Code::DataLoss, "calls itself"),
        (b"not json".to_vec(), media::OCI_MANIFEST, Code::DataLoss, "not JSON"),
        (b"{}".to_vec(), "application/json", Code::DataLoss, "what it is"),
        (
            b"{}".to_vec(),
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            Code::Unimplemented,
            "no image manifest",
        ),
        (b"{}".to_vec(), "text/html", Code::Unimplemented, "no image manifest"),
        (big, media::OCI_MANIFEST, Code::DataLoss, "larger than"),
    ] {
        let server = Server::new(move |_| Reply::ok(&*body).with("content-type", content_type));
        fails(resolve(&server, &endpoint()), code, word);
    }
}

/// What is asked for by its digest is what leads to it says, and the document. A header that names the other manifest is a cache's
/// that has forgotten it.
#[test]
fn m2_a_document_by_digest_is_what_its_descriptor_says() {
    let bare: &[u8] = br#"{"schemaVersion":2}"#;
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    for (body, descriptor, header, taken) in [
        (MANIFEST, media::OCI_MANIFEST, docker, true),
        (MANIFEST, docker, docker, false),
        (MANIFEST, media::OCI_INDEX, media::OCI_INDEX, false),
        (bare, media::OCI_MANIFEST, docker, true),
        (bare, media::OCI_INDEX, docker, false),
        (bare, media::OCI_MANIFEST, "application/json", true),
    ] {
        let server = Server::new(move |_| Reply::ok(body).with("content-type", header));
        let descriptor = Descriptor::new(descriptor, sha(body), body.len() as u64);
        let got = repository(&server, &endpoint()).manifest(&descriptor);
        match taken {
            true => assert_eq!(got.unwrap(), body),
            false => drop(fails(got, Code::DataLoss, "whose descriptor says")),
        }
    }
}

#[test]
fn manifests_are_verified() {
    let wrong = [MANIFEST, b" "].concat();
    let server = Server::new(move |seen| match seen.path().contains("sha256:") {
        true => Reply::ok(&*wrong).with("content-type", media::OCI_MANIFEST),
        false => Reply::ok(MANIFEST)
            .with("content-type", media::OCI_MANIFEST)
            .with("docker-content-digest", "sha256:../../x"),
    });
    fails(resolve(&server, &endpoint()), Code::DataLoss, "bad content digest");
    let repository = repository(&server, &endpoint());
    let mut descriptor = Descriptor::new(media::OCI_MANIFEST, sha(MANIFEST), MANIFEST.len() as u64);
    fails(repository.manifest(&descriptor), Code::DataLoss, "larger than");
    descriptor.size += 1;
    fails(repository.manifest(&descriptor), Code::DataLoss, "for sha256:");
    descriptor.size += 1;
    fails(repository.manifest(&descriptor), Code::DataLoss, "bytes for");
    descriptor.size = MAX_MANIFEST + 1;
    fails(repository.manifest(&descriptor), Code::DataLoss, "larger than");
    // A HEAD answer about a digest is believed only until the bytes come.
    let resolved = repository.resolve(&Target::Digest(sha(b"other"))).unwrap();
    assert!(repository.manifest(&resolved.descriptor).is_err());
}

#[test]
fn a_cancelled_job_lets_go_of_a_silent_registry() {
    let bytes = blob();
    let (tell, told) = std::sync::mpsc::channel();
    let server = Server::new({
        let bytes = bytes.clone();
        move |_| {
            tell.send(()).unwrap();
            Reply::ok(&*bytes).then(Then::Hang(10))
        }
    });
    let cancel = Cancel::new();
    let reference = Reference::parse(&format!("{}/a:t", server.host())).unwrap();
    let mut patient = endpoint();
    patient.limits.idle = Duration::from_secs(3600);
    let repository = Repository::new(&reference, &patient, &cancel).unwrap();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| read(&repository, &layer(&bytes), 0));
        told.recv().unwrap();
        cancel.cancel();
        fails(reading.join().unwrap(), Code::Cancelled, "");
    });
}

#[test]
fn a_ca_that_is_none_is_refused() {
    let reference = Reference::parse("127.0.0.1:1/a:t").unwrap();
    for pem in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"] {
        let endpoint = Endpoint { ca: Some(pem.into()), ..endpoint() };
        assert_eq!(
            Repository::new(&reference, &endpoint, &Cancel::new()).err().unwrap().code,
            Code::InvalidArgument,
            "{pem}"
        );
    }
}
