//! One conversation with `criu swrk`: its RPC over a socket that it inherits (criu's images/rpc.proto).

use std::{
    io::{self, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use cofferdam_sys::program;
use cofferdam_types::{Error, Result};
use nix::sys::socket::{self, AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType};
use prost::Message as _;

/// Larger than any answer.
const MAX_ANSWER: usize = 64 << 10;

/// criu's `criu_req_type`.
pub(super) mod kind {
    pub const DUMP: i32 = 1;
    pub const RESTORE: i32 = 2;
    pub const NOTIFY: i32 = 6;
    pub const VERSION: i32 = 10;
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Request {
    #[prost(int32, required, tag = "1")]
    pub kind: i32,
    #[prost(message, optional, tag = "2")]
    pub options: Option<Options>,
    #[prost(bool, optional, tag = "3")]
    pub notify_success: Option<bool>,
}

/// criu's `criu_opts`, as far as they are used here.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Options {
    #[prost(int32, required, tag = "1")]
    pub images_dir: i32,
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
    #[prost(bool, optional, tag = "3")]
    pub leave_running: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub ext_unix_sk: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub tcp_established: Option<bool>,
    #[prost(bool, optional, tag = "6")]
    pub evasive_devices: Option<bool>,
    #[prost(bool, optional, tag = "8")]
    pub file_locks: Option<bool>,
    #[prost(string, optional, tag = "10")]
    pub log_file: Option<String>,
    #[prost(bool, optional, tag = "12")]
    pub notify_scripts: Option<bool>,
    #[prost(string, optional, tag = "13")]
    pub root: Option<String>,
    #[prost(int32, optional, tag = "17")]
    pub work_dir: Option<i32>,
    #[prost(bool, optional, tag = "26")]
    pub restore_sibling: Option<bool>,
    #[prost(message, repeated, tag = "27")]
    pub inherit: Vec<Inherit>,
    /// 0 is "ignore": which must be said, since it is not the default.
    #[prost(int32, optional, tag = "34")]
    pub cgroups_mode: Option<i32>,
    #[prost(string, repeated, tag = "37")]
    pub external: Vec<String>,
    #[prost(string, optional, tag = "44")]
    pub freeze_cgroup: Option<String>,
    #[prost(bool, optional, tag = "50")]
    pub orphan_pts_master: Option<bool>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Inherit {
    #[prost(string, required, tag = "1")]
    pub key: String,
    #[prost(int32, required, tag = "2")]
    pub fd: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Response {
    #[prost(int32, required, tag = "1")]
    pub kind: i32,
    #[prost(bool, required, tag = "2")]
    pub success: bool,
    #[prost(message, optional, tag = "4")]
    pub restore: Option<Restored>,
    #[prost(message, optional, tag = "5")]
    pub notify: Option<Notify>,
    #[prost(int32, optional, tag = "7")]
    pub errno: Option<i32>,
    #[prost(string, optional, tag = "9")]
    pub message: Option<String>,
    #[prost(message, optional, tag = "10")]
    pub version: Option<Version>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Restored {
    #[prost(int32, required, tag = "1")]
    pub pid: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Notify {
    #[prost(string, optional, tag = "1")]
    pub script: Option<String>,
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Version {
    #[prost(int32, required, tag = "1")]
    pub major: i32,
    #[prost(int32, required, tag = "2")]
    pub minor: i32,
    #[prost(int32, optional, tag = "4")]
    pub sublevel: Option<i32>,
}

/// Where criu runs, besides the place of its caller.
#[derive(Default)]
pub(super) struct Surroundings<'a> {
    /// Descriptors that it inherits under their numbers.
    pub inherited: &'a [RawFd],
    /// Files (`cgroup.procs`, `tasks`) by which it joins cgroups.
    pub join: &'a [OwnedFd],
    /// Whether those become the root of a cgroup namespace of its own.
    pub cgroup_namespace: bool,
}

/// A criu that serves one connection. Dropped, it is killed and reaped.
pub(super) struct Session {
    criu: PathBuf,
    child: Child,
    socket: OwnedFd,
    end: Instant,
    deadline: Duration,
}

impl Session {
    /// Starts it with a cleared environment, its own process group, and nothing but what it is given.
    pub fn start(criu: &Path, deadline: Duration, around: &Surroundings<'_>) -> Result<Session> {
        let fail = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => super::absent(criu),
            _ => Error::io("criu", criu.display(), "starting it", &e),
        };
        let (ours, theirs) = socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|e| fail(e.into()))?;
        let mut command = program::command(criu);
        command.arg("swrk").arg(theirs.as_raw_fd().to_string()).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let kept: Vec<RawFd> = around.inherited.iter().copied().chain([theirs.as_raw_fd()]).collect();
        let join: Vec<RawFd> = around.join.iter().map(AsRawFd::as_raw_fd).collect();
        let namespace = around.cgroup_namespace;
        let check = |result: libc::c_long| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        // SAFETY: the closure makes system calls with what was prepared above, and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())?;
                for fd in &join {
                    check(libc::write(*fd, c"0".as_ptr().cast(), 1) as libc::c_long)?;
                }
                if namespace {
                    check(libc::unshare(libc::CLONE_NEWCGROUP).into())?;
                }
                check(libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC))?;
                for fd in &kept {
                    check(libc::fcntl(*fd, libc::F_SETFD, 0).into())?;
                }
                Ok(())
            });
        }
        let child = command.spawn().map_err(fail)?;
        Ok(Session { criu: criu.to_owned(), child, socket: ours, end: Instant::now() + deadline, deadline })
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends a request, hands every notification (with the descriptor that comes along) to `notified`, and gives the
    /// answer, be it good or bad.
    pub fn ask(
        &mut self,
        request: &Request,
        mut notified: impl FnMut(&Notify, Option<OwnedFd>) -> Result<()>,
    ) -> Result<Response> {
        self.send(request)?;
        loop {
            let (response, fd) = self.receive()?;
            if response.kind != kind::NOTIFY {
                return Ok(response);
            }
            notified(&response.notify.unwrap_or_default(), fd)?;
            self.send(&Request { kind: kind::NOTIFY, options: None, notify_success: Some(true) })?;
        }
    }

    /// Lets it end by itself.
    pub fn finish(mut self) -> Result<()> {
        let _ = socket::shutdown(self.socket.as_raw_fd(), socket::Shutdown::Write);
        let pidfd = cofferdam_sys::process::pidfd_open(self.pid()).map_err(|e| self.fault("waiting for it", &e))?;
        let left = self.end.saturating_duration_since(Instant::now());
        if !cofferdam_sys::process::ended_within(&pidfd, left).map_err(|e| self.fault("waiting for it", &e))? {
            return Err(self.late());
        }
        self.child.wait().map(drop).map_err(|e| self.fault("waiting for it", &e))
    }

    fn fault(&self, what: &str, e: &io::Error) -> Error {
        Error::io("criu", self.criu.display(), what, e)
    }

    fn late(&self) -> Error {
        let why = format!("did not answer within {} s and was killed", self.deadline.as_secs());
        Error::deadline_exceeded("criu", self.criu.display(), why)
    }

    fn gone(&self) -> Error {
        let why = "doesn't speak criu's RPC: is it criu, and of a version that this machine can run?";
        Error::failed_precondition("criu", self.criu.display(), why)
    }

    fn send(&self, request: &Request) -> Result<()> {
        let bytes = request.encode_to_vec();
        match socket::send(self.socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => Ok(()),
            Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => Err(self.gone()),
            Err(e) => Err(self.fault("asking it", &e.into())),
        }
    }

    fn receive(&self) -> Result<(Response, Option<OwnedFd>)> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        loop {
            let left = self.end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.late());
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) | Err(nix::Error::EINTR) => continue,
                Ok(_) => {}
                Err(e) => return Err(self.fault("waiting for its answer", &e.into())),
            }
            let mut bytes = vec![0; MAX_ANSWER];
            let mut space = nix::cmsg_space!(RawFd);
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message = socket::recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), flags);
            let message = match message {
                Err(nix::Error::EINTR) => continue,
                Err(nix::Error::ECONNRESET) => return Err(self.gone()),
                other => other.map_err(|e| self.fault("reading its answer", &e.into()))?,
            };
            let mut fds = Vec::new();
            for control in message.cmsgs().map_err(|e| self.fault("reading its answer", &e.into()))? {
                if let ControlMessageOwned::ScmRights(raw) = control {
                    // SAFETY: the kernel has just given us these descriptors.
                    fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            let length = message.bytes;
            if length == 0 {
                return Err(self.gone());
            }
            let response = Response::decode(&bytes[..length]).map_err(|_| self.gone())?;
            return Ok((response, fds.pop()));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Reaped already, both do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
