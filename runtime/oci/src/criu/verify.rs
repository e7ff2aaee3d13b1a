//! What was restored is no more than the spec allows: a checkpoint says itself which rights its processes have, and
//! in which namespaces they are. Looked at while they stand still, before any of them has run.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use cofferdam_types::{Error, Result};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use prost::Message as _;

use crate::{CreateRequest, caps, seccomp};

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

/// criu's file of all filters of system calls, from whichever process (seccomp.proto).
const FILTERS: &str = "seccomp.img";
/// What such a file begins with: that it is an image, and of what.
const MAGIC: [u32; 2] = [0x5456_4319, 0x6441_3049];

#[derive(Clone, PartialEq, prost::Message)]
struct Filters {
    #[prost(message, repeated, tag = "1")]
    all: Vec<Filter>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Filter {
    /// `struct sock_filter` after `struct sock_filter`.
    #[prost(bytes = "vec", required, tag = "1")]
    program: Vec<u8>,
    /// The one that was there before it, by its place in the list.
    #[prost(uint32, optional, tag = "2")]
    before: Option<u32>,
}

/// K1: that a process has a filter says nothing of which. Each comes behind another one or is the first, and the first of all
/// is the one that the container is to have: who had that can only have added to it.
pub(super) fn filters(request: &CreateRequest<'_>, images: &Path) -> Result<()> {
    let profile = request.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let Some(profile) = profile else { return Ok(()) };
    let ours = match request.filter {
        Some(program) => seccomp::to_bytes(program),
        None => seccomp::to_bytes(&seccomp::compile(profile)?),
    };
    let bytes = match std::fs::read(images.join(FILTERS)) {
        Ok(bytes) => bytes,
        // Then there are processes without any, which is seen when they are there.
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("container", request.id, "reading its checkpoint's filters", &e)),
    };
    match first_are(&bytes, &ours) {
        Some(true) => Ok(()),
        Some(false) => {
            let why = "its checkpoint has a process with another filter of system calls than its options give: ask for that, \
                       or don't trust it";
            Err(Error::failed_precondition("container", request.id, why))
        }
        None => Err(Error::data_loss("container", request.id, "its checkpoint's filters can't be read")),
    }
}

/// Whether every first filter is this program. `None`: it is no file of filters.
fn first_are(file: &[u8], ours: &[u8]) -> Option<bool> {
    let (words, rest) = file.split_at_checked(12)?;
    let word = |n: usize| words.get(4 * n..4 * n + 4)?.try_into().ok().map(u32::from_le_bytes);
    if [word(0)?, word(1)?] != MAGIC {
        return None;
    }
    let all = Filters::decode(rest.get(..usize::try_from(word(2)?).ok()?)?).ok()?.all;
    // Only such as stand before it: there is no way round in circles to none.
    let sound = |(n, filter): (usize, &Filter)| match filter.before {
        Some(before) => usize::try_from(before).is_ok_and(|before| before < n),
        None => filter.program == ours,
    };
    Some(all.iter().enumerate().all(sound))
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
    fn k1_an_own_filter_in_place_of_the_one_asked_for_is_seen() {
        let file = |all: &[(&[u8], Option<u32>)]| {
            let all = all.iter().map(|(program, before)| Filter { program: program.to_vec(), before: *before });
            let message = Filters { all: all.collect() }.encode_to_vec();
            let words = MAGIC.into_iter().chain([message.len() as u32]).flat_map(u32::to_le_bytes);
            words.chain(message).collect::<Vec<u8>>()
        };
        let (ours, lax) = (&b"12345678"[..], &b"00000000"[..]);
        for good in [&[(ours, None)][..], &[(ours, None), (lax, Some(0))], &[]] {
            assert_eq!(first_are(&file(good), ours), Some(true), "{good:?}");
        }
        for bad in [
            &[(lax, None)][..],
            &[(ours, None), (lax, None)],
            &[(ours, None), (lax, Some(1))],
            &[(lax, Some(1)), (ours, None)],
            &[(b"", None)],
        ] {
            assert_eq!(first_are(&file(bad), ours), Some(false), "{bad:?}");
        }
        let whole = file(&[(ours, None)]);
        for broken in [&b""[..], &whole[..11], &whole[..whole.len() - 1], b"012345678901234"] {
            assert_eq!(first_are(broken, ours), None);
        }
    }

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
