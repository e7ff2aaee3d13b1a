//! A1 to A10: nothing is read, written, linked or changed outside the root.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, symlink},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use cofferdam_types::Code;

use super::support::{Jail, Tar, count};
use crate::ApplyOptions;

#[test]
fn a1_absolute_symlink_then_write_through() {
    let jail = Jail::new();
    let out = jail.outside();
    let tar = Tar::new().symlink(&out, "out").file("out/canary", "dead").file("out/new", "x").dir("out/sub", 0o777);
    jail.apply(tar).unwrap();
    assert_eq!(jail.read(&format!("{}/canary", &out[1..])), "dead");
    assert!(jail.meta("out").is_symlink());
}

#[test]
fn a2_parent_symlinks_stop_at_the_root() {
    for target in ["../outside", "../../outside", "x/../../outside", "../../../../../../../outside", "/../outside"] {
        let jail = Jail::new();
        let tar = Tar::new().dir("x", 0o755).symlink(target, "out").file("out/canary", "dead");
        jail.apply(tar).unwrap();
        assert_eq!(jail.read("outside/canary"), "dead", "{target}");
    }
}

#[test]
fn a3_chained_symlinks() {
    let jail = Jail::new();
    let out = jail.outside();
    let tar = Tar::new()
        .symlink("/b", "a")
        .symlink("./c/d", "b")
        .dir("c", 0o755)
        .symlink("../e", "c/d")
        .symlink(&out, "e")
        .file("a/canary", "dead");
    jail.apply(tar).unwrap();
    assert_eq!(jail.read(&format!("{}/canary", &out[1..])), "dead");
    // Loops end.
    jail.refuses(Tar::new().symlink("p", "q").symlink("q", "p").file("p/x", "x"), Code::InvalidArgument);
    jail.refuses(Tar::new().symlink("s/s", "s").file("s/x", "x"), Code::InvalidArgument);
    // More links than the kernel follows, as many as the reference does.
    let mut tar = Tar::new().dir("l0", 0o755);
    for i in 0..255 {
        tar = tar.symlink(&format!("l{i}"), &format!("l{}", i + 1));
    }
    jail.apply(tar.clone().file("l255/x", "deep")).unwrap();
    assert_eq!(jail.read("l0/x"), "deep");
    jail.refuses(tar.symlink("l255", "l256").file("l256/x", "x"), Code::InvalidArgument);
}

#[test]
fn a4_hard_links_to_the_outside() {
    let jail = Jail::new();
    let out = jail.outside();
    let long = format!("{}{}/canary", "../".repeat(40), &out[1..]);
    for target in
        [&format!("{out}/canary"), "../outside/canary", "../../outside/canary", &long, "x/../../outside/canary"]
    {
        jail.refuses(Tar::new().dir("x", 0o755).link(target, "stolen"), Code::NotFound);
        assert!(!jail.has("stolen"));
    }
    // Through a link as a parent.
    jail.refuses(Tar::new().symlink(&out, "out").link("out/canary", "stolen"), Code::NotFound);
    jail.refuses(Tar::new().link("/", "stolen"), Code::InvalidArgument);
    jail.refuses(Tar::new().dir("d", 0o755).link("d", "stolen"), Code::InvalidArgument);
    jail.refuses(Tar::new().file("f", "x").link("f", "f"), Code::InvalidArgument);
    assert_eq!(jail.read("f"), "x");
}

#[test]
fn a5_hard_links_to_symlinks() {
    let jail = Jail::new();
    let canary = format!("{}/canary", jail.outside());
    // Before the target exists and after, the link is one more name of the symbolic link.
    let tar = Tar::new()
        .dir("etc", 0o755)
        .symlink(&canary, "l")
        .symlink("/etc/later", "m")
        .link("l", "l2")
        .link("m", "m2")
        .file("etc/later", "after");
    jail.apply(tar).unwrap();
    for (link, name) in [("l", "l2"), ("m", "m2")] {
        assert!(jail.meta(name).is_symlink());
        jail.same(link, name);
    }
    // Writing to such a name replaces it.
    jail.apply(Tar::new().file("l2", "mine")).unwrap();
    assert_eq!(jail.read("l2"), "mine");
}

