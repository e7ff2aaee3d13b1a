//! How long a shim may take for what may take long: what hooks and runtimes of others are documented to have
//! (docs/drivers.md), and what any answer may take.

use std::time::Duration;

use cofferdam_oci::{native, runc};
use oci_spec::runtime::Spec;

use crate::recover::ANSWER;

/// What any start may take: a program is read from a disk that may be full, busy or just being synced.
const START: Duration = Duration::from_secs(20);

/// What it has for each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// The start of the first process.
    pub start: Duration,
    /// That of another one.
    pub exec: Duration,
    /// The deletion of what runs.
    pub kill: Duration,
    /// The deletion of what has ended.
    pub delete: Duration,
}

impl Patience {
    /// Of a container that the driver `native` makes, or a runtime of others.
    pub fn of(spec: &Spec, is_native: bool, restores: bool, in_group: bool) -> Patience {
        let hooks = native::hook_time(spec);
        // Of others each command has its deadline, hooks included; a kill may take two, and then a deletion.
        let (start, exec, kill, delete) = match is_native {
            true => (hooks.start, Duration::ZERO, hooks.stop, hooks.stop),
            false => (runc::DEADLINE, runc::DEADLINE, runc::DEADLINE * 3, runc::DEADLINE),
        };
        let start = if restores { start.saturating_add(cofferdam_oci::criu::DEADLINE) } else { start };
        // What it does for another of a group it does first.
        let others = if in_group { runc::DEADLINE } else { Duration::ZERO };
        let with = |documented: Duration| documented.saturating_add(ANSWER);
        Patience {
            start: START.saturating_add(start),
            exec: START.saturating_add(exec),
            kill: with(kill).saturating_add(others),
            delete: with(delete).saturating_add(others),
        }
    }

    /// Where the container's record can't be read.
    pub fn unknown() -> Patience {
        Patience::of(&Spec::default(), false, true, true)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hooks_and_runtimes_of_others_have_the_time_that_they_are_said_to_have() {
        let of = |hooks: serde_json::Value, native, group| {
            let spec = serde_json::from_value(json!({"ociVersion": "1.0.2", "hooks": hooks})).unwrap();
            let Patience { start, exec, kill, delete } = Patience::of(&spec, native, false, group);
            [start, exec, kill, delete].map(|time| time.as_secs())
        };
        assert_eq!(of(json!({}), true, false), [20, 20, 5, 5]);
        let hooks = json!({
            "poststart": [{"path": "/a", "timeout": 7}],
            "startContainer": [{"path": "/a"}],
            "poststop": [{"path": "/a"}, {"path": "/b", "timeout": 100}],
        });
        assert_eq!(of(hooks, true, false), [57, 20, 135, 135]);
        assert_eq!(of(json!({}), false, false), [50, 50, 95, 35]);
        assert_eq!(of(json!({}), true, true), [20, 20, 35, 35]);
        let endless = json!({"poststop": [{"path": "/a", "timeout": i64::MAX}, {"path": "/a", "timeout": i64::MAX}]});
        assert!(of(endless, true, true)[3] > 1 << 60);
    }
}
