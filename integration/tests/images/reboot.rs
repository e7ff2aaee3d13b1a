//! A pull that the power's end meets: the next goes on from what the disk had taken.

use cofferdam_client::PullOptions;
use cofferdam_integration::{Faults, Powered, Registry, bounded, until_async};

use crate::support::craft::{Picture, sha, shelf};

const MIB: u64 = 1 << 20;
/// After so many bytes of a layer they are made durable (docs/format.md, "Ingests").
const STEP: u64 = 64 * MIB;
/// Where the registry stops.
const HALT: u64 = STEP + 8 * MIB;
const LAYER: usize = 104 << 20;
const DISK: usize = 512;

/// A power cut that takes everything that wasn't flushed, and one that takes nothing.
fn cut(mkfs: &str, unflushed_stays: bool) {
    let picture = Picture::sample("reboot", LAYER);
    let (registry, dir) = (Registry::start(&[], &[]), tempfile::tempdir().unwrap());
    shelf(dir.path(), &[("picture", &picture)]);
    registry.push(dir.path(), &["picture"]);
    let proxy = Faults::before(registry.host());
    let (layer, size) = (sha(&picture.layers[0]).to_string(), picture.layers[0].len() as u64);
    let large = layer.clone();
    // Whichever part it is asked for: nothing of what lies behind that place comes.
    proxy.rule(move |asked| {
        let first = asked.range.as_deref()?.strip_prefix("bytes=")?.split('-').next()?.parse::<u64>().ok()?;
        asked.blob(&large).then(|| cofferdam_integration::Fault::Stall(HALT.saturating_sub(first)))
    });
    let options =
        |fetch_only| PullOptions { reference: proxy.reference("picture"), fetch_only, ..PullOptions::default() };

    let mut powered = Powered::start(DISK, mkfs, &[]);
    powered.platter.record();
    bounded(async {
        let ns = powered.daemon.open().await;
        let job = ns.images().pull(&options(true));
        until_async("the disk has the first step of it", async || {
            let info = job.info().await.unwrap();
            assert_eq!(info.state, "running", "{info:?}");
            (powered.platter.flushed() as u64 >= STEP && proxy.sent(&layer) >= HALT).then_some(())
        })
        .await;
    });
    let record = powered.platter.recorded();
    powered.cut(record.cut(record.len(), || unflushed_stays));
    drop(record);

    proxy.rule(|_| None);
    bounded(async {
        let ns = powered.daemon.open().await;
        let name = ns.images().pull(&options(false)).wait().await.unwrap().remove(0);
        let again = proxy.sent(&layer);
        println!("{mkfs}: {again} of {size} bytes came after the power cut");
        // At most what wasn't synced of it, which is less than a step; and what the proxy had kept back.
        assert!(again <= size - STEP + MIB, "{again} of {size}: {:#?}", proxy.asked());
        assert!(ns.images().get(&name).detail("").await.unwrap().unpacked);
        assert!(ns.content().ingests::<&str>(&[]).all().await.unwrap().is_empty());
    });
    // It is what was pushed, and the daemon says so too.
    let exported = powered.daemon.coffer(&["content", "get", &layer]);
    assert!(exported.stdout == picture.layers[0], "{:?}", String::from_utf8_lossy(&exported.stderr));
    let checked = powered.daemon.coffer(&["system", "check"]);
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn what_the_disk_had_taken_is_not_fetched_again_after_a_power_cut_on_ext4() {
    cut("mkfs.ext4", false);
}

#[test]
fn what_the_disk_had_taken_is_not_fetched_again_after_a_power_cut_on_btrfs() {
    cut("mkfs.btrfs", true);
}
