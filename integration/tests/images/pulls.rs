//! Pulling: from Debian's registry in every way that it can be spoken to, and from one that hangs, stops or is dead.

use std::{path::Path, sync::Arc, time::Duration};

use cofferdam_client::{Job, JobInfo, PullOptions, PullPolicy, Secret};
use cofferdam_integration::{bounded, until_async};
use cofferdam_types::{Code, media};

use crate::support::{
    craft::{Picture, arch, noise, sha},
    server::{Door, End, Request, Response, Server, serve_picture},
    tree::{Kind, assert_same},
    world::{Listed, Registry, World, listed, umoci},
};

/// Larger than what fits into the buffers of a connection, so that a transfer can be caught in the middle.
const LARGE: usize = 8 << 20;

#[test]
fn every_image_that_is_pulled_becomes_the_tree_that_umoci_makes() {
    // The layers of minbase are the lower ones of stack.
    let layouts: Vec<_> =
        listed().into_iter().filter(|image| image.kind == "oci-layout" && !image.name.starts_with("minbase")).collect();
    let names: Vec<&str> = layouts.iter().map(|image| image.name.as_str()).collect();
    assert!(names.len() > 10 && names.contains(&"stack") && names.contains(&"stack-zstd"));
    let registry = Registry::start(&[], &names);
    for Listed { name, layers, .. } in &layouts {
        bounded(async {
            // One that has seen nothing, so that no layer is there already.
            let world = World::start().await;
            let reference = registry.reference(name);
            let job = world.pull_with(PullOptions { reference, plain_http: true, ..PullOptions::default() });
            let mut last = JobInfo::default();
            let names = job.follow(Duration::from_millis(20), |info| last = info.clone()).await;
            let names = names.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(names, [format!("{}:latest", registry.reference(name))]);
            assert!(last.items.iter().all(|item| item.done == item.total && item.phase == "done"), "{name}: {last:?}");
            assert_eq!(world.ns.images().get(&names[0]).detail("").await.unwrap().layers.len(), *layers, "{name}");
            let twin = if name == "index" { "busybox" } else { name.trim_end_matches("-zstd") };
            assert_same(name, &world.container_tree(&names[0], "").await, &umoci(twin));
        });
    }
}

#[test]
fn an_index_is_resolved_to_the_platform() {
    bounded(async {
        let registry = Registry::start(&[], &["index", "busybox"]);
        let world = World::start().await;
        let names = world.pull(&registry.reference("index")).wait().await.unwrap();
        let image = world.ns.images().get(&names[0]);
        let detail = image.detail("").await.unwrap();
        // The name stands for the index, and what was fetched is the entry for this machine.
        assert_eq!(detail.info.target.media_type, media::OCI_INDEX);
        assert_eq!(detail.platform.architecture, arch());
        assert!(detail.unpacked);
        assert_eq!(world.run(&names[0], &["echo", "here"]).await.unwrap(), (0, "here\n".into()));

        // Another platform on demand: it arrives, though it may not run.
        let other = if arch() == "arm64" { "amd64" } else { "arm64" };
        let foreign = PullOptions {
            reference: registry.reference("index"),
            platform: format!("linux/{other}"),
            ..PullOptions::default()
        };
        world.pull_with(foreign).wait().await.unwrap();
        let foreign = image.detail(&format!("linux/{other}")).await.unwrap();
        assert_eq!(foreign.platform.architecture, other);
        assert_ne!(foreign.manifest.digest, detail.manifest.digest);

        // By its digest, and one that the index doesn't have.
        let target = detail.info.target.digest;
        let names = world.pull(&format!("{}@{target}", registry.reference("index"))).wait().await.unwrap();
        assert_eq!(world.ns.images().get(&names[0]).detail("").await.unwrap().manifest, detail.manifest);
        let before = world.holdings().await;
        let none = PullOptions {
            reference: registry.reference("index"),
            platform: "linux/s390x".into(),
            ..PullOptions::default()
        };
        world.refused("no such platform", &before, world.pull_with(none), Code::NotFound, "s390x").await;
    });
}

