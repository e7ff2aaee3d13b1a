//! A disk that somebody else has filled: whatever is to be removed can be, and an error says whose the bytes are.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use cofferdam_integration::{BUSYBOX, Daemon, bounded, btrfs_disk, fill, images, small_disk, small_disk_with, until};
use cofferdam_types::{Code, Error, Labels};
use nix::{
    sys::{signal::Signal, statvfs::statvfs},
    unistd::Pid,
};

use crate::{idle, json, ok, run::shim_of, say};

/// Somebody who takes all room there is, whenever he is asked to.
struct Neighbour {
    dirs: Vec<PathBuf>,
}

impl Neighbour {
    /// Makes directories while there is room for these: `lost+found` is nobody's business.
    fn new(daemon: &Daemon) -> Neighbour {
        Neighbour::patient(daemon, 20)
    }

    /// Who is asked so many times.
    fn patient(daemon: &Daemon, times: usize) -> Neighbour {
        let dirs: Vec<_> = (0..times).map(|n| daemon.root().join(format!("lost+found/{n}"))).collect();
        dirs.iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
        Neighbour { dirs }
    }

    fn fill(&mut self) {
        fill(&self.dirs.pop().expect("he was asked too often"), 0);
    }
}

fn well(daemon: &Daemon) {
    assert_eq!(ok(daemon, &["system", "check"]), "records and disk agree\n");
}

fn reserved(daemon: &Daemon) -> u64 {
    fs::metadata(daemon.root().join("reserve")).map_or(0, |meta| meta.blocks() * 512)
}

/// Writes records until one is refused.
fn refused(daemon: &Daemon, name: &str) -> Error {
    let labels: Labels = (0..8).map(|n| (format!("label{n}"), "x".repeat(4000))).collect();
    bounded(async {
        let leases = daemon.open().await.leases();
        for n in 0..2000 {
            if let Err(error) = leases.create(&format!("{name}{n}"), &labels, None).info().await {
                return error;
            }
        }
        panic!("the disk never gets full");
    })
}

fn import(daemon: &Daemon, name: &str) {
    let rootfs = images().join("rootfs/busybox");
    ok(daemon, &["image", "import", "--rootfs", rootfs.to_str().unwrap(), name]);
}

/// Everything of which there can be something is there, and the disk is full; each removal succeeds, though the neighbour takes
/// what became free: after each, or after some.
fn emptied(daemon: &Daemon, root: &str, greedy: bool) {
    let mut neighbour = Neighbour::new(daemon);
    let file = daemon.path().join("file");
    fs::write(&file, "x".repeat(100_000)).unwrap();
    import(daemon, BUSYBOX);
    idle(daemon, "running");
    ok(daemon, &["exec", "running", "dd", "if=/dev/urandom", "of=/file", "bs=1M", "count=6"]);
    ok(
        daemon,
        &["run", "--name", "ended", BUSYBOX, "sh", "-c", "echo said; dd if=/dev/zero of=/file bs=64k count=10 2>&1"],
    );
    ok(daemon, &["snapshot", "prepare", "mine"]);
    for lease in ["one", "two", "three"] {
        ok(daemon, &["lease", "create", lease]);
    }
    let digest = ok(daemon, &["content", "ingest", "first", file.to_str().unwrap()]);
    until("there is a reserve", || (reserved(daemon) >= 4 << 20).then_some(()));

    neighbour.fill();
    let error = refused(daemon, "more");
    assert_eq!(error.code, Code::ResourceExhausted, "{error}");
    for said in
        [root, " free of ", " lie in ", &format!("{}/running", daemon.namespace()), "coffer gc", "coffer system df"]
    {
        assert!(error.message.contains(said), "{said}: {error}");
    }
    assert!(reserved(daemon) >= 4 << 20, "what makes something doesn't use the reserve");
    well(daemon);

    let mut count = 0;
    let mut gone = |args: &[&str]| {
        ok(daemon, args);
        well(daemon);
        count += 1;
        if greedy || count % 4 == 0 {
            neighbour.fill();
        }
    };
    gone(&["rm", "ended"]);
    gone(&["snapshot", "rm", "mine"]);
    gone(&["content", "rm", digest.trim()]);
    gone(&["lease", "rm", "one"]);
    gone(&["lease", "rm", "two"]);
    // A daemon that comes to a full disk serves, and can do the same.
    daemon.kill9();
    daemon.restart();
    well(daemon);
    gone(&["rm", "-f", "running"]);
    gone(&["lease", "rm", "three"]);
    gone(&["image", "rm", "--sync", BUSYBOX]);
    gone(&["gc"]);
    assert_eq!(ok(daemon, &["content", "ls", "-q"]), "");
    assert_eq!(ok(daemon, &["snapshot", "ls", "-q"]), "");
    if greedy {
        let error = refused(daemon, "again");
        assert_eq!(error.code, Code::ResourceExhausted, "{error}");
    }

    fs::remove_dir_all(daemon.root().join("lost+found")).unwrap();
    until("there is a reserve again", || (reserved(daemon) >= 4 << 20).then_some(()));
    import(daemon, BUSYBOX);
    assert_eq!(ok(daemon, &["run", "--rm", BUSYBOX, "echo", "after"]), "after\n");
    well(daemon);
}

