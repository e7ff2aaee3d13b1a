//! M9: an image of several platforms gives of each entry what the namespace itself has, whichever entry is asked for.

use cofferdam_client::{ContainerRequest, ImportOptions};
use cofferdam_integration::bounded;
use cofferdam_types::{Code, Labels, media};
use serde_json::json;

use crate::support::{
    craft::{Picture, Tar, arch, layout, sha},
    world::{World, packed},
};

/// An image for another machine.
fn foreign(machine: &str) -> Picture {
    let mut picture = Picture::of(vec![Tar::new().file("etc/secret", "theirs").end()]);
    let mut config: serde_json::Value = serde_json::from_slice(&picture.config).unwrap();
    config["architecture"] = json!(machine);
    picture.config = config.to_string().into_bytes();
    let mut manifest: serde_json::Value = serde_json::from_slice(&picture.manifest).unwrap();
    manifest["config"] =
        json!({"mediaType": media::OCI_CONFIG, "digest": sha(&picture.config), "size": picture.config.len()});
    picture.manifest = manifest.to_string().into_bytes();
    picture
}

#[test]
fn m9_each_entry_of_an_index_gives_what_the_namespace_has_and_no_more() {
    bounded(async {
        let world = World::start().await;
        let machine = if arch() == "arm64" { "amd64" } else { "arm64" };
        let (theirs, mine) = (foreign(machine), Picture::sample("mine", 1000));
        let platform = format!("linux/{machine}");
        let options = ImportOptions { name: "theirs".into(), platform: platform.clone(), ..ImportOptions::default() };
        let names = world.import_with(&options, packed(&theirs.layout())).wait().await.unwrap();
        let theirs_image = world.ns.images().get(&names[0]).detail(&platform).await.unwrap();
        assert!(theirs_image.unpacked);

        // Another namespace brings an index with its own image, and one entry that it has only the digest of.
        let other = format!("{}-other", world.daemon.namespace());
        world.client.namespaces().create(&other, &Labels::default()).await.unwrap();
        let ns = world.client.namespace(&other);
        let entry = |picture: &Picture, machine: &str| {
            let mut entry = json!(picture.target());
            entry["platform"] = json!({"os": "linux", "architecture": machine});
            entry
        };
        let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX,
            "manifests": [entry(&mine, arch()), entry(&theirs, machine)]});
        let index = index.to_string().into_bytes();
        let target = json!([{"mediaType": media::OCI_INDEX, "digest": sha(&index), "size": index.len()}]);
        // With the foreign manifest and config, too, which are no secret; what they lead to is.
        let blobs: Vec<&[u8]> =
            mine.blobs().into_iter().chain([&index[..], &theirs.manifest, &theirs.config]).collect();
        let options = ImportOptions { name: "both".into(), ..ImportOptions::default() };
        let names = ns.images().import_fd(&options, packed(&layout(&target, &blobs))).wait().await.unwrap();
        let image = ns.images().get(&names[0]);
        assert!(image.detail("").await.unwrap().unpacked);

        // By its platform, whatever is asked: not the blobs, not the tree that is unpacked for the others.
        let asked = image.detail(&platform).await;
        assert!(asked.as_ref().map_or_else(|e| e.code == Code::NotFound, |detail| !detail.unpacked), "{asked:?}");
        let refused = image.unpack(&platform, "overlay").await.unwrap_err();
        assert_eq!(refused.code, Code::NotFound, "{refused}");
        let request = ContainerRequest { platform: platform.clone(), ..ContainerRequest::default() };
        let made = ns.containers().create(&image, &request).info().await;
        assert_eq!(made.unwrap_err().code, Code::NotFound);
        let layer = sha(&theirs.layers[0]).to_string();
        assert_eq!(ns.content().get(&layer).info().await.unwrap_err().code, Code::NotFound);
        let again = ImportOptions { name: "again".into(), platform: platform.clone(), ..ImportOptions::default() };
        let job = ns.images().import_fd(&again, packed(&layout(&target, &blobs)));
        let refused = job.wait().await.unwrap_err();
        assert!(refused.to_string().contains(&layer), "{refused}");
        let none: [&str; 0] = [];
        assert_eq!(ns.snapshots("overlay").list(&none).all().await.unwrap().len(), 2, "its own layers");
    });
}
