//! Uploads to a registry that breaks off, forgets, redirects and lies.

use std::{
    cell::Cell,
    io::Read,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use cofferdam_types::{Algorithm, Code, Descriptor, Digest, Error, Result, media};

use super::*;
use crate::{
    Cancel, Credentials, Endpoint, Limits, Reference,
    registry::Access,
    testing::server::{Reply, Seen, Server},
};

struct Bytes {
    all: Vec<u8>,
    sent: Cell<u64>,
    opened: Cell<usize>,
}

impl Bytes {
    fn new() -> Bytes {
        Bytes { all: (0..50_000u32).flat_map(u32::to_le_bytes).collect(), sent: Cell::new(0), opened: Cell::new(0) }
    }

    fn descriptor(&self) -> Descriptor {
        Descriptor::new(media::OCI_LAYER, Digest::of(Algorithm::Sha256, &self.all), self.all.len() as u64)
    }
}

impl Source for Bytes {
    fn open(&self, offset: u64) -> Result<Box<dyn Read + '_>> {
        self.opened.set(self.opened.get() + 1);
        Ok(Box::new(&self.all[offset as usize..]))
    }

    fn sent(&self, count: u64) {
        self.sent.set(count);
    }
}

fn limits() -> Limits {
    Limits { header: Duration::from_secs(2), backoff: Duration::from_millis(1), ..Limits::default() }
}

fn repository(server: &Server, credentials: bool) -> Repository {
    let reference = Reference::parse(&format!("{}/a/b:t", server.host())).unwrap();
    let credentials = credentials.then(|| Credentials { user: "me".into(), secret: "hunter22".into() });
    let endpoint = Endpoint { limits: limits(), credentials, ..Endpoint::default() };
    Repository::with(&reference, &endpoint, Access::Push(vec!["c/d".into()]), &Cancel::new()).unwrap()
}

fn begun() -> Reply {
    Reply::new(202, "").with("location", "/upload/1?state=0")
}

/// What a request did, without what changes from run to run.
fn did(seen: &[Seen]) -> Vec<String> {
    let one = |s: &Seen| {
        let range = s.header("content-range").map(|range| format!(" {range}")).unwrap_or_default();
        format!("{} {}{range}", s.method, s.target)
    };
    seen.iter().map(one).collect()
}

#[test]
fn a_blob_is_sent_in_one_piece_and_what_is_there_is_not_sent() {
    let bytes = Bytes::new();
    let blob = bytes.descriptor();
    let digest = blob.digest.clone();
    let server = Server::new(move |seen| match seen.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        "POST" => begun(),
        _ => Reply::new(201, "").with("docker-content-digest", &digest),
    });
    assert_eq!(repository(&server, false).push_blob(&blob, &[], 0, &bytes).unwrap(), Sent::Uploaded);
    let seen = server.seen();
    let put = format!("PUT /upload/1?state=0&digest={}", blob.digest);
    let head = format!("HEAD /v2/a/b/blobs/{}", blob.digest);
    assert_eq!(did(&seen), [head.as_str(), "POST /v2/a/b/blobs/uploads/", put.as_str()]);
    assert_eq!((&seen[2].body, seen[2].header("content-length")), (&bytes.all, Some("200000")));
    assert_eq!(seen[1].header("content-length"), Some("0"));
    assert_eq!(bytes.sent.get(), blob.size);

    let server = Server::new(|_| Reply::ok(""));
    assert_eq!(repository(&server, false).push_blob(&blob, &[], 0, &bytes).unwrap(), Sent::Present);
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn a_blob_is_sent_in_pieces_where_the_answers_lead() {
    let bytes = Bytes::new();
    let blob = bytes.descriptor();
    let got = std::sync::Arc::new(Mutex::new(Vec::new()));
    let kept = got.clone();
    let server = Server::new(move |seen| {
        let mut got = kept.lock().unwrap();
        match seen.method.as_str() {
            "HEAD" => Reply::new(404, ""),
            // The registry wants pieces of more than was asked for.
            "POST" => begun().with("oci-chunk-min-length", 70_000),
            "PATCH" => {
                got.extend_from_slice(&seen.body);
                let place = format!("/upload/1?state={}", got.len());
                Reply::new(202, "").with("location", place).with("range", format!("0-{}", got.len() - 1))
            }
            _ => Reply::new(201, ""),
        }
    });
    repository(&server, false).push_blob(&blob, &[], 1000, &bytes).unwrap();
    let last = format!("PUT /upload/1?state=200000&digest={}", blob.digest);
    let want = [
        "PATCH /upload/1?state=0 0-69999",
        "PATCH /upload/1?state=70000 70000-139999",
        "PATCH /upload/1?state=140000 140000-199999",
        &last,
    ];
    assert_eq!(did(&server.seen()[2..]), want);
    assert_eq!(*got.lock().unwrap(), bytes.all);
}