#[test]
fn everything_can_be_removed_from_a_full_disk() {
    let daemon = small_disk(96, 8192);
    let root = format!("{} (ext4 on /dev/loop", daemon.root().display());
    emptied(&daemon, &root, true);
}

#[test]
fn everything_can_be_removed_from_a_full_btrfs() {
    let daemon = btrfs_disk(512);
    let root = format!("{} (btrfs on /dev/loop", daemon.root().display());
    // There each commit is written to another place: a neighbour who takes all each time comes to the end of any reserve.
    emptied(&daemon, &root, false);
}

#[test]
fn who_takes_all_room_of_a_btrfs_again_and_again_empties_the_reserve_and_harms_nothing() {
    const LEASES: usize = 300;
    let daemon = btrfs_disk(256);
    let name = |n: usize| format!("lease{n:03}");
    let left = || ok(&daemon, &["lease", "ls", "-q"]).lines().map(str::to_owned).collect::<Vec<_>>();
    bounded(async {
        let leases = daemon.open().await.leases();
        for n in 0..LEASES {
            leases.create(&name(n), &Labels::new(), None).info().await.unwrap();
        }
    });
    until("there is a reserve", || (reserved(&daemon) >= 4 << 20).then_some(()));
    let mut neighbour = Neighbour::patient(&daemon, LEASES + 1);
    neighbour.fill();
    let mut gone = 0;
    let refused = loop {
        let said = until("the tables are open", || {
            let said = say(&daemon, &["lease", "rm", &name(gone)]);
            // What the daemon writes of itself met the full disk, and the tables are being opened again.
            (!said.err.ends_with("will be started again\n")).then_some(said)
        });
        if said.code != 0 {
            break said;
        }
        gone += 1;
        assert!(gone < LEASES, "the reserve has no end");
        neighbour.fill();
    };
    // The reserve is for one, at the least: each needs fresh blocks for all that opens the tables again, too.
    assert!(gone >= 1, "{gone}: {refused:?}");
    // Whoever asks first is told of the disk, and the next ones that the writer is being started again.
    assert!(refused.err.contains("down") || refused.err.contains(" B free of "), "{refused:?}");
    // What was answered stands, for the daemon that is there and for the next one; and so does what nobody asked for.
    fs::remove_dir_all(daemon.root().join("lost+found")).unwrap();
    until("it serves again", || (say(&daemon, &["lease", "ls", "-q"]).code == 0).then_some(()));
    let there = left();
    let all: Vec<_> = (gone..LEASES).map(name).collect();
    assert!(there == all || there == all[1..], "{gone}: {there:?}");
    until("there is a reserve again", || (reserved(&daemon) >= 4 << 20).then_some(()));
    ok(&daemon, &["lease", "rm", &there[0]]);
    daemon.kill9();
    daemon.restart();
    assert_eq!(left(), there[1..]);
    well(&daemon);
}

