//! Processes: clone3, pidfds, namespaces, resource limits.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use crate::check;

/// linux/sched.h; the constant in libc is too narrow to hold it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What clone3(2) gives the parent.
#[derive(Debug)]
pub struct Child {
    /// The child's pid in the caller's pid namespace.
    pub pid: i32,
    /// Refers to the child whatever happens to its pid.
    pub pidfd: OwnedFd,
}

/// Clones the calling process as fork(2) would, with namespaces of `flags` made new and, on cgroup v2, right inside
/// `cgroup`. The child (`None`) may only make raw system calls until it executes a program or exits.
///
/// # Safety
/// Other threads don't exist in the child, but the locks that they held do: the child must not allocate, panic, print
/// or return from the function that called this.
pub unsafe fn clone3(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<Child>> {
    // SAFETY: clone_args is plain numbers, for which zero is a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    let mut pidfd: RawFd = -1;
    args.flags = flags as u32 as u64 | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    // With CLONE_PARENT it is the caller's own, and to name one is an error.
    if flags & libc::CLONE_PARENT == 0 {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is a fork; the pointers are valid for the call.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel stored a fresh descriptor there.
    Ok(Some(Child { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }))
}

/// A pidfd of a process that runs.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved; a good result is a fresh descriptor.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::syscall(libc::SYS_pidfd_open, pid, 0))? as RawFd)) }
}

/// Sends a signal; `ESRCH` if the process is gone.
pub fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: a null siginfo is allowed.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<u8>(), 0) }).map(drop)
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// The status as shells and the OCI count it: a signal is 128 more than its number.
    pub fn status(self) -> u32 {
        match self {
            Exit::Code(code) => code as u32 & 0xff,
            Exit::Signal(signal) => 128 + signal as u32,
        }
    }
}

/// Reaps the child behind `pidfd`: waits for its end, or with `block` false says `None` while it runs.
pub fn waitid(pidfd: impl AsFd, block: bool) -> io::Result<Option<Exit>> {
    let flags = libc::WEXITED | if block { 0 } else { libc::WNOHANG };
    let ended = wait(libc::P_PIDFD, pidfd.as_fd().as_raw_fd() as libc::id_t, flags)?;
    Ok(ended.map(|(_, exit)| exit))
}

/// A child that has ended, if one has; it is not reaped, so its pid stays its own.
pub fn ended_child() -> io::Result<Option<i32>> {
    let ended = wait(libc::P_ALL, 0, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)?;
    Ok(ended.map(|(pid, _)| pid))
}

/// Reaps a child that [`ended_child`] named, for want of a pidfd.
pub fn reap(pid: i32) -> io::Result<Exit> {
    let ended = wait(libc::P_PID, pid as libc::id_t, libc::WEXITED | libc::WNOHANG)?;
    ended.map(|(_, exit)| exit).ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD))
}

fn wait(kind: libc::idtype_t, id: libc::id_t, flags: i32) -> io::Result<Option<(i32, Exit)>> {
    loop {
        // SAFETY: siginfo_t is plain numbers, for which zero is a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is valid for the call.
        match check(unsafe { libc::waitid(kind, id, &mut info, flags) }.into()) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
            Ok(_) => {
                // SAFETY: waitid filled the SIGCHLD variant in, or left it zero.
                let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
                return Ok(match (pid, info.si_code) {
                    (0, _) => None,
                    (pid, libc::CLD_EXITED) => Some((pid, Exit::Code(status))),
                    (pid, _) => Some((pid, Exit::Signal(status))),
                });
            }
        }
    }
}

/// Waits until the child behind `pidfd` stops (true) or ends (false); it is not reaped.
pub fn stopped(pidfd: impl AsFd) -> io::Result<bool> {
    loop {
        // SAFETY: siginfo_t is plain numbers, for which zero is a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = pidfd.as_fd().as_raw_fd() as libc::id_t;
        let flags = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT;
        // SAFETY: the pointer is valid for the call.
        match check(unsafe { libc::waitid(libc::P_PIDFD, id, &mut info, flags) }.into()) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
            Ok(_) => return Ok(info.si_code == libc::CLD_STOPPED),
        }
    }
}

