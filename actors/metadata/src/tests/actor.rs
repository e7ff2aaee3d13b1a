//! The writer as an actor: batches form by themselves, and a crash is passed over.

use std::{future::Future, time::Duration};

use cofferdam_kernel::{Health, Kernel, Placement};
use cofferdam_types::Descriptor;
use tokio::time::timeout;

use super::{disk::Disk, *};
use crate::{Metadata, messages::Patience, records::images};

fn with_kernel<F: Future<Output = ()>>(test: impl FnOnce(Kernel) -> F) {
    actix_rt::System::new().block_on(async {
        let kernel = Kernel::new().unwrap();
        timeout(Duration::from_secs(60), test(kernel.clone())).await.expect("the test hangs");
        kernel.stop().await;
    });
}

/// Tables on a disk that can be watched and can fail.
async fn on_disk(kernel: &Kernel) -> (Disk, Metadata) {
    let disk = Disk::default();
    let opened = disk.clone();
    let opener = Opener::backend(u64::MAX, move || opened.clone());
    let meta = Metadata::start_with(kernel, Placement::Own, opener).unwrap();
    kernel.ready().await.unwrap();
    (disk, meta)
}

async fn put(meta: &Metadata, text: &str) -> Result<()> {
    meta.write(&Authority::system(), image(text)).await
}

fn image(text: &str) -> impl Fn(&mut Tx<'_>) -> Result<()> + Send + 'static {
    let key = name(text);
    move |tx| {
        let target = Descriptor::new("application/json", digest("x"), 1);
        images::create(tx, &default(), images::Image::new(key.clone(), target)).map(drop)
    }
}

async fn up_again(kernel: &Kernel, meta: &Metadata, restarts: u64) {
    let mut health = meta.health();
    while kernel.statuses()[0].restarts < restarts || *health.borrow_and_update() != Health::Up {
        health.changed().await.unwrap();
    }
}

#[test]
fn writes_are_answered_once_they_are_visible() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    with_kernel(|kernel| async move {
        let meta = Metadata::start(&kernel, Placement::Own, &path).unwrap();
        meta.read().unwrap();
        kernel.ready().await.unwrap();
        let names: Vec<_> = (0..200).map(|n| format!("image-{n:03}")).collect();
        let results = futures::future::join_all(names.iter().map(|name| put(&meta, name))).await;
        assert!(results.iter().all(Result::is_ok));
        assert_eq!(images::list(&meta.read().unwrap(), &default(), None, 999).unwrap().len(), 200);
        assert_eq!(*meta.outbox().borrow(), 201);
        code(put(&meta, "image-000").await, Code::AlreadyExists);
        meta.probe().await.unwrap();
        let (other, handle) = (meta.clone(), tokio::sync::oneshot::channel());
        std::thread::spawn(move || handle.0.send(other.write_blocking(&Authority::system(), |tx| Ok(tx.now()))));
        assert!(handle.1.await.unwrap().unwrap().0 > 0);
    });
}

#[test]
fn a_lazy_write_shares_the_commit_of_the_next_one_or_has_its_own() {
    with_kernel(|kernel| async move {
        let (disk, meta) = on_disk(&kernel).await;
        // Until it has the length that it needs, growing it syncs as well.
        for n in 0..8 {
            put(&meta, &format!("before-{n}")).await.unwrap();
        }
        let before = disk.syncs();
        put(&meta, "alone").await.unwrap();
        let one = disk.syncs() - before;
        let system = Authority::system();
        meta.write_lazily(&system, image("lazy")).await.unwrap();
        assert_eq!(disk.syncs() - before, 2 * one, "one commit takes {one}");
        // More patience than the test has.
        let patience = Patience::For(Duration::from_secs(3600));
        let lazy = ["first", "second"].map(|text| meta.write_within(patience, &system, image(text)));
        let next = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!(disk.syncs() - before, 2 * one, "what is lazy goes alone");
            // In the order in which they came: it finds what they wrote.
            meta.write(&system, |tx| images::get(tx, &default(), "second").map(drop)).await
        };
        let (lazy, next) = futures::future::join(futures::future::join_all(lazy), next).await;
        lazy.into_iter().chain([next]).for_each(|done| done.unwrap());
        assert_eq!(disk.syncs() - before, 3 * one);
    });
}

#[test]
fn what_waits_for_company_is_written_before_the_writer_stops() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    let opened = path.clone();
    with_kernel(|kernel| async move {
        let meta = Metadata::start(&kernel, Placement::Own, &opened).unwrap();
        kernel.ready().await.unwrap();
        let (system, patience) = (Authority::system(), Patience::For(Duration::from_secs(3600)));
        let lazy = meta.write_within(patience, &system, image("lazy"));
        // It is in the queue before the stop is. Whether there is somebody left to hear of it is another matter.
        let _ = futures::future::join(lazy, kernel.stop()).await;
    });
    with_kernel(|kernel| async move {
        let meta = Metadata::start(&kernel, Placement::Own, &path).unwrap();
        images::get(&meta.read().unwrap(), &default(), "lazy").unwrap();
    });
}

#[test]
fn a_crash_of_the_writer_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    with_kernel(|kernel| async move {
        let meta = Metadata::start(&kernel, Placement::Own, &path).unwrap();
        kernel.ready().await.unwrap();
        put(&meta, "before").await.unwrap();
        let view = meta.read().unwrap();
        let mut outbox = meta.outbox();
        kernel.poison("metadata").unwrap();
        up_again(&kernel, &meta, 1).await;
        put(&meta, "after").await.unwrap();
        assert_eq!(images::list(&meta.read().unwrap(), &default(), None, 9).unwrap().len(), 2);
        assert_eq!(*outbox.borrow_and_update(), 3, "the same channel goes on");
        code(images::list(&view, &default(), None, 9), Code::Unavailable);
    });
}

#[test]
fn a_disk_that_fails_for_long_brings_the_slot_down_and_back() {
    with_kernel(|kernel| async move {
        let (disk, meta) = on_disk(&kernel).await;
        put(&meta, "before").await.unwrap();
        disk.cut_after(1);
        put(&meta, "lost").await.unwrap_err();
        let mut health = meta.health();
        health.wait_for(|h| matches!(h, Health::Down { .. })).await.unwrap();
        code(meta.read().map(drop), Code::Unavailable);
        code(put(&meta, "refused").await, Code::Unavailable);
        disk.mend();
        up_again(&kernel, &meta, 1).await;
        put(&meta, "after").await.unwrap();
        images::get(&meta.read().unwrap(), &default(), "before").unwrap();
    });
}

/// How long it waits before that is [`crate::actor`]'s to say; that it shares the commit of who comes meanwhile, the test of lazy
/// writes shows.
#[test]
fn what_waits_for_quiet_goes_alone_where_nobody_comes() {
    with_kernel(|kernel| async move {
        let (disk, meta) = on_disk(&kernel).await;
        put(&meta, "before").await.unwrap();
        let before = disk.syncs();
        meta.write_patiently(&Authority::system(), image("patient")).await.unwrap();
        assert!(disk.syncs() > before);
        images::get(&meta.read().unwrap(), &default(), "patient").unwrap();
    });
}
