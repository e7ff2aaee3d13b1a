//! The conformance suite of the reference (section 6.8), run for every driver through the handle, with real mounts.

use std::{
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    },
    path::{Path, PathBuf},
};

use cofferdam_kernel::{Kernel, Placement};
use cofferdam_metadata::{Metadata, records::namespaces};
use cofferdam_types::{Authority, Ceiling, Code, Labels, Mount, Name, Namespace, Result};

use crate::{Kind, Settings, Snapshot, Snapshots, core::DEPTH};

mod btrfs;
mod disk;
mod erofs;
mod heal;
mod more;
mod protect;
mod share;
mod sweep;
mod unreadable;

pub use disk::Disk;

/// A daemon with nothing but snapshots.
pub struct World {
    pub kernel: Kernel,
    pub meta: Metadata,
    pub snapshots: Snapshots,
    pub root: tempfile::TempDir,
    pub disk: Option<Disk>,
}

impl World {
    async fn start() -> World {
        World::at(tempfile::tempdir().unwrap(), None).await
    }

    /// One where the driver can work.
    async fn start_for(driver: &str) -> World {
        if driver == "btrfs" { World::on(Disk::btrfs()).await } else { World::start().await }
    }

    /// One that lies on a disk of its own.
    async fn on(disk: Disk) -> World {
        World::at(tempfile::tempdir_in(disk.path()).unwrap(), Some(disk)).await
    }

    async fn at(root: tempfile::TempDir, disk: Option<Disk>) -> World {
        World::with(root, disk, Settings::default()).await
    }

    async fn with(root: tempfile::TempDir, disk: Option<Disk>, settings: Settings) -> World {
        let kernel = Kernel::new().unwrap();
        let place = Placement::Shared("test");
        let meta = Metadata::start(&kernel, place, &root.path().join("meta.redb")).unwrap();
        let snapshots = Snapshots::start(&kernel, place, meta.clone(), root.path(), settings).unwrap();
        kernel.ready().await.unwrap();
        snapshots.core().settled().await;
        World { kernel, meta, snapshots, root, disk }
    }

    /// Ends everything and starts again on the same directory.
    async fn restart(self) -> World {
        self.kernel.stop().await;
        let World { kernel, meta, snapshots, root, disk } = self;
        drop((kernel, meta, snapshots));
        World::at(root, disk).await
    }
}

/// All of them.
const DRIVERS: [&str; 4] = ["overlay", "native", "btrfs", "erofs"];

/// Runs a test on an actix system, which the kernel needs.
pub fn run(test: impl Future<Output = ()>) {
    actix_rt::System::new().block_on(test);
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn ns() -> Namespace {
    Namespace::default_namespace()
}

/// A mounted snapshot; unmounted with its descriptor.
struct Mounted(OwnedFd);

impl Mounted {
    fn new(mounts: &[Mount]) -> Mounted {
        let [mount] = mounts else { panic!("one mount, not {mounts:?}") };
        Mounted(cofferdam_sys::mount::detached(mount).unwrap())
    }

    fn at(&self, path: &str) -> PathBuf {
        Path::new(&format!("/proc/self/fd/{}", self.0.as_raw_fd())).join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.at(path), text).unwrap();
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.at(path)).ok()
    }

    fn dir(&self, path: &str) {
        fs::create_dir_all(self.at(path)).unwrap();
    }
}

/// The directory with a number.
fn own(world: &World, driver: &str, dir: u64) -> PathBuf {
    world.root.path().join("snapshots").join(driver).join(dir.to_string())
}

/// Waits for the threads that empty the trash.
fn until_empty(world: &World) {
    let begun = std::time::Instant::now();
    let left = |dir| fs::read_dir(world.root.path().join(dir)).map_or(0, Iterator::count);
    while left("trash") + left("snapshots/erofs/trash") > 0 {
        assert!(begun.elapsed().as_secs() < 30, "something in the trash resists");
        std::thread::yield_now();
    }
}

/// One driver's part of a world.
struct Suite<'a> {
    world: &'a World,
    driver: &'static str,
}

