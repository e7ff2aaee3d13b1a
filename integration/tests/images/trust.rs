//! Whose images come in: refused are those that the policy doesn't let in, in each way in, before anything of them is fetched.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use cofferdam_client::{ArtifactOptions, CommitOptions, ConvertOptions, ImportFormat, ImportOptions, PullOptions};
use cofferdam_integration::{bounded, images};
use cofferdam_types::{Code, Descriptor, Digest, media};
use serde_json::{Value, json};

use crate::support::{
    craft::{Picture, layout},
    server::{Response, Server, serve_picture},
    signer::{ARTIFACT, Signature, Signer, skopeo},
    world::{Registry, World, directory, packed},
};

/// A policy that can be changed.
struct Policy {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Policy {
    fn new(value: &Value) -> Policy {
        let dir = tempfile::tempdir().unwrap();
        let policy = Policy { path: dir.path().join("trust.json"), _dir: dir };
        policy.set(&value.to_string());
        policy
    }

    fn set(&self, text: &str) {
        fs::write(&self.path, text).unwrap();
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    async fn world(&self) -> World {
        World::flags(&["--trust", self.path.to_str().unwrap()]).await
    }
}

fn signed(prefix: &str, keys: &[&Signer]) -> Value {
    let keys: Vec<_> = keys.iter().map(|key| key.public()).collect();
    json!({ "prefix": prefix, "require": "signature", "keys": keys })
}

fn digest(layout: &Path) -> Digest {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap()
}

#[test]
fn what_one_of_the_keys_has_signed_comes_in_and_nothing_else() {
    bounded(async {
        let registry = Registry::start(&[], &[]);
        let busybox = images().join("oci/busybox");
        let image = digest(&busybox);
        let (ours, edwards, stranger) = (Signer::new(false), Signer::new(true), Signer::new(false));
        let shop = registry.reference("shop");
        for (name, signer, of, reference) in [
            ("good", Some(&ours), &image, "shop/good:1"),
            ("edwards", Some(&edwards), &image, "shop/edwards"),
            ("unsigned", None, &image, ""),
            ("stranger", Some(&stranger), &image, "shop/stranger"),
            ("elsewhere", Some(&ours), &image, "shop/good"),
        ] {
            let repository = format!("{shop}/{name}");
            skopeo(&busybox, "latest", &format!("{repository}:1"));
            if let Some(signer) = signer {
                signer.push(&repository, of, &registry.reference(reference));
            }
        }
        // Signed was another image, which stood there before.
        let replaced = format!("{shop}/replaced");
        skopeo(&busybox, "latest", &format!("{replaced}:1"));
        let old: Digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let tag = format!("sha256-{}.sig", image.hex());
        let false_one = ours.signature(&old, &replaced, None);
        let mut entry = false_one.descriptor();
        entry.annotations.insert("org.opencontainers.image.ref.name".into(), tag.clone());
        crate::support::craft::write(&layout(&json!([entry]), &false_one.all()), dir.path());
        skopeo(dir.path(), &tag, &format!("{replaced}:{tag}"));

        let policy = Policy::new(&json!({ "default": "accept", "rules": [signed(&shop, &[&ours, &edwards])] }));
        let world = policy.world().await;
        // A report of the way says the rule, and asks nobody.
        let report = world.ns.images().explain_route(&format!("{shop}/good:1")).await.unwrap();
        assert!(report.trust.starts_with(&format!("by the rule for {shop} in ")), "{}", report.trust);
        assert!(report.trust.contains("what is signed by ") && report.trust.contains(ours.public().to_str().unwrap()));
        let output = world.daemon.coffer(&["image", "explain-route", "elsewhere.invalid/app"]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains("\ntrust: by the rule for all names in ") && text.contains("everything comes in"),
            "{text}"
        );

        let before = world.holdings().await;
        for (name, word) in [
            ("unsigned", "there is none"),
            ("stranger", "by another key"),
            ("elsewhere", "for the repository"),
            ("replaced", "for another image"),
        ] {
            let job = world.pull(&format!("{shop}/{name}:1"));
            let error = world.refused(name, &before, job, Code::Denied, word).await;
            assert!(error.message.contains(&shop) && error.message.contains("trust.json"), "{error}");
        }
        // Nothing of an image was fetched: of blobs no more than what is signed.
        let layers: Vec<_> = blobs(&busybox);
        assert!(registry.served().iter().all(|blob| !layers.contains(blob)), "{:?}", registry.served());

        for name in ["good", "edwards"] {
            let came = world.pull(&format!("{shop}/{name}:1")).wait().await.unwrap();
            assert_eq!(world.run(&came[0], &["echo", "hi"]).await.unwrap(), (0, "hi\n".into()), "{name}");
        }
        // By its digest it is the same.
        world.pull(&format!("{shop}/good@{image}")).wait().await.unwrap();
        let error = world.pull(&format!("{shop}/unsigned@{image}")).wait().await.unwrap_err();
        assert_eq!(error.code, Code::Denied, "{error}");

        // Under the same rule another name needs no registry: what showed it is kept.
        registry.stop();
        let images = world.ns.images();
        let good = format!("{shop}/good:1");
        images.tag(&good, &format!("{shop}/good:stable"), false).info().await.unwrap();
        let error = images.tag(&good, &format!("{shop}/unsigned:1"), false).info().await.unwrap_err();
        assert_eq!(error.code, Code::Denied, "{error}");
        images.tag(&good, "free:1", false).info().await.unwrap();
        // It stays as long as the image does, and goes with it.
        world.client.collector().collect(false).await.unwrap();
        images.tag(&good, &format!("{shop}/good:again"), false).info().await.unwrap();
    });
}

/// All blobs but the manifest.
fn blobs(layout: &Path) -> Vec<String> {
    let manifest = fs::read(layout.join("blobs/sha256").join(digest(layout).hex())).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let all = manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]);
    all.map(|part| part["digest"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn each_way_in_is_asked_about() {
    bounded(async {
        let key = Signer::new(false);
        let listed = digest(&images().join("oci/busybox"));
        let policy = Policy::new(&json!({ "default": "accept", "rules": [
            signed("registry.example/shop", &[&key]),
            { "prefix": "registry.example/shop/never", "require": "reject" },
            { "prefix": "registry.example/listed", "require": "digest", "digests": [listed] },
        ]}));
        let world = policy.world().await;
        let name = "registry.example/shop/app:1";
        let images = world.ns.images();
        let busybox = || directory(&cofferdam_integration::images().join("oci/busybox"));
        let free = world.import("free", busybox()).wait().await.unwrap().remove(0);
        let before = world.holdings().await;
        let refused =
            async |what: &str, job| world.refused(what, &before, job, Code::Denied, "is refused by the policy").await;

        refused("an import", world.import(name, busybox())).await;
        let archive = std::fs::File::open(cofferdam_integration::images().join("archive/busybox.docker.tar")).unwrap();
        refused("a docker archive", world.import(name, archive.into())).await;
        let options = ImportOptions { name: name.into(), format: ImportFormat::Rootfs, ..ImportOptions::default() };
        let root = crate::support::craft::Tar::new().file("a", "b").end();
        let root = crate::support::world::file_of(&root);
        refused("a root file system", world.import_with(&options, root)).await;
        let convert = ConvertOptions { name: name.into(), compression: "zstd".into(), ..ConvertOptions::default() };
        refused("a conversion", images.get(&free).convert(&convert)).await;
        refused("a pull", world.pull("registry.example/shop/never:1")).await;

        let artifact = ArtifactOptions { name: name.into(), artifact_type: "a/b".into(), ..ArtifactOptions::default() };
        let error = images.create_artifact(&artifact).info().await.unwrap_err();
        assert_eq!(error.code, Code::Denied, "{error}");
        for to in [name, "REGISTRY.example:443/shop/app:1", "registry.example/shop/never:1"] {
            let error = images.tag(&free, to, false).info().await.unwrap_err();
            assert_eq!((error.code, error.message.contains("policy")), (Code::Denied, true), "{to}: {error}");
        }
        world.settles(&before).await;
        let container = world.container(&free, "made", &["true"]);
        container.info().await.unwrap();
        let commit = CommitOptions { name: name.into(), ..CommitOptions::default() };
        let error = container.commit(&commit).wait().await.unwrap_err();
        assert_eq!(error.code, Code::Denied, "{error}");
        container.remove(true).await.unwrap();
        world.settles(&before).await;

        // What is in the list comes in, by an import and by another name; what isn't doesn't.
        world.import("registry.example/listed:1", busybox()).wait().await.unwrap();
        images.tag(&free, "registry.example/listed:2", false).info().await.unwrap();
        let other = packed(&Picture::sample("other", 1000).layout());
        let error = world.import("registry.example/listed:3", other).wait().await.unwrap_err();
        assert!(error.code == Code::Denied && error.message.contains("list of digests"), "{error}");
        // A name that stands for it can't be turned to something else either.
        let other = packed(&Picture::sample("other", 1000).layout());
        let other = world.import("other", other).wait().await.unwrap().remove(0);
        let error = images.tag(&other, "registry.example/listed:1", true).info().await.unwrap_err();
        assert_eq!(error.code, Code::Denied, "{error}");
    });
}

#[test]
fn an_archive_brings_its_signatures_along() {
    bounded(async {
        let key = Signer::new(false);
        let picture = Picture::sample("signed", 1000);
        let name = "registry.example/shop:1";
        let policy = Policy::new(&json!({ "default": "reject", "rules": [signed("registry.example/shop", &[&key])] }));
        let world = policy.world().await;
        let target = picture.target();
        let signature = key.signature(&target.digest, "registry.example/shop", None);
        let mut blobs = picture.blobs();
        blobs.extend(signature.all());
        let with = |key: &str, value: String| {
            let mut entry = signature.descriptor();
            entry.annotations.insert(key.into(), value);
            layout(&json!([target, entry]), &blobs)
        };
        let tag = format!("sha256-{}.sig", target.digest.hex());
        for (key, value) in
            [("org.opencontainers.image.ref.name", tag), ("kind", "dev.cosignproject.cosign/sigs".to_owned())]
        {
            let came = world.import(name, packed(&with(key, value))).wait().await.unwrap();
            assert_eq!(came, [name]);
            world.ns.images().remove(name).await.unwrap();
            world.client.collector().collect(false).await.unwrap();
        }
        let before = world.holdings().await;
        let job = world.import(name, packed(&picture.layout()));
        world.refused("without one", &before, job, Code::Denied, "there is none").await;
        let job = world.import("free:1", packed(&picture.layout()));
        world.refused("by the default", &before, job, Code::Denied, "the rule for all names").await;
    });
}

/// A registry with one image, and its signature where the referrers API finds it.
fn referred(picture: Picture, signature: Option<Signature>) -> Server {
    Server::start(move |request| {
        let last = request.path.rsplit('/').next().unwrap_or_default();
        let json =
            |status, value: Value| Response::new(status, value.to_string()).with("content-type", media::OCI_INDEX);
        if request.path.contains("/referrers/") {
            let Some(signature) = &signature else { return Response::new(500, "{}") };
            let entry = Descriptor { artifact_type: Some(ARTIFACT.into()), ..signature.descriptor() };
            // Something else belongs to it too.
            let other = Descriptor { artifact_type: Some("text/plain".into()), ..picture.target() };
            return json(
                200,
                json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": [other, entry] }),
            );
        }
        if let Some(signature) = &signature
            && let Some(blob) = signature.all().into_iter().find(|b| crate::support::craft::sha(b).to_string() == last)
        {
            return Response::new(200, blob).with("content-type", media::OCI_MANIFEST);
        }
        serve_picture(&picture, request).unwrap_or_else(|| Response::new(404, "{}"))
    })
}

#[test]
fn signatures_are_found_by_the_referrers_api_and_what_can_not_be_asked_is_refused() {
    bounded(async {
        let key = Signer::new(false);
        let picture = Picture::sample("referred", 1000);
        let target = picture.target();
        let policy = Policy::new(&json!({ "default": "accept", "rules": [] }));
        let world = policy.world().await;
        // The port is known when the server is there: the signature is for the repository of a name, and that is told here.
        let mut rule = signed("127.0.0.1", &[&key]);
        rule["repositories"] = json!(["registry.example/app"]);
        let signature = key.signature(&target.digest, "registry.example/app", Some(&target));
        let good = referred(picture.clone(), Some(signature));
        rule["prefix"] = json!(good.address());
        let mut silent = rule.clone();
        let mute = referred(picture.clone(), None);
        silent["prefix"] = json!(mute.address());
        policy.set(&json!({ "default": "accept", "rules": [rule, silent] }).to_string());
        world.pull(&good.reference()).wait().await.unwrap();

        let before = world.holdings().await;
        let job = world.pull(&mute.reference());
        world
            .refused("a registry that can't say", &before, job, Code::Unavailable, "without which it may not come in")
            .await;
        assert!(mute.seen().iter().all(|request| !request.path.contains("/blobs/")), "nothing of it was fetched");

        // A policy that is bad lets nothing in, and harms nothing that is here.
        let other = Server::of(Picture::sample("other", 1000));
        for bad in ["", "{", r#"{"default": "accept", "rules": [{"require": "signature", "keys": ["/nowhere"]}]}"#] {
            policy.set(bad);
            let job = world.pull(&other.reference());
            world.refused(bad, &before, job, Code::FailedPrecondition, "no image comes in").await;
            let error = world.ns.images().tag(&good.reference(), "x:1", false).info().await.unwrap_err();
            assert_eq!(error.code, Code::FailedPrecondition, "{error}");
        }
        fs::remove_file(&policy.path).unwrap();
        world
            .refused("no policy", &before, world.pull(&other.reference()), Code::FailedPrecondition, "trust.json")
            .await;
        assert!(other.seen().is_empty(), "it wasn't even asked");
        policy.set(r#"{"default": "accept"}"#);
        fs::set_permissions(&policy.path, fs::Permissions::from_mode(0o666)).unwrap();
        world
            .refused("anybody's", &before, world.pull(&other.reference()), Code::FailedPrecondition, "nobody else")
            .await;
        policy.set(r#"{"default": "accept"}"#);
        world.pull(&other.reference()).wait().await.unwrap();
    });
}

#[test]
fn a_rule_may_be_for_a_namespace_alone() {
    bounded(async {
        let policy = Policy::new(&json!({ "default": "accept" }));
        let world = policy.world().await;
        let server = Server::of(Picture::sample("spaces", 1000));
        let own = world.daemon.namespace();
        policy.set(
            &json!({ "default": "accept", "rules": [
                { "namespaces": [own], "require": "reject" },
                { "prefix": server.address(), "require": "nothing" },
            ]})
            .to_string(),
        );
        let before = world.holdings().await;
        world.refused("in its own", &before, world.pull(&server.reference()), Code::Denied, "lets nothing in").await;
        let other = world.client.namespace("default");
        let options = PullOptions { reference: server.reference(), ..PullOptions::default() };
        other.images().pull(&options).wait().await.unwrap();
    });
}
