//! What the child does between clone3 and execve, as data.
//!
//! The parent turns a spec into a list of steps, with everything in them that needs memory, names or the host's files:
//! C strings, argument vectors, detached mounts, filters. The child walks the list with system calls alone and, when
//! one fails, sends back its number and the errno; [`Step::describe`] makes a sentence of it.

use std::{
    cell::Cell,
    ffi::{CString, c_char},
    os::fd::{OwnedFd, RawFd},
    ptr,
};

use cofferdam_types::Error;

use super::properties::Call;

/// A place in the container's root; looked up by descriptor, as the container's own programs would see it.
#[derive(Debug)]
pub(super) struct Target {
    /// Absolute and normalised: no `.`, `..` or empty part.
    pub path: CString,
    /// What to make if it's missing.
    pub make: Make,
    /// Whether a symlink on the way is an error: `/proc`, `/sys` and `/dev` of an image must be what they seem.
    pub no_symlinks: bool,
}

/// What a missing target becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Make {
    /// A directory.
    Directory,
    /// An empty file, to mount a file on.
    File,
}

/// What to set on a mount once it is attached.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributes {
    pub set: u64,
    pub clear: u64,
    /// `MS_…`, or 0.
    pub propagation: u64,
    pub recursive: bool,
}

/// A program with its arguments, ready for execve(2).
#[derive(Debug)]
pub(super) struct Command {
    /// The paths to try, in order.
    pub candidates: Vec<CString>,
    arguments: Strings,
    environment: Strings,
}

/// A null-terminated vector of pointers, with what they point at.
#[derive(Debug)]
struct Strings {
    pointers: Vec<*const c_char>,
    _owner: Vec<CString>,
}

// SAFETY: the pointers lead into strings that move along with them, and are never written through.
unsafe impl Send for Strings {}

impl Strings {
    fn new(owner: Vec<CString>) -> Strings {
        let pointers = owner.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
        Strings { pointers, _owner: owner }
    }
}

impl Command {
    pub fn new(candidates: Vec<CString>, arguments: Vec<CString>, environment: Vec<CString>) -> Command {
        Command { candidates, arguments: Strings::new(arguments), environment: Strings::new(environment) }
    }

    pub fn argv(&self) -> *const *const c_char {
        self.arguments.pointers.as_ptr()
    }

    pub fn envp(&self) -> *const *const c_char {
        self.environment.pointers.as_ptr()
    }
}

