//! The child between clone3 and execve: walks the steps with raw system calls.
//!
//! Another thread of the parent may have held any lock when the child was made, so nothing here allocates, panics,
//! prints or calls into a library for more than a system call. Buffers live on the stack.

use std::{
    ffi::CStr,
    mem,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    ptr,
};

use cofferdam_sys::process;

use super::{
    child_fs::{self, Root},
    properties::Call,
    step::{Command, Kind, Message, Step},
};

/// An errno.
pub(super) type Errno = i32;
pub(super) type Done<T = ()> = Result<T, Errno>;

/// The errno of the call that just failed.
pub(super) fn errno() -> Errno {
    // SAFETY: the location is always valid.
    unsafe { *libc::__errno_location() }
}

/// Turns the result of a system call into its value or the errno.
pub(super) fn ok(result: libc::c_long) -> Done<libc::c_long> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// What the steps hand on to each other.
struct State {
    /// This end of the control socket.
    control: i32,
    /// The terminal's slave, or -1.
    terminal: i32,
    root: Root,
    /// Where the root is mounted for hooks, or -1.
    place: i32,
    /// Whether the early attempt at the working directory worked.
    moved: bool,
}

/// Walks the steps; never returns. `parents_end` is the parent's end of the control socket.
pub(super) fn run(steps: &[Step], control: i32, parents_end: i32) -> ! {
    // SAFETY: closes a descriptor that only the parent uses, so that the parent's death ends the waits below.
    unsafe { libc::close(parents_end) };
    reset_signals();
    let mut state = State { control, terminal: -1, root: Root::new(), place: -1, moved: false };
    let mut next = 0;
    while let Some(step) = steps.get(next) {
        let index = next;
        next += 1;
        let done = match step {
            Step::Early => early(steps),
            Step::Furnished { target, device, inode, steps } => {
                let same = state.root.fd().and_then(|root| child_fs::is_same(root, target, *device, *inode));
                same.map(|same| next += if same { *steps } else { 0 })
            }
            step => perform(step, &mut state),
        };
        if let Err(errno) = done {
            send(state.control, Message { kind: Kind::FAILED, step: index as u32, errno });
            // The conventions of shells: 127 not found, 126 found but not executable.
            exit(if errno == libc::ENOENT { 127 } else { 126 });
        }
    }
    exit(126)
}

fn exit(status: i32) -> ! {
    // SAFETY: ends this process, without the exit handlers of the parent.
    unsafe { libc::_exit(status) }
}

/// What the parent ignores or blocks would stay so across execve.
fn reset_signals() {
    // System calls, not the C functions: those leave out the signals that the C library keeps to itself.
    // SAFETY: zero is SIG_DFL without flags, and the empty mask; `action` is as large as the kernel's struct.
    unsafe {
        const SET_BYTES: usize = 8;
        let action = [0u64; 4];
        for signal in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), ptr::null::<u64>(), SET_BYTES);
        }
        let (how, none) = (libc::SIG_SETMASK, 0u64);
        libc::syscall(libc::SYS_rt_sigprocmask, how, &none, ptr::null::<u64>(), SET_BYTES);
        libc::umask(0o022);
    }
}

fn send(control: i32, message: Message) {
    // SAFETY: the message lives for the call. If the parent is gone nobody is to be told.
    unsafe { libc::write(control, (&raw const message).cast(), size_of::<Message>()) };
}

/// Waits for a byte; the parent's death ends the child.
fn wait(control: i32) {
    let mut byte = 0u8;
    loop {
        // SAFETY: the buffer lives for the call.
        match unsafe { libc::read(control, (&raw mut byte).cast(), 1) } {
            1 => return,
            -1 if errno() == libc::EINTR => {}
            _ => exit(126),
        }
    }
}

/// Makes every mount that is to come. One that can't be made fails at its own step, which tries again.
fn early(steps: &[Step]) -> Done {
    for step in steps {
        if let Step::Mount { kind, data, attributes, made, .. } = step {
            made.set(child_fs::make_mount(kind, data, attributes).unwrap_or(-1));
        }
    }
    Ok(())
}

