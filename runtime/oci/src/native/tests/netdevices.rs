//! Network devices of the host's: each test in a network namespace of its own, which is the host's then.

use std::process::Command;

use cofferdam_sys::network;

use super::*;

fn ip(line: &str) -> String {
    let out = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(out.status.success(), "ip {line}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// With a device `v0` that has addresses.
fn host(test: impl FnOnce(&mut Fixture) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ip("link add v0 type veth peer name v1");
            ip("link set v0 mtu 1400 address 02:00:00:00:00:07 up");
            ip("addr add 192.0.2.7/24 dev v0");
            let mut f = Fixture::new();
            std::os::unix::fs::symlink("busybox", f.root().join("bin/ip")).unwrap();
            test(&mut f);
        });
        thread.join().unwrap();
    });
}

const LOOK: &str = "ip -o addr show dev eth7; cat /sys/class/net/eth7/mtu /sys/class/net/eth7/address";

/// It is there, as it was.
fn is_there(text: &str) {
    assert!(text.contains("192.0.2.7/24") && text.ends_with("1400\n02:00:00:00:00:07\n"), "{text}");
}

fn back_on_the_host() {
    let text = ip("addr show dev v0");
    assert!(text.contains("192.0.2.7/24") && text.contains("mtu 1400") && text.contains("UP"), "{text}");
}

#[test]
fn a_device_is_the_containers_with_all_it_is() {
    host(|f| {
        f.spec["linux"]["netDevices"] = json!({"v0": {"name": "eth7"}});
        // There before the parameters that are its own.
        f.spec["linux"]["sysctl"] = json!({"net.ipv4.conf.eth7.proxy_arp": "1"});
        let text = f.output(&format!("cat /proc/sys/net/ipv4/conf/eth7/proxy_arp; {LOOK}"));
        assert!(text.starts_with("1\n"), "{text}");
        is_there(&text);
        assert!(!ip("-o link").contains("v0"), "a virtual one ends with the namespace");
    });
}

#[test]
fn a_device_goes_into_a_namespace_by_path_or_of_a_user_namespace() {
    host(|f| {
        let pinned = f.dir.path().join("net");
        network::pin(&pinned).unwrap();
        let namespaces = f.spec["linux"]["namespaces"].clone();
        f.spec["linux"]["namespaces"][4] = json!({"type": "network", "path": pinned});
        f.spec["linux"]["netDevices"] = json!({"v0": {"name": "eth7"}});
        is_there(&f.output(LOOK));
        // Where it is still, the next container has it by the name that it has there.
        let error = f.try_run().unwrap_err();
        assert_eq!((error.code, &*error.kind, &*error.id), (Code::NotFound, "network device", "v0"));
        network::unpin(&pinned).unwrap();

        // The other end of the first one goes when the kernel comes to it.
        ip("link add v0 type veth peer name v2");
        ip("link set v0 mtu 1400 address 02:00:00:00:00:07");
        ip("addr add 192.0.2.7/24 dev v0");
        f.spec["linux"]["namespaces"] = namespaces;
        f.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        f.spec["linux"]["uidMappings"] = map.clone();
        f.spec["linux"]["gidMappings"] = map;
        is_there(&f.output(LOOK));
    });
}

#[test]
fn a_container_that_comes_to_nothing_gives_its_devices_back() {
    host(|f| {
        f.spec["linux"]["netDevices"] = json!({"v0": {"name": "eth7"}, "v9": {}});
        let error = f.try_run().unwrap_err();
        assert_eq!((error.code, &*error.id), (Code::NotFound, "v9"), "{error}");
        back_on_the_host();
        f.spec["linux"]["netDevices"] = json!({"v0": {"name": "lo"}});
        let error = f.try_run().unwrap_err();
        assert_eq!((error.code, &*error.id), (Code::AlreadyExists, "v0"), "{error}");
        back_on_the_host();
        f.spec["linux"]["netDevices"] = json!({"v0": {}});
        // The host's own namespace is none to move it to.
        let namespaces = f.spec["linux"]["namespaces"].clone();
        let own = format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid());
        f.spec["linux"]["namespaces"][4] = json!({"type": "network", "path": own});
        assert_eq!(f.try_run().unwrap_err().code, Code::InvalidArgument);
        back_on_the_host();
        f.spec["linux"]["namespaces"] = namespaces;
        // It fails behind that, in the container.
        std::fs::remove_dir_all(f.root().join("proc")).unwrap_or_default();
        std::os::unix::fs::symlink("/etc", f.root().join("proc")).unwrap();
        f.try_run().unwrap_err();
        back_on_the_host();
    });
}
