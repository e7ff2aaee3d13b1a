//! What an image may say and cost: each bound, as the operator sets it, with an image that goes beyond.

use std::os::fd::OwnedFd;

use cofferdam_integration::bounded;
use cofferdam_types::{Algorithm, Code, Descriptor, Digest, media};
use serde_json::json;

use crate::support::{
    craft::{Picture, Tar, gzip, layout, pack},
    world::{World, file_of, packed},
};

fn source(picture: &Picture) -> OwnedFd {
    packed(&picture.layout())
}

fn deep() -> Picture {
    let tar = Tar::new().file("a/b/c/d/e/f", "deep");
    Picture::of(vec![tar.end()])
}

/// With a config that says more than the others.
fn talkative() -> Picture {
    let mut picture = Picture::of(vec![Tar::new().file("a", "1").end()]);
    let mut config: serde_json::Value = serde_json::from_slice(&picture.config).unwrap();
    config["config"]["Labels"] = json!({ "long": "x".repeat(2000) });
    picture.config = config.to_string().into_bytes();
    let digest = Digest::of(Algorithm::Sha256, &picture.config);
    let mut manifest: serde_json::Value = serde_json::from_slice(&picture.manifest).unwrap();
    manifest["config"] = json!(Descriptor::new(media::OCI_CONFIG, digest, picture.config.len() as u64));
    picture.manifest = manifest.to_string().into_bytes();
    picture
}

/// An index around an image, so many times.
fn within(times: usize, entries: usize) -> OwnedFd {
    let picture = Picture::of(vec![Tar::new().file("a", "1").end()]);
    let mut blobs: Vec<Vec<u8>> = picture.blobs().into_iter().map(<[u8]>::to_vec).collect();
    let mut top = picture.target();
    for _ in 0..times {
        let other = Descriptor::new(media::OCI_MANIFEST, Digest::of(Algorithm::Sha256, b"other"), 9);
        let mut list = vec![json!(top)];
        list.extend((1..entries).map(|n| {
            let mut entry = json!(other);
            entry["platform"] = json!({ "os": "linux", "architecture": format!("x{n}") });
            entry
        }));
        let index = json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": list });
        let index = index.to_string().into_bytes();
        top = Descriptor::new(media::OCI_INDEX, Digest::of(Algorithm::Sha256, &index), index.len() as u64);
        blobs.push(index);
    }
    let blobs: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
    packed(&layout(&json!([top]), &blobs))
}

#[test]
fn each_bound_refuses_what_goes_beyond_and_takes_what_does_not() {
    let many = || Picture::of(vec![(0..50).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), "")).end()]);
    let layers = |count: usize| Picture::of((0..count).map(|n| Tar::new().file(&format!("l{n}"), "").end()).collect());
    let zeros = || Picture::of(vec![Tar::new().bytes("zeros", &[0; 4 << 20]).end()]);
    let nested = || {
        let mut picture = talkative();
        let text = String::from_utf8(picture.config.clone()).unwrap();
        picture.config = text.replacen('{', r#"{"x":[[[[[[[[[[]]]]]]]]]],"#, 1).into_bytes();
        let digest = Digest::of(Algorithm::Sha256, &picture.config);
        let mut manifest: serde_json::Value = serde_json::from_slice(&picture.manifest).unwrap();
        manifest["config"] = json!(Descriptor::new(media::OCI_CONFIG, digest, picture.config.len() as u64));
        picture.manifest = manifest.to_string().into_bytes();
        picture
    };
    // The bound, what goes beyond, what it says of it, and how much is enough for the same image.
    type Case<'a> = (&'a str, u64, Box<dyn Fn() -> OwnedFd + 'a>, Code, &'a str, u64);
    let table: Vec<Case<'_>> = vec![
        // M4
        ("manifest", 300, Box::new(|| source(&layers(3))), Code::InvalidArgument, "300", 4000),
        ("config", 1000, Box::new(|| source(&talkative())), Code::InvalidArgument, "1000", 4000),
        ("nesting", 8, Box::new(|| source(&nested())), Code::InvalidArgument, "deeper than 8", 16),
        ("values", 20, Box::new(|| source(&layers(9))), Code::InvalidArgument, "20 values", 1000),
        // M5
        ("platforms", 5, Box::new(|| within(1, 6)), Code::InvalidArgument, "at most 5", 6),
        ("indexes", 2, Box::new(|| within(3, 1)), Code::ResourceExhausted, "2 indexes", 3),
        ("documents", 2, Box::new(|| within(2, 1)), Code::ResourceExhausted, "2 documents", 3),
        // M6
        ("layers", 3, Box::new(|| source(&layers(4))), Code::InvalidArgument, "at most 3", 4),
        // A13, A15
        ("entries", 20, Box::new(|| source(&many())), Code::ResourceExhausted, "20", 100),
        ("inflated", 1 << 20, Box::new(|| source(&zeros())), Code::ResourceExhausted, "1048576", 8 << 20),
        ("levels", 4, Box::new(|| source(&deep())), Code::ResourceExhausted, "4", 8),
        (
            "path",
            20,
            Box::new(|| source(&Picture::of(vec![Tar::new().file(&"n".repeat(30), "").end()]))),
            Code::ResourceExhausted,
            "20",
            100,
        ),
        (
            "names",
            100,
            Box::new(|| {
                source(&Picture::of(vec![
                    (0..50).fold(Tar::new(), |tar, n| tar.dir(&format!("directory-{n}"), 0o755)).end(),
                ]))
            }),
            Code::ResourceExhausted,
            "100 bytes",
            100_000,
        ),
    ];
    for (key, most, make, code, word, enough) in table {
        bounded(async {
            let world = World::flags(&["--image-limits", &format!("{key}={most}")]).await;
            let before = world.holdings().await;
            world.refused(key, &before, world.import("image", make()), code, word).await;
            drop(world);
            let world = World::flags(&["--image-limits", &format!("{key}={enough}")]).await;
            world.import("image", make()).wait().await.unwrap_or_else(|e| panic!("{key}={enough}: {e}"));
        });
    }
}

#[test]
fn a15_a_bomb_is_refused_by_its_ratio() {
    bounded(async {
        let world = World::flags(&["--image-limits", "ratio=50"]).await;
        let before = world.holdings().await;
        // More than what is inflated before anybody asks.
        let tar = Tar::new().bytes("zeros", &vec![0; 300 << 20]).end();
        let bomb = Picture::with(vec![gzip(&tar)], vec![Digest::of(Algorithm::Sha256, &tar)]);
        world.refused("a layer", &before, world.import("image", source(&bomb)), Code::ResourceExhausted, "50").await;
        // Its layer unpacked, so that the archive around it is the bomb.
        let plain = Picture::with(vec![tar.clone()], vec![Digest::of(Algorithm::Sha256, &tar)]);
        let whole = file_of(&gzip(&pack(&plain.layout())));
        world.refused("an archive", &before, world.import("image", whole), Code::ResourceExhausted, "50").await;
    });
}
