//! Bad input: each gives its typed error, and afterwards nothing is left of it.

use std::{fs, os::fd::OwnedFd};

use cofferdam_client::{ImportFormat, ImportOptions, RunRequest};
use cofferdam_integration::{bounded, images};
use cofferdam_types::{Algorithm, Code, Descriptor, Digest, media};
use serde_json::json;

use crate::support::{
    craft::{Files, Picture, Tar, gzip, layout, pack, sha, write, zstd},
    server::{Request, Response, Server, serve_picture},
    world::{World, directory, file_of, packed, pipe_of},
};

const SIZE: usize = 300_000;
/// What a connection has under way at most, of a stream.
const WINDOW: usize = 1 << 20;

/// What is wrong, the bytes, and the error that names it.
type Bad = (&'static str, Vec<u8>, Code);

fn scratched(mut bytes: Vec<u8>) -> Vec<u8> {
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].fill(0xff);
    bytes
}

fn changed(files: &Files, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut files = files.clone();
    change(&mut files.iter_mut().find(|file| file.0.ends_with(name)).unwrap().1);
    pack(&files)
}

fn without(files: &Files, name: &str) -> Vec<u8> {
    pack(&files.iter().filter(|file| !file.0.ends_with(name)).cloned().collect())
}

/// The picture with the media types of its parts as told.
fn of_types(picture: &Picture, config: &str, layer: &str, manifest: &str) -> Picture {
    let layers: Vec<_> =
        picture.layers.iter().map(|bytes| Descriptor::new(layer, sha(bytes), bytes.len() as u64)).collect();
    let body = json!({"schemaVersion": 2, "mediaType": manifest,
        "config": Descriptor::new(config, sha(&picture.config), picture.config.len() as u64), "layers": layers});
    Picture { manifest: body.to_string().into_bytes(), media_type: manifest.to_owned(), ..picture.clone() }
}