#[test]
fn over_tls_with_an_authority_of_its_own_and_basic_authentication() {
    bounded(async {
        let registry = Registry::start(&["--tls", "--user", "me:hunter22"], &["busybox"]);
        let other = Registry::start(&["--tls"], &["busybox"]);
        let options = |authority: Vec<u8>, user: &str, secret: &str| PullOptions {
            reference: registry.reference("busybox"),
            ca_certificates: authority,
            user: user.into(),
            secret: Secret(secret.into()),
            ..PullOptions::default()
        };
        let world = World::start().await;
        let before = world.holdings().await;
        for (what, options, code, word) in [
            ("a wrong secret", options(registry.authority(), "me", "wrong-one"), Code::Denied, "check them"),
            ("a wrong user", options(registry.authority(), "you", "hunter22"), Code::Denied, "check them"),
            ("no user", options(registry.authority(), "", ""), Code::Denied, "give a user and a secret"),
            ("another authority", options(other.authority(), "me", "hunter22"), Code::Unavailable, "TLS"),
            ("no PEM", options(b"no certificate".to_vec(), "me", "hunter22"), Code::InvalidArgument, "PEM"),
        ] {
            let error = world.refused(what, &before, world.pull_with(options), code, word).await;
            assert!(!error.to_string().contains("hunter22") && !error.to_string().contains("wrong-one"), "{what}");
        }
        let job = world.pull_with(options(registry.authority(), "me", "hunter22"));
        let names = job.wait().await.unwrap();
        assert_same("busybox", &world.container_tree(&names[0], "").await, &umoci("busybox"));
        assert!(!format!("{:?}", job.info().await.unwrap()).contains("hunter22"));
        assert!(!world.daemon.log().contains("hunter22"));

        // Without credentials where none are needed.
        let open = PullOptions {
            reference: other.reference("busybox"),
            ca_certificates: other.authority(),
            ..PullOptions::default()
        };
        world.pull_with(open).wait().await.unwrap();
    });
}

#[test]
fn a_run_pulls_what_is_missing() {
    bounded(async {
        let registry = Registry::start(&[], &["busybox", "user"]);
        let world = World::start().await;
        let before = world.holdings().await;
        let reference = registry.reference("busybox");
        let never = world.run_with(&reference, &["true"], |run| run.pull = PullPolicy::Never).await.unwrap_err();
        assert_eq!((never.code, &*never.kind), (Code::NotFound, "image"));
        world.settles(&before).await;
        assert_eq!(world.run(&reference, &["echo", "pulled"]).await.unwrap(), (0, "pulled\n".into()));
        registry.stop();
        assert_eq!(world.run(&reference, &["echo", "kept"]).await.unwrap(), (0, "kept\n".into()));

        // And where it can't be had the run fails with the pull's own error.
        let before = world.holdings().await;
        for (image, policy) in [("user", PullPolicy::Missing), ("busybox", PullPolicy::Always)] {
            let reference = registry.reference(image);
            let error = world.run_with(&reference, &["true"], |run| run.pull = policy).await.unwrap_err();
            assert_eq!(error.code, Code::Unavailable, "{error}");
            assert!(error.to_string().contains("cannot be reached"), "{error}");
            world.settles(&before).await;
        }
    });
}

/// Whether the request is for this layer.
fn wants(request: &Request, picture: &Picture, layer: usize) -> bool {
    request.path.ends_with(&sha(&picture.layers[layer]).to_string())
}

/// A registry whose first layer stops after half of it until the door is opened.
fn held(picture: &Picture) -> (Server, Arc<Door>) {
    let door = Arc::new(Door::default());
    let (picture, waits) = (picture.clone(), door.clone());
    let server = Server::start(move |request| {
        let mut response = serve_picture(&picture, request).unwrap_or_else(|| Response::new(404, "{}"));
        if wants(request, &picture, 0) {
            response = response.end(End::Wait(LARGE / 2, waits.clone()));
        }
        response
    });
    (server, door)
}

/// Waits until bytes of a layer are on the disk.
async fn under_way(job: &Job) {
    until_async("the layer is coming", async || {
        let info = job.info().await.unwrap();
        assert_eq!(info.state, "running", "{info:?}");
        info.items.iter().any(|item| item.done > 1 << 20).then_some(())
    })
    .await;
}

#[test]
fn a_pull_that_is_cancelled_leaves_nothing() {
    bounded(async {
        let world = World::start().await;
        let before = world.holdings().await;
        let (server, door) = held(&Picture::sample("cancelled", LARGE));
        let job = world.pull(&server.reference());
        under_way(&job).await;
        assert!(!world.holdings().await.beyond(&before).is_empty(), "what could be left behind is seen");
        job.cancel().await.unwrap();
        // Cancelling returned, so there is nothing to wait for but directories that are being deleted.
        let rest = world.holdings().await.beyond(&before);
        let goes =
            |thing: &String| ["trash ", "snapshot ", "empty snapshot "].iter().any(|kind| thing.starts_with(kind));
        assert!(rest.iter().all(goes), "{rest:?}");
        world.refused("cancelled", &before, job.clone(), Code::Cancelled, "").await;
        job.cancel().await.unwrap();
        door.open();
        // And again, to the end.
        let names = world.pull(&server.reference()).wait().await.unwrap();
        assert!(world.ns.images().get(&names[0]).detail("").await.unwrap().unpacked);
    });
}

#[test]
fn a_pull_goes_on_without_the_one_who_asked_for_it() {
    bounded(async {
        let world = World::start().await;
        let (server, door) = held(&Picture::sample("left alone", LARGE));
        let other = world.daemon.client().await;
        let options = PullOptions { reference: server.reference(), ..PullOptions::default() };
        let job = other.namespace(world.daemon.namespace()).images().pull(&options);
        under_way(&job).await;
        let id = job.info().await.unwrap().id;
        drop((job, other));
        until_async("its connection is gone", async || {
            let status = world.client.system().status().await.unwrap();
            (status.connections == 1).then_some(())
        })
        .await;
        door.open();
        let names = world.ns.jobs().get(&id).wait().await.unwrap();
        assert_eq!(names, [server.reference()]);
    });
}

