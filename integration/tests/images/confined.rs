//! Layers A1 to A16: whatever a layer says, it says it of its own root. Each image is imported by a real daemon, into
//! each driver and on a layer below; what lies outside has a canary that stays as it was.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use cofferdam_client::ImportOptions;
use cofferdam_integration::{bounded, count};
use cofferdam_types::{Code, Error, Result};

use crate::support::{
    craft::{Picture, Tar, gzip, noise, sha, zstd},
    tree::{Kind, Tree, differences, tree},
    world::{World, packed, pipe_of},
};

/// A daemon, and what no layer may touch: beside its root, a few levels up from where layers are unpacked.
struct Jail {
    world: World,
    canary: Tree,
}

impl Jail {
    async fn new() -> Jail {
        let world = World::start().await;
        let outside = world.daemon.path().join("outside");
        fs::create_dir_all(outside.join("sub")).unwrap();
        for file in ["canary", "sub/canary"] {
            fs::write(outside.join(file), "alive").unwrap();
            fs::set_permissions(outside.join(file), fs::Permissions::from_mode(0o640)).unwrap();
        }
        let canary = tree(&outside);
        Jail { world, canary }
    }

    /// The absolute path of the directory with the canaries.
    fn outside(&self) -> String {
        self.world.daemon.path().join("outside").to_str().unwrap().to_owned()
    }

    /// The same as a path within a root that was taken for the host's.
    fn inner(&self, name: &str) -> PathBuf {
        Path::new(&self.outside()[1..]).join(name)
    }

    /// Nothing outside has changed, and nothing is new beside the daemon's own directories.
    fn unharmed(&self, what: &str) {
        let now = tree(Path::new(&self.outside()));
        assert_eq!(differences(&now, &self.canary), [""; 0], "{what}");
        let names = |dir: PathBuf| {
            let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(self.world.daemon.path().to_owned()), ["log", "outside", "root", "state"], "{what}");
        let mut root = names(self.world.daemon.root());
        // It is made some time after the start.
        root.retain(|name| name != "reserve");
        assert_eq!(
            root,
            ["audit", "checkpoints", "content", "events", "logs", "meta.redb", "snapshots", "trash"],
            "{what}"
        );
    }

    async fn import(&self, picture: &Picture, driver: &str) -> Result<String> {
        let options = ImportOptions { name: "evil".into(), driver: driver.into(), ..ImportOptions::default() };
        let job = self.world.import_with(&options, packed(&picture.layout()));
        Ok(job.wait().await?.remove(0))
    }

    /// Imports the layer, on one that has a few things already, into each driver; gives the tree that both make of it.
    async fn picture(&self, what: &str, picture: &Picture) -> Result<Tree> {
        let mut results: Vec<Result<Tree>> = Vec::new();
        for driver in ["overlay", "native"] {
            let before = self.world.holdings().await;
            let result = self.import(picture, driver).await;
            self.unharmed(&format!("{what}, {driver}"));
            results.push(match result {
                Ok(name) => Ok(self.world.container_tree(&name, driver).await),
                Err(error) => {
                    // What a failed import leaves is nothing.
                    self.world.settles(&before).await;
                    Err(error)
                }
            });
            // Neither did making a container of it.
            self.unharmed(&format!("a container of {what}, {driver}"));
        }
        let native = results.pop().unwrap();
        let overlay = results.pop().unwrap();
        match (&overlay, &native) {
            (Ok(one), Ok(other)) => assert_eq!(differences(one, other), [""; 0], "{what}"),
            (Err(one), Err(other)) => assert_eq!(one.code, other.code, "{what}: {one} and {other}"),
            (one, other) => panic!("{what}: the drivers differ: {:?}, {:?}", one.as_ref().err(), other.as_ref().err()),
        }
        overlay
    }

    async fn layer(&self, what: &str, tar: Tar) -> Result<Tree> {
        let lower = Tar::new().dir("etc", 0o755).file("etc/passwd", "inside").dir("x", 0o755).file("kept", "below");
        self.picture(what, &Picture::of(vec![lower.end(), tar.end()])).await
    }

