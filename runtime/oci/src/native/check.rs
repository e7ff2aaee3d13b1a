//! What the native driver can't honour in a spec it refuses by name: nothing is ever ignored.

use cofferdam_types::{Error, Result};
use oci_spec::runtime::{
    Hooks, Linux, LinuxNamespace, LinuxNamespaceType, LinuxResources, LinuxSeccompAction, Mount, Process, Spec,
};

use super::{netdevices, plan, properties, rdt, step};

fn unimplemented<T>(field: impl ToString, why: &str) -> Result<T> {
    Err(Error::unimplemented("spec", field, format!("the native runtime doesn't have it: {why}")))
}

fn invalid<T>(field: impl ToString, why: impl Into<String>) -> Result<T> {
    Err(Error::invalid("spec", field, why))
}

/// Refuses if `set`.
fn refuse(set: bool, field: &str, why: &str) -> Result<()> {
    if set { unimplemented(field, why) } else { Ok(()) }
}

fn some<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_some_and(|l| !l.is_empty())
}

const LEAVE_OUT: &str = "leave it out, or use another runtime";
/// `__NEW_UTS_LEN` of linux/utsname.h.
const LONGEST_NAME: usize = 64;
const NO_LIMIT: &str = "is below -1, which is no limit";

/// Walks a whole spec.
#[allow(deprecated)] // uid_mappings and gid_mappings at the top: never in the standard, but the type has them.
pub fn check(spec: &Spec) -> Result<()> {
    refuse(spec.solaris().is_some(), "solaris", LEAVE_OUT)?;
    refuse(spec.windows().is_some(), "windows", LEAVE_OUT)?;
    refuse(spec.vm().is_some(), "vm", LEAVE_OUT)?;
    refuse(spec.zos().is_some(), "zos", LEAVE_OUT)?;
    refuse(some(spec.uid_mappings()), "uidMappings", "give linux.uidMappings")?;
    refuse(some(spec.gid_mappings()), "gidMappings", "give linux.gidMappings")?;
    if let Some(hooks) = spec.hooks() {
        check_hooks(hooks)?;
    }
    let Some(process) = spec.process() else { return invalid("process", "is missing: name a command") };
    check_process(process)?;
    for mount in spec.mounts().iter().flatten() {
        check_mount(mount)?;
    }
    let Some(linux) = spec.linux() else { return invalid("linux", "is missing: the native runtime needs namespaces") };
    check_linux(spec, linux)
}

fn check_hooks(hooks: &Hooks) -> Result<()> {
    #[allow(deprecated)] // prestart is, but specs have it.
    let all = [
        ("hooks.prestart", hooks.prestart()),
        ("hooks.createRuntime", hooks.create_runtime()),
        ("hooks.createContainer", hooks.create_container()),
        ("hooks.startContainer", hooks.start_container()),
        ("hooks.poststart", hooks.poststart()),
        ("hooks.poststop", hooks.poststop()),
    ];
    for (name, list) in all {
        for hook in list.iter().flatten() {
            if !hook.path().is_absolute() {
                return invalid(name, format!("has a path that is not absolute: {}", hook.path().display()));
            }
            if hook.timeout().is_some_and(|seconds| seconds <= 0) {
                return invalid(name, "has a timeout of no second: leave it out, or give one above 0");
            }
            check_env(name, hook.env())?;
        }
    }
    Ok(())
}

fn check_env(field: &str, env: &Option<Vec<String>>) -> Result<()> {
    let bad = |v: &&String| v.contains('\0') || v.split_once('=').is_none_or(|(key, _)| key.is_empty());
    match env.iter().flatten().find(bad) {
        Some(variable) => invalid(field, format!("has the variable {variable:?}, which is not KEY=value")),
        None => Ok(()),
    }
}

/// Checks the process of a spec, or that of an exec.
pub fn check_process(process: &Process) -> Result<()> {
    let set = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    refuse(set(process.command_line()), "process.commandLine", "it is for Windows; give process.args")?;
    properties::check(process)?;
    check_env("process.env", process.env())?;
    let user = process.user();
    refuse(set(user.username()), "process.user.username", "it is for Windows; give process.user.uid")?;
    // -1 means "leave as it is" to the kernel.
    let groups = user.additional_gids().iter().flatten().copied();
    if [user.uid(), user.gid()].into_iter().chain(groups).any(|id| id == u32::MAX) {
        return invalid("process.user", "4294967295 is no user or group id");
    }
    if user.umask().is_some_and(|m| m > 0o777) {
        return invalid("process.user.umask", "is above 0777");
    }
    if !process.cwd().is_absolute() {
        return invalid("process.cwd", "must be absolute");
    }
    if process.oom_score_adj().is_some_and(|s| !(-1000..=1000).contains(&s)) {
        return invalid("process.oomScoreAdj", "must lie between -1000 and 1000");
    }
    Ok(())
}

