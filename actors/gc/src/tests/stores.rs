//! Collections of real stores, with a row in them that nobody can read.

use std::{fs, path::Path};

use cofferdam_content::Content;
use cofferdam_kernel::{Kernel, Placement};
use cofferdam_metadata::{Metadata, records::namespaces};
use cofferdam_snapshots::Snapshots;
use cofferdam_types::{Algorithm, Authority, Digest, Labels, Name, Namespace};

use crate::collect::Stores;

async fn start(root: &Path) -> (Kernel, Stores) {
    let kernel = Kernel::new().unwrap();
    let meta = Metadata::start(&kernel, Placement::Own, &root.join("meta.redb")).unwrap();
    fs::create_dir_all(root.join("content")).unwrap();
    let dir = fs::File::open(root.join("content")).unwrap().into();
    let content = Content::start(&kernel, Placement::Shared("test"), meta.clone(), dir).unwrap();
    let settings = Default::default();
    let snapshots = Snapshots::start(&kernel, Placement::Shared("test"), meta.clone(), root, settings).unwrap();
    kernel.ready().await.unwrap();
    (kernel, Stores { meta, content, snapshots })
}

/// Writes over rows of a file that no daemon has open.
fn spoil(path: &Path, rows: &[(&'static str, String)]) {
    let database = redb::Database::open(path).unwrap();
    let write = database.begin_write().unwrap();
    for (table, key) in rows {
        let table = redb::TableDefinition::<&[u8], &[u8]>::new(table);
        let before = write.open_table(table).unwrap().insert(key.as_bytes(), &b"\xff"[..]).unwrap().is_some();
        assert!(before, "{key:?} was there");
    }
    write.commit().unwrap();
}

#[test]
fn a_row_that_cant_be_read_is_told_and_the_rest_is_collected() {
    let root = tempfile::tempdir().unwrap();
    actix_rt::System::new().block_on(async {
        let (auth, other) = (Authority::system(), Namespace::new("other").unwrap());
        let here = Namespace::default_namespace();
        let (kernel, stores) = start(root.path()).await;
        let made = other.clone();
        stores.meta.write(&auth, move |tx| namespaces::create(tx, &made, &Labels::new()).map(drop)).await.unwrap();
        let put = async |ns: &Namespace, text: &str| {
            let bytes = text.as_bytes().to_vec();
            stores.content.put_bytes(&auth, ns, Algorithm::Sha256, bytes, Labels::new()).await.unwrap()
        };
        let mut blobs: Vec<Digest> = Vec::new();
        for n in 0..20 {
            blobs.push(put(&here, &format!("loose {n}")).await);
        }
        let (hidden, seen) = (put(&other, "hidden").await, put(&other, "seen").await);
        kernel.stop().await;
        drop(stores);
        // Its count of links, which are counted anew when it goes; and a blob's own row, of which nobody knows what it refers to.
        let rows = [("blobs", blobs[7].to_string()), ("content", format!("other\0{hidden}"))];
        spoil(&root.path().join("meta.redb"), &rows);

        let (kernel, stores) = start(root.path()).await;
        let theirs = stores.clone();
        let rehearsed = tokio::task::spawn_blocking(move || theirs.rehearse()).await.unwrap().unwrap();
        let theirs = stores.clone();
        let (report, _) = tokio::task::spawn_blocking(move || theirs.collect()).await.unwrap().unwrap();
        for (report, when) in [(rehearsed, "rehearsed"), (report, "done")] {
            assert_eq!((report.blobs, report.unreadable.len()), (20, 1), "{when}: {:?}", report.unreadable);
            assert!(report.unreadable[0].contains(&hidden.to_string()), "{when}: {:?}", report.unreadable);
        }
        assert!(blobs.iter().all(|blob| stores.content.info(&here, blob).is_err()));
        assert!(stores.content.info(&other, &seen).is_ok(), "the row that can't be read may have referred to it");
        kernel.stop().await;
    });
}

/// What lies behind it goes in as few commits as ever.
#[test]
fn a_row_that_cant_be_read_slows_only_what_goes_with_it() {
    let root = tempfile::tempdir().unwrap();
    actix_rt::System::new().block_on(async {
        let (auth, here) = (Authority::system(), Namespace::default_namespace());
        let (kernel, stores) = start(root.path()).await;
        for n in 10..34 {
            let key = Name::new(format!("loose-{n}")).unwrap();
            stores.snapshots.prepare(&auth, &here, "overlay", &key, None, Labels::new()).await.unwrap();
        }
        let odd = Name::new("loose-11").unwrap();
        let dir = stores.snapshots.stat(&here, "overlay", &odd).unwrap().dir;
        kernel.stop().await;
        drop(stores);
        spoil(&root.path().join("meta.redb"), &[("dirs", format!("overlay\0{dir:016x}"))]);

        let (kernel, stores) = start(root.path()).await;
        let theirs = stores.clone();
        let (report, _) = tokio::task::spawn_blocking(move || theirs.collect()).await.unwrap().unwrap();
        assert_eq!((report.snapshots, report.unreadable.len()), (23, 1), "{:?}", report.unreadable);
        assert!(stores.snapshots.stat(&here, "overlay", &odd).is_ok());
        // The one before it alone, and 22 behind it.
        assert_eq!(report.commits, 4);
        kernel.stop().await;
    });
}
