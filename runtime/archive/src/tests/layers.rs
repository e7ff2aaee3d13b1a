//! Layers applied detached, settled and mounted as an overlay show what the same layers applied in place give.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use cofferdam_types::{Algorithm, Code, Digest, Error};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::support::{TIME, Tar, apply_to, settle_on, snapshot, xattrs};
use crate::{Applied, ApplyOptions};

/// A stack of settled layers, the nearest first, and beside them the same applied in place.
struct Layers {
    dir: tempfile::TempDir,
    stack: Vec<PathBuf>,
}

impl Layers {
    fn new() -> Layers {
        let dir = tempfile::tempdir().unwrap();
        for name in ["in-place", "mnt", "outside"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("outside/canary"), "alive").unwrap();
        Layers { dir, stack: Vec::new() }
    }

    fn of(layers: &[Tar]) -> Layers {
        let mut all = Layers::new();
        for layer in layers {
            all.push(layer).unwrap();
            all.in_place(layer).unwrap();
        }
        all
    }

    fn place(&self) -> PathBuf {
        self.dir.path().join("in-place")
    }

    fn in_place(&self, tar: &Tar) -> Result<Applied, Error> {
        apply_to(&self.place(), &tar.clone().end(), &ApplyOptions::default())
    }

    fn push(&mut self, tar: &Tar) -> Result<Applied, Error> {
        let layer = self.dir.path().join(format!("layer{}", self.stack.len()));
        fs::create_dir(&layer).unwrap();
        let result = apply_to(&layer, &tar.clone().end(), &ApplyOptions::detached())
            .and_then(|applied| settle_on(&layer, &self.stack, &applied).map(|()| applied));
        match &result {
            Ok(_) => self.stack.insert(0, layer),
            Err(_) => fs::remove_dir_all(&layer).unwrap(),
        }
        result
    }

    fn top(&self, path: &str) -> PathBuf {
        self.stack[0].join(path)
    }

    /// Runs `look` on an overlay mount of the stack.
    fn mounted<R>(&self, look: impl FnOnce(&Path) -> R) -> R {
        let target = self.dir.path().join("mnt");
        let mut lower: Vec<_> = self.stack.iter().map(|path| path.to_str().unwrap()).collect();
        let empty = self.dir.path().join("outside/../mnt");
        if lower.len() == 1 {
            lower.push(empty.to_str().unwrap());
        }
        let data = format!("lowerdir={}", lower.join(":"));
        mount(Some("overlay"), &target, Some("overlay"), MsFlags::MS_RDONLY, Some(data.as_str())).unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(&target)));
        umount2(&target, MntFlags::MNT_DETACH).unwrap();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// What differs between the mount and the tree made in place.
    fn differences(&self) -> Vec<String> {
        let (place, merged) = (snapshot(&self.place()), self.mounted(snapshot));
        let keys: std::collections::BTreeSet<_> = place.keys().chain(merged.keys()).collect();
        keys.into_iter()
            .filter(|key| place.get(*key) != merged.get(*key))
            .map(|key| format!("{}: in place {:?}, mounted {:?}", key.display(), place.get(key), merged.get(key)))
            .collect()
    }

    fn agree(&self) {
        let differ = self.differences();
        assert!(differ.is_empty(), "{differ:#?}");
        assert_eq!(fs::read_dir(self.dir.path().join("outside")).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(self.dir.path().join("outside/canary")).unwrap(), "alive");
    }
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.mode() & 0o170_000 == 0o020_000 && meta.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    crate::at::is_opaque(fs::File::open(path).unwrap()).unwrap()
}

fn base() -> Tar {
    Tar::new()
        .dir("d", 0o750)
        .file("d/f", "lower")
        .file("d/g", "lower")
        .dir("d/sub", 0o711)
        .file("d/sub/x", "lower")
        .file("top", "lower")
}

#[test]
fn whiteouts_and_opaque_directories() {
    let layers = Layers::of(&[
        base(),
        Tar::new()
            .file("d/.wh.f", "")
            .file(".wh.top", "")
            .dir("d/sub", 0o700)
            .file("d/sub/y", "y")
            .file("d/sub/.wh..wh..opq", ""),
    ]);
    assert!(is_whiteout(&layers.top("d/f")) && is_whiteout(&layers.top("top")));
    assert!(is_opaque(&layers.top("d/sub")) && layers.top("d/sub/y").exists());
    layers.agree();
}

