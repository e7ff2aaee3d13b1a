//! What the native driver can't honour in a spec it refuses by name: nothing is ever ignored.

use cofferdam_types::{Error, Result};
use oci_spec::runtime::{Hooks, Linux, LinuxNamespaceType, LinuxResources, LinuxSeccompAction, Mount, Process, Spec};

use crate::caps;

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
    all.into_iter().try_for_each(|(name, list)| refuse(some(list), name, LEAVE_OUT))
}

/// Checks the process of a spec, or that of an exec.
pub fn check_process(process: &Process) -> Result<()> {
    let set = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    refuse(set(process.command_line()), "process.commandLine", "it is for Windows; give process.args")?;
    refuse(set(process.apparmor_profile()), "process.apparmorProfile", LEAVE_OUT)?;
    refuse(set(process.selinux_label()), "process.selinuxLabel", LEAVE_OUT)?;
    refuse(process.io_priority().is_some(), "process.ioPriority", LEAVE_OUT)?;
    refuse(process.scheduler().is_some(), "process.scheduler", LEAVE_OUT)?;
    refuse(process.exec_cpu_affinity().is_some(), "process.execCPUAffinity", LEAVE_OUT)?;
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
    if let Some(capabilities) = process.capabilities() {
        let bits = |set: &Option<_>| set.as_ref().map_or(caps::Set::EMPTY, caps::Set::from).bits();
        // Inheritable capabilities turn file capabilities of the container into rights that nobody granted; ambient
        // ones can't be had without, and bring theirs.
        let more = bits(capabilities.inheritable()) & !bits(capabilities.ambient());
        refuse(more != 0, "process.capabilities.inheritable", "it may name no more than ambient does; leave it out")?;
    }
    Ok(())
}

fn check_mount(mount: &Mount) -> Result<()> {
    let field = |what: &str| format!("mounts {}: {what}", mount.destination().display());
    refuse(some(mount.uid_mappings()), &field("uidMappings"), LEAVE_OUT)?;
    refuse(some(mount.gid_mappings()), &field("gidMappings"), LEAVE_OUT)?;
    if !mount.destination().is_absolute() {
        return invalid(field("destination"), "must be absolute");
    }
    Ok(())
}

