//! Network namespaces: making one that stays, and taking it away.

use std::{fs::File, io, os::unix::fs::OpenOptionsExt as _, path::Path};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use crate::check;

/// Brings the loopback interface of this thread's network namespace up. Allocates nothing.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: ifreq is plain, zero is a value, and it lives for the call; the name fits with its NUL.
    unsafe {
        let socket = check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0).into())? as i32;
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        let up = check(libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &request).into());
        libc::close(socket);
        up.map(drop)
    }
}

/// Makes a network namespace with a loopback interface that is up. It goes with its last descriptor, and the last process
/// in it.
pub fn fresh() -> io::Result<File> {
    // A thread of its own, since the namespace is a thread's; it ends with it.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            loopback_up()?;
            File::open("/proc/thread-self/ns/net")
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))
    })
}

/// The same as [`fresh`], for a process that has one thread and is to keep it so.
pub fn fresh_beside() -> io::Result<File> {
    const OWN: &str = "/proc/thread-self/ns/net";
    let own = File::open(OWN)?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let made = loopback_up().and_then(|()| File::open(OWN));
    if crate::process::setns(&own, libc::CLONE_NEWNET).is_err() {
        // Whatever it did from here on it would do in the wrong network.
        std::process::abort();
    }
    made
}

/// Makes a network namespace with a loopback interface that is up, and pins it at `path`, which must not be there: it
/// lasts until [`unpin`], whoever dies.
pub fn pin(path: &Path) -> io::Result<()> {
    File::options().write(true).create_new(true).mode(0o600).open(path)?;
    // A thread of its own, since the namespace is a thread's; it ends with it.
    let made = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            loopback_up()?;
            let own = "/proc/thread-self/ns/net";
            mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(io::Error::from)
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))
    });
    made.inspect_err(|_| drop(std::fs::remove_file(path)))
}

/// Whether a namespace is pinned at `path`. What was killed between the two steps of [`pin`] left a plain file there.
pub fn is_pinned(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

/// Takes what [`pin`] made away; what isn't there is fine. The namespace goes with the last process in it.
pub fn unpin(path: &Path) -> io::Result<()> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Once for each time that something was mounted there.
            Ok(()) => {}
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => break,
            Err(e) => return Err(e.into()),
        }
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_pinned_namespace_is_another_with_a_loopback_that_is_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it");
        let own = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        pin(&path).unwrap();
        assert_eq!(pin(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(is_pinned(&path) && !is_pinned(dir.path()));
        assert_ne!(std::fs::metadata(&path).unwrap().ino(), own);
        assert_eq!(std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino(), own, "this thread stays where it was");
        let pinned = File::open(&path).unwrap();
        let reaches = std::thread::spawn(move || {
            crate::process::setns(&pinned, libc::CLONE_NEWNET).unwrap();
            std::net::UdpSocket::bind("127.0.0.1:0").and_then(|s| s.connect("127.0.0.1:9")).is_ok()
        });
        assert!(reaches.join().unwrap());
        unpin(&path).unwrap();
        assert!(!path.exists() && !is_pinned(&path));
        unpin(&path).unwrap();
        // What is left of one that was killed half-way.
        std::fs::write(&path, "").unwrap();
        assert!(!is_pinned(&path));
        unpin(&path).unwrap();
        assert!(!path.exists());
    }
}
