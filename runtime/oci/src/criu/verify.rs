//! What was restored is no more than the spec allows: a checkpoint says itself which rights its processes have, and
//! in which namespaces they are. Looked at while they stand still, before any of them has run.

use std::path::PathBuf;

use cofferdam_types::{Error, Result};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::caps;

const NAMESPACES: [(&str, LinuxNamespaceType); 6] = [
    ("pid", LinuxNamespaceType::Pid),
    ("mnt", LinuxNamespaceType::Mount),
    ("ipc", LinuxNamespaceType::Ipc),
    ("uts", LinuxNamespaceType::Uts),
    ("net", LinuxNamespaceType::Network),
    ("cgroup", LinuxNamespaceType::Cgroup),
];

/// What a process has, as `/proc/<pid>/status` says it.
#[derive(Debug, Default, PartialEq)]
struct Rights {
    /// All sets together.
    capabilities: u64,
    no_new_privileges: bool,
    filtered: bool,
}

impl Rights {
    fn parse(status: &str) -> Rights {
        let mut rights = Rights::default();
        for (key, value) in status.lines().filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match key {
                "CapInh" | "CapPrm" | "CapEff" | "CapBnd" | "CapAmb" => {
                    rights.capabilities |= u64::from_str_radix(value, 16).unwrap_or(u64::MAX);
                }
                "NoNewPrivs" => rights.no_new_privileges = value == "1",
                "Seccomp" => rights.filtered = value == "2",
                _ => {}
            }
        }
        rights
    }

    /// What of it the spec doesn't allow.
    fn beyond(&self, spec: &Spec) -> Option<String> {
        let process = spec.process().as_ref();
        let given = process.and_then(|p| p.capabilities().as_ref());
        let bits = |set: &Option<_>| set.as_ref().map_or(0, |set| caps::Set::from(set).bits());
        let allowed = given.map_or(0, |sets| bits(sets.bounding()) | bits(sets.permitted()) | bits(sets.inheritable()));
        let more = self.capabilities & !allowed;
        if more != 0 {
            return Some(format!("capabilities {more:#x} more than it may have"));
        }
        if process.and_then(|p| p.no_new_privileges()).unwrap_or(false) && !self.no_new_privileges {
            return Some("no mark that it may not gain privileges".into());
        }
        let filter = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref()).is_some();
        (filter && !self.filtered).then(|| "no filter of system calls".into())
    }
}

/// Looks at every process of the container but criu itself, which lives there until it is done.
pub(super) fn verify(id: &str, spec: &Spec, pids: &[i32], criu: i32) -> Result<()> {
    let refuse = |what: String| {
        let why = format!("its checkpoint has a process with {what}: ask for that as well, or don't trust it");
        Err(Error::failed_precondition("container", id, why))
    };
    for pid in pids.iter().filter(|pid| **pid != criu) {
        let gone = |e: std::io::Error| Error::io("container", id, "looking at what was restored", &e);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(gone)?;
        if let Some(what) = Rights::parse(&status).beyond(spec) {
            return refuse(what);
        }
        for (name, kind) in NAMESPACES {
            let of = |process: &str| -> Result<PathBuf> {
                std::fs::read_link(format!("/proc/{process}/ns/{name}")).map_err(gone)
            };
            let own = super::dump::has(spec, kind);
            if own == (of(&pid.to_string())? == of("self")?) {
                let whose = if own { "this host's" } else { "one of its own" };
                return refuse(format!("another {name} namespace than its options say ({whose})"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn k1_rights_beyond_the_spec_are_seen() {
        let spec = |process: serde_json::Value, seccomp: bool| -> Spec {
            let mut spec = json!({"ociVersion": "1.0.2", "process": process, "linux": {}});
            spec["process"]["cwd"] = "/".into();
            spec["process"]["user"] = json!({"uid": 0, "gid": 0});
            if seccomp {
                spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
            }
            serde_json::from_value(spec).unwrap()
        };
        let status = |bounding: u64, nnp: u8, seccomp: u8| {
            Rights::parse(&format!(
                "Name:\tsh\nCapEff:\t0000000000000001\nCapBnd:\t{bounding:016x}\nNoNewPrivs:\t{nnp}\nSeccomp:\t{seccomp}\n"
            ))
        };
        let tight = spec(json!({"noNewPrivileges": true, "capabilities": {"bounding": ["CAP_CHOWN"]}}), true);
        assert_eq!(status(1, 1, 2).beyond(&tight), None);
        assert!(status(1 << 21 | 1, 1, 2).beyond(&tight).unwrap().contains("0x200000"));
        assert!(status(1, 0, 2).beyond(&tight).unwrap().contains("privileges"));
        assert!(status(1, 1, 0).beyond(&tight).unwrap().contains("filter"));
        let loose = spec(json!({"capabilities": {"bounding": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}}), false);
        assert_eq!(status(1 << 21 | 1, 0, 0).beyond(&loose), None);
    }
}
