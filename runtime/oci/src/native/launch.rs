//! Clones a child that walks a list of steps, and talks with it over a socket pair.

use std::{
    fs::File,
    io::{self, IoSliceMut, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    sync::Mutex,
    time::Duration,
};

use cofferdam_sys::{cgroup::Cgroup, fd, process, program};
use cofferdam_types::{Error, Result};
use nix::sys::socket::{self, AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType};

use oci_spec::runtime::Process;

use super::{
    child, properties,
    rdt::Class,
    step::{Kind, Message, Step},
};
use crate::runtime::locked;

/// How long a child is waited for each time: as long as a runtime of others. Whoever is in the pid namespace that it is born
/// into can stop it there; and it may stand still for want of memory, or for a disk.
const DEADLINE: Duration = Duration::from_secs(30);

/// Held while a child has an end of its control socket that this process has as well. One that is made meanwhile would have it
/// too, and where that one stands still the first would never be seen to begin.
static CONTROL: Mutex<()> = Mutex::new(());

/// A child on its way to its program.
#[derive(Debug)]
pub(super) struct Launched {
    pub child: process::Child,
    control: OwnedFd,
    /// The terminal's master, once the child has sent it.
    pub console: Option<OwnedFd>,
    /// See [`DEADLINE`].
    pub deadline: Duration,
}

/// How far the child got.
#[derive(Debug)]
enum Progress {
    Ready,
    /// It waits for what the host does.
    Paused,
    /// This process goes on.
    Born(OwnedFd),
    /// The control socket is closed: the program runs, or the child was killed.
    Closed,
    Failed {
        step: usize,
        errno: i32,
    },
}

/// Where a process is accounted for.
pub(super) struct Place<'a> {
    pub cgroup: &'a Cgroup,
    /// Whose group it is born into where that one takes no process, since those in it made groups and handed controllers
    /// down to them.
    pub neighbour: Option<i32>,
    pub class: Option<&'a Class>,
}

/// Clones the child into its place and its namespaces. `pid_namespace`: one that exists, to be born into.
pub(super) fn launch(
    steps: &[Step],
    flags: i32,
    pid_namespace: Option<&OwnedFd>,
    place: &Place<'_>,
    process: &Process,
    oom_score: Option<i32>,
) -> Result<Launched> {
    let fail = |what: &'static str| move |e: io::Error| Error::io("process", "", what, &e);
    let alone = locked(&CONTROL);
    let (ours, theirs) = socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| fail("making a control socket")(e.into()))?;
    let born_into = pid_namespace.map(ChildrenIn::enter).transpose().map_err(fail("entering the pid namespace"))?;
    let (own, parents) = (theirs.as_raw_fd(), ours.as_raw_fd());
    let clone = |into: Option<BorrowedFd<'_>>| {
        // SAFETY: the child goes straight into the walk, which makes system calls only and never returns.
        match unsafe { process::clone3(flags, into) } {
            Ok(None) => child::run(steps, own, parents),
            Ok(Some(child)) => Ok(child),
            Err(e) => Err(e),
        }
    };
    let child = match (clone(place.cgroup.unified()), place.neighbour) {
        (Err(e), Some(pid)) if e.raw_os_error() == Some(libc::EBUSY) => {
            clone(Some(place.cgroup.unified_of(pid)?.as_fd()))
        }
        (cloned, _) => cloned,
    };
    let child = child.map_err(fail("clone3"))?;
    drop((theirs, born_into, alone));
    let mut launched = Launched { child, control: ours, console: None, deadline: DEADLINE };
    if steps.iter().any(|step| matches!(step, Step::Born { .. })) {
        launched.succeed(steps).inspect_err(|_| launched.destroy())?;
    }
    let pid = launched.child.pid;
    let placed = properties::place(pid, process, oom_score)
        .and_then(|()| place.class.map_or(Ok(()), |class| class.add(pid)))
        .and_then(|()| launched.release());
    if let Err(e) = placed {
        launched.destroy();
        return Err(e);
    }
    Ok(launched)
}