#[test]
fn a_replaced_directory_hides_its_namesake() {
    for tar in [
        Tar::new().file(".wh.d", "").dir("d", 0o755).file("d/new", "x"),
        Tar::new().file(".wh.d", "").file("d/new", "x"),
        Tar::new().file("d", "a file for a while").dir("d", 0o755).file("d/new", "x"),
        Tar::new().symlink("top", "d").dir("d", 0o755).file("d/new", "x"),
        Tar::new().link("top", "d").dir("d", 0o755).file("d/new", "x"),
    ] {
        let layers = Layers::of(&[base(), tar]);
        assert!(is_opaque(&layers.top("d")));
        layers.agree();
    }
    // In the order of the archive: a later whiteout removes what it brought itself.
    let layers = Layers::of(&[
        base(),
        Tar::new().dir("d", 0o755).file("d/f", "new").file(".wh.d", "").file("top", "t").file(".wh.top", ""),
    ]);
    assert!(is_whiteout(&layers.top("d")) && is_whiteout(&layers.top("top")));
    layers.agree();
}

#[test]
fn whiteouts_below_what_is_no_directory_any_more_delete_nothing() {
    for tar in [
        Tar::new().file("d", "now a file").file("d/.wh.f", "").file("d/.wh.sub", "").file("d/sub/.wh.x", ""),
        Tar::new().symlink("/top", "d").file("d/.wh.f", ""),
        Tar::new().special("d", b'6', 0o600, 0, 0).file("d/.wh.f", ""),
        Tar::new().file("top/.wh.f", "").file("top/deep/.wh.f", ""),
    ] {
        let mut layers = Layers::of(&[base()]);
        layers.in_place(&tar).unwrap();
        match layers.push(&tar) {
            Ok(_) => layers.agree(),
            // On its parents it is extracted then, as in place.
            Err(error) => assert_eq!(error.code, Code::FailedPrecondition, "{error}"),
        }
        assert_eq!(fs::read(layers.place().join("top")).unwrap(), b"lower");
        // What is not a whiteout still has no place there.
        let error = layers.in_place(&Tar::new().file("top/f", "x")).unwrap_err();
        assert!(error.message.contains("Not a directory"), "{error}");
    }
    // The one that umoci writes needs no parents.
    let tar = Tar::new().file("d", "now a file").file("d/.wh.f", "");
    Layers::of(&[base(), tar]).agree();
}

#[test]
fn whiteouts_without_a_namesake_are_not_listed() {
    let layers = Layers::of(&[
        base(),
        Tar::new()
            .dir("new", 0o755)
            .file("new/.wh.nothing", "")
            .file("d/.wh.nothing", "")
            .file("fresh/.wh.nothing", "")
            .dir("d/sub", 0o755)
            .file("d/sub/.wh.x", "")
            .file("d/sub/.wh..wh..opq", "")
            .file("d/sub/.wh.y", ""),
    ]);
    assert!(!layers.top("new/nothing").exists());
    layers.agree();
    // The same in a first layer.
    Layers::of(&[base().file("d/.wh.nothing", "").file(".wh.nothing", "").file("d/.wh..wh..opq", "")]).agree();
}

#[test]
fn an_opaque_root_hides_everything() {
    for tar in [
        Tar::new().dir("d", 0o755).file("d/new", "x").file(".wh..wh..opq", "").file("e/new", "x"),
        Tar::new().file(".wh..wh..opq", "").file("d/new", "x").dir("d/sub", 0o700),
    ] {
        let layers = Layers::of(&[base(), tar]);
        assert!(is_whiteout(&layers.top("top")) && is_opaque(&layers.top("d")));
        layers.agree();
    }
}