#[test]
fn an_upload_that_broke_off_goes_on_where_the_registry_is() {
    for (range, from) in
        [(Some("0-119999"), 120_000), (Some("bytes=0-9"), 10), (Some("0-0"), 0), (None, 0), (Some("0-999999"), 0)]
    {
        let bytes = Bytes::new();
        let blob = bytes.descriptor();
        let failed = Mutex::new(false);
        let server = Server::new(move |seen| match seen.method.as_str() {
            "HEAD" => Reply::new(404, ""),
            "POST" => begun(),
            "GET" => match range {
                Some(range) => Reply::new(204, "").with("location", "/upload/1?state=x").with("range", range),
                None => Reply::new(404, ""),
            },
            _ if !std::mem::replace(&mut *failed.lock().unwrap(), true) => Reply::new(502, ""),
            _ => Reply::new(201, ""),
        });
        repository(&server, false).push_blob(&blob, &[], 0, &bytes).unwrap();
        let seen = server.seen();
        let put = seen.last().unwrap();
        assert_eq!(put.body, bytes.all[from..], "{range:?}");
        let said = (from > 0).then(|| format!("{from}-199999"));
        assert_eq!(put.header("content-range"), said.as_deref(), "{range:?}");
        // What is no more, or says what can't be, begins anew.
        let anew = seen.iter().filter(|s| s.method == "POST").count() == 2;
        assert_eq!(anew, range.is_none() || range == Some("0-999999"), "{range:?}");
    }
}

#[test]
fn who_is_away_when_he_is_asked_how_far_an_upload_got_is_asked_again() {
    let long = Duration::from_secs(20);
    for (away, status, after, idle, anew) in [
        (8, 503, None, long, false),
        (usize::MAX, 503, None, Duration::from_millis(300), true),
        // One who doesn't know, and one who won't say for longer than anybody waits.
        (usize::MAX, 501, None, long, true),
        (usize::MAX, 503, Some(3600), long, true),
    ] {
        let bytes = Bytes::new();
        let (failed, asked) = (Mutex::new(false), Mutex::new(0));
        let server = Server::new(move |seen| match seen.method.as_str() {
            "HEAD" => Reply::new(404, ""),
            "POST" => begun(),
            "GET" => {
                let mut asked = asked.lock().unwrap();
                *asked += 1;
                match *asked <= away {
                    true => after.into_iter().fold(Reply::new(status, ""), |reply, s| reply.with("retry-after", s)),
                    false => Reply::new(204, "").with("location", "/upload/1?state=x").with("range", "0-119999"),
                }
            }
            _ if !std::mem::replace(&mut *failed.lock().unwrap(), true) => Reply::new(502, ""),
            _ => Reply::new(201, ""),
        });
        let reference = Reference::parse(&format!("{}/a/b:t", server.host())).unwrap();
        let endpoint = Endpoint { limits: Limits { idle, ..limits() }, ..Endpoint::default() };
        let repository = Repository::with(&reference, &endpoint, Access::Push(Vec::new()), &Cancel::new()).unwrap();
        repository.push_blob(&bytes.descriptor(), &[], 0, &bytes).unwrap();
        let seen = server.seen();
        let count = |method: &str| seen.iter().filter(|s| s.method == method).count();
        assert_eq!(count("POST"), if anew { 2 } else { 1 });
        assert_eq!(count("GET") == 1, anew && idle == long, "{status} {after:?}");
        assert_eq!(seen.last().unwrap().body, bytes.all[if anew { 0 } else { 120_000 }..]);
    }
}

