//! Which devices a cgroup may use: rules, as v1's `devices.allow` has them, and on v2 a BPF program made of them.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use crate::check;

/// One rule. Later rules override earlier ones; what no rule allows is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Allow or deny.
    pub allow: bool,
    /// `b` for block devices, `c` for character devices, `a` for both.
    pub kind: char,
    /// `None`: all.
    pub major: Option<u32>,
    /// `None`: all.
    pub minor: Option<u32>,
    /// Opening for reading.
    pub read: bool,
    /// Opening for writing.
    pub write: bool,
    /// Making a node.
    pub mknod: bool,
}

impl Rule {
    /// Whether it is about every device and every access.
    pub fn is_everything(&self) -> bool {
        self.kind == 'a' && self.major.is_none() && self.minor.is_none() && self.read && self.write && self.mknod
    }

    /// The bits of `BPF_DEVCG_ACC_…`.
    fn access(&self) -> i32 {
        i32::from(self.mknod) | i32::from(self.read) << 1 | i32::from(self.write) << 2
    }
}

/// As v1 reads it: `c 1:3 rwm`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        write!(f, "{} {}:{} ", self.kind, number(self.major), number(self.minor))?;
        let words = [(self.read, "r"), (self.write, "w"), (self.mknod, "m")];
        words.into_iter().filter(|(on, _)| *on).try_for_each(|(_, word)| f.write_str(word))
    }
}

/// linux/bpf.h: struct bpf_insn.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    value: i32,
}

const LOAD: u8 = 0x61; // r = *(u32 *)(s + offset)
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const SET: u8 = 0xb4;
const COPY: u8 = 0xbc;
const UNLESS: u8 = 0x56; // if r != value, skip offset
const IF: u8 = 0x16; // if r == value, skip offset
const EXIT: u8 = 0x95;

const KIND: u8 = 2;
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn op(code: u8, register: u8, offset: usize, value: i32) -> Instruction {
    Instruction { code, registers: register, offset: offset as i16, value }
}

/// Walks the rules from the last to the first with the accesses that are still to be decided: an allowing rule strikes
/// out those that it covers, a denying one ends it if it covers any.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut code = vec![
        op(LOAD, KIND | 1 << 4, 0, 0),
        op(COPY, WANTED | KIND << 4, 0, 0),
        op(AND, KIND, 0, 0xffff),
        op(SHIFT_RIGHT, WANTED, 0, 16),
        op(LOAD, MAJOR | 1 << 4, 4, 0),
        op(LOAD, MINOR | 1 << 4, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let verdict = if rule.allow {
            vec![op(AND, WANTED, 0, !rule.access()), op(UNLESS, WANTED, 2, 0), op(SET, 0, 0, 1), op(EXIT, 0, 0, 0)]
        } else {
            vec![
                op(COPY, 1 | WANTED << 4, 0, 0),
                op(AND, 1, 0, rule.access()),
                op(IF, 1, 2, 0),
                op(SET, 0, 0, 0),
                op(EXIT, 0, 0, 0),
            ]
        };
        let kind = match rule.kind {
            'b' => Some(1),
            'c' => Some(2),
            _ => None,
        };
        let number = |n: Option<u32>| n.map(|n| n as i32);
        let tests = [(KIND, kind), (MAJOR, number(rule.major)), (MINOR, number(rule.minor))];
        let tests: Vec<_> = tests.into_iter().filter_map(|(register, value)| Some((register, value?))).collect();
        let count = tests.len();
        for (index, (register, value)) in tests.into_iter().enumerate() {
            code.push(op(UNLESS, register, count - index - 1 + verdict.len(), value));
        }
        code.extend(verdict);
    }
    code.extend([op(SET, 0, 0, 0), op(EXIT, 0, 0, 0)]);
    code
}

const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_DETACH: i32 = 9;
const BPF_PROG_GET_FD_BY_ID: i32 = 13;
const BPF_PROG_QUERY: i32 = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u64 = 15;
const BPF_CGROUP_DEVICE: u64 = 6;
const BPF_F_ALLOW_MULTI: u64 = 2;

/// bpf(2) with an attribute of 64-bit words; where the header has two 32-bit fields, [`pair`] makes a word of them.
fn bpf(command: i32, attribute: &mut [u64]) -> io::Result<i32> {
    let size = size_of_val(attribute);
    // SAFETY: the attribute is valid for its size; what it points at is kept alive by the callers.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), size) }).map(|n| n as i32)
}

