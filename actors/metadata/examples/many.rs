//! Puts so many blobs and snapshots into the root directory of a daemon that doesn't run, to see what one makes of them:
//! `many ROOT COUNT [loose]`. A blob has eight bytes, a snapshot is active and empty, and all are held as if they had been made by
//! hand: but what is `loose` nothing keeps. Every thousandth has the label `rare=yes`.

use std::{fs, io, path::Path};

use cofferdam_kernel::{Kernel, Placement};
use cofferdam_metadata::{
    Metadata,
    records::{
        content::{self, Link},
        events,
        snapshots::{self, Kind, Snapshot},
    },
};
use cofferdam_types::{Algorithm, Authority, Digest, Error, Labels, Name, Namespace, Result};

const AT_ONCE: usize = 1000;
/// Where the numbers of those begin that nothing keeps.
const LOOSE: usize = 1 << 30;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = match &arguments[..] {
        [path, count] => count.parse().ok().map(|count| (path, count, false)),
        [path, count, word] if word == "loose" => count.parse().ok().map(|count| (path, count, true)),
        _ => None,
    };
    let (root, count, loose): (_, usize, _) =
        given.ok_or_else(|| Error::invalid("usage", "", "many ROOT COUNT [loose]"))?;
    let root = Path::new(root);
    let from = if loose { LOOSE } else { 0 };
    let files = || (from..from + count).try_for_each(|n| make(root, n as u64));
    files().map_err(|e| Error::io("many", root.display(), "making files", &e))?;
    actix_rt::System::new().block_on(async {
        let kernel = Kernel::new()?;
        let meta = Metadata::start(&kernel, Placement::Own, &root.join("meta.redb"))?;
        kernel.ready().await?;
        let ns = Namespace::default_namespace();
        let authority = if loose { Authority::system() } else { Authority::system().by_hand() };
        for first in (from..from + count).step_by(AT_ONCE) {
            let ns = ns.clone();
            let fill = move |tx: &mut cofferdam_metadata::Tx<'_>| {
                for n in first..(first + AT_ONCE).min(from + count) {
                    let rare = Labels::from([("rare".to_owned(), if n % 1000 == 0 { "yes" } else { "no" }.to_owned())]);
                    let mut link = Link::new(digest(n as u64), 8);
                    link.labels = rare.clone();
                    content::create(tx, &ns, link)?;
                    let key = Name::new(format!("many-{n}"))?;
                    let mut snapshot = Snapshot::new("overlay", key, Kind::Active, None, dir(n as u64));
                    snapshot.labels = rare;
                    snapshots::create(tx, &ns, snapshot)?;
                }
                // There is no journal that would take them over.
                events::outbox_trim(tx, u64::MAX)
            };
            meta.write(&authority, fill).await?;
        }
        kernel.stop().await;
        Ok(())
    })
}

fn digest(n: u64) -> Digest {
    Digest::of(Algorithm::Sha256, &n.to_be_bytes())
}

/// Far from those that a daemon gave.
fn dir(n: u64) -> u64 {
    (1 << 32) + n
}

fn make(root: &Path, n: u64) -> io::Result<()> {
    fs::write(root.join("content/blobs/sha256").join(digest(n).hex()), n.to_be_bytes())?;
    let dir = root.join("snapshots/overlay").join(dir(n).to_string());
    fs::create_dir_all(dir.join("fs"))?;
    fs::create_dir(dir.join("work"))
}