/// One thing to do. The order is the plan's business.
#[derive(Debug)]
pub(super) enum Step {
    /// Waits until the parent lets it go on.
    Gate,
    /// Joins a cgroup of a v1 hierarchy, see [`cofferdam_sys::cgroup::Cgroup::tasks_v1`].
    Join(OwnedFd),
    /// Makes `/proc/<pid>` of this process unreadable to the container that it is about to enter.
    Undumpable,
    /// Joins namespaces.
    Enter {
        fd: OwnedFd,
        flags: i32,
        what: String,
    },
    /// Clones a brother with new namespaces, in a cgroup of v2, that goes on from here; this process ends.
    Born {
        flags: i32,
        cgroup: Option<OwnedFd>,
    },
    /// Raises hard limits as far as needed, while the rights of the host are there to do it.
    Raise(Vec<(u32, libc::rlimit)>),
    /// Becomes a user namespace's root.
    Become {
        uid: u32,
        gid: u32,
    },
    /// A property of the process, by one system call.
    Call(Call),
    /// Writes to a file of this process in the host's proc file system: the label of the next program.
    Label {
        file: CString,
        value: CString,
        what: String,
    },
    /// Makes a time namespace with these offsets, and enters it.
    Time(CString),
    /// Opens a directory of the host, for [`Step::Place`].
    Reach(CString),
    /// Mounts the root there; what follows is made in it. [`Step::Pivot`] makes it the root.
    Place(OwnedFd),
    /// Says that hooks can run, or that network devices can come, and waits for them.
    Pause,
    Pivot,
    /// Makes the mounts of every [`Step::Mount`], for one to whom the kernel gives them only while the host's are
    /// there to be seen as well.
    Early,
    /// Makes new ones.
    Unshare {
        flags: i32,
    },
    /// Brings up `lo`, which a new network namespace has down.
    Loopback,
    Hostname(CString),
    Domainname(CString),
    /// Makes a detached mount the root, and lets go of the host's.
    Root(OwnedFd),
    /// Attaches a detached mount. `fresh`: a new and empty file system, which anything can be put into out here.
    Attach {
        target: Target,
        mount: OwnedFd,
        fresh: bool,
    },
    /// Makes a mount that depends on the namespaces of its maker (proc, sysfs, mqueue, cgroup2), and attaches it.
    Mount {
        target: Target,
        kind: CString,
        data: Vec<(CString, Option<CString>)>,
        attributes: Attributes,
        /// What [`Step::Early`] made of it, else -1.
        made: Cell<i32>,
    },
    /// Changes a mount that is in place.
    Change {
        target: Target,
        attributes: Attributes,
    },
    /// Writes a kernel parameter, through a proc file system of its own that nothing is mounted on.
    Sysctl {
        name: String,
        path: CString,
        value: CString,
    },
    /// The next steps are done already if this is the directory that they were done in.
    Furnished {
        target: Target,
        device: u64,
        inode: u64,
        steps: usize,
    },
    /// Makes a device node, or makes sure that the one there is it.
    Device {
        directory: Target,
        name: CString,
        mode: u32,
        device: u64,
        uid: u32,
        gid: u32,
    },
    /// Makes a symlink, unless something has the name.
    Symlink {
        directory: Target,
        name: CString,
        to: CString,
    },
    /// Makes a directory, unless it is there.
    Directory(Target),
    /// Hides a file behind /dev/null or a directory behind an empty one; a missing one is fine.
    Mask(CString),
    /// Makes a path read-only with all below it; a missing one is fine.
    ReadOnly(CString),
    /// Makes a terminal in the container's devpts, and sends its master to the parent.
    Terminal {
        rows: u16,
        cols: u16,
        uid: u32,
        console: bool,
    },
    /// Makes these descriptors 0, 1 and 2 (`None`: the terminal) and closes all others.
    Streams {
        fds: Option<[RawFd; 3]>,
        uid: u32,
    },
    /// A session keyring of its own.
    Keyring(CString),
    /// Resource limits.
    Limits(Vec<(u32, libc::rlimit)>),
    /// The working directory; the `early` attempt, with all rights, may fail for want of them.
    WorkingDirectory {
        path: CString,
        early: bool,
    },
    /// Takes all but these out of the bounding set.
    Bounding {
        keep: u64,
    },
    User {
        uid: u32,
        gid: u32,
        groups: Vec<u32>,
        umask: u32,
    },
    /// Ambient ones must be permitted and inheritable.
    Capabilities {
        effective: u64,
        permitted: u64,
        inheritable: u64,
        ambient: u64,
    },
    NoNewPrivileges,
    Seccomp {
        filter: Vec<libc::sock_filter>,
        flags: libc::c_ulong,
    },
    /// Says that all is set up, and waits for the word to start.
    Ready,
    Execute(Command),
}