#[test]
fn what_a_registry_takes_to_store_a_push_is_no_silence() {
    let bytes = Bytes::new();
    let idle = Duration::from_millis(300);
    let server = Server::new(move |seen| match seen.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        "POST" => begun(),
        _ => {
            // It has all of it, and is at it.
            std::thread::sleep(3 * idle);
            Reply::new(201, "")
        }
    });
    let reference = Reference::parse(&format!("{}/a/b:t", server.host())).unwrap();
    let endpoint = Endpoint { limits: Limits { idle, ..limits() }, ..Endpoint::default() };
    let repository = Repository::with(&reference, &endpoint, Access::Push(Vec::new()), &Cancel::new()).unwrap();
    assert_eq!(repository.push_blob(&bytes.descriptor(), &[], 0, &bytes).unwrap(), Sent::Uploaded);
    let document = Descriptor::new(media::OCI_MANIFEST, Digest::of(Algorithm::Sha256, b"{}"), 2);
    repository.push_manifest("t", &document, b"{}").unwrap();
    assert_eq!(server.seen().iter().filter(|s| s.method == "PUT").count(), 2, "each once: {:?}", did(&server.seen()));
}

#[test]
fn a_blob_that_is_there_though_nobody_said_so_is_not_sent_again() {
    let bytes = Bytes::new();
    let stored = Mutex::new(false);
    let server = Server::new(move |seen| {
        let mut stored = stored.lock().unwrap();
        match seen.method.as_str() {
            "HEAD" => Reply::new(if *stored { 200 } else { 404 }, ""),
            "POST" => begun(),
            "PUT" => {
                *stored = true;
                Reply::new(504, "")
            }
            // The upload was ended, and is no more.
            _ => Reply::new(404, ""),
        }
    });
    assert_eq!(repository(&server, false).push_blob(&bytes.descriptor(), &[], 0, &bytes).unwrap(), Sent::Uploaded);
    let seen = server.seen();
    for method in ["POST", "PUT"] {
        assert_eq!(seen.iter().filter(|s| s.method == method).count(), 1, "{method}: {:?}", did(&seen));
    }
}

#[test]
fn a_registry_that_keeps_failing_is_given_up_and_its_upload_ended() {
    let bytes = Bytes::new();
    let server = Server::new(|seen| match seen.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        "POST" => begun(),
        "PUT" => Reply::new(503, ""),
        _ => Reply::new(204, "").with("range", "0-0").with("location", "/upload/1?state=y"),
    });
    let error = repository(&server, false).push_blob(&bytes.descriptor(), &[], 0, &bytes).unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error}");
    let seen = server.seen();
    assert_eq!(seen.iter().filter(|s| s.method == "PUT").count(), 5);
    assert_eq!(seen.last().unwrap().method, "DELETE");
}