#[test]
fn a6_odd_names() {
    let jail = Jail::new();
    let nothing = Tar::new().named(b"").named(b".").named(b"..").named(b"/").named(b"./").named(b"../..").named(b"///");
    jail.apply(nothing).unwrap();
    assert_eq!(fs::read_dir(jail.root()).unwrap().count(), 0);
    jail.apply(Tar::new().named(b"slash/").named(b"\xff\xfe").named(b"../../up").named(b"./a/./b//c")).unwrap();
    for name in ["slash", "up", "a/b/c"] {
        assert_eq!(jail.read(name), "x");
    }
    use std::os::unix::ffi::OsStrExt;
    assert!(jail.root().join(std::ffi::OsStr::from_bytes(b"\xff\xfe")).exists());
    jail.refuses(Tar::new().pax(&[("path", b"a\0b")]).named(b"a"), Code::DataLoss);
    let long = vec![b'a'; 256];
    jail.refuses(Tar::new().named(&long), Code::InvalidArgument);
    let long = b"a/".repeat(2100);
    jail.refuses(Tar::new().named(&long), Code::ResourceExhausted);
    jail.refuses(Tar::new().symlink(&"x".repeat(5000), "l"), Code::ResourceExhausted);
    jail.refuses(Tar::new().symlink("", "l"), Code::InvalidArgument);
}

#[test]
fn a7_nothing_is_changed_through_a_link() {
    let jail = Jail::new();
    let out = jail.outside();
    let xattr = [("SCHILY.xattr.user.mark", &b"x"[..])];
    let tar = Tar::new()
        .symlink(&out, "d")
        .symlink(&format!("{out}/canary"), "f")
        .symlink(&format!("{out}/canary"), "l")
        .symlink(&format!("{out}/canary"), "n")
        .link("l", "l2")
        .owner(1000)
        .pax(&xattr)
        .dir("d", 0o777)
        .pax(&xattr)
        .file_mode("f", "mine", 0o4777)
        .link("l", "l2")
        .special("n", b'3', 0o666, 1, 3);
    jail.apply(tar).unwrap();
    assert!(jail.meta("d").is_dir());
    assert_eq!(jail.meta("d").mode() & 0o7777, 0o777);
    assert_eq!(jail.meta("d").uid(), 1000);
    assert_eq!(jail.meta("f").mode() & 0o7777, 0o4777);
    assert!(jail.meta("n").file_type().is_char_device());
    // A link entry changes nothing of its target either.
    assert_eq!(jail.meta("l").uid(), 0);
    jail.apply(Tar::new().file("t", "x").owner(1000).link("t", "t2")).unwrap();
    assert_eq!(jail.meta("t").uid(), 0);
}

#[test]
fn a8_implicit_parents_are_made_inside() {
    let jail = Jail::new();
    let out = jail.outside();
    let applied = jail.apply(Tar::new().symlink(&format!("{out}/none"), "etc").file("etc/deep/mtab", "x")).unwrap();
    assert_eq!(jail.read(&format!("{}/none/deep/mtab", &out[1..])), "x");
    assert!(
        applied
            .implicit_parents
            .iter()
            .all(|path| path.starts_with(&out[1..]) || out[1..].starts_with(path.to_str().unwrap()))
    );
    assert_eq!(jail.meta(&format!("{}/none", &out[1..])).mode() & 0o7777, 0o755);
}

