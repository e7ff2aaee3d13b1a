//! Manifests of docker's first schema, from a registry that has nothing else.

use cofferdam_client::PullOptions;
use cofferdam_integration::bounded;
use cofferdam_types::{Code, media};
use serde_json::{Value, json};

use crate::support::{
    craft::{Tar, arch, gzip, sha},
    server::{Response, Server},
    tree::Kind,
    world::World,
};

const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// Three steps that have files, one of which is empty by its bytes alone, and one that has none.
fn layers() -> Vec<Vec<u8>> {
    vec![
        gzip(&Tar::new().file("etc/name", "lower").end()),
        gzip(&[0; 1024]),
        gzip(&Tar::new().file("etc/name", "upper").file("etc/more", "x").end()),
    ]
}

/// The newest first.
fn manifest(layers: &[Vec<u8>], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let step = |n: usize, more: Value| {
        let mut step = json!({ "id": format!("{n}"), "created": format!("2016-01-0{}T00:00:00Z", n + 1),
            "container_config": { "Cmd": ["/bin/sh", "-c", format!("step {n}")] } });
        step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "v1Compatibility": step.to_string() })
    };
    let newest = json!({ "architecture": arch(), "os": "linux", "author": "ann", "throwaway": true,
        "config": { "Cmd": ["/bin/true"], "Env": ["A=1"] } });
    let mut body = json!({ "schemaVersion": 1, "name": "test/image", "tag": "latest", "architecture": arch(),
        "fsLayers": [
            { "blobSum": "sha256:a3ed95caeb02ffe68cdd9fd84406680ae93d633cb16422d00e8a7c22955b46d4" },
            { "blobSum": sha(&layers[2]) }, { "blobSum": sha(&layers[1]) }, { "blobSum": sha(&layers[0]) }],
        "history": [step(3, newest), step(2, json!({})), step(1, json!({})), step(0, json!({}))] });
    change(&mut body);
    serde_json::to_vec_pretty(&body).unwrap()
}

fn server(manifest: Vec<u8>, layers: Vec<Vec<u8>>) -> Server {
    Server::start(move |request| {
        let last = request.path.rsplit('/').next().unwrap_or_default();
        if request.path.contains("/manifests/") {
            return Response::new(200, manifest.clone()).with("content-type", SCHEMA_1);
        }
        match layers.iter().find(|layer| sha(layer).to_string() == last) {
            Some(layer) => Response::new(200, layer.clone()),
            None => Response::new(404, "{}"),
        }
    })
}

fn asked(server: &Server) -> PullOptions {
    PullOptions { reference: server.reference(), schema1: true, ..PullOptions::default() }
}

#[test]
fn it_becomes_an_oci_image_where_that_is_asked_for() {
    bounded(async {
        let world = World::start().await;
        let before = world.holdings().await;
        let served = server(manifest(&layers(), |_| {}), layers());
        let error =
            world.refused("unasked", &before, world.pull(&served.reference()), Code::Unimplemented, "--schema1").await;
        assert!(error.message.contains("manifest.v1"), "{error}");

        let name = world.pull_with(asked(&served)).wait().await.unwrap().remove(0);
        let image = world.ns.images().get(&name);
        let info = image.info().await.unwrap();
        let detail = image.detail("").await.unwrap();
        assert_eq!(info.target.media_type, media::OCI_MANIFEST);
        // Of what has nothing in it there is a step, and no layer.
        assert_eq!((detail.layers.len(), detail.unpacked), (2, true));
        let config: Value = serde_json::from_slice(&detail.config).unwrap();
        assert_eq!((&config["author"], &config["config"]["Env"]), (&json!("ann"), &json!(["A=1"])));
        let empty: Vec<_> =
            config["history"].as_array().unwrap().iter().map(|step| step["empty_layer"].clone()).collect();
        assert_eq!(empty, [Value::Null, json!(true), Value::Null, json!(true)]);
        assert_eq!(config["history"][0]["created_by"], json!("/bin/sh -c step 0"));
        let tree = world.container_tree(&name, "").await;
        assert_eq!(tree[std::path::Path::new("etc/name")].kind, Kind::file(b"upper"));
        assert!(tree.contains_key(std::path::Path::new("etc/more")));
        // What is known to be empty isn't fetched.
        assert!(served.seen().iter().all(|request| !request.path.contains("a3ed95ca")));
        // The same again is the same.
        let again = world.pull_with(asked(&served)).wait().await.unwrap().remove(0);
        assert_eq!(world.ns.images().get(&again).info().await.unwrap().target, info.target);
    });
}

#[test]
fn what_is_wrong_with_it_leaves_nothing() {
    bounded(async {
        let world = World::start().await;
        let before = world.holdings().await;
        let good = layers();
        let mut cut = good.clone();
        cut[0].truncate(20);
        let other = if arch() == "arm64" { "amd64" } else { "arm64" };
        let drop_one = |body: &mut Value| drop(body["history"].as_array_mut().unwrap().pop());
        let foreign = |body: &mut Value| {
            let step = json!({ "architecture": other, "os": "linux", "throwaway": true }).to_string();
            body["history"][0]["v1Compatibility"] = json!(step);
        };
        for (what, manifest, layers, code) in [
            ("fewer steps than layers", manifest(&good, drop_one), good.clone(), Code::InvalidArgument),
            ("another platform", manifest(&good, foreign), good.clone(), Code::NotFound),
            ("a blob that isn't there", manifest(&good, |_| {}), good[1..].to_vec(), Code::NotFound),
            ("a layer that was cut", manifest(&cut, |_| {}), cut.clone(), Code::DataLoss),
            ("no JSON", b"{".to_vec(), good.clone(), Code::DataLoss),
            (
                "a digest that is none",
                manifest(&good, |body| body["fsLayers"][1]["blobSum"] = json!("sha256:../..")),
                good.clone(),
                Code::InvalidArgument,
            ),
            (
                "another schema",
                manifest(&good, |body| body["schemaVersion"] = json!(2)),
                good.clone(),
                Code::InvalidArgument,
            ),
        ] {
            let served = server(manifest, layers);
            world.refused(what, &before, world.pull_with(asked(&served)), code, "").await;
        }
        // By a digest it must be that.
        let right = sha(&manifest(&good, |_| {}));
        let served = server(manifest(&good, |_| {}), good);
        let pull = |end: String| {
            let reference = format!("{}/test/image{end}", served.address());
            world.pull_with(PullOptions { reference, ..asked(&served) })
        };
        let other = pull(format!("@sha256:{}", "0".repeat(64)));
        world.refused("another digest", &before, other, Code::DataLoss, "unexpected digest").await;
        // What is made of it has another one, and isn't called by this.
        let alone = pull(format!("@{right}"));
        world.refused("a digest alone", &before, alone, Code::InvalidArgument, "NAME:TAG@DIGEST").await;
        let name = pull(format!(":t@{right}")).wait().await.unwrap().remove(0);
        assert_eq!(name, format!("{}/test/image:t", served.address()));
    });
}