    async fn taken(&self, what: &str, tar: Tar) -> Tree {
        self.layer(what, tar).await.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    async fn refuses(&self, what: &str, tar: Tar, code: Code) -> Error {
        let error = self.layer(what, tar).await.err().unwrap_or_else(|| panic!("{what} was taken"));
        assert_eq!(error.code, code, "{what}: {error}");
        error
    }
}

fn jailed(test: impl AsyncFnOnce(&Jail)) {
    bounded(async {
        let jail = Jail::new().await;
        test(&jail).await;
        jail.unharmed("at the end");
    });
}

fn text(tree: &Tree, path: impl AsRef<Path>) -> &Kind {
    let path = path.as_ref();
    &tree.get(path).unwrap_or_else(|| panic!("{} is not there", path.display())).kind
}

fn dead() -> Kind {
    Kind::file(b"dead")
}

/// From any depth up to the directory with the canaries.
fn upward() -> Vec<String> {
    (1..9).map(|n| "../".repeat(n) + "outside").collect()
}

#[test]
fn a1_a_write_through_an_absolute_symlink() {
    jailed(async |jail| {
        let out = jail.outside();
        let tar = Tar::new().symlink(&out, "out").file("out/canary", "dead").file("out/new", "x").dir("out/sub", 0o777);
        let tree = jail.taken("absolute", tar).await;
        assert_eq!(text(&tree, jail.inner("canary")), &dead());
        assert_eq!(text(&tree, "out"), &Kind::Symlink(out.into()));
    });
}

#[test]
fn a2_a_write_through_a_symlink_upward() {
    jailed(async |jail| {
        for target in upward().into_iter().chain(["x/../../outside".into(), "/../outside".into()]) {
            let tree = jail.taken(&target, Tar::new().symlink(&target, "out").file("out/canary", "dead")).await;
            assert_eq!(text(&tree, "outside/canary"), &dead(), "{target}");
        }
    });
}

#[test]
fn a3_chains_of_symlinks() {
    jailed(async |jail| {
        let out = jail.outside();
        let chain = Tar::new().symlink("/b", "a").symlink("./c/d", "b").dir("c", 0o755).symlink("../e", "c/d");
        let tree = jail.taken("chain", chain.symlink(&out, "e").file("a/canary", "dead")).await;
        assert_eq!(text(&tree, jail.inner("canary")), &dead());
        let up = &upward()[4];
        let chain = Tar::new().symlink(up, "x/e").symlink("x/e", "a").file("a/canary", "dead");
        assert_eq!(text(&jail.taken("relative", chain).await, "outside/canary"), &dead());
        for loops in [
            Tar::new().symlink("p", "q").symlink("q", "p").file("p/x", "x"),
            Tar::new().symlink("s/s", "s").file("s/x", "x"),
        ] {
            jail.refuses("loop", loops, Code::InvalidArgument).await;
        }
    });
}

#[test]
fn a4_hard_links_to_the_outside() {
    jailed(async |jail| {
        let out = jail.outside();
        let mut targets = vec![format!("{out}/canary"), format!("{}{}/canary", "../".repeat(40), &out[1..])];
        targets.extend(upward().iter().map(|up| format!("{up}/canary")));
        for target in targets {
            jail.refuses(&target, Tar::new().link(&target, "stolen"), Code::NotFound).await;
        }
        jail.refuses("through a link", Tar::new().symlink(&out, "out").link("out/canary", "s"), Code::NotFound).await;
        for (target, name) in [("/", "stolen"), ("x", "stolen"), ("kept", "kept")] {
            jail.refuses(target, Tar::new().link(target, name), Code::InvalidArgument).await;
        }
    });
}

#[test]
fn a5_hard_links_to_symlinks() {
    jailed(async |jail| {
        let canary = format!("{}/canary", jail.outside());
        let tar = Tar::new()
            .symlink(&canary, "l")
            .symlink("/etc/later", "m")
            .link("l", "l2")
            .link("m", "m2")
            .file("etc/later", "after")
            .link("l", "n2")
            .file("n2", "mine");
        let tree = jail.taken("links to links", tar).await;
        for (link, name) in [("l", "l2"), ("m", "m2")] {
            assert_eq!(tree[Path::new(name)].first, Path::new(link));
            assert_eq!(text(&tree, link), text(&tree, name));
        }
        assert_eq!(text(&tree, "l"), &Kind::Symlink(canary.into()));
        assert_eq!((text(&tree, "n2"), text(&tree, "etc/later")), (&Kind::file(b"mine"), &Kind::file(b"after")));
    });
}

#[test]
fn a6_odd_names() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let named = |tar: Tar, name: &[u8]| tar.entry(name, b'0', b"", 0o644, b"x");
    jailed(async |jail| {
        let plain = jail.taken("nothing", Tar::new()).await;
        let nothing = [&b""[..], b".", b"..", b"/", b"./", b"../..", b"///"].into_iter().fold(Tar::new(), named);
        assert_eq!(differences(&jail.taken("no names", nothing).await, &plain), [""; 0]);
        let odd =
            [&b"slash/"[..], b"\xff\xfe", b"../../up", b"./a/./b//c", b"new\nline"].into_iter().fold(Tar::new(), named);
        let tree = jail.taken("odd names", odd).await;
        for name in [&b"slash"[..], b"\xff\xfe", b"up", b"a/b/c", b"new\nline"] {
            assert_eq!(text(&tree, OsStr::from_bytes(name)), &Kind::file(b"x"));
        }
        for (what, tar, code) in [
            ("NUL", Tar::new().pax(&[("path", b"a\0b")]).file("a", ""), Code::DataLoss),
            ("a long name", named(Tar::new(), &[b'a'; 256]), Code::InvalidArgument),
            ("a long path", named(Tar::new(), &b"a/".repeat(2100)), Code::ResourceExhausted),
            ("a long target", Tar::new().symlink(&"x".repeat(5000), "l"), Code::ResourceExhausted),
            ("no target", Tar::new().symlink("", "l"), Code::InvalidArgument),
        ] {
            jail.refuses(what, tar, code).await;
        }
    });
}

