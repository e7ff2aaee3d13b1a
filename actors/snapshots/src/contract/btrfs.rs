//! What only btrfs does.

use std::{
    ffi::CString,
    fs::{self, File},
    io::Write,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
};

use cofferdam_sys::btrfs;
use cofferdam_types::{Authority, Code};
use nix::sys::stat::Mode;

use super::{Disk, Suite, World, name, ns, own, run, until_empty};
use crate::{trash::open_path, walk::Cursor};

const ON: &str = "btrfs";

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

/// How many subvolumes there are, with those that are nested.
fn subvolumes(world: &World) -> usize {
    let disk = world.disk.as_ref().unwrap().path();
    let output = std::process::Command::new("btrfs").args(["subvolume", "list"]).arg(disk).output().unwrap();
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stdout).lines().count()
}

#[test]
fn a_root_on_another_file_system_is_refused_with_the_reason() {
    run(async {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let world = World::at(dir, None).await;
        let suite = Suite { world: &world, driver: ON };
        let error = suite.prepare("a", None).await.err().unwrap();
        assert_eq!(error.code, Code::Unimplemented);
        assert!(error.message.contains("another file system"), "{error}");
        assert_eq!(world.snapshots.unfit(ON), Some(error));
        assert_eq!(world.snapshots.unfit("overlay"), None);
        assert_eq!(world.snapshots.drivers(), ["overlay", "native"]);
        assert!(!world.root.path().join("snapshots/btrfs").exists());
        world.kernel.stop().await;
    });
}

#[test]
fn what_is_committed_is_read_only_even_for_who_has_it_open() {
    run(async {
        let world = World::on(Disk::btrfs()).await;
        let suite = Suite { world: &world, driver: ON };
        let mounted = suite.prepare("a", None).await.unwrap();
        let mut open = File::create(mounted.at("f")).unwrap();
        open.write_all(b"before").unwrap();
        suite.commit("c", "a").await.unwrap();
        // It may write, to what nobody sees any more.
        let _ = open.write_all(b" and after");
        drop((open, mounted));
        suite.seen("c", |view| assert_eq!(view.read("f").as_deref(), Some("before"))).await;
        let dir = own(&world, ON, suite.stat("c").unwrap().dir);
        assert_eq!(fs::write(dir.join("fs/g"), "x").unwrap_err().raw_os_error(), Some(libc::EROFS));
        assert!(!dir.join("other").exists());
        world.kernel.stop().await;
    });
}

/// Names in the table are of 1 to 1,024 bytes; the commit itself refuses the labels, after the sealing.
pub async fn refused_behind_the_sealing(suite: &Suite<'_>, to: &str, from: &str) {
    let labels = std::collections::BTreeMap::from([("k".to_owned(), "v".repeat(10_000))]);
    let all = &suite.world.snapshots;
    let refused = all.commit(&Authority::system(), &ns(), suite.driver, &name(to), &name(from), labels).await;
    assert_eq!(refused.unwrap_err().code, Code::InvalidArgument);
}

#[test]
fn a_commit_that_failed_leaves_it_writable() {
    run(async {
        let world = World::on(Disk::btrfs()).await;
        let suite = Suite { world: &world, driver: ON };
        let mounted = suite.prepare("a", None).await.unwrap();
        mounted.write("f", "x");
        refused_behind_the_sealing(&suite, "c", "a").await;
        mounted.write("g", "still");
        // A subvolume in it would be left out.
        let dir = own(&world, ON, suite.stat("a").unwrap().dir);
        fs::create_dir(dir.join("fs/deep")).unwrap();
        btrfs::create(open_path(&dir.join("fs/deep")).unwrap(), c"sub").unwrap();
        let refused = suite.commit("c", "a").await.unwrap_err();
        assert_eq!(refused.code, Code::FailedPrecondition);
        assert!(refused.id == "a" && refused.message.contains(" /deep/sub,"), "{refused}");
        fs::remove_dir(dir.join("fs/deep/sub")).unwrap();
        assert!(!dir.join("other").exists());
        suite.commit("c", "a").await.unwrap();
        suite.seen("c", |view| assert_eq!(view.read("g").as_deref(), Some("still"))).await;
        world.kernel.stop().await;
    });
}

fn make_readonly(tree: &Path, readonly: bool) {
    let mut command = std::process::Command::new("btrfs");
    command.args(["property", "set", "-f"]).arg(tree).args(["ro", &readonly.to_string()]);
    assert!(command.status().unwrap().success());
}