/// The pid of the process behind `pidfd`, in the caller's pid namespace; `ESRCH` if it is gone.
pub fn pid_of(pidfd: impl AsFd) -> io::Result<i32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    pid.filter(|pid| *pid > 0).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// Whether the process behind `pidfd` has not ended yet (reaped or not).
pub fn is_alive(pidfd: impl AsFd) -> bool {
    let mut poll = libc::pollfd { fd: pidfd.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the pointer is valid for the call.
    unsafe { libc::poll(&mut poll, 1, 0) == 0 }
}

/// Waits for the end of the process behind `pidfd`, whoever's child it is; whether it came.
pub fn ended_within(pidfd: impl AsFd, time: Duration) -> io::Result<bool> {
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now()).as_millis();
        let mut poll = libc::pollfd { fd: pidfd.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the pointer is valid for the call.
        match check(unsafe { libc::poll(&mut poll, 1, left.try_into().unwrap_or(libc::c_int::MAX)) }.into()) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(|ready| ready != 0),
        }
    }
}

/// Moves the caller (for `CLONE_NEWPID`: its future children) into the namespaces of `flags` that `fd` stands for: a
/// namespace file, or a pidfd for those of its process.
pub fn setns(fd: impl AsFd, flags: i32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::setns(fd.as_fd().as_raw_fd(), flags) }.into()).map(drop)
}

/// How a process is scheduled, see sched_setattr(2).
#[derive(Clone, Copy, Debug, Default)]
pub struct Scheduling {
    /// `SCHED_…`.
    pub policy: u32,
    /// `SCHED_FLAG_…`.
    pub flags: u64,
    /// Of the ordinary policies.
    pub nice: i32,
    /// Of the real-time ones.
    pub priority: u32,
    /// Nanoseconds, of the deadline policy.
    pub runtime: u64,
    /// Nanoseconds, of the deadline policy.
    pub deadline: u64,
    /// Nanoseconds, of the deadline policy.
    pub period: u64,
}

/// Changes how a process is scheduled.
pub fn set_scheduling(pid: i32, to: &Scheduling) -> io::Result<()> {
    /// struct sched_attr of linux/sched/types.h, in its first version.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let Scheduling { policy, flags, nice, priority, runtime, deadline, period } = *to;
    let size = size_of::<Attributes>() as u32;
    let attributes = Attributes { size, policy, flags, nice, priority, runtime, deadline, period };
    // SAFETY: the pointer is valid for the call, and the size is that of the struct.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attributes, 0) }).map(drop)
}

/// Changes the I/O priority of a process, see ioprio_set(2).
pub fn set_io_priority(pid: i32, class: u16, level: u16) -> io::Result<()> {
    const PROCESS: i32 = 1;
    const CLASS_SHIFT: u32 = 13;
    let priority = u32::from(class) << CLASS_SHIFT | u32::from(level);
    // SAFETY: no memory is involved.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, pid, priority) }).map(drop)
}

/// Closes every descriptor from `first` to `last`.
pub fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: no memory is involved; whose descriptors these are is the caller's business.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Whether orphans below this process become its children, so that it may reap them.
pub fn set_child_subreaper(on: bool) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, libc::c_ulong::from(on), 0, 0, 0) }.into()).map(drop)
}

/// The number of an `RLIMIT_…` name.
pub fn rlimit(name: &str) -> Option<u32> {
    Some(match name {
        "RLIMIT_CPU" => libc::RLIMIT_CPU,
        "RLIMIT_FSIZE" => libc::RLIMIT_FSIZE,
        "RLIMIT_DATA" => libc::RLIMIT_DATA,
        "RLIMIT_STACK" => libc::RLIMIT_STACK,
        "RLIMIT_CORE" => libc::RLIMIT_CORE,
        "RLIMIT_RSS" => libc::RLIMIT_RSS,
        "RLIMIT_NPROC" => libc::RLIMIT_NPROC,
        "RLIMIT_NOFILE" => libc::RLIMIT_NOFILE,
        "RLIMIT_MEMLOCK" => libc::RLIMIT_MEMLOCK,
        "RLIMIT_AS" => libc::RLIMIT_AS,
        "RLIMIT_LOCKS" => libc::RLIMIT_LOCKS,
        "RLIMIT_SIGPENDING" => libc::RLIMIT_SIGPENDING,
        "RLIMIT_MSGQUEUE" => libc::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => libc::RLIMIT_NICE,
        "RLIMIT_RTPRIO" => libc::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => libc::RLIMIT_RTTIME,
        _ => return None,
    })
}