#[test]
fn a9_a_concurrent_renamer_leads_nowhere() {
    let jail = Jail::new();
    let out = jail.outside();
    let mut tar = Tar::new();
    for i in 0..400 {
        tar = tar
            .dir("a/b", 0o755)
            .file(&format!("a/b/f{i}"), "x")
            .dir(&format!("a/b/d{i}"), 0o777)
            .file(&format!("a/b/d{i}/canary"), "dead")
            .file("a/b/canary", "dead")
            .link(&format!("a/b/f{i}"), &format!("a/b/h{i}"))
            .file("a/b/.wh.canary", "")
            .file("a/b/.wh.sub", "");
    }
    let bytes = tar.end();
    let stop = Arc::new(AtomicBool::new(false));
    let swaps = Arc::new(AtomicUsize::new(0));
    let renamer = {
        let (root, stop, swaps) = (jail.root(), Arc::clone(&stop), Arc::clone(&swaps));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let done = swap(&root.join("a/b"), &root.join("a/real"), &out);
                let done = swap(&root.join("a"), &root.join("real"), &out) || done;
                swaps.fetch_add(usize::from(done), Ordering::Relaxed);
            }
        })
    };
    let rounds = count(100_000, 1000);
    let (mut whole, mut runs) = (0, 0);
    while runs < 5 || swaps.load(Ordering::Relaxed) < rounds {
        // Whether it comes to its end is a matter of luck; that it stays inside is not.
        whole += usize::from(jail.apply_as(&bytes, &ApplyOptions::default()).is_ok());
        let _ = fs::remove_dir_all(jail.root().join("real"));
        runs += 1;
        assert!(runs < rounds, "the renamer does nothing ({swaps:?} swaps)");
    }
    stop.store(true, Ordering::Relaxed);
    renamer.join().unwrap();
    jail.unharmed();
    println!(
        "long-run: A9, a renamer beside the reader | {swaps:?} swaps in {runs} runs, {whole} of which came through"
    );
}

/// Puts a link to the outside where a directory was, and the directory back.
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
fn a10_the_root_and_odd_whiteouts() {
    for name in [".wh..", ".wh...", "etc/.wh..", "etc/.wh...", ".wh.", "etc/.wh."] {
        let jail = Jail::new();
        jail.write("etc/passwd", "inside");
        jail.refuses(Tar::new().file(name, ""), Code::InvalidArgument);
        assert_eq!(jail.read("etc/passwd"), "inside", "{name}");
    }
    // No entry replaces the root or changes it.
    let jail = Jail::new();
    jail.write("etc/passwd", "inside");
    let mode = fs::metadata(jail.root()).unwrap().mode();
    let tar = Tar::new().owner(7).dir("./", 0o000).symlink("/etc", "").symlink("/etc", "..").file(".", "x");
    jail.apply(tar).unwrap();
    let meta = fs::metadata(jail.root()).unwrap();
    assert_eq!((meta.mode(), meta.uid()), (mode, 0));
    // At the root an opaque marker clears what was there, not what this archive brought before.
    jail.apply(Tar::new().file("new", "x").file(".wh..wh..opq", "").file("newer", "x")).unwrap();
    assert!(!jail.has("etc") && jail.has("new") && jail.has("newer"));
    // aufs metadata is skipped.
    jail.apply(Tar::new().file(".wh..wh.plnk/1.2", "x").file(".wh..wh.aufs", "x").file("new/../.wh..wh.orph", "x"))
        .unwrap();
    assert_eq!(fs::read_dir(jail.root()).unwrap().count(), 2);
}

#[test]
fn a10_whiteouts_do_not_reach_outside() {
    let jail = Jail::new();
    let out = jail.outside();
    let tar = Tar::new()
        .symlink(&out, "out")
        .symlink("../outside", "up")
        .file("out/.wh.canary", "")
        .file("up/.wh.sub", "")
        .file("out/.wh..wh..opq", "")
        .file("up/.wh..wh..opq", "");
    jail.apply(tar).unwrap();
    // The link itself goes, not what it names.
    jail.apply(Tar::new().file(".wh.out", "")).unwrap();
    assert!(!jail.has("out"));
}

fn etc() -> Tar {
    Tar::new().dir("etc", 0o770).file("/etc/passwd", "inside")
}

