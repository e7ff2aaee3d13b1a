//! Artifacts: files in a registry by themselves or beside an image, found by the API or the tag that stands for it.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use cofferdam_client::{ArtifactOptions, PullOptions};
use cofferdam_integration::{bounded, images};
use cofferdam_types::{Code, Descriptor, media};
use serde_json::{Value, json};

use crate::support::{
    craft::{Picture, sha},
    server::{Response, Server, serve_picture},
    world::{Registry, World, directory},
};

/// What coffer writes, which must be right.
fn said(world: &World, args: &[&str]) -> String {
    let output = world.daemon.coffer(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn raw(reference: &str) -> Value {
    let output = Command::new("skopeo")
        .args(["inspect", "--raw", "--tls-verify=false"])
        .arg(format!("docker://{reference}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn files_are_pushed_and_pulled_as_they_were() {
    bounded(async {
        let registry = Registry::start(&[], &[]);
        let world = World::start().await;
        let before = world.holdings().await;
        let dir = tempfile::tempdir().unwrap();
        let (report, data) = (dir.path().join("report.json"), dir.path().join("data"));
        fs::write(&report, r#"{"a": 1}"#).unwrap();
        fs::write(&data, crate::support::craft::noise(3 << 20)).unwrap();
        let reference = registry.reference("files/things:1");
        let typed = format!("{}:application/json", path(&report));
        let kind = "application/vnd.example.things";
        let push = ["artifact", "push", "--plain-http", "--type", kind, "-a", "k=v", &reference, &typed, path(&data)];
        let digest = said(&world, &push);
        // Nothing of it stays here.
        said(&world, &["gc"]);
        world.settles(&before).await;

        let manifest = raw(&reference);
        assert_eq!((&manifest["artifactType"], &manifest["annotations"]["k"]), (&json!(kind), &json!("v")));
        assert_eq!(manifest["config"]["mediaType"], json!("application/vnd.oci.empty.v1+json"));
        assert_eq!(manifest["layers"][0]["mediaType"], json!("application/json"));
        assert_eq!(manifest["layers"][1]["annotations"]["org.opencontainers.image.title"], json!("data"));

        let other = World::start().await;
        let to = dir.path().join("made/here");
        let written = said(&other, &["artifact", "pull", "--plain-http", &reference, path(&to)]);
        assert_eq!(written.lines().count(), 2, "{written}");
        for name in ["report.json", "data"] {
            assert_eq!(fs::read(to.join(name)).unwrap(), fs::read(dir.path().join(name)).unwrap(), "{name}");
        }
        let target = other.ns.images().get(&reference).info().await.unwrap().target;
        assert_eq!(target.digest.to_string(), digest);
        // What is there isn't written over, unless that is said.
        fs::write(to.join("data"), "mine").unwrap();
        let refused = other.daemon.coffer(&["artifact", "pull", "--plain-http", &reference, path(&to)]);
        assert_eq!((refused.status.code(), fs::read(to.join("data")).unwrap()), (Some(1), b"mine".to_vec()));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("--force"), "{refused:?}");
        said(&other, &["artifact", "pull", "--plain-http", "--force", &reference, path(&to)]);
        assert_ne!(fs::read(to.join("data")).unwrap(), b"mine");
        // It is no image: it can't be unpacked or run, which says why.
        let error = other.pull(&reference).wait().await.unwrap_err();
        assert!([Code::FailedPrecondition, Code::Unimplemented].contains(&error.code), "{error}");
        let error = other.ns.images().get(&reference).unpack("", "").await.unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition, "{error}");
    });
}

#[test]
fn an_image_is_no_artifact_and_none_of_its_layers_is_fetched() {
    bounded(async {
        let picture = Picture::sample("image", 1000);
        let of = picture.clone();
        let server =
            Server::start(move |request| serve_picture(&of, request).unwrap_or_else(|| Response::new(404, "{}")));
        let world = World::start().await;
        let before = world.holdings().await;
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        let pull = ["artifact", "pull", "--plain-http", &server.reference(), path(&to)];
        let refused = world.daemon.coffer(&pull);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(1) && said.contains("coffer image pull"), "{refused:?}");
        assert!(!to.exists());
        let config = sha(&picture.config).to_string();
        let blobs: Vec<_> = server.seen().into_iter().filter(|request| request.path.contains("/blobs/")).collect();
        assert!(blobs.iter().all(|request| request.path.ends_with(&config)), "no layer was asked for");
        world.settles(&before).await;
    });
}

#[test]
fn what_belongs_to_an_image_is_found_by_the_tag_where_the_registry_has_no_api() {
    bounded(async {
        let registry = Registry::start(&[], &["busybox"]);
        let world = World::start().await;
        let reference = registry.reference("busybox:latest");
        world.pull(&reference).wait().await.unwrap();
        let target = world.ns.images().get(&reference).info().await.unwrap().target;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bill");
        fs::write(&file, "of material").unwrap();
        let attach =
            |kind: &str| said(&world, &["artifact", "attach", "--plain-http", "--type", kind, &reference, path(&file)]);
        let (first, second) = (attach("text/bill"), attach("text/other"));
        // The same again is the same.
        assert_eq!(attach("text/bill"), first);
        // By the fallback tag of the distribution-spec, which others look at.
        let list = raw(&format!("{}:sha256-{}", registry.reference("busybox"), target.digest.hex()));
        let digests: Vec<_> = list["manifests"].as_array().unwrap().iter().map(|one| one["digest"].clone()).collect();
        assert_eq!(digests, [json!(first), json!(second)]);
        assert_eq!(
            raw(&format!("{}@{first}", registry.reference("busybox")))["subject"]["digest"],
            json!(target.digest)
        );

        let other = World::start().await;
        let list = |kind: &str| {
            let mut args = vec!["artifact", "ls", "--plain-http", "-o", "json", &reference];
            if !kind.is_empty() {
                args.extend(["--type", kind]);
            }
            let list: Value = serde_json::from_str(&said(&other, &args)).unwrap();
            list.as_array().unwrap().iter().map(|one| one["digest"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(list(""), [first.clone(), second.clone()]);
        assert_eq!(list("text/other"), [second]);
        assert!(list("text/none").is_empty());
        let bill = format!("{}@{first}", registry.reference("busybox"));
        said(&other, &["artifact", "pull", "--plain-http", &bill, path(&dir.path().join("to"))]);
        assert_eq!(fs::read(dir.path().join("to/bill")).unwrap(), b"of material");
        // An image that nothing belongs to, and one that isn't there.
        let none = PullOptions { reference: registry.reference("nothing:1"), ..PullOptions::default() };
        let error = world.ns.images().referrers(&none, "").all().await.unwrap_err();
        assert_eq!(error.code, Code::NotFound, "{error}");
    });
}

#[test]
fn many_that_are_attached_at_once_are_all_listed() {
    bounded(async {
        let registry = Registry::start(&[], &["busybox"]);
        let world = World::start().await;
        let reference = registry.reference("busybox:latest");
        world.pull(&reference).wait().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bill");
        fs::write(&file, "of material").unwrap();
        let attach = |n: usize| {
            let kind = format!("text/bill-{n}");
            let args = ["artifact", "attach", "--plain-http", "--type", &kind, &reference, path(&file)];
            world.daemon.command().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let all: Vec<_> = (0..12).map(attach).collect();
        let mut attached: Vec<_> = all
            .into_iter()
            .map(|child| {
                let output = child.wait_with_output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                String::from_utf8(output.stdout).unwrap().trim().to_owned()
            })
            .collect();
        attached.sort();
        let options = PullOptions { reference, ..PullOptions::default() };
        let found = world.ns.images().referrers(&options, "").all().await.unwrap();
        let mut found: Vec<_> = found.into_iter().map(|one| one.digest.to_string()).collect();
        found.sort();
        assert_eq!(found, attached);
    });
}

#[test]
fn the_referrers_api_is_read_page_by_page_and_within_bounds() {
    bounded(async {
        let picture = Picture::sample("pages", 1000);
        let entry = |n: usize, kind: &str| Descriptor {
            artifact_type: Some(kind.into()),
            ..Descriptor::new(media::OCI_MANIFEST, sha(n.to_string().as_bytes()), 9)
        };
        let list = |entries: Value| json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries });
        let of = picture.clone();
        let server = Server::start(move |request| {
            if !request.path.contains("/referrers/") {
                return serve_picture(&of, request).unwrap_or_else(|| Response::new(404, "{}"));
            }
            // The server behind the tests drops queries: the page is in the path.
            let answer = |entries| Response::new(200, list(entries).to_string()).with("content-type", media::OCI_INDEX);
            match request.path.rsplit('/').next().unwrap() {
                "second" => answer(json!([entry(3, "a/b")])),
                "endless" => answer(json!([])).with("link", "<endless>; rel=\"next\""),
                _ => answer(json!([entry(1, "a/b"), entry(2, "c/d")]))
                    .with("link", "</v2/test/image/referrers/second>; rel=\"next\""),
            }
        });
        let world = World::start().await;
        let options = PullOptions { reference: server.reference(), ..PullOptions::default() };
        let all = world.ns.images().referrers(&options, "").all().await.unwrap();
        assert_eq!(all, [entry(1, "a/b"), entry(2, "c/d"), entry(3, "a/b")]);
        // One that doesn't choose itself is helped.
        let some = world.ns.images().referrers(&options, "a/b").all().await.unwrap();
        assert_eq!(some, [entry(1, "a/b"), entry(3, "a/b")]);

        for (what, body, code) in [
            ("no index", "{}".to_owned(), Code::InvalidArgument),
            ("no JSON", "x".to_owned(), Code::InvalidArgument),
            ("endless", String::new(), Code::ResourceExhausted),
        ] {
            let (picture, empty) = (picture.clone(), list(json!([])).to_string());
            let server = Server::start(move |request| {
                if !request.path.contains("/referrers/") {
                    return serve_picture(&picture, request).unwrap_or_else(|| Response::new(404, "{}"));
                }
                if body.is_empty() {
                    return Response::new(200, empty.clone()).with("link", "<more>; rel=\"next\"");
                }
                Response::new(200, body.clone())
            });
            let options = PullOptions { reference: server.reference(), ..PullOptions::default() };
            let error = world.ns.images().referrers(&options, "").all().await.unwrap_err();
            assert_eq!(error.code, code, "{what}: {error}");
        }
    });
}

#[test]
fn what_is_no_artifact_is_not_made() {
    bounded(async {
        let world = World::start().await;
        let busybox = directory(&images().join("oci/busybox"));
        world.import("busybox", busybox).wait().await.unwrap();
        let before = world.holdings().await;
        let here = world.ns.images().get("busybox").info().await.unwrap().target;
        let gone = Descriptor::new("a/b", sha(b"gone"), 4);
        let make = |change: &dyn Fn(&mut ArtifactOptions)| {
            let mut options =
                ArtifactOptions { name: "h.io/x:1".into(), artifact_type: "a/b".into(), ..ArtifactOptions::default() };
            change(&mut options);
            world.ns.images().create_artifact(&options)
        };
        type Change<'a> = &'a dyn Fn(&mut ArtifactOptions);
        let table: [(&str, Change<'_>, Code, &str); 6] = [
            ("a file that isn't here", &|o| o.layers.push(gone.clone()), Code::FailedPrecondition, "is not here"),
            ("a config that isn't here", &|o| o.config = Some(gone.clone()), Code::FailedPrecondition, "is not here"),
            ("no type", &|o| o.artifact_type.clear(), Code::InvalidArgument, "media type"),
            ("a type that is none", &|o| o.artifact_type = "report".into(), Code::InvalidArgument, "media type"),
            (
                "a wrong size",
                &|o| o.layers.push(Descriptor { size: here.size + 1, ..here.clone() }),
                Code::InvalidArgument,
                "bytes",
            ),
            ("a name that is none", &|o| o.name = "X Y".into(), Code::InvalidArgument, "reference"),
        ];
        for (what, change, code, word) in table {
            let error = make(change).info().await.unwrap_err();
            assert!(error.code == code && error.to_string().contains(word), "{what}: {error}");
            world.settles(&before).await;
        }
        // What it belongs to needn't be here. It keeps its files, and goes with its name.
        let made = make(&|o| {
            o.subject = Some(gone.clone());
            o.layers.push(here.clone());
        });
        let target = made.info().await.unwrap().target;
        world.client.collector().collect(false).await.unwrap();
        assert!(world.ns.content().get(&target.digest.to_string()).info().await.is_ok());
        world.ns.images().remove("h.io/x:1").await.unwrap();
        world.client.collector().collect(false).await.unwrap();
        world.settles(&before).await;
    });
}
