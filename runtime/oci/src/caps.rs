//! Linux capabilities: their names, their numbers, and sets of them.

use std::{fmt, sync::LazyLock};

use cofferdam_types::{Error, Result};
use oci_spec::runtime::{Capabilities, Capability};

/// Every capability that Linux has, in the order of its number (`linux/capability.h`).
const TABLE: [(&str, Capability); 41] = [
    ("CAP_CHOWN", Capability::Chown),
    ("CAP_DAC_OVERRIDE", Capability::DacOverride),
    ("CAP_DAC_READ_SEARCH", Capability::DacReadSearch),
    ("CAP_FOWNER", Capability::Fowner),
    ("CAP_FSETID", Capability::Fsetid),
    ("CAP_KILL", Capability::Kill),
    ("CAP_SETGID", Capability::Setgid),
    ("CAP_SETUID", Capability::Setuid),
    ("CAP_SETPCAP", Capability::Setpcap),
    ("CAP_LINUX_IMMUTABLE", Capability::LinuxImmutable),
    ("CAP_NET_BIND_SERVICE", Capability::NetBindService),
    ("CAP_NET_BROADCAST", Capability::NetBroadcast),
    ("CAP_NET_ADMIN", Capability::NetAdmin),
    ("CAP_NET_RAW", Capability::NetRaw),
    ("CAP_IPC_LOCK", Capability::IpcLock),
    ("CAP_IPC_OWNER", Capability::IpcOwner),
    ("CAP_SYS_MODULE", Capability::SysModule),
    ("CAP_SYS_RAWIO", Capability::SysRawio),
    ("CAP_SYS_CHROOT", Capability::SysChroot),
    ("CAP_SYS_PTRACE", Capability::SysPtrace),
    ("CAP_SYS_PACCT", Capability::SysPacct),
    ("CAP_SYS_ADMIN", Capability::SysAdmin),
    ("CAP_SYS_BOOT", Capability::SysBoot),
    ("CAP_SYS_NICE", Capability::SysNice),
    ("CAP_SYS_RESOURCE", Capability::SysResource),
    ("CAP_SYS_TIME", Capability::SysTime),
    ("CAP_SYS_TTY_CONFIG", Capability::SysTtyConfig),
    ("CAP_MKNOD", Capability::Mknod),
    ("CAP_LEASE", Capability::Lease),
    ("CAP_AUDIT_WRITE", Capability::AuditWrite),
    ("CAP_AUDIT_CONTROL", Capability::AuditControl),
    ("CAP_SETFCAP", Capability::Setfcap),
    ("CAP_MAC_OVERRIDE", Capability::MacOverride),
    ("CAP_MAC_ADMIN", Capability::MacAdmin),
    ("CAP_SYSLOG", Capability::Syslog),
    ("CAP_WAKE_ALARM", Capability::WakeAlarm),
    ("CAP_BLOCK_SUSPEND", Capability::BlockSuspend),
    ("CAP_AUDIT_READ", Capability::AuditRead),
    ("CAP_PERFMON", Capability::Perfmon),
    ("CAP_BPF", Capability::Bpf),
    ("CAP_CHECKPOINT_RESTORE", Capability::CheckpointRestore),
];

/// What a container gets when nobody says otherwise (the reference's list, section 15.1).
const DEFAULT: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// A set of capabilities, one bit each, as the kernel takes them.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Set(u64);

impl Set {
    /// None.
    pub const EMPTY: Set = Set(0);

    /// The default of a container.
    pub fn container_default() -> Set {
        DEFAULT.into_iter().collect()
    }

    /// All that this kernel knows and this process has: a set with more could not be applied.
    pub fn all() -> Set {
        static ALL: LazyLock<Set> = LazyLock::new(|| {
            let known = u64::MAX >> (64 - TABLE.len());
            // What can't be read grants nothing.
            Set(cofferdam_sys::process::permitted_capabilities().unwrap_or(0) & known)
        });
        *ALL
    }

    /// Bit `n` is the capability with number `n`.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Whether it is in the set.
    pub fn contains(self, capability: Capability) -> bool {
        self.0 & (1 << number(capability)) != 0
    }

    /// Starts from the default, takes away, then adds, as `--cap-drop` and `--cap-add` do. `ALL` in `drop` starts from
    /// nothing, `ALL` in `add` from everything.
    pub fn adjusted(add: &[String], drop: &[String]) -> Result<Set> {
        Set::container_default().changed(add, drop)
    }

    /// The same, from these.
    pub fn changed(self, add: &[String], drop: &[String]) -> Result<Set> {
        let (add_all, add) = names("cap_add", add)?;
        let (drop_all, drop) = names("cap_drop", drop)?;
        if add_all && drop_all {
            return Err(Error::invalid("options", "cap_add", "`ALL` is both added and dropped: keep one"));
        }
        if let Some(both) = Set(add.0 & drop.0).iter().next() {
            return Err(Error::invalid("options", "cap_add", format!("{} is both added and dropped", name(both))));
        }
        let base = match (add_all, drop_all) {
            (true, _) => Set::all(),
            (_, true) => Set::EMPTY,
            _ => self,
        };
        Ok(Set(base.0 & !drop.0 | add.0))
    }

