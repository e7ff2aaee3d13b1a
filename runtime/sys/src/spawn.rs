//! Starting programs without the descriptors that others have given us.
//!
//! A child begins with a copy of its parent's descriptors, and to close one is a call to the file system on which it lies
//! (`flush`). A client's FUSE need not answer that: the child would hang before it is the program that it should become, and
//! with it whoever waits for it. So in a process that takes descriptors from others a thread starts all programs that left the
//! common table (unshare(2), CLONE_FILES) before there was one of these, and gets what a program needs one by one.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    process::{Child, Command},
    sync::{
        OnceLock,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

use crate::{check, process::pidfd_open};

/// Starts a program, with a pidfd of this process in the thread's own table.
type Job = Box<dyn FnOnce(&OwnedFd) + Send>;

/// How many may wait to be started; who comes then waits for a place.
const QUEUE: usize = 64;

static SPAWNER: OnceLock<SyncSender<Job>> = OnceLock::new();

/// Makes the thread. What is open now every program's start has to do with, so it comes first of all. Only the first call does
/// anything.
pub fn begin() -> io::Result<()> {
    let (jobs, queue) = sync_channel::<Job>(QUEUE);
    let (tell, told) = sync_channel(1);
    thread::Builder::new().name("spawner".into()).spawn(move || {
        // SAFETY: no memory is involved, and no descriptor is held by number here.
        let apart = check(unsafe { libc::unshare(libc::CLONE_FILES) }.into());
        let own = apart.and_then(|_| pidfd_open(std::process::id() as i32));
        match own {
            Ok(own) => {
                let _ = tell.send(Ok(()));
                queue.iter().for_each(|job| job(&own));
            }
            Err(error) => drop(tell.send(Err(error))),
        }
    })?;
    told.recv().map_err(|_| ended())??;
    let _ = SPAWNER.set(jobs);
    Ok(())
}

/// Starts the program that `make` gives. That gets copies of `fds`, which are closed when it has started, and may find other
/// numbers for them than the caller has; nothing that it captures may hold a descriptor.
pub fn spawn<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    make: impl FnOnce(&[OwnedFd; N]) -> io::Result<Command> + Send + 'static,
) -> io::Result<Child> {
    let Some(spawner) = SPAWNER.get() else {
        return start(fds.map(|fd| fd.try_clone_to_owned()), make);
    };
    let numbers = fds.map(|fd| fd.as_raw_fd());
    let (tell, told) = sync_channel(1);
    let job: Job = Box::new(move |own| drop(tell.send(start(numbers.map(|fd| fetch(own, fd)), make))));
    spawner.send(job).map_err(|_| ended())?;
    // Until then what it fetches is held by who called.
    told.recv().map_err(|_| ended())?
}

fn start<const N: usize>(
    fds: [io::Result<OwnedFd>; N],
    make: impl FnOnce(&[OwnedFd; N]) -> io::Result<Command>,
) -> io::Result<Child> {
    let fds: Vec<OwnedFd> = fds.into_iter().collect::<io::Result<_>>()?;
    let fds: [OwnedFd; N] = fds.try_into().map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    make(&fds)?.spawn()
}

/// A copy of a descriptor of the common table.
fn fetch(own: &OwnedFd, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved; a good result is a fresh descriptor of this thread's table, which is closed by the kernel
    // when a program begins.
    unsafe {
        let fetched = check(libc::syscall(libc::SYS_pidfd_getfd, own.as_fd().as_raw_fd(), fd, 0))?;
        Ok(OwnedFd::from_raw_fd(fetched as RawFd))
    }
}

fn ended() -> io::Error {
    io::Error::other("the thread that starts programs has ended")
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Write as _},
        os::fd::AsFd as _,
        process::Stdio,
    };

    use super::*;

    /// One test, since the thread is the process's: without it, and with it.
    #[test]
    fn a_program_has_what_it_is_given_and_nothing_else() {
        let listing = |kept: &File| {
            let (mut read, write) = io::pipe().unwrap();
            let mut child = spawn([write.as_fd()], |[output]| {
                let mut command = Command::new("ls");
                command.args(["-l", "/proc/self/fd"]).stdin(Stdio::null()).stdout(output.try_clone()?);
                Ok(command)
            })
            .unwrap();
            drop(write);
            let mut text = String::new();
            read.read_to_string(&mut text).unwrap();
            assert!(child.wait().unwrap().success());
            let _ = kept.as_fd();
            text
        };
        // Not marked to be closed: without the thread it is inherited.
        let kept = tempfile::tempfile().unwrap();
        // SAFETY: no memory is involved.
        unsafe { libc::fcntl(kept.as_raw_fd(), libc::F_SETFD, 0) };
        assert!(listing(&kept).contains("(deleted)"));
        drop(kept);
        begin().unwrap();
        let kept = tempfile::tempfile().unwrap();
        // SAFETY: no memory is involved.
        unsafe { libc::fcntl(kept.as_raw_fd(), libc::F_SETFD, 0) };
        assert!(!listing(&kept).contains("(deleted)"));
        // An error is the caller's, and the thread goes on.
        assert_eq!(spawn([], |[]| Ok(Command::new("/nowhere"))).unwrap_err().kind(), io::ErrorKind::NotFound);
        let (read, mut write) = io::pipe().unwrap();
        let mut child = spawn([read.as_fd()], |[input]| {
            let mut command = Command::new("cat");
            command.stdin(input.try_clone()?).stdout(Stdio::null());
            Ok(command)
        })
        .unwrap();
        write.write_all(b"hello").unwrap();
        drop((read, write));
        assert!(child.wait().unwrap().success());
    }
}