impl Suite<'_> {
    async fn prepare(&self, key: &str, parent: Option<&str>) -> Result<Mounted> {
        let parent = parent.map(name);
        let all = &self.world.snapshots;
        let auth = Authority::system();
        all.prepare(&auth, &ns(), self.driver, &name(key), parent.as_ref(), Labels::new())
            .await
            .map(|m| Mounted::new(&m))
    }

    async fn view(&self, key: &str, parent: Option<&str>) -> Result<Mounted> {
        let parent = parent.map(name);
        let all = &self.world.snapshots;
        let auth = Authority::system();
        all.view(&auth, &ns(), self.driver, &name(key), parent.as_ref(), Labels::new()).await.map(|m| Mounted::new(&m))
    }

    async fn commit(&self, committed: &str, key: &str) -> Result<()> {
        let all = &self.world.snapshots;
        all.commit(&Authority::system(), &ns(), self.driver, &name(committed), &name(key), Labels::new()).await
    }

    async fn remove(&self, key: &str) -> Result<()> {
        self.world.snapshots.remove(&Authority::system(), &ns(), self.driver, &name(key)).await
    }

    fn stat(&self, key: &str) -> Result<Snapshot> {
        self.world.snapshots.stat(&ns(), self.driver, &name(key))
    }

    /// Commits what `change` does on top of `parent`.
    async fn layer(&self, committed: &str, parent: Option<&str>, change: impl FnOnce(&Mounted)) {
        let key = format!("{committed}-active");
        let mounted = self.prepare(&key, parent).await.unwrap();
        change(&mounted);
        drop(mounted);
        self.commit(committed, &key).await.unwrap();
    }

    async fn seen(&self, parent: &str, look: impl FnOnce(&Mounted)) {
        let key = format!("{parent}-seen");
        look(&self.view(&key, Some(parent)).await.unwrap());
        self.remove(&key).await.unwrap();
    }

    async fn basic(&self) {
        let first = self.prepare("basic-1", None).await.unwrap();
        first.write("foo", "foo\n");
        first.dir("a/b/c");
        drop(first);
        self.commit("basic-c1", "basic-1").await.unwrap();
        assert_eq!(self.stat("basic-1").unwrap_err().code, Code::NotFound);
        let stat = self.stat("basic-c1").unwrap();
        assert_eq!((stat.kind, stat.parent, stat.usage.inodes), (Kind::Committed, None, 5));

        let second = self.prepare("basic-2", Some("basic-c1")).await.unwrap();
        assert_eq!(second.read("foo").as_deref(), Some("foo\n"));
        second.write("bar", "bar\n");
        second.write("foo", "changed\n");
        fs::remove_dir_all(second.at("a/b")).unwrap();
        drop(second);
        self.commit("basic-c2", "basic-2").await.unwrap();
        assert_eq!(self.stat("basic-c2").unwrap().parent, Some(name("basic-c1")));
        let listed = self.world.snapshots.list(&ns(), self.driver, None, 100).unwrap();
        let mine: Vec<_> = listed.into_iter().filter(|s| s.key.starts_with("basic-")).collect();
        assert_eq!(mine, [self.stat("basic-c1").unwrap(), self.stat("basic-c2").unwrap()]);
        self.seen("basic-c2", |view| {
            assert_eq!((view.read("foo").as_deref(), view.read("bar").as_deref()), (Some("changed\n"), Some("bar\n")));
            assert!(view.at("a").exists() && !view.at("a/b").exists());
        })
        .await;
        assert_eq!(self.remove("basic-c1").await.unwrap_err().code, Code::FailedPrecondition);
        self.remove("basic-c2").await.unwrap();
        self.remove("basic-c1").await.unwrap();
        assert_eq!(self.remove("basic-c1").await.unwrap_err().code, Code::NotFound);
    }

    async fn states(&self) {
        self.prepare("st-a", None).await.unwrap();
        assert_eq!((self.stat("st-a").unwrap().kind, self.stat("st-a").unwrap().parent), (Kind::Active, None));
        let all = &self.world.snapshots;
        assert_eq!(all.mounts(&ns(), self.driver, &name("st-a")).unwrap().len(), 1);
        self.commit("st-b", "st-a").await.unwrap();
        assert_eq!(all.mounts(&ns(), self.driver, &name("st-b")).unwrap_err().code, Code::FailedPrecondition);
        assert_eq!(self.commit("st-c", "st-b").await.unwrap_err().code, Code::FailedPrecondition);
        self.view("st-v", Some("st-b")).await.unwrap();
        assert_eq!(self.commit("st-c", "st-v").await.unwrap_err().code, Code::FailedPrecondition);
        self.prepare("st-d", Some("st-b")).await.unwrap();
        assert_eq!(self.commit("st-b", "st-d").await.unwrap_err().code, Code::AlreadyExists);
        assert_eq!(self.prepare("st-e", Some("st-d")).await.err().unwrap().code, Code::InvalidArgument);
        assert_eq!(self.prepare("st-e", Some("none")).await.err().unwrap().code, Code::NotFound);
        // A key can't be used twice, whatever for.
        for key in ["st-d", "st-v", "st-b"] {
            assert_eq!(self.prepare(key, None).await.err().unwrap().code, Code::AlreadyExists, "{key}");
            assert_eq!(self.view(key, None).await.err().unwrap().code, Code::AlreadyExists, "{key}");
        }
        let usage = all.usage(&ns(), self.driver, &name("st-v")).await.unwrap();
        assert_eq!((usage.size, usage.inodes), (0, 0));
        assert_eq!(all.usage(&ns(), self.driver, &name("st-d")).await.unwrap().inodes, 1);
    }

    async fn reuse_after_removal(&self) {
        for _ in 0..2 {
            self.prepare("re", None).await.unwrap();
            self.remove("re").await.unwrap();
            self.view("re", None).await.unwrap();
            self.remove("re").await.unwrap();
        }
        self.layer("re-parent", None, |_| {}).await;
        self.layer("re-child", Some("re-parent"), |_| {}).await;
        self.remove("re-child").await.unwrap();
        self.remove("re-parent").await.unwrap();
        self.prepare("re-child", None).await.unwrap();
        self.commit("re-parent", "re-child").await.unwrap();
    }

    async fn updates(&self) {
        let labels = |text: &[(&str, &str)]| text.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect::<Labels>();
        self.layer("up", None, |_| {}).await;
        let all = &self.world.snapshots;
        let update = |given: Labels, mask: &[&str]| {
            let mask = mask.iter().map(|m| (*m).to_owned()).collect();
            async move { all.update(&Authority::system(), &ns(), self.driver, &name("up"), given, mask).await }
        };
        let before = self.stat("up").unwrap();
        assert_eq!(before.created, before.updated);
        let after = update(labels(&[("l1", "1"), ("l2", "2"), ("l3", "3")]), &[]).await.unwrap();
        assert!(after.updated > before.updated && after.created == before.created);
        let after = update(labels(&[("l1", "x")]), &["labels.l1", "labels.l2"]).await.unwrap();
        assert_eq!(after.labels, labels(&[("l1", "x"), ("l3", "3")]));
        assert_eq!(update(labels(&[("n", "1")]), &["labels"]).await.unwrap().labels, labels(&[("n", "1")]));
        assert_eq!(update(Labels::new(), &["parent"]).await.unwrap_err().code, Code::InvalidArgument);
    }

    async fn layered_changes(&self) {
        self.layer("lc-1", None, |m| {
            m.dir("dir");
            m.dir("owned/inner");
            m.write("dir/old", "1");
            m.write("same-size", "aaaa");
            m.write("mode", "m");
            m.write("moved", "move me");
            m.write("linked", "link me");
            m.write("gone", "x");
            chown(m.at("owned"), Some(1), Some(1)).unwrap();
        })
        .await;
        self.layer("lc-2", Some("lc-1"), |m| {
            m.write("same-size", "bbbb");
            fs::set_permissions(m.at("mode"), fs::Permissions::from_mode(0o4711)).unwrap();
            // Deleted and made again: what was in it must not show through.
            fs::remove_dir_all(m.at("dir")).unwrap();
            m.dir("dir");
            m.write("dir/new", "2");
            chown(m.at("owned"), Some(7), Some(8)).unwrap();
            fs::remove_dir_all(m.at("owned/inner")).unwrap();
            m.dir("owned/inner");
            chown(m.at("owned/inner"), Some(9), Some(9)).unwrap();
            chown(m.at("mode"), Some(5), Some(6)).unwrap();
            fs::set_permissions(m.at("mode"), fs::Permissions::from_mode(0o4711)).unwrap();
            m.write("arrived", &m.read("moved").unwrap());
            fs::remove_file(m.at("moved")).unwrap();
            fs::hard_link(m.at("linked"), m.at("arrived-too")).unwrap();
            fs::remove_file(m.at("linked")).unwrap();
            fs::remove_file(m.at("gone")).unwrap();
            fs::rename(m.at("arrived"), m.at("renamed")).unwrap();
            symlink("dir/new", m.at("link")).unwrap();
        })
        .await;
        self.layer("lc-3", Some("lc-2"), |m| m.write("dir/third", "3")).await;
        self.layer("lc-4", Some("lc-3"), |_| {}).await;
        self.seen("lc-4", |view| {
            assert_eq!(view.read("same-size").as_deref(), Some("bbbb"));
            assert!(!view.at("dir/old").exists());
            assert_eq!((view.read("dir/new").as_deref(), view.read("dir/third").as_deref()), (Some("2"), Some("3")));
            let mode = fs::metadata(view.at("mode")).unwrap();
            assert_eq!((mode.mode() & 0o7777, mode.uid(), mode.gid()), (0o4711, 5, 6));
            assert_eq!(fs::metadata(view.at("owned")).unwrap().uid(), 7);
            assert_eq!(fs::metadata(view.at("owned/inner")).unwrap().uid(), 9);
            for gone in ["moved", "linked", "gone", "arrived"] {
                assert!(!view.at(gone).exists(), "{gone}");
            }
            assert_eq!(view.read("renamed").as_deref(), Some("move me"));
            assert_eq!(view.read("arrived-too").as_deref(), Some("link me"));
            assert_eq!(view.read("link").as_deref(), Some("2"));
        })
        .await;
        self.seen("lc-1", |view| assert_eq!(view.read("gone").as_deref(), Some("x"), "a layer never changes")).await;
        assert_eq!(self.remove("lc-2").await.unwrap_err().code, Code::FailedPrecondition);
        for key in ["lc-4", "lc-3", "lc-2", "lc-1"] {
            self.remove(key).await.unwrap();
        }
    }

    async fn a_view_is_read_only(&self) {
        self.layer("ro-1", None, |m| m.write("f", "x")).await;
        self.layer("ro-2", Some("ro-1"), |m| m.write("g", "x")).await;
        for (key, parent) in [("ro-v0", None), ("ro-v1", Some("ro-1")), ("ro-v2", Some("ro-2"))] {
            let view = self.view(key, parent).await.unwrap();
            let error = fs::write(view.at("h"), "x").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{key}");
        }
    }

    async fn the_root_looks_like_its_parents(&self) {
        self.layer("root-1", None, |m| {
            chown(m.at("."), Some(1000), Some(1001)).unwrap();
            fs::set_permissions(m.at("."), fs::Permissions::from_mode(0o2711)).unwrap();
        })
        .await;
        let mounted = self.prepare("root-2", Some("root-1")).await.unwrap();
        let stat = fs::metadata(mounted.at(".")).unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (1000, 1001, 0o2711));
    }
}