pub(super) fn oom_score_adj(pid: i32, score: i32) -> Result<()> {
    fd::open_proc_write(format!("/proc/{pid}/oom_score_adj").as_ref())
        .and_then(|mut file| file.write_all(score.to_string().as_bytes()))
        .map_err(|e| match e.raw_os_error() {
            Some(libc::EACCES) => Error::failed_precondition(
                "spec",
                "process.oomScoreAdj",
                "lowering it takes CAP_SYS_RESOURCE, which the daemon doesn't have",
            ),
            _ => Error::io("spec", "process.oomScoreAdj", format!("setting it to {score}"), &e),
        })
}

impl Launched {
    /// Lets the child go on from where it waits.
    pub fn release(&self) -> Result<()> {
        // A dead child must be an error, not a SIGPIPE.
        socket::send(self.control.as_raw_fd(), b"g", MsgFlags::MSG_NOSIGNAL).map(drop).map_err(|_| self.killed())
    }

    /// Waits until the child stands where the host does something. On an error the child is to be destroyed.
    pub fn wait_paused(&mut self, steps: &[Step]) -> Result<()> {
        match self.receive() {
            Ok(Progress::Paused) => Ok(()),
            other => Err(self.explain(other, |index| steps.get(index))),
        }
    }

    /// Waits for the process that goes on in the child's place, and takes the child in.
    fn succeed(&mut self, steps: &[Step]) -> Result<()> {
        let pidfd = match self.receive() {
            Ok(Progress::Born(pidfd)) => pidfd,
            other => return Err(self.explain(other, |index| steps.get(index))),
        };
        let _ = process::waitid(&self.child.pidfd, true);
        let pid = process::pid_of(&pidfd);
        self.child.pidfd = pidfd;
        self.child.pid = pid.map_err(|_| self.killed())?;
        Ok(())
    }

    /// Waits until the child is set up; `steps` explain a failure. On an error the child is to be destroyed.
    pub fn wait_ready(&mut self, steps: &[Step]) -> Result<()> {
        match self.receive() {
            Ok(Progress::Ready) => Ok(()),
            other => Err(self.explain(other, |index| steps.get(index))),
        }
    }

    /// Waits until the program runs. On an error the child is to be destroyed.
    pub fn wait_running(&mut self, steps: &[Step], name: &str) -> Result<()> {
        match self.receive() {
            Ok(Progress::Closed) => Ok(()),
            Ok(Progress::Failed { step, errno }) if matches!(steps.get(step), Some(Step::Execute(_))) => {
                Err(command_error(name, errno))
            }
            other => Err(self.explain(other, |index| steps.get(index))),
        }
    }