#[test]
fn a_piece_that_brings_an_upload_no_further_is_a_failure() {
    // Of a registry that took nothing, of one that took a little once, and of one that went back.
    for (said, pieces) in [(["0-0"; 2], 5), (["0-9"; 2], 6), (["0-69999", "0-9"], 6)] {
        let (bytes, count) = (Bytes::new(), AtomicUsize::new(0));
        let server = Server::new(move |seen| match seen.method.as_str() {
            "HEAD" => Reply::new(404, ""),
            "PATCH" => {
                let range = said[count.fetch_add(1, Ordering::SeqCst).min(1)];
                Reply::new(202, "").with("location", "/upload/1?state=1").with("range", range)
            }
            "POST" => begun(),
            _ => Reply::new(204, "").with("location", "/upload/1?state=2").with("range", said[0]),
        });
        let error = repository(&server, false).push_blob(&bytes.descriptor(), &[], 70_000, &bytes).unwrap_err();
        assert!(error.code == Code::Unavailable && error.message.contains("took nothing"), "{error}");
        let seen = server.seen();
        assert_eq!(seen.iter().filter(|s| s.method == "PATCH").count(), pieces, "{:?}", did(&seen));
        assert_eq!(seen.last().unwrap().method, "DELETE");
    }
    // Of one byte "0-0" says that it is there.
    let one = Bytes { all: b"1".to_vec(), ..Bytes::new() };
    let server = Server::new(|seen| match seen.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        "PATCH" => begun().with("range", "0-0"),
        "POST" => begun(),
        _ => Reply::new(201, ""),
    });
    assert_eq!(repository(&server, false).push_blob(&one.descriptor(), &[], 1, &one).unwrap(), Sent::Uploaded);
}

#[test]
fn a_registry_that_fails_for_a_moment_is_asked_again_to_begin() {
    let (bytes, count) = (Bytes::new(), AtomicUsize::new(0));
    let server = Server::new(move |seen| match seen.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        "POST" if count.fetch_add(1, Ordering::SeqCst) == 0 => Reply::new(500, ""),
        "POST" => begun(),
        _ => Reply::new(201, ""),
    });
    assert_eq!(repository(&server, false).push_blob(&bytes.descriptor(), &[], 0, &bytes).unwrap(), Sent::Uploaded);
}

// M4 of the negative tests: the transport asks without end for what was promised.
#[test]
fn m4_a_source_that_ends_early_ends_the_push() {
    for chunk in [0, 70_000] {
        let bytes = Bytes::new();
        let lying = Descriptor { size: 200_001, ..bytes.descriptor() };
        let server = Server::new(|seen| match seen.method.as_str() {
            "HEAD" => Reply::new(404, ""),
            _ => begun(),
        });
        let error = repository(&server, false).push_blob(&lying, &[], chunk, &bytes).unwrap_err();
        assert!(error.code == Code::DataLoss && error.message.contains("ended at byte 200000"), "{error}");
    }
}

#[test]
fn refusals_have_their_codes_and_are_not_repeated() {
    for (status, code) in
        [(403, Code::Denied), (400, Code::DataLoss), (405, Code::FailedPrecondition), (413, Code::FailedPrecondition)]
    {
        let bytes = Bytes::new();
        let server = Server::new(move |seen| match seen.method.as_str() {
            "HEAD" => Reply::new(404, ""),
            "POST" => begun(),
            _ => Reply::new(status, ""),
        });
        let error = repository(&server, false).push_blob(&bytes.descriptor(), &[], 0, &bytes).unwrap_err();
        assert_eq!(error.code, code, "{status}: {error}");
        assert_eq!(server.seen().iter().filter(|s| s.method == "PUT").count(), 1, "{status}");
    }
    // One that stores something else than it was sent.
    let bytes = Bytes::new();
    let other = Digest::of(Algorithm::Sha256, b"other");
    let server = Server::new(move |seen| match seen.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        "POST" => begun(),
        _ => Reply::new(201, "").with("docker-content-digest", &other),
    });
    let error = repository(&server, false).push_blob(&bytes.descriptor(), &[], 0, &bytes).unwrap_err();
    assert_eq!(error.code, Code::DataLoss, "{error}");
}

