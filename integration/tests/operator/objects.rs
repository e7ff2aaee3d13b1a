//! Images as objects: other names, labels, what is here of them, and what nobody uses.

use std::process::Command;

use cofferdam_integration::{BUSYBOX, Daemon, images};

use crate::{idle, json, ok, say};

fn names(daemon: &Daemon) -> Vec<String> {
    ok(daemon, &["image", "ls", "-q"]).lines().map(str::to_owned).collect()
}

#[test]
fn an_image_has_several_names_and_labels_of_each() {
    let daemon = Daemon::with_busybox();
    let first = json(&daemon, &["image", "inspect", BUSYBOX])["info"].clone();
    assert_eq!(ok(&daemon, &["image", "label", BUSYBOX, "tier=base", "owner=me"]), "owner=me\ntier=base\n");
    assert_eq!(ok(&daemon, &["image", "tag", BUSYBOX, "shop/base:2"]), "docker.io/shop/base:2\n");
    let second = json(&daemon, &["image", "inspect", "shop/base:2"]);
    assert_eq!(second["info"]["target"], first["target"]);
    assert_eq!(second["info"]["labels"], serde_json::json!({"owner": "me", "tier": "base"}));
    assert_eq!(second["names"][0], first["name"], "{second}");
    // A label is a name's own.
    assert_eq!(ok(&daemon, &["image", "label", "shop/base:2", "tier="]), "owner=me\n");
    assert_eq!(ok(&daemon, &["image", "ls", "-q", "--filter", "labels.tier==base"]).lines().count(), 1);

    // The same name for the same thing is no change; for something else it must be said.
    assert_eq!(ok(&daemon, &["image", "tag", BUSYBOX, "shop/base:2"]), "docker.io/shop/base:2\n");
    let stack = images().join("archive/stack.oci.tar");
    ok(&daemon, &["image", "import", "--no-unpack", stack.to_str().unwrap(), "shop/stack:1"]);
    let taken = say(&daemon, &["image", "tag", "shop/stack:1", "shop/base:2"]);
    assert!(taken.code == 1 && taken.err.contains("stands for another image"), "{taken:?}");
    ok(&daemon, &["image", "tag", "--replace", "shop/stack:1", "shop/base:2"]);
    let (stack, base) =
        (json(&daemon, &["image", "inspect", "shop/stack:1"]), json(&daemon, &["image", "inspect", "shop/base:2"]));
    assert_eq!(stack["info"]["target"], base["info"]["target"]);
    assert_eq!(base["info"]["labels"], serde_json::json!({}), "the labels come with the thing");
    for (args, words) in [
        (["image", "tag", "nothing", "other"], "is not here"),
        (["image", "tag", BUSYBOX, "UPPER case"], "UPPER"),
        (["image", "label", "nothing", "a=b"], "is not here"),
    ] {
        let said = say(&daemon, &args);
        assert!(said.code == 1 && said.err.contains(words), "{args:?}: {said:?}");
    }

    assert_eq!(ok(&daemon, &["image", "untag", "shop/base:2"]), "shop/base:2\n");
    assert!(!names(&daemon).contains(&"docker.io/shop/base:2".to_owned()));
    assert_eq!(ok(&daemon, &["run", "--rm", BUSYBOX, "echo", "still here"]), "still here\n");
}

#[test]
fn what_is_here_is_told_by_platform() {
    let daemon = Daemon::start();
    let stack = images().join("archive/stack.oci.tar");
    ok(&daemon, &["image", "import", "--no-unpack", stack.to_str().unwrap(), "shop/stack:1"]);
    let rows = |text: String| -> Vec<Vec<String>> {
        text.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };
    let row = |daemon: &Daemon| rows(ok(daemon, &["image", "check"])).remove(0);
    let before = row(&daemon);
    assert_eq!((before[2].as_str(), before[3].as_str()), ("linux/amd64", "complete"), "{before:?}");
    assert_eq!(before.last().unwrap(), "-", "nothing is unpacked: {before:?}");

    ok(&daemon, &["image", "unpack", "shop/stack:1"]);
    ok(&daemon, &["image", "unpack", "--snapshotter", "native", "shop/stack:1"]);
    assert_eq!(row(&daemon).last().unwrap(), "overlay,native");

    let shown = json(&daemon, &["image", "inspect", "shop/stack:1"]);
    let layers = shown["layers"].as_array().unwrap();
    let told: Vec<_> = shown["history"].as_array().unwrap().iter().filter(|step| !step["layer"].is_null()).collect();
    assert_eq!(told.len(), layers.len(), "{shown}");
    assert!(told.iter().zip(layers).all(|(step, layer)| &step["layer"] == layer), "{shown}");

    // Without a layer, without the manifest.
    let (layer, manifest) = (layers[1]["digest"].as_str().unwrap(), shown["manifest"]["digest"].as_str().unwrap());
    ok(&daemon, &["content", "rm", layer]);
    let (all, here) = (layers.len() + 2, layers.len() + 1);
    assert!(ok(&daemon, &["image", "check", "shop/stack:1"]).contains(&format!("incomplete ({here}/{all})")));
    assert_eq!(ok(&daemon, &["image", "check", "-q"]), "");
    let report = json(&daemon, &["image", "check"]);
    assert_eq!(report[0]["platforms"][0]["missing"][0]["digest"], layer, "{report}");
    ok(&daemon, &["content", "rm", manifest]);
    let lost = row(&daemon);
    assert_eq!((lost[2].as_str(), lost[3].as_str()), ("-", "missing"), "{lost:?}");
    let gone = say(&daemon, &["image", "check", "shop/stack:1", "nothing"]);
    assert!(gone.code == 1 && gone.err.contains("is not here") && gone.out.contains("shop/stack:1"), "{gone:?}");
    assert_eq!(say(&daemon, &["image", "check", "nothing"]).out, "", "a table of nothing");
}

