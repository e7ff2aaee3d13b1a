//! What comes through a grant that chooses images: knowing a digest grants nothing there either.

use std::{
    fs,
    io::Write as _,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use cofferdam_content::IngestOptions;
use cofferdam_types::{Authority, Ceiling, Code, Descriptor, Labels, Pictures, Platform, Result, media};
use serde_json::json;

use crate::{
    Arrived, ExportOptions, PullOptions, UnpackOptions,
    testing::{
        picture::{Picture, gzip, sha, tar_of},
        server::{Reply, Server},
        world::{World, amd64, auth, fails, name, ns, pulling, quick, run},
    },
};

/// A registry that answers every manifest by its digest, or by the name of the first, and of all blobs those for which it says so.
fn serve(documents: Vec<Vec<u8>>, blobs: Vec<Vec<u8>>, says: impl Fn(&[u8]) -> bool + Send + Sync + 'static) -> Server {
    Server::new(move |seen| {
        let last = seen.path().rsplit('/').next().unwrap();
        let named = |all: &[Vec<u8>]| all.iter().find(|one| sha(one).to_string() == last).cloned();
        if seen.path().contains("/manifests/") {
            let Some(found) = named(&documents).or_else(|| documents.first().filter(|_| last == "t").cloned()) else {
                return Reply::new(404, "");
            };
            let index = found.windows(11).any(|part| part == b"\"manifests\"");
            let kind = if index { media::OCI_INDEX } else { media::OCI_MANIFEST };
            return Reply::ok(&*found).with("content-type", kind).with("docker-content-digest", sha(&found));
        }
        match named(&blobs).filter(|blob| says(blob)) {
            Some(blob) => Reply::ranged(seen, &blob),
            None => Reply::new(404, ""),
        }
    })
}

fn all(picture: &Picture) -> Vec<Vec<u8>> {
    picture.blobs().into_iter().map(<[u8]>::to_vec).collect()
}

/// How often a blob was asked for.
fn asked(server: &Server, blob: &[u8]) -> usize {
    server.seen().iter().filter(|seen| seen.path().ends_with(&sha(blob).to_string()) && seen.method == "GET").count()
}

/// Who may have the images below some beginnings.
async fn chooser(world: &World, beginnings: &[String]) -> Authority {
    let images = Pictures(vec![beginnings.iter().map(|begin| format!("{begin}*")).collect()]);
    Authority { ceiling: Ceiling { images, ..Ceiling::FULL }, ..world.holder().await }
}

async fn pull(world: &World, by: &Authority, reference: &str, driver: Option<&str>) -> Result<Vec<Arrived>> {
    let options = PullOptions { driver: driver.map(str::to_owned), ..pulling(reference, quick()) };
    world.transfer.pull(by, &ns(), options).await.unwrap().wait().await
}

#[test]
fn what_other_images_brought_is_not_taken_for_granted() {
    run(async {
        let hidden = Picture::new("hidden");
        let (theirs, world) = (serve(vec![hidden.manifest.clone()], all(&hidden), |_| true), World::start().await);
        pull(&world, &auth(), &format!("{}/secret/x:t", theirs.host()), Some("overlay")).await.unwrap();
        let before = world.holdings();
        // It has what it names, or hasn't.
        let (config, has) = (hidden.config.clone(), Arc::new((AtomicBool::new(false), AtomicBool::new(false))));
        let said = has.clone();
        let says = move |blob: &[u8]| if blob == config { &said.0 } else { &said.1 }.load(Ordering::SeqCst);
        let evil = serve(vec![hidden.manifest.clone()], all(&hidden), says);
        let reference = format!("{}/pub/evil:t", evil.host());
        let holder = chooser(&world, &[format!("{}/pub/", evil.host())]).await;
        for (layers, documents) in [(false, false), (true, false), (false, true)] {
            has.0.store(documents, Ordering::SeqCst);
            has.1.store(layers, Ordering::SeqCst);
            for driver in [None, Some("overlay")] {
                fails(pull(&world, &holder, &reference, driver).await, Code::NotFound, "");
            }
        }
        world.quiet().await;
        assert_eq!(world.holdings(), before);

        // Who shows it has it, and shows it once: then it is his own.
        has.0.store(true, Ordering::SeqCst);
        has.1.store(true, Ordering::SeqCst);
        pull(&world, &holder, &reference, Some("overlay")).await.unwrap();
        assert_eq!(world.read(&hidden.chain(), "etc/marker").await, "hidden");
        assert_eq!(world.holdings().files, before.files, "it is stored once");
        let times = |server: &Server| hidden.blobs().iter().map(|blob| asked(server, blob)).collect::<Vec<_>>();
        let shown = times(&evil);
        pull(&world, &holder, &reference, Some("overlay")).await.unwrap();
        assert_eq!(times(&evil), shown, "no bytes");
        let other = format!("{}/pub/other:t", evil.host());
        pull(&world, &holder, &other, Some("overlay")).await.unwrap();
        assert_eq!(times(&evil), shown, "it is within his reach");
        let image = world.images.resolve_of(&holder.ceiling.images, &ns(), &name(&other), &amd64()).await.unwrap();
        assert_eq!(image.layers.len(), 2);
        // Where nothing is chosen nothing has to be shown.
        has.0.store(false, Ordering::SeqCst);
        has.1.store(false, Ordering::SeqCst);
        pull(&world, &auth(), &format!("{}/any/x:t", evil.host()), Some("overlay")).await.unwrap();
        world.stop().await;
    });
}

#[test]
fn what_another_pull_left_half_way_is_not_gone_on_with() {
    run(async {
        let (picture, world) = (Picture::new("x"), World::start().await);
        for layer in &picture.layers {
            let mut options = IngestOptions::new(name(&format!("layer-{}", sha(layer))));
            (options.total, options.expected) = (Some(layer.len() as u64), Some(sha(layer)));
            let mut ingest = world.content.ingest(&auth(), &ns(), options).await.unwrap();
            ingest.write_all(layer).unwrap();
            ingest.sync().unwrap();
        }
        let config = picture.config.clone();
        let evil = serve(vec![picture.manifest.clone()], all(&picture), move |blob| blob == config);
        let holder = chooser(&world, &[evil.host()]).await;
        let reference = format!("{}/pub/evil:t", evil.host());
        fails(pull(&world, &holder, &reference, None).await, Code::NotFound, "");
        pull(&world, &auth(), &reference, None).await.unwrap();
        world.stop().await;
    });
}

#[test]
fn an_image_that_names_another_holds_nothing_of_it() {
    run(async {
        let (hidden, own) = (Picture::new("hidden"), Picture::new("own"));
        let (theirs, world) = (serve(vec![hidden.manifest.clone()], all(&hidden), |_| true), World::start().await);
        pull(&world, &auth(), &format!("{}/secret/x:t", theirs.host()), Some("overlay")).await.unwrap();
        let arm = Platform::new("linux", "arm64", "");
        let on = |picture: &Picture, platform: &Platform| {
            json!(Descriptor { platform: Some(platform.clone()), ..picture.target() })
        };
        let index = json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX,
            "manifests": [on(&own, &amd64()), on(&hidden, &arm)] });
        let evil = serve(vec![index.to_string().into_bytes(), own.manifest.clone()], all(&own), |_| true);
        let holder = chooser(&world, &[format!("{}/pub/", evil.host())]).await;
        let chosen = &holder.ceiling.images;
        let evil = name(&format!("{}/pub/evil:t", evil.host()));
        pull(&world, &holder, &evil, Some("overlay")).await.unwrap();

        let images = &world.images;
        images.resolve_of(chosen, &ns(), &evil, &amd64()).await.unwrap();
        let as_if_not_here = images.resolve_of(chosen, &ns(), &evil, &arm).await;
        fails(as_if_not_here.map(drop), Code::NotFound, "is not in this namespace");
        let unpack = UnpackOptions { name: evil.clone(), platform: arm.clone(), driver: "overlay".into() };
        let unpacked = world.transfer.unpack(&holder, &ns(), unpack).await.unwrap().wait().await;
        fails(unpacked, Code::NotFound, "is not in this namespace");
        let target = images.get(&ns(), &evil).unwrap().target;
        let owned = images.own(chosen, &ns(), &evil, &target).unwrap();
        let states = images.states(&ns(), &target, owned).await.unwrap();
        let missing: Vec<_> = states.iter().map(|state| (state.required.len(), state.missing.len())).collect();
        assert_eq!(missing, [(4, 0), (1, 1)]);
        let export = async |by: &Authority| {
            let path = world.root.path().join("archive");
            let to = OwnedFd::from(fs::File::create(&path).unwrap());
            let options = ExportOptions { names: vec![evil.clone()], platform: None };
            world.transfer.export(by, &ns(), options, to).await.unwrap().wait().await.unwrap();
            let archive = fs::read(path).unwrap();
            let has = |blob: &[u8]| archive.windows(blob.len()).any(|part| part == blob);
            (has(&own.layers[0]), has(&hidden.layers[0]), has(&hidden.manifest))
        };
        assert_eq!(export(&holder).await, (true, false, false));

        // The operator has all of it; and who may have the other image too.
        images.resolve(&ns(), &evil, &arm).await.unwrap();
        assert_eq!(export(&auth()).await, (true, true, true));
        let both = Pictures(vec![[chosen.0[0].clone(), vec![format!("{}/secret/x:t", theirs.host())]].concat()]);
        images.resolve_of(&both, &ns(), &evil, &arm).await.unwrap();
        // Of an image that somebody else named, or that is chosen by its digest, all is its own.
        let read = Pictures(vec![vec!["given:1".into()]]);
        images.put(&auth(), &ns(), &name("given:1"), &target, Labels::new()).await.unwrap();
        images.resolve_of(&read, &ns(), &name("given:1"), &arm).await.unwrap();
        images.resolve_of(&Pictures(vec![vec![target.digest.to_string()]]), &ns(), &evil, &arm).await.unwrap();
        world.stop().await;
    });
}