/// The reference's table of breakouts, all 22 of the first release.
#[test]
fn breakouts_of_the_reference() {
    let unbroken: [(&str, Tar); 4] = [
        (
            "SymlinkAbsolute",
            Tar::new().dir("etc", 0o755).symlink("/etc", "localetc").file("/localetc/unbroken", "unbroken"),
        ),
        (
            "SymlinkUpAndOut",
            Tar::new()
                .dir("etc", 0o755)
                .dir("dummy", 0o755)
                .symlink("/dummy/../etc", "localetc")
                .file("/localetc/unbroken", "unbroken"),
        ),
        (
            "SymlinkMultipleAbsolute",
            Tar::new()
                .dir("etc", 0o755)
                .dir("dummy", 0o755)
                .symlink("/etc", "/dummy/etc")
                .symlink("/dummy/etc", "localetc")
                .file("/dummy/etc/unbroken", "unbroken"),
        ),
        (
            "SymlinkMultipleRelative",
            Tar::new()
                .dir("etc", 0o755)
                .dir("dummy", 0o755)
                .symlink("/etc", "/dummy/etc")
                .symlink("./dummy/etc", "localetc")
                .file("/dummy/etc/unbroken", "unbroken"),
        ),
    ];
    for (name, tar) in unbroken {
        let jail = Jail::new();
        jail.apply(tar).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(jail.read("etc/unbroken"), "unbroken", "{name}");
    }

    let jail = Jail::new();
    let tar = Tar::new().dir("etc", 0o755).file("etc/emptied", "notempty").symlink("/etc", "localetc");
    jail.apply(tar.file("/localetc/emptied", "")).unwrap();
    assert_eq!(jail.read("etc/emptied"), "", "SymlinkEmptyFile");

    let b = |target| etc().dir("breakouts", 0o755).dir("downandout", 0o755).symlink(target, "breakouts/d1");
    let l = |target| etc().symlink(target, "localetc").link("/localetc/passwd", "localpasswd");
    let same: [(&str, Tar, &str); 12] = [
        ("HardlinkRelative", b("../../etc").link("/breakouts/d1/passwd", "breakouts/mypasswd"), "breakouts/mypasswd"),
        (
            "HardlinkDownAndOut",
            b("../downandout/../../etc").link("/breakouts/d1/passwd", "breakouts/mypasswd"),
            "breakouts/mypasswd",
        ),
        ("HardlinkAbsolute", l("/etc"), "localpasswd"),
        ("HardlinkRelativeLong", l("../../../../../../../etc"), "localpasswd"),
        ("HardlinkRelativeUpAndOut", l("upandout/../../../etc"), "localpasswd"),
        ("HardlinkDirectRelative", etc().link("../../../../../etc/passwd", "localpasswd"), "localpasswd"),
        ("HardlinkDirectAbsolute", etc().link("/etc/passwd", "localpasswd"), "localpasswd"),
        ("SymlinkParentDirectory", etc().symlink("/etc/", "..").link("/etc/passwd", "localpasswd"), "localpasswd"),
        ("SymlinkEmptyFilename", etc().symlink("/etc/", "").link("/etc/passwd", "localpasswd"), "localpasswd"),
        (
            "SymlinkParentRelative",
            etc().symlink("/etc/", "localetc/sub/..").link("/etc/passwd", "/localetc/localpasswd"),
            "etc/localpasswd",
        ),
        (
            "SymlinkSlashEnded",
            etc().dir("localetc/", 0o770).link("/etc/passwd", "/localetc/localpasswd"),
            "localetc/localpasswd",
        ),
        (
            "HardlinkSymlinkRelative and Absolute",
            etc()
                .symlink("../../../../../etc/passwd", "r")
                .symlink("/etc/passwd", "a")
                .link("/r", "r2")
                .link("/a", "a2")
                .link("/etc/passwd", "localpasswd"),
            "localpasswd",
        ),
    ];
    for (name, tar, link) in same {
        let jail = Jail::new();
        jail.apply(tar).unwrap_or_else(|error| panic!("{name}: {error}"));
        jail.same(link, "etc/passwd");
        if jail.has("r2") {
            assert_eq!(fs::read_link(jail.root().join("r2")).unwrap(), Path::new("../../../../../etc/passwd"));
            assert_eq!(fs::read_link(jail.root().join("a2")).unwrap(), Path::new("/etc/passwd"));
        }
    }

    // Over what is there.
    for (name, target) in [("SymlinkOverrideDirectory", "/etc"), ("SymlinkOverrideDirectoryRelative", "../../etc")] {
        let jail = Jail::new();
        jail.write("etc/passwd", "inside");
        fs::create_dir(jail.root().join("localetc")).unwrap();
        jail.apply(Tar::new().symlink(target, "localetc").link("/etc/passwd", "/localetc/localpasswd"))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        jail.same("etc/localpasswd", "etc/passwd");
    }
    let jail = Jail::new();
    jail.write("etc/passwd", "inside");
    symlink("/etc", jail.root().join("localetc")).unwrap();
    jail.apply(Tar::new().dir("/localetc/", 0o755).link("/etc/passwd", "/localetc/localpasswd")).unwrap();
    assert!(jail.meta("localetc").is_dir(), "DirectoryOverrideSymlink");
    jail.same("localetc/localpasswd", "etc/passwd");

    let jail = Jail::new();
    jail.write("etc/passwd", "inside");
    symlink("etc", jail.root().join("localetc")).unwrap();
    fs::hard_link(jail.root().join("etc/passwd"), jail.root().join("localetc/localpasswd")).unwrap();
    jail.apply(Tar::new().dir("/localetc/", 0o755).file("/localetc/localpasswd", "different")).unwrap();
    assert_eq!(jail.read("etc/passwd"), "inside", "DirectoryOverrideSymlinkAndHardlink");
    assert_eq!(jail.read("localetc/localpasswd"), "different");
}

