//! Seccomp profiles, compiled once for all containers that have the same one.
//!
//! A profile is most of a spec, hundreds of names. Who has the program needs none of them: neither this daemon when it
//! looks into a spec, nor the shim.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use cofferdam_oci::seccomp;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Containers differ little: a few sets of capabilities, a few profiles.
const KEPT: usize = 4;

/// The profiles that came last, and what they compile to.
#[derive(Clone, Debug, Default)]
pub struct Filters(Arc<Mutex<VecDeque<Compiled>>>);

#[derive(Clone, Debug)]
struct Compiled {
    /// As a spec has it, to the letter.
    profile: Box<str>,
    /// The same without its rules: by itself it kills.
    brief: Arc<str>,
    program: Arc<[u8]>,
}

/// A spec without the rules of its seccomp profile, and the program that they become.
pub(crate) struct Brief {
    pub spec: Vec<u8>,
    pub program: Arc<[u8]>,
}

impl Filters {
    /// `None` if there is no profile, or none that can be compiled: the shim says why.
    pub(crate) fn brief(&self, spec: &[u8]) -> Option<Brief> {
        let profile = profile(spec)?;
        let compiled = self.compiled(profile)?;
        // Borrowed from the spec.
        let from = profile.as_ptr() as usize - spec.as_ptr() as usize;
        let brief = [&spec[..from], compiled.brief.as_bytes(), &spec[from + profile.len()..]].concat();
        Some(Brief { spec: brief, program: compiled.program })
    }

    fn compiled(&self, profile: &str) -> Option<Compiled> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.iter().find(|known| *known.profile == *profile) {
            return Some(known.clone());
        }
        let mut parsed: LinuxSeccomp = serde_json::from_str(profile).ok()?;
        let program = seccomp::to_bytes(&seccomp::compile(&parsed).ok()?).into();
        parsed.set_syscalls(None);
        // An older shim, which doesn't know of programs, is to let nothing through.
        parsed.set_default_action(LinuxSeccompAction::ScmpActKillProcess);
        parsed.set_default_errno_ret(None);
        let brief = serde_json::to_string(&parsed).ok()?.into();
        let compiled = Compiled { profile: profile.into(), brief, program };
        kept.truncate(KEPT - 1);
        kept.push_front(compiled.clone());
        Some(compiled)
    }
}

/// The text of a spec's seccomp profile.
fn profile(spec: &[u8]) -> Option<&str> {
    #[derive(Deserialize)]
    struct Outer<'a> {
        #[serde(borrow)]
        linux: Option<Inner<'a>>,
    }
    #[derive(Deserialize)]
    struct Inner<'a> {
        #[serde(borrow)]
        seccomp: Option<&'a RawValue>,
    }
    serde_json::from_slice::<Outer<'_>>(spec).ok()?.linux?.seccomp.map(RawValue::get)
}

#[cfg(test)]
mod tests {
    use cofferdam_oci::caps::Set;
    use serde_json::{Value, json};

    use super::*;

    fn spec(profile: &LinuxSeccomp) -> Vec<u8> {
        let linux = json!({"seccomp": profile, "maskedPaths": ["/proc/kcore"]});
        serde_json::to_vec_pretty(&json!({"ociVersion": "1.2.0", "linux": linux, "hostname": "a"})).unwrap()
    }

    fn with_errno(errno: u32) -> LinuxSeccomp {
        let mut profile = seccomp::default_profile(Set::default(), seccomp::NATIVE);
        profile.set_default_errno_ret(Some(errno));
        profile
    }

    #[test]
    fn a_profile_is_compiled_once_and_few_are_kept() {
        let filters = Filters::default();
        let program = |errno| filters.brief(&spec(&with_errno(errno))).map(|brief| brief.program);
        let first = program(1).unwrap();
        assert!(Arc::ptr_eq(&first, &program(1).unwrap()));
        let compiled = seccomp::compile(&with_errno(1)).unwrap();
        assert_eq!(seccomp::to_bytes(&seccomp::from_bytes(&first)), seccomp::to_bytes(&compiled));
        assert_ne!(first, program(2).unwrap());
        (3..=6).for_each(|errno| drop(program(errno).unwrap()));
        assert_eq!(filters.0.lock().unwrap().len(), KEPT);
        assert_eq!(program(1).unwrap(), first);
        assert_eq!(program(70_000), None);
    }

    #[test]
    fn only_the_rules_are_left_out() {
        let filters = Filters::default();
        let mut profile = with_errno(7);
        profile.set_flags(Some(vec![oci_spec::runtime::LinuxSeccompFilterFlag::SeccompFilterFlagLog]));
        let whole = spec(&profile);
        let brief = filters.brief(&whole).unwrap();
        let mut wanted: Value = serde_json::from_slice(&whole).unwrap();
        let left_out = wanted["linux"]["seccomp"].as_object_mut().unwrap().remove("syscalls").unwrap();
        assert!(left_out.as_array().unwrap().len() > 2);
        wanted["linux"]["seccomp"]["defaultAction"] = "SCMP_ACT_KILL_PROCESS".into();
        wanted["linux"]["seccomp"].as_object_mut().unwrap().remove("defaultErrnoRet").unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&brief.spec).unwrap(), wanted);
        for none in [r#"{"ociVersion":"1.2.0"}"#, r#"{"linux":{"seccomp":null}}"#, r#"{"linux":{}}"#, "{", "[]"] {
            assert!(filters.brief(none.as_bytes()).is_none(), "{none}");
        }
        // Of two nobody could say which is meant.
        let twice =
            r#"{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW"},"seccomp":{"defaultAction":"SCMP_ACT_KILL"}}}"#;
        assert!(filters.brief(twice.as_bytes()).is_none());
    }
}
