//! Our programs against those that libseccomp makes of the same profile, call by call.
//!
//! The library is loaded where it is (runc needs it too): nothing of ours is linked with it.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    fs::File,
    io::{Read, Seek},
    os::fd::AsRawFd,
};

use libc::sock_filter;
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSyscall};

use super::{compile_for, default_profile, tests::run};
use crate::caps;

#[repr(C)]
struct Compare {
    arg: c_uint,
    op: c_uint,
    a: u64,
    b: u64,
}

type Init = unsafe extern "C" fn(u32) -> *mut c_void;
type Release = unsafe extern "C" fn(*mut c_void);
type AttrSet = unsafe extern "C" fn(*mut c_void, c_int, u32) -> c_int;
type ArchAdd = unsafe extern "C" fn(*mut c_void, u32) -> c_int;
type Resolve = unsafe extern "C" fn(*const c_char) -> c_int;
type RuleAdd = unsafe extern "C" fn(*mut c_void, u32, c_int, c_uint, *const Compare) -> c_int;
type Export = unsafe extern "C" fn(*mut c_void, c_int) -> c_int;

/// What to do with a call of an ABI that isn't listed.
const BAD_ARCH: c_int = 2;

struct Library(*mut c_void);

impl Library {
    fn load() -> Library {
        // SAFETY: the name is a C string. The library's constructors are harmless.
        let handle = unsafe { libc::dlopen(c"libseccomp.so.2".as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null(), "this test needs libseccomp.so.2 (the package libseccomp2)");
        Library(handle)
    }

    /// # Safety
    /// `T` must be the type of the function `name`.
    unsafe fn function<T: Copy>(&self, name: &CStr) -> T {
        // SAFETY: the handle is open and the name a C string.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!address.is_null(), "{name:?}");
        assert_eq!(size_of::<T>(), size_of::<*mut c_void>());
        // SAFETY: both are an address, and the caller answers for the type.
        unsafe { std::mem::transmute_copy(&address) }
    }

    /// The profile without the names that this version of the library doesn't know.
    fn known(&self, mut profile: LinuxSeccomp) -> LinuxSeccomp {
        // SAFETY: its declaration in seccomp.h.
        let resolve: Resolve = unsafe { self.function(c"seccomp_syscall_resolve_name") };
        let mut rules: Vec<LinuxSyscall> = profile.syscalls().clone().unwrap();
        for rule in &mut rules {
            let names = rule.names().iter().filter(|name| {
                let name = CString::new(name.as_str()).unwrap();
                // SAFETY: a C string, read during the call.
                unsafe { resolve(name.as_ptr()) != -1 }
            });
            let names = names.cloned().collect();
            rule.set_names(names);
        }
        rules.retain(|rule| !rule.names().is_empty());
        profile.set_syscalls(Some(rules));
        profile
    }

    /// As runc does it.
    fn compile(&self, profile: &LinuxSeccomp) -> Vec<sock_filter> {
        let action = |action: Action, errno: Option<u32>| action.as_u32(errno);
        let default = action(profile.default_action(), profile.default_errno_ret());
        let mut file = File::from(nix::sys::memfd::memfd_create(c"bpf", nix::sys::memfd::MFdFlags::empty()).unwrap());
        // SAFETY: the types are those of seccomp.h; the context lives from init to release; every pointer outlives
        // its call.
        unsafe {
            let context = self.function::<Init>(c"seccomp_init")(default);
            assert!(!context.is_null());
            assert_eq!(
                self.function::<AttrSet>(c"seccomp_attr_set")(context, BAD_ARCH, libc::SECCOMP_RET_KILL_PROCESS),
                0
            );
            for arch in profile.architectures().iter().flatten().filter(|a| **a != Arch::ScmpArchX86_64) {
                assert_eq!(self.function::<ArchAdd>(c"seccomp_arch_add")(context, *arch as u32), 0);
            }
            let resolve: Resolve = self.function(c"seccomp_syscall_resolve_name");
            let add: RuleAdd = self.function(c"seccomp_rule_add_array");
            for rule in profile.syscalls().iter().flatten() {
                let action = action(rule.action(), rule.errno_ret());
                if action == default {
                    continue;
                }
                let compares: Vec<Compare> = rule
                    .args()
                    .iter()
                    .flatten()
                    .map(|arg| Compare {
                        arg: arg.index() as c_uint,
                        op: arg.op() as c_uint,
                        a: arg.value(),
                        b: arg.value_two().unwrap_or(0),
                    })
                    .collect();
                for name in rule.names() {
                    let name = CString::new(name.as_str()).unwrap();
                    let code =
                        add(context, action, resolve(name.as_ptr()), compares.len() as c_uint, compares.as_ptr());
                    assert_eq!(code, 0, "{name:?}");
                }
            }
            assert_eq!(self.function::<Export>(c"seccomp_export_bpf")(context, file.as_raw_fd()), 0);
            self.function::<Release>(c"seccomp_release")(context);
        }
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        let insn = |b: &[u8]| sock_filter {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        };
        bytes.chunks_exact(8).map(insn).collect()
    }
}

#[test]
fn the_default_profile_means_what_libseccomp_makes_of_it() {
    let library = Library::load();
    let admin = (0..41).filter_map(caps::by_number).collect();
    for set in [caps::Set::container_default(), caps::Set::EMPTY, admin] {
        let profile = library.known(default_profile(set, Arch::ScmpArchX86_64));
        let ours = compile_for(Arch::ScmpArchX86_64, &profile).unwrap();
        let theirs = library.compile(&profile);
        let mut compared = 0;
        for (arch, base) in [(0xc000_003eu32, 0u32), (0xc000_003e, 0x4000_0000), (0x4000_0003, 0), (0xc000_00b7, 0)] {
            for number in 0..600 {
                for first in [
                    0,
                    1,
                    2,
                    8,
                    11,
                    12,
                    13,
                    19,
                    20,
                    38,
                    39,
                    40,
                    45,
                    46,
                    0x2_0000,
                    0x2_0008,
                    0x1000_0000,
                    0x0200_0000,
                    0x11,
                    0xffff_ffff,
                    u64::MAX,
                    1 << 32,
                    1 << 32 | 1,
                    1 << 32 | 38,
                    1 << 32 | 0x2_0000,
                ] {
                    // Registers of 32 bits.
                    let first = if arch == 0x4000_0003 { first & 0xffff_ffff } else { first };
                    let args = [first, 0, 0, 0, 0, 0];
                    let (mine, other) =
                        (run(&ours, arch, base | number, args), run(&theirs, arch, base | number, args));
                    // runc puts this in front of libseccomp's program, as we do.
                    let newer = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
                    let eperm = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
                    let same = mine == other || (mine == newer && other == eperm && number > 440);
                    assert!(same, "{arch:#x} {base:#x}+{number}({first:#x}): {mine:#x}, libseccomp {other:#x}");
                    compared += usize::from(mine == other);
                }
            }
        }
        assert!(compared > 50_000, "{compared}");
    }
}

#[test]
fn every_action_and_operator_means_what_libseccomp_makes_of_it() {
    const NAMES: &[&str] = &[
        "read",
        "write",
        "open",
        "lseek",
        "mprotect",
        "ioctl",
        "access",
        "fcntl",
        "flock",
        "fsync",
        "getcwd",
        "chdir",
        "rename",
        "mkdir",
        "creat",
        "link",
        "symlink",
        "readlink",
        "chmod",
        "chown",
        "umask",
        "getrlimit",
        "getrusage",
        "sysinfo",
        "ptrace",
        "setuid",
        "setgid",
        "setpgid",
        "setsid",
        "setreuid",
        "setregid",
        "getgroups",
        "setgroups",
        "setresuid",
        "getresuid",
        "setfsuid",
        "getsid",
        "statfs",
        "fstatfs",
        "getpriority",
        "setpriority",
        "mlock",
        "munlock",
        "prctl",
        "sync",
        "acct",
        "mount",
        "swapon",
        "reboot",
        "sethostname",
        "init_module",
        "quotactl",
        "gettid",
        "readahead",
        "setxattr",
        "tkill",
    ];
    const OPERATORS: [&str; 7] = ["EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ"];
    const ACTIONS: [(&str, u32); 8] = [
        ("KILL", 0),
        ("KILL_THREAD", 0),
        ("KILL_PROCESS", 0),
        ("TRAP", 0),
        ("ERRNO", 0),
        ("ERRNO", 95),
        ("TRACE", 700),
        ("LOG", 0),
    ];
    let library = Library::load();
    let samples = [0, 1, 4, 5, 6, 0xf0, 0xf5, u64::from(u32::MAX), 1 << 32, 1 << 32 | 5, 2 << 32 | 5, u64::MAX];
    for default in ["ALLOW", "ERRNO", "KILL_PROCESS", "LOG"] {
        for value in [0u64, 5, 1 << 32 | 5] {
            let rules: Vec<serde_json::Value> = NAMES
                .iter()
                .enumerate()
                .map(|(n, name)| {
                    let (operator, (action, errno)) = (OPERATORS[n % OPERATORS.len()], ACTIONS[n / OPERATORS.len()]);
                    let action = if action == "LOG" && default == "LOG" { "ALLOW" } else { action };
                    let errno = if errno == 0 { serde_json::Value::Null } else { errno.into() };
                    serde_json::json!({
                        "names": [name], "action": format!("SCMP_ACT_{action}"), "errnoRet": errno,
                        "args": [{"index": n % 3, "op": format!("SCMP_CMP_{operator}"), "value": if operator == "MASKED_EQ" { 0xf0 | value } else { value }, "valueTwo": 0xf0 & value}],
                    })
                })
                .collect();
            let profile: LinuxSeccomp = serde_json::from_value(serde_json::json!({
                "defaultAction": format!("SCMP_ACT_{default}"),
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": rules,
            }))
            .unwrap();
            let ours = compile_for(Arch::ScmpArchX86_64, &profile).unwrap();
            let theirs = library.compile(&profile);
            let mut verdicts = std::collections::BTreeSet::new();
            for (arch, base) in [(0xc000_003eu32, 0u32), (0xc000_003e, 0x4000_0000), (0x4000_0003, 0), (0xc000_00b7, 0)]
            {
                for number in 0..550 {
                    for sample in samples {
                        let sample = if arch == 0x4000_0003 { sample & 0xffff_ffff } else { sample };
                        for index in 0..3 {
                            let mut args = [5; 6];
                            args[index] = sample;
                            let (mine, other) =
                                (run(&ours, arch, base | number, args), run(&theirs, arch, base | number, args));
                            // What is in front of libseccomp's program, in runc's as in ours.
                            let newer = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
                            let same = mine == other || (mine == newer && default != "ALLOW" && default != "LOG");
                            assert!(
                                same,
                                "{default} {value:#x} {arch:#x} {base:#x}+{number}({args:x?}): {mine:#x}, libseccomp {other:#x}"
                            );
                            verdicts.insert(mine);
                        }
                    }
                }
            }
            assert!(verdicts.len() >= 7, "{verdicts:x?}");
        }
    }
}
