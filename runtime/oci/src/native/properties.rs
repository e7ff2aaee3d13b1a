//! Properties of a process that take one system call each: scheduling, priorities, affinity, personality, memory
//! policy, the labels of security modules.

use std::{ffi::CString, io, path::Path};

use cofferdam_types::{Error, Result};
use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxMemoryPolicy, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, Process,
};

use super::{identity::c_string, step::Step};
use crate::apparmor;

/// A system call of the child's, with a buffer that one of its arguments points at.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub what: &'static str,
    pub number: libc::c_long,
    pub arguments: [usize; 4],
    pub buffer: Vec<u64>,
    /// The argument that is the buffer's address.
    pub at: Option<usize>,
}

/// What the container's first process and every other of it have alike.
pub(super) fn shared(linux: &Linux) -> Result<Vec<Call>> {
    let mut calls = Vec::new();
    if let Some(personality) = linux.personality() {
        calls.push(self::personality(personality)?);
    }
    if let Some(policy) = linux.memory_policy() {
        calls.push(memory_policy(policy)?);
    }
    Ok(calls)
}

fn personality(spec: &LinuxPersonality) -> Result<Call> {
    if let Some(flag) = spec.flags().iter().flatten().next() {
        let why = format!("has the flag {flag:?}: the standard names none yet; leave them out");
        return Err(Error::invalid("spec", "linux.personality", why));
    }
    // PER_LINUX and PER_LINUX32 of linux/personality.h.
    let domain: usize = match spec.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    };
    let arguments = [domain, 0, 0, 0];
    Ok(Call { what: "setting the personality", number: libc::SYS_personality, arguments, buffer: vec![], at: None })
}

fn memory_policy(spec: &LinuxMemoryPolicy) -> Result<Call> {
    let mode = match spec.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flag = |flag: &MemoryPolicyFlagType| match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
    };
    let flags = spec.flags().iter().flatten().map(flag).fold(0, |all, flag| all | flag);
    let nodes = spec.nodes().as_deref().filter(|nodes| !nodes.is_empty());
    let buffer = nodes.map(|nodes| bits("linux.memoryPolicy.nodes", nodes)).transpose()?.unwrap_or_default();
    // The kernel counts one bit more than there are.
    let (bits, at) = if buffer.is_empty() { (0, None) } else { (MAX_BITS + 1, Some(1)) };
    let arguments = [mode | flags, 0, bits, 0];
    Ok(Call { what: "setting the memory policy", number: libc::SYS_set_mempolicy, arguments, buffer, at })
}

const MAX_BITS: usize = 4096;

/// Reads `0-3,7` as a mask.
fn bits(field: &'static str, list: &str) -> Result<Vec<u64>> {
    let bad = || Error::invalid("spec", field, format!("is {list:?}: give numbers below {MAX_BITS} such as 0-3,7"));
    let mut mask = vec![0u64; MAX_BITS / 64];
    for part in list.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|n| *n < MAX_BITS).ok_or_else(bad);
        for bit in number(first)?..=number(last)? {
            mask[bit / 64] |= 1 << (bit % 64);
        }
        if number(first)? > number(last)? {
            return Err(bad());
        }
    }
    Ok(mask)
}

/// Where another process of the container runs before it is in the container's cgroups, and after.
pub(super) fn affinity(process: &Process) -> Result<[Option<Step>; 2]> {
    let Some(spec) = process.exec_cpu_affinity() else { return Ok([None, None]) };
    let call = |field: &'static str, list: &Option<String>| {
        let Some(list) = list.as_deref().filter(|list| !list.is_empty()) else { return Ok(None) };
        let buffer = bits(field, list)?;
        let arguments = [0, MAX_BITS / 8, 0, 0];
        let number = libc::SYS_sched_setaffinity;
        Ok(Some(Step::Call(Call { what: "choosing its processors", number, arguments, buffer, at: Some(2) })))
    };
    let initial = call("process.execCPUAffinity.initial", spec.initial())?;
    Ok([initial, call("process.execCPUAffinity.final", spec.cpu_affinity_final())?])
}

/// Refuses what no kernel takes.
pub(super) fn check(process: &Process) -> Result<()> {
    if let Some(priority) = process.io_priority()
        && !(0..=7).contains(&priority.priority())
    {
        return Err(Error::invalid("spec", "process.ioPriority", "has a priority that does not lie between 0 and 7"));
    }
    affinity(process).map(drop)
}