#[test]
fn what_nobody_uses_is_pruned_and_the_reason_is_said() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "user");
    let stack = images().join("archive/stack.oci.tar");
    ok(&daemon, &["image", "import", stack.to_str().unwrap(), "shop/stack:1"]);
    ok(&daemon, &["image", "tag", BUSYBOX, "shop/spare:1"]);
    ok(&daemon, &["image", "label", "shop/stack:1", "keep=no"]);
    let shown = json(&daemon, &["image", "inspect", BUSYBOX]);
    assert_eq!((&shown["users"], &shown["userCount"]), (&serde_json::json!(["user"]), &1.into()), "{shown}");

    let dry = json(&daemon, &["image", "prune", "--dry-run"]);
    assert_eq!((&dry["removed"], &dry["kept"]), (&2.into(), &1.into()), "{dry}");
    let blobs = json(&daemon, &["content", "ls"]).as_array().unwrap().len();
    assert!(dry["blobs"].as_u64().unwrap() > 0 && dry["bytes"].as_u64().unwrap() > 1 << 20, "{dry}");
    let why = |name: &str| {
        let items = dry["items"].as_array().unwrap();
        items.iter().find(|item| item["info"]["name"] == name).unwrap()["why"].as_str().unwrap().to_owned()
    };
    assert_eq!(why("docker.io/shop/stack:1"), "no container was made from it");
    assert_eq!(why(shown["info"]["name"].as_str().unwrap()), "container user was made from it");
    assert_eq!(names(&daemon).len(), 3, "nothing was removed");

    assert!(ok(&daemon, &["image", "prune", "--older-than", "1h"]).contains("was changed since"));
    assert_eq!(names(&daemon).len(), 3);
    let some = ok(&daemon, &["image", "prune", "--filter", "labels.keep==no", "--sync"]);
    assert!(some.contains("shop/stack:1") && some.contains("1 image removed"), "{some}");
    // What nothing keeps is gone by then, and it is as much as was said.
    let left = json(&daemon, &["content", "ls"]).as_array().unwrap().len();
    assert_eq!((blobs - left) as u64, dry["blobs"].as_u64().unwrap());
    ok(&daemon, &["image", "prune"]);
    assert_eq!(names(&daemon).len(), 1, "but the one that is used");
    ok(&daemon, &["rm", "-f", "user"]);
    assert!(ok(&daemon, &["image", "prune"]).contains("1 image removed"));
    assert_eq!(ok(&daemon, &["image", "prune"]), "0 images removed; nothing keeps 0 blobs and 0 snapshots then, 0 B\n");
    let wrong = say(&daemon, &["image", "prune", "--filter", "colour==red"]);
    assert!(wrong.code == 1 && wrong.err.contains("colour"), "{wrong:?}");
}

// What lies below a directory is opened by the daemon: the holder of a grant would read by it what it may not read itself.
#[test]
fn s_a_directory_is_imported_by_the_right_to_the_host_alone() {
    let daemon = Daemon::start();
    let token = |right: &str| {
        let id = ok(&daemon, &["grant", "create", "--right", right]).trim().to_owned();
        ok(&daemon, &["grant", "save", &id]).trim().to_owned()
    };
    let (write, host) = (token("write"), token("host"));
    let tree = images().join("rootfs/busybox");
    let tree = tree.to_str().unwrap();
    let refused = say(&daemon, &["--as", &write, "image", "import", "--rootfs", tree, "mine"]);
    assert!(refused.code == 1 && refused.err.contains("needs the host right; send an archive"), "{refused:?}");
    assert_eq!(names(&daemon), [""; 0]);
    ok(&daemon, &["--as", &host, "image", "import", "--rootfs", tree, "theirs"]);

    let archive = daemon.path().join("tree.tar");
    assert!(Command::new("tar").args(["-C", tree, "-cf"]).arg(&archive).arg(".").status().unwrap().success());
    ok(&daemon, &["--as", &write, "image", "import", "--rootfs", archive.to_str().unwrap(), "mine"]);
    assert_eq!(ok(&daemon, &["run", "--rm", "mine", "/bin/busybox", "echo", "it runs"]), "it runs\n");
}