#[test]
fn a7_nothing_is_changed_through_a_link() {
    jailed(async |jail| {
        let out = jail.outside();
        let canary = format!("{out}/canary");
        let mark = [("SCHILY.xattr.user.mark", &b"x"[..])];
        let tar = Tar::new()
            .symlink(&out, "d")
            .symlink(&canary, "f")
            .symlink(&canary, "l")
            .symlink(&canary, "n")
            .owner(1000)
            .pax(&mark)
            .dir("d", 0o777)
            .pax(&mark)
            .mode("f", "mine", 0o4777)
            .link("l", "l2")
            .device("n", b'3', 0o666, 1, 3);
        let tree = jail.taken("over links", tar).await;
        let entry = |name: &str| &tree[Path::new(name)];
        assert_eq!((&entry("d").kind, entry("d").mode, entry("d").owner), (&Kind::Directory, 0o777, (1000, 1000)));
        assert_eq!((&entry("f").kind, entry("f").mode), (&Kind::file(b"mine"), 0o4777));
        assert_eq!(entry("n").kind, Kind::Device { block: false, number: (1, 3) });
        assert_eq!((entry("l2").owner, entry("l2").first.as_path()), ((0, 0), Path::new("l")));
    });
}

#[test]
fn a8_parents_that_no_entry_names() {
    jailed(async |jail| {
        let tar = Tar::new().symlink(&format!("{}/none", jail.outside()), "m").file("m/deep/mtab", "x");
        let tree = jail.taken("through a link", tar).await;
        assert_eq!(text(&tree, jail.inner("none/deep/mtab")), &Kind::file(b"x"));
        assert_eq!(tree[&jail.inner("none")].mode, 0o755);
        // What the daemon itself puts into a root for a container follows no link out of it either.
        let dangling = Tar::new()
            .symlink(&format!("{}/new", jail.outside()), "etc/hostname")
            .symlink(&format!("{}/canary", jail.outside()), "etc/resolv.conf")
            .symlink(&format!("{}/canary", jail.outside()), "etc/hosts")
            .symlink(&format!("{}/canary", jail.outside()), "etc/mtab");
        jail.taken("helper files", dangling).await;
    });
}

/// Puts a link to the outside where a directory is, and the directory back.
fn swap(at: &Path, aside: &Path, out: &str) -> bool {
    if fs::rename(at, aside).is_err() {
        return false;
    }
    let swapped = symlink(out, at).is_ok();
    let _ = fs::remove_file(at);
    let _ = fs::rename(aside, at);
    swapped
}

