//! Archives and directories in every form, whole and damaged.

use std::{
    io::{Read, Seek},
    os::fd::AsFd,
};

use cofferdam_types::{Code, Descriptor, media};
use nix::poll::{PollFd, PollFlags, poll};

use crate::{
    RootfsConfig, RootfsOptions,
    testing::{
        picture::{Picture, gzip, sha, tar_of, tar_up, write_down},
        world::{World, amd64, as_dir, as_file, as_pipe, auth, fails, ns, run, soon},
    },
};

const NAME: &str = "h.io/a:1";

type Files = Vec<(String, Vec<u8>)>;

#[test]
fn an_oci_layout_comes_in_every_form_to_the_same_image() {
    run(async {
        let picture = Picture::new("x");
        let files = picture.layout(Some(NAME));
        let dir = tempfile::tempdir().unwrap();
        write_down(dir.path(), &files);
        let tar = tar_up(&files);
        let zstd = zstd::encode_all(&tar[..], 1).unwrap();
        for (form, source) in [
            ("directory", as_dir(dir.path())),
            ("file", as_file(&tar)),
            ("pipe", as_pipe(tar.clone())),
            ("gzip file", as_file(&gzip(&tar))),
            ("gzip pipe", as_pipe(gzip(&tar))),
            ("zstd file", as_file(&zstd)),
        ] {
            let world = World::start().await;
            let arrived = world.import(source, None).await.unwrap();
            assert_eq!(arrived.len(), 1, "{form}");
            assert_eq!((arrived[0].name.as_str(), &arrived[0].target), (NAME, &picture.target()), "{form}");
            assert_eq!(arrived[0].chain, Some(picture.chain()));
            assert_eq!(world.read(&picture.chain(), "etc/name").await, "upper", "{form}");
            assert_eq!(world.read(&picture.chain(), "etc/marker").await, "x", "{form}");
            let holdings = world.holdings();
            assert_eq!((holdings.blobs, holdings.files, holdings.ingests, holdings.layers), (4, 4, 0, 2), "{form}");
            // What the collector goes by.
            let manifest = world.content.info(&ns(), &picture.target().digest).unwrap();
            assert_eq!(manifest.labels["containerd.io/gc.ref.content.1"], sha(&picture.layers[0]).to_string());
            let config = world.content.info(&ns(), &sha(&picture.config)).unwrap();
            assert_eq!(config.labels["containerd.io/gc.ref.snapshot.overlay"], picture.chain().to_string());
            world.stop().await;
        }
    });
}

#[test]
fn a_docker_archive_becomes_an_oci_image() {
    run(async {
        let picture = Picture::new("x");
        let archive = picture.docker(&["a:1", "h.io/b:2"]);
        for source in [as_file(&archive), as_pipe(archive.clone()), as_file(&gzip(&archive))] {
            let world = World::start().await;
            let arrived = world.import(source, None).await.unwrap();
            let names: Vec<&str> = arrived.iter().map(|a| a.name.as_str()).collect();
            assert_eq!(names, ["docker.io/library/a:1", "h.io/b:2"]);
            let image = world.images.resolve(&ns(), &arrived[0].name, &amd64()).await.unwrap();
            assert_eq!(image.target.media_type, media::OCI_MANIFEST);
            // Layers are kept as they came: plain, so that their digest is their diff id.
            assert_eq!(image.layers[0].digest, sha(&picture.tars[0]));
            assert_eq!(image.config_bytes, picture.config);
            assert_eq!(world.read(&picture.chain(), "etc/name").await, "upper");
            assert_eq!(world.holdings().ingests, 0);
            world.stop().await;
        }
    });
}

#[test]
fn names_are_the_callers_or_the_archives() {
    run(async {
        let picture = Picture::new("x");
        let world = World::start().await;
        for (own, given, want) in [
            (Some("h.io/b:2"), None, Some("h.io/b:2")),
            (Some("busybox:1"), None, Some("docker.io/library/busybox:1")),
            (Some("latest"), Some("h.io/c:3"), Some("h.io/c:3")),
            (None, Some("d"), Some("docker.io/library/d:latest")),
            (Some("latest"), None, None),
            (None, None, None),
            (None, Some("Bad Name"), None),
        ] {
            let result = world.import(as_file(&tar_up(&picture.layout(own))), given).await;
            match want {
                Some(want) => {
                    assert_eq!(result.unwrap()[0].name.as_str(), want);
                    assert_eq!(world.images.get(&ns(), want).unwrap().target, picture.target());
                }
                None => {
                    fails(result, Code::InvalidArgument, "");
                }
            }
        }
        fails(world.import(as_file(&picture.docker(&[])), None).await, Code::InvalidArgument, "give it a name");
        assert_eq!(world.import(as_file(&picture.docker(&[])), Some("e")).await.unwrap().len(), 1);
        world.stop().await;
    });
}