fn perform(step: &Step, state: &mut State) -> Done {
    match step {
        Step::Gate => wait(state.control),
        // SAFETY: the buffer is static.
        Step::Join(tasks) => drop(ok(unsafe { libc::write(tasks.as_raw_fd(), c"0".as_ptr().cast(), 1) } as i64)?),
        // SAFETY: no memory is involved.
        Step::Undumpable => drop(ok(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }.into())?),
        // SAFETY: no memory is involved.
        Step::Enter { fd, flags, .. } => drop(ok(unsafe { libc::setns(fd.as_raw_fd(), *flags) }.into())?),
        Step::Born { flags, cgroup } => born(state.control, *flags, cgroup.as_ref())?,
        Step::Raise(limits) => raise(limits)?,
        // SAFETY: numbers, and no groups.
        Step::Become { uid, gid } => unsafe {
            ok(libc::syscall(libc::SYS_setgroups, 0, ptr::null::<u32>()))?;
            ok(libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid))?;
            ok(libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid))?;
        },
        Step::Call(call) => self::call(call)?,
        Step::Label { file, value, .. } => child_fs::write(file, value)?,
        Step::Time(offsets) => time(offsets)?,
        Step::Reach(path) => state.place = child_fs::open_directory(path)?,
        Step::Place(mount) => state.root = Root::at(child_fs::place(mount.as_raw_fd(), state.place)?),
        Step::Pause => {
            send(state.control, Message { kind: Kind::PAUSED, ..Message::default() });
            wait(state.control);
        }
        Step::Pivot => child_fs::enter(state.root.fd()?)?,
        Step::Early | Step::Furnished { .. } => {}
        // SAFETY: no memory is involved.
        Step::Unshare { flags } => drop(ok(unsafe { libc::unshare(*flags) }.into())?),
        Step::Loopback => cofferdam_sys::network::loopback_up().map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))?,
        // SAFETY: the pointer is valid for the length.
        Step::Hostname(name) => drop(ok(unsafe { libc::sethostname(name.as_ptr(), name.count_bytes()) }.into())?),
        // SAFETY: the pointer is valid for the length.
        Step::Domainname(name) => drop(ok(unsafe { libc::setdomainname(name.as_ptr(), name.count_bytes()) }.into())?),
        Step::Root(mount) => child_fs::pivot(mount.as_raw_fd())?,
        Step::Attach { target, mount, .. } => child_fs::attach(state.root.fd()?, target, mount.as_raw_fd())?,
        Step::Mount { target, kind, data, attributes, made } => {
            let mount = match made.replace(-1) {
                -1 => child_fs::make_mount(kind, data, attributes)?,
                made => made,
            };
            child_fs::attach(state.root.fd()?, target, mount)?;
            child_fs::close(mount);
        }
        Step::Change { target, attributes } => child_fs::change(state.root.fd()?, target, attributes)?,
        Step::Sysctl { path, value, .. } => child_fs::sysctl(path, value)?,
        Step::Device { directory, name, mode, device, uid, gid } => {
            child_fs::device(state.root.fd()?, directory, name, *mode, *device, (*uid, *gid))?;
        }
        Step::Symlink { directory, name, to } => child_fs::symlink(state.root.fd()?, directory, name, to)?,
        Step::Directory(target) => child_fs::close(child_fs::ensure(state.root.fd()?, target)?),
        Step::Mask(path) => child_fs::mask(&mut state.root, path)?,
        Step::ReadOnly(path) => child_fs::read_only(state.root.fd()?, path)?,
        Step::Terminal { rows, cols, uid, console } => {
            let (master, slave) = child_fs::terminal(state.root.fd()?, *rows, *cols, *uid, *console)?;
            send_fd(state.control, Kind::CONSOLE, master)?;
            child_fs::close(master);
            state.terminal = slave;
        }
        Step::Streams { fds, uid } => streams(state, *fds, *uid)?,
        Step::Keyring(name) => {
            const JOIN_SESSION_KEYRING: i32 = 1;
            // SAFETY: the pointer is valid for the call.
            match ok(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) }) {
                Ok(keyring) => {
                    // Its user may search it even where it isn't in possession, as after a change of user.
                    const SETPERM: i32 = 5;
                    const PERMISSIONS: u32 = 0x3f1b_0000;
                    // SAFETY: no memory is involved.
                    ok(unsafe { libc::syscall(libc::SYS_keyctl, SETPERM, keyring, PERMISSIONS) })?;
                }
                // A kernel without keys has nothing to keep apart.
                Err(libc::ENOSYS) => {}
                Err(e) => return Err(e),
            }
        }
        Step::Limits(limits) => {
            for (resource, limit) in limits {
                // SAFETY: the pointer is valid for the call.
                ok(unsafe { libc::setrlimit(*resource, limit) }.into())?;
            }
        }
        Step::WorkingDirectory { path, early } => working_directory(state, path, *early)?,
        Step::Bounding { keep } => bounding(*keep)?,
        Step::User { uid, gid, groups, umask } => user(*uid, *gid, groups, *umask)?,
        Step::Capabilities { effective, permitted, inheritable, ambient } => {
            capabilities(*effective, *permitted, *inheritable, *ambient)?;
        }
        // SAFETY: no memory is involved.
        Step::NoNewPrivileges => drop(ok(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?),
        Step::Seccomp { filter, flags } => {
            let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
            let mode = libc::SECCOMP_SET_MODE_FILTER;
            // SAFETY: the kernel copies the program, which lives for the call.
            ok(unsafe { libc::syscall(libc::SYS_seccomp, mode, *flags, &program) })?;
        }
        Step::Ready => {
            send(state.control, Message { kind: Kind::READY, ..Message::default() });
            wait(state.control);
        }
        Step::Execute(command) => return Err(execute(command)),
    }
    Ok(())
}