fn check_linux(spec: &Spec, linux: &Linux) -> Result<()> {
    refuse(linux.net_devices().as_ref().is_some_and(|d| !d.is_empty()), "linux.netDevices", LEAVE_OUT)?;
    refuse(some(linux.uid_mappings()), "linux.uidMappings", "user namespaces are not supported")?;
    refuse(some(linux.gid_mappings()), "linux.gidMappings", "user namespaces are not supported")?;
    refuse(linux.mount_label().as_ref().is_some_and(|l| !l.is_empty()), "linux.mountLabel", LEAVE_OUT)?;
    refuse(linux.intel_rdt().is_some(), "linux.intelRdt", LEAVE_OUT)?;
    refuse(linux.memory_policy().is_some(), "linux.memoryPolicy", LEAVE_OUT)?;
    refuse(linux.personality().is_some(), "linux.personality", LEAVE_OUT)?;
    refuse(linux.time_offsets().as_ref().is_some_and(|t| !t.is_empty()), "linux.timeOffsets", LEAVE_OUT)?;
    check_namespaces(linux)?;
    let uts = linux.namespaces().iter().flatten().any(|n| n.typ() == LinuxNamespaceType::Uts);
    for (field, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        if !uts && name.as_ref().is_some_and(|n| !n.is_empty()) {
            return invalid(field, "needs a uts namespace: it would be set on the host");
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
    check_sysctls(spec, linux)
}

fn check_namespaces(linux: &Linux) -> Result<()> {
    let mut seen = 0;
    for namespace in linux.namespaces().iter().flatten() {
        let kind = namespace.typ();
        if seen & kind as i32 != 0 {
            return invalid("linux.namespaces", format!("{kind} is named twice"));
        }
        seen |= kind as i32;
        let by_path = namespace.path().as_ref().is_some_and(|p| !p.as_os_str().is_empty());
        match kind {
            LinuxNamespaceType::User => return unimplemented("linux.namespaces user", LEAVE_OUT),
            LinuxNamespaceType::Time => return unimplemented("linux.namespaces time", LEAVE_OUT),
            LinuxNamespaceType::Mount if by_path => {
                return unimplemented(
                    "linux.namespaces mount",
                    "it mounts in a namespace of its own: leave out the path",
                );
            }
            _ => {}
        }
    }
    if seen & LinuxNamespaceType::Mount as i32 == 0 {
        return invalid("linux.namespaces", "needs a mount namespace: the root would be mounted on the host");
    }
    Ok(())
}

/// A kernel parameter may be set only if it is the container's own: the others are the host's.
fn check_sysctls(spec: &Spec, linux: &Linux) -> Result<()> {
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
        let path = super::plan::sysctl_path(name);
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
            return invalid(field, format!("give hostname instead (it is {:?})", spec.hostname()));
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
        if memory.swap().is_some_and(|s| s > 0) && memory.limit().is_none_or(|l| l > memory.swap().unwrap_or(l)) {
            return invalid("linux.resources.memory.swap", "is memory and swap together: give a limit not above it");
        }
    }
    if let Some(io) = resources.block_io() {
        refuse(io.leaf_weight().is_some(), "linux.resources.blockIO.leafWeight", LEAVE_OUT)?;
        refuse(some(io.weight_device()), "linux.resources.blockIO.weightDevice", LEAVE_OUT)?;
    }
    refuse(
        resources.network().as_ref().is_some_and(|n| n.class_id().is_some() || some(n.priorities())),
        "linux.resources.network",
        LEAVE_OUT,
    )?;
    refuse(resources.rdma().as_ref().is_some_and(|r| !r.is_empty()), "linux.resources.rdma", LEAVE_OUT)?;
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
        let hook = json!([{"path": "/bin/true"}]);
        let ids = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
        for (path, value, name) in [
            (
                "vm",
                json!({"hypervisor": {"path": "/x"}, "kernel": {"path": "/x"}, "image": {"path": "/x", "format": "raw"}}),
                "vm",
            ),
            ("hooks", json!({"prestart": hook}), "hooks.prestart"),
            ("hooks", json!({"createRuntime": hook}), "hooks.createRuntime"),
            ("hooks", json!({"createContainer": hook}), "hooks.createContainer"),
            ("hooks", json!({"startContainer": hook}), "hooks.startContainer"),
            ("hooks", json!({"poststart": hook}), "hooks.poststart"),
            ("hooks", json!({"poststop": hook}), "hooks.poststop"),
            ("process.apparmorProfile", json!("p"), "process.apparmorProfile"),
            ("process.selinuxLabel", json!("l"), "process.selinuxLabel"),
            ("process.commandLine", json!("c"), "process.commandLine"),
            ("process.ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 1}), "process.ioPriority"),
            ("process.scheduler", json!({"policy": "SCHED_OTHER"}), "process.scheduler"),
            ("process.execCPUAffinity", json!({"initial": "0"}), "process.execCPUAffinity"),
            ("process.user.username", json!("u"), "process.user.username"),
            ("process.capabilities", json!({"inheritable": ["CAP_KILL"]}), "process.capabilities.inheritable"),
            ("mounts.0.uidMappings", ids.clone(), "mounts /proc: uidMappings"),
            ("mounts.0.gidMappings", ids.clone(), "mounts /proc: gidMappings"),
            ("linux.uidMappings", ids.clone(), "linux.uidMappings"),
            ("linux.gidMappings", ids, "linux.gidMappings"),
            ("linux.mountLabel", json!("l"), "linux.mountLabel"),
            ("linux.intelRdt", json!({}), "linux.intelRdt"),
            ("linux.personality", json!({"domain": "LINUX32"}), "linux.personality"),
            ("linux.namespaces.1", json!({"type": "user"}), "linux.namespaces user"),
            ("linux.namespaces.1", json!({"type": "time"}), "linux.namespaces time"),
            ("linux.namespaces.0", json!({"type": "mount", "path": "/x"}), "linux.namespaces mount"),
            ("linux.cgroupsPath", json!("system.slice:coffer:x"), "linux.cgroupsPath"),
            ("linux.seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "linux.seccomp: SCMP_ACT_NOTIFY"),
            (
                "linux.seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}),
                "linux.seccomp.listenerPath",
            ),
            ("linux.resources", json!({"memory": {"kernel": 1}}), "linux.resources.memory.kernel"),
            ("linux.resources", json!({"memory": {"kernelTCP": 1}}), "linux.resources.memory.kernelTCP"),
            ("linux.resources", json!({"network": {"classID": 1}}), "linux.resources.network"),
            ("linux.resources", json!({"rdma": {"mlx": {"hcaHandles": 1}}}), "linux.resources.rdma"),
            ("linux.resources", json!({"blockIO": {"leafWeight": 10}}), "linux.resources.blockIO.leafWeight"),
        ] {
            let error = verdict(with(path, value.clone())).expect_err(name);
            assert_eq!((error.code, error.id.as_str()), (Code::Unimplemented, name), "{value}");
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