async fn suite(driver: &'static str) {
    let world = World::start_for(driver).await;
    let suite = Suite { world: &world, driver };
    suite.basic().await;
    suite.states().await;
    suite.reuse_after_removal().await;
    suite.updates().await;
    suite.each_kind_is_updated_and_listed_as_it_is().await;
    suite.a_change_is_seen_whatever_the_time().await;
    suite.what_differs_can_be_told().await;
    suite.layered_changes().await;
    suite.a_view_is_read_only().await;
    suite.the_root_looks_like_its_parents().await;
    world.kernel.stop().await;
}

#[test]
fn overlay_keeps_the_contract() {
    run(suite("overlay"));
}

#[test]
fn native_keeps_the_contract() {
    run(suite("native"));
}

#[test]
fn btrfs_keeps_the_contract() {
    run(suite("btrfs"));
}

#[test]
fn erofs_keeps_the_contract() {
    run(suite("erofs"));
}

#[test]
fn every_driver_is_under_contract() {
    let names: Vec<_> = crate::drivers::all().iter().map(|d| d.name()).collect();
    assert_eq!(names, DRIVERS, "a new driver needs a line above");
}

fn dirs(world: &World, driver: &str) -> usize {
    fs::read_dir(world.root.path().join("snapshots").join(driver)).unwrap().count()
}