#[test]
fn a_daemon_that_is_killed_during_a_pull_leaves_nothing_that_lasts() {
    bounded(async {
        let mut world = World::start().await;
        let before = world.holdings().await;
        let (server, door) = held(&Picture::sample("killed", LARGE));
        let job = world.pull(&server.reference());
        under_way(&job).await;
        world.daemon.restart();
        assert!(cofferdam_client::is_lost(&job.wait().await.unwrap_err()));
        door.open();
        world.connect().await;
        let names = world.pull(&server.reference()).wait().await.unwrap();
        assert!(world.ns.images().get(&names[0]).detail("").await.unwrap().unpacked);
        // What an image of two layers has, and nothing of the first try.
        let rest = world.holdings().await.beyond(&before);
        let count = |what: &str| rest.iter().filter(|thing| thing.starts_with(what)).count();
        let counted = ["image", "blob", "file", "overlay snapshot", "snapshot", "ingest", "trash"].map(count);
        assert_eq!(counted, [1, 4, 4, 2, 2, 0, 0], "{rest:#?}");
    });
}

#[test]
fn a_registry_that_stops_half_way() {
    bounded(async {
        let world = World::start().await;
        let before = world.holdings().await;
        let picture = Picture::sample("half", LARGE);
        // Every time, so that no patience helps.
        let copy = picture.clone();
        let always = Server::start(move |request| {
            let response = serve_picture(&copy, request).unwrap_or_else(|| Response::new(404, "{}"));
            if wants(request, &copy, 0) { response.end(End::Cut(100_000)) } else { response }
        });
        world.refused("always", &before, world.pull(&always.reference()), Code::Unavailable, "stopped at byte").await;

        // In a manifest, and in its first answer.
        for (what, path) in [("in the manifest", "/manifests/"), ("in the config", "/blobs/")] {
            let copy = picture.clone();
            let server = Server::start(move |request| {
                let response = serve_picture(&copy, request).unwrap_or_else(|| Response::new(404, "{}"));
                if request.path.contains(path) { response.end(End::Cut(20)) } else { response }
            });
            world.refused(what, &before, world.pull(&server.reference()), Code::Unavailable, "").await;
        }

        // For good, in the middle.
        let (mut server, door) = held(&picture);
        let job = world.pull(&server.reference());
        under_way(&job).await;
        server.die();
        door.open();
        world.refused("for good", &before, job, Code::Unavailable, "stopped at byte").await;

        // Once: what is here already is not fetched again.
        let copy = picture.clone();
        let once = Server::start(move |request| {
            let response = serve_picture(&copy, request).unwrap_or_else(|| Response::new(404, "{}"));
            let cut = wants(request, &copy, 0) && request.from().is_none();
            if cut { response.end(End::Cut(LARGE / 2)) } else { response }
        });
        let names = world.pull(&once.reference()).wait().await.unwrap();
        let again: Vec<_> =
            once.seen().iter().filter(|request| wants(request, &picture, 0)).map(Request::from).collect();
        assert!(matches!(again[..], [None, Some(from)] if from > 1 << 20), "{again:?}");
        let tree = world.container_tree(&names[0], "").await;
        assert_eq!(tree[Path::new("etc/name")].kind, Kind::file(b"upper"));
        assert_eq!(tree[Path::new("big")].kind, Kind::file(&noise(LARGE)));
    });
}

#[test]
fn a_dead_registry() {
    bounded(async {
        let world = World::start().await;
        let before = world.holdings().await;
        let mut server = Server::of(Picture::sample("dead", 1000));
        server.die();
        let reference = server.reference();
        world.refused("dead", &before, world.pull(&reference), Code::Unavailable, "cannot be reached").await;
        let unknown = world.pull("registry.invalid/a/b:latest");
        world.refused("no such host", &before, unknown, Code::Unavailable, "name service").await;

        // One that is there and isn't one.
        let server = Server::start(|_| Response::new(500, "{}"));
        world.refused("fails", &before, world.pull(&server.reference()), Code::Unavailable, "try again later").await;
        let server = Server::start(|_| Response::new(404, "{}"));
        world.refused("empty", &before, world.pull(&server.reference()), Code::NotFound, "check the name").await;
        let server = Server::start(|_| Response::new(401, "{}").with("www-authenticate", "Basic realm=\"x\""));
        world.refused("closed", &before, world.pull(&server.reference()), Code::Denied, "give a user").await;
        for (what, reference) in [("no name", ""), ("no host", "/a"), ("odd", "A b c"), ("up", "127.0.0.1:1/../a:x")] {
            let error = world.pull(reference).wait().await.unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument, "{what}: {error}");
        }
        world.settles(&before).await;
    });
}
