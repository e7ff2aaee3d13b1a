//! Attacks of the catalogue in SECURITY.md on the way from a spec to a container.

use std::sync::atomic::AtomicBool;

use super::*;

// X3: what looks like /proc is not written to.
#[test]
fn x3_kernel_parameters_go_to_the_kernel_whatever_is_at_proc() {
    let mut f = Fixture::new();
    f.spec["linux"]["sysctl"] = json!({"kernel.msgmax": "9001"});
    let fake = f.root().join("proc/sys/kernel");
    std::fs::create_dir_all(&fake).unwrap();
    std::fs::write(fake.join("msgmax"), "canary").unwrap();

    // A file of the host's in the parameter's place.
    let canary = f.dir.path().join("canary");
    std::fs::write(&canary, "canary").unwrap();
    let mounts = f.spec["mounts"].clone();
    let over = json!({"destination": "/proc/sys/kernel/msgmax", "type": "bind", "source": canary, "options": ["bind"]});
    f.spec["mounts"].as_array_mut().unwrap().push(over);
    match f.sh("cat /proc/sys/kernel/msgmax").try_run() {
        Ok((_, output)) => assert_eq!(output, "canary"),
        Err(e) => assert!(e.message.contains("msgmax"), "{e}"),
    }
    assert_eq!(std::fs::read_to_string(&canary).unwrap(), "canary");

    // A directory of the image's, with nothing mounted on it.
    f.spec["mounts"] = mounts;
    f.spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/proc");
    f.spec["linux"]["maskedPaths"] = json!([]);
    f.spec["linux"]["readonlyPaths"] = json!([]);
    assert_eq!(f.output("cat /proc/sys/kernel/msgmax"), "canary");
    assert_eq!(std::fs::read_to_string(fake.join("msgmax")).unwrap(), "canary");

    // A directory of the host's.
    let host = f.dir.path().join("host");
    std::fs::create_dir_all(host.join("sys/kernel")).unwrap();
    std::fs::write(host.join("sys/kernel/msgmax"), "canary").unwrap();
    let over = json!({"destination": "/proc", "type": "bind", "source": host, "options": ["rbind"]});
    f.spec["mounts"].as_array_mut().unwrap().push(over);
    let _ = f.sh("true").try_run();
    assert_eq!(std::fs::read_to_string(host.join("sys/kernel/msgmax")).unwrap(), "canary");
}

// X4: somebody with a volume swaps a directory on the way to a mount target for a link, and back, all the time.
#[test]
fn x4_a_target_that_is_swapped_meanwhile_leads_nowhere() {
    let mut f = Fixture::new();
    let (volume, canary, data) = (f.dir.path().join("volume"), f.dir.path().join("canary"), f.dir.path().join("data"));
    for dir in [&volume, &canary, &data] {
        std::fs::create_dir(dir).unwrap();
    }
    std::fs::write(data.join("mark"), "").unwrap();
    std::fs::create_dir(volume.join("way")).unwrap();
    let up = format!("../../../../../../../../../../{}", canary.display());
    std::os::unix::fs::symlink(up, volume.join("link")).unwrap();
    f.spec["mounts"].as_array_mut().unwrap().extend([
        json!({"destination": "/volume", "type": "bind", "source": volume, "options": ["rbind"]}),
        json!({"destination": "/volume/way/to/it", "type": "bind", "source": data, "options": ["bind"]}),
    ]);
    let over = AtomicBool::new(false);
    let (mut inside, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let path = |name: &str| std::ffi::CString::new(volume.join(name).to_str().unwrap()).unwrap();
            let (way, link) = (path("way"), path("link"));
            while !over.load(Ordering::Relaxed) {
                // SAFETY: both are C strings that live for the call.
                unsafe {
                    libc::renameat2(libc::AT_FDCWD, way.as_ptr(), libc::AT_FDCWD, link.as_ptr(), libc::RENAME_EXCHANGE)
                };
            }
        });
        for _ in 0..60 {
            match f
                .sh("ls /volume/way/to/it /volume/link/to/it /*/canary/to/it 2>/dev/null | grep -c mark; true")
                .try_run()
            {
                Ok(_) => inside += 1,
                Err(_) => refused += 1,
            }
            let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!table.contains(canary.to_str().unwrap()), "something is mounted outside the root");
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(std::fs::read_dir(&canary).unwrap().count(), 0, "something was made outside the root");
    assert!(inside + refused == 60 && inside > 0, "{inside} inside, {refused} refused");
}

// X6: what an image or a volume puts in the place of /dev/null is not what paths are masked with.
#[test]
fn x6_masks_are_the_kernels_null_device() {
    let mut f = Fixture::new();
    let (dev, secret) = (f.dir.path().join("dev"), f.root().join("secret"));
    std::fs::create_dir(&dev).unwrap();
    std::fs::write(&secret, "secret").unwrap();
    std::fs::write(f.root().join("other"), "other").unwrap();
    f.spec["linux"]["maskedPaths"] = json!(["/secret"]);
    f.spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    f.spec["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/dev", "type": "bind", "source": dev, "options": ["rbind"]}));
    for fake in ["link", "file", "device", "none"] {
        let null = dev.join("null");
        let _ = std::fs::remove_file(&null);
        match fake {
            "link" => std::os::unix::fs::symlink("/other", &null).unwrap(),
            "file" => std::fs::write(&null, "file").unwrap(),
            "device" => {
                let zero = nix::sys::stat::makedev(1, 5);
                let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
                nix::sys::stat::mknod(&null, nix::sys::stat::SFlag::S_IFCHR, mode, zero).unwrap();
            }
            _ => {}
        }
        match f.sh("stat -c %t:%T /secret; head -c 8 /secret").try_run() {
            Ok((_, output)) => assert_eq!(output, "1:3\n", "{fake}"),
            Err(e) => assert!(e.message.contains("masking"), "{fake}: {e}"),
        }
    }
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "secret");
}

// X6: nor is a terminal made of what lies where devpts should.
#[test]
fn x6_a_false_terminal_is_refused() {
    let mut f = Fixture::new();
    let pts = f.dir.path().join("pts");
    std::fs::create_dir(&pts).unwrap();
    std::fs::write(pts.join("ptmx"), "canary").unwrap();
    for mount in f.spec["mounts"].as_array_mut().unwrap() {
        if mount["destination"] == "/dev/pts" {
            *mount = json!({"destination": "/dev/pts", "type": "bind", "source": pts, "options": ["bind"]});
        }
    }
    f.spec["process"]["terminal"] = json!(true);
    for fake in ["file", "host's"] {
        if fake == "host's" {
            std::fs::remove_file(pts.join("ptmx")).unwrap();
            let device = nix::sys::stat::makedev(5, 2);
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
            nix::sys::stat::mknod(&pts.join("ptmx"), nix::sys::stat::SFlag::S_IFCHR, mode, device).unwrap();
        }
        let error = f.args(&["true"]).create(Stdio::Terminal { rows: 1, cols: 1 }).unwrap_err();
        assert!(error.message.contains("terminal"), "{fake}: {error}");
    }
}
