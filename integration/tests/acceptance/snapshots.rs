//! The conformance suite of containerd's snapshotters, asked over the wire of each driver, with real mounts.

use std::{
    collections::BTreeMap,
    fs,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use cofferdam_client::{Namespace, SnapshotInfo, SnapshotKind, Snapshots};
use cofferdam_types::{Code, Labels, Mount, Result};

use crate::place::{DRIVERS, Place, end};

/// The snapshots of one driver.
pub struct Driver {
    pub name: &'static str,
    pub all: Snapshots,
}

pub fn drivers(namespace: &Namespace) -> [Driver; 2] {
    DRIVERS.map(|name| Driver { name, all: namespace.snapshots(name) })
}

/// A mounted snapshot, that nobody else sees; unmounted with its descriptor.
pub struct Mounted(OwnedFd);

impl Mounted {
    pub fn new(mounts: &[Mount]) -> Mounted {
        let [mount] = mounts else { panic!("one mount, not {mounts:?}") };
        Mounted(cofferdam_sys::mount::detached(mount).unwrap())
    }

    pub fn root(&self) -> PathBuf {
        format!("/proc/self/fd/{}/.", self.0.as_raw_fd()).into()
    }
}

impl Driver {
    pub async fn prepare(&self, key: &str, parent: &str) -> Result<Mounted> {
        let made = self.all.prepare(key, parent, &Labels::new());
        Ok(Mounted::new(&made.mounts().await?))
    }

    pub async fn view(&self, key: &str, parent: &str) -> Result<Mounted> {
        let made = self.all.view(key, parent, &Labels::new());
        Ok(Mounted::new(&made.mounts().await?))
    }

    async fn commit(&self, key: &str, name: &str) -> Result<SnapshotInfo> {
        let active = self.all.get(key);
        let committed = active.commit(name, &Labels::new());
        committed.info().await
    }

    async fn info(&self, key: &str) -> Result<SnapshotInfo> {
        let snapshot = self.all.get(key);
        snapshot.info().await
    }

    pub async fn remove(&self, key: &str) -> Result<()> {
        let snapshot = self.all.get(key);
        snapshot.remove().await
    }

    /// Commits what `change` does on top of `parent`.
    pub async fn layer(&self, name: &str, parent: &str, change: impl FnOnce(&Path)) {
        let key = format!("{name}-active");
        change(&self.prepare(&key, parent).await.unwrap().root());
        self.commit(&key, name).await.unwrap();
    }

    /// Does each step in a layer of its own, and all of them in a plain directory: both come to the same, before and after
    /// the last commit.
    async fn compare(&self, steps: &[fn(&Path)]) {
        let plain = tempfile::tempdir().unwrap();
        let mut parent = String::new();
        for (n, step) in steps.iter().enumerate() {
            step(plain.path());
            let key = format!("step-{n}-active");
            let mounted = self.prepare(&key, &parent).await.unwrap();
            step(&mounted.root());
            assert_eq!(tree(&mounted.root()), tree(plain.path()), "{}, active, {n}", self.name);
            drop(mounted);
            parent = format!("step-{n}");
            self.commit(&key, &parent).await.unwrap();
            let view = self.view("seen", &parent).await.unwrap();
            assert_eq!(tree(&view.root()), tree(plain.path()), "{}, committed, {n}", self.name);
            drop(view);
            self.remove("seen").await.unwrap();
        }
        for n in (0..steps.len()).rev() {
            self.remove(&format!("step-{n}")).await.unwrap();
        }
    }
}

/// Mode, owner and content of everything in a directory.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, u32, u32, Vec<u8>)> {
    let (mut found, mut left) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let content = if stat.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            let name = path.strip_prefix(root).unwrap().to_owned();
            found.insert(name, (stat.mode(), stat.uid(), stat.gid(), content));
            if stat.is_dir() {
                left.push(path);
            }
        }
    }
    found
}

