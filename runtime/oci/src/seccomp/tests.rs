//! The compiler against an interpreter of its programs, and against the kernel.

use cofferdam_types::Code;
use libc::sock_filter;
use oci_spec::runtime::{Arch, Capability, LinuxSeccomp};
use serde_json::json;

use super::*;
use crate::caps;

const X64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const X32: u32 = 0x4000_0000;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const EPERM: u32 = errno(libc::EPERM);
const ENOSYS: u32 = errno(libc::ENOSYS);

const fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

fn profile(value: serde_json::Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

/// One rule for `mmap` (six arguments), everything else denied.
fn one_rule(args: serde_json::Value) -> Vec<sock_filter> {
    compile(&profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{"names": ["mmap", "mremap"], "action": "SCMP_ACT_ALLOW", "args": args}],
    })))
    .unwrap()
}

/// What the kernel would do.
pub(super) fn run(program: &[sock_filter], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    trace(program, arch, number, args).0
}

/// What the kernel would do, and in how many steps.
fn trace(program: &[sock_filter], arch: u32, number: u32, args: [u64; 6]) -> (u32, usize) {
    let word = |offset: u32| match offset {
        0 => number,
        4 => arch,
        16..64 => (args[(offset as usize - 16) / 8] >> (offset % 8 * 8)) as u32,
        _ => panic!("load from {offset}"),
    };
    let (mut at, mut a) = (0, 0u32);
    for step in 1..=4096 {
        let i = &program[at];
        at += 1;
        let taken = match u32::from(i.code) {
            0x20 => {
                a = word(i.k);
                continue;
            }
            0x05 => {
                at += i.k as usize;
                continue;
            }
            0x54 => {
                a &= i.k;
                continue;
            }
            0x06 => return (i.k, step),
            super::bpf::EQ => a == i.k,
            super::bpf::GE => a >= i.k,
            super::bpf::GT => a > i.k,
            other => panic!("instruction {other:#x}"),
        };
        at += usize::from(if taken { i.jt } else { i.jf });
    }
    panic!("the program does not end");
}

fn call(program: &[sock_filter], number: i64, first: u64) -> u32 {
    run(program, X64, number as u32, [first, 0, 0, 0, 0, 0])
}

#[test]
fn operators_compare_64_bits() {
    let big = 0x1_0000_0005u64;
    let samples = [0, 1, 4, 5, 6, u64::from(u32::MAX), 0x1_0000_0000, big - 1, big, big + 1, 0x2_0000_0000, u64::MAX];
    type Expected = fn(u64, u64) -> bool;
    let operators: [(&str, Expected); 6] = [
        ("NE", |a, b| a != b),
        ("LT", |a, b| a < b),
        ("LE", |a, b| a <= b),
        ("EQ", |a, b| a == b),
        ("GE", |a, b| a >= b),
        ("GT", |a, b| a > b),
    ];
    for index in [0usize, 5] {
        for (name, expected) in operators {
            for value in samples {
                let program = one_rule(json!([{"index": index, "value": value, "op": format!("SCMP_CMP_{name}")}]));
                for sample in samples {
                    let mut args = [77; 6];
                    args[index] = sample;
                    let allowed = run(&program, X64, libc::SYS_mmap as u32, args) == ALLOW;
                    assert_eq!(allowed, expected(sample, value), "{sample:#x} {name} {value:#x}");
                    // i386: mremap is 163, and only lower halves count.
                    args[index] = sample & 0xffff_ffff;
                    let allowed = run(&program, I386, 163, args) == ALLOW;
                    assert_eq!(allowed, expected(sample & 0xffff_ffff, value & 0xffff_ffff));
                }
            }
        }
    }
}

#[test]
fn masked_equal_masks_both_sides() {
    for (mask, datum) in [(0xff00_0000_00ffu64, 0x1200_0000_0034u64), (0x7e02_0000, 0), (u64::MAX, 9), (0xf0, 0xff)] {
        let program = one_rule(json!([{"index": 2, "value": mask, "valueTwo": datum, "op": "SCMP_CMP_MASKED_EQ"}]));
        for sample in [0, 9, 0x1200_0000_0034, 0x1255_5555_5534, 0x1200_0000_0134, 0x2_0000, 0xf5, 0x11, u64::MAX] {
            let allowed = run(&program, X64, libc::SYS_mmap as u32, [1, 1, sample, 1, 1, 1]) == ALLOW;
            assert_eq!(allowed, sample & mask == datum & mask, "{sample:#x} {mask:#x} {datum:#x}");
        }
    }
}