fn check_mount(mount: &Mount) -> Result<()> {
    let field = |what: &str| format!("mounts {}: {what}", mount.destination().display());
    if !mount.destination().is_absolute() {
        return invalid(field("destination"), "must be absolute");
    }
    // A remount of it changes what is there.
    let remount = mount.options().iter().flatten().any(|option| option == "remount");
    if !remount && plan::normal(mount.destination())?.as_bytes() == b"/" {
        return invalid(field("destination"), step::ROOT);
    }
    Ok(())
}

fn check_linux(spec: &Spec, linux: &Linux) -> Result<()> {
    netdevices::check(linux)?;
    if linux.mount_label().as_ref().is_some_and(|l| !l.is_empty()) && !properties::has_selinux() {
        let why = "this kernel has no SELinux, or it is not on: leave it out";
        return Err(Error::unimplemented("spec", "linux.mountLabel", why));
    }
    if let Some(rdt) = linux.intel_rdt() {
        rdt::check(rdt)?;
        rdt::root()?;
    }
    check_namespaces(linux)?;
    let uts = linux.namespaces().iter().flatten().any(|n| n.typ() == LinuxNamespaceType::Uts);
    for (field, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        if !uts && name.as_ref().is_some_and(|n| !n.is_empty()) {
            return invalid(field, "needs a uts namespace: it would be set on the host");
        }
        if name.as_ref().is_some_and(|n| n.len() > LONGEST_NAME) {
            return invalid(
                field,
                format!("has more than {LONGEST_NAME} bytes, which is the most that the kernel takes"),
            );
        }
    }
    if let Some(seccomp) = linux.seccomp() {
        refuse(seccomp.listener_path().is_some(), "linux.seccomp.listenerPath", LEAVE_OUT)?;
        let rules = seccomp.syscalls().iter().flatten().map(|rule| rule.action());
        let notify = rules.chain([seccomp.default_action()]).any(|a| a == LinuxSeccompAction::ScmpActNotify);
        refuse(notify, "linux.seccomp: SCMP_ACT_NOTIFY", LEAVE_OUT)?;
    }
    if let Some(path) = linux.cgroups_path() {
        let systemd = path.to_string_lossy().matches(':').count() == 2;
        refuse(systemd, "linux.cgroupsPath", "it is in systemd's form slice:prefix:name; give a path like /a/b")?;
    }
    if let Some(resources) = linux.resources() {
        check_resources(resources)?;
    }
    check_sysctls(linux)
}

fn check_namespaces(linux: &Linux) -> Result<()> {
    let mapped = some(linux.uid_mappings()) && some(linux.gid_mappings());
    let mut seen = 0;
    for namespace in linux.namespaces().iter().flatten() {
        let kind = namespace.typ();
        if seen & kind as i32 != 0 {
            return invalid("linux.namespaces", format!("{kind} is named twice"));
        }
        seen |= kind as i32;
        let by_path = namespace.path().as_ref().is_some_and(|p| !p.as_os_str().is_empty());
        match kind {
            LinuxNamespaceType::User if !(by_path || mapped) => {
                return invalid("linux.namespaces user", "needs linux.uidMappings and linux.gidMappings");
            }
            _ => {}
        }
    }
    let own_time = |n: &LinuxNamespace| {
        n.typ() == LinuxNamespaceType::Time && n.path().as_ref().is_none_or(|p| p.as_os_str().is_empty())
    };
    if linux.time_offsets().as_ref().is_some_and(|t| !t.is_empty())
        && !linux.namespaces().iter().flatten().any(own_time)
    {
        return invalid("linux.timeOffsets", "needs a new time namespace: add one, without a path");
    }
    if seen & LinuxNamespaceType::User as i32 == 0 {
        for (field, mappings) in
            [("linux.uidMappings", linux.uid_mappings()), ("linux.gidMappings", linux.gid_mappings())]
        {
            if some(mappings) {
                return invalid(field, "needs a user namespace: add one to linux.namespaces");
            }
        }
    }
    if seen & LinuxNamespaceType::Mount as i32 == 0 {
        return invalid("linux.namespaces", "needs a mount namespace: the root would be mounted on the host");
    }
    Ok(())
}