/// Gives a process that waits to go on its place among others, with the rights of the host, which it may not have.
/// `oom_score` is for one that names none.
pub(super) fn place(pid: i32, process: &Process, oom_score: Option<i32>) -> Result<()> {
    let fail = |field: &'static str, e: &io::Error| match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            Error::failed_precondition("spec", field, "takes CAP_SYS_NICE, which the daemon doesn't have")
        }
        Some(libc::EINVAL | libc::E2BIG) => Error::invalid("spec", field, "has values that this kernel doesn't take"),
        _ => Error::io("spec", field, "setting it", e),
    };
    if let Some(score) = process.oom_score_adj().or(oom_score) {
        super::launch::oom_score_adj(pid, score)?;
    }
    if let Some(scheduler) = process.scheduler() {
        let policy = match scheduler.policy() {
            LinuxSchedulerPolicy::SchedOther => 0,
            LinuxSchedulerPolicy::SchedFifo => 1,
            LinuxSchedulerPolicy::SchedRr => 2,
            LinuxSchedulerPolicy::SchedBatch => 3,
            LinuxSchedulerPolicy::SchedIso => 4,
            LinuxSchedulerPolicy::SchedIdle => 5,
            LinuxSchedulerPolicy::SchedDeadline => 6,
        };
        let flag = |flag: &LinuxSchedulerFlag| match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 1,
            LinuxSchedulerFlag::SchedFlagReclaim => 2,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 4,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 8,
            LinuxSchedulerFlag::SchedFlagKeepParams => 16,
            LinuxSchedulerFlag::SchedFlagUtilClampMin => 32,
            LinuxSchedulerFlag::SchedFlagUtilClampMax => 64,
        };
        let attributes = cofferdam_sys::process::Scheduling {
            policy,
            flags: scheduler.flags().iter().flatten().map(flag).fold(0, |all, flag| all | flag),
            nice: scheduler.nice().unwrap_or(0),
            priority: u32::try_from(scheduler.priority().unwrap_or(0))
                .map_err(|_| Error::invalid("spec", "process.scheduler", "has a priority below 0"))?,
            runtime: scheduler.runtime().unwrap_or(0),
            deadline: scheduler.deadline().unwrap_or(0),
            period: scheduler.period().unwrap_or(0),
        };
        cofferdam_sys::process::set_scheduling(pid, &attributes).map_err(|e| fail("process.scheduler", &e))?;
    }
    if let Some(priority) = process.io_priority() {
        let class = match priority.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        let level = u16::try_from(priority.priority()).unwrap_or(0);
        cofferdam_sys::process::set_io_priority(pid, class, level).map_err(|e| fail("process.ioPriority", &e))?;
    }
    Ok(())
}

/// The labels that the next program is to run under.
pub(super) fn labels(process: &Process) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    // Without AppArmor everything is unconfined.
    if let Some(profile) = set(process.apparmor_profile()).filter(|p| apparmor::is_on() || p != "unconfined") {
        if !apparmor::is_on() {
            let why = "this kernel has no AppArmor, or it is not on: leave it out";
            return Err(Error::unimplemented("spec", "process.apparmorProfile", why));
        }
        // Where several modules share the older file it may be another one's.
        let own = Path::new("/proc/self/attr/apparmor/exec").exists();
        let file = if own { c"/proc/self/attr/apparmor/exec" } else { c"/proc/self/attr/exec" };
        let value = c_string("process.apparmorProfile", &format!("exec {profile}"))?;
        steps.push(Step::Label { file: file.to_owned(), value, what: format!("the AppArmor profile {profile}") });
    }
    if let Some(label) = set(process.selinux_label()) {
        if !has_selinux() {
            let why = "this kernel has no SELinux, or it is not on: leave it out";
            return Err(Error::unimplemented("spec", "process.selinuxLabel", why));
        }
        let value = c_string("process.selinuxLabel", &label)?;
        let file = c"/proc/self/attr/exec".to_owned();
        steps.push(Step::Label { file, value, what: format!("the SELinux label {label}") });
    }
    Ok(steps)
}

pub(super) fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// The offsets of a time namespace, as the kernel reads them.
pub(super) fn time_offsets(linux: &Linux) -> Result<CString> {
    let mut text = String::new();
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        let (seconds, nanoseconds) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        if !["monotonic", "boottime"].contains(&clock.as_str()) || nanoseconds > 999_999_999 {
            let why = "has a clock other than monotonic and boottime, or a second of nanoseconds and more";
            return Err(Error::invalid("spec", "linux.timeOffsets", why));
        }
        text.push_str(&format!("{clock} {seconds} {nanoseconds}\n"));
    }
    c_string("linux.timeOffsets", &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers_are_masks() {
        let mask = bits("x", "0-2,5, 64").unwrap();
        assert_eq!(mask[..3], [0b10_0111, 1, 0]);
        for bad in ["", "a", "3-1", "4096", "1-", "-1"] {
            assert!(bits("x", bad).is_err(), "{bad}");
        }
    }
}
