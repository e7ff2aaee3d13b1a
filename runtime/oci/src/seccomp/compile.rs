//! From a runtime spec's seccomp section to the program that the kernel runs.
//!
//! The meaning is that of runc with libseccomp, for which profiles are written:
//! * A system call that the profile names without conditions does what is said there first; conditions elsewhere are
//!   void then. Among rules with conditions the first that matches decides; within a rule all conditions must hold,
//!   but several on the *same* argument are rules of their own.
//! * A rule whose action is the default action is no rule.
//! * A name that an ABI doesn't have is skipped for it ([`unknown`] tells).
//! * Where the default action denies, calls newer than every call that the profile names fail with ENOSYS: its author
//!   can't have meant them, and C libraries then fall back to an older call, which EPERM would keep them from.
//! * A call through an ABI that the profile doesn't list kills the process. The native one is always listed.

use std::collections::BTreeMap;

use cofferdam_types::{Error, Result};
use libc::sock_filter;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag as Flag,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};

use super::{
    bpf,
    tables::{self, Abi, X32_BIT},
};

/// What the kernel takes at most (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;
const MAX_ERRNO: u32 = 4095;

/// One comparison of an argument.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Condition {
    pub index: u32,
    pub test: Test,
    /// Applied to the argument before it is compared.
    pub mask: u64,
    pub value: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Test {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// What happens to a system call: the first rule whose conditions all hold, else `otherwise`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Verdict {
    /// Whether the conditions compare 64 bits.
    pub wide: bool,
    pub rules: Vec<(Vec<Condition>, u32)>,
    pub otherwise: u32,
}

impl Verdict {
    fn always(action: u32) -> Verdict {
        Verdict { wide: true, rules: Vec::new(), otherwise: action }
    }
}

/// The architecture that this program was built for, as a seccomp profile names it.
pub const NATIVE: Arch = if cfg!(target_arch = "aarch64") { Arch::ScmpArchAarch64 } else { Arch::ScmpArchX86_64 };

/// Compiles a profile for this machine.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<sock_filter>> {
    compile_for(NATIVE, profile)
}

/// Compiles a profile for a kernel of the architecture `native` (x86-64 or aarch64).
pub fn compile_for(native: Arch, profile: &LinuxSeccomp) -> Result<Vec<sock_filter>> {
    let default = action("defaultAction", profile.default_action(), profile.default_errno_ret())?;
    if profile.listener_path().is_some() {
        return Err(Error::unimplemented("seccomp", "listenerPath", "is not supported: remove it from the profile"));
    }
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    let mut blocks: Vec<(u32, Vec<sock_filter>)> = Vec::new();
    let abis = listed(native, profile)?;
    for abi in abis.iter().filter(|abi| abi.base == 0) {
        let mut ranges = ranges(abi, rules, default)?;
        if abi.name == Arch::ScmpArchX86_64 {
            match abis.iter().find(|other| other.base == X32_BIT) {
                Some(x32) => ranges.extend(self::ranges(x32, rules, default)?),
                None => ranges.push((X32_BIT, Verdict::always(libc::SECCOMP_RET_KILL_PROCESS))),
            }
        }
        ranges.dedup_by(|next, kept| next.1 == kept.1);
        blocks.push((abi.audit, bpf::search(&ranges)));
    }
    let program = bpf::by_arch(blocks, libc::SECCOMP_RET_KILL_PROCESS);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(Error::resource_exhausted(
            "seccomp",
            "syscalls",
            format!(
                "become {} instructions, and the kernel takes {MAX_INSTRUCTIONS}: use fewer rules with arguments, or \
                 fewer architectures",
                program.len()
            ),
        ));
    }
    Ok(program)
}

/// Whether anything can begin under a profile: the program is executed when the filter is in force.
pub fn lets_start(profile: &LinuxSeccomp) -> bool {
    let denies = |action: Action| {
        use Action::*;
        matches!(action, ScmpActKill | ScmpActKillThread | ScmpActKillProcess | ScmpActTrap | ScmpActErrno)
    };
    let mut otherwise = denies(profile.default_action());
    for rule in profile.syscalls().iter().flatten().filter(|rule| rule.names().iter().any(|name| name == "execve")) {
        match (denies(rule.action()), rule.args().as_ref().is_none_or(Vec::is_empty)) {
            (false, _) => return true,
            (true, whole) => otherwise |= whole,
        }
    }
    !otherwise
}

/// The names in a profile that no ABI listed in it knows: they have no effect on this machine.
pub fn unknown(profile: &LinuxSeccomp) -> Result<Vec<String>> {
    let abis = listed(NATIVE, profile)?;
    let known = |name: &str| abis.iter().any(|abi| abi.number(name).is_some() || abi.multiplexer(name).is_some());
    let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
    Ok(names.filter(|name| !known(name)).cloned().collect())
}

/// The flags for seccomp(2) that a profile asks for.
pub fn flags(profile: &LinuxSeccomp) -> Result<libc::c_ulong> {
    profile.flags().iter().flatten().try_fold(0, |bits, flag| match flag {
        Flag::SeccompFilterFlagLog => Ok(bits | libc::SECCOMP_FILTER_FLAG_LOG),
        Flag::SeccompFilterFlagTsync => Ok(bits | libc::SECCOMP_FILTER_FLAG_TSYNC),
        Flag::SeccompFilterFlagSpecAllow => Ok(bits | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW),
        Flag::SeccompFilterFlagWaitKillableRecv => {
            Err(Error::unimplemented("seccomp", flag, "is of use with SCMP_ACT_NOTIFY alone, which is not supported"))
        }
    })
}