impl Step {
    /// What was being done, for an error.
    pub fn describe(&self) -> String {
        let text = |c: &CString| c.to_string_lossy().into_owned();
        match self {
            Step::Gate => "waiting for the parent".into(),
            Step::Join(_) => "joining its cgroup".into(),
            Step::Undumpable => "hiding the process from the container".into(),
            Step::Enter { what, .. } => format!("joining {what}"),
            Step::Born { .. } => "making its namespaces".into(),
            Step::Raise(_) => "raising resource limits".into(),
            Step::Become { uid, gid } => format!("becoming {uid}:{gid} of the user namespace"),
            Step::Early => "making the mounts".into(),
            Step::Call(call) => call.what.into(),
            Step::Label { what, .. } => format!("setting {what}"),
            Step::Time(_) => "making the time namespace".into(),
            Step::Reach(path) => format!("opening {}", text(path)),
            Step::Place(_) => "mounting the root file system in the bundle".into(),
            Step::Pause => "waiting for the host's part".into(),
            Step::Pivot => "changing to the root file system".into(),
            Step::Unshare { .. } => "making the network and cgroup namespaces".into(),
            Step::Loopback => "bringing up the loopback interface".into(),
            Step::Hostname(name) => format!("setting the host name {}", text(name)),
            Step::Domainname(name) => format!("setting the domain name {}", text(name)),
            Step::Root(_) => "changing to the root file system".into(),
            Step::Attach { target, .. } => format!("mounting at {}", text(&target.path)),
            Step::Mount { target, kind, .. } => format!("mounting {} at {}", text(kind), text(&target.path)),
            Step::Change { target, .. } => format!("changing the mount at {}", text(&target.path)),
            Step::Sysctl { name, .. } => format!("setting the kernel parameter {name}"),
            Step::Furnished { target, .. } => format!("looking at {}", text(&target.path)),
            Step::Device { directory, name, .. } => {
                format!("making the device {}/{}", text(&directory.path), text(name))
            }
            Step::Symlink { directory, name, .. } => {
                format!("making the link {}/{}", text(&directory.path), text(name))
            }
            Step::Directory(target) => format!("making the directory {}", text(&target.path)),
            Step::Mask(path) => format!("masking {}", text(path)),
            Step::ReadOnly(path) => format!("making {} read-only", text(path)),
            Step::Terminal { .. } => "making a terminal (is devpts mounted at /dev/pts?)".into(),
            Step::Streams { .. } => "connecting the standard streams".into(),
            Step::Keyring(_) => "making a session keyring".into(),
            Step::Limits(_) => "setting resource limits".into(),
            Step::WorkingDirectory { path, .. } => format!("changing to the working directory {}", text(path)),
            Step::Bounding { .. } => "dropping capabilities from the bounding set".into(),
            Step::User { uid, gid, .. } => format!("becoming user {uid}:{gid}"),
            Step::Capabilities { .. } => "setting capabilities".into(),
            Step::NoNewPrivileges => "setting no_new_privs".into(),
            Step::Seccomp { .. } => "loading the seccomp filter".into(),
            Step::Ready => "waiting for the start".into(),
            Step::Execute(_) => "executing the command".into(),
        }
    }
}