/// A kernel parameter may be set only if it is the container's own: the others are the host's.
fn check_sysctls(linux: &Linux) -> Result<()> {
    const IPC: &[&str] = &[
        "kernel/msgmax",
        "kernel/msgmnb",
        "kernel/msgmni",
        "kernel/sem",
        "kernel/shmall",
        "kernel/shmmax",
        "kernel/shmmni",
        "kernel/shm_rmid_forced",
    ];
    let own = |kind| linux.namespaces().iter().flatten().any(|n| n.typ() == kind);
    for (name, value) in linux.sysctl().iter().flatten() {
        let field = format!("linux.sysctl {}", name.escape_default());
        let path = plan::sysctl_path(name);
        let path = path.trim_start_matches("sys/");
        if path.split('/').any(|part| part.is_empty()) || value.contains(['\0', '\n']) || name.contains('\0') {
            return invalid(field, "is no kernel parameter with a value of one line");
        }
        let (needs, namespace) = if IPC.contains(&path) || path.starts_with("fs/mqueue/") {
            (LinuxNamespaceType::Ipc, "an ipc")
        } else if path.starts_with("net/") {
            (LinuxNamespaceType::Network, "a network")
        } else if path == "kernel/domainname" {
            (LinuxNamespaceType::Uts, "a uts")
        } else if path == "kernel/hostname" {
            return invalid(field, "give hostname instead");
        } else {
            return invalid(field, "is a parameter of the host, not of a namespace: set it on the host");
        };
        if !own(needs) {
            return invalid(field, format!("needs {namespace} namespace of the container's own: add one"));
        }
    }
    Ok(())
}