/// The ABIs that a profile allows, the native one first. An architecture that a kernel of this one never runs is
/// ignored: no call can come from it.
fn listed(native: Arch, profile: &LinuxSeccomp) -> Result<Vec<&'static Abi>> {
    let abis = tables::abis(native).ok_or_else(|| {
        Error::unimplemented("seccomp", native, "has no table of system calls: run without a seccomp profile")
    })?;
    let named = profile.architectures().as_deref().unwrap_or_default();
    Ok(abis.iter().filter(|abi| abi.name == native || named.contains(&abi.name)).collect())
}

/// What happens in each range of numbers of one ABI, from its base on.
fn ranges(abi: &Abi, rules: &[LinuxSyscall], default: u32) -> Result<Vec<(u32, Verdict)>> {
    let mut calls: BTreeMap<u32, Verdict> = BTreeMap::new();
    let mut settled: BTreeMap<u32, u32> = BTreeMap::new();
    let mut newest = abi.base;
    for rule in rules {
        let field = rule.names().first().map_or("", String::as_str);
        let action = action(field, rule.action(), rule.errno_ret())?;
        let conditions = conditions(field, rule.args().as_deref().unwrap_or_default())?;
        for name in rule.names() {
            let number = abi.number(name);
            newest = newest.max(number.unwrap_or(0));
            if action == default {
                continue;
            }
            let mut add = |number: u32, conditions: &[Vec<Condition>]| {
                if conditions.is_empty() {
                    settled.entry(number).or_insert(action);
                }
                let verdict =
                    calls.entry(number).or_insert_with(|| Verdict { wide: abi.wide, ..Verdict::always(default) });
                verdict.rules.extend(conditions.iter().map(|c| (c.clone(), action)));
            };
            if let Some(number) = number {
                add(number, &conditions);
            }
            if let Some((through, call)) = abi.multiplexer(name) {
                newest = newest.max(through);
                // The call's own arguments lie behind a pointer there, where no filter can look. What can't be
                // checked is denied, if denying is what the rule does, and not allowed, if allowing is.
                if conditions.is_empty() || !permits(action) {
                    let which = Condition { index: 0, test: Test::Eq, mask: u64::MAX, value: call.into() };
                    add(through, &[vec![which]]);
                }
            }
        }
    }
    for (number, action) in settled {
        calls.insert(number, Verdict::always(action));
    }
    let mut ranges = vec![(abi.base, Verdict::always(default))];
    let mut next = abi.base;
    for (number, verdict) in calls {
        if number > next {
            ranges.push((next, Verdict::always(default)));
        }
        ranges.push((number, verdict));
        next = number + 1;
    }
    let rest = if permits(default) { default } else { libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32 };
    ranges.push((next, Verdict::always(default)));
    ranges.push((newest + 1, Verdict::always(rest)));
    // Of two ranges that start together the later was meant.
    ranges.reverse();
    ranges.dedup_by_key(|range| range.0);
    ranges.reverse();
    Ok(ranges)
}

fn permits(action: u32) -> bool {
    let kind = action & libc::SECCOMP_RET_ACTION_FULL;
    // A tracer is expected to know what it lets through.
    matches!(kind, libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG | libc::SECCOMP_RET_TRACE)
}

fn action(field: &str, action: Action, errno: Option<u32>) -> Result<u32> {
    let data = errno.unwrap_or(libc::EPERM as u32);
    let check = |most: u32| {
        if data <= most {
            Ok(data)
        } else {
            Err(Error::invalid("seccomp", field, format!("has errnoRet {data}: at most {most} is possible")))
        }
    };
    Ok(match action {
        Action::ScmpActKill | Action::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        Action::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        Action::ScmpActErrno => libc::SECCOMP_RET_ERRNO | check(MAX_ERRNO)?,
        Action::ScmpActTrace => libc::SECCOMP_RET_TRACE | check(u16::MAX.into())?,
        Action::ScmpActLog => libc::SECCOMP_RET_LOG,
        Action::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        Action::ScmpActNotify => {
            let message =
                "has the action SCMP_ACT_NOTIFY, which is not supported: use SCMP_ACT_ERRNO or SCMP_ACT_TRACE";
            return Err(Error::unimplemented("seccomp", field, message));
        }
    })
}

/// The alternatives that a rule's arguments stand for; none: the rule is unconditional.
fn conditions(field: &str, args: &[LinuxSeccompArg]) -> Result<Vec<Vec<Condition>>> {
    let mut all = Vec::with_capacity(args.len());
    for arg in args {
        let index = u32::try_from(arg.index()).ok().filter(|i| *i <= 5).ok_or_else(|| {
            Error::invalid("seccomp", field, format!("compares argument {}: there are 0 to 5", arg.index()))
        })?;
        let value = arg.value();
        let (test, mask, value) = match arg.op() {
            Operator::ScmpCmpEq => (Test::Eq, u64::MAX, value),
            Operator::ScmpCmpNe => (Test::Ne, u64::MAX, value),
            Operator::ScmpCmpLt => (Test::Lt, u64::MAX, value),
            Operator::ScmpCmpLe => (Test::Le, u64::MAX, value),
            Operator::ScmpCmpGt => (Test::Gt, u64::MAX, value),
            Operator::ScmpCmpGe => (Test::Ge, u64::MAX, value),
            // Here `value` is the mask. Bits outside of it could never be equal and are void.
            Operator::ScmpCmpMaskedEq => (Test::Eq, value, arg.value_two().unwrap_or(0) & value),
        };
        all.push(Condition { index, test, mask, value });
    }
    let repeated = all.iter().enumerate().any(|(i, c)| all[..i].iter().any(|earlier| earlier.index == c.index));
    Ok(match all.is_empty() {
        true => Vec::new(),
        false if repeated => all.into_iter().map(|c| vec![c]).collect(),
        false => vec![all],
    })
}
