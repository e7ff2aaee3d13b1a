//! What a group's limits were before a change, to be put back when the change fails half-way.

use cofferdam_sys::cgroup::Cgroup;

/// Files with one value, by the v1 controller and the v2 one. What is limited by device can't be half-way: each line is
/// set or not, and none of them is in the way of another.
const FILES: &[(&str, &[&str], &str, &[&str])] = &[
    (
        "memory",
        &["memory.memsw.limit_in_bytes", "memory.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.swappiness"],
        "memory",
        &["memory.swap.max", "memory.max", "memory.low"],
    ),
    (
        "cpu",
        &["cpu.idle", "cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.cfs_burst_us"],
        "cpu",
        &["cpu.idle", "cpu.weight", "cpu.max", "cpu.max.burst"],
    ),
    ("cpuset", &["cpuset.cpus", "cpuset.mems"], "cpuset", &["cpuset.cpus", "cpuset.mems"]),
    ("pids", &["pids.max"], "pids", &["pids.max"]),
];

/// See the module.
pub(super) struct Before<'c> {
    cgroup: &'c Cgroup,
    values: Vec<(bool, &'static str, &'static str, String)>,
}

impl Before<'_> {
    /// Takes down what there is.
    pub(super) fn take(cgroup: &Cgroup) -> Before<'_> {
        let mut before = Before { cgroup, values: Vec::new() };
        for (v1, v1_files, v2, v2_files) in FILES {
            let (controller, files, is_v1) =
                if cgroup.v1(v1).is_some() { (v1, v1_files, true) } else { (v2, v2_files, false) };
            for file in *files {
                if let Some(value) = before.read(is_v1, controller, file) {
                    before.values.push((is_v1, controller, file, value));
                }
            }
        }
        before
    }

    fn read(&self, v1: bool, controller: &str, file: &str) -> Option<String> {
        let dir = if v1 { self.cgroup.v1(controller) } else { self.cgroup.unified() };
        Some(self.cgroup.read_at(dir?, file).ok()?.trim().to_owned())
    }

    /// Puts it back, as far as the kernel lets: twice, since of two limits that bound each other one has to go first.
    pub(super) fn restore(&self) {
        for _ in 0..2 {
            for (v1, controller, file, value) in &self.values {
                let dir = if *v1 { self.cgroup.v1(controller) } else { self.cgroup.unified() };
                if let Some(dir) = dir
                    && self.read(*v1, controller, file).as_ref() != Some(value)
                {
                    let _ = self.cgroup.write_at(dir, file, value);
                }
            }
        }
    }
}
