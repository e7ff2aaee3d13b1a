//! Seccomp profiles, compiled once for all containers that have the same one.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use cofferdam_oci::seccomp;
use oci_spec::runtime::LinuxSeccomp;

/// Containers differ little: a few sets of capabilities, a few profiles.
const KEPT: usize = 4;

type Compiled = (LinuxSeccomp, Arc<[u8]>);

/// The profiles that came last, and what they compile to.
#[derive(Clone, Debug, Default)]
pub struct Filters(Arc<Mutex<VecDeque<Compiled>>>);

impl Filters {
    /// The program of a profile; `None` if it can't be compiled: the shim says why.
    pub fn of(&self, profile: &LinuxSeccomp) -> Option<Arc<[u8]>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, program)) = kept.iter().find(|(known, _)| known == profile) {
            return Some(program.clone());
        }
        let program: Arc<[u8]> = seccomp::to_bytes(&seccomp::compile(profile).ok()?).into();
        kept.truncate(KEPT - 1);
        kept.push_front((profile.clone(), program.clone()));
        Some(program)
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_oci::caps::Set;

    use super::*;

    #[test]
    fn a_profile_is_compiled_once_and_few_are_kept() {
        let filters = Filters::default();
        let profile = |errno| {
            let mut profile = seccomp::default_profile(Set::default(), seccomp::NATIVE);
            profile.set_default_errno_ret(Some(errno));
            profile
        };
        let first = filters.of(&profile(1)).unwrap();
        assert!(Arc::ptr_eq(&first, &filters.of(&profile(1)).unwrap()));
        let compiled = seccomp::compile(&profile(1)).unwrap();
        assert_eq!(seccomp::to_bytes(&seccomp::from_bytes(&first)), seccomp::to_bytes(&compiled));
        let second = filters.of(&profile(2)).unwrap();
        assert_ne!(first, second);
        (3..=6).for_each(|errno| drop(filters.of(&profile(errno)).unwrap()));
        assert_eq!(filters.0.lock().unwrap().len(), KEPT);
        assert_eq!(filters.of(&profile(1)).unwrap(), first);
        assert_eq!(filters.of(&profile(70_000)), None);
    }
}
