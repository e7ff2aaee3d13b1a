//! A disk that is full: a typed error, nothing left, and all is well once there is room.

use std::fs;

use cofferdam_client::{ImportOptions, PullOptions};
use cofferdam_integration::{bounded, fill, small_disk};
use cofferdam_types::Code;

use crate::support::{
    craft::{Picture, Tar, noise},
    server::Server,
    tree::Kind,
    world::{World, packed, pipe_of},
};

const MIB: usize = 1 << 20;

/// A world on a small disk.
async fn small(mib: usize, inodes: usize) -> World {
    World::with(small_disk(mib, inodes)).await
}

#[test]
fn what_does_not_fit_is_refused_and_comes_in_when_there_is_room() {
    bounded(async {
        let world = small(160, 8192).await;
        let before = world.holdings().await;
        // One whose blobs don't fit, and one whose blobs do and whose tree doesn't.
        let blobs = Picture::sample("large", 24 * MIB);
        let zeros = Tar::new().file("etc/marker", "zeros").bytes("zeros", &vec![0; 48 * MIB]);
        let trees = Picture::of(vec![Tar::new().bytes("first", &noise(MIB)).end(), zeros.end()]);
        let server = Server::of(blobs.clone());
        let filler = fill(&world.daemon.root(), 16 << 20);
        for (what, picture) in [("blobs", &blobs), ("trees", &trees)] {
            for driver in ["overlay", "native"] {
                let options = ImportOptions { name: "image".into(), driver: driver.into(), ..ImportOptions::default() };
                let what = format!("{what}, {driver}");
                let file = world.import_with(&options, packed(&picture.layout()));
                world.refused(&what, &before, file, Code::ResourceExhausted, "space").await;
                let pipe = pipe_of(crate::support::craft::pack(&picture.layout()));
                let pipe = world.import_with(&options, pipe);
                world.refused(&what, &before, pipe, Code::ResourceExhausted, "space").await;
            }
        }
        let pull = PullOptions { reference: server.reference(), ..PullOptions::default() };
        world.refused("a pull", &before, world.pull_with(pull.clone()), Code::ResourceExhausted, "space").await;
        // What fits still comes in beside.
        let small = Picture::sample("small", 1000);
        world.import("small", packed(&small.layout())).wait().await.unwrap();

        fs::remove_file(filler).unwrap();
        for picture in [&blobs, &trees] {
            let names = world.import("image", packed(&picture.layout())).wait().await.unwrap();
            assert!(world.ns.images().get(&names[0]).detail("").await.unwrap().unpacked);
        }
        let names = world.pull_with(pull).wait().await.unwrap();
        let tree = world.container_tree(&names[0], "").await;
        assert_eq!(tree[std::path::Path::new("etc/name")].kind, Kind::file(b"upper"));
    });
}

#[test]
fn a_disk_without_inodes_is_full_too() {
    bounded(async {
        let world = small(64, 512).await;
        let before = world.holdings().await;
        let crowd = (0..1000).fold(Tar::new(), |tar, n| tar.file(&format!("d/{n}"), ""));
        let crowd = Picture::of(vec![crowd.end()]);
        world
            .refused("files", &before, world.import("image", packed(&crowd.layout())), Code::ResourceExhausted, "space")
            .await;
        let few = Picture::sample("few", 1000);
        world.import("few", packed(&few.layout())).wait().await.unwrap();
    });
}

#[test]
fn a_disk_with_no_room_at_all() {
    bounded(async {
        let world = small(64, 4096).await;
        let small = Picture::sample("small", MIB);
        let names = world.import("small", packed(&small.layout())).wait().await.unwrap();
        let before = world.holdings().await;
        let filler = fill(&world.daemon.root(), 0);
        let more = Picture::sample("more", 4 * MIB);
        world
            .refused("import", &before, world.import("more", packed(&more.layout())), Code::ResourceExhausted, "")
            .await;
        // Who only asks is answered.
        assert!(world.ns.images().get(&names[0]).detail("").await.unwrap().unpacked);
        assert_eq!(world.client.system().status().await.unwrap().state, "ready");
        fs::remove_file(filler).unwrap();
        world.import("more", packed(&more.layout())).wait().await.unwrap();
        world.container_tree(&names[0], "").await;
    });
}
