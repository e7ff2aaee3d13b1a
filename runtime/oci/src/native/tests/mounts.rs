//! Options of mounts that act on ids, on what was there before, and on links.

use std::os::unix::fs::{MetadataExt, chown, symlink};

use super::*;

const HOST: u32 = 300_000;

fn with_user(f: &mut Fixture) {
    let map = json!([{"containerID": 0, "hostID": HOST, "size": 65536}]);
    (f.spec["linux"]["uidMappings"], f.spec["linux"]["gidMappings"]) = (map.clone(), map);
    f.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
}

fn add(f: &mut Fixture, mount: Value) {
    f.spec["mounts"].as_array_mut().unwrap().push(mount);
}

#[test]
fn the_ids_of_a_mount_are_mapped() {
    let mut f = Fixture::new();
    let host = f.dir.path().join("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "").unwrap();
    chown(host.join("file"), Some(5), Some(6)).unwrap();
    let (uids, gids) = (
        json!([{"containerID": 0, "hostID": 0, "size": 1}, {"containerID": 5, "hostID": 1000, "size": 1}]),
        json!([{"containerID": 0, "hostID": 0, "size": 1}, {"containerID": 6, "hostID": 2000, "size": 1}]),
    );
    let plain = f.spec.clone();
    for options in [json!(["bind"]), json!(["bind", "idmap"]), json!(["rbind", "ridmap"])] {
        f.spec = plain.clone();
        add(
            &mut f,
            json!({"destination": "/data", "type": "bind", "source": host, "options": options,
            "uidMappings": uids, "gidMappings": gids}),
        );
        f.spec["process"]["user"] = json!({"uid": 1000, "gid": 2000});
        assert_eq!(f.output("stat -c %u:%g /data/file; echo x > /data/file"), "1000:2000\n");
    }
    let meta = std::fs::metadata(host.join("file")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.len()), (5, 6, 2));

    // Without ids of its own a mount takes those of the container, and can't where there are none.
    f.spec = plain.clone();
    let plain_mount = json!({"destination": "/data", "type": "bind", "source": host, "options": ["bind", "idmap"]});
    add(&mut f, plain_mount.clone());
    let error = f.try_run().unwrap_err();
    assert_eq!((error.code, &*error.kind), (Code::InvalidArgument, "mount option"), "{error}");
    with_user(&mut f);
    assert_eq!(f.output("stat -c %u:%g /data/file; touch /data/new; stat -c %u /data/new"), "5:6\n0\n");
    assert_eq!(std::fs::metadata(host.join("new")).unwrap().uid(), 0);
    // Not mapped, it belongs to nobody that the container knows.
    f.spec = plain;
    with_user(&mut f);
    add(&mut f, json!({"destination": "/data", "type": "bind", "source": host, "options": ["bind"]}));
    assert_eq!(f.output("stat -c %u:%g /data/file"), "65534:65534\n");
    f.spec["mounts"].as_array_mut().unwrap().last_mut().unwrap()["uidMappings"] = uids;
    assert_eq!(f.try_run().unwrap_err().id, "idmap");
}

#[test]
fn a_tmpfs_begins_with_what_the_image_has() {
    for user in [false, true] {
        let mut f = Fixture::new();
        let data = f.root().join("data");
        std::fs::create_dir_all(data.join("sub")).unwrap();
        std::fs::write(data.join("sub/file"), "text\n").unwrap();
        chown(data.join("sub/file"), Some(7), Some(8)).unwrap();
        chown(&data, Some(3), Some(4)).unwrap();
        std::fs::set_permissions(data.join("sub/file"), std::os::unix::fs::PermissionsExt::from_mode(0o4640)).unwrap();
        symlink("/etc/passwd", data.join("link")).unwrap();
        if user {
            with_user(&mut f);
        }
        add(
            &mut f,
            json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "size=1m"]}),
        );
        add(
            &mut f,
            json!({"destination": "/missing", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "ro"]}),
        );
        let caps = json!(["CAP_DAC_OVERRIDE"]);
        f.spec["process"]["capabilities"] = json!({"bounding": caps, "effective": caps, "permitted": caps});
        let out = f.output(
            "stat -c '%u:%g %a' /data /data/sub/file; cat /data/sub/file; readlink /data/link; mount | grep -c ' /data '; echo x > /data/new; stat -c %u /data/new /missing; touch /missing/x 2>&1; true",
        );
        assert_eq!(
            out, "3:4 755\n7:8 4640\ntext\n/etc/passwd\n1\n0\n0\ntouch: /missing/x: Read-only file system\n",
            "with a user namespace: {user}"
        );
        assert!(!data.join("new").exists());
    }
    let mut f = Fixture::new();
    add(&mut f, json!({"destination": "/x", "type": "ramfs", "source": "ramfs", "options": ["tmpcopyup"]}));
    assert_eq!(f.try_run().unwrap_err().id, "tmpcopyup");
}