fn pair(first: u64, second: u64) -> u64 {
    let (first, second) = (first as u32, second as u32);
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn fd_word(fd: RawFd) -> u64 {
    fd as u32 as u64
}

/// Confines the v2 group `dir` to `rules`, in place of the rules that it had. Programs of groups above it still apply.
pub fn confine(dir: impl AsFd, rules: &[Rule]) -> io::Result<()> {
    let dir = fd_word(dir.as_fd().as_raw_fd());
    let old = attached(dir)?;
    let code = program(rules);
    let mut load = [
        pair(BPF_PROG_TYPE_CGROUP_DEVICE, code.len() as u64),
        code.as_ptr() as u64,
        c"GPL".as_ptr() as u64,
        0, // log_level, log_size
        0, // log_buf
        0, // kern_version, prog_flags
    ];
    let fd = bpf(BPF_PROG_LOAD, &mut load)?;
    // SAFETY: the kernel has just given us this descriptor. The group keeps the program when it is closed.
    let new = unsafe { OwnedFd::from_raw_fd(fd) };
    let attach = |program: u64| [pair(dir, program), pair(BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI)];
    // New before old: at no time is there none.
    bpf(BPF_PROG_ATTACH, &mut attach(fd_word(new.as_raw_fd())))?;
    for program in old {
        bpf(BPF_PROG_DETACH, &mut [pair(dir, fd_word(program.as_raw_fd())), pair(BPF_CGROUP_DEVICE, 0)])?;
    }
    Ok(())
}

/// The device programs of the group itself.
fn attached(dir: u64) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0u32; 64];
    let mut query = [pair(dir, BPF_CGROUP_DEVICE), 0, ids.as_mut_ptr() as u64, pair(ids.len() as u64, 0)];
    bpf(BPF_PROG_QUERY, &mut query)?;
    let count = u32::from_ne_bytes(query[3].to_ne_bytes()[..4].try_into().unwrap_or_default()) as usize;
    ids.iter()
        .take(count)
        .map(|id| {
            let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut [pair(u64::from(*id), 0)])?;
            // SAFETY: the kernel has just given us this descriptor.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{Cgroup, Layout};

    fn rule(allow: bool, kind: char, numbers: (Option<u32>, Option<u32>), access: &str) -> Rule {
        let has = |c| access.contains(c);
        let (major, minor) = numbers;
        Rule { allow, kind, major, minor, read: has('r'), write: has('w'), mknod: has('m') }
    }

    #[test]
    fn rules_are_written_as_v1_reads_them() {
        assert_eq!(rule(true, 'c', (Some(1), None), "rm").to_string(), "c 1:* rm");
        assert!(rule(true, 'a', (None, None), "rwm").is_everything());
    }

    #[test]
    fn a_program_confines_a_v2_group() {
        let mut layout = Layout::detect().unwrap();
        layout.hierarchies.retain(|h| h.unified);
        if layout.hierarchies.is_empty() {
            return;
        }
        let group = Cgroup::create(&layout, &format!("/cofferdam-test-{}-devices", std::process::id())).unwrap();
        // Each device with a letter for what works: for reading, for writing.
        let script = format!(
            "echo $$ > {}/cgroup.procs; for d in null zero full; do
                 (: < /dev/$d) 2> /dev/stderr && echo $d r; (: > /dev/$d) 2> /dev/stderr && echo $d w; done; true",
            layout.hierarchies[0].root.join(&group.path()[1..]).display()
        );
        let works = || {
            let out = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>().join(", ")
        };
        let (null, zero) = ((Some(1), Some(3)), (Some(1), Some(5)));
        let dir = group.unified().unwrap();
        assert_eq!(works(), "null r, null w, zero r, zero w, full r, full w");
        confine(dir, &[rule(true, 'c', null, "r"), rule(true, 'c', null, "w"), rule(true, 'c', zero, "r")]).unwrap();
        assert_eq!(works(), "null r, null w, zero r");
        let all = rule(true, 'a', (None, None), "rwm");
        confine(dir, &[all, rule(false, 'c', zero, "w"), rule(false, 'b', (None, None), "rwm")]).unwrap();
        assert_eq!(works(), "null r, null w, zero r, full r, full w");
        assert_eq!(attached(fd_word(dir.as_raw_fd())).unwrap().len(), 1);
        confine(dir, &[]).unwrap();
        assert_eq!(works(), "");
        group.remove().unwrap();
    }
}