#[test]
fn a9_somebody_renames_directories_meanwhile() {
    jailed(async |jail| {
        let stop = Arc::new(AtomicBool::new(false));
        let swaps = Arc::new(AtomicUsize::new(0));
        let renamer = {
            let (snapshots, out) = (jail.world.daemon.root().join("snapshots"), jail.outside());
            let (stop, swaps) = (stop.clone(), swaps.clone());
            std::thread::spawn(move || {
                let below = |dir: &Path| -> Vec<PathBuf> {
                    fs::read_dir(dir)
                        .map_or_else(|_| Vec::new(), |all| all.filter_map(|e| Some(e.ok()?.path())).collect())
                };
                while !stop.load(Ordering::Relaxed) {
                    for root in below(&snapshots).iter().flat_map(|driver| below(driver)).map(|dir| dir.join("fs")) {
                        let done = swap(&root.join("a/b"), &root.join("a/real"), &out);
                        let done = swap(&root.join("a"), &root.join("real"), &out) || done;
                        swaps.fetch_add(usize::from(done), Ordering::Relaxed);
                    }
                }
            })
        };
        let (mut whole, mut round) = (0, 0);
        let least = count(100_000, 200) as usize;
        while round < 12 || swaps.load(Ordering::Relaxed) < least {
            assert!(round < 20 || swaps.load(Ordering::Relaxed) > 100, "the renamer does nothing");
            let mut tar = Tar::new();
            for i in 0..400 {
                tar = tar
                    .dir("a/b", 0o755)
                    .file(&format!("a/b/f{i}"), &format!("{round}"))
                    .dir(&format!("a/b/d{i}"), 0o777)
                    .file(&format!("a/b/d{i}/canary"), "dead")
                    .file("a/b/canary", "dead")
                    .link(&format!("a/b/f{i}"), &format!("a/b/h{i}"))
                    .file("a/b/.wh.canary", "")
                    .file("a/b/.wh.sub", "");
            }
            let driver = ["overlay", "native"][round % 2];
            // Whether it comes in is a matter of luck; that it stays inside is not.
            match jail.import(&Picture::of(vec![tar.end()]), driver).await {
                Ok(name) => {
                    whole += 1;
                    jail.world.ns.images().remove(&name).await.unwrap();
                }
                Err(error) => assert_ne!(error.code, Code::Cancelled, "{error}"),
            }
            jail.unharmed(&format!("round {round}, {driver}"));
            round += 1;
        }
        stop.store(true, Ordering::Relaxed);
        renamer.join().unwrap();
        println!(
            "long-run: A9, a renamer beside imports | {swaps:?} swaps in {round} imports, {whole} of which came through"
        );
    });
}

#[test]
fn a10_the_root_itself_and_whiteouts() {
    jailed(async |jail| {
        for name in [".wh..", ".wh...", "etc/.wh..", "etc/.wh...", ".wh.", "etc/.wh."] {
            jail.refuses(name, Tar::new().file(name, ""), Code::InvalidArgument).await;
        }
        let plain = jail.taken("nothing", Tar::new()).await;
        let root = Tar::new().owner(7).dir("./", 0o000).symlink("/etc", "").symlink("/etc", "..").file(".", "x");
        assert_eq!(differences(&jail.taken("the root", root).await, &plain), [""; 0]);

        let out = jail.outside();
        let mut tar = Tar::new().symlink(&out, "out").symlink("../dead", "dangling");
        for (n, up) in upward().iter().enumerate() {
            let link = format!("up{n}");
            tar = tar.symlink(up, &link);
            for name in [".wh.canary", ".wh.sub", ".wh..wh..opq"] {
                tar = tar.file(&format!("{link}/{name}"), "");
            }
        }
        for name in ["out/.wh.canary", "out/.wh.sub", "out/.wh..wh..opq", "dangling/.wh.x", "../../.wh.outside"] {
            tar = tar.file(name, "");
        }
        jail.taken("whiteouts through links", tar.file(".wh.out", "")).await;
        let tree = jail.taken("an opaque root", Tar::new().file(".wh..wh..opq", "").file("new", "x")).await;
        assert!(!tree.contains_key(Path::new("kept")) && tree.contains_key(Path::new("new")));
    });
}

