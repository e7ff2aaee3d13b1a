//! What ends up in a spec, and what must not.

use std::{fs::File, os::fd::AsFd};

use cofferdam_types::Code;
use oci_spec::runtime::{LinuxNamespaceType, PosixRlimitType};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

fn root() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    std::fs::write(dir.path().join("etc/passwd"), "root:x:0:0::/root:\nweb:x:33:34::/var/www:\n").unwrap();
    std::fs::write(dir.path().join("etc/group"), "extra:x:50:web\n").unwrap();
    dir
}

fn image(config: Value) -> ImageConfiguration {
    let document = json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "config": config
    });
    serde_json::from_value(document).unwrap()
}

fn make(config: Value, options: Value) -> Result<Spec> {
    let dir = root();
    let options: Options = serde_json::from_value(options).unwrap();
    let id = Id::new("redis-1").unwrap();
    let root = File::open(dir.path()).unwrap();
    generate("/shop/redis-1", &id, &image(config), &options, |user| users::resolve(&root, user))
}

/// The spec as JSON, as a driver reads it.
fn spec(config: Value, options: Value) -> Value {
    serde_json::to_value(make(config, options).unwrap()).unwrap()
}

/// Each of these options alone is refused, and the error says which it is.
fn refused(field: &str, list: &[Value]) {
    for value in list {
        let error = make(json!({"Cmd": ["sh"]}), json!({field: value})).unwrap_err();
        assert_eq!((error.code, error.id.as_str()), (Code::InvalidArgument, field), "{value}");
        assert!(!error.message.chars().any(char::is_control), "{:?}", error.message);
    }
}