#[test]
fn implicit_parents_look_as_they_did() {
    let mut layers = Layers::new();
    let lower = Tar::new()
        .owner(1000)
        .pax(&[("SCHILY.xattr.user.mark", b"m")])
        .dir("d", 0o2750)
        .dir("d/hidden", 0o700)
        .dir("d/e", 0o701)
        .dir("gone", 0o700);
    for tar in [lower, Tar::new().file(".wh.gone", "").dir("d/hidden", 0o705).file("d/hidden/.wh..wh..opq", "")] {
        layers.push(&tar).unwrap();
        layers.in_place(&tar).unwrap();
    }
    let tar = Tar::new().file("d/e/f", "x").file("d/hidden/f", "x").file("gone/f", "x").file("nowhere/f", "x");
    let applied = layers.push(&tar).unwrap();
    layers.in_place(&tar).unwrap();
    let paths = ["d", "d/e", "d/hidden", "gone", "nowhere"].map(PathBuf::from);
    assert_eq!(applied.implicit_parents, paths);
    let meta = fs::metadata(layers.top("d")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o2750, 1000, 1000));
    assert_eq!(xattrs(&layers.top("d"))["user.mark"], b"m");
    assert_eq!(fs::metadata(layers.top("d/e")).unwrap().mtime(), TIME.cast_signed());
    for (path, mode) in [("d/e", 0o701), ("d/hidden", 0o705), ("gone", 0o755), ("nowhere", 0o755)] {
        assert_eq!(fs::metadata(layers.top(path)).unwrap().mode() & 0o7777, mode, "{path}");
    }
    layers.agree();
}

#[test]
fn directory_times_survive_what_is_put_in_later() {
    let layers = Layers::of(&[
        Tar::new().dir("usr", 0o755).dir("usr/lib", 0o755).symlink("usr/lib", "lib").file("usr/f", "x"),
        Tar::new().dir("usr", 0o755).file("lib/x", "x").dir("links", 0o755).link("usr/f", "links/f"),
    ]);
    for path in ["usr", "usr/lib", "links"] {
        assert_eq!(fs::metadata(layers.top(path)).unwrap().mtime(), TIME.cast_signed(), "{path}");
    }
    layers.agree();
}

#[test]
fn directories_that_a_layer_changes_without_naming_them_keep_their_times() {
    let touched: [(&str, Tar); 9] = [
        ("a new file", Tar::new().file("d/new", "x")),
        ("a replaced file", Tar::new().file("d/f", "upper")),
        ("a link", Tar::new().link("d/sub/x", "d/x")),
        ("a directory", Tar::new().dir("d/new", 0o755)),
        ("a parent that nobody names", Tar::new().file("d/new/deep/f", "x")),
        ("a whiteout", Tar::new().file("d/.wh.f", "")),
        ("an opaque marker", Tar::new().file("d/.wh..wh..opq", "")),
        ("through a link", Tar::new().symlink("d/sub", "s").file("s/new", "x").file("s/.wh.x", "")),
        ("more than once", Tar::new().file("d/new", "x").file("d/.wh.f", "").file("d/newer", "x")),
    ];
    for (what, tar) in touched {
        let layers = Layers::of(&[base(), tar]);
        for path in ["d", "d/sub"] {
            let Ok(meta) = fs::metadata(layers.place().join(path)) else { continue };
            assert_eq!(meta.mtime(), TIME.cast_signed(), "{what}: {path}");
        }
        layers.agree();
    }
    // One that is made anew is as old as the layer's applying.
    let layers = Layers::of(&[base(), Tar::new().file(".wh.d", "").file("d/new", "x")]);
    assert_ne!(fs::metadata(layers.place().join("d")).unwrap().mtime(), TIME.cast_signed());
    layers.agree();
}

