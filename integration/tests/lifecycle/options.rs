//! What a driver and its shim are told beside the spec.

use std::{os::unix::fs::MetadataExt as _, path::Path, process::Command};

use cofferdam_client::{ContainerRequest, RUNTIME_OPTIONS, Stdio};
use cofferdam_integration::{Daemon, bounded, output, program};
use cofferdam_sys::cgroup::{Cgroup, Layout};
use cofferdam_types::{Any, Code};
use serde_json::{Value, json};

use crate::with;

fn options(value: Value) -> Any {
    Any { type_url: RUNTIME_OPTIONS.into(), value: value.to_string().into_bytes() }
}

/// A runc-compatible binary that writes down what it is told, and does the rest with runc.
struct Recorder {
    dir: tempfile::TempDir,
}

impl Recorder {
    fn new(rest: &str) -> Recorder {
        let dir = tempfile::Builder::new().prefix("runtime-").tempdir().unwrap();
        let (source, log) = (dir.path().join("source"), dir.path().join("log"));
        let text =
            format!("#!/bin/sh\necho \"$@\" >> {}\ncp config.json {}\n{rest}\n", log.display(), dir.path().display());
        std::fs::write(&source, text).unwrap();
        // In another process: a child forked meanwhile would hold it open for writing.
        let made = Command::new("install").args(["-m", "755"]).args([&source, &dir.path().join("runtime")]).status();
        assert!(made.unwrap().success());
        Recorder { dir }
    }

    fn path(&self) -> String {
        self.dir.path().join("runtime").to_str().unwrap().to_owned()
    }

    fn calls(&self, command: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
        let of = |line: &&str| line.split(' ').any(|word| word == command);
        log.lines().filter(of).map(str::to_owned).collect()
    }
}

#[test]
fn what_a_binary_is_told_reaches_it() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let recorder = Recorder::new("exec runc \"$@\"");
    let root = recorder.dir.path().join("state");
    bounded(async {
        let namespace = daemon.open().await;
        let given = json!({"root": root, "noPivot": true, "noNewKeyring": true, "criuPath": "/opt/criu"});
        let container = with(&namespace, "box", "exec sleep 1000", |c| {
            c.runtime = recorder.path();
            c.runtime_options = options(given);
        });
        let task = container.create_task(Stdio::default(), false);
        task.start().await.unwrap();
        let state = root.join(daemon.namespace()).join("box");
        assert!(state.join("state.json").is_file(), "it keeps its state where it was told, a directory per namespace");
        assert!(!daemon.state().join("runc").exists(), "and not elsewhere");
        let create = recorder.calls("create").concat();
        assert!(create.contains(" --no-pivot ") && create.contains(" --no-new-keyring "), "{create}");
        for command in ["create", "start"] {
            let call = recorder.calls(command).concat();
            let expected = format!("--root {}", root.join(daemon.namespace()).display());
            assert!(call.starts_with(&expected) && call.contains(" --criu /opt/criu "), "{call}");
            assert!(!call.contains("systemd"), "{call}");
        }
        container.remove(true).await.unwrap();
        assert!(!state.exists());
    });
    daemon.settles(&before);
}

/// The name is systemd's kind of name; where systemd runs it makes the group, and where it doesn't the error says so.
#[test]
fn cgroups_are_systemds_if_asked_for() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let recorder = Recorder::new("exec runc \"$@\"");
    bounded(async {
        let namespace = daemon.open().await;
        let container = with(&namespace, "box", "exec sleep 1000", |c| {
            c.runtime = recorder.path();
            c.runtime_options = options(json!({"systemdCgroup": true}));
        });
        let spec: Value = serde_json::from_slice(&container.info().await.unwrap().spec.value).unwrap();
        let name = spec["linux"]["cgroupsPath"].as_str().unwrap();
        assert!(name.starts_with("cofferdam-") && name.ends_with(&format!("-{}-:box", daemon.namespace())), "{name}");
        let task = container.create_task(Stdio::default(), false);
        let started = task.start().await;
        assert!(recorder.calls("create").concat().contains(" --systemd-cgroup "));
        let config: Value =
            serde_json::from_slice(&std::fs::read(recorder.dir.path().join("config.json")).unwrap()).unwrap();
        assert_eq!(config["linux"]["cgroupsPath"], name);
        if Path::new("/run/systemd/system").exists() {
            started.unwrap();
        } else {
            let error = started.unwrap_err();
            assert!(error.to_string().contains("systemd"), "{error}");
        }
        container.remove(true).await.unwrap();
    });
    daemon.settles(&before);
}