#[test]
fn a_config_that_claims_the_layers_of_another_image_gets_no_tree_of_it() {
    run(async {
        let hidden = Picture::new("hidden");
        let (theirs, world) = (serve(vec![hidden.manifest.clone()], all(&hidden), |_| true), World::start().await);
        pull(&world, &auth(), &format!("{}/secret/x:t", theirs.host()), Some("overlay")).await.unwrap();
        let tars = vec![tar_of(&[("a", b"one")]), tar_of(&[("a", b"two")])];
        let layers = tars.iter().map(|tar| gzip(tar)).collect();
        let claims = Picture::with(tars, layers, Some(hidden.tars.iter().map(|tar| sha(tar)).collect()));
        let evil = serve(vec![claims.manifest.clone()], all(&claims), |_| true);
        let holder = chooser(&world, &[evil.host()]).await;
        let evil = name(&format!("{}/pub/evil:t", evil.host()));
        fails(pull(&world, &holder, &evil, Some("overlay")).await, Code::DataLoss, "");
        // Nor when it was only fetched before.
        pull(&world, &holder, &evil, None).await.unwrap();
        let unpack = UnpackOptions { name: evil.clone(), platform: amd64(), driver: "overlay".into() };
        let unpacked = world.transfer.unpack(&holder, &ns(), unpack).await.unwrap().wait().await;
        fails(unpacked, Code::DataLoss, "");
        world.stop().await;
    });
}