#[test]
fn several_images_and_platforms_in_one_archive() {
    run(async {
        let (one, two) = (Picture::new("1"), Picture::new("2"));
        let mut arm = serde_json::json!(two.target());
        arm["platform"] = serde_json::json!({"os": "linux", "architecture": "arm64"});
        let mut entries = Vec::new();
        for (picture, name) in [(&one, "h.io/a:1"), (&two, "h.io/a:2")] {
            let mut entry = serde_json::json!(picture.target());
            entry["annotations"] = serde_json::json!({"io.containerd.image.name": name});
            entries.push(entry);
        }
        let index = serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string().into_bytes();
        let mut files = one.layout(None);
        files.extend(two.layout(None).split_off(2));
        files[1].1 = index;
        files.dedup_by(|a, b| a.0 == b.0);
        let mut seen = std::collections::HashSet::new();
        files.retain(|f| seen.insert(f.0.clone()));
        let world = World::start().await;
        let arrived = world.import(as_file(&tar_up(&files)), None).await.unwrap();
        assert_eq!(arrived.len(), 2);
        assert_eq!(world.read(&one.chain(), "etc/marker").await, "1");
        assert_eq!(world.read(&two.chain(), "etc/marker").await, "2");
        // The same name twice, for two platforms: one image, the one that runs here.
        let here = serde_json::json!(one.target());
        files[1].1 = serde_json::json!({"schemaVersion": 2, "manifests": [here, arm]}).to_string().into_bytes();
        let arrived = world.import(as_file(&tar_up(&files)), Some("h.io/b:1")).await.unwrap();
        assert_eq!(arrived[0].target.digest, one.target().digest);
        world.stop().await;
    });
}

#[test]
fn nothing_of_an_archive_is_dropped_without_a_word() {
    run(async {
        let (one, two) = (Picture::new("1"), Picture::new("2"));
        let entry = |picture: &Picture, key: &str, name: &str| {
            let mut entry = serde_json::json!(picture.target());
            entry["annotations"] = serde_json::json!({ key: name });
            entry
        };
        let of = |entries: [serde_json::Value; 2]| {
            let mut files = [one.layout(None), two.layout(None).split_off(2)].concat();
            files[1].1 = serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string().into_bytes();
            let mut seen = std::collections::HashSet::new();
            files.retain(|f| seen.insert(f.0.clone()));
            as_file(&tar_up(&files))
        };
        let (tag, whole) = ("org.opencontainers.image.ref.name", "io.containerd.image.name");
        let tags = || of([entry(&one, tag, "1"), entry(&two, tag, "2")]);
        let wholes = || of([entry(&one, whole, "h.io/a:1"), entry(&two, whole, "h.io/a:2")]);
        let world = World::start().await;
        let before = world.holdings();
        for given in ["h.io/b:t", &format!("h.io/b@{}", one.target().digest)] {
            fails(world.import(tags(), Some(given)).await, Code::InvalidArgument, "without tag and digest");
        }
        fails(world.import(wholes(), Some("h.io/b")).await, Code::InvalidArgument, "leave it out");
        let both = of([entry(&one, tag, "1"), entry(&two, tag, "1")]);
        fails(world.import(both, Some("h.io/b")).await, Code::InvalidArgument, "two images have this name");
        let mut docker = tar::Builder::new(Vec::new());
        let several = serde_json::json!([{"Config": "c", "RepoTags": ["a:1"]}, {"Config": "c", "RepoTags": ["a:2"]}]);
        let mut header = tar::Header::new_gnu();
        header.set_size(several.to_string().len() as u64);
        docker.append_data(&mut header, "manifest.json", several.to_string().as_bytes()).unwrap();
        let docker = as_file(&docker.into_inner().unwrap());
        fails(world.import(docker, Some("h.io/b")).await, Code::InvalidArgument, "leave it out");
        world.quiet().await;
        assert_eq!(world.holdings(), before);

        let names = |arrived: Vec<crate::Arrived>| arrived.into_iter().map(|a| a.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(world.import(tags(), Some("h.io/b")).await.unwrap()), ["h.io/b:1", "h.io/b:2"]);
        assert_eq!(names(world.import(wholes(), None).await.unwrap()), ["h.io/a:1", "h.io/a:2"]);
        // The same twice is one.
        let same = of([entry(&one, tag, "1"), entry(&one, tag, "1")]);
        assert_eq!(names(world.import(same, Some("h.io/c:x")).await.unwrap()), ["h.io/c:x"]);
        world.stop().await;
    });
}