#[test]
fn wrong_options_are_refused_by_name() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        for (runtime, given, code, name) in [
            ("runc", json!({"nonsense": 1}), Code::InvalidArgument, "nonsense"),
            ("runc", json!({"systemdCgroup": "yes"}), Code::InvalidArgument, "yes"),
            ("runc", json!({"root": "../up"}), Code::InvalidArgument, "root"),
            ("", json!({"systemdCgroup": true}), Code::Unimplemented, "systemdCgroup"),
            ("native", json!({"root": "/run/r"}), Code::Unimplemented, "root"),
        ] {
            let container = with(&namespace, "box", "exit 0", |c| {
                c.runtime = runtime.into();
                c.runtime_options = options(given);
            });
            let error = container.info().await.unwrap_err();
            assert_eq!((error.code, &*error.kind), (code, "runtime options"), "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
        let foreign = with(&namespace, "box", "exit 0", |c| {
            c.runtime_options = Any { type_url: "containerd.linux.runc.RuncOptions".into(), value: Vec::new() };
        });
        let error = foreign.info().await.unwrap_err();
        assert!(error.code == Code::InvalidArgument && error.message.contains(RUNTIME_OPTIONS), "{error}");
    });
    daemon.settles(&before);

    // By the command line too, which knows no options by itself.
    let said = daemon.coffer(&["run", "--rm", "--runtime-opt", "nonsense=1", cofferdam_integration::BUSYBOX, "true"]);
    let error = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(
        said.status.code() == Some(125) && error.contains("nonsense") && error.contains("systemdCgroup"),
        "{error}"
    );
    let runc = ["/usr/sbin/runc", "/usr/bin/runc", "/usr/local/sbin/runc"].into_iter().find(|p| Path::new(p).exists());
    let image = cofferdam_integration::BUSYBOX;
    let args =
        ["run", "--rm", "--runtime", runc.unwrap(), "--runtime-opt", "ioGid=7", "--runtime-opt", "noNewKeyring=true"];
    let said = daemon.coffer(&[&args[..], &[image, "echo", "hello"]].concat());
    assert_eq!(String::from_utf8_lossy(&said.stdout), "hello\n", "{said:?}");
    daemon.settles(&before);
}

#[test]
fn the_pipes_belong_to_whom_they_are_given() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        for (id, runtime) in [("a", "native"), ("b", "runc")] {
            // What its process owns it would own in any case: every driver gives a process its own streams.
            let container = with(&namespace, id, "stat -L -c %u:%g /proc/self/fd/1; exec sleep 1000", |c| {
                c.runtime = runtime.into();
                c.runtime_options = options(json!({"ioUid": 3, "ioGid": 1234}));
                c.options.user = "1000".into();
            });
            let (stdout, arrivals) = output();
            let task = container.create_task(Stdio { stdout, ..Stdio::default() }, true);
            task.start().await.unwrap();
            arrivals.contains("1000:1234\n").await;
            container.remove(true).await.unwrap();
        }
    });
}

#[test]
fn the_session_keyring_is_its_own_unless_told_otherwise() {
    const KEYRING: &str = r#"
        #include <linux/keyctl.h>
        #include <stdio.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        int main(void) {
            char name[256] = "none";
            syscall(SYS_keyctl, KEYCTL_DESCRIBE, KEY_SPEC_SESSION_KEYRING, name, sizeof name);
            printf("%s\n", name);
            return 0;
        }"#;
    let daemon = Daemon::with_busybox();
    let dir = program("keyring", KEYRING);
    let source = dir.path().to_str().unwrap().to_owned();
    bounded(async {
        let client = daemon.client().await;
        for runtime in ["native", "runc"] {
            for own in [true, false] {
                let id = format!("{runtime}-{own}");
                let mut request = daemon.run(&id, ["/k/keyring"]);
                request.container.runtime = runtime.into();
                request.container.options.seccomp_unconfined = true;
                request.container.options.mounts = vec![cofferdam_client::BindMount {
                    target: "/k".into(),
                    source: cofferdam_client::MountSource::Host(source.clone()),
                    read_only: true,
                    options: Vec::new(),
                }];
                if !own {
                    request.container.runtime_options = options(json!({"noNewKeyring": true}));
                }
                let (stdout, arrivals) = output();
                request.stdio = Stdio { stdout, ..Stdio::default() };
                client.run(request).unwrap().wait().await.unwrap();
                let text = arrivals.text().await;
                assert_eq!(text.contains(&format!("_ses.{id}")), own, "{id}: {text}");
            }
        }
    });
}