#[test]
fn a_reservation_is_the_callers_to_record() {
    run(async {
        let world = World::start().await;
        let reserve = || async { world.snapshots.reserve(&ns(), "overlay", &name("c"), None, false).await.unwrap() };
        let dropped = reserve().await;
        let base = world.root.path().join("snapshots/overlay");
        let dir = base.join(dropped.record.dir.to_string());
        assert!(dir.join("work").exists());
        drop(dropped);
        assert!(!dir.exists(), "it went to the trash");

        // The answer to the commit is lost, but the function held a clone: the directory stays.
        let reserved = reserve().await;
        let dir = base.join(reserved.record.dir.to_string());
        let auth = Authority::system();
        let write = world.meta.write(&auth, move |tx| reserved.create(tx, &ns()).map(drop));
        write.await.unwrap();
        assert!(dir.exists());
        let mounted = Mounted::new(&world.snapshots.mounts(&ns(), "overlay", &name("c")).unwrap());
        mounted.write("f", "x");

        // The same the other way: a removal in the caller's commit.
        let removed = world
            .meta
            .write(&Authority::system(), |tx| cofferdam_metadata::records::snapshots::delete(tx, &ns(), "overlay", "c"))
            .await
            .unwrap();
        assert!(dir.exists());
        world.snapshots.discard(removed).await.unwrap();
        assert!(!dir.exists());
        world.kernel.stop().await;
    });
}

