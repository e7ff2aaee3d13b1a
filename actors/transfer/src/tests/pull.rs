//! Pulls from a registry that behaves, until it does not.

use std::{
    fs,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use cofferdam_content::Commit;
use cofferdam_types::{Code, Labels, media};
use serde_json::Value;

use crate::{
    ArtifactOptions, ExportOptions, Job, Phase, PullOptions, PushOptions, Reference,
    testing::{
        picture::{Picture, sha, tar_up},
        server::{Reply, Seen, Server, Then},
        world::{World, amd64, as_file, auth, fails, name, ns, pulling, quick, run, second, soon},
    },
};

/// Serves a picture; `twist` may answer in its place.
fn serve(picture: &Arc<Picture>, twist: impl Fn(&Seen, &Picture) -> Option<Reply> + Send + Sync + 'static) -> Server {
    let picture = picture.clone();
    Server::new(move |seen| {
        if let Some(reply) = twist(seen, &picture) {
            return reply;
        }
        let last = seen.path().rsplit('/').next().unwrap();
        if seen.path().contains("/manifests/") {
            let target = picture.target();
            return Reply::ok(&*picture.manifest)
                .with("content-type", media::OCI_MANIFEST)
                .with("docker-content-digest", &target.digest);
        }
        match picture.blobs().into_iter().find(|b| sha(b).to_string() == last) {
            Some(blob) => Reply::ranged(seen, blob),
            None => Reply::new(404, ""),
        }
    })
}

fn is_layer(seen: &Seen, picture: &Picture, n: usize) -> bool {
    seen.path().ends_with(&sha(&picture.layers[n]).to_string())
}

#[test]
fn an_image_is_pulled_once() {
    run(async {
        let picture = Arc::new(Picture::new("x"));
        let server = serve(&picture, |_, _| None);
        let reference = format!("{}/a/b:t", server.host());
        let world = World::start().await;
        let job = world.begin_pull(&ns(), &reference, quick()).await;
        let arrived = job.wait().await.unwrap();
        assert_eq!(arrived[0].name.as_str(), reference);
        assert_eq!(world.read(&picture.chain(), "etc/name").await, "upper");
        let progress = job.status().progress;
        let total: u64 = picture.layers.iter().map(|l| l.len() as u64).sum();
        assert_eq!(progress.bytes(), (total, total));
        assert!(progress.items.iter().all(|i| i.phase == Phase::Done));
        let first = world.holdings();
        assert_eq!((first.blobs, first.files, first.ingests, first.layers), (4, 4, 0, 2));
        // Again: one question, no bytes.
        let asked = server.seen().len();
        world.pull(&reference, quick()).await.unwrap();
        let again: Vec<String> = server.seen()[asked..].iter().map(|s| format!("{} {}", s.method, s.path())).collect();
        assert_eq!(again, ["HEAD /v2/a/b/manifests/t"]);
        assert_eq!(world.holdings(), first);
        // Another namespace has to present the bytes itself, and they are stored once.
        world.begin_pull(&second(), &reference, quick()).await.wait().await.unwrap();
        assert_eq!(server.seen().iter().filter(|s| is_layer(s, &picture, 0)).count(), 2);
        assert_eq!((world.holdings().files, world.holdings().blobs), (4, 8));
        world.stop().await;
    });
}

/// A record says that a blob is here, and not that its bytes are: those are what a pull is for.
#[test]
fn what_the_disk_has_lost_of_a_layer_is_fetched_though_it_is_on_record() {
    run(async {
        let picture = Arc::new(Picture::new("x"));
        let server = serve(&picture, |_, _| None);
        let reference = format!("{}/a/b:t", server.host());
        let world = World::start().await;
        let pull = async |driver: Option<&str>| {
            let options = PullOptions { driver: driver.map(str::to_owned), ..pulling(&reference, quick()) };
            world.transfer.pull(&auth(), &ns(), options).await.unwrap().wait().await
        };
        let file = |n: usize| world.root.path().join("blobs/sha256").join(sha(&picture.layers[n]).hex());
        let fetched = || [0, 1].map(|n| server.seen().iter().filter(|s| is_layer(s, &picture, n)).count());
        pull(None).await.unwrap();
        assert_eq!(fetched(), [1, 1]);

        // As a crash of another daemon's, or of the disk, may leave them.
        fs::write(file(0), "").unwrap();
        fs::remove_file(file(1)).unwrap();
        pull(Some("overlay")).await.unwrap();
        assert_eq!(fetched(), [2, 2]);
        for n in 0..2 {
            assert!(fs::read(file(n)).unwrap() == picture.layers[n], "layer {n}");
        }
        assert_eq!(world.read(&picture.chain(), "etc/name").await, "upper");

        // Of the same size, it is found by who unpacks it; and who pulls once more gets it.
        let mut bytes = picture.layers[0].clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(file(0), &bytes).unwrap();
        pull(Some("native")).await.unwrap_err();
        assert_eq!(fetched(), [2, 2], "nobody knew");
        pull(Some("native")).await.unwrap();
        assert_eq!(fetched(), [3, 2]);
        assert!(fs::read(file(0)).unwrap() == picture.layers[0]);
        assert_eq!(world.content.check(false).await.unwrap(), []);
        world.stop().await;
    });
}

/// The picture, but its manifest says another size of its first layer.
fn lying(picture: &Picture) -> Picture {
    let mut manifest: Value = serde_json::from_slice(&picture.manifest).unwrap();
    manifest["layers"][0]["size"] = (picture.layers[0].len() + 1).into();
    Picture { manifest: manifest.to_string().into_bytes(), ..Picture::new("x") }
}

// M4 of the negative tests: what is here already isn't fetched, and so nobody would compare its size.
#[test]
fn m4_a_lying_size_of_a_layer_that_is_here_is_refused() {
    run(async {
        let picture = Arc::new(Picture::new("x"));
        let liar = Arc::new(lying(&picture));
        let (server, lies) = (serve(&picture, |_, _| None), serve(&liar, |_, _| None));
        let (honest, reference) = (format!("{}/a/b:t", server.host()), format!("{}/a/b:t", lies.host()));
        let world = World::start().await;
        let job = world.begin_pull(&ns(), &honest, quick()).await;
        job.wait().await.unwrap();
        let before = world.holdings();
        let size = picture.layers[0].len();
        let both = format!("has {size} bytes, and what names it says {}", size + 1);
        for driver in [None, Some("overlay".to_owned())] {
            let options = PullOptions { driver, ..pulling(&reference, quick()) };
            let pulled = world.transfer.pull(&auth(), &ns(), options).await.unwrap().wait().await;
            fails(pulled, Code::DataLoss, &both);
        }
        let archive = || as_file(&tar_up(&liar.layout(Some("h.io/lie:1"))));
        fails(world.import(archive(), None).await, Code::DataLoss, &both);
        world.quiet().await;
        assert_eq!(world.holdings(), before);

        // A client that stores the manifest itself can call it an image, but that isn't whole, and nobody gets it out.
        let target = liar.target();
        let mut ingest = world.content.scratch(&ns(), target.digest.algorithm()).unwrap();
        ingest.append(&liar.manifest).unwrap();
        let commit = Commit { ingest, size: None, expected: None, labels: Labels::new() };
        world.content.commit_many_blocking(&auth(), vec![commit]).unwrap();
        let lie = name("h.io/lie:1");
        world.images.put(&auth(), &ns(), &lie, &target, Labels::new()).await.unwrap();
        let check = world.images.check(&ns(), &target, &amd64()).await.unwrap();
        assert_eq!(check.missing.len(), 1, "{check:?}");
        let options = ExportOptions { names: vec![lie.clone()], platform: None };
        let to = tempfile::tempfile().unwrap().into();
        let exported = world.transfer.export(&auth(), &ns(), options, to).await.unwrap().wait().await;
        fails(exported, Code::DataLoss, &both);
        let options = PushOptions {
            name: lie,
            reference: Reference::parse(&honest).unwrap(),
            endpoint: quick(),
            platform: None,
            chunk: 0,
            mount_from: Vec::new(),
            foreign: false,
        };
        fails(world.transfer.push(&auth(), &ns(), options).await.unwrap().wait().await, Code::DataLoss, &both);
        world.stop().await;
    });
}

#[test]
fn pulls_of_one_image_side_by_side_fetch_each_blob_once() {
    run(async {
        let picture = Arc::new(Picture::new("x"));
        let server = serve(&picture, |_, _| None);
        let reference = format!("{}/a/b:t", server.host());
        let world = World::start().await;
        let mut jobs = Vec::new();
        for _ in 0..6 {
            jobs.push(world.begin_pull(&ns(), &reference, quick()).await);
        }
        for job in jobs {
            job.wait().await.unwrap();
        }
        for n in 0..2 {
            assert_eq!(server.seen().iter().filter(|s| is_layer(s, &picture, n)).count(), 1);
        }
        world.stop().await;
    });
}

/// Waits until something of it is in that phase.
async fn reaches(job: &Job, phase: Phase) {
    soon(job.progress().wait_for(|progress| progress.items.iter().any(|item| item.phase == phase))).await.unwrap();
}

/// What one ran into the others would run into too, each for as long, if they waited for each other.
#[test]
fn pulls_that_waited_for_one_that_failed_go_on_side_by_side() {
    run(async {
        let picture = Arc::new(Picture::new("x"));
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (wait, asked) = (Mutex::new(wait), (Mutex::new(0), Condvar::new()));
        let server = serve(&picture, move |seen, picture| {
            if !is_layer(seen, picture, 0) {
                return None;
            }
            let mut count = asked.0.lock().unwrap();
            *count += 1;
            asked.1.notify_all();
            if *count == 1 {
                drop(count);
                let _ = wait.lock().unwrap().recv();
            } else {
                // None of them has an answer before all have asked.
                let most = Duration::from_secs(120);
                drop(asked.1.wait_timeout_while(count, most, |count| *count < 6).unwrap());
            }
            Some(Reply::new(404, ""))
        });
        let reference = format!("{}/a/b:t", server.host());
        let world = World::start().await;
        let before = world.holdings();
        let mut jobs = Vec::new();
        for n in 0..6 {
            jobs.push(world.begin_pull(&ns(), &reference, quick()).await);
            reaches(&jobs[n], if n == 0 { Phase::Fetching } else { Phase::Elsewhere }).await;
        }
        go.send(()).unwrap();
        for job in jobs {
            fails(soon(job.wait()).await, Code::NotFound, "no such blob");
        }
        world.quiet().await;
        assert_eq!(world.holdings(), before);
        world.stop().await;
    });
}

/// That somebody gave one up says nothing of where it comes from.
#[test]
fn one_pull_takes_the_place_of_one_that_is_cancelled() {
    run(async {
        let picture = Arc::new(Picture::new("x"));
        let count = AtomicUsize::new(0);
        let server = serve(&picture, move |seen, picture| {
            let first = is_layer(seen, picture, 0) && count.fetch_add(1, Ordering::SeqCst) == 0;
            first.then(|| Reply::ok(&*picture.layers[0]).then(Then::Hang(1000)))
        });
        let reference = format!("{}/a/b:t", server.host());
        let world = World::start().await;
        let first = world.begin_pull(&ns(), &reference, quick()).await;
        reaches(&first, Phase::Fetching).await;
        let mut others = Vec::new();
        for n in 0..4 {
            others.push(world.begin_pull(&ns(), &reference, quick()).await);
            reaches(&others[n], Phase::Elsewhere).await;
        }
        first.cancel();
        fails(first.wait().await, Code::Cancelled, "");
        for job in others {
            soon(job.wait()).await.unwrap();
        }
        assert_eq!(server.seen().iter().filter(|s| is_layer(s, &picture, 0)).count(), 2);
        world.stop().await;
    });
}

#[test]
fn a_pull_that_is_to_be_slow_is_waited_for_by_those_that_are_to_be_as_slow() {
    run(async {
        let picture = Arc::new(Picture::new("x"));
        let server = serve(&picture, |_, _| None);
        let reference = format!("{}/a/b:t", server.host());
        let world = World::start().await;
        let theirs = world.holder().await;
        let slow = || PullOptions { rate: 1, ..pulling(&reference, quick()) };
        let first = world.transfer.pull(&theirs, &ns(), slow()).await.unwrap();
        reaches(&first, Phase::Fetching).await;
        let second = world.transfer.pull(&theirs, &ns(), slow()).await.unwrap();
        reaches(&second, Phase::Elsewhere).await;
        soon(world.pull(&reference, quick())).await.unwrap();
        // Without the first the second would find that all is here.
        for job in [second, first] {
            assert!(job.status().outcome.is_none());
            job.cancel();
            fails(job.wait().await, Code::Cancelled, "");
        }
        world.stop().await;
    });
}

#[test]
fn a_layer_that_stops_half_way_resumes_and_is_unpacked() {
    run(async {
        let picture = Arc::new(Picture::new("x"));
        let server = serve(&picture, |seen, picture| {
            let cut = is_layer(seen, picture, 0) && seen.from().is_none();
            cut.then(|| Reply::ok(&*picture.layers[0]).then(Then::Cut(300_000)))
        });
        let world = World::start().await;
        world.pull(&format!("{}/a/b:t", server.host()), quick()).await.unwrap();
        assert_eq!(server.seen().iter().filter(|s| is_layer(s, &picture, 0)).count(), 2);
        assert_eq!(world.read(&picture.chain(), "etc/name").await, "upper");
        world.stop().await;
    });
}

type Twist = fn(&Seen, &Picture) -> Option<Reply>;

#[test]
fn pulls_that_fail_leave_nothing_behind() {
    run(async {
        let picture = Arc::new(Picture::new("x"));
        let twists: [(&str, Code, Twist); 8] = [
            ("no such image", Code::NotFound, |_, _| Some(Reply::new(404, ""))),
            ("forbidden", Code::Denied, |_, _| Some(Reply::new(403, ""))),
            ("always stops half-way", Code::Unavailable, |seen, picture| {
                is_layer(seen, picture, 0).then(|| Reply::ranged(seen, &picture.layers[0]).then(Then::Cut(1000)))
            }),
            ("a layer is missing", Code::NotFound, |seen, picture| {
                is_layer(seen, picture, 1).then(|| Reply::new(404, ""))
            }),
            ("a layer is another", Code::DataLoss, |seen, picture| {
                let mut other = picture.layers[0].clone();
                other[1000] ^= 1;
                is_layer(seen, picture, 0).then(|| Reply::ok(other))
            }),
            ("a layer has another size", Code::DataLoss, |seen, picture| {
                is_layer(seen, picture, 0).then(|| Reply::ok(&picture.layers[0][1..]))
            }),
            ("the config is another", Code::DataLoss, |seen, picture| {
                let mut other = picture.config.clone();
                other[5] ^= 1;
                seen.path().ends_with(&sha(&picture.config).to_string()).then(|| Reply::ok(other))
            }),
            ("the manifest is of another kind", Code::Unimplemented, |seen, _| {
                seen.path().contains("/manifests/").then(|| Reply::ok("{}").with("content-type", "text/x-unknown"))
            }),
        ];
        let world = World::start().await;
        let before = world.holdings();
        for (what, code, twist) in twists {
            let server = serve(&picture, twist);
            let error = world.pull(&format!("{}/a/b:t", server.host()), quick()).await.expect_err(what);
            assert_eq!(error.code, code, "{what}: {error}");
            world.quiet().await;
            assert_eq!(world.holdings(), before, "{what}");
        }
        let dead = Server::new(|_| Reply::ok("")).host();
        fails(world.pull(&format!("{dead}/a:t"), quick()).await, Code::Unavailable, "cannot be reached");
        // A config that lies about its layers: found out by extraction, when the bytes are here.
        let liar =
            Arc::new(Picture::with(picture.tars.clone(), picture.layers.clone(), Some(vec![sha(b"?"), sha(b"!")])));
        let server = serve(&liar, |_, _| None);
        fails(world.pull(&format!("{}/a/b:t", server.host()), quick()).await, Code::DataLoss, "");
        world.quiet().await;
        assert_eq!(world.holdings(), before);
        world.stop().await;
    });
}

#[test]
fn a_cancelled_pull_leaves_nothing_behind() {
    run(async {
        let picture = Arc::new(Picture::new("x"));
        let (tell, told) = std::sync::mpsc::channel();
        let server = serve(&picture, move |seen, picture| {
            is_layer(seen, picture, 0).then(|| {
                tell.send(()).unwrap();
                Reply::ok(&*picture.layers[0]).then(Then::Hang(300_000))
            })
        });
        let world = World::start().await;
        let before = world.holdings();
        let job = world.begin_pull(&ns(), &format!("{}/a/b:t", server.host()), quick()).await;
        let canceller = job.clone();
        let waiting = std::thread::spawn(move || {
            told.recv().unwrap();
            canceller.cancel();
        });
        fails(job.wait().await, Code::Cancelled, "");
        waiting.join().unwrap();
        world.quiet().await;
        assert_eq!(world.holdings(), before);
        world.stop().await;
    });
}

#[test]
fn a_crash_of_the_actor_does_not_end_its_jobs() {
    run(async {
        let picture = Arc::new(Picture::new("x"));
        let (tell, told) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (wait, count) = (std::sync::Mutex::new(wait), AtomicUsize::new(0));
        let server = serve(&picture, move |_, _| {
            if count.fetch_add(1, Ordering::SeqCst) == 0 {
                tell.send(()).unwrap();
                let _ = wait.lock().unwrap().recv();
            }
            None
        });
        let world = World::start().await;
        let job = world.begin_pull(&ns(), &format!("{}/a/b:t", server.host()), quick()).await;
        told.recv().unwrap();
        world.kernel.poison("transfer").unwrap();
        world.kernel.ready().await.unwrap();
        go.send(()).unwrap();
        job.wait().await.unwrap();
        world.stop().await;
    });
}

/// What asks nobody waits for nobody.
#[test]
fn registries_that_dont_answer_hold_up_no_name_and_no_artifact() {
    run(async {
        let (tell, told) = std::sync::mpsc::channel();
        let server = Server::new(move |seen| match seen.method.as_str() {
            "HEAD" => Reply::new(405, ""),
            _ => {
                let _ = tell.send(());
                Reply::ok("never").then(Then::Hang(0))
            }
        });
        let world = World::start().await;
        let reference = Reference::parse(&format!("{}/a/b:t", server.host())).unwrap();
        let asked: Vec<_> = (0..2)
            .map(|_| {
                let (transfer, reference) = (world.transfer.clone(), reference.clone());
                actix_rt::spawn(async move { transfer.referrers(&auth(), reference, quick(), String::new()).await })
            })
            .collect();
        let both = move || [told.recv().unwrap(), told.recv().unwrap()];
        actix_rt::task::spawn_blocking(both).await.unwrap();
        let options = ArtifactOptions {
            name: name("h.io/artifact:1"),
            artifact_type: "application/vnd.example.report".into(),
            config: None,
            layers: Vec::new(),
            subject: None,
            annotations: Labels::new(),
        };
        soon(async {
            world.transfer.may_name(&ns(), &options.name, &sha(b"whatever")).await.unwrap();
            world.transfer.artifact(&auth(), &ns(), options.clone()).await.unwrap();
        })
        .await;
        assert!(asked.iter().all(|asked| !asked.is_finished()));
        asked.iter().for_each(|asked| asked.abort());
        world.stop().await;
    });
}