#[test]
fn hard_links_to_lower_files() {
    let mut layers = Layers::of(&[
        Tar::new()
            .owner(1000)
            .dir("d", 0o750)
            .pax(&[("SCHILY.xattr.user.mark", b"m")])
            .file_mode("d/f", &"lower ".repeat(100_000), 0o4755)
            .symlink("f", "d/soft")
            .special("d/null", b'3', 0o666, 1, 3)
            .file("d/deleted", "x")
            .file("d/replaced", "lower")
            .file("d/late", "lower"),
        Tar::new().file("d/.wh.deleted", ""),
    ]);
    let tar = Tar::new()
        .link("d/f", "one")
        .link("/d/f", "d/two")
        .link("one", "three")
        .link("d/soft", "soft")
        .link("d/null", "null")
        .link("d/replaced", "old")
        .file("d/replaced", "new")
        .link("d/late", "kept")
        .file("d/.wh.late", "");
    let applied = layers.push(&tar).unwrap();
    layers.in_place(&tar).unwrap();
    let links: Vec<_> = applied
        .lower_links
        .iter()
        .map(|link| (link.path.to_str().unwrap(), link.target.to_str().unwrap(), link.position))
        .collect();
    assert_eq!(
        links,
        [
            ("one", "d/f", 1),
            ("d/two", "d/f", 2),
            ("three", "d/f", 3),
            ("soft", "d/soft", 4),
            ("null", "d/null", 5),
            ("old", "d/replaced", 6),
            ("kept", "d/late", 8)
        ]
    );
    layers.agree();
    layers.mounted(|root| {
        let inode = |path: &str| fs::symlink_metadata(root.join(path)).unwrap().ino();
        for other in ["d/two", "three", "d/f"] {
            assert_eq!(inode("one"), inode(other), "{other}");
        }
        assert_eq!(inode("soft"), inode("d/soft"));
        assert_eq!(fs::read_to_string(root.join("old")).unwrap(), "lower");
        assert_eq!(fs::read_to_string(root.join("d/replaced")).unwrap(), "new");
        assert!(root.join("kept").exists() && !root.join("d/late").exists());
    });
    // What is not there, or not any more, or is a directory.
    for (tar, code) in [
        (Tar::new().link("nothing", "l"), Code::NotFound),
        (Tar::new().link("d/deleted", "l"), Code::NotFound),
        (Tar::new().link("d/nothing/deeper", "l"), Code::NotFound),
        (Tar::new().file(".wh.d", "").link("d/f", "l"), Code::NotFound),
        (Tar::new().file("d/.wh.f", "").link("d/f", "l"), Code::NotFound),
        (Tar::new().file("d/.wh..wh..opq", "").link("d/f", "l"), Code::NotFound),
        (Tar::new().link("d", "l"), Code::InvalidArgument),
        (Tar::new().link("d/f", "l").file("l/x", ""), Code::FailedPrecondition),
    ] {
        assert_eq!(layers.push(&tar).unwrap_err().code, code);
    }
    // A link that is replaced or deleted by the same archive is not made.
    let tar = Tar::new()
        .link("d/f", "a")
        .file("a", "mine")
        .link("d/f", "b")
        .file(".wh.b", "")
        .dir("c", 0o755)
        .link("d/f", "c/l")
        .file(".wh.c", "");
    assert!(layers.push(&tar).unwrap().lower_links.is_empty());
    layers.in_place(&tar).unwrap();
    layers.agree();
}

#[test]
fn entries_below_a_lower_symlink_move_to_where_it_leads() {
    let merged_usr = Tar::new()
        .dir("usr", 0o755)
        .dir("usr/lib", 0o751)
        .dir("usr/lib/sub", 0o705)
        .file("usr/lib/old", "old")
        .file("usr/lib/sub/old", "old")
        .symlink("usr/lib", "lib")
        .symlink("/lib", "lib64")
        .symlink("../usr", "usr/again")
        .symlink("/opt/none", "dangling");
    for tar in [
        Tar::new().file("lib/x", "x"),
        Tar::new().file("lib64/x", "x").file("lib/y", "y").file("usr/lib/z", "z"),
        Tar::new().file("lib/sub/x", "x").dir("lib/new", 0o700).file("lib/new/x", "x"),
        Tar::new().file("lib/.wh.old", "").file("lib/sub/.wh.old", ""),
        Tar::new().file("lib/.wh.sub", "").file("lib/sub/x", "x"),
        Tar::new().file("lib/.wh..wh..opq", "").file("lib/x", "x"),
        Tar::new().file("lib/x", "x").file("lib/.wh..wh..opq", ""),
        Tar::new().file("usr/again/again/lib/x", "x").file("lib64/y", "y"),
        Tar::new().file("dangling/deep/x", "x"),
        Tar::new().link("lib/old", "lib/linked").link("lib64/sub/old", "linked"),
        Tar::new().file("lib/x", "x").link("lib/x", "lib64/y").link("lib/x", "z"),
        // An entry that replaces the link keeps what is below it to itself.
        Tar::new().dir("lib", 0o755).file("lib/x", "x"),
        Tar::new().file(".wh.lib", "").file("lib/x", "x"),
        Tar::new().dir("usr/lib", 0o700).file("lib/x", "x"),
        // A directory's own entry may come last.
        Tar::new().file("usr/lib/x", "x").dir("usr/lib", 0o700).dir("usr", 0o711),
        Tar::new().dir("lib/sub", 0o700).file("usr/lib/sub/y", "y").file("lib/sub/x", "x"),
    ] {
        let mut layers = Layers::of(std::slice::from_ref(&merged_usr));
        layers.push(&tar).unwrap();
        layers.in_place(&tar).unwrap();
        layers.agree();
    }
    // A third layer on top of a relocated one.
    Layers::of(&[
        merged_usr.clone(),
        Tar::new().file("lib/x", "x"),
        Tar::new().file("lib64/.wh.x", "").file("lib/y", "y"),
    ])
    .agree();
    // The directory that the link leads through is itself a link.
    let chain = Tar::new()
        .dir("system", 0o711)
        .dir("system/usr", 0o755)
        .dir("system/usr/lib", 0o755)
        .symlink("system/usr", "usr")
        .symlink("usr/lib", "lib");
    Layers::of(&[chain, Tar::new().file("lib/x", "x").file("usr/y", "y").file("usr/lib/z", "z")]).agree();
}

