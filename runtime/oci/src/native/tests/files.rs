//! What the container sees of file systems, and that nothing leads out of it.

use super::*;

#[test]
fn paths_are_masked_and_read_only() {
    let mut f = Fixture::new();
    std::fs::write(f.root().join("secret"), "secret").unwrap();
    std::fs::create_dir(f.root().join("hidden")).unwrap();
    std::fs::write(f.root().join("hidden/file"), "secret").unwrap();
    std::os::unix::fs::symlink("/secret", f.root().join("link")).unwrap();
    f.spec["linux"]["maskedPaths"] = json!(["/link", "/hidden", "/proc/keys", "/sys/firmware", "/bin/none"]);
    f.spec["linux"]["readonlyPaths"] = json!(["/proc/sys", "/bin"]);
    let out = f.output(
        "cat /secret /proc/keys; ls /hidden /sys/firmware; touch /hidden/x 2>&1; touch /bin/x 2>&1; echo 1 2>&1 >/proc/sys/kernel/msgmax;
         stat -c '%t:%T' /secret; touch /x && echo writable",
    );
    assert!(!out.contains("\nsecret"), "{out}");
    assert_eq!(out.matches("Read-only file system").count(), 3, "{out}");
    assert!(out.ends_with("1:3\nwritable\n"), "{out}");
    f.spec["root"]["readonly"] = json!(true);
    let out = f.output("touch /y 2>&1; touch /dev/shm/z && echo ok; mount | grep ' / '");
    assert!(out.contains("Read-only file system") && out.contains("ok"), "{out}");

    // The root itself, by whichever name, is as one that is read-only.
    std::os::unix::fs::symlink("/bin/..", f.root().join("above")).unwrap();
    f.spec["root"]["readonly"] = json!(false);
    f.spec["linux"]["maskedPaths"] = json!([]);
    for root in ["/", "/.", "/bin/..", "/above"] {
        f.spec["linux"]["readonlyPaths"] = json!([root, "/proc/sys"]);
        let out = f.output("touch /y 2>&1; touch /dev/shm/z && echo ok");
        assert_eq!(out, "touch: /y: Read-only file system\nok\n", "{root}");
    }
    // It can't be hidden, nor anything be mounted on it: nobody would see that.
    let mounts = f.spec["mounts"].clone();
    let tmpfs = json!({"destination": "/above", "type": "tmpfs", "source": "tmpfs"});
    f.spec["mounts"].as_array_mut().unwrap().push(tmpfs);
    let error = f.try_run().unwrap_err();
    assert_eq!((error.code, error.id.as_str()), (Code::InvalidArgument, "mounts /above"), "{error}");
    f.spec["mounts"] = mounts;
    f.spec["linux"]["maskedPaths"] = json!(["/"]);
    let error = f.try_run().unwrap_err();
    assert_eq!((error.code, error.id.as_str()), (Code::InvalidArgument, "linux.maskedPaths /"), "{error}");
}