pub fn write(root: &Path, path: &str, text: &str, mode: u32) {
    fs::write(root.join(path), text).unwrap();
    fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
}

fn dir(root: &Path, path: &str) {
    fs::create_dir(root.join(path)).unwrap();
    fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o700)).unwrap();
}

fn own(root: &Path, paths: &[&str], id: u32) {
    paths.iter().for_each(|path| chown(root.join(path), Some(id), Some(id)).unwrap());
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn code<T>(result: Result<T>) -> Option<Code> {
    result.err().map(|error| error.code)
}

pub async fn snapshotter_client_basic(place: &Place) {
    // Keys are no paths, whatever they look like.
    let (first, base, second, top) = ("/srv/preparing", "../committed", "/srv/next", "/");
    for driver in drivers(&place.namespace) {
        let begin = |root: &Path| {
            write(root, "foo", "foo\n", 0o777);
            ["a", "a/b", "a/b/c"].iter().for_each(|path| dir(root, path));
        };
        let change = |root: &Path| {
            write(root, "bar", "bar\n", 0o777);
            write(root, "foo", "bar\n", 0o777);
            fs::remove_dir_all(root.join("a/b")).unwrap();
        };
        let plain = tempfile::tempdir().unwrap();
        begin(plain.path());
        begin(&driver.prepare(first, "").await.unwrap().root());
        let committed = driver.commit(first, base).await.unwrap();
        assert_eq!(code(driver.info(first).await), Some(Code::NotFound), "its key is gone");
        assert_eq!((&*committed.key, &*committed.parent, committed.kind), (base, "", SnapshotKind::Committed));

        let mounted = driver.prepare(second, base).await.unwrap();
        assert_eq!(tree(&mounted.root()), tree(plain.path()));
        change(plain.path());
        change(&mounted.root());
        let active = driver.info(second).await.unwrap();
        assert_eq!((&*active.parent, active.kind), (base, SnapshotKind::Active));
        drop(mounted);
        let next = driver.commit(second, top).await.unwrap();
        assert_eq!((&*next.parent, next.kind), (base, SnapshotKind::Committed));

        let mut listed = driver.all.list::<&str>(&[]).all().await.unwrap();
        listed.retain(|info| !info.key.starts_with("sha256:"));
        assert_eq!(listed, [committed, next], "beside those of the image");
        assert_eq!(tree(&driver.view("seen", top).await.unwrap().root()), tree(plain.path()));
        driver.remove("seen").await.unwrap();
        let refused = driver.remove(base).await.unwrap_err();
        assert_eq!(refused.code, Code::FailedPrecondition);
        assert!(refused.message.ends_with("remove / first"), "{refused}");
        driver.remove(top).await.unwrap();
        driver.remove(base).await.unwrap();
    }
}

pub async fn snapshotter_client_stat_active(place: &Place) {
    for driver in drivers(&place.namespace) {
        write(&driver.prepare("preparing", "").await.unwrap().root(), "foo", "foo\n", 0o777);
        let info = driver.info("preparing").await.unwrap();
        assert_eq!((&*info.key, &*info.parent, info.kind), ("preparing", "", SnapshotKind::Active));
        assert_eq!(info.driver, driver.name);
        let elsewhere = place.elsewhere().await.snapshots(driver.name);
        assert_eq!(elsewhere.get("preparing").info().await.unwrap(), info, "seen by another client");
    }
}

pub async fn snapshotter_client_stat_comitted(place: &Place) {
    for driver in drivers(&place.namespace) {
        let given = labels(&[("given", "at the beginning")]);
        driver.all.prepare("preparing", "", &given).info().await.unwrap();
        let active = driver.info("preparing").await.unwrap();
        assert_eq!(active.labels, given);
        driver.commit("preparing", "committed").await.unwrap();
        let info = driver.info("committed").await.unwrap();
        assert_eq!((&*info.key, &*info.parent, info.kind), ("committed", "", SnapshotKind::Committed));
        assert!(info.labels.is_empty() && info.created > active.created && info.created == info.updated);
    }
}

pub async fn snapshotter_client_transitivity_test(place: &Place) {
    for driver in drivers(&place.namespace) {
        driver.layer("a", "", |root| write(root, "foo", "foo\n", 0o777)).await;
        driver.layer("b", "a", |root| write(root, "foo", "foo bar\n", 0o777)).await;
        let b = driver.info("b").await.unwrap();
        assert_eq!((&*b.parent, &*driver.info(&b.parent).await.unwrap().parent), ("a", ""));
        let text = fs::read_to_string(driver.view("seen", "b").await.unwrap().root().join("foo")).unwrap();
        assert_eq!(text, "foo bar\n");
    }
}

pub async fn snapshotter_client_preare_view_failingtest(place: &Place) {
    for driver in drivers(&place.namespace) {
        driver.layer("a", "", |_| {}).await;
        driver.prepare("active", "a").await.unwrap();
        driver.view("view", "a").await.unwrap();
        for taken in ["active", "view", "a"] {
            assert_eq!(code(driver.prepare(taken, "a").await), Some(Code::AlreadyExists), "{taken}");
            assert_eq!(code(driver.view(taken, "a").await), Some(Code::AlreadyExists), "{taken}");
        }
    }
}

pub async fn snapshotter_client_update(place: &Place) {
    for driver in drivers(&place.namespace) {
        driver.layer("c1", "", |_| {}).await;
        driver.layer("c2", "c1", |_| {}).await;
        driver.prepare("a1", "c2").await.unwrap();
        driver.prepare("a2", "").await.unwrap();
        driver.view("v1", "c2").await.unwrap();
        driver.view("v2", "").await.unwrap();
        for key in ["c1", "c2", "a1", "a2", "v1", "v2"] {
            let snapshot = driver.all.get(key);
            let before = snapshot.info().await.unwrap();
            assert_eq!((before.created, &before.labels), (before.updated, &Labels::new()), "{key}");
            let expect = async |given: Labels, fields: &[&str], then: &[(&str, &str)], earlier: &SnapshotInfo| {
                let after = snapshot.update(&given, fields).await.unwrap();
                assert!(after.updated > earlier.updated, "{key}");
                let others = SnapshotInfo { labels: labels(then), updated: after.updated, ..earlier.clone() };
                assert_eq!(after, others, "{key}: nothing else has changed");
                assert_eq!(snapshot.info().await.unwrap(), after);
                after
            };
            let given = [("l1", "1"), ("l2", "2"), ("l3", "3")];
            let after = expect(labels(&given), &[], &given, &before).await;
            let some = labels(&[("l1", "updated"), ("l3", "not named")]);
            let left = [("l1", "updated"), ("l3", "3")];
            let after = expect(some, &["labels.l1", "labels.l2"], &left, &after).await;
            let after = expect(labels(&[("l4", "4")]), &["labels"], &[("l4", "4")], &after).await;
            let refused = snapshot.update(&labels(&[("l4", "5")]), &["labels.l4", "parent"]).await;
            assert_eq!(code(refused), Some(Code::InvalidArgument), "{key}");
            assert_eq!(snapshot.info().await.unwrap(), after, "{key}: of that nothing was done");
            let long = labels(&[("l5", &"5".repeat(5000))]);
            assert_eq!(code(snapshot.update(&long, &["labels.l5"]).await), Some(Code::InvalidArgument));
        }
        let found = driver.all.list(&["labels.l4==4,kind==view"]).all().await.unwrap();
        assert_eq!(found.iter().map(|info| &*info.key).collect::<Vec<_>>(), ["v1", "v2"]);
    }
}

pub async fn snapshotter_client_remove(place: &Place) {
    for driver in drivers(&place.namespace) {
        for _ in 0..2 {
            driver.prepare("key", "").await.unwrap();
            driver.remove("key").await.unwrap();
            driver.view("key", "").await.unwrap();
            driver.remove("key").await.unwrap();
        }
        driver.layer("parent", "", |_| {}).await;
        driver.layer("key", "parent", |root| write(root, "old", "x", 0o644)).await;
        driver.remove("key").await.unwrap();
        driver.remove("parent").await.unwrap();
        let mounted = driver.prepare("key", "").await.unwrap();
        assert!(tree(&mounted.root()).is_empty(), "nothing of what had that key before");
        drop(mounted);
        assert_eq!(driver.commit("key", "parent").await.unwrap().parent, "");
        assert_eq!(code(driver.remove("key").await), Some(Code::NotFound));
    }
}

/// The same size and the same time of change: whoever compares these alone misses it.
fn hosts(root: &Path, text: &str) {
    write(root, "etc/hosts", text, 0o644);
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::File::options().write(true).open(root.join("etc/hosts")).unwrap().set_modified(then).unwrap();
}

pub async fn snapshotter_client_layer_fileupdate(place: &Place) {
    let first = |root: &Path| {
        dir(root, "etc");
        hosts(root, "mydomain 10.0.0.1");
        write(root, "etc/profile", "PATH=/usr/bin", 0o644);
    };
    let second = |root: &Path| {
        hosts(root, "mydomain 10.0.0.2");
        write(root, "etc/profile", "PATH=/usr/bin", 0o666);
        dir(root, "root");
        write(root, "root/.bashrc", "PATH=/usr/sbin:/usr/bin", 0o644);
    };
    for driver in drivers(&place.namespace) {
        for _ in 0..2 {
            driver.compare(&[first, second]).await;
        }
    }
}

pub async fn snapshotter_client_remove_directory_in_lower_layer(place: &Place) {
    let first = |root: &Path| {
        dir(root, "lib");
        write(root, "lib/hidden", "", 0o644);
    };
    let second = |root: &Path| {
        fs::remove_dir_all(root.join("lib")).unwrap();
        dir(root, "lib");
        write(root, "lib/not-hidden", "", 0o644);
    };
    let third = |root: &Path| write(root, "lib/newfile", "", 0o644);
    for driver in drivers(&place.namespace) {
        driver.compare(&[first, second, third]).await;
    }
}

pub async fn snapshotter_client_chown(place: &Place) {
    let first = |root: &Path| {
        ["opt", "opt/a", "opt/a/b"].iter().for_each(|path| dir(root, path));
        write(root, "opt/a/b/file.txt", "hello", 0o644);
    };
    let second = |root: &Path| own(root, &["opt", "opt/a", "opt/a/b", "opt/a/b/file.txt"], 1);
    for driver in drivers(&place.namespace) {
        driver.compare(&[first, second]).await;
    }
}

pub async fn snapshotter_client_directory_permission_on_commit(place: &Place) {
    let first = |root: &Path| {
        ["dir1", "dir2", "dir3", "dir4", "dir5"].iter().for_each(|path| dir(root, path));
        write(root, "dir4/f1", "...", 0o644);
        write(root, "dir5/f1", "...", 0o644);
        own(root, &["dir1", "dir2", "dir3", "dir5", "dir5/f1"], 1);
    };
    let second = |root: &Path| {
        own(root, &["dir2"], 0);
        fs::remove_dir(root.join("dir3")).unwrap();
        own(root, &["dir4", "dir4/f1"], 1);
    };
    let third = |root: &Path| {
        dir(root, "dir3");
        fs::remove_dir_all(root.join("dir5")).unwrap();
        dir(root, "dir5");
        own(root, &["dir3", "dir5"], 1);
    };
    for driver in drivers(&place.namespace) {
        driver.compare(&[first, second, third]).await;
    }
}

pub async fn snapshotter_client_remove_intermediate_snapshot(place: &Place) {
    for driver in drivers(&place.namespace) {
        driver.layer("base", "", |_| {}).await;
        driver.layer("middle", "base", |_| {}).await;
        driver.prepare("top", "middle").await.unwrap();
        for below in ["middle", "base"] {
            assert_eq!(code(driver.remove(below).await), Some(Code::FailedPrecondition), "{below}");
        }
        for key in ["top", "middle", "base"] {
            driver.remove(key).await.unwrap();
        }
    }
}

pub async fn snapshotter_client_deleted_files_in_child_snapshot(place: &Place) {
    let first = |root: &Path| {
        write(root, "foo", "foo\n", 0o777);
        write(root, "foobar", "foobar\n", 0o777);
    };
    let second = |root: &Path| fs::remove_file(root.join("foobar")).unwrap();
    for driver in drivers(&place.namespace) {
        driver.compare(&[first, second, |_| {}]).await;
    }
}

pub async fn snapshotter_client_move_file_from_lower_layer(place: &Place) {
    let first = |root: &Path| {
        dir(root, "dir1");
        ["f1", "f2", "f3"].iter().for_each(|name| write(root, &format!("dir1/{name}"), name, 0o644));
    };
    let second = |root: &Path| {
        dir(root, "dir2");
        write(root, "dir2/f1", "f1", 0o644);
        fs::hard_link(root.join("dir1/f2"), root.join("dir2/f2")).unwrap();
        ["dir1/f1", "dir1/f2"].iter().for_each(|path| fs::remove_file(root.join(path)).unwrap());
        fs::rename(root.join("dir1/f3"), root.join("dir2/f3")).unwrap();
    };
    for driver in drivers(&place.namespace) {
        driver.compare(&[first, second]).await;
    }
}

pub async fn snapshotter_client_view_readonly(place: &Place) {
    for driver in drivers(&place.namespace) {
        driver.layer("one", "", |root| write(root, "foo", "x", 0o777)).await;
        driver.layer("two", "one", |root| write(root, "bar", "x", 0o777)).await;
        for (key, parent) in [("on nothing", ""), ("on one", "one"), ("on two", "two")] {
            let view = driver.view(key, parent).await.unwrap();
            let refused = fs::write(view.root().join("baz"), "x").unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EROFS), "{}, {key}: {refused}", driver.name);
            assert_eq!(driver.info(key).await.unwrap().kind, SnapshotKind::View);
        }
    }
}

