//! A disk that is read-only: what is on record is served, and nothing is written.

use std::path::Path;

use cofferdam_kernel::{Kernel, Placement};
use cofferdam_types::{Authority, Code, Labels, Namespace};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{Metadata, records::namespaces};

/// A directory to which nothing can be written.
struct Frozen<'a>(&'a Path);

impl Frozen<'_> {
    fn new(dir: &Path) -> Frozen<'_> {
        let none = None::<&str>;
        mount(Some(dir), dir, none, MsFlags::MS_BIND, none).unwrap();
        mount(none, dir, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).unwrap();
        Frozen(dir)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        umount2(self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

async fn write(meta: &Metadata, name: &str) -> cofferdam_types::Result<()> {
    let name = Namespace::new(name).unwrap();
    let create = move |tx: &mut crate::Tx<'_>| namespaces::create(tx, &name, &Labels::new()).map(drop);
    meta.write(&Authority::system(), create).await
}

async fn only_read(meta: &Metadata) {
    let names = namespaces::names(&meta.read().unwrap()).unwrap();
    assert!(names.contains(&Namespace::new("kept").unwrap()), "{names:?}");
    for refused in [meta.writable(), write(meta, "new").await, meta.probe().await] {
        let error = refused.unwrap_err();
        assert!(error.code == Code::FailedPrecondition && !error.comes_back(), "{error}");
        assert!(error.message.contains("read-only") && error.message.contains("restart the daemon"), "{error}");
    }
}

#[test]
fn what_is_on_a_disk_that_is_read_only_is_served() {
    actix_rt::System::new().block_on(async {
        let (dir, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let start = |dir: &Path| {
            let kernel = Kernel::new().unwrap();
            let meta = Metadata::start(&kernel, Placement::Own, &dir.join("meta.redb")).unwrap();
            (kernel, meta)
        };
        let (kernel, meta) = start(dir.path());
        kernel.ready().await.unwrap();
        write(&meta, "kept").await.unwrap();
        // As a kill leaves it.
        std::fs::copy(dir.path().join("meta.redb"), killed.path().join("meta.redb")).unwrap();
        // It turns so while the daemon runs, and the file has to be opened anew.
        let frozen = Frozen::new(dir.path());
        kernel.poison("metadata").unwrap();
        while meta.writable().is_ok() {
            actix_rt::task::yield_now().await;
        }
        kernel.ready().await.unwrap();
        only_read(&meta).await;
        kernel.stop().await;
        drop((kernel, meta, frozen));
        // And it is so when one starts.
        for dir in [dir.path(), killed.path()] {
            let before = std::fs::read(dir.join("meta.redb")).unwrap();
            let frozen = Frozen::new(dir);
            let (kernel, meta) = start(dir);
            kernel.ready().await.unwrap();
            only_read(&meta).await;
            kernel.stop().await;
            drop((kernel, meta, frozen));
            assert!(std::fs::read(dir.join("meta.redb")).unwrap() == before);
            let (kernel, meta) = start(dir);
            kernel.ready().await.unwrap();
            write(&meta, "afterwards").await.unwrap();
            kernel.stop().await;
        }
    });
}
