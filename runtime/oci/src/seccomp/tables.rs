//! Which number a system call has in which ABI.

use std::{collections::HashMap, sync::LazyLock};

use oci_spec::runtime::Arch;

/// The bit that marks a call of the x32 ABI, which shares its audit architecture with x86-64.
pub(super) const X32_BIT: u32 = 0x4000_0000;

type Numbers = HashMap<&'static str, u32>;

/// One calling convention of a kernel.
pub(super) struct Abi {
    pub name: Arch,
    /// What `seccomp_data.arch` says (`AUDIT_ARCH_*`).
    pub audit: u32,
    /// Added to each number.
    pub base: u32,
    /// Whether arguments have 64 bits; of 32-bit ABIs the upper halves mean nothing.
    pub wide: bool,
    numbers: &'static LazyLock<Numbers>,
    /// Calls that also exist as one of `socketcall(2)` or `ipc(2)`: name, multiplexer, which one.
    multiplexed: &'static [(&'static str, &'static str, u32)],
}

impl Abi {
    /// The number of `name`, if this ABI has such a call.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).map(|n| n | self.base)
    }

    /// The multiplexer through which `name` can be called too, and its first argument then.
    pub fn multiplexer(&self, name: &str) -> Option<(u32, u32)> {
        let (_, through, call) = self.multiplexed.iter().find(|(n, _, _)| *n == name)?;
        Some((self.number(through)?, *call))
    }
}

/// What a kernel of the architecture `native` runs, the native ABI first; `None` if we don't know it.
pub(super) fn abis(native: Arch) -> Option<&'static [Abi]> {
    match native {
        Arch::ScmpArchX86_64 => Some(&X86),
        Arch::ScmpArchAarch64 => Some(&ARM),
        _ => None,
    }
}

static X86: [Abi; 3] = [
    Abi {
        name: Arch::ScmpArchX86_64,
        audit: 0xc000_003e,
        base: 0,
        wide: true,
        numbers: &X86_64_NUMBERS,
        multiplexed: &[],
    },
    Abi {
        name: Arch::ScmpArchX32,
        audit: 0xc000_003e,
        base: X32_BIT,
        // Its registers have 64 bits too, but libseccomp compares the 32 that its programs mean.
        wide: false,
        numbers: &X32_NUMBERS,
        multiplexed: &[],
    },
    Abi {
        name: Arch::ScmpArchX86,
        audit: 0x4000_0003,
        base: 0,
        wide: false,
        numbers: &X86_NUMBERS,
        multiplexed: &MULTIPLEXED,
    },
];

static ARM: [Abi; 2] = [
    Abi {
        name: Arch::ScmpArchAarch64,
        audit: 0xc000_00b7,
        base: 0,
        wide: true,
        numbers: &AARCH64_NUMBERS,
        multiplexed: &[],
    },
    Abi { name: Arch::ScmpArchArm, audit: 0x4000_0028, base: 0, wide: false, numbers: &ARM_NUMBERS, multiplexed: &[] },
];

macro_rules! numbers {
    ($arch:ident) => {
        syscalls::$arch::Sysno::iter().map(|s| (s.name().trim_start_matches("r#"), s.id() as u32)).collect()
    };
}

static X86_64_NUMBERS: LazyLock<Numbers> = LazyLock::new(|| numbers!(x86_64));
static X86_NUMBERS: LazyLock<Numbers> = LazyLock::new(|| numbers!(x86));
static AARCH64_NUMBERS: LazyLock<Numbers> = LazyLock::new(|| numbers!(aarch64));
static ARM_NUMBERS: LazyLock<Numbers> = LazyLock::new(|| {
    let mut numbers: Numbers = numbers!(arm);
    // Private calls of ARM, and names under which libseccomp and profiles know others.
    numbers.extend([("breakpoint", 0xf0001), ("cacheflush", 0xf0002), ("set_tls", 0xf0005)]);
    if let Some(n) = numbers.get("sync_file_range2").copied() {
        numbers.insert("arm_sync_file_range", n);
    }
    numbers
});
static X32_NUMBERS: LazyLock<Numbers> = LazyLock::new(|| {
    let mut numbers = X86_64_NUMBERS.clone();
    for name in NOT_X32 {
        numbers.remove(name);
    }
    numbers.extend(X32_OWN);
    numbers
});

/// Calls of x86-64 that x32 lacks (marked `64` in the kernel's `syscall_64.tbl`).
const NOT_X32: [&str; 14] = [
    "_sysctl",
    "create_module",
    "epoll_ctl_old",
    "epoll_wait_old",
    "get_kernel_syms",
    "get_thread_area",
    "map_shadow_stack",
    "nfsservctl",
    "query_module",
    "set_thread_area",
    "uprobe",
    "uretprobe",
    "uselib",
    "vserver",
];

/// Calls to which x32 gives numbers of its own (`asm/unistd_x32.h`); all others have those of x86-64.
const X32_OWN: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

/// `linux/net.h` and `linux/ipc.h`.
const MULTIPLEXED: [(&str, &str, u32); 32] = [
    ("socket", "socketcall", 1),
    ("bind", "socketcall", 2),
    ("connect", "socketcall", 3),
    ("listen", "socketcall", 4),
    ("accept", "socketcall", 5),
    ("getsockname", "socketcall", 6),
    ("getpeername", "socketcall", 7),
    ("socketpair", "socketcall", 8),
    ("send", "socketcall", 9),
    ("recv", "socketcall", 10),
    ("sendto", "socketcall", 11),
    ("recvfrom", "socketcall", 12),
    ("shutdown", "socketcall", 13),
    ("setsockopt", "socketcall", 14),
    ("getsockopt", "socketcall", 15),
    ("sendmsg", "socketcall", 16),
    ("recvmsg", "socketcall", 17),
    ("accept4", "socketcall", 18),
    ("recvmmsg", "socketcall", 19),
    ("sendmmsg", "socketcall", 20),
    ("semop", "ipc", 1),
    ("semget", "ipc", 2),
    ("semctl", "ipc", 3),
    ("semtimedop", "ipc", 4),
    ("msgsnd", "ipc", 11),
    ("msgrcv", "ipc", 12),
    ("msgget", "ipc", 13),
    ("msgctl", "ipc", 14),
    ("shmat", "ipc", 21),
    ("shmdt", "ipc", 22),
    ("shmget", "ipc", 23),
    ("shmctl", "ipc", 24),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel_headers() {
        let [x64, x32, x86] = &X86;
        assert_eq!(x64.number("openat2"), Some(libc::SYS_openat2 as u32));
        assert_eq!((x64.number("clone3"), x86.number("clone3")), (Some(435), Some(435)));
        assert_eq!((x86.number("socketcall"), x64.number("socketcall")), (Some(102), None));
        assert_eq!((x86.number("break"), x86.number("waitpid")), (Some(17), Some(7)));
        assert_eq!((x32.number("read"), x32.number("execve")), (Some(X32_BIT), Some(X32_BIT | 520)));
        assert_eq!(x32.number("uselib"), None);
        assert_eq!(x86.multiplexer("accept"), Some((102, 5)));
        let [arm64, arm] = &ARM;
        assert_eq!(
            (arm64.number("openat"), arm64.number("open"), arm.number("set_tls")),
            (Some(56), None, Some(0xf0005))
        );
    }
}