pub async fn snapshotter_client_stat_in_walk(place: &Place) {
    for driver in drivers(&place.namespace) {
        driver.layer("walk-1", "", |_| {}).await;
        driver.layer("walk-2", "walk-1", |_| {}).await;
        driver.prepare("walk-3", "walk-2").await.unwrap();
        driver.view("walk-4", "walk-2").await.unwrap();
        let mut walk = driver.all.list(&["key~=^walk-"]);
        let mut seen = 0;
        while let Some(info) = walk.next().await.unwrap() {
            assert_eq!(driver.info(&info.key).await.unwrap(), info);
            seen += 1;
        }
        assert_eq!(seen, 4);
    }
}

/// What containerd's tests of its metadata store verify, as far as it can be seen from outside.
pub async fn what_a_snapshot_refuses(place: &Place) {
    for driver in drivers(&place.namespace) {
        driver.layer("base", "", |_| {}).await;
        driver.prepare("active", "base").await.unwrap();
        driver.view("view", "base").await.unwrap();
        let before = driver.all.list::<&str>(&[]).all().await.unwrap();
        let new = async |parent: &str| driver.prepare("new", parent).await.map(drop);
        let commit = async |key: &str, name: &str| driver.commit(key, name).await.map(drop);
        let mounts = async |key: &str| {
            let snapshot = driver.all.get(key);
            snapshot.mounts().await.map(drop)
        };
        let labelled = async |labels: &Labels| {
            let made = driver.all.view("new", "", labels);
            made.info().await.map(drop)
        };
        for (what, expected, result) in [
            ("a parent that is missing", Code::NotFound, new("missing").await),
            ("an active parent", Code::InvalidArgument, new("active").await),
            ("a view as parent", Code::InvalidArgument, new("view").await),
            ("no key", Code::InvalidArgument, driver.prepare("", "").await.map(drop)),
            ("a key with a NUL byte", Code::InvalidArgument, driver.view("a\0b", "").await.map(drop)),
            ("a key that is too long", Code::InvalidArgument, driver.view(&"x".repeat(2000), "").await.map(drop)),
            ("a label that is too long", Code::InvalidArgument, labelled(&labels(&[("l", &"x".repeat(5000))])).await),
            ("mounts of a committed one", Code::FailedPrecondition, mounts("base").await),
            ("mounts of none", Code::NotFound, mounts("missing").await),
            ("a commit of none", Code::NotFound, commit("missing", "new").await),
            ("a commit of a committed one", Code::FailedPrecondition, commit("base", "new").await),
            ("a commit of a view", Code::FailedPrecondition, commit("view", "new").await),
            ("a commit under a name that is taken", Code::AlreadyExists, commit("active", "base").await),
            ("a commit under its own key", Code::AlreadyExists, commit("active", "active").await),
            ("a commit under no name", Code::InvalidArgument, commit("active", "").await),
            ("a removal of none", Code::NotFound, driver.remove("missing").await),
            ("a removal from beneath others", Code::FailedPrecondition, driver.remove("base").await),
        ] {
            let error = result.expect_err(what);
            assert_eq!(error.code, expected, "{}, {what}: {error}", driver.name);
        }
        assert_eq!(driver.all.list::<&str>(&[]).all().await.unwrap(), before, "nothing was made");
    }
    let unknown = place.namespace.snapshots("zfs");
    assert_eq!(code(unknown.prepare("new", "", &Labels::new()).info().await), Some(Code::InvalidArgument));
}

