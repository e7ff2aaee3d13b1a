//! Checkpoints. The work is done by another process of the same program, since it may take long: the shim goes on with
//! what its containers write, and stays what it is, one thread.

use std::{
    cell::Cell,
    fs::File,
    io::{Read as _, Seek as _, Write as _},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    rc::Rc,
    sync::Arc,
};

use cofferdam_oci::{CheckpointRequest, Runtime, RuntimeOptions, native::Native, runc::RuncDriver};
use cofferdam_sys::process;
use cofferdam_types::{Error, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::{Shared, container::Container, output::nonblocking, process::End};

/// The argument that makes this program such a process.
pub const ARGUMENT: &str = "checkpoint";
/// An error fits.
const ANSWER: u64 = 64 << 10;

/// Which driver, for a process that has yet to make it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Driver {
    /// `native` (also if empty), or the path of a runc-compatible binary.
    pub runtime: String,
    /// Where the binary keeps its state.
    pub root: PathBuf,
    /// What the container was given beside its spec.
    pub options: RuntimeOptions,
    /// What processes start with.
    pub oom_score: Option<i32>,
}

impl Driver {
    /// Whether it is ours.
    pub fn native(&self) -> bool {
        matches!(&*self.runtime, "" | "native")
    }

    /// The driver itself, of what was made ahead if it is ours.
    pub fn make(&self, ahead: Option<Native>) -> Result<Arc<dyn Runtime>> {
        Ok(if self.native() {
            Arc::new(ahead.map_or_else(Native::new, Ok)?.with_options(&self.options)?.with_oom_score(self.oom_score))
        } else {
            let driver = RuncDriver::new(&self.runtime, &self.root)?;
            Arc::new(driver.with_options(self.options.clone()).with_oom_score(self.oom_score))
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Errand {
    driver: Driver,
    request: CheckpointRequest,
}

/// The whole life of the other process: what to do comes on standard input, an error goes to standard output.
pub fn run() -> ExitCode {
    let done = (|| {
        let errand: Errand = serde_json::from_reader(std::io::stdin().lock())
            .map_err(|e| Error::internal("checkpoint", "", format!("its request can't be read: {e}")))?;
        errand.driver.make(None)?.checkpoint(&errand.request)
    })();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever was to read it may be gone.
            let _ = write!(std::io::stdout(), "{}", error.to_reason());
            ExitCode::FAILURE
        }
    }
}

/// A process that works on a container.
pub struct Helper {
    /// What it is reaped by.
    pub pidfd: OwnedFd,
    /// Who waits for it.
    pub tell: oneshot::Sender<End>,
}

/// A container that stands still, and goes on when this falls.
pub struct Hold(Rc<Container>);

impl Drop for Hold {
    fn drop(&mut self) {
        let container = self.0.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = container.release().await {
                crate::complain(format_args!("after a checkpoint: {error}"));
            }
        });
    }
}

impl cofferdam_wire::shim_capnp::shim_hold::Server for Hold {}

/// Freezes a container and writes what runs in it into the directory of the request. Whoever asked may go away: it is
/// finished all the same, since criu must not be stopped half-way, and then the container goes on.
pub async fn checkpoint(shared: &Rc<Shared>, container: Rc<Container>, request: CheckpointRequest) -> Result<Hold> {
    container.hold().await?;
    let hold = Hold(container.clone());
    let errand = Errand { driver: container.driver.clone(), request };
    let (child, pidfd, output) = spawn(&errand)?;
    let (tell, ended) = oneshot::channel();
    shared.helpers.borrow_mut().insert(child, Helper { pidfd, tell });
    let (answer, answered) = oneshot::channel();
    tokio::task::spawn_local(async move {
        let status = ended.await;
        let done = match status {
            Ok(End::Code(0)) => Ok(hold),
            _ => Err(failure(output)),
        };
        // Nobody waits any more: the hold falls.
        let _ = answer.send(done);
    });
    answered.await.unwrap_or_else(|_| Err(Error::internal("checkpoint", "", "ended without an answer")))
}

fn failure(output: File) -> Error {
    let mut text = Vec::new();
    // It doesn't block: it holds what was written, and who wrote it is gone.
    let _ = output.take(ANSWER).read_to_end(&mut text);
    match String::from_utf8_lossy(&text) {
        text if text.is_empty() => Error::unavailable("checkpoint", "", "was ended before it was done"),
        text => Error::from_reason(&text),
    }
}

/// Starts the other process; its end comes to the reaper.
fn spawn(errand: &Errand) -> Result<(i32, OwnedFd, File)> {
    let fail = |what: &'static str| move |e: std::io::Error| Error::io("checkpoint", "", what, &e);
    let memory = nix::sys::memfd::memfd_create(c"errand", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    let mut input = File::from(memory.map_err(|e| fail("passing its request")(e.into()))?);
    let text = serde_json::to_vec(errand).map_err(|e| Error::internal("checkpoint", "", e.to_string()))?;
    input.write_all(&text).and_then(|()| input.rewind()).map_err(fail("passing its request"))?;
    let (read, write) = std::io::pipe().map_err(fail("making a pipe"))?;
    let read = OwnedFd::from(read);
    nonblocking(&read).map_err(fail("making a pipe"))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(ARGUMENT).env_clear().stdin(input).stdout(write).stderr(Stdio::null()).process_group(0);
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            // Without its shim the container is killed: there is nothing to be finished.
            nix::errno::Errno::result(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            nix::errno::Errno::result(libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC))?;
            Ok(())
        });
    }
    let mut child = command.spawn().map_err(fail("starting it"))?;
    let pid = child.id() as i32;
    // It is not reaped yet, so this is it.
    let pidfd = process::pidfd_open(pid).inspect_err(|_| {
        let _ = child.kill();
        let _ = child.wait();
    });
    Ok((pid, pidfd.map_err(fail("watching it"))?, File::from(read)))
}

/// Whether a container is being checkpointed, and by how many it is held: one.
#[derive(Default)]
pub struct Held(Cell<bool>);

impl Held {
    /// Takes it.
    pub fn take(&self, id: &str) -> Result<()> {
        self.free(id)?;
        self.0.set(true);
        Ok(())
    }

    /// Whether somebody has it.
    pub fn is_taken(&self) -> bool {
        self.0.get()
    }

    /// Fails while somebody has it.
    pub fn free(&self, id: &str) -> Result<()> {
        if self.0.get() {
            return Err(Error::failed_precondition("container", id, "is being checkpointed: wait until that is done"));
        }
        Ok(())
    }

    /// Gives it back.
    pub fn give_back(&self) {
        self.0.set(false);
    }
}