/// What a crash leaves at each step of a commit: before and after the trees changed places, before and after the record.
/// Who is root in a container may have made what he writes to read-only.
#[test]
fn a_start_settles_what_a_crash_left_of_a_commit() {
    run(async {
        let mut world = World::on(Disk::btrfs()).await;
        for case in 0..8_u8 {
            let [exchanged, committed, frozen] = [1, 2, 4].map(|bit| case & bit != 0);
            let suite = Suite { world: &world, driver: ON };
            let key = case.to_string();
            let mounted = suite.prepare(&key, None).await.unwrap();
            mounted.write("f", "x");
            drop(mounted);
            let dir = own(&world, ON, suite.stat(&key).unwrap().dir);
            let own = open_path(&dir).unwrap();
            let open = |name| crate::walk::open_dir(own.as_fd(), name).unwrap();
            let written = if committed {
                suite.commit(&format!("c{key}"), &key).await.unwrap();
                btrfs::snapshot(open(c"fs"), &own, c"other", false).unwrap();
                btrfs::destroy(&own, c"fs").unwrap();
                btrfs::snapshot(open(c"other"), &own, c"fs", true).unwrap();
                dir.join("other")
            } else {
                btrfs::snapshot(open(c"fs"), &own, c"other", true).unwrap();
                dir.join("fs")
            };
            fs::write(written.join("late"), "x").unwrap();
            if frozen {
                make_readonly(&written, true);
            }
            if exchanged != committed {
                nix::fcntl::renameat2(&own, c"fs", own.as_fd(), c"other", nix::fcntl::RenameFlags::RENAME_EXCHANGE)
                    .unwrap();
            }
        }
        world = world.restart().await;
        let suite = Suite { world: &world, driver: ON };
        for case in 0..8_u8 {
            let [committed, frozen] = [2, 4].map(|bit| case & bit != 0);
            let key = if committed { format!("c{case}") } else { case.to_string() };
            let dir = own(&world, ON, suite.stat(&key).unwrap().dir);
            assert!(!dir.join("other").exists(), "{key}");
            assert_eq!(fs::read_to_string(dir.join("fs/f")).unwrap(), "x");
            assert_eq!(dir.join("fs/late").exists(), !committed, "{key}");
            if frozen && !committed {
                make_readonly(&dir.join("fs"), false);
            }
            let written = fs::write(dir.join("fs/g"), "x").map_err(|e| e.raw_os_error());
            assert_eq!(written, if committed { Err(Some(libc::EROFS)) } else { Ok(()) }, "{key}");
        }
        world.kernel.stop().await;
    });
}

#[test]
fn subvolumes_within_go_too_however_deep_and_read_only() {
    run(async {
        let world = World::on(Disk::btrfs()).await;
        let suite = Suite { world: &world, driver: ON };
        let before = subvolumes(&world);
        suite.prepare("a", None).await.unwrap();
        let tree = own(&world, ON, suite.stat("a").unwrap().dir).join("fs");
        // In a chain, one read-only, and one below a path that is longer than a path can be.
        let mut at = tree.clone();
        for n in 0..5 {
            btrfs::create(open_path(&at).unwrap(), &c(&n.to_string())).unwrap();
            at = at.join(n.to_string());
            fs::create_dir(at.join("d")).unwrap();
            at = at.join("d");
        }
        let frozen = tree.join("0/d/1");
        btrfs::snapshot(open_path(&frozen).unwrap(), open_path(&tree).unwrap(), c"frozen", true).unwrap();
        assert_eq!(subvolumes(&world), before + 7);
        // The tool that lists them can't name this one.
        let root = open_path(&tree).unwrap();
        let mut cursor = Cursor::new(root.as_fd()).unwrap();
        for _ in 0..3000 {
            nix::sys::stat::mkdirat(cursor.here(), c"dd", Mode::S_IRWXU).unwrap();
            cursor.down(c"dd").unwrap();
        }
        btrfs::create(cursor.here(), c"sub").unwrap();
        drop((cursor, root));
        suite.remove("a").await.unwrap();
        until_empty(&world);
        assert_eq!(subvolumes(&world), before);
        // One without a record, as a crash leaves it.
        let orphan = own(&world, ON, 999_999);
        fs::create_dir(&orphan).unwrap();
        btrfs::create(open_path(&orphan).unwrap(), c"fs").unwrap();
        btrfs::create(open_path(&orphan.join("fs")).unwrap(), c"within").unwrap();
        let world = world.restart().await;
        until_empty(&world);
        assert!(!orphan.exists());
        assert_eq!(subvolumes(&world), before);
        world.kernel.stop().await;
    });
}