/// Returns in the new process alone.
fn born(control: i32, flags: i32, cgroup: Option<&OwnedFd>) -> Done {
    // SAFETY: the new process goes on with the walk, as this one would have.
    let made = unsafe { process::clone3(flags | libc::CLONE_PARENT, cgroup.map(AsFd::as_fd)) };
    match made {
        Err(e) => Err(e.raw_os_error().unwrap_or(libc::EIO)),
        Ok(None) => Ok(()),
        Ok(Some(child)) => {
            let sent = send_fd(control, Kind::BORN, child.pidfd.as_raw_fd());
            // Whoever can't be handed over is nobody's.
            if sent.is_err() {
                let _ = process::pidfd_send_signal(&child.pidfd, libc::SIGKILL);
            }
            exit(0)
        }
    }
}

fn call(call: &Call) -> Done {
    let mut arguments = call.arguments;
    if let Some(argument) = call.at.and_then(|at| arguments.get_mut(at)) {
        *argument = call.buffer.as_ptr() as usize;
    }
    let [a, b, c, d] = arguments;
    // SAFETY: the one pointer among them leads to the buffer, whose length another argument tells.
    ok(unsafe { libc::syscall(call.number, a, b, c, d) }).map(drop)
}

/// The offsets must be set before anything is in the namespace, and this process goes there itself.
fn time(offsets: &CStr) -> Done {
    // SAFETY: the pointer is valid for the call.
    unsafe {
        ok(libc::unshare(libc::CLONE_NEWTIME).into())?;
        if !offsets.is_empty() {
            child_fs::write(c"/proc/self/timens_offsets", offsets)?;
        }
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        let own = ok(libc::open(c"/proc/self/ns/time_for_children".as_ptr(), flags).into())? as i32;
        ok(libc::setns(own, libc::CLONE_NEWTIME).into())?;
        child_fs::close(own);
    }
    Ok(())
}

fn raise(limits: &[(u32, libc::rlimit)]) -> Done {
    for (resource, wanted) in limits {
        // SAFETY: rlimit is plain numbers, for which zero is a value; the pointers are valid for the calls.
        unsafe {
            let mut limit: libc::rlimit = mem::zeroed();
            ok(libc::getrlimit(*resource, &mut limit).into())?;
            if wanted.rlim_max > limit.rlim_max {
                limit.rlim_max = wanted.rlim_max;
                ok(libc::setrlimit(*resource, &limit).into())?;
            }
        }
    }
    Ok(())
}

/// Makes 0, 1 and 2 and closes everything else but the control socket, which closes itself on execve: neither a
/// descriptor nor, through /proc/self/fd, a directory of the host gets into the container.
fn streams(state: &mut State, fds: Option<[i32; 3]>, uid: u32) -> Done {
    // SAFETY: plain system calls on descriptors of this process; those that are replaced or closed are not used again.
    unsafe {
        libc::setsid();
        let mut high = [-1; 3];
        for (to, from) in high.iter_mut().zip(fds.unwrap_or([state.terminal; 3])) {
            // Out of the way of 0 to 2, which may be among them.
            *to = ok(libc::fcntl(from, libc::F_DUPFD_CLOEXEC, 3).into())? as i32;
        }
        // The control socket may itself be one of 0 to 2.
        state.control = ok(libc::fcntl(state.control, libc::F_DUPFD_CLOEXEC, 3).into())? as i32;
        for (to, from) in high.iter().enumerate() {
            ok(libc::dup2(*from, to as i32).into())?;
        }
        if fds.is_none() {
            ok(libc::ioctl(0, libc::TIOCSCTTY, 0).into())?;
        }
        let control = state.control as u32;
        if control > 3 {
            ok(libc::syscall(libc::SYS_close_range, 3u32, control - 1, 0))?;
        }
        ok(libc::syscall(libc::SYS_close_range, control + 1, u32::MAX, 0))?;
        state.root = Root::new();
        if fds.is_some() && uid != 0 {
            for fd in 0..3 {
                let mut stat: libc::stat = mem::zeroed();
                // Only pipes: a program that reopens /dev/stdout needs it, and a file is somebody's.
                if libc::fstat(fd, &mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFIFO {
                    libc::fchown(fd, uid, u32::MAX);
                }
            }
        }
    }
    Ok(())
}

fn working_directory(state: &mut State, path: &CStr, early: bool) -> Done {
    if state.moved {
        return Ok(());
    }
    // SAFETY: the pointer is valid for the call.
    match ok(unsafe { libc::chdir(path.as_ptr()) }.into()) {
        Err(libc::EACCES | libc::EPERM) if early => return Ok(()),
        other => other?,
    };
    // A path through a magic link may lead out of the root; the kernel then says "(unreachable)".
    let mut buffer = [0u8; libc::PATH_MAX as usize];
    // SAFETY: the buffer is valid for its length.
    ok(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) })?;
    if buffer[0] != b'/' {
        return Err(libc::EXDEV);
    }
    state.moved = true;
    Ok(())
}