#[test]
fn conditions_of_a_rule_are_anded_and_rules_ored() {
    let both = json!([
        {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
        {"index": 1, "value": 2, "op": "SCMP_CMP_GT"},
        {"index": 5, "value": 3, "op": "SCMP_CMP_LT"}
    ]);
    let program = one_rule(both);
    let check = |a, b, f| run(&program, X64, libc::SYS_mmap as u32, [a, b, 0, 0, 0, f]) == ALLOW;
    assert!(check(1, 3, 2));
    assert!(!check(0, 3, 2) && !check(1, 2, 2) && !check(1, 3, 3));

    // The same argument twice: alternatives, as runc has it.
    let program = one_rule(json!([
        {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}
    ]));
    for (value, allowed) in [(1, true), (5, true), (3, false)] {
        assert_eq!(call(&program, libc::SYS_mmap, value) == ALLOW, allowed);
    }

    let program = compile(&profile(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "args": [{"index": 0, "value": 3, "op": "SCMP_CMP_EQ"}]},
            {"names": ["read"], "action": "SCMP_ACT_KILL", "args": [{"index": 0, "value": 3, "op": "SCMP_CMP_GE"}]},
            {"names": ["write"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 3, "op": "SCMP_CMP_EQ"}]},
            {"names": ["write"], "action": "SCMP_ACT_TRAP"},
            {"names": ["write"], "action": "SCMP_ACT_LOG"},
            {"names": ["open"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["open"], "action": "SCMP_ACT_TRACE", "errnoRet": 700},
            {"names": ["close"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["no_such_call"], "action": "SCMP_ACT_LOG"},
            {"names": ["stat"], "action": "SCMP_ACT_LOG"}
        ]
    })))
    .unwrap();
    // The first rule that matches decides; a rule without conditions voids those with; the default's own is none.
    assert_eq!(call(&program, libc::SYS_read, 3), errno(5));
    assert_eq!(call(&program, libc::SYS_read, 4), libc::SECCOMP_RET_KILL_THREAD);
    assert_eq!(call(&program, libc::SYS_read, 2), ALLOW);
    assert_eq!(call(&program, libc::SYS_write, 3), libc::SECCOMP_RET_TRAP);
    assert_eq!(call(&program, libc::SYS_open, 0), libc::SECCOMP_RET_TRACE | 700);
    assert_eq!(call(&program, libc::SYS_close, 0), KILL);
    assert_eq!(call(&program, libc::SYS_stat, 0), libc::SECCOMP_RET_LOG);
    // Where the default allows, new calls are allowed too.
    assert_eq!(call(&program, 5000, 0), ALLOW);
}

#[test]
fn abis_that_are_not_listed_are_killed() {
    let value = |architectures: serde_json::Value| {
        profile(json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13, "architectures": architectures,
            "syscalls": [{"names": ["getpid", "execve", "getppid"], "action": "SCMP_ACT_ALLOW"}]
        }))
    };
    let args = [0; 6];
    let native = compile(&value(json!([]))).unwrap();
    assert_eq!(run(&native, X64, 39, args), ALLOW);
    assert_eq!(run(&native, X64, 0, args), errno(13));
    assert_eq!(run(&native, X64, X32 | 39, args), KILL);
    assert_eq!(run(&native, X64, u32::MAX, args), KILL);
    assert_eq!(run(&native, I386, 20, args), KILL);
    assert_eq!(run(&native, 0xc000_00b7, 39, args), KILL);
    let i386 = compile(&value(json!(["SCMP_ARCH_X86"]))).unwrap();
    assert_eq!(run(&i386, I386, 20, args), ALLOW);
    assert_eq!(run(&i386, I386, 39, args), errno(13), "39 is mkdir there");
    assert_eq!(run(&i386, X64, X32 | 39, args), KILL);
    let x32 = compile(&value(json!(["SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"]))).unwrap();
    assert_eq!(run(&x32, X64, X32 | 39, args), ALLOW);
    assert_eq!(run(&x32, X64, X32 | 520, args), ALLOW, "execve has its own number there");
    assert_eq!(run(&x32, X64, X32 | 59, args), errno(13));
    assert_eq!(run(&x32, X64, 520, args), ENOSYS);
    assert_eq!(run(&x32, I386, 20, args), KILL);
    let arm = compile_for(Arch::ScmpArchAarch64, &value(json!(["SCMP_ARCH_ARM"]))).unwrap();
    assert_eq!(run(&arm, 0xc000_00b7, 172, args), ALLOW);
    assert_eq!(run(&arm, 0x4000_0028, 20, args), ALLOW);
    assert_eq!(run(&arm, X64, 39, args), KILL);
}