#[test]
fn a_source_that_fails_says_why() {
    struct Broken;
    impl Source for Broken {
        fn open(&self, _: u64) -> Result<Box<dyn Read + '_>> {
            struct Fails;
            impl Read for Fails {
                fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                    Err(std::io::Error::other(Error::data_loss("blob", "x", "is damaged on disk")))
                }
            }
            Ok(Box::new(Fails))
        }
        fn sent(&self, _: u64) {}
    }
    let server = Server::new(|seen| if seen.method == "HEAD" { Reply::new(404, "") } else { begun() });
    let error = repository(&server, false).push_blob(&Bytes::new().descriptor(), &[], 0, &Broken).unwrap_err();
    assert!(error.code == Code::DataLoss && error.message.contains("damaged on disk"), "{error}");
}

#[test]
fn a_blob_is_taken_over_from_a_repository_that_has_it() {
    let bytes = Bytes::new();
    let blob = bytes.descriptor();
    let mount = format!("POST /v2/a/b/blobs/uploads/?mount={}&from=c/d", blob.digest);
    let from = ["a/b".to_owned(), "c/d".to_owned()];
    let server = Server::new(|seen| Reply::new(if seen.method == "HEAD" { 404 } else { 201 }, ""));
    assert_eq!(repository(&server, false).push_blob(&blob, &from, 0, &bytes).unwrap(), Sent::Mounted);
    assert_eq!(did(&server.seen()[1..]), [mount.as_str()], "its own repository is not asked");
    assert_eq!(bytes.opened.get(), 0);

    // One that begins an upload instead, and one that refuses.
    for status in [202, 403, 404] {
        let server = Server::new(move |seen| match seen.method.as_str() {
            "HEAD" => Reply::new(404, ""),
            "POST" if status != 202 && seen.target.contains("mount=") => Reply::new(status, ""),
            "POST" => begun(),
            _ => Reply::new(201, ""),
        });
        assert_eq!(repository(&server, false).push_blob(&blob, &from, 0, &bytes).unwrap(), Sent::Uploaded);
        let posts = server.seen().iter().filter(|s| s.method == "POST").count();
        assert_eq!(posts, if status == 202 { 1 } else { 2 });
    }
}

// D2 of the negative tests.
#[test]
fn d2_an_upload_that_leads_elsewhere_takes_no_authorization_along() {
    let storage = Server::new(|_| Reply::new(201, ""));
    let place = format!("http://{}/signed", storage.host());
    let server = Server::new(move |seen| match (seen.header("authorization"), seen.method.as_str()) {
        (None, _) => Reply::new(401, "").with("www-authenticate", "Basic"),
        (_, "HEAD") => Reply::new(404, ""),
        _ => Reply::new(202, "").with("location", &place),
    });
    let bytes = Bytes::new();
    repository(&server, true).push_blob(&bytes.descriptor(), &[], 0, &bytes).unwrap();
    let seen = storage.seen();
    assert_eq!((seen.len(), seen[0].header("authorization")), (1, None));
    assert_eq!(seen[0].body, bytes.all);

    // D4: nor does it lead to what only the inside has.
    for place in ["http://169.254.169.254/latest", "ftp://127.0.0.1/x"] {
        let server = Server::new(move |seen| match seen.method.as_str() {
            "HEAD" => Reply::new(404, ""),
            _ => Reply::new(202, "").with("location", place),
        });
        assert!(repository(&server, false).push_blob(&bytes.descriptor(), &[], 0, &bytes).is_err(), "{place}");
    }
}

