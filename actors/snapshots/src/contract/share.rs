//! Copies that take no room where the file system can share blocks.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
};

use super::{Disk, Suite, World, own, run};

const MIB: usize = 1 << 20;

/// What FIEMAP says of a file: how many extents it has, and how many of these some other file has too.
fn extents(path: &Path) -> (usize, usize) {
    let output = Command::new("filefrag").arg("-v").arg(path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    // A line of an extent begins with its number.
    let lines = || {
        text.lines().filter(|line| line.split_once(':').is_some_and(|(number, _)| number.trim().parse::<u32>().is_ok()))
    };
    (lines().count(), lines().filter(|line| line.contains("shared")).count())
}

fn used(disk: &Disk) -> u64 {
    nix::unistd::syncfs(File::open(disk.path()).unwrap()).unwrap();
    let stat = nix::sys::statvfs::statvfs(&disk.path()).unwrap();
    (stat.blocks() - stat.blocks_free()) * stat.fragment_size()
}

#[test]
fn a_copy_of_the_native_driver_takes_no_room_on_btrfs() {
    run(async {
        let world = World::on(Disk::btrfs()).await;
        let (suite, disk) = (Suite { world: &world, driver: "native" }, world.disk.as_ref().unwrap());
        // What no file system makes smaller.
        let noise: Vec<u8> = (0..64 * MIB as u64 / 8)
            .scan(1_u64, |state, _| {
                *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                Some(*state)
            })
            .flat_map(u64::to_le_bytes)
            .collect();
        suite.layer("low", None, |m| fs::write(m.at("big"), &noise).unwrap()).await;
        let one = used(disk);
        assert!(one > noise.len() as u64, "{one}");
        let low = own(&world, "native", suite.stat("low").unwrap().dir).join("fs/big");
        // The tables lie there too, and grow by some. Once for what is written to, and once for what becomes a layer of its own.
        let active = suite.prepare("a", Some("low")).await.unwrap();
        suite.layer("high", Some("low"), |m| m.write("small", "x")).await;
        let grown = used(disk) - one;
        assert!(grown < noise.len() as u64 / 4, "two copies take {grown} bytes");
        for key in ["a", "high"] {
            let copy = own(&world, "native", suite.stat(key).unwrap().dir).join("fs/big");
            let (all, shared) = extents(&copy);
            assert!(all > 0 && all == shared, "{key}: of {all} extents {shared} are shared");
            assert_eq!(fs::read(copy).unwrap(), noise);
        }
        // Until one of them is written to, which is nobody else's affair.
        fs::write(active.at("big"), &noise[1..]).unwrap();
        assert!(used(disk) - one > noise.len() as u64 / 2);
        let copy = own(&world, "native", suite.stat("a").unwrap().dir).join("fs/big");
        assert_eq!((extents(&copy).1, fs::read(&low).unwrap() == noise), (0, true));
        world.kernel.stop().await;
    });
}