#[test]
fn the_default_spec_is_complete() {
    let spec = spec(json!({"Cmd": ["sh"]}), json!({}));
    assert_eq!(spec["ociVersion"], "1.0.2");
    assert_eq!(spec["root"], json!({"path": "rootfs", "readonly": false}));
    assert_eq!(spec["hostname"], "redis-1");
    assert_eq!(spec["process"]["cwd"], "/");
    assert_eq!(spec["process"]["args"], json!(["sh"]));
    assert_eq!(spec["process"]["terminal"], false);
    assert_eq!(spec["process"]["user"], json!({"uid": 0, "gid": 0, "additionalGids": [0]}));
    assert_eq!(
        spec["process"]["env"],
        json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=redis-1", "HOME=/root"])
    );
    assert_eq!(spec["linux"]["cgroupsPath"], "/shop/redis-1");
    let kinds: Vec<_> = spec["linux"]["namespaces"].as_array().unwrap().iter().map(|n| n["type"].clone()).collect();
    assert_eq!(json!(kinds), json!(["pid", "ipc", "uts", "mount", "cgroup", "network"]));
    let targets: Vec<_> = spec["mounts"].as_array().unwrap().iter().map(|m| m["destination"].clone()).collect();
    assert_eq!(
        json!(targets),
        json!(["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/run"])
    );
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    let (_, ours) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    let hard = ours.min(524_288);
    assert_eq!(spec["process"]["rlimits"], json!([{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": hard}]));
    for absent in [&spec["hooks"], &spec["linux"]["sysctl"], &spec["linux"]["devices"], &spec["linux"]["uidMappings"]] {
        assert_eq!(*absent, Value::Null);
    }
    // It survives being written and read.
    let back: Spec = serde_json::from_value(spec.clone()).unwrap();
    assert_eq!(back, make(json!({"Cmd": ["sh"]}), json!({})).unwrap());
}

#[test]
fn p1_inheritable_and_ambient_capabilities_are_empty() {
    for options in [json!({}), json!({"cap_add": ["ALL"]}), json!({"cap_add": ["NET_ADMIN"], "user": "web"})] {
        let capabilities = spec(json!({"Cmd": ["sh"]}), options)["process"]["capabilities"].clone();
        assert_eq!((&capabilities["inheritable"], &capabilities["ambient"]), (&json!([]), &json!([])));
        assert!(capabilities["bounding"].as_array().unwrap().len() >= 14);
    }
    let dropped = spec(json!({"Cmd": ["sh"]}), json!({"cap_drop": ["all"]}));
    assert_eq!(dropped["process"]["capabilities"]["bounding"], json!([]));
    let error = make(json!({"Cmd": ["sh"]}), json!({"cap_add": ["SUPERUSER"]})).unwrap_err();
    assert_eq!((error.code, error.id.as_str()), (Code::InvalidArgument, "SUPERUSER"));
}

#[test]
fn p2_the_user_gets_groups_and_home() {
    let web = spec(json!({"Cmd": ["sh"], "User": "web"}), json!({}));
    assert_eq!(web["process"]["user"], json!({"uid": 33, "gid": 34, "additionalGids": [34, 50]}));
    assert_eq!(web["process"]["env"][2], "HOME=/var/www");
    let over = spec(json!({"Cmd": ["sh"], "User": "web", "Env": ["HOME=/x"]}), json!({"user": "7:8"}));
    assert_eq!(over["process"]["user"], json!({"uid": 7, "gid": 8, "additionalGids": [8]}));
    assert_eq!(over["process"]["env"][2], "HOME=/x");
    let error = make(json!({"Cmd": ["sh"], "User": "nobody"}), json!({})).unwrap_err();
    assert_eq!(error.code, Code::NotFound);
    assert!(error.message.contains("the image's user"));
}

#[test]
fn p6_what_the_kernel_tells_of_the_host_is_masked() {
    let linux = spec(json!({"Cmd": ["sh"]}), json!({}))["linux"].clone();
    let masked: Vec<String> = serde_json::from_value(linux["maskedPaths"].clone()).unwrap();
    for path in [
        "/proc/kcore",
        "/proc/keys",
        "/proc/interrupts",
        "/proc/acpi",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
    ] {
        assert!(masked.iter().any(|m| m == path), "{path}");
    }
    let here = std::path::Path::new("/sys/devices/system/cpu/cpu0/thermal_throttle");
    assert_eq!(here.exists(), masked.iter().any(|m| std::path::Path::new(m) == here));
    assert_eq!(
        linux["readonlyPaths"],
        json!(["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"])
    );
}

#[test]
fn p8_devices_are_denied_by_default() {
    let rules = spec(json!({"Cmd": ["sh"]}), json!({}))["linux"]["resources"]["devices"].clone();
    assert_eq!(rules[0], json!({"allow": false, "access": "rwm"}));
    for rule in rules.as_array().unwrap().iter().skip(1) {
        // No rule lets a block device, or every device, be opened.
        let opens = rule["access"].as_str().unwrap().contains(['r', 'w']);
        assert!(!opens || (rule["type"] == "c" && rule["major"].is_number()), "{rule}");
    }
    let unknown = serde_json::from_value::<Options>(json!({"volumes": ["/data"]})).unwrap_err();
    assert!(unknown.to_string().contains("volumes"));
}

#[test]
fn p9_only_sysctls_of_a_namespace_are_taken() {
    let good = json!({"kernel.shmmax": "1", "net.ipv4.ip_forward": "1", "fs.mqueue.msg_max": "5"});
    assert_eq!(spec(json!({"Cmd": ["sh"]}), json!({"sysctls": good}))["linux"]["sysctl"], good);
    let bad = [
        "kernel.core_pattern",
        "kernel.hostname",
        "vm.swappiness",
        "fs.file-max",
        "kernel.shmmax.x",
        "net",
        "network.x",
        "",
        "net..ipv4",
        "net/ipv4/ip_forward",
        "net.ipv4/../../kernel/core_pattern",
        "net.\n",
        "fs.mqueue",
        "KERNEL.shmmax",
    ];
    refused("sysctls", &bad.map(|name| json!({name: "1"})));
    let error =
        make(json!({"Cmd": ["sh"]}), json!({"network": "host", "sysctls": {"net.ipv4.ip_forward": "1"}})).unwrap_err();
    assert!(error.message.contains("change the host"));
}

#[test]
fn p10_no_new_privileges_unless_said_otherwise() {
    let config = json!({"Cmd": ["sh"]});
    assert_eq!(spec(config.clone(), json!({}))["process"]["noNewPrivileges"], true);
    assert_eq!(spec(config.clone(), json!({"no_new_privileges": false}))["process"]["noNewPrivileges"], false);
    assert_eq!(spec(config, json!({"seccomp": "unconfined"}))["linux"]["seccomp"], Value::Null);
    let options: Options = serde_json::from_value(json!({})).unwrap();
    assert_eq!(options, Options::default());
}

#[test]
fn l3_injection_is_refused_by_field() {
    let long = "a".repeat(65);
    refused("hostname", &["", "a\nb", "a\0", "a b", "a:b", "-a", ".a", "a..b", "a/b", &long].map(|h| json!(h)));
    refused("env", &["A", "=b", "A\n=b", "A\0=b", "A=b\0", "A B=c", ""].map(|e| json!([e])));
    refused("args", &[json!(["sh", "a\0b"]), json!([""])]);
    refused("cwd", &["a", "", "/a\nb", "/a\0", "/a/../b", ".."].map(|c| json!(c)));
    refused("sysctls", &["1\n2", "1\0", "\u{1b}[2J"].map(|v| json!({"net.ipv4.ip_forward": v})));
    refused("annotations", &[json!({"": "x"}), json!({"a\nb": "x"}), json!({"a": "x\0"})]);
    let bind = |source: &str, target: &str, options: &[&str]| json!([{"type": "bind", "source": source, "target": target, "options": options}]);
    refused(
        "mounts",
        &[
            bind("data", "/data", &[]),
            bind("/data/../etc", "/data", &[]),
            bind("/da\nta", "/data", &[]),
            bind("/data", "/da\0ta", &[]),
            bind("/data", "data", &[]),
            bind("/data", "/", &[]),
            bind("/data", "/./", &[]),
            bind("/data", "/proc/sys", &[]),
            bind("/data", "//proc/.", &[]),
            bind("/data", "/a/../../etc", &[]),
            bind("/data", "/data", &["ro,suid"]),
            bind("/data", "/data", &["ro\n"]),
            bind("/data", "/data", &["lowerdir=/etc"]),
            bind("/data", "/data", &["remount"]),
            bind("/data", "/data", &["size=1"]),
            bind("/data", "/data", &[""]),
        ],
    );
    let tmpfs = |option: &str| json!([{"type": "tmpfs", "target": "/x", "options": [option]}]);
    refused(
        "mounts",
        &[
            "size=",
            "size=1,uid=0",
            "size=1\n",
            "mode=9999",
            "mode=+1",
            "uid=-1",
            "size=1x",
            "nr_inodes=5%",
            "mpol=bind:0",
            "context=x",
            "bind",
            "size",
        ]
        .map(tmpfs),
    );
    refused(
        "mounts",
        &[json!([{"type": "tmpfs", "target": "/x"}, {"type": "bind", "source": "/x", "target": "/x/."}])],
    );
}

#[test]
fn l2_annotations_give_no_orders_to_a_runtime() {
    for key in [
        "org.systemd.property.ExecStopPost",
        "run.oci.handler",
        "org.criu.config",
        "module.wasm.image/variant",
        "io.katacontainers.config.hypervisor.kernel_params",
    ] {
        refused("annotations", &[json!({key: "x"})]);
    }
    let kept =
        spec(json!({"Cmd": ["sh"], "Labels": {"a": "image"}}), json!({"annotations": {"com.example/x": "a\nb"}}));
    assert_eq!(kept["annotations"], json!({"com.example/x": "a\nb"}));
}

#[test]
fn l4_a_home_from_the_image_cannot_forge_a_variable() {
    let dir = root();
    std::fs::write(dir.path().join("etc/passwd"), "root:x:0:0:a\u{7}:/\rLD_PRELOAD=x:/bin/sh\n").unwrap();
    let id = Id::new("a").unwrap();
    let (image, root) = (image(json!({"Cmd": ["sh"]})), File::open(dir.path()).unwrap());
    let look_up = |user: &str| users::resolve(&root, user);
    let error = generate("/shop/redis-1", &id, &image, &Options::default(), look_up).unwrap_err();
    assert_eq!(error.code, Code::InvalidArgument);
}

#[test]
fn c1_an_image_cannot_lead_the_working_directory_out() {
    for (given, taken) in [("", "/"), ("app", "/app"), ("/srv//./app/", "/srv/app"), (".", "/"), ("/", "/")] {
        assert_eq!(spec(json!({"Cmd": ["sh"], "WorkingDir": given}), json!({}))["process"]["cwd"], taken);
    }
    for bad in ["..", "/../etc", "a/../../b", "/a\nb", "/a\0"] {
        let error = make(json!({"Cmd": ["sh"], "WorkingDir": bad}), json!({})).unwrap_err();
        assert_eq!((error.code, error.id.as_str()), (Code::InvalidArgument, "cwd"), "{bad:?}");
    }
    // Volumes make no mounts, whatever they name; neither do ports, labels or a health check.
    let config = json!({
        "Cmd": ["sh"], "Volumes": {"/proc": {}, "/../etc": {}, "/data": {}}, "ExposedPorts": {"80/tcp": {}},
        "Labels": {"containerd.io/gc.root": "1"}, "Healthcheck": {"Test": ["CMD", "x"]}
    });
    let with = make(config, json!({})).unwrap();
    assert_eq!(with, make(json!({"Cmd": ["sh"]}), json!({})).unwrap());
    for bad in [json!({"Cmd": ["a\0"]}), json!({"Cmd": ["sh"], "Env": ["A"]}), json!({"Entrypoint": [""]}), json!({})] {
        assert_eq!(make(bad, json!({})).unwrap_err().code, Code::InvalidArgument);
    }
    // An image with no config at all can run what is said.
    let document = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
    let options = Options { args: vec!["/x".into()], ..Options::default() };
    let id = Id::new("a").unwrap();
    let dir = root();
    let image = serde_json::from_value(document).unwrap();
    let root = File::open(dir.path()).unwrap();
    generate("/shop/redis-1", &id, &image, &options, |user| users::resolve(&root, user)).unwrap();
}

#[test]
fn entrypoint_and_command_combine_as_in_docker() {
    let config = json!({"Entrypoint": ["entry", "-x"], "Cmd": ["cmd"]});
    for (options, args) in [
        (json!({}), json!(["entry", "-x", "cmd"])),
        (json!({"args": ["a", "b"]}), json!(["entry", "-x", "a", "b"])),
        (json!({"entrypoint": ["sh"]}), json!(["sh"])),
        (json!({"entrypoint": ["sh"], "args": ["-c", ""]}), json!(["sh", "-c", ""])),
        (json!({"entrypoint": [], "args": ["ls"]}), json!(["ls"])),
    ] {
        assert_eq!(spec(config.clone(), options)["process"]["args"], args);
    }
    assert_eq!(make(config, json!({"entrypoint": []})).unwrap_err().id, "args");
}

#[test]
fn later_environment_wins_in_the_place_of_the_first() {
    let config = json!({"Cmd": ["sh"], "Env": ["PATH=/bin", "A=1", "B=x=y", "A=2"]});
    let options = json!({"tty": true, "env": ["B=", "C=1\n2", "TERM=dumb", "C=3"]});
    let spec = spec(config, options);
    assert_eq!(
        spec["process"]["env"],
        json!(["PATH=/bin", "HOSTNAME=redis-1", "A=2", "B=", "C=3", "TERM=dumb", "HOME=/root"])
    );
    assert_eq!(spec["process"]["terminal"], true);
}

#[test]
fn the_host_network_brings_its_names() {
    let spec = make(json!({"Cmd": ["sh"]}), json!({"network": "host"})).unwrap();
    let namespaces = spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap();
    assert!(namespaces.iter().all(|n| n.typ() != LinuxNamespaceType::Network));
    let mounts = spec.mounts().as_ref().unwrap();
    for file in ["/etc/resolv.conf", "/etc/hosts"].map(std::path::Path::new) {
        let mount = mounts.iter().find(|m| m.destination() == file);
        assert_eq!(mount.is_some(), file.exists());
        if let Some(mount) = mount {
            assert_eq!(mount.source().as_deref(), Some(file));
            assert!(mount.options().as_ref().unwrap().contains(&"ro".to_owned()));
        }
    }
}

#[test]
fn a_network_that_is_named_brings_names_of_its_own() {
    let places = |options: Value| {
        let spec = make(json!({"Cmd": ["sh"]}), options).unwrap();
        let network = spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap().iter();
        let network = network.filter(|n| n.typ() == LinuxNamespaceType::Network).map(|n| n.path().clone()).next();
        let named = ["/etc/resolv.conf", "/etc/hosts", "/etc/hostname"];
        let mounts = spec.mounts().as_ref().unwrap().iter();
        let mounts = mounts.filter(|m| named.iter().any(|n| m.destination().as_path() == std::path::Path::new(n)));
        (network, mounts.filter(|m| m.source().as_ref().is_some_and(|s| s.is_relative())).count())
    };
    assert_eq!(places(json!({})), (Some(None), 0));
    assert_eq!(places(json!({"network": {"named": "blue"}})), (Some(None), 3));
    assert_eq!(places(json!({"network": {"container": "other"}})), (Some(None), 3));
    assert_eq!(places(json!({"network": {"path": "/run/netns/x"}})), (Some(Some("/run/netns/x".into())), 3));
    let names = json!({"hosts": [["db", "10.1.2.3"]]});
    assert_eq!(places(json!({"names": names})), (Some(None), 3));
    assert_eq!(places(json!({"network": "host", "names": names})), (None, 3));
    // A mount of one's own is there in their place.
    let own =
        json!({"network": {"named": "blue"}, "mounts": [{"type": "bind", "source": "/a", "target": "/etc/hosts"}]});
    assert_eq!(places(own).1, 2);
}

#[test]
fn what_does_not_go_with_a_network_is_refused_by_field() {
    let refused = |field: &str, options: Value| {
        let error = make(json!({"Cmd": ["sh"]}), options.clone()).unwrap_err();
        assert_eq!((error.code, error.id.as_str()), (Code::InvalidArgument, field), "{options}");
    };
    let port = json!({"hostPort": 80, "containerPort": 80, "protocol": "tcp"});
    for network in [json!("none"), json!("host"), json!({"path": "/x"}), json!({"container": "x"})] {
        for (field, wish) in [
            ("ports", json!({"ports": [port]})),
            ("addresses", json!({"addresses": ["10.1.2.3"]})),
            ("mac", json!({"mac": "02:00:00:00:00:01"})),
        ] {
            refused(field, json!({"network": network, "wish": wish}));
        }
    }
    refused("network", json!({"network": {"path": "x"}}));
    refused("network", json!({"network": {"path": "/a/../b"}}));
    refused("network", json!({"network": {"container": "x"}, "names": {"servers": ["1.1.1.1"]}}));
    for network in [json!({"path": "/x"}), json!({"container": "x"})] {
        refused("sysctls", json!({"network": network, "sysctls": {"net.ipv4.ip_forward": "1"}}));
    }
    let own = json!({"network": {"named": "blue"}, "sysctls": {"net.ipv4.ip_forward": "1"}});
    make(json!({"Cmd": ["sh"]}), own).unwrap();
}

#[test]
fn mounts_are_added_and_replace_default_ones_in_place() {
    let spec = make(
        json!({"Cmd": ["sh"]}),
        json!({"shm_size": 1 << 20, "mounts": [
            {"type": "bind", "source": "/srv/", "target": "/data", "options": ["ro"]},
            {"type": "tmpfs", "target": "/run", "options": ["size=1m", "exec"]},
            {"type": "bind", "source": "/opt", "target": "/opt", "options": ["bind", "rslave"]}
        ]}),
    )
    .unwrap();
    let mounts = serde_json::to_value(spec.mounts()).unwrap();
    assert_eq!(mounts[3]["options"], json!(["nosuid", "noexec", "nodev", "mode=1777", "size=1048576"]));
    assert_eq!(
        mounts[7],
        json!({
            "destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "noexec", "size=1m", "exec"]
        })
    );
    assert_eq!(
        mounts[8],
        json!({
            "destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "ro", "rprivate"]
        })
    );
    assert_eq!(mounts[9]["options"], json!(["bind", "rslave"]));
    refused("shm_size", &[json!(0)]);
}

#[test]
fn limits_become_resources() {
    let options = json!({"memory": 64 << 20, "cpus": 1.5, "cpu_shares": 512, "pids": 100, "readonly": true,
        "ulimits": [{"name": "nofile", "soft": 5, "hard": 6}, {"name": "RLIMIT_CORE", "soft": 0, "hard": 0}]});
    let spec = make(json!({"Cmd": ["sh"]}), options).unwrap();
    let value = serde_json::to_value(&spec).unwrap();
    let resources = &value["linux"]["resources"];
    assert_eq!(resources["memory"], json!({"limit": 64 << 20}));
    assert_eq!(resources["cpu"], json!({"shares": 512, "quota": 150_000, "period": 100_000}));
    assert_eq!(resources["pids"], json!({"limit": 100}));
    assert_eq!(value["root"]["readonly"], true);
    let limits = spec.process().as_ref().unwrap().rlimits().as_ref().unwrap();
    assert_eq!(limits.len(), 2);
    assert_eq!((limits[0].typ(), limits[0].soft(), limits[0].hard()), (PosixRlimitType::RlimitNofile, 5, 6));
    refused("memory", &[json!(0), json!(1000), json!(u64::MAX)]);
    refused("cpus", &[json!(0.0), json!(-1.0), json!(1e300)]);
    refused("cpu_shares", &[json!(1), json!(262_145)]);
    refused("pids", &[json!(0), json!(1u64 << 40)]);
    let ulimit = |name: &str, soft: u64, hard: u64| json!({"name": name, "soft": soft, "hard": hard});
    refused(
        "ulimits",
        &[
            json!([ulimit("nofile", 7, 6)]),
            json!([ulimit("bogus", 1, 1)]),
            json!([ulimit("", 1, 1)]),
            json!([ulimit("core", 1, 1), ulimit("RLIMIT_CORE", 1, 1)]),
        ],
    );
}

#[test]
fn an_exec_is_like_the_first_process_but_for_what_is_said() {
    let dir = root();
    let first = make(json!({"Cmd": ["sh"], "Env": ["A=1"], "WorkingDir": "/srv"}), json!({})).unwrap();
    let first = first.process().as_ref().unwrap();
    let file = File::open(dir.path()).unwrap();
    let run = |options: Value| exec(first, &serde_json::from_value(options).unwrap(), file.as_fd());
    let process =
        serde_json::to_value(run(json!({"args": ["ls"], "env": ["A=2"], "user": "web", "tty": true})).unwrap())
            .unwrap();
    assert_eq!(process["args"], json!(["ls"]));
    assert_eq!(
        (&process["cwd"], &process["terminal"], &process["user"]["uid"]),
        (&json!("/srv"), &json!(true), &json!(33))
    );
    let env = process["env"].as_array().unwrap();
    assert_eq!(env[2..], [json!("A=2"), json!("TERM=xterm"), json!("HOME=/var/www")]);
    assert_eq!(process["noNewPrivileges"], true);
    assert_eq!(process["capabilities"]["inheritable"], json!([]));
    for bad in [json!({}), json!({"args": ["ls"], "cwd": "../x"}), json!({"args": ["ls"], "env": ["A"]})] {
        assert_eq!(run(bad).unwrap_err().code, Code::InvalidArgument);
    }
}

#[test]
fn stop_signals_are_read() {
    for (text, number) in [("SIGQUIT", 3), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("rtmax-1", 63), ("", 15)] {
        assert_eq!(stop_signal(&image(json!({"StopSignal": text}))).unwrap(), number, "{text}");
    }
    for bad in ["0", "65", "-1", "SIGNOPE", "RTMIN+40", "SIGSIGTERM", "15\n"] {
        assert_eq!(stop_signal(&image(json!({"StopSignal": bad}))).unwrap_err().code, Code::InvalidArgument, "{bad}");
    }
}

#[test]
fn a_long_id_still_makes_a_host_name() {
    let id = Id::new(format!("{}-{}", "a".repeat(63), "b".repeat(12))).unwrap();
    assert_eq!(hostname(&id, &Options::default()).unwrap(), Some("a".repeat(63)));
}

#[test]
fn the_native_driver_takes_what_is_generated() {
    for options in [
        json!({}),
        json!({"network": "host", "readonly": true, "tty": true}),
        json!({"memory": 64 << 20, "cpus": 0.5, "cpu_shares": 512, "pids": 10, "cap_add": ["ALL"], "seccomp": "unconfined",
            "sysctls": {"net.ipv4.ip_forward": "1", "kernel.shmmax": "1"}, "no_new_privileges": false,
            "mounts": [{"type": "tmpfs", "target": "/x", "options": ["size=1m"]},
                {"type": "bind", "source": "/srv", "target": "/srv", "options": ["ro"]}]}),
    ] {
        crate::native::check(&make(json!({"Cmd": ["sh"], "User": "web"}), options).unwrap()).unwrap();
    }
}

#[test]
fn a_user_namespace_has_its_map_and_what_fits_in_it() {
    let map = json!([{"container": 0, "host": 100_000, "size": 65_536}]);
    let made = spec(json!({"Cmd": ["sh"], "User": "web"}), json!({"userns": map}));
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    assert_eq!((&made["linux"]["uidMappings"], &made["linux"]["gidMappings"]), (&mapping, &mapping));
    assert!(made["linux"]["namespaces"].as_array().unwrap().contains(&json!({"type": "user"})));
    let with = |made: &Value, target: &str| -> Value {
        made["mounts"].as_array().unwrap().iter().find(|m| m["destination"] == target).unwrap().clone()
    };
    assert!(with(&made, "/dev/pts")["options"].as_array().unwrap().contains(&json!("gid=5")));
    // Group 5 is nobody where there is only one id.
    let small =
        spec(json!({"Cmd": ["sh"], "User": "7:7"}), json!({"userns": [{"container": 7, "host": 7, "size": 1}]}));
    assert!(!with(&small, "/dev/pts")["options"].as_array().unwrap().contains(&json!("gid=5")));
    let host = spec(json!({"Cmd": ["sh"]}), json!({"userns": map, "network": "host"}));
    assert_eq!(with(&host, "/sys")["type"], "bind");
    refused(
        "userns",
        &[
            json!([{"container": 0, "host": 1, "size": 0}]),
            json!([{"container": 0, "host": 4_294_967_290u32, "size": 6}]),
            json!([{"container": 0, "host": 1, "size": 5}, {"container": 4, "host": 100, "size": 5}]),
            json!([{"container": 0, "host": 1, "size": 5}, {"container": 5, "host": 5, "size": 5}]),
            // Its user, root, is nobody there.
            json!([{"container": 1, "host": 1, "size": 5}]),
            json!(vec![json!({"container": 0, "host": 1, "size": 1}); 341]),
        ],
    );
}

#[test]
fn devices_of_the_host_have_a_node_and_a_rule() {
    let made = spec(
        json!({"Cmd": ["sh"]}),
        json!({"devices": [{"source": "/dev/null", "target": "/dev/void", "access": "r"}, {"source": "/dev/tty"}]}),
    );
    let devices = made["linux"]["devices"].as_array().unwrap();
    let place = |n: usize| (devices[n]["path"].clone(), devices[n]["type"].clone(), devices[n]["major"].clone());
    assert_eq!(place(0), (json!("/dev/void"), json!("c"), json!(1)));
    assert_eq!(place(1), (json!("/dev/tty"), json!("c"), json!(5)));
    let rules = made["linux"]["resources"]["devices"].as_array().unwrap();
    assert!(rules.contains(&json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"})));
    refused(
        "devices",
        &[
            json!([{"source": "/etc/passwd"}]),
            json!([{"source": "/dev/nonexistent"}]),
            json!([{"source": "dev/null"}]),
            json!([{"source": "/dev/null", "access": "x"}]),
            json!([{"source": "/dev/null", "access": "rr"}]),
            json!([{"source": "/dev/null", "target": "/etc/null"}]),
            json!([{"source": "/dev/null"}, {"source": "/dev/null"}]),
        ],
    );
}

#[test]
fn namespaces_cgroup_and_profiles_can_be_chosen() {
    let made = spec(
        json!({"Cmd": ["sh"]}),
        json!({"namespaces": {"pid": "host", "uts": "/proc/7/ns/uts", "ipc": "host"}, "cgroup": "/a//b", "apparmor": "strict",
            "oom_score_adj": -5, "seccomp_profile": {"defaultAction": "SCMP_ACT_ALLOW"}}),
    );
    let names = made["linux"]["namespaces"].clone();
    assert_eq!(
        names,
        json!([{"type": "uts", "path": "/proc/7/ns/uts"}, {"type": "mount"}, {"type": "cgroup"}, {"type": "network"}])
    );
    assert_eq!((&made["hostname"], &made["linux"]["cgroupsPath"]), (&Value::Null, &json!("/a/b")));
    assert_eq!((&made["process"]["apparmorProfile"], &made["process"]["oomScoreAdj"]), (&json!("strict"), &json!(-5)));
    assert_eq!(made["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ALLOW");
    let shm = made["mounts"].as_array().unwrap().iter().find(|m| m["destination"] == "/dev/shm").unwrap();
    assert_eq!(shm["type"], "bind");
    let host = spec(json!({"Cmd": ["sh"]}), json!({"namespaces": {"uts": "host"}}));
    let name = nix::unistd::gethostname().unwrap().into_string().unwrap();
    assert!(host["process"]["env"].as_array().unwrap().contains(&json!(format!("HOSTNAME={name}"))));
    refused("namespaces", &[json!({"mount": "host"}), json!({"pid": "relative"}), json!({"pid": ""})]);
    refused("cgroup", &[json!("relative"), json!("/a/../b"), json!("/"), json!("/a:b:c")]);
    refused("oom_score_adj", &[json!(1001), json!(-1001)]);
    refused("apparmor", &[json!(""), json!("a b")]);
    let both = json!({"seccomp": "unconfined", "seccomp_profile": {"defaultAction": "SCMP_ACT_ALLOW"}});
    assert_eq!(make(json!({"Cmd": ["sh"]}), both).unwrap_err().id, "seccomp_profile");
    let rule = |action: &str, args: serde_json::Value| json!([{"names": ["execve"], "action": action, "args": args}]);
    let one = json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]);
    for (default, rules, starts) in [
        ("SCMP_ACT_KILL", json!([]), false),
        ("SCMP_ACT_ERRNO", json!([]), false),
        ("SCMP_ACT_TRAP", rule("SCMP_ACT_KILL", json!([])), false),
        ("SCMP_ACT_ALLOW", rule("SCMP_ACT_ERRNO", json!([])), false),
        ("SCMP_ACT_ALLOW", rule("SCMP_ACT_ERRNO", one.clone()), true),
        ("SCMP_ACT_LOG", json!([]), true),
        ("SCMP_ACT_KILL", rule("SCMP_ACT_ALLOW", one), true),
    ] {
        let profile = json!({"defaultAction": default, "syscalls": rules});
        let made = make(json!({"Cmd": ["sh"]}), json!({"seccomp_profile": profile}));
        match made {
            Ok(_) => assert!(starts, "{default} {rules}"),
            Err(error) => assert!(!starts && error.message.contains("execve"), "{default} {rules}: {error}"),
        }
    }
    let ipc = json!({"namespaces": {"ipc": "host"}, "sysctls": {"kernel.msgmax": "1"}});
    assert_eq!(make(json!({"Cmd": ["sh"]}), ipc).unwrap_err().id, "sysctls");
    let named = json!({"namespaces": {"uts": "host"}, "hostname": "x"});
    assert_eq!(make(json!({"Cmd": ["sh"]}), named).unwrap_err().id, "hostname");
    assert!(seccomp_profile(b"").unwrap().is_none());
    assert_eq!(seccomp_profile(b"[1]").unwrap_err().id, "seccomp_profile");
}