#[test]
fn what_is_mounted_elsewhere_can_be_removed() {
    run(async {
        let world = World::on(Disk::btrfs()).await;
        let suite = Suite { world: &world, driver: ON };
        let mounted = suite.prepare("a", None).await.unwrap();
        mounted.write("f", "x");
        let open = File::open(mounted.at("f")).unwrap();
        suite.remove("a").await.unwrap();
        until_empty(&world);
        assert_eq!(std::io::read_to_string(open).unwrap(), "x", "who has a file open keeps it");
        assert!(!mounted.at("f").exists());
        world.kernel.stop().await;
    });
}

#[test]
fn the_size_of_a_snapshot_is_its_own() {
    run(async {
        for counted in [false, true] {
            let disk = Disk::btrfs();
            if counted {
                disk.count();
            }
            let world = World::on(disk).await;
            let suite = Suite { world: &world, driver: ON };
            let fill = |m: &super::Mounted, path: &str, mib: usize| fs::write(m.at(path), vec![7; mib << 20]).unwrap();
            suite.layer("low", None, |m| fill(m, "big", 8)).await;
            suite.layer("high", Some("low"), |m| fill(m, "more", 2)).await;
            let (low, high) = (suite.stat("low").unwrap().usage, suite.stat("high").unwrap().usage);
            let about = |size: u64, mib: u64| (mib << 20..(mib << 20) + (256 << 10)).contains(&size);
            assert!(about(low.size, 8) && low.inodes == 2, "{low:?}");
            assert!(about(high.size, 2) && high.inodes == 2, "{high:?}");
            let active = suite.prepare("a", Some("high")).await.unwrap();
            let usage = async || world.snapshots.usage(&ns(), ON, &name("a")).await.unwrap();
            assert_eq!(usage().await.inodes, 1);
            assert!(usage().await.size < 256 << 10);
            fill(&active, "big", 1);
            File::open(active.at("big")).unwrap().sync_all().unwrap();
            // The file system counts with each of its commits.
            nix::unistd::syncfs(File::open(active.at(".")).unwrap()).unwrap();
            assert!(about(usage().await.size, 1), "{:?}", usage().await);
            assert_eq!(usage().await.inodes, 2);
            world.kernel.stop().await;
        }
    });
}

#[test]
fn a_limit_holds_and_can_be_changed() {
    run(async {
        let disk = Disk::btrfs();
        disk.count();
        let world = World::on(disk).await;
        let suite = Suite { world: &world, driver: ON };
        suite.layer("low", None, |m| fs::write(m.at("big"), vec![7; 8 << 20]).unwrap()).await;
        let active = suite.prepare("a", Some("low")).await.unwrap();
        let limit = async |key: &'static str, bytes| {
            world.snapshots.limit(&Authority::system(), &ns(), ON, &name(key), bytes).await
        };
        limit("a", 2 << 20).await.unwrap();
        let write = |mib: usize| {
            let mut file = File::create(active.at("f")).unwrap();
            file.write_all(&vec![1; mib << 20]).and_then(|()| file.sync_all())
        };
        write(1).unwrap();
        assert_eq!(write(4).unwrap_err().raw_os_error(), Some(libc::EDQUOT));
        limit("a", 0).await.unwrap();
        write(4).unwrap();
        assert_eq!(fs::metadata(active.at("f")).unwrap().size(), 4 << 20);
        assert_eq!(limit("low", 1 << 20).await.unwrap_err().code, Code::FailedPrecondition);
        // One that is below what is there lets nothing more in, and can be raised, and lifted.
        for higher in [32 << 20, 0] {
            limit("a", 1 << 20).await.unwrap();
            let full =
                fs::write(active.at("g"), vec![2; 1 << 20]).and_then(|()| File::open(active.at("g"))?.sync_all());
            assert_eq!(full.unwrap_err().raw_os_error(), Some(libc::EDQUOT));
            limit("a", higher).await.unwrap();
            write(5).unwrap();
        }
        // Nor does it keep anything from going.
        let before = subvolumes(&world);
        btrfs::create(open_path(&own(&world, ON, suite.stat("a").unwrap().dir).join("fs")).unwrap(), c"within")
            .unwrap();
        limit("a", 1 << 20).await.unwrap();
        drop(active);
        suite.remove("a").await.unwrap();
        until_empty(&world);
        assert_eq!(subvolumes(&world), before - 1);
        world.kernel.stop().await;
    });
}