impl Step {
    /// What to say of a failure that is the doing of who asked for the container, or of the image: the kernel's word
    /// for it means nothing to them. `None` for any other failure.
    pub fn refusal(&self, errno: i32) -> Option<Error> {
        let text = |c: &CString| c.to_string_lossy().into_owned();
        let spec = |id: String, why: &str| Some(Error::invalid("spec", id, why));
        let state = |id: String, why: &str| Some(Error::failed_precondition("container", "", format!("{id}: {why}")));
        match (self, errno) {
            (Step::Sysctl { name, .. }, libc::ENOENT) => {
                spec(format!("sysctl {name}"), "is not a parameter that this kernel has in a container's namespaces")
            }
            (Step::Sysctl { name, value, .. }, libc::EINVAL | libc::ERANGE) => {
                spec(format!("sysctl {name}"), &format!("can't be {:?}: the kernel refuses that value", text(value)))
            }
            (Step::Sysctl { name, .. }, libc::EACCES | libc::EPERM | libc::EROFS) => {
                spec(format!("sysctl {name}"), "can only be read")
            }
            (Step::Attach { target, .. }, libc::EINVAL | libc::ENOTDIR)
            | (Step::Mount { target, .. }, libc::ENOTDIR) => state(
                format!("mounting at {}", text(&target.path)),
                "a directory can only be mounted on a directory and a file on a file, and this is not so here: choose \
                 another dst",
            ),
            (Step::Mount { target, kind, .. }, libc::EINVAL) => {
                let id = format!("mounts {}", text(&target.path));
                spec(id, &format!("have options that a file system of type {} doesn't take here", text(kind)))
            }
            (Step::Attach { target, .. } | Step::Mount { target, .. }, libc::EBUSY) => {
                spec(format!("mounts {}", text(&target.path)), ROOT)
            }
            (Step::Mask(path), libc::EBUSY) => spec(format!("linux.maskedPaths {}", text(path)), ROOT),
            (Step::Mask(_), libc::ENODEV) => state(
                self.describe(),
                "it is hidden by /dev/null, and another thing is mounted there: choose another dst",
            ),
            (Step::Directory(target), libc::ENOTDIR) => not_a_directory(&target.path),
            (Step::WorkingDirectory { path, .. }, libc::ENOTDIR) => not_a_directory(path),
            (Step::WorkingDirectory { path, .. }, libc::EACCES | libc::EPERM) => {
                state(format!("the working directory {}", text(path)), "its user may not enter it")
            }
            (Step::Mount { kind, target, .. }, libc::EPERM) => state(
                format!("mounting {} at {}", text(kind), text(&target.path)),
                "in a user namespace the kernel allows it only with the namespaces that it shows (sysfs: network, proc: \
                 pid, mqueue: ipc) made along with it, and where the daemon sees the host's: bind the host's instead",
            ),
            (Step::Label { what, .. }, _) => state(
                format!("setting {what}"),
                "the kernel refuses it: is it loaded, and may the daemon change to it?",
            ),
            (Step::Time(_), libc::EINVAL | libc::ERANGE) => {
                spec("linux.timeOffsets".to_owned(), "would set a clock back before its beginning, or too far ahead")
            }
            (Step::Call(call), libc::ENOSYS) => {
                state(call.what.to_owned(), "this kernel doesn't have it: leave it out")
            }
            (Step::Call(call), libc::EINVAL) => {
                spec(call.what.to_owned(), "has values that this kernel or host doesn't take")
            }
            (Step::Limits(_) | Step::Raise(_), libc::EPERM) => state(
                "setting resource limits".to_owned(),
                "one is higher than the daemon may give: ask for less, or start the daemon with more (CAP_SYS_RESOURCE)",
            ),
            (Step::Attach { .. } | Step::Mount { .. } | Step::Directory(_), libc::ELOOP) => {
                state(self.describe(), "symbolic links lead nowhere, or stand in place of a system directory")
            }
            (Step::Attach { .. } | Step::Mount { .. } | Step::Directory(_), libc::ENAMETOOLONG | libc::EROFS) => {
                state(self.describe(), &std::io::Error::from_raw_os_error(errno).to_string())
            }
            _ => None,
        }
    }
}

/// What is wrong with a mount on the root.
pub(super) const ROOT: &str = "would be mounted on the container's root itself, where it hides nothing and isn't seen: \
     give a place below it";

fn not_a_directory(path: &CString) -> Option<Error> {
    let why = format!("the working directory {} is not a directory in the container", path.to_string_lossy());
    Some(Error::failed_precondition("container", "", why))
}

/// What the child sends to the parent, one packet each. End of file after [`Kind::Ready`] means that the program runs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Message {
    pub kind: u32,
    pub step: u32,
    pub errno: i32,
}

/// Kinds of [`Message`].
pub(super) struct Kind;

impl Kind {
    pub const FAILED: u32 = 1;
    pub const READY: u32 = 2;
    /// Carries the terminal's master.
    pub const CONSOLE: u32 = 3;
    /// Carries the pidfd of the process that goes on.
    pub const BORN: u32 = 4;
    /// It stands where hooks are run.
    pub const PAUSED: u32 = 5;
}