#[test]
fn two_names_of_one_place_are_a_conflict() {
    let mut layers = Layers::of(&[Tar::new()
        .dir("usr", 0o755)
        .dir("usr/lib", 0o755)
        .symlink("usr/lib", "lib")
        .symlink(".", "here")]);
    let error = layers.push(&Tar::new().file("lib/x", "one").file("usr/lib/x", "two")).unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition);
    // Followed, then changed: in place the entry is where the link led.
    for tar in [
        Tar::new().file("lib/x", "x").file(".wh.lib", ""),
        Tar::new().file("lib/x", "x").file("lib", "x"),
        Tar::new().file("usr/lib/x", "x").dir("usr", 0o755).file("usr/.wh..wh..opq", ""),
        Tar::new().file("lib/x", "x").dir("lib", 0o755),
        Tar::new().file("lib/x", "x").file("usr/.wh.lib", ""),
        Tar::new().file("here/.wh.here", "").file("here/x", ""),
        Tar::new().file("here/.wh..wh..opq", "").file("here/x", ""),
    ] {
        assert_eq!(layers.push(&tar).unwrap_err().code, Code::FailedPrecondition);
    }
    // A lower file as a parent, and a link that leads to itself.
    let mut layers = Layers::of(&[Tar::new().file("f", "").symlink("self", "self").symlink("f", "to-f")]);
    for path in ["f/x", "self/x", "to-f/x"] {
        assert_eq!(layers.push(&Tar::new().file(path, "x")).unwrap_err().code, Code::FailedPrecondition, "{path}");
        assert_eq!(layers.in_place(&Tar::new().file(path, "x")).unwrap_err().code, Code::InvalidArgument, "{path}");
    }
}

#[test]
fn settling_stays_inside() {
    let layers = Layers::new();
    let outside = layers.dir.path().join("outside").to_str().unwrap().to_owned();
    drop(layers);
    let mut layers = Layers::new();
    let outside_now = layers.dir.path().join("outside").to_str().unwrap().to_owned();
    let lower = Tar::new()
        .symlink(&outside_now, "abs")
        .symlink("../outside", "rel")
        .symlink("../../../../../../../..", "up")
        .symlink(&format!("{outside_now}/canary"), "file")
        .symlink(&outside, "none");
    layers.push(&lower).unwrap();
    layers.in_place(&lower).unwrap();
    let tar = Tar::new()
        .file("abs/canary", "dead")
        .file("rel/canary2", "dead")
        .file("up/outside/x", "x")
        .file("none/x", "x")
        .file("abs/.wh.gone", "")
        .link("file", "linked");
    layers.push(&tar).unwrap();
    layers.in_place(&tar).unwrap();
    layers.agree();
    for target in ["abs/canary", "rel/canary", "up/etc/passwd"] {
        let mut layers = Layers::new();
        layers.push(&lower).unwrap();
        let error = layers.push(&Tar::new().link(target, "stolen")).unwrap_err();
        assert_eq!(error.code, Code::NotFound, "{target}");
    }
}

#[test]
fn an_undecided_archive_is_still_read_to_its_end() {
    let layers = Layers::new();
    let bytes = Tar::new().file("lib/x", "x").file(".wh.lib", "").file("rest", "x").end();
    let applied = apply_to(&layers.place(), &bytes, &ApplyOptions::detached()).unwrap();
    assert_eq!(applied.diff_id, Digest::of(Algorithm::Sha256, &bytes));
    assert_eq!(settle_on(&layers.place(), &[], &applied).unwrap_err().code, Code::FailedPrecondition);
    // And an end that is missing is found.
    let error = apply_to(&layers.place(), &bytes[..1800], &ApplyOptions::detached()).unwrap_err();
    assert_eq!(error.code, Code::DataLoss);
}