// Z3 of the negative tests.
#[test]
fn z3_mounts_take_the_host_right() {
    run(async {
        let world = World::start().await;
        let suite = Suite { world: &world, driver: "overlay" };
        suite.prepare("a", None).await.unwrap();
        let mounts = |auth: &Authority| world.snapshots.mounts_for(auth, &ns(), "overlay", &name("a"));
        assert_eq!(mounts(&Authority::system()).unwrap().len(), 1);
        let without = Authority { ceiling: Ceiling::default(), ..Authority::system() };
        assert_eq!(mounts(&without).unwrap_err().code, Code::Denied);
        world.kernel.stop().await;
    });
}

#[test]
fn a_stack_that_no_kernel_mounts_is_refused() {
    run(async {
        let world = World::start().await;
        let suite = Suite { world: &world, driver: "overlay" };
        suite.layer("0", None, |_| {}).await;
        let dir = suite.stat("0").unwrap().dir;
        let auth = Authority::system();
        let stack = move |tx: &mut cofferdam_metadata::Tx<'_>| {
            (1..=DEPTH).try_for_each(|n| {
                let (key, parent) = (name(&n.to_string()), name(&(n - 1).to_string()));
                let record = Snapshot::new("overlay", key, Kind::Committed, Some(parent), dir);
                cofferdam_metadata::records::snapshots::create(tx, &ns(), record).map(drop)
            })
        };
        world.meta.write(&auth, stack).await.unwrap();
        let prepare = async |key: &str, parent: usize| {
            let parent = name(&parent.to_string());
            world.snapshots.prepare(&auth, &ns(), "overlay", &name(key), Some(&parent), Labels::new()).await
        };
        prepare("high", DEPTH - 1).await.unwrap();
        let before = dirs(&world, "overlay");
        assert_eq!(prepare("higher", DEPTH).await.unwrap_err().code, Code::OutOfRange);
        assert_eq!(suite.stat("higher").unwrap_err().code, Code::NotFound);
        assert!(dirs(&world, "overlay") <= before, "and no directory is left");
        world.kernel.stop().await;
    });
}

#[test]
fn a_crash_of_the_actor_leaves_what_is_in_hands() {
    run(async {
        let world = World::start().await;
        let reserved = world.snapshots.reserve(&ns(), "overlay", &name("c"), None, false).await.unwrap();
        let dir = world.root.path().join("snapshots/overlay").join(reserved.record.dir.to_string());
        world.kernel.poison("snapshots").unwrap();
        // Unavailable until it is up again, then as before.
        let begun = std::time::Instant::now();
        loop {
            assert!(begun.elapsed().as_secs() < 30, "it never came up again");
            let again = world.snapshots.reserve(&ns(), "overlay", &name("d"), None, false).await;
            match again {
                Ok(_) if world.kernel.statuses().iter().any(|s| s.name == "snapshots" && s.restarts == 1) => break,
                Ok(_) => tokio::task::yield_now().await,
                Err(e) => assert_eq!(e.code, Code::Unavailable),
            }
        }
        assert!(dir.exists());
        world.kernel.stop().await;
    });
}