/// Checks limits, those of a spec or of an update.
pub fn check_resources(resources: &LinuxResources) -> Result<()> {
    if let Some(memory) = resources.memory() {
        refuse(memory.kernel().is_some(), "linux.resources.memory.kernel", "Linux has given it up; leave it out")?;
        refuse(memory.kernel_tcp().is_some(), "linux.resources.memory.kernelTCP", LEAVE_OUT)?;
        let flat = memory.use_hierarchy() == Some(false);
        refuse(flat, "linux.resources.memory.useHierarchy", "memory is always counted in the hierarchy")?;
        for (field, value) in
            [("limit", memory.limit()), ("swap", memory.swap()), ("reservation", memory.reservation())]
        {
            if value.is_some_and(|bytes| bytes < -1) {
                return invalid(format!("linux.resources.memory.{field}"), NO_LIMIT);
            }
        }
        if memory.swap().is_some_and(|s| s > 0) && memory.limit().is_none_or(|l| l > memory.swap().unwrap_or(l)) {
            return invalid("linux.resources.memory.swap", "is memory and swap together: give a limit not above it");
        }
    }
    if resources.pids().as_ref().is_some_and(|pids| pids.limit() < -1) {
        return invalid("linux.resources.pids.limit", NO_LIMIT);
    }
    let io = resources.block_io().as_ref();
    let devices = io.and_then(|io| io.weight_device().as_ref()).into_iter().flatten().filter_map(|d| d.weight());
    if io.and_then(|io| io.weight()).into_iter().chain(devices).any(|w| w != 0 && !(10..=1000).contains(&w)) {
        return invalid("linux.resources.blockIO", "has a weight that is not between 10 and 1000");
    }
    for (device, _) in resources.rdma().iter().flatten() {
        if device.is_empty() || device.contains(char::is_whitespace) || device.contains('\0') {
            return invalid("linux.resources.rdma", "has a name that no device can have");
        }
    }
    for interface in resources.network().iter().flat_map(|n| n.priorities().iter().flatten()) {
        if interface.name().is_empty() || interface.name().contains(char::is_whitespace) {
            return invalid("linux.resources.network", "has a name that no interface can have");
        }
    }
    for page in resources.hugepage_limits().iter().flatten() {
        if page.page_size().contains(['/', '\0']) || page.page_size().is_empty() {
            return invalid("linux.resources.hugepageLimits", "has a bad page size");
        }
    }
    for (file, value) in resources.unified().iter().flatten() {
        if file.contains(['/', '\0']) || !file.contains('.') || file.starts_with("cgroup.") || value.contains('\0') {
            return invalid(format!("linux.resources.unified {}", file.escape_default()), "is not the name of a limit");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Code;
    use serde_json::{Value, json};

    use super::*;

    fn spec() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"]},
            "mounts": [{"destination": "/proc", "type": "proc"}],
            "linux": {"namespaces": [{"type": "mount"}, {"type": "ipc"}, {"type": "network"}, {"type": "uts"}]},
        })
    }

    /// Puts `value` at the dotted `path`.
    fn with(path: &str, value: Value) -> Value {
        let mut spec = spec();
        let mut place = &mut spec;
        for part in path.split('.') {
            place = match part.parse::<usize>() {
                Ok(index) => &mut place[index],
                Err(_) => &mut place[part],
            };
        }
        *place = value;
        spec
    }

    fn verdict(spec: Value) -> Result<()> {
        check(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn a_plain_spec_passes() {
        verdict(spec()).unwrap();
        let ids = json!({"uid": 0, "gid": 0, "umask": 0o777, "additionalGids": [1]});
        verdict(with("process.user", ids)).unwrap();
        verdict(with("linux.sysctl", json!({"net.core.somaxconn": "1", "kernel.domainname": "x"}))).unwrap();
        verdict(with("hooks", json!({"prestart": []}))).unwrap();
    }

    #[test]
    fn what_the_driver_does_not_have_is_refused_by_name() {
        for (path, value, name) in [
            (
                "vm",
                json!({"hypervisor": {"path": "/x"}, "kernel": {"path": "/x"}, "image": {"path": "/x", "format": "raw"}}),
                "vm",
            ),
            ("process.commandLine", json!("c"), "process.commandLine"),
            ("process.user.username", json!("u"), "process.user.username"),
            ("linux.cgroupsPath", json!("system.slice:coffer:x"), "linux.cgroupsPath"),
            ("linux.seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "linux.seccomp: SCMP_ACT_NOTIFY"),
            (
                "linux.seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}),
                "linux.seccomp.listenerPath",
            ),
            ("linux.resources", json!({"memory": {"kernel": 1}}), "linux.resources.memory.kernel"),
            ("linux.resources", json!({"memory": {"kernelTCP": 1}}), "linux.resources.memory.kernelTCP"),
        ] {
            let error = verdict(with(path, value.clone())).expect_err(name);
            assert_eq!((error.code, error.id.as_str()), (Code::Unimplemented, name), "{value}");
        }
    }

    #[test]
    fn what_the_kernel_does_not_have_is_refused_by_name() {
        let label = verdict(with("linux.mountLabel", json!("system_u:object_r:container_file_t:s0")));
        if properties::has_selinux() {
            label.unwrap();
        } else {
            let error = label.unwrap_err();
            assert_eq!((error.code, error.id.as_str()), (Code::Unimplemented, "linux.mountLabel"));
            assert!(error.message.contains("SELinux"), "{error}");
        }
        let class = verdict(with("linux.intelRdt", json!({"closID": "x", "schemata": ["L3:0=f"]})));
        if rdt::root().is_ok() {
            class.unwrap();
        } else {
            let error = class.unwrap_err();
            assert_eq!((error.code, error.id.as_str()), (Code::Unimplemented, "linux.intelRdt"));
            assert!(error.message.contains("resctrl"), "{error}");
        }
    }

    // P3 and P9 of the negative tests among them.
    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (path, value, name) in [
            ("process", Value::Null, "process"),
            ("linux", Value::Null, "linux"),
            ("process.cwd", json!("relative"), "process.cwd"),
            ("process.user.uid", json!(u32::MAX), "process.user"),
            ("process.user.gid", json!(u32::MAX), "process.user"),
            ("process.user.additionalGids", json!([1, u32::MAX]), "process.user"),
            ("process.user.umask", json!(0o1000), "process.user.umask"),
            ("process.oomScoreAdj", json!(1001), "process.oomScoreAdj"),
            ("process.env", json!(["PATH=/bin", "A"]), "process.env"),
            ("process.env", json!(["=A"]), "process.env"),
            ("hostname", json!("x".repeat(65)), "hostname"),
            ("domainname", json!("x".repeat(65)), "domainname"),
            ("mounts.0.destination", json!("/"), "mounts /: destination"),
            ("mounts.0.destination", json!("/tmp/.."), "mounts /tmp/..: destination"),
            ("linux.netDevices", json!({"": {}}), "linux.netDevices"),
            ("linux.netDevices", json!({"a/b": {}}), "linux.netDevices"),
            ("linux.netDevices", json!({"eth0": {"name": "eth%d"}}), "linux.netDevices"),
            ("linux.netDevices", json!({"eth0": {"name": "a-name-too-long-"}}), "linux.netDevices"),
            ("linux.netDevices", json!({"eth0": {"name": "x"}, "eth1": {"name": "x"}}), "linux.netDevices"),
            ("hooks", json!({"prestart": [{"path": "bin/true"}]}), "hooks.prestart"),
            ("hooks", json!({"createRuntime": [{"path": "/bin/true", "timeout": 0}]}), "hooks.createRuntime"),
            ("hooks", json!({"createContainer": [{"path": "/bin/true", "timeout": -1}]}), "hooks.createContainer"),
            ("hooks", json!({"startContainer": [{"path": "true"}]}), "hooks.startContainer"),
            ("hooks", json!({"poststart": [{"path": "/bin/true", "env": ["A"]}]}), "hooks.poststart"),
            ("hooks", json!({"poststop": [{"path": "/bin/true", "env": ["=A"]}]}), "hooks.poststop"),
            ("process.ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 8}), "process.ioPriority"),
            ("process.execCPUAffinity", json!({"initial": "5000"}), "process.execCPUAffinity.initial"),
            ("linux.timeOffsets", json!({"monotonic": {"secs": 1}}), "linux.timeOffsets"),
            ("linux.resources", json!({"memory": {"reservation": -2}}), "linux.resources.memory.reservation"),
            ("linux.resources", json!({"pids": {"limit": -2}}), "linux.resources.pids.limit"),
            ("linux.resources", json!({"blockIO": {"weight": 9}}), "linux.resources.blockIO"),
            ("mounts.0.destination", json!("proc"), "mounts proc: destination"),
            ("linux.namespaces", json!([{"type": "pid"}]), "linux.namespaces"),
            ("linux.namespaces", json!([{"type": "mount"}, {"type": "pid"}, {"type": "pid"}]), "linux.namespaces"),
            ("linux.sysctl", json!({"kernel.core_pattern": "|/bin/sh"}), "linux.sysctl kernel.core_pattern"),
            (
                "linux.sysctl",
                json!({"net.../../kernel.core_pattern": "x"}),
                "linux.sysctl net.../../kernel.core_pattern",
            ),
            ("linux.sysctl", json!({"kernel.hostname": "x"}), "linux.sysctl kernel.hostname"),
            ("linux.sysctl", json!({"net.core.somaxconn": "1\n2"}), "linux.sysctl net.core.somaxconn"),
            ("linux.resources", json!({"memory": {"swap": 5, "limit": 6}}), "linux.resources.memory.swap"),
            ("linux.resources", json!({"rdma": {"a b": {"hcaHandles": 1}}}), "linux.resources.rdma"),
            (
                "linux.resources",
                json!({"network": {"priorities": [{"name": "a b", "priority": 1}]}}),
                "linux.resources.network",
            ),
            ("linux.resources", json!({"unified": {"../x.y": "1"}}), "linux.resources.unified ../x.y"),
            ("linux.resources", json!({"unified": {"cgroup.procs": "1"}}), "linux.resources.unified cgroup.procs"),
            (
                "linux.resources",
                json!({"hugepageLimits": [{"pageSize": "../x", "limit": 1}]}),
                "linux.resources.hugepageLimits",
            ),
        ] {
            let error = verdict(with(path, value.clone())).expect_err(name);
            assert_eq!((error.code, error.id.as_str()), (Code::InvalidArgument, name), "{value}");
        }
        let ids = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
        for (field, value) in [("uidMappings", ids.clone()), ("gidMappings", ids.clone())] {
            let name = format!("linux.{field}");
            assert_eq!(verdict(with(&name, value.clone())).unwrap_err().id, name);
            // One of the two is not enough.
            let mut half = with(&name, value);
            half["linux"]["namespaces"][1] = json!({"type": "user"});
            assert_eq!(verdict(half).unwrap_err().id, "linux.namespaces user");
        }
        for field in ["hostname", "domainname"] {
            let mut host = with(field, json!("x"));
            verdict(host.clone()).unwrap();
            host["linux"]["namespaces"] = json!([{"type": "mount"}]);
            assert_eq!(verdict(host).unwrap_err().id, field);
        }
        let mut host = with("linux.sysctl", json!({"net.core.somaxconn": "1"}));
        host["linux"]["namespaces"] = json!([{"type": "mount"}]);
        assert_eq!(verdict(host).unwrap_err().code, Code::InvalidArgument);
        for id in [json!(-1), json!(1u64 << 32), json!("0")] {
            assert!(serde_json::from_value::<Spec>(with("process.user.uid", id)).is_err());
        }
    }
}