/// What an export writes.
async fn exported(world: &World, name: &str, platform: Option<cofferdam_types::Platform>) -> Vec<u8> {
    let mut file = tempfile::tempfile().unwrap();
    let options = crate::ExportOptions { names: vec![cofferdam_types::Name::new(name).unwrap()], platform };
    let to = file.try_clone().unwrap().into();
    world.transfer.export(&auth(), &ns(), options, to).await.unwrap().wait().await.unwrap();
    let mut bytes = Vec::new();
    file.seek(std::io::SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn m10_the_digest_in_an_archives_own_name_must_be_right() {
    run(async {
        let picture = Picture::new("x");
        let index = picture.index(None);
        let world = World::start().await;
        let pinned = format!("h.io/a@{}", picture.target().digest);
        let named = |name: &str| as_file(&tar_up(&picture.layout(Some(name))));
        assert_eq!(world.import(named(&pinned), None).await.unwrap()[0].name.as_str(), pinned);
        let before = world.holdings();
        let wrong = format!("h.io/a@{}", sha(b"?"));
        fails(world.import(named(&wrong), None).await, Code::InvalidArgument, "names another digest");
        fails(world.import(named("h.io/b:1"), Some(&wrong)).await, Code::InvalidArgument, "names another digest");
        world.quiet().await;
        assert_eq!(world.holdings(), before);
        world.import(named(&wrong), Some("h.io/b:1")).await.unwrap();

        // Of an index that is called by its digest: whole it goes out and comes in by that, for one platform it has no name.
        let of = sha(&index);
        let nested = serde_json::json!({"schemaVersion": 2, "manifests": [{"mediaType": media::OCI_INDEX, "digest": of,
            "size": index.len(), "annotations": {"io.containerd.image.name": format!("h.io/i@{of}")}}]});
        let mut files = picture.layout(None);
        files[1].1 = nested.to_string().into_bytes();
        files.push((format!("blobs/sha256/{}", of.hex()), index));
        let name = world.import(as_file(&tar_up(&files)), None).await.unwrap().remove(0).name;
        let (whole, one) = (exported(&world, &name, None).await, exported(&world, &name, Some(amd64())).await);
        assert_eq!(world.import(as_file(&whole), None).await.unwrap()[0].name, name);
        fails(world.import(as_file(&one), None).await, Code::InvalidArgument, "give it a name");
        let called = world.import(as_file(&one), Some("h.io/i:1")).await.unwrap().remove(0);
        assert_eq!(called.target.digest, picture.target().digest);
        world.stop().await;
    });
}

#[test]
fn an_artifact_that_was_exported_can_be_stored_again() {
    run(async {
        let descriptor = |kind: &str, bytes: &[u8]| Descriptor::new(kind, sha(bytes), bytes.len() as u64);
        let empty = "application/vnd.oci.empty.v1+json";
        for (config, kind, layers) in [
            (&b"{}"[..], empty, vec![&b"one"[..], br#"{"two": 2}"#]),
            (b"{}", empty, vec![b"{}"]),
            (b"\0 whatever", "application/vnd.example.config", vec![b"[]"]),
        ] {
            let layers_of: Vec<_> = layers.iter().map(|layer| descriptor("a/b", layer)).collect();
            let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST,
                "artifactType": "a/b", "config": descriptor(kind, config), "layers": layers_of});
            let manifest = manifest.to_string().into_bytes();
            let entry = descriptor(media::OCI_MANIFEST, &manifest);
            let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
            let marker = br#"{"imageLayoutVersion":"1.0.0"}"#;
            let mut files =
                vec![("oci-layout".to_owned(), marker.to_vec()), ("index.json".into(), index.to_string().into_bytes())];
            for blob in layers.iter().copied().chain([config, &manifest]) {
                let file = (format!("blobs/sha256/{}", sha(blob).hex()), blob.to_vec());
                if !files.contains(&file) {
                    files.push(file);
                }
            }
            let world = World::start().await;
            let before = world.holdings();
            let tar = tar_up(&files);
            let refused = world.import(as_pipe(tar.clone()), Some(NAME)).await;
            fails(refused, Code::FailedPrecondition, "this is an artifact");
            assert_eq!(world.holdings(), before);
            world.import_with(as_file(&tar), Some(NAME), None).await.unwrap();
            let archive = exported(&world, NAME, None).await;
            for (form, source) in [("file", as_file(&archive)), ("pipe", as_pipe(archive.clone()))] {
                let other = World::start().await;
                let came = other.import_with(source, None, None).await.unwrap_or_else(|e| panic!("{form}: {e}"));
                assert_eq!((came[0].name.as_str(), &came[0].target.digest), (NAME, &sha(&manifest)), "{form}");
                for blob in layers.iter().copied().chain([config]) {
                    let read = other.content.read_verified(&ns(), &sha(blob), 1000);
                    assert_eq!(read.unwrap(), blob, "{form}");
                }
                // Where all of it is here already.
                other.import_with(as_pipe(archive.clone()), None, None).await.unwrap();
                assert_eq!(other.holdings().ingests, 0, "{form}");
                other.stop().await;
            }
            world.stop().await;
        }
    });
}

#[test]
fn importing_again_changes_nothing_and_the_native_driver_works() {
    run(async {
        let picture = Picture::new("x");
        let tar = tar_up(&picture.layout(Some(NAME)));
        let world = World::start().await;
        world.import_with(as_file(&tar), None, None).await.unwrap();
        let packed = world.holdings();
        assert_eq!((packed.layers, packed.trees, packed.blobs), (0, 0, 4));
        world.import(as_file(&tar), None).await.unwrap();
        let first = world.holdings();
        assert_eq!((first.layers, first.blobs), (2, 4));
        world.import(as_file(&tar), None).await.unwrap();
        world.import(as_pipe(tar.clone()), None).await.unwrap();
        assert_eq!(world.holdings(), first);
        world.import_with(as_file(&tar), None, Some("native")).await.unwrap();
        assert!(world.images.is_unpacked(&ns(), "native", Some(&picture.chain())).unwrap());
        fails(world.import_with(as_file(&tar), None, Some("nonsense")).await, Code::NotFound, "nonsense");
        world.stop().await;
    });
}

fn scratched(mut bytes: Vec<u8>) -> Vec<u8> {
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].fill(0xff);
    bytes
}

#[test]
fn damaged_archives_leave_nothing_behind() {
    run(async {
        let picture = Picture::new("x");
        let files = picture.layout(Some(NAME));
        let whole = tar_up(&files);
        let layer = format!("blobs/sha256/{}", sha(&picture.layers[0]).hex());
        let changed = |change: &dyn Fn(&mut Files)| {
            let mut files = files.clone();
            change(&mut files);
            tar_up(&files)
        };
        let at = |files: &mut Files, name: &str| files.iter().position(|f| f.0 == name).unwrap();
        let flipped = changed(&|f| {
            let n = at(f, &layer);
            f[n].1[1000] ^= 1;
        });
        let short = changed(&|f| {
            let n = at(f, &layer);
            f[n].1.truncate(1000);
        });
        let lacking = changed(&|f| {
            let n = at(f, &layer);
            f.remove(n);
        });
        let no_config = changed(&|f| f.retain(|x| x.1 != picture.config));
        let union = changed(&|f| f[1].1 = br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#.to_vec());
        let empty = changed(&|f| f[1].1 = br#"{"schemaVersion":2,"manifests":[]}"#.to_vec());
        let no_marker = changed(&|f| f.retain(|x| x.0 != "oci-layout"));
        let old = changed(&|f| f[0].1 = br#"{"imageLayoutVersion":"2.0.0"}"#.to_vec());
        let malformed = changed(&|f| f.push(("blobs/sha256/short".into(), b"x".to_vec())));
        // A layer that unpacks to another tar than the config says.
        let liar = Picture::with(picture.tars.clone(), picture.layers.clone(), Some(vec![sha(b"?"), sha(b"!")]));
        let six = Picture::with(picture.tars.clone(), picture.layers.clone(), Some(vec![sha(&picture.tars[0])]));
        // A layer that is cut off, with a digest that fits.
        let cut = picture.layers[0][..300_000].to_vec();
        let cut = Picture::with(picture.tars.clone(), vec![cut, picture.layers[1].clone()], None);
        // A layer that is not a tar.
        let junk = Picture::of(vec![b"no tar at all".repeat(100)]);
        let docker = picture.docker(&["a:1"]);
        let world = World::start().await;
        let before = world.holdings();
        for (what, bytes, code) in [
            ("cut in a header", whole[..700].to_vec(), Code::DataLoss),
            ("cut in a layer", whole[..200_000].to_vec(), Code::DataLoss),
            ("cut gzip", gzip(&whole)[..100_000].to_vec(), Code::DataLoss),
            ("corrupt gzip", scratched(gzip(&whole)), Code::DataLoss),
            ("corrupt zstd", scratched(zstd::encode_all(&whole[..], 1).unwrap()), Code::DataLoss),
            ("corrupt layer", flipped, Code::DataLoss),
            ("short layer", short, Code::DataLoss),
            ("lacking layer", lacking, Code::DataLoss),
            ("lacking config", no_config, Code::DataLoss),
            ("M1 union", union, Code::InvalidArgument),
            ("no image", empty, Code::InvalidArgument),
            ("no marker", no_marker, Code::InvalidArgument),
            ("another version", old, Code::Unimplemented),
            ("wrong diff ids", tar_up(&liar.layout(Some(NAME))), Code::DataLoss),
            ("M6 fewer diff ids", tar_up(&six.layout(Some(NAME))), Code::InvalidArgument),
            ("A16 cut layer", tar_up(&cut.layout(Some(NAME))), Code::DataLoss),
            ("junk layer", tar_up(&junk.layout(Some(NAME))), Code::DataLoss),
            ("nothing", Vec::new(), Code::InvalidArgument),
            ("no archive", b"hello, hello, hello".repeat(100), Code::InvalidArgument),
            ("a tar of something else", tar_of(&[("x", b"y")]), Code::InvalidArgument),
            ("cut docker archive", docker[..docker.len() / 2].to_vec(), Code::DataLoss),
        ] {
            for (form, source) in [("file", as_file(&bytes)), ("pipe", as_pipe(bytes.clone()))] {
                let error = world.import(source, None).await.expect_err(what);
                assert_eq!(error.code, code, "{what} as a {form}: {error}");
                world.quiet().await;
                assert_eq!(world.holdings(), before, "{what} as a {form}");
            }
        }
        let error = world.import(as_pipe(malformed), None).await.unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument);
        // And a whole one still comes in.
        world.import(as_pipe(whole), None).await.unwrap();
        assert_eq!(world.read(&picture.chain(), "etc/name").await, "upper");
        world.stop().await;
    });
}

// A15 of the negative tests: the tree that is here says nothing of another blob.
#[test]
fn a15_a_layer_whose_tree_is_here_by_another_blob_is_verified() {
    run(async {
        let picture = Picture::new("x");
        let world = World::start().await;
        world.import(as_file(&tar_up(&picture.layout(Some(NAME)))), None).await.unwrap();
        let before = world.holdings();
        let import = async |layer: Vec<u8>| {
            let other = Picture::with(picture.tars.clone(), vec![layer, picture.layers[1].clone()], None);
            world.import(as_file(&tar_up(&other.layout(Some("h.io/b:1")))), None).await
        };
        for (what, layer) in
            [("cut", picture.layers[0][..300_000].to_vec()), ("another", gzip(&tar_of(&[("x", b"y")])))]
        {
            let error = import(layer).await.expect_err(what);
            assert_eq!(error.code, Code::DataLoss, "{what}: {error}");
            world.quiet().await;
            assert_eq!(world.holdings(), before, "{what}");
        }
        // The same files, packed otherwise.
        let mut slow = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut slow, &picture.tars[0]).unwrap();
        let arrived = import(slow.finish().unwrap()).await.unwrap();
        assert_eq!(arrived[0].chain, Some(picture.chain()));
        assert_eq!(world.holdings().layers, before.layers);
        world.stop().await;
    });
}

#[test]
fn a_pipe_that_never_ends_can_be_cancelled() {
    run(async {
        let world = World::start().await;
        let before = world.holdings();
        let (read, _write) = nix::unistd::pipe().unwrap();
        let options = crate::ImportOptions { name: None, platform: amd64(), driver: None };
        let source = crate::Source::Archive(read);
        let job = world.transfer.import(&auth(), &ns(), source, options).await.unwrap();
        assert_eq!(world.transfer.jobs(&ns(), 0, 10).len(), 1);
        world.transfer.job(&ns(), job.id()).unwrap().cancel();
        fails(job.wait().await, Code::Cancelled, "");
        assert_eq!(world.holdings(), before);
        world.stop().await;
    });
}

// Those that it waits for may never be done.
#[test]
fn what_waits_for_its_turn_can_be_cancelled() {
    run(async {
        let world = World::start().await;
        let silent = async || {
            let (read, write) = nix::unistd::pipe().unwrap();
            let options = crate::ImportOptions { name: None, platform: amd64(), driver: None };
            (world.transfer.import(&auth(), &ns(), crate::Source::Archive(read), options).await.unwrap(), write)
        };
        let mut hung = Vec::new();
        for _ in 0..8 {
            hung.push(silent().await);
        }
        // More than may wait: each leaves its place, and lets go of what it was to read.
        for n in 0..100 {
            let (job, write) = silent().await;
            job.cancel();
            fails(soon(job.wait()).await, Code::Cancelled, "");
            let mut end = [PollFd::new(write.as_fd(), PollFlags::empty())];
            assert_eq!(poll(&mut end, 30_000u16), Ok(1), "job {n} keeps its pipe");
        }
        assert!(hung.iter().all(|(job, _)| job.status().outcome.is_none()));
        hung.iter().for_each(|(job, _)| job.cancel());
        for (job, _) in &hung {
            fails(job.wait().await, Code::Cancelled, "");
        }
        world.stop().await;
    });
}

// Whoever holds a grant may begin an import and send nothing, as often as he likes.
#[test]
fn what_hangs_through_a_grant_holds_up_nothing_of_the_operators() {
    run(async {
        let world = World::start().await;
        let theirs = world.holder().await;
        let mut hung = Vec::new();
        for _ in 0..20 {
            let (read, write) = nix::unistd::pipe().unwrap();
            let options = crate::ImportOptions { name: None, platform: amd64(), driver: None };
            let source = crate::Source::Archive(read);
            hung.push((world.transfer.import(&theirs, &ns(), source, options).await.unwrap(), write));
        }
        world.import(as_pipe(tar_up(&Picture::new("x").layout(Some(NAME)))), None).await.unwrap();
        hung.iter().for_each(|(job, _)| job.cancel());
        for (job, _) in &hung {
            fails(job.wait().await, Code::Cancelled, "");
        }
        world.stop().await;
    });
}

#[test]
fn a_root_filesystem_becomes_an_image() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/name"), "rootfs").unwrap();
        let tar = tar_of(&[("etc/name", b"rootfs")]);
        let world = World::start().await;
        let options = RootfsOptions {
            name: crate::testing::world::name(NAME),
            platform: amd64(),
            config: RootfsConfig { cmd: vec!["/bin/x".into()], ..RootfsConfig::default() },
            driver: Some("overlay".into()),
        };
        for (source, media_type) in [
            (as_dir(dir.path()), media::OCI_LAYER),
            (as_file(&tar), media::OCI_LAYER),
            (as_pipe(gzip(&tar)), media::OCI_LAYER_GZIP),
            (as_file(&zstd::encode_all(&tar[..], 1).unwrap()), media::OCI_LAYER_ZSTD),
        ] {
            let job = world.transfer.rootfs(&auth(), &ns(), source, options.clone()).await.unwrap();
            let arrived = job.wait().await.unwrap();
            let image = world.images.resolve(&ns(), &arrived[0].name, &amd64()).await.unwrap();
            assert_eq!(image.layers[0].media_type, media_type);
            assert_eq!(image.config.image.config().as_ref().unwrap().cmd().as_ref().unwrap(), &["/bin/x"]);
            assert_eq!(world.read(image.top().unwrap(), "etc/name").await, "rootfs");
        }
        let before = world.holdings();
        for (what, bytes, code) in [
            ("no tar", b"no tar at all".repeat(100), Code::InvalidArgument),
            ("cut gzip", gzip(&tar)[..40].to_vec(), Code::DataLoss),
            // Header and content of the one file.
            ("cut behind a member", tar[..1024].to_vec(), Code::DataLoss),
            ("cut behind a member, whole gzip", gzip(&tar[..1024]), Code::DataLoss),
            ("empty", vec![], Code::DataLoss),
        ] {
            let job = world.transfer.rootfs(&auth(), &ns(), as_file(&bytes), options.clone()).await.unwrap();
            fails(job.wait().await.map_err(|e| e.context(what)), code, what);
            world.quiet().await;
            assert_eq!(world.holdings(), before, "{what}");
        }
        world.stop().await;
    });
}