#[test]
fn multiplexed_calls_follow_where_they_can_be_checked() {
    let program = |default: &str, action: &str, args: serde_json::Value| {
        compile(&profile(json!({
            "defaultAction": default, "architectures": ["SCMP_ARCH_X86"],
            "syscalls": [
                {"names": ["socket", "shmget"], "action": action, "args": args},
                {"names": ["statx"], "action": action}
            ]
        })))
        .unwrap()
    };
    let socketcall = |p: &[sock_filter], which| run(p, I386, 102, [which, 0, 0, 0, 0, 0]);
    let any = program("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW", json!([]));
    assert_eq!((socketcall(&any, 1), socketcall(&any, 2)), (ALLOW, EPERM));
    assert_eq!(run(&any, I386, 117, [23, 0, 0, 0, 0, 0]), ALLOW, "ipc(SHMGET)");
    let one = json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]);
    assert_eq!(socketcall(&program("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW", one.clone()), 1), EPERM);
    assert_eq!(socketcall(&program("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", one), 1), EPERM);
}

#[test]
fn what_cannot_be_expressed_is_refused_by_name() {
    let compile_one = |rule: serde_json::Value| {
        compile(&profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}))).unwrap_err()
    };
    let error = compile_one(json!({"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}));
    assert_eq!((error.code, error.id.as_str()), (Code::Unimplemented, "mount"));
    assert!(error.message.contains("SCMP_ACT_NOTIFY"));
    let error = compile_one(json!({"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096}));
    assert_eq!(error.code, Code::InvalidArgument);
    let error = compile_one(json!({
        "names": ["mount"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]
    }));
    assert_eq!(error.code, Code::InvalidArgument);
    let many: Vec<_> = (0..1000)
        .map(|v| json!({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": v, "op": "SCMP_CMP_EQ"}]}))
        .collect();
    let error = compile(&profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": many}))).unwrap_err();
    assert_eq!((error.code, error.id.as_str()), (Code::ResourceExhausted, "syscalls"));
    let listener = profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": "/x"}));
    assert_eq!(compile(&listener).unwrap_err().code, Code::Unimplemented);
    let names = profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"}]
    }));
    assert_eq!(unknown(&names).unwrap(), ["no_such_call"]);
}

#[test]
fn the_default_profile_denies_what_needs_privilege() {
    let program = compile(&default_profile(caps::Set::container_default(), NATIVE)).unwrap();
    for (number, first, expected) in [
        (libc::SYS_read, 0, ALLOW),
        (libc::SYS_ptrace, 0, ALLOW),
        (libc::SYS_chroot, 0, ALLOW),
        (libc::SYS_mount, 0, EPERM),
        (libc::SYS_bpf, 0, EPERM),
        (libc::SYS_keyctl, 0, EPERM),
        (libc::SYS_add_key, 0, EPERM),
        (libc::SYS_unshare, 0, EPERM),
        (libc::SYS_io_uring_setup, 0, EPERM),
        (libc::SYS_open_by_handle_at, 0, EPERM),
        (libc::SYS_userfaultfd, 0, EPERM),
        (libc::SYS_clone, libc::SIGCHLD as u64, ALLOW),
        (libc::SYS_clone, libc::CLONE_VM as u64 | libc::CLONE_THREAD as u64, ALLOW),
        (libc::SYS_clone, libc::CLONE_NEWUSER as u64 | libc::SIGCHLD as u64, EPERM),
        (libc::SYS_clone, libc::CLONE_NEWCGROUP as u64, EPERM),
        (libc::SYS_clone3, 0, ENOSYS),
        (libc::SYS_personality, 0, ALLOW),
        (libc::SYS_personality, 0xffff_ffff, ALLOW),
        (libc::SYS_personality, 0x40_0000, EPERM),
        (libc::SYS_socket, libc::AF_UNIX as u64, ALLOW),
        (libc::SYS_socket, libc::AF_INET6 as u64, ALLOW),
        (libc::SYS_socket, libc::AF_NETLINK as u64, ALLOW),
        (libc::SYS_socket, libc::AF_ALG as u64, EPERM),
        (libc::SYS_socket, libc::AF_VSOCK as u64, EPERM),
        // The kernel sees an int: the upper half must not be a way past the comparison.
        (libc::SYS_socket, 1 << 32 | libc::AF_ALG as u64, EPERM),
        (600, 0, ENOSYS),
    ] {
        assert_eq!(call(&program, number, first), expected, "{number} {first:#x}");
    }
    assert_eq!(run(&program, I386, 21, [0; 6]), EPERM, "mount through int 0x80");
    assert_eq!(run(&program, X64, X32 | 165, [0; 6]), EPERM, "mount through x32");
    assert!(program.len() < 1500, "{}", program.len());
}

#[test]
fn the_default_profile_grows_with_capabilities() {
    let with = |capability: Capability| {
        let set = caps::Set::container_default().iter().chain([capability]).collect();
        compile(&default_profile(set, NATIVE)).unwrap()
    };
    let admin = with(Capability::SysAdmin);
    for number in [libc::SYS_mount, libc::SYS_clone3, libc::SYS_setns, libc::SYS_bpf] {
        assert_eq!(call(&admin, number, 0), ALLOW, "{number}");
    }
    assert_eq!(call(&admin, libc::SYS_clone, libc::CLONE_NEWUSER as u64), ALLOW);
    assert_eq!(call(&admin, libc::SYS_reboot, 0), EPERM);
    assert_eq!(call(&with(Capability::SysBoot), libc::SYS_reboot, 0), ALLOW);
    assert_eq!(call(&with(Capability::Bpf), libc::SYS_bpf, 0), ALLOW);
    assert_eq!(call(&with(Capability::SysTime), libc::SYS_settimeofday, 0), ALLOW);
    let none = compile(&default_profile(caps::Set::EMPTY, NATIVE)).unwrap();
    assert_eq!(call(&none, libc::SYS_chroot, 0), EPERM);
}

#[test]
fn most_names_of_the_default_profile_are_known() {
    let every = (0..41).filter_map(caps::by_number).collect();
    let unknown = unknown(&default_profile(every, NATIVE)).unwrap();
    // Of other architectures.
    assert_eq!(unknown, ["riscv_hwprobe"]);
}

/// Runs `body` in a child under the filter and returns its wait status.
fn confined(program: &[sock_filter], body: fn() -> i32) -> i32 {
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: between fork and _exit the child makes only system calls; the filter outlives them.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &no_core);
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
                libc::_exit(200);
            }
            if libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &filter) != 0 {
                libc::_exit(201);
            }
            libc::_exit(body());
        }
        assert!(pid > 0);
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        status
    }
}

/// The error number of a raw call; 0 if it worked.
fn error_of(number: i64, first: i64, second: i64) -> i32 {
    // SAFETY: the calls under test take plain numbers or refuse null pointers.
    unsafe { if libc::syscall(number, first, second, 0, 0, 0, 0) < 0 { *libc::__errno_location() } else { 0 } }
}

#[test]
fn the_kernel_takes_the_default_profile() {
    let program = compile(&default_profile(caps::Set::container_default(), NATIVE)).unwrap();
    let status = confined(&program, || {
        let cases = [
            (error_of(libc::SYS_getppid, 0, 0), 0),
            (error_of(libc::SYS_socket, libc::AF_UNIX as i64, libc::SOCK_STREAM as i64), 0),
            (error_of(libc::SYS_socket, libc::AF_ALG as i64, libc::SOCK_SEQPACKET as i64), libc::EPERM),
            (error_of(libc::SYS_clone3, 0, 0), libc::ENOSYS),
            (error_of(libc::SYS_unshare, 0, 0), libc::EPERM),
            (error_of(libc::SYS_personality, 0xffff_ffff, 0), 0),
            (error_of(libc::SYS_personality, 0x40_0000, 0), libc::EPERM),
        ];
        cases.iter().position(|(got, expected)| got != expected).map_or(0, |i| i as i32 + 1)
    });
    assert_eq!(status, 0, "exit status {}", libc::WEXITSTATUS(status));
}

#[test]
fn the_kernel_kills_what_the_profile_kills() {
    let value = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["getppid"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["getpgrp"], "action": "SCMP_ACT_TRAP"},
            {"names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71,
             "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}
        ]
    });
    let program = compile(&profile(value)).unwrap();
    let status = confined(&program, || error_of(libc::SYS_getppid, 0, 0));
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS, "{status}");
    let status = confined(&program, || error_of(libc::SYS_getpgrp, 0, 0));
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS, "{status}");
    let status = confined(&program, || error_of(libc::SYS_umask, 8, 0) + error_of(libc::SYS_umask, 7, 0));
    assert_eq!(libc::WEXITSTATUS(status), 71);
    // x32 is not listed.
    let status = confined(&program, || error_of(libc::SYS_getuid | i64::from(X32), 0, 0));
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS, "{status}");
}

#[test]
fn a_search_takes_few_steps() {
    let program = compile(&default_profile(caps::Set::container_default(), NATIVE)).unwrap();
    let most =
        (0..470).map(|number| trace(&program, X64, number, [u64::MAX; 6])).filter(|(verdict, _)| *verdict == ALLOW);
    assert!(most.map(|(_, steps)| steps).max().unwrap() <= 20);
}

#[test]
fn what_is_the_same_is_there_once() {
    let program = compile(&default_profile(caps::Set::container_default(), NATIVE)).unwrap();
    let returns = program.iter().filter(|insn| u32::from(insn.code) == libc::BPF_RET | libc::BPF_K).count();
    assert!(returns < 130 && program.len() < 700, "{returns} of {}", program.len());
}