pub async fn snapshot_usage(place: &Place) {
    for driver in drivers(&place.namespace) {
        let usage = async |key: &str| {
            let snapshot = driver.all.get(key);
            snapshot.usage().await.unwrap()
        };
        let mounted = driver.prepare("active", "").await.unwrap();
        let empty = usage("active").await;
        assert_eq!(empty.1, 1, "its root");
        fs::write(mounted.root().join("file"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(mounted.root().join("file"), mounted.root().join("again")).unwrap();
        fs::File::open(mounted.root().join("file")).unwrap().sync_all().unwrap();
        let full = usage("active").await;
        assert!(full.1 == 2 && (1 << 20..2 << 20).contains(&(full.0 - empty.0)), "{empty:?} {full:?}");
        drop(mounted);
        driver.commit("active", "base").await.unwrap();
        assert_eq!(usage("base").await, full);
        driver.view("view", "base").await.unwrap();
        assert_eq!(usage("view").await, (0, 0));
    }
}

pub async fn snapshot_of_a_container(place: &Place) {
    let (container, task) = place.asleep().await;
    let info = container.info().await.unwrap();
    let all = place.namespace.snapshots(&info.driver);
    let root = all.get(&info.snapshot_key);
    let before = root.info().await.unwrap();
    let removed = root.remove().await.unwrap_err();
    let committed = root.commit("stolen", &Labels::new()).info().await.unwrap_err();
    for error in [removed, committed] {
        assert_eq!((error.code, &*error.id), (Code::FailedPrecondition, "box"), "{error}");
        assert!(error.message.starts_with("is the root of container box"), "{error}");
    }
    assert_eq!(root.info().await.unwrap(), before);
    // What it lies on stays as well, and it may be looked at beside it.
    assert_eq!(code(all.get(&before.parent).remove().await), Some(Code::FailedPrecondition));
    let seen = all.view("seen", &before.parent, &Labels::new());
    assert!(Mounted::new(&seen.mounts().await.unwrap()).root().join("bin/busybox").exists());
    end(&task).await;
    container.remove(false).await.unwrap();
    assert_eq!(code(root.info().await), Some(Code::NotFound));
}