    /// The members, by number.
    pub fn iter(self) -> impl Iterator<Item = Capability> {
        TABLE.into_iter().map(|(_, capability)| capability).filter(move |c| self.contains(*c))
    }

    /// The form that a runtime spec has.
    pub fn to_spec(self) -> Capabilities {
        self.iter().collect()
    }
}

impl FromIterator<Capability> for Set {
    fn from_iter<I: IntoIterator<Item = Capability>>(members: I) -> Set {
        Set(members.into_iter().fold(0, |bits, c| bits | 1 << number(c)))
    }
}

impl From<&Capabilities> for Set {
    fn from(spec: &Capabilities) -> Set {
        spec.iter().copied().collect()
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(name)).finish()
    }
}

/// The number that the kernel knows it by.
pub fn number(capability: Capability) -> u32 {
    // The table holds every variant: a test goes through all of them.
    TABLE.iter().take_while(|(_, c)| *c != capability).count() as u32
}

/// The one with this number.
pub fn by_number(number: u32) -> Option<Capability> {
    TABLE.get(number as usize).map(|(_, capability)| *capability)
}

/// The full name, such as `CAP_NET_ADMIN`.
pub fn name(capability: Capability) -> &'static str {
    TABLE[number(capability) as usize].0
}

/// Reads a name in any case, with or without `CAP_`.
pub fn parse(text: &str) -> Result<Capability> {
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    TABLE.into_iter().find(|(name, _)| &name[4..] == bare).map(|(_, c)| c).ok_or_else(|| {
        let shown: String = text.chars().take(64).collect();
        Error::invalid("capability", shown, "is unknown; capabilities look like NET_ADMIN or CAP_NET_ADMIN")
    })
}

fn names(field: &'static str, list: &[String]) -> Result<(bool, Set)> {
    let mut all = false;
    let mut set = Set::EMPTY;
    for text in list {
        if text.eq_ignore_ascii_case("ALL") || text.eq_ignore_ascii_case("CAP_ALL") {
            all = true;
        } else {
            set.0 |= 1 << number(parse(text).map_err(|e| e.context(field))?);
        }
    }
    Ok((all, set))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cofferdam_types::Code;

    fn list(text: &[&str]) -> Vec<String> {
        text.iter().map(|t| (*t).to_owned()).collect()
    }

    #[test]
    fn names_and_numbers_agree_with_the_kernel() {
        for (text, bit) in [("CHOWN", 0), ("CAP_SYS_ADMIN", 21), ("setfcap", 31), ("cap_checkpoint_restore", 40)] {
            let capability = parse(text).unwrap();
            assert_eq!(number(capability), bit);
            // The crate's own name, which is what ends up in the spec's JSON.
            assert_eq!(format!("CAP_{capability}"), name(capability));
        }
        for (i, (text, capability)) in TABLE.into_iter().enumerate() {
            assert_eq!(
                (number(capability) as usize, format!("\"{text}\"")),
                (i, serde_json::to_string(&capability).unwrap())
            );
        }
        assert_eq!(Set::container_default().bits(), 0xa80425fb, "docker's and containerd's default mask");
    }

    #[test]
    fn all_is_what_we_have_ourselves() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let ours = status.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).unwrap();
        assert_eq!(format!("{:016x}", Set::all().bits()), ours);
        assert!(Set::all().contains(Capability::SysAdmin), "these tests run as root");
    }

    #[test]
    fn adding_and_dropping() {
        let default = Set::container_default();
        assert_eq!(Set::adjusted(&[], &[]).unwrap(), default);
        let set = Set::adjusted(&list(&["net_admin"]), &list(&["CAP_KILL"])).unwrap();
        assert!(set.contains(Capability::NetAdmin) && !set.contains(Capability::Kill));
        assert_eq!(set.bits().count_ones(), 14);
        assert_eq!(Set::adjusted(&list(&["chown"]), &list(&["all"])).unwrap().bits(), 1);
        assert_eq!(Set::adjusted(&list(&["ALL"]), &list(&["chown"])).unwrap().bits(), Set::all().bits() & !1);
    }

    #[test]
    fn nonsense_is_refused() {
        for (add, drop) in [
            (list(&["NET ADMIN"]), vec![]),
            (list(&[""]), vec![]),
            (list(&["CAP_CAP_KILL"]), vec![]),
            (vec![], list(&["KILL\n"])),
            (list(&["ALL"]), list(&["ALL"])),
            (list(&["KILL"]), list(&["cap_kill"])),
        ] {
            assert_eq!(Set::adjusted(&add, &drop).unwrap_err().code, Code::InvalidArgument, "{add:?} {drop:?}");
        }
    }
}