#[test]
fn devices_links_and_default_mounts_are_there() {
    let mut f = Fixture::new();
    f.spec["linux"]["devices"] =
        json!([{"path": "/dev/sub/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o620, "gid": 6}]);
    f.spec["linux"]["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]});
    let out = f.output(
        "for d in null zero full random urandom tty sub/fuse; do stat -c '%t:%T %a %u:%g' /dev/$d; done;
         for l in fd stdin stdout stderr core ptmx; do readlink /dev/$l; done;
         head -c 3 /dev/zero | wc -c; echo gone > /dev/null; mkdir /dev/shm/x; ls -d /dev/mqueue; ls /sys/fs/cgroup/memory | grep -c limit_in_bytes;
         cat /dev/sub/fuse 2>&1; mknod /dev/kmsg2 c 1 11; cat /dev/kmsg2 2>&1; true",
    );
    let expected = "1:3 666 0:0\n1:5 666 0:0\n1:7 666 0:0\n1:8 666 0:0\n1:9 666 0:0\n5:0 666 0:0\na:e5 620 0:6\n\
                    /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\nKCOREpts/ptmx\n3\n/dev/mqueue\n";
    let kcore = if Path::new("/proc/kcore").exists() { "/proc/kcore\n" } else { "" };
    assert!(out.starts_with(&expected.replace("KCORE", kcore)), "{out}");
    // P8: what isn't allowed is denied, also through a node that the container makes itself.
    assert_eq!(out.matches("Operation not permitted").count(), 2, "{out}");
    // What is mounted at a device's place is there.
    let file = f.dir.path().join("in-its-place");
    std::fs::write(&file, "a file\n").unwrap();
    let place = json!({"destination": "/dev/zero", "type": "bind", "source": file, "options": ["bind"]});
    f.spec["mounts"].as_array_mut().unwrap().push(place);
    assert_eq!(f.output("cat /dev/zero"), "a file\n");
}

#[test]
fn binds_tmpfs_and_propagation() {
    let mut f = Fixture::new();
    let host = f.dir.path().join("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "from the host\n").unwrap();
    let mounts = f.spec["mounts"].as_array_mut().unwrap();
    let file = host.join("file");
    std::fs::create_dir_all(f.dir.path().join("bundle/data")).unwrap();
    mounts.extend([
        json!({"destination": "/new/dir", "type": "bind", "source": host, "options": ["rbind", "ro"]}),
        json!({"destination": "/etc/new/file", "type": "bind", "source": file, "options": ["bind"]}),
        json!({"destination": "/relative", "source": "data", "options": ["bind", "rslave", "noexec"]}),
        json!({"destination": "/tmp", "type": "tmpfs", "options": ["size=64k", "mode=1777", "ro"]}),
    ]);
    let out = f.output(
        "cat /new/dir/file; touch /new/dir/x 2>&1; cat /etc/new/file; echo more >> /etc/new/file; touch /relative/made; touch /tmp/x 2>&1; stat -c %a /tmp",
    );
    assert_eq!(out.matches("Read-only file system").count(), 2, "{out}");
    assert!(out.starts_with("from the host\n") && out.ends_with("1777\n"), "{out}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "from the host\nmore\n");
    assert!(f.dir.path().join("bundle/data/made").exists());
}

#[test]
fn targets_are_made_where_the_container_sees_them() {
    let mut f = Fixture::new();
    let canary = f.dir.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    for (link, to) in [
        ("abs", canary.to_str().unwrap()),
        ("up", "../../../../../../../../canary-up/deep"),
        ("chain", "/abs"),
        ("loop", "loop"),
    ] {
        std::os::unix::fs::symlink(to, f.root().join(link)).unwrap();
    }
    let host = f.dir.path().join("bundle").to_str().unwrap().to_owned();
    let mount = |to: &str| json!({"destination": to, "type": "bind", "source": host, "options": ["bind"]});
    let base = f.spec["mounts"].as_array().unwrap().clone();
    let with = |f: &mut Fixture, to: &str| {
        let mut all = base.clone();
        all.push(mount(to));
        f.spec["mounts"] = json!(all);
    };
    std::fs::write(f.dir.path().join("bundle/mark"), "").unwrap();
    for to in ["/chain/a/b", "/up/x", "/abs"] {
        with(&mut f, to);
        f.output(&format!("ls {to}/mark"));
    }
    assert_eq!(std::fs::read_dir(&canary).unwrap().count(), 0, "something was made outside the root");
    assert!(f.root().join("canary-up/deep/x").is_dir());
    with(&mut f, "/loop/x");
    let error = f.try_run().unwrap_err();
    assert!(error.message.contains("mounting at /loop/x"), "{error}");
}

// X7: an image whose /proc, /sys or /dev is a symlink.
#[test]
fn x7_symlinks_in_place_of_system_directories_are_refused() {
    for name in ["proc", "sys", "dev"] {
        let f = Fixture::new();
        std::fs::create_dir(f.root().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", f.root().join(name)).unwrap();
        let error = f.try_run().unwrap_err();
        assert!(error.message.contains(&format!("at /{name}")), "{error}");
        assert_eq!(error.id, &*f.id);
    }
}

// X5: a working directory that leads out of the root through a descriptor of the host.
#[test]
fn x5_the_working_directory_is_inside_the_root() {
    let mut f = Fixture::new();
    for fd in 3..12 {
        f.spec["process"]["cwd"] = json!(format!("/proc/self/fd/{fd}"));
        let error = f.sh("cat ../../../../etc/hostname").try_run().unwrap_err();
        assert!(error.message.contains("/proc/self/fd/"), "{error}");
    }
    std::os::unix::fs::symlink("/proc/self/fd/7/", f.root().join("innocent")).unwrap();
    f.spec["process"]["cwd"] = json!("/innocent");
    f.try_run().unwrap_err();
}

// X1: nothing above 2 gets in.
#[test]
fn x1_no_descriptor_leaks() {
    let mut f = Fixture::new();
    let inherited = File::open("/etc/passwd").unwrap();
    // SAFETY: clears CLOEXEC on a descriptor that this test owns.
    unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&inherited), libc::F_SETFD, 0) };
    // 3 is the directory that ls itself reads.
    assert_eq!(f.output("ls /proc/self/fd"), "0\n1\n2\n3\n");
    assert_eq!(f.output("ls /proc/1/fd; true"), "0\n1\n2\n");
}

#[test]
fn an_overlay_of_two_layers_is_a_root() {
    let mut f = Fixture::new();
    let dir = |name: &str| {
        let path = f.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let (middle, upper, work) = (dir("middle"), dir("upper"), dir("work"));
    std::fs::write(middle.join("file"), "middle\n").unwrap();
    std::fs::write(f.root().join("file"), "bottom\n").unwrap();
    let lower = format!("lowerdir={}:{}", middle.display(), f.root().display());
    let options = vec![lower, format!("upperdir={}", upper.display()), format!("workdir={}", work.display())];
    f.rootfs = vec![Mount { kind: "overlay".into(), source: "overlay".into(), options }];
    assert_eq!(f.output("cat /file; echo new > /file"), "middle\n");
    assert_eq!(std::fs::read_to_string(upper.join("file")).unwrap(), "new\n");
    f.rootfs.clear();
    f.spec["root"]["path"] = json!(f.root());
    assert_eq!(f.output("cat /file"), "bottom\n");
}

#[test]
fn a_slave_mount_sees_what_the_host_mounts_later() {
    let mut f = Fixture::new();
    let host = f.dir.path().join("host");
    std::fs::create_dir_all(host.join("sub")).unwrap();
    let call =
        |args: &[&str]| assert!(std::process::Command::new(args[0]).args(&args[1..]).status().unwrap().success());
    let path = host.to_str().unwrap().to_owned();
    call(&["mount", "--bind", &path, &path]);
    call(&["mount", "--make-shared", &path]);
    let mounts = f.spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/slave", "source": path, "options": ["rbind", "rslave"]}));
    mounts.push(json!({"destination": "/private", "source": path, "options": ["rbind"]}));
    let (container, hold) = sleeping(&mut f);
    call(&["mount", "-t", "tmpfs", "tmpfs", &format!("{path}/sub")]);
    std::fs::write(host.join("sub/file"), "").unwrap();
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "args": ["ls", "/slave/sub", "/private/sub"]});
    let seen = exec(&f, &container, process);
    call(&["umount", &format!("{path}/sub")]);
    drop(hold);
    process::waitid(&container.init.pidfd, true).unwrap();
    f.native.delete(&container).unwrap();
    call(&["umount", &path]);
    assert_eq!(seen.unwrap().1, "/private/sub:\n\n/slave/sub:\nfile\n");
}

/// A mount goes where it would be seen, whatever was mounted over what before, and wherever the image's links lead.
#[test]
fn what_is_mounted_later_is_seen() {
    let mut f = Fixture::new();
    let source = f.dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "seen").unwrap();
    std::fs::create_dir(f.root().join("data")).unwrap();
    std::os::unix::fs::symlink("data", f.root().join("alias")).unwrap();
    let tmpfs = |at: &str| json!({"destination": at, "type": "tmpfs", "source": "tmpfs"});
    let bind = |at: &str| json!({"destination": at, "type": "bind", "source": source, "options": ["bind"]});
    let before = f.spec["mounts"].as_array().unwrap().clone();
    for (mounts, place) in [
        (vec![tmpfs("/a/b"), tmpfs("/a"), bind("/a/b/c")], "/a/b/c"),
        (vec![tmpfs("/g"), tmpfs("/g/a/b"), tmpfs("/g/a"), bind("/g/a/b/c")], "/g/a/b/c"),
        (vec![tmpfs("/data"), tmpfs("/alias"), bind("/data/c")], "/data/c"),
        (vec![tmpfs("/data"), tmpfs("/alias"), bind("/alias/c")], "/data/c"),
        (vec![tmpfs("/a"), bind("/a/x/y")], "/a/x/y"),
    ] {
        f.spec["mounts"] = [before.clone(), mounts].concat().into();
        assert_eq!(f.output(&format!("cat {place}/file")), "seen", "{place}");
    }
}