#[test]
fn a_token_is_for_writing_and_for_the_repository_that_has_it() {
    let server = Server::new(|seen| match (seen.path(), seen.header("authorization")) {
        ("/token", _) => Reply::ok(r#"{"token":"tok-12345"}"#),
        (_, None) => {
            let realm = format!("Bearer realm=\"http://{}/token\",service=\"svc\"", seen.header("host").unwrap());
            Reply::new(401, "").with("www-authenticate", realm)
        }
        _ => Reply::new(if seen.method == "HEAD" { 404 } else { 201 }, ""),
    });
    let bytes = Bytes::new();
    let from = ["c/d".to_owned()];
    assert_eq!(repository(&server, true).push_blob(&bytes.descriptor(), &from, 0, &bytes).unwrap(), Sent::Mounted);
    let seen = server.seen();
    let tokens: Vec<_> = seen.iter().filter(|s| s.path() == "/token").map(|s| s.target.clone()).collect();
    let scopes = "scope=repository%3Aa%2Fb%3Apull%2Cpush&scope=repository%3Ac%2Fd%3Apull";
    assert_eq!(tokens, [format!("/token?service=svc&{scopes}")]);
}

// A body can't be sent twice: what is asked for an authorization in the middle is opened anew.
#[test]
fn a_challenge_in_the_middle_sends_the_bytes_again() {
    let bytes = Bytes::new();
    let server = Server::new(|seen| match (seen.method.as_str(), seen.header("authorization")) {
        ("HEAD", _) => Reply::new(404, ""),
        ("POST", _) => begun(),
        (_, None) => Reply::new(401, "").with("www-authenticate", "Basic"),
        _ => Reply::new(201, ""),
    });
    repository(&server, true).push_blob(&bytes.descriptor(), &[], 0, &bytes).unwrap();
    let seen = server.seen();
    assert_eq!((seen.last().unwrap().body.len(), bytes.opened.get()), (200_000, 2));
}

#[test]
fn manifests_are_named() {
    let body = br#"{"schemaVersion":2}"#;
    let descriptor = Descriptor::new(media::OCI_MANIFEST, Digest::of(Algorithm::Sha256, body), body.len() as u64);
    let server = Server::new(|_| Reply::new(201, ""));
    repository(&server, false).push_manifest("t", &descriptor, body).unwrap();
    let seen = server.seen();
    assert_eq!(did(&seen), ["PUT /v2/a/b/manifests/t"]);
    assert_eq!((seen[0].header("content-type"), &*seen[0].body), (Some(media::OCI_MANIFEST), &body[..]));
    // One that would be asked again elsewhere is not what was meant.
    let server = Server::new(|_| Reply::new(301, "").with("location", "/elsewhere"));
    let error = repository(&server, false).push_manifest("t", &descriptor, body).unwrap_err();
    assert!(error.message.contains("redirects what is written"), "{error}");
}

#[test]
fn what_a_registry_takes_for_bad_while_another_client_sends_the_same_is_sent_again() {
    let body = br#"{"schemaVersion":2}"#;
    let bytes = Bytes::new();
    let document = Descriptor::new(media::OCI_MANIFEST, Digest::of(Algorithm::Sha256, body), body.len() as u64);
    let odd = r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#;
    for (times, there) in [(TRIES - 1, true), (u32::MAX, false)] {
        let (asked, put) = (Mutex::new(0), Mutex::new(0));
        let server = Server::new(move |seen| {
            let (count, fails, well) = if seen.method == "HEAD" { (&asked, 500, 200) } else { (&put, 400, 201) };
            let mut count = count.lock().unwrap();
            *count += 1;
            if *count <= times { Reply::new(fails, odd) } else { Reply::new(well, "") }
        });
        let repository = repository(&server, false);
        let (blob, named) =
            (repository.push_blob(&bytes.descriptor(), &[], 0, &bytes), repository.push_manifest("t", &document, body));
        assert_eq!(server.seen().len(), 2 * TRIES as usize, "{:?}", did(&server.seen()));
        if there {
            assert_eq!(blob.unwrap(), Sent::Present);
            named.unwrap();
        } else {
            assert_eq!(blob.unwrap_err().code, Code::Unavailable);
            let error = named.unwrap_err();
            assert!(error.message.contains("DIGEST_INVALID"), "{error}");
        }
    }
}