#[test]
fn layers_are_shared_between_namespaces_and_unpacked_once() {
    use cofferdam_types::{Algorithm, Digest};

    use crate::{ChainLayer, Staged};
    run(async {
        let world = World::on(Disk::btrfs()).await;
        let other = Namespace::new("other").unwrap();
        let made = other.clone();
        let auth = Authority::system();
        world.meta.write(&auth, move |tx| namespaces::create(tx, &made, &Labels::new()).map(drop)).await.unwrap();
        let diffs: Vec<_> = ["1", "2"].iter().map(|t| Digest::of(Algorithm::Sha256, t.as_bytes())).collect();
        let chain = [diffs[0].clone(), Digest::chain(Some(&diffs[0]), &diffs[1])];
        for driver in DRIVERS {
            let all = &world.snapshots;
            let turn = all.turn(&ns(), driver, &chain[0]).unwrap();
            let Staged::New(first) = all.stage_layer(driver, turn, None, None, true).await.unwrap() else { panic!() };
            assert!(all.try_turn(&ns(), driver, &chain[0]).unwrap().is_none());
            let tree = |stage: &crate::Stage| format!("/proc/self/fd/{}", stage.tree().as_raw_fd());
            fs::write(format!("{}/f", tree(&first)), "first").unwrap();
            let under = Some(&first);
            let turn = all.turn(&ns(), driver, &chain[1]).unwrap();
            let second = all.stage_layer(driver, turn, Some(&chain[0]), under, true).await.unwrap();
            let Staged::New(second) = second else { panic!() };
            assert_eq!(second.detached(), matches!(driver, "overlay" | "erofs"));
            fs::write(format!("{}/g", tree(&second)), "second").unwrap();
            let waiter = {
                let (all, chain, other) = (all.clone(), chain[0].clone(), other.clone());
                actix_rt::spawn(async move {
                    let turn = all.turn(&other, driver, &chain)?;
                    all.stage_layer(driver, turn, None, None, true).await
                })
            };
            // One that is fed waits for nobody; it will find out when it commits.
            let turn = all.turn(&Namespace::new("third").unwrap(), driver, &chain[0]).unwrap();
            let fed = all.stage_layer(driver, turn, None, None, false).await.unwrap();
            let Staged::New(fed) = fed else { panic!() };
            let link = |i: usize, stage| ChainLayer {
                chain: chain[i].clone(),
                parent: (i > 0).then(|| chain[i - 1].clone()),
                labels: Labels::from([("containerd.io/uncompressed".into(), diffs[i].to_string())]),
                stage,
            };
            let layers = vec![link(0, Some(first)), link(1, Some(second))];
            all.commit_layers(&auth, &ns(), driver, layers, None, |_| Ok(())).await.unwrap();
            assert!(matches!(waiter.await.unwrap().unwrap(), Staged::Exists), "whoever waited finds it there");

            let before = dirs(&world, driver);
            let layers = vec![link(0, Some(fed)), link(1, None)];
            all.commit_layers(&auth, &other, driver, layers, None, |_| Ok(())).await.unwrap();
            assert_eq!(dirs(&world, driver), before - 1, "linked, and what was unpacked twice is gone");
            let top = name(&chain[1].to_string());
            for ns in [&ns(), &other] {
                let mounts = all.prepare(&auth, ns, driver, &name("c"), Some(&top), Labels::new()).await.unwrap();
                let mounted = Mounted::new(&mounts);
                assert_eq!((mounted.read("f"), mounted.read("g")), (Some("first".into()), Some("second".into())));
                all.remove(&auth, ns, driver, &name("c")).await.unwrap();
            }
            // The trees go with the last namespace.
            let tree = world.root.path().join("snapshots").join(driver);
            let tree = tree.join(all.stat(&ns(), driver, &top).unwrap().dir.to_string());
            all.remove(&auth, &ns(), driver, &top).await.unwrap();
            assert!(tree.exists() && all.has_layer(driver, &chain[1]).unwrap());
            all.remove(&auth, &other, driver, &top).await.unwrap();
            assert!(!tree.exists() && !all.has_layer(driver, &chain[1]).unwrap());
            // A parent that is not there can't be linked to (M8).
            let layers = vec![link(1, None)];
            assert!(all.commit_layers(&auth, &ns(), driver, layers, None, |_| Ok(())).await.is_err());
        }
        world.kernel.stop().await;
    });
}
