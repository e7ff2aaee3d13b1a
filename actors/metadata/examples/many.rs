//! Puts so many blobs and snapshots on record, in the tables of a daemon that doesn't run, to see what one makes of them:
//! `many META.REDB COUNT`. There are no files behind them, and all are held as if they had been made by hand. Every
//! thousandth has the label `rare=yes`.

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

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = match &arguments[..] {
        [path, count] => count.parse().ok().map(|count| (path.clone(), count)),
        _ => None,
    };
    let (path, count) = given.ok_or_else(|| Error::invalid("usage", "", "many META.REDB COUNT"))?;
    actix_rt::System::new().block_on(async {
        let kernel = Kernel::new()?;
        let meta = Metadata::start(&kernel, Placement::Own, path.as_ref())?;
        kernel.ready().await?;
        let ns = Namespace::default_namespace();
        let by_hand = Authority::system().by_hand();
        for first in (0..count).step_by(AT_ONCE) {
            let ns = ns.clone();
            let fill = move |tx: &mut cofferdam_metadata::Tx<'_>| {
                for n in first..(first + AT_ONCE).min(count) {
                    let rare = Labels::from([("rare".to_owned(), if n % 1000 == 0 { "yes" } else { "no" }.to_owned())]);
                    let mut link = Link::new(Digest::of(Algorithm::Sha256, &n.to_be_bytes()), 1000);
                    link.labels = rare.clone();
                    content::create(tx, &ns, link)?;
                    let key = Name::new(format!("many-{n}"))?;
                    let mut snapshot = Snapshot::new("overlay", key, Kind::Active, None, (1 << 32) + n as u64);
                    snapshot.labels = rare;
                    snapshots::create(tx, &ns, snapshot)?;
                }
                // There is no journal that would take them over.
                events::outbox_trim(tx, u64::MAX)
            };
            meta.write(&by_hand, fill).await?;
        }
        kernel.stop().await;
        Ok(())
    })
}