/// Layouts whose bytes arrived damaged.
fn damaged() -> Vec<Bad> {
    let picture = Picture::sample("damaged", SIZE);
    let files = picture.layout();
    let whole = pack(&files);
    let layer = sha(&picture.layers[0]).hex().to_owned();
    let config = sha(&picture.config).hex().to_owned();
    let docker = fs::read(images().join("archive/busybox.docker.tar")).unwrap();
    vec![
        ("cut in a header", whole[..700].to_vec(), Code::DataLoss),
        ("cut in a layer", whole[..200_000].to_vec(), Code::DataLoss),
        ("cut gzip", gzip(&whole)[..100_000].to_vec(), Code::DataLoss),
        ("cut zstd", zstd(&whole)[..100_000].to_vec(), Code::DataLoss),
        ("corrupt gzip", scratched(gzip(&whole)), Code::DataLoss),
        ("corrupt zstd", scratched(zstd(&whole)), Code::DataLoss),
        ("cut docker archive", docker[..docker.len() / 2].to_vec(), Code::DataLoss),
        ("a layer with a flipped bit", changed(&files, &layer, |bytes| bytes[1000] ^= 1), Code::DataLoss),
        ("a short layer", changed(&files, &layer, |bytes| bytes.truncate(1000)), Code::DataLoss),
        ("a long layer", changed(&files, &layer, |bytes| bytes.push(0)), Code::DataLoss),
        ("a config with a flipped bit", changed(&files, &config, |bytes| bytes[3] ^= 1), Code::DataLoss),
        ("no layer", without(&files, &layer), Code::DataLoss),
        ("no config", without(&files, &config), Code::DataLoss),
        ("no manifest", without(&files, sha(&picture.manifest).hex()), Code::DataLoss),
        ("nothing", Vec::new(), Code::InvalidArgument),
        ("no archive", b"hello, hello, hello".repeat(100), Code::InvalidArgument),
        ("a tar of something else", Tar::new().file("x", "y").end(), Code::InvalidArgument),
        ("no marker", without(&files, "oci-layout"), Code::InvalidArgument),
        ("no index", without(&files, "index.json"), Code::InvalidArgument),
        (
            "another version",
            changed(&files, "oci-layout", |bytes| *bytes = br#"{"imageLayoutVersion":"2.0.0"}"#.to_vec()),
            Code::Unimplemented,
        ),
    ]
}

/// Layouts that arrived as they were made, and were made wrong.
fn wrong() -> Vec<Bad> {
    let picture = Picture::sample("wrong", SIZE);
    let tars = [Tar::new().file("a", "1").end(), Tar::new().file("b", "2").end()];
    let ids = || vec![sha(&tars[0]), sha(&tars[1])];
    let packed: Vec<Vec<u8>> = tars.iter().map(|tar| gzip(tar)).collect();
    let typed = |config, layer, manifest| pack(&of_types(&picture, config, layer, manifest).layout());
    let (config, layer, manifest) = (media::OCI_CONFIG, media::OCI_LAYER_GZIP, media::OCI_MANIFEST);
    let of = |layers, ids| pack(&Picture::with(layers, ids).layout());
    let mut cut = packed.clone();
    cut[0].truncate(40);
    let junk = b"no tar at all".repeat(100);
    let entries = |text: &str| {
        let mut files = layout(&json!([]), &[]);
        files[1].1 = text.as_bytes().to_vec();
        pack(&files)
    };
    vec![
        ("diff ids of other layers", of(packed.clone(), vec![sha(b"?"), sha(b"!")]), Code::DataLoss),
        ("diff ids the wrong way round", of(packed.clone(), vec![sha(&tars[1]), sha(&tars[0])]), Code::DataLoss),
        ("fewer diff ids than layers", of(packed.clone(), vec![sha(&tars[0])]), Code::InvalidArgument),
        ("more diff ids than layers", of(packed[..1].to_vec(), ids()), Code::InvalidArgument),
        ("a layer that was cut before it was named", of(cut, ids()), Code::DataLoss),
        ("a layer that is no tar", pack(&Picture::of(vec![junk]).layout()), Code::DataLoss),
        ("a layer of an unknown type", typed(config, "application/x-unknown", manifest), Code::Unimplemented),
        (
            "a layer that is encrypted",
            typed(config, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", manifest),
            Code::Unimplemented,
        ),
        ("a config of an unknown type", typed("application/x-unknown", layer, manifest), Code::FailedPrecondition),
        ("a manifest of an unknown type", typed(config, layer, "application/x-unknown"), Code::InvalidArgument),
        ("a manifest that says it is an index", typed(config, layer, media::OCI_INDEX), Code::InvalidArgument),
        (
            "M1 manifest and index at once",
            entries(r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#),
            Code::InvalidArgument,
        ),
        ("no image", entries(r#"{"schemaVersion":2,"manifests":[]}"#), Code::InvalidArgument),
        ("no JSON", entries("{"), Code::InvalidArgument),
        ("M4 deep JSON", entries(&"[".repeat(100_000)), Code::InvalidArgument),
        (
            "M3 a digest that is a path",
            entries(&format!(
                r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{manifest}","size":1,"digest":"sha256:../../etc"}}]}}"#
            )),
            Code::InvalidArgument,
        ),
    ]
}

#[test]
fn how_a_layer_is_packed_its_bytes_say() {
    bounded(async {
        // As for others: what is unpacked is the diff id's, whatever the media type calls it.
        let world = World::start().await;
        let picture = Picture::sample("called otherwise", SIZE);
        let mut chains = std::collections::BTreeSet::new();
        for kind in [media::OCI_LAYER_GZIP, media::OCI_LAYER_ZSTD, media::OCI_LAYER] {
            let called = of_types(&picture, media::OCI_CONFIG, kind, media::OCI_MANIFEST);
            let names = world.import("called", packed(&called.layout())).wait().await.unwrap();
            chains.insert(world.ns.images().get(&names[0]).detail("").await.unwrap().chain_id);
        }
        assert_eq!(chains.len(), 1);
    });
}

async fn none_comes_in(world: &World, table: Vec<Bad>) {
    let before = world.holdings().await;
    for (what, bytes, code) in table {
        let forms: [(&str, OwnedFd); 2] = [("file", file_of(&bytes)), ("pipe", pipe_of(bytes))];
        for (form, source) in forms {
            world.refused(&format!("{what} as a {form}"), &before, world.import("bad", source), code, "").await;
        }
    }
    // And the daemon is none the worse for it.
    let good = Picture::sample("good", SIZE);
    let names = world.import("good", packed(&good.layout())).wait().await.unwrap();
    assert!(world.ns.images().get(&names[0]).detail("").await.unwrap().unpacked);
}

#[test]
fn damaged_archives() {
    bounded(async {
        let world = World::start().await;
        none_comes_in(&world, damaged()).await;
        let before = world.holdings().await;
        for (what, bytes, code) in damaged().into_iter().step_by(5) {
            let error = world.import_stream("bad", &bytes).await.expect_err(what);
            assert_eq!(error.code, code, "{what} as a stream: {error}");
            world.settles(&before).await;
        }
        // A stream whose writer vanishes before its end.
        let other = world.daemon.client().await;
        let options = ImportOptions { name: "bad".into(), ..ImportOptions::default() };
        let (job, sink) = other.namespace(world.daemon.namespace()).images().import(&options);
        // More than may be under way: most of it has arrived.
        let archive = pack(&Picture::sample("left", 3 * WINDOW).layout());
        sink.write(&archive[..archive.len() - SIZE]).await.unwrap();
        let id = job.info().await.unwrap().id;
        drop((job, sink, other));
        world.refused("a writer that vanished", &before, world.ns.jobs().get(&id), Code::DataLoss, "").await;
    });
}

#[test]
fn images_that_are_wrong() {
    bounded(async {
        let world = World::start().await;
        none_comes_in(&world, wrong()).await;
    });
}

#[test]
fn directories_and_descriptors_that_are_no_image() {
    bounded(async {
        let world = World::start().await;
        let before = world.holdings().await;
        let dir = world.daemon.path().join("layout");
        let empty = world.daemon.path().join("empty");
        fs::create_dir(&empty).unwrap();
        world.refused("empty", &before, world.import("bad", directory(&empty)), Code::InvalidArgument, "").await;

        // A blob that leads out of the layout is not followed, wherever it leads (F3).
        let picture = Picture::sample("directory", SIZE);
        write(&picture.layout(), &dir);
        let blob = dir.join("blobs/sha256").join(sha(&picture.layers[0]).hex());
        fs::rename(&blob, world.daemon.path().join("elsewhere")).unwrap();
        for target in ["../../../elsewhere", world.daemon.path().join("elsewhere").to_str().unwrap()] {
            std::os::unix::fs::symlink(target, &blob).unwrap();
            let error = world.import("bad", directory(&dir)).wait().await.unwrap_err();
            assert!(matches!(error.code, Code::InvalidArgument | Code::DataLoss), "{target}: {error}");
            world.settles(&before).await;
            fs::remove_file(&blob).unwrap();
        }
        fs::create_dir(&blob).unwrap();
        let error = world.import("bad", directory(&dir)).wait().await.unwrap_err();
        assert!(matches!(error.code, Code::InvalidArgument | Code::DataLoss), "a directory as blob: {error}");
        fs::remove_dir(&blob).unwrap();
        fs::rename(world.daemon.path().join("elsewhere"), &blob).unwrap();

        // No name, a bad one, and what can't be read.
        let error = world.import("", directory(&dir)).wait().await.unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument, "{error}");
        let error = world.import("Bad Name", directory(&dir)).wait().await.unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument, "{error}");
        let unread: OwnedFd = fs::File::create(world.daemon.path().join("written")).unwrap().into();
        let error = world.import("bad", unread).wait().await.unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument, "{error}");
        for (what, driver, platform, code) in [
            ("driver", "nonsense", "", Code::NotFound),
            ("platform", "", "no platform at all", Code::InvalidArgument),
            ("another platform", "", "linux/s390x", Code::NotFound),
        ] {
            let options = ImportOptions {
                name: "bad".into(),
                driver: driver.into(),
                platform: platform.into(),
                ..ImportOptions::default()
            };
            let error = world.import_with(&options, directory(&dir)).wait().await.expect_err(what);
            assert_eq!(error.code, code, "{what}: {error}");
        }
        world.settles(&before).await;

        // As root file systems.
        let rootfs = |name: &str, source| {
            let options = ImportOptions { name: name.into(), format: ImportFormat::Rootfs, ..ImportOptions::default() };
            world.import_with(&options, source)
        };
        let tar = Tar::new().file("a", "b").end();
        for (what, bytes, code) in [
            ("no tar", b"no tar at all".repeat(100), Code::InvalidArgument),
            ("a cut gzip", gzip(&tar)[..40].to_vec(), Code::DataLoss),
            ("a cut tar", pack(&picture.layout())[..200_000].to_vec(), Code::DataLoss),
        ] {
            world.refused(what, &before, rootfs("bad", file_of(&bytes)), code, "").await;
            world.refused(what, &before, rootfs("bad", pipe_of(bytes)), code, "").await;
        }
        let error = rootfs("", file_of(&tar)).wait().await.unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument, "{error}");
        world.settles(&before).await;
    });
}

/// Answers in place of the registry, or not.
type Twist = Box<dyn Fn(&Request, &Picture) -> Option<Response> + Send + Sync>;

fn for_blob(which: fn(&Picture) -> &[u8], answer: fn(&[u8]) -> Response) -> Twist {
    Box::new(move |request, picture| {
        let blob = which(picture);
        request.path.ends_with(&sha(blob).to_string()).then(|| answer(blob))
    })
}

fn for_manifest(answer: fn(&Picture) -> Response) -> Twist {
    Box::new(move |request, picture| request.path.contains("/manifests/").then(|| answer(picture)))
}

#[test]
fn registries_that_send_something_else() {
    bounded(async {
        let picture = Picture::sample("twisted", SIZE);
        let flipped = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes[30] ^= 1;
            Response::new(200, bytes)
        };
        let manifest =
            |picture: &Picture| Response::new(200, picture.manifest.clone()).with("content-type", &picture.media_type);
        let other = || Digest::of(Algorithm::Sha256, b"another");
        let types = |layer: &str, kind: &str| of_types(&picture, media::OCI_CONFIG, layer, kind);
        let none = || -> Twist { Box::new(|_, _| None) };
        let liar = Picture::with(picture.layers.clone(), vec![sha(b"?"), sha(b"!")]);
        let table: Vec<(&str, Code, Picture, Twist)> = vec![
            ("a layer", Code::DataLoss, picture.clone(), for_blob(|p| &p.layers[0], flipped)),
            ("a config", Code::DataLoss, picture.clone(), for_blob(|p| &p.config, flipped)),
            (
                "a shorter layer",
                Code::DataLoss,
                picture.clone(),
                for_blob(|p| &p.layers[0], |bytes| Response::new(200, &bytes[1..])),
            ),
            ("no layer", Code::NotFound, picture.clone(), for_blob(|p| &p.layers[1], |_| Response::new(404, "{}"))),
            (
                "a forbidden layer",
                Code::Denied,
                picture.clone(),
                for_blob(|p| &p.layers[1], |_| Response::new(403, "{}")),
            ),
            (
                "a digest of something else",
                Code::DataLoss,
                picture.clone(),
                Box::new(move |request, picture| {
                    let asked = request.path.contains("/manifests/");
                    asked.then(|| manifest(picture).with("docker-content-digest", other()))
                }),
            ),
            (
                "a manifest of an unknown type",
                Code::Unimplemented,
                picture.clone(),
                for_manifest(|_| Response::new(200, "{}").with("content-type", "text/x-unknown")),
            ),
            (
                "a manifest that is no JSON",
                Code::DataLoss,
                picture.clone(),
                for_manifest(|_| Response::new(200, "{").with("content-type", media::OCI_MANIFEST)),
            ),
            (
                "a manifest without end",
                Code::DataLoss,
                picture.clone(),
                for_manifest(|_| Response::new(200, vec![b' '; 5 << 20]).with("content-type", media::OCI_MANIFEST)),
            ),
            (
                "a layer of an unknown type",
                Code::Unimplemented,
                types("application/x-unknown", media::OCI_MANIFEST),
                none(),
            ),
            ("diff ids of other layers", Code::DataLoss, liar, none()),
        ];
        let world = World::start().await;
        let before = world.holdings().await;
        for (what, code, picture, twist) in table {
            let server = Server::start(move |request| {
                let answer = twist(request, &picture).or_else(|| serve_picture(&picture, request));
                answer.unwrap_or_else(|| Response::new(404, "{}"))
            });
            world.refused(what, &before, world.pull(&server.reference()), code, "").await;
        }
        let server = Server::of(picture);
        world.pull(&server.reference()).wait().await.unwrap();
    });
}