/// A tar whose first file's content is itself a header: a reader that takes another size sees a smuggled entry.
fn smuggler(prefix: Tar, size: &[u8]) -> Tar {
    let inner = Tar::new().file("smuggled", "").open();
    prefix.raw(b"outer", b'0', b"", 0o644, size, &inner)
}

#[test]
fn a11_archives_that_readers_see_differently() {
    jailed(async |jail| {
        for size in [&b"00000000000\0"[..], b"00000000777\0"] {
            let tree =
                jail.taken("PAX size", smuggler(Tar::new().pax(&[("size", b"512")]), size).file("after", "x")).await;
            assert!(matches!(text(&tree, "outer"), Kind::File { size: 512, .. }));
            assert!(!tree.contains_key(Path::new("smuggled")) && tree.contains_key(Path::new("after")));
        }
        let ok = b"00000000512\0";
        let long = |tar: Tar| tar.raw(b"././@LongLink", b'L', b"", 0, b"00000000002\0", b"b\0");
        let global =
            |body: &[u8]| Tar::new().raw(b"pax", b'g', b"", 0o644, format!("{:011o}\0", body.len()).as_bytes(), body);
        for (what, tar) in [
            ("size twice", smuggler(Tar::new().pax(&[("size", b"0"), ("size", b"512")]), ok)),
            ("path twice", Tar::new().pax(&[("path", b"a"), ("path", b"b")]).file("c", "")),
            ("two PAX headers", Tar::new().pax(&[("path", b"a")]).pax(&[("size", b"0")]).file("c", "")),
            ("PAX and GNU names", long(Tar::new().pax(&[("path", b"a")])).file("c", "")),
            ("a negative size", smuggler(Tar::new(), &[0xff; 12])),
            ("a global size", global(b"12 size=512\n").file("c", "")),
            ("a directory with a size", Tar::new().raw(b"d", b'5', b"", 0o755, b"00000001000\0", &[]).file("c", "")),
            ("uid -1", Tar::new().pax(&[("uid", b"4294967295")]).file("c", "")),
        ] {
            jail.refuses(what, tar, Code::DataLoss).await;
        }
        jail.refuses(
            "an unknown kind",
            Tar::new().raw(b"x", b'V', b"", 0o644, b"00000000000\0", &[]),
            Code::InvalidArgument,
        )
        .await;
    });
}