    fn explain<'s>(&self, progress: io::Result<Progress>, step: impl Fn(usize) -> Option<&'s Step>) -> Error {
        match progress {
            Ok(Progress::Failed { step: index, errno }) => {
                if let Some(refusal) = step(index).and_then(|step| step.refusal(errno)) {
                    return refusal;
                }
                let what = step(index).map_or_else(|| format!("step {index}"), Step::describe);
                Error::io("container", "", what, &io::Error::from_raw_os_error(errno))
            }
            Ok(Progress::Closed | Progress::Ready | Progress::Paused | Progress::Born(_)) => self.killed(),
            Err(e) => Error::io("process", self.child.pid, "waiting for its set-up", &e),
        }
    }

    fn killed(&self) -> Error {
        Error::unavailable("process", self.child.pid, "was killed while it was being set up")
    }

    /// Kills and reaps the child. In a v1 hierarchy nobody dies who stands still in a group that somebody else froze: such a one
    /// is waited for as long as for all else, and then left to who takes in whatever ends.
    pub fn destroy(&self) {
        let _ = process::pidfd_send_signal(&self.child.pidfd, libc::SIGKILL);
        if process::ended_within(&self.child.pidfd, self.deadline).unwrap_or(true) {
            let _ = process::waitid(&self.child.pidfd, true);
        }
    }

    /// The next message but for the console's, which is kept.
    fn receive(&mut self) -> io::Result<Progress> {
        loop {
            if !program::readable(self.control.as_fd(), self.deadline)? {
                let late = format!("it stood still for {:?}, and is killed", self.deadline);
                return Err(io::Error::new(io::ErrorKind::TimedOut, late));
            }
            let mut bytes = [0u8; size_of::<Message>()];
            let (got, carried) = receive_packet(self.control.as_raw_fd(), &mut bytes)?;
            if got == 0 {
                return Ok(Progress::Closed);
            }
            let word = |at: usize| {
                let mut four = [0; 4];
                four.copy_from_slice(&bytes[at..at + 4]);
                u32::from_ne_bytes(four)
            };
            match (word(0), carried) {
                (Kind::PAUSED, _) => return Ok(Progress::Paused),
                (Kind::READY, _) => return Ok(Progress::Ready),
                (Kind::CONSOLE, Some(console)) => self.console = Some(console),
                (Kind::BORN, Some(pidfd)) => return Ok(Progress::Born(pidfd)),
                (Kind::FAILED, _) => return Ok(Progress::Failed { step: word(4) as usize, errno: word(8) as i32 }),
                (kind, _) => return Err(io::Error::other(format!("a control message of kind {kind}"))),
            }
        }
    }
}

fn receive_packet(socket: RawFd, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!(RawFd);
    loop {
        let mut parts = [IoSliceMut::new(bytes)];
        match socket::recvmsg::<()>(socket, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(nix::errno::Errno::EINTR) => {}
            // A child that was killed with our release unread.
            Err(nix::errno::Errno::ECONNRESET) => return Ok((0, None)),
            Err(e) => return Err(e.into()),
            Ok(message) => {
                let mut fds = Vec::new();
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(raw) = control {
                        // SAFETY: the kernel has just given us these descriptors.
                        fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                return Ok((message.bytes, fds.pop()));
            }
        }
    }
}

/// The conventions of shells and of the reference: not found, or found but not to be executed.
fn command_error(name: &str, errno: i32) -> Error {
    let io = io::Error::from_raw_os_error(errno);
    match errno {
        libc::ENOENT | libc::ENOTDIR => {
            Error::not_found("command", name, "no such file in the container (nor an interpreter that it names)")
        }
        libc::EACCES => {
            Error::failed_precondition("command", name, "permission denied: it is a directory or not executable")
        }
        libc::ENOEXEC => {
            Error::failed_precondition("command", name, "exec format error: is the image for this architecture?")
        }
        // What it finds at the path, or behind the links there, is the image's doing.
        libc::ELOOP
        | libc::ENAMETOOLONG
        | libc::EISDIR
        | libc::ETXTBSY
        | libc::ELIBBAD
        | libc::EINVAL
        | libc::EPERM => Error::failed_precondition("command", name, format!("can't be executed: {io}")),
        libc::E2BIG => Error::invalid("command", name, "its arguments and environment are too long"),
        _ => Error::io("command", name, "executing it", &io),
    }
}

/// While this lives, the caller's children are born into another pid namespace.
pub(super) struct ChildrenIn {
    own: File,
}

impl ChildrenIn {
    pub fn enter(namespace: &OwnedFd) -> io::Result<ChildrenIn> {
        let own = File::open("/proc/thread-self/ns/pid")?;
        process::setns(namespace.as_fd(), libc::CLONE_NEWPID)?;
        Ok(ChildrenIn { own })
    }
}

impl Drop for ChildrenIn {
    fn drop(&mut self) {
        if process::setns(&self.own, libc::CLONE_NEWPID).is_err() {
            // Children born into the wrong container would be worse than none.
            tracing::error!("can't get back to the pid namespace of this process");
            std::process::abort();
        }
    }
}