/// What later releases added to the table (those that are errors stand in a10).
#[test]
fn breakouts_of_later_releases() {
    let jail = |link: Option<&str>| {
        let jail = Jail::new();
        jail.write("etc/passwd", "all users");
        jail.write("etc/whitedout", "ahhhh whiteout");
        if let Some(target) = link {
            symlink(target, jail.root().join("localetc")).unwrap();
        }
        jail
    };
    let j = jail(Some("/etc"));
    j.apply(Tar::new().file(".wh.localetc", "")).unwrap();
    assert!(j.read("etc/passwd") == "all users" && !j.has("localetc"), "WhiteoutSymlink");

    let j = jail(Some("/etc"));
    j.apply(Tar::new().file("localetc/.wh.whitedout", "")).unwrap();
    assert!(j.read("etc/passwd") == "all users" && !j.has("etc/whitedout"), "WhiteoutSymlinkPath");

    let j = jail(Some("/etc"));
    j.apply(Tar::new().file(".wh.etc/somefile", "non-empty")).unwrap();
    assert!(j.read("etc/passwd") == "all users" && j.read(".wh.etc/somefile") == "non-empty", "WhiteoutDirectoryName");

    let j = jail(Some("/dne"));
    j.apply(Tar::new().file("localetc/.wh.etc", "")).unwrap();
    assert_eq!(j.read("etc/passwd"), "all users", "WhiteoutDeadSymlinkParent");

    let j = jail(Some("/dne"));
    j.apply(Tar::new().file("dne/../.wh.etc", "")).unwrap();
    assert!(!j.has("etc"), "WhiteoutRelativePath");

    let j = jail(None);
    let tar = Tar::new().symlink("/etc/late", "late").link("late", "late-dup").file("/etc/late", "after");
    j.apply(tar).unwrap();
    assert!(j.meta("late-dup").is_symlink() && j.read("etc/late") == "after", "HardlinkSymlinkBeforeCreateTarget");

    let j = jail(None);
    let canary = format!("{}/canary", j.outside());
    let inner = format!("{}/also", j.outside());
    j.apply(Tar::new().symlink(&canary, &inner).link(&inner, "sketchylink")).unwrap();
    assert!(j.meta("sketchylink").is_symlink(), "HardlinkSymlinkChmod");

    let j = jail(Some("/etc"));
    j.apply(Tar::new().file("localetc", "file now")).unwrap();
    assert!(j.read("localetc") == "file now" && j.read("etc/passwd") == "all users", "SymlinkOverridePath");
}