#[test]
fn a_remount_changes_what_is_there() {
    let mut f = Fixture::new();
    let host = f.dir.path().join("host");
    std::fs::create_dir(&host).unwrap();
    add(&mut f, json!({"destination": "/data", "type": "bind", "source": host, "options": ["bind", "nosuid"]}));
    add(&mut f, json!({"destination": "/data", "type": "none", "options": ["remount", "bind", "ro", "noexec"]}));
    add(&mut f, json!({"destination": "/dev", "type": "none", "options": ["remount", "rro"]}));
    let out = f.output("touch /data/x 2>&1; touch /dev/x 2>&1; touch /dev/shm/x 2>&1; mount | grep ' /data ' | grep nosuid | grep -c noexec");
    assert_eq!(out.matches("Read-only file system").count(), 3, "{out}");
    assert!(out.ends_with("\n1\n"), "{out}");
    // The host's own is as it was.
    std::fs::write(host.join("x"), "").unwrap();
    add(&mut f, json!({"destination": "/dev/shm", "type": "tmpfs", "options": ["remount", "size=1m"]}));
    assert_eq!(f.try_run().unwrap_err().id, "size");
    f.spec["mounts"].as_array_mut().unwrap().pop();
    add(&mut f, json!({"destination": "/nothing/there", "options": ["remount", "ro"]}));
    assert!(f.try_run().unwrap_err().message.contains("/nothing/there"));
}

#[test]
fn a_link_is_copied_as_one() {
    let mut f = Fixture::new();
    let (link, file) = (f.dir.path().join("bundle/link"), f.dir.path().join("bundle/file"));
    symlink("/bin/busybox", &link).unwrap();
    std::fs::write(&file, "text\n").unwrap();
    for source in ["link".to_owned(), link.to_str().unwrap().to_owned()] {
        let to = format!("/made/for-{}", source.len());
        add(&mut f, json!({"destination": to, "type": "bind", "source": source, "options": ["bind", "copy-symlink"]}));
        assert_eq!(f.output(&format!("readlink {to}")), "/bin/busybox\n");
    }
    add(
        &mut f,
        json!({"destination": "/plain", "type": "bind", "source": "file", "options": ["bind", "copy-symlink"]}),
    );
    assert_eq!(f.output("cat /plain"), "text\n");
}

/// The v2 hierarchy begins for the container where its own group is, whether it has a cgroup namespace or not.
#[test]
fn a_mount_of_the_v2_hierarchy_is_the_containers_own_group() {
    for namespace in [true, false] {
        let mut f = Fixture::new();
        if !namespace {
            f.spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "cgroup");
        }
        add(&mut f, json!({"destination": "/group", "type": "cgroup2", "source": "cgroup2", "options": ["rw"]}));
        add(&mut f, json!({"destination": "/closed", "type": "cgroup2", "source": "cgroup2", "options": ["ro"]}));
        // A process of another pid namespace would be a 0, and the root of the hierarchy has no cgroup.events.
        let out = f.output(
            "grep -c '^1$' /group/cgroup.procs; grep -c '^0$' /group/cgroup.procs; test -e /group/cgroup.events && echo own
             mkdir /group/below && echo made; mkdir /closed/another 2>&1; ls -d /closed/below",
        );
        let refused = "mkdir: can't create directory '/closed/another': Read-only file system";
        assert_eq!(out, format!("1\n0\nown\nmade\n{refused}\n/closed/below\n"), "with a namespace: {namespace}");
    }
    let mut f = Fixture::new();
    add(&mut f, json!({"destination": "/group", "type": "cgroup2", "source": "cgroup2", "options": ["nsdelegate"]}));
    let error = f.try_run().unwrap_err();
    assert_eq!((error.code, error.id.as_str()), (Code::Unimplemented, "nsdelegate"));
}