/// Nothing makes it collect but the disk.
const PRESSED: &[&str] =
    &["--gc", "startup_delay=0,schedule_delay=0,period=0", "--gc=deletion_threshold=1000000,mutation_threshold=0"];

#[test]
fn a_full_disk_is_collected_and_what_was_refused_succeeds() {
    let daemon = small_disk_with(96, 8192, PRESSED);
    let mut neighbour = Neighbour::new(&daemon);
    let file = daemon.path().join("file");
    fs::write(&file, vec![7; 3 << 20]).unwrap();
    let ingest = |name: &str| say(&daemon, &["content", "ingest", name, file.to_str().unwrap()]);
    import(&daemon, BUSYBOX);
    ok(&daemon, &["image", "rm", BUSYBOX]);
    let blobs = || ok(&daemon, &["content", "ls", "-q"]).lines().count();
    assert!(blobs() > 0, "nothing has collected it");
    until("there is a reserve", || (reserved(&daemon) >= 4 << 20).then_some(()));
    neighbour.fill();
    let said = ingest("first");
    assert!(said.code != 0 && said.err.contains("0 B free of"), "{said:?}");
    until("what nothing keeps is gone", || (blobs() == 0).then_some(()));
    until("its trees too", || {
        let fs = statvfs(&daemon.root()).unwrap();
        (fs.blocks_available() * fs.fragment_size() > 4 << 20).then_some(())
    });
    let said = ingest("second");
    assert_eq!(said.code, 0, "{said:?}");
    well(&daemon);
}

/// As after an error of the disk: what is on record is served, each refusal says why, and a daemon that starts there does the same.
#[test]
fn what_is_on_a_disk_that_turns_read_only_is_served() {
    let daemon = small_disk(96, 8192);
    import(&daemon, BUSYBOX);
    idle(&daemon, "box");
    let blob = ok(&daemon, &["content", "ls", "-q"]).lines().next().unwrap().to_owned();
    let served = || {
        assert_eq!(ok(&daemon, &["ps", "-q"]), "box\n");
        assert_eq!(ok(&daemon, &["image", "ls", "-q"]).lines().count(), 1);
        assert!(daemon.command().args(["content", "get", &blob]).output().unwrap().status.success());
        let said = say(&daemon, &["lease", "create", "refused"]);
        assert!(said.code != 0 && said.err.contains("read-only"), "{said:?}");
        assert!(!said.err.contains("started again"), "{said:?}");
        let status = say(&daemon, &["system", "status"]);
        assert!(status.out.contains("degraded") && status.out.contains("read-only"), "{status:?}");
        let check = say(&daemon, &["system", "check"]);
        assert!(check.out.contains("read-only") && !check.out.contains("unchecked"), "{check:?}");
    };
    let root = daemon.root();
    let root = root.to_str().unwrap();
    let mount = |args: &[&str]| assert!(Command::new("mount").args(args).status().unwrap().success(), "mount {args:?}");
    mount(&["-o", "remount,abort", root]);
    until("it is known", || {
        say(&daemon, &["lease", "create", "refused"]).err.contains("restart the daemon").then_some(())
    });
    served();
    daemon.restart();
    served();
    // Not for each call: once by each of the two daemons, at most.
    let behind = daemon.log().matches("where the audit log ends can't be put on record").count();
    assert!(behind <= 2, "it was said {behind} times");

    // Another one finds all that was acknowledged, once it can be written again: when nobody holds the file system that it was.
    let pid = json(&daemon, &["inspect", "box"])["task"]["pid"].as_i64().unwrap();
    let shim = shim_of(&daemon, "box") as i32;
    daemon.kill9();
    for pid in [shim, pid as i32] {
        nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        until("it is gone", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    }
    while nix::mount::umount2(root, nix::mount::MntFlags::MNT_DETACH).is_ok() {}
    mount(&["-o", "loop", daemon.path().join("disk").to_str().unwrap(), root]);
    daemon.restart();
    assert_eq!(ok(&daemon, &["ps", "-aq"]), "box\n");
    ok(&daemon, &["rm", "-f", "box"]);
    well(&daemon);
}