fn bounding(keep: u64) -> Done {
    for bit in 0..64 {
        if keep & 1 << bit != 0 {
            continue;
        }
        // SAFETY: no memory is involved.
        match ok(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, bit as libc::c_ulong, 0, 0, 0) }.into()) {
            // The first number that this kernel doesn't know.
            Err(libc::EINVAL) => break,
            other => other?,
        };
    }
    Ok(())
}

fn user(uid: u32, gid: u32, groups: &[u32], umask: u32) -> Done {
    // SAFETY: the pointer is valid for the length; the rest is numbers. System calls, not the C functions: those would
    // signal the parent's threads, which this process doesn't have.
    unsafe {
        ok(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into())?;
        ok(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        ok(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        ok(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        libc::umask(umask);
    }
    Ok(())
}

fn capabilities(effective: u64, permitted: u64, inheritable: u64, ambient: u64) -> Done {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let half = |high: u32| [(effective >> high) as u32, (permitted >> high) as u32, (inheritable >> high) as u32];
    let data = [half(0), half(32)];
    // SAFETY: header and data are laid out as capset(2) says, and live for the call; the rest is numbers.
    unsafe {
        ok(libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()))?;
        let ambient_call = |what: i32, bit: libc::c_ulong| {
            ok(libc::prctl(libc::PR_CAP_AMBIENT, what as libc::c_ulong, bit, 0, 0).into())
        };
        ambient_call(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
        for bit in (0..64).filter(|bit| ambient & 1 << bit != 0) {
            ambient_call(libc::PR_CAP_AMBIENT_RAISE, bit)?;
        }
        ok(libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0).into())?;
    }
    Ok(())
}

/// Tries each candidate as a shell would; the errno that says most.
fn execute(command: &Command) -> Errno {
    let mut worst = libc::ENOENT;
    for path in &command.candidates {
        // SAFETY: the vectors are null-terminated and live until the process image is replaced.
        unsafe { libc::execve(path.as_ptr(), command.argv(), command.envp()) };
        match errno() {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => worst = libc::EACCES,
            other => return other,
        }
    }
    worst
}

/// Sends a descriptor along with a message.
fn send_fd(control: i32, kind: u32, fd: i32) -> Done {
    let mut message = Message { kind, ..Message::default() };
    // u64 for the alignment that cmsghdr needs.
    let mut space = [0u64; 8];
    // SAFETY: all buffers live on the stack for the call; `space` holds CMSG_SPACE(4) bytes with room to spare.
    unsafe {
        let mut part = libc::iovec { iov_base: (&raw mut message).cast(), iov_len: size_of::<Message>() };
        let mut header: libc::msghdr = mem::zeroed();
        header.msg_iov = &mut part;
        header.msg_iovlen = 1;
        header.msg_control = space.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(size_of::<i32>() as u32) as _;
        let first = libc::CMSG_FIRSTHDR(&header);
        (*first).cmsg_level = libc::SOL_SOCKET;
        (*first).cmsg_type = libc::SCM_RIGHTS;
        (*first).cmsg_len = libc::CMSG_LEN(size_of::<i32>() as u32) as _;
        ptr::write_unaligned(libc::CMSG_DATA(first).cast::<i32>(), fd);
        ok(libc::sendmsg(control, &header, 0) as libc::c_long)?;
    }
    Ok(())
}
