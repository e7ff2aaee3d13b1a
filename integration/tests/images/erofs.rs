//! The driver of EROFS images: the same trees, containers on them, and nothing that stays.

use std::{fs, path::Path};

use cofferdam_integration::{Daemon, bounded, until};
use cofferdam_sys::mountinfo;

use crate::{
    btrfs::{import, run, said, same_trees},
    support::{
        tree::assert_same,
        world::{World, umoci},
    },
};

const ON: &str = "erofs";

/// The layers that the daemon keeps mounted.
fn mounted(daemon: &Daemon) -> usize {
    let root = daemon.root();
    mountinfo::read().unwrap().iter().filter(|mount| mount.kind == "erofs" && mount.point.starts_with(&root)).count()
}

fn layers(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().filter(|entry| entry.as_ref().unwrap().path().join("image").exists()).count()
}

#[test]
fn every_layout_becomes_the_tree_that_overlay_shows() {
    bounded(async {
        same_trees(&World::start().await, ON).await;
    });
}

#[test]
fn an_image_of_many_layers_becomes_as_many_images() {
    bounded(async {
        let world = World::start().await;
        let names = import(&world, "stack", ON).wait().await.unwrap();
        assert_same("stack", &world.container_tree(&names[0], ON).await, &umoci("stack"));
        assert_eq!((layers(&world.daemon.root().join("snapshots/erofs")), mounted(&world.daemon)), (8, 8));
    });
}

#[test]
fn containers_go_on_while_the_daemon_is_away() {
    let daemon = Daemon::with_busybox();
    let (code, text) =
        run(&daemon, ON, &["--rm"], "echo hello > /file && cat /file && rm /bin/sh && ! test -e /bin/sh");
    assert!(code == 0 && text.starts_with("hello\n"), "{text}");
    let (code, text) = run(&daemon, ON, &["-d", "--name", "box"], "echo mine > /file; exec sleep 1000");
    assert_eq!(code, 0, "{text}");
    until("it wrote", || (said(&daemon, &["exec", "box", "cat", "/file"]).1 == "mine\n").then_some(()));
    let script = ["exec", "box", "sh", "-c", "cat /file && cat /bin/busybox | wc -c && touch /new"];
    let (code, before) = said(&daemon, &script);
    assert_eq!(code, 0, "{before}");
    // After a crash the layers are still mounted; after an end in order they are not, but in the container.
    for end in [Daemon::kill9, Daemon::stop] {
        end(&daemon);
        daemon.restart();
        assert_eq!(mounted(&daemon), 1);
        assert_eq!(said(&daemon, &script), (0, before.clone()));
    }
    daemon.stop();
    assert_eq!(mounted(&daemon), 0);
    daemon.restart();
    assert_eq!(said(&daemon, &["rm", "-f", "box"]).0, 0);
    let (code, text) =
        run(&daemon, ON, &["--rm", "--userns", "0:100000:65536"], "touch /new && stat -c %u /new /bin /etc");
    assert_eq!((code, &*text), (0, "0\n0\n0\n"));
    assert_eq!(run(&daemon, ON, &["--rm", "--read-only"], "touch /new").0, 1);
}