#[test]
fn only_an_overlay_layer_is_detached() {
    let layers = Layers::new();
    let options = ApplyOptions { overlay: false, ..ApplyOptions::detached() };
    assert_eq!(apply_to(&layers.place(), &[], &options).unwrap_err().code, Code::InvalidArgument);
    // An overlay form on its own parent's side knows no links into it.
    let options = ApplyOptions { detached: false, ..ApplyOptions::detached() };
    assert_eq!(apply_to(&layers.place(), &Tar::new().link("a", "b").end(), &options).unwrap_err().code, Code::NotFound);
}

/// xorshift: the same layers on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % n as u64).unwrap()
    }

    fn path(&mut self) -> String {
        let depth = 1 + self.below(3);
        (0..depth).map(|_| ["a", "b", "c", "d"][self.below(4)]).collect::<Vec<_>>().join("/")
    }

    /// Whiteouts and opaque markers first, as image tools write them.
    fn layer(&mut self, number: usize) -> Tar {
        let mut tar = Tar::new().owner(u32::try_from(number).unwrap());
        if number > 0 {
            for _ in 0..self.below(3) {
                let path = self.path();
                let (dir, name) = path.rsplit_once('/').unwrap_or((".", &path));
                tar = if self.below(3) == 0 {
                    tar.file(&format!("{path}/.wh..wh..opq"), "")
                } else {
                    tar.file(&format!("{dir}/.wh.{name}"), "")
                };
            }
        }
        for i in 0..3 + self.below(8) {
            let path = self.path();
            let content = format!("{number}.{i}");
            let mode = [0o755, 0o700, 0o1777][self.below(3)];
            tar = match self.below(10) {
                0..3 => tar.dir(&path, mode),
                3..6 => tar.pax(&[("SCHILY.xattr.user.n", content.as_bytes())]).file_mode(&path, &content, mode),
                6 => tar.symlink(&format!("/{}", self.path()), &path),
                7 => tar.symlink(["..", ".", "../b", "c", "../../a"][self.below(5)], &path),
                8 => tar.link(&self.path(), &path),
                _ => tar.special(&path, b'6', 0o600, 0, 0),
            };
        }
        tar
    }
}

#[test]
fn random_layers_look_the_same_in_both_forms() {
    let (mut whole, mut conflicts) = (0, 0);
    for seed in 1..=25u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut layers = Layers::new();
        let mut log = Vec::new();
        'layers: for number in 0..3 {
            let backup = layers.dir.path().join("backup");
            let copy = |from: &Path, to: &Path| {
                let _ = fs::remove_dir_all(to);
                assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
            };
            copy(&layers.place(), &backup);
            for _ in 0..40 {
                let tar = random.layer(number);
                if layers.in_place(&tar).is_err() {
                    // Such as a file for a parent: not this test's matter.
                    copy(&backup, &layers.place());
                    continue;
                }
                match layers.push(&tar) {
                    Ok(_) => {}
                    Err(error) if error.code == Code::FailedPrecondition => {
                        conflicts += 1;
                        copy(&backup, &layers.place());
                        continue;
                    }
                    Err(error) => {
                        panic!("seed {seed}, layer {number}: {error}\n{}--\n{}", log.join("---\n"), list(&tar))
                    }
                }
                log.push(list(&tar));
                let differ = layers.differences();
                assert!(differ.is_empty(), "seed {seed}, layer {number}: {differ:#?}\n{}", log.join("---\n"));
                continue 'layers;
            }
            continue;
        }
        whole += usize::from(layers.stack.len() == 3);
    }
    assert!(whole > 15 && conflicts < 200, "{whole} stacks, {conflicts} conflicts");
}

/// For a person to read: the entries of an archive.
fn list(tar: &Tar) -> String {
    let text = |field: &[u8]| String::from_utf8_lossy(field).trim_end_matches('\0').to_owned();
    let blocks = tar.bytes.chunks(512).filter(|block| &block[257..262] == b"ustar" && block[156] != b'x');
    blocks.map(|b| format!("{} {} {}\n", char::from(b[156]), text(&b[..100]), text(&b[157..257]))).collect()
}