#[test]
fn commands_that_can_not_be_run_and_names_in_use() {
    bounded(async {
        let world = World::start().await;
        let busybox = directory(&images().join("oci/busybox"));
        let name = world.import("busybox", busybox).wait().await.unwrap().remove(0);
        // An image whose files are wrong in themselves, and one that says nothing of what to run.
        let odd = Tar::new()
            .dir("bin", 0o755)
            .dir("etc", 0o755)
            .mode("bin/plain", "#!/bin/none\n", 0o644)
            .mode("bin/script", "#!/bin/none\n", 0o755)
            .mode("bin/empty", "", 0o755)
            .mode("bin/junk", "\x7fELF and nothing more", 0o755)
            .symlink("loop", "bin/loop")
            .symlink("../../../../bin/true", "bin/out");
        let odd = Picture::of(vec![odd.end()]);
        let odd = world.import("odd", packed(&odd.layout())).wait().await.unwrap().remove(0);
        let before = world.holdings().await;
        for runtime in ["native", "runc"] {
            for (image, command, code) in [
                (&name, "/bin/nonsense", Code::NotFound),
                (&name, "nonsense", Code::NotFound),
                (&name, "/etc", Code::FailedPrecondition),
                (&name, "/etc/passwd", Code::FailedPrecondition),
                (&name, "/etc/passwd/below", Code::NotFound),
                (&odd, "/bin/plain", Code::FailedPrecondition),
                (&odd, "/bin/script", Code::NotFound),
                (&odd, "/bin/junk", Code::FailedPrecondition),
                (&odd, "/bin/loop", Code::FailedPrecondition),
                (&odd, "/bin/out", Code::NotFound),
            ] {
                // Of what fails in the exec itself, behind its lookup, runc says nothing but on the process's output.
                if runtime == "runc" && ["/bin/script", "/bin/junk"].contains(&command) {
                    continue;
                }
                let what = format!("{command} by {runtime}");
                let run = world.run_with(image, &[command], |run| run.container.runtime = runtime.into()).await;
                let error = run.expect_err(&what);
                assert_eq!(error.code, code, "{what}: {error}");
                assert!(error.to_string().contains(command), "{what}: {error}");
                world.settles(&before).await;
            }
        }
        let long = "x".repeat(300);
        for (what, change, code) in [
            ("user", Box::new(|r: &mut RunRequest| r.container.options.user = "nobody-here".into()), Code::NotFound),
            ("id", Box::new(move |r: &mut RunRequest| r.container.id = long.clone()), Code::InvalidArgument),
        ] as [(&str, Box<dyn Fn(&mut RunRequest)>, Code); 2]
        {
            let error = world.run_with(&name, &["true"], change).await.expect_err(what);
            assert_eq!(error.code, code, "{what}: {error}");
            world.settles(&before).await;
        }

        // A name in use, of what runs and of what has ended.
        let container = world.container(&name, "taken", &["sleep", "1000"]);
        let task = container.create_task(cofferdam_client::Stdio::default(), true);
        task.start().await.unwrap();
        let held = world.holdings().await;
        let taken = |run: &mut RunRequest| run.container.id = "taken".into();
        for ended in [false, true] {
            if ended {
                task.kill(9, false).await.unwrap();
                task.wait().await.unwrap();
            }
            let error = world.run_with(&name, &["true"], taken).await.unwrap_err();
            assert_eq!((error.code, &*error.kind, &*error.id), (Code::AlreadyExists, "container", "taken"));
            assert_eq!(world.holdings().await.beyond(&held), [""; 0]);
        }
        container.remove(true).await.unwrap();
        world.settles(&before).await;
        assert_eq!(world.run_with(&name, &["echo", "free"], taken).await.unwrap(), (0, "free\n".into()));
        world.settles(&before).await;
    });
}