#[test]
fn a12_sparse_files() {
    jailed(async |jail| {
        let map: Vec<u8> = "0,1,".repeat(100_000).into_bytes();
        let old = Tar::new().raw(b"s", b'S', b"", 0o644, b"00000000000\0", &[]);
        let new =
            [("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"99999999999")];
        let mapped = [("GNU.sparse.map", &map[..]), ("GNU.sparse.size", b"99999999999")];
        for (what, tar) in
            [("old", old), ("1.0", Tar::new().pax(&new).file("s", "")), ("0.1", Tar::new().pax(&mapped).file("s", ""))]
        {
            jail.refuses(what, tar, Code::Unimplemented).await;
        }
    });
}

#[test]
fn a13_deep_trees_and_large_attributes() {
    jailed(async |jail| {
        let deep = |n: usize| Tar::new().entry(&b"d/".repeat(n), b'5', b"", 0o755, b"");
        let large = |n: usize| Tar::new().pax(&[("SCHILY.xattr.user.big", &vec![b'x'; n])]).file("f", "");
        let through = Tar::new().dir(&"d/".repeat(200), 0o755).symlink(&"d/".repeat(200), "s");
        for (what, tar) in [
            ("300 deep", deep(300)),
            ("100,000 deep", deep(100_000)),
            ("deep through a link", through.dir(&("s/".to_owned() + &"e/".repeat(100)), 0o755)),
            ("an attribute of 10 MiB", large(10 << 20)),
            ("an attribute of more than 64 KiB", large((64 << 10) + 1)),
        ] {
            jail.refuses(what, tar, Code::ResourceExhausted).await;
        }
    });
}

#[test]
fn a14_what_an_image_may_set() {
    jailed(async |jail| {
        let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        let attributes = [
            ("SCHILY.xattr.security.capability", &capability[..]),
            ("SCHILY.xattr.user.kept", b"v"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/kept"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.x", b"y"),
            ("SCHILY.xattr.security.selinux", b"evil_t"),
            ("SCHILY.xattr.system.posix_acl_access", b"x"),
        ];
        let tar = Tar::new()
            .owner(1000)
            .pax(&attributes)
            .file("file", "x")
            .pax(&attributes[2..])
            .dir("etc", 0o755)
            .mode("suid", "x", 0o6755)
            .device("disk", b'4', 0o660, 8, 1)
            .device("null", b'3', 0o666, 1, 3);
        let tree = jail.taken("attributes", tar).await;
        let file = &tree[Path::new("file")];
        assert_eq!(file.xattrs.keys().map(String::as_str).collect::<Vec<_>>(), ["security.capability", "user.kept"]);
        assert_eq!(file.xattrs["security.capability"], capability);
        assert_eq!((tree[Path::new("suid")].mode, tree[Path::new("suid")].owner), (0o6755, (1000, 1000)));
        assert_eq!(text(&tree, "disk"), &Kind::Device { block: true, number: (8, 1) });
        // Neither hides what lies below it nor has anything of overlayfs' own.
        assert!(tree[Path::new("etc")].xattrs.is_empty() && tree.contains_key(Path::new("etc/passwd")));
        jail.refuses("overlayfs' whiteout", Tar::new().device("kept", b'3', 0o644, 0, 0), Code::InvalidArgument).await;
    });
}

#[test]
fn a15_bombs_and_layers_that_are_not_their_diff_id() {
    jailed(async |jail| {
        let tar = Tar::new().bytes("zeros", &vec![0; 300 << 20]).end();
        let bomb = zstd(&tar);
        assert!(bomb.len() < 1 << 20);
        let small = Tar::new().file("f", "x").end();
        let window = b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00".to_vec();
        for (what, layer, id, code) in [
            ("a bomb", bomb, sha(&tar), Code::ResourceExhausted),
            ("a window of 2 GiB", window, sha(&small), Code::ResourceExhausted),
            ("garbage behind gzip", [&gzip(&small)[..], b"garbage"].concat(), sha(&small), Code::DataLoss),
            ("garbage behind zstd", [&zstd(&small)[..], b"garbage"].concat(), sha(&small), Code::DataLoss),
            ("a tar behind a tar", gzip(&[&small[..], &small].concat()), sha(&small), Code::DataLoss),
            ("another diff id", gzip(&small), sha(b"?"), Code::DataLoss),
        ] {
            let error = jail.picture(what, &Picture::with(vec![layer], vec![id])).await.expect_err(what);
            assert_eq!(error.code, code, "{what}: {error}");
        }
        // Members one behind the other are one stream, as they are for others.
        let members = [gzip(&small[..700]), gzip(&[]), gzip(&small[700..])].concat();
        let tree = jail.picture("members", &Picture::with(vec![members], vec![sha(&small)])).await.unwrap();
        assert_eq!(text(&tree, "f"), &Kind::file(b"x"));
    });
}

#[test]
fn a16_streams_that_are_cut_off() {
    jailed(async |jail| {
        let tar = Tar::new().bytes("big", &noise(200_000)).file("last", "x").end();
        for (what, whole) in [("plain", tar.clone()), ("gzip", gzip(&tar)), ("zstd", zstd(&tar))] {
            for cut in [100, whole.len() / 2, 200_000] {
                let what = format!("{what} cut at {cut}");
                let picture = Picture::with(vec![whole[..cut].to_vec()], vec![sha(&tar)]);
                let error = jail.picture(&what, &picture).await.expect_err(&what);
                assert_eq!(error.code, Code::DataLoss, "{what}: {error}");
            }
        }
        // And the archive around it, on its way through a pipe.
        let before = jail.world.holdings().await;
        let mut bytes = crate::support::craft::pack(&Picture::of(vec![tar]).layout());
        bytes.truncate(100_000);
        jail.world.refused("a pipe", &before, jail.world.import("evil", pipe_of(bytes)), Code::DataLoss, "").await;
    });
}