/// Calls `f` as another user and group where files are concerned, with the rights of this thread all the same.
pub fn with_file_ids<T>(uid: u32, gid: u32, f: impl FnOnce() -> T) -> io::Result<T> {
    // SAFETY: no memory is involved. These two say what was, and nothing else; an id above all others changes nothing.
    let set = |uid: u32, gid: u32| unsafe {
        (libc::syscall(libc::SYS_setfsuid, uid) as u32, libc::syscall(libc::SYS_setfsgid, gid) as u32)
    };
    let before = capabilities()?;
    let own = set(uid, gid);
    // The kernel has taken those away that act on files.
    let done = set_capabilities(&before).map(|()| f());
    set(own.0, own.1);
    set_capabilities(&before)?;
    done
}

/// Effective, permitted and inheritable capabilities, as capget(2) has them.
type Capabilities = [u32; 6];
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

fn capabilities() -> io::Result<Capabilities> {
    let (mut header, mut data) = ([CAPABILITY_VERSION_3, 0], [0; 6]);
    // SAFETY: header and data are laid out as capget(2) says, and live for the call.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) })?;
    Ok(data)
}

fn set_capabilities(data: &Capabilities) -> io::Result<()> {
    let mut header = [CAPABILITY_VERSION_3, 0];
    // SAFETY: header and data are laid out as capset(2) says, and live for the call.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr()) }).map(drop)
}

/// The capability set that this process may use and give away, as bits.
pub fn permitted_capabilities() -> io::Result<u64> {
    let [_, low, _, _, high, _] = capabilities()?;
    Ok(u64::from(high) << 32 | u64::from(low))
}

/// The mount namespace of the process behind `pidfd`: it stays as it is for as long as this is held. Since Linux 6.11.
pub fn mount_namespace(pidfd: impl AsFd) -> io::Result<OwnedFd> {
    /// `_IO(PIDFS_IOCTL_MAGIC, 3)` of linux/pidfd.h.
    const PIDFD_GET_MNT_NAMESPACE: libc::c_ulong = 0xff03;
    // SAFETY: the request takes no argument (ioctl_pidfd(2)).
    let fd = check(unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), PIDFD_GET_MNT_NAMESPACE, 0) }.into())?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_made_as_somebody_else_with_all_rights() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let (before, file) = (capabilities().unwrap(), dir.path().join("file"));
        // The directory is closed to others: what opens it is the capability.
        with_file_ids(12345, 54321, || std::fs::write(&file, "")).unwrap().unwrap();
        let meta = std::fs::metadata(&file).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (12345, 54321));
        assert_eq!(capabilities().unwrap(), before);
        std::fs::write(dir.path().join("mine"), "").unwrap();
        assert_ne!(std::fs::metadata(dir.path().join("mine")).unwrap().uid(), 12345);
    }

    #[test]
    fn a_clone_is_signalled_and_reaped_through_its_pidfd() {
        // SAFETY: the child only pauses.
        let Some(child) = (unsafe { clone3(libc::CLONE_NEWPID, None) }).unwrap() else {
            loop {
                // SAFETY: no memory is involved.
                unsafe { libc::pause() };
            }
        };
        assert_eq!(waitid(&child.pidfd, false).unwrap(), None);
        assert!(is_alive(&child.pidfd));
        assert!(!ended_within(&child.pidfd, Duration::from_millis(1)).unwrap());
        pidfd_send_signal(&child.pidfd, libc::SIGKILL).unwrap();
        assert!(ended_within(&child.pidfd, Duration::from_secs(60)).unwrap(), "and it is not reaped by that");
        assert_eq!(waitid(&child.pidfd, true).unwrap(), Some(Exit::Signal(9)));
        assert!(!is_alive(&child.pidfd));
        assert_eq!(pidfd_send_signal(&child.pidfd, 9).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert_eq!((Exit::Signal(9).status(), Exit::Code(3).status()), (137, 3));
    }

    #[test]
    fn to_look_for_ended_children_takes_no_status() {
        // SAFETY: the child only exits.
        let Some(child) = (unsafe { clone3(0, None) }).unwrap() else {
            // SAFETY: no memory is involved.
            unsafe { libc::_exit(7) }
        };
        assert!(ended_within(&child.pidfd, Duration::from_secs(60)).unwrap());
        // Of this process's other tests there may be others.
        for _ in 0..3 {
            assert!(ended_child().unwrap().is_some());
        }
        assert_eq!(reap(child.pid).unwrap(), Exit::Code(7));
        assert_eq!(reap(child.pid).unwrap_err().raw_os_error(), Some(libc::ECHILD));
        assert_eq!(waitid(&child.pidfd, false).unwrap_err().raw_os_error(), Some(libc::ECHILD));
    }
}