/// On a host with AppArmor who names no profile has the default one; on another naming one is an error.
#[test]
fn a_container_has_an_apparmor_profile_where_there_are_any() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let there = Path::new("/sys/kernel/security/apparmor/profiles").exists();
    bounded(async {
        let namespace = daemon.open().await;
        let profile = async |id: &str, name: &str| {
            let container = with(&namespace, id, "exit 0", |c| c.options.apparmor = name.into());
            let spec: Value = serde_json::from_slice(&container.info().await.unwrap().spec.value).unwrap();
            let ended = container.create_task(Stdio::default(), false).start().await;
            container.remove(true).await.unwrap();
            (spec["process"]["apparmorProfile"].as_str().map(str::to_owned), ended)
        };
        let (name, started) = profile("a", "").await;
        assert_eq!(name.as_deref(), there.then_some("cofferdam-default"));
        started.unwrap();
        let (name, started) = profile("b", "unconfined").await;
        assert_eq!(name.as_deref(), Some("unconfined"));
        started.unwrap();
        let (_, started) = profile("c", "of-no-host").await;
        let error = started.unwrap_err();
        let expected = if there { Code::FailedPrecondition } else { Code::Unimplemented };
        assert!(error.code == expected && error.to_string().to_lowercase().contains("apparmor"), "{error}");
    });
    daemon.settles(&before);
}

/// A cgroup of the test's own, which goes with it however it ends.
struct Group(Cgroup);

impl Drop for Group {
    fn drop(&mut self) {
        let removed = self.0.kill().and_then(|()| self.0.remove());
        assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
    }
}

#[test]
fn a_shim_is_put_into_a_cgroup() {
    let layout = Layout::detect().unwrap();
    let path = format!("/shims-of-{}", std::process::id());
    // Goes behind the daemon.
    let group = Group(Cgroup::create(&layout, &path).unwrap());
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        for (id, runtime) in [("a", "native"), ("b", "runc")] {
            let container = with(&namespace, id, "exec sleep 1000", |c| {
                c.runtime = runtime.into();
                c.runtime_options = options(json!({"shimCgroup": path}));
            });
            let task = container.create_task(Stdio::default(), false);
            let pid = task.start().await.unwrap();
            let shim = crate::shims::of(&daemon);
            assert_eq!(group.0.pids().unwrap(), [shim], "the shim alone");
            let groups = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            let count = |text: &str| text.lines().filter(|line| line.ends_with(&format!(":{path}"))).count();
            assert_eq!(count(&groups(shim)), layout.hierarchies.len(), "{}", groups(shim));
            assert_eq!(count(&groups(pid as i32)), 0, "{}", groups(pid as i32));
            container.remove(true).await.unwrap();
            daemon.settles(&before);
        }
        let container =
            with(&namespace, "c", "exit 0", |c| c.runtime_options = options(json!({"shimCgroup": "/none/such"})));
        let error = container.create_task(Stdio::default(), false).state().await.unwrap_err();
        assert_eq!((error.code, &*error.kind, &*error.id), (Code::NotFound, "cgroup", "/none/such"), "{error}");
        container.remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

/// The state of a binary whose shim was killed would be in the way of the next container, wherever it is; what is
/// something else there stays.
#[test]
fn state_elsewhere_goes_with_its_container_and_nothing_else_does() {
    let daemon = Daemon::with_busybox();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join(daemon.namespace()).join("box");
    bounded(async {
        let namespace = daemon.open().await;
        let make = || {
            let change = |c: &mut ContainerRequest| {
                c.runtime = "runc".into();
                c.runtime_options = options(json!({"root": dir.path()}));
            };
            with(&namespace, "box", "exec sleep 1000", change)
        };
        let container = make();
        let task = container.create_task(Stdio::default(), false);
        task.start().await.unwrap();
        assert_eq!(std::fs::metadata(&state).unwrap().uid(), 0);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(crate::shims::of(&daemon)), nix::sys::signal::SIGKILL)
            .unwrap();
        assert_eq!(task.wait().await.unwrap().reason, "shim lost");
        container.remove(true).await.unwrap();
        assert!(!state.exists());

        std::fs::create_dir_all(&state).unwrap();
        std::fs::write(state.join("precious"), "").unwrap();
        let container = make();
        let error = container.create_task(Stdio::default(), false).state().await.unwrap_err();
        assert_eq!(error.code, Code::AlreadyExists, "{error}");
        container.remove(true).await.unwrap();
        assert!(state.join("precious").exists());
    });
}
