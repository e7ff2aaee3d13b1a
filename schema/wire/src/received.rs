//! A descriptor that a peer sent, until it is closed.
//!
//! Whoever sends one has a place for it in this process's table, as scarce as anything: so several connections may have a
//! [`Room`] together. And to close a file asks its file system, which may be a program of the sender's (FUSE) that never answers:
//! what has a place is closed where its room says, unless the kernel alone answers for it.

use std::{
    fmt,
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use nix::sys::stat::SFlag;
use rustix::{
    fs::{AtFlags, StatxFlags, statx},
    io::{Errno, ReadWriteFlags, preadv2},
};

/// Closes what may take its time.
pub type Closer = Box<dyn Fn(OwnedFd, Place) + Send + Sync>;

/// How much of something there may be at once, and how much there is.
pub struct Room {
    most: usize,
    taken: AtomicUsize,
    above: Option<Arc<Room>>,
    closer: Option<Closer>,
}

impl Room {
    /// For so much, which takes room in the one above too.
    pub fn new(most: usize, above: Option<Arc<Room>>) -> Arc<Room> {
        Arc::new(Room { most, taken: AtomicUsize::new(0), above, closer: None })
    }

    /// For so many descriptors, which are closed by `closer`.
    pub fn closing(most: usize, above: Option<Arc<Room>>, closer: Closer) -> Arc<Room> {
        Arc::new(Room { most, taken: AtomicUsize::new(0), above, closer: Some(closer) })
    }

    /// A place, if there is one.
    pub fn place(self: &Arc<Self>) -> Option<Place> {
        let place = self.take();
        place.is_within().then_some(place)
    }

    /// A place, whether or not there is one: for what is there already.
    pub fn take(self: &Arc<Self>) -> Place {
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        let above = self.above.as_ref().map(|above| Box::new(above.take()));
        Place { room: self.clone(), within: before < self.most, above }
    }

    /// How many places there are yet.
    pub fn free(&self) -> usize {
        let free = self.most.saturating_sub(self.taken());
        self.above.as_ref().map_or(free, |above| above.free().min(free))
    }

    /// How many places are taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.taken(), self.most)
    }
}

/// One place, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    room: Arc<Room>,
    within: bool,
    above: Option<Box<Place>>,
}

impl Place {
    fn is_within(&self) -> bool {
        self.within && self.above.as_ref().is_none_or(|above| above.is_within())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Received {
    /// Until it is dropped.
    fd: Option<OwnedFd>,
    place: Option<Place>,
}

impl Received {
    /// With its place.
    pub(crate) fn new(fd: OwnedFd, place: Option<Place>) -> Received {
        Received { fd: Some(fd), place }
    }

    /// What it is. The kernel alone is asked, from what it knows: a file system may never answer.
    pub fn kind(&self) -> io::Result<SFlag> {
        kind(self.as_fd())
    }

    /// Whether the kernel reads a file of this without asking anybody who could make it wait: it says so of its own file systems.
    pub fn readable_at_once(&self) -> bool {
        let read = preadv2(self, &mut [IoSliceMut::new(&mut [0])], 0, ReadWriteFlags::NOWAIT);
        matches!(read, Ok(_) | Err(Errno::AGAIN))
    }

    /// Whether it is a pipe or socket that lies nowhere.
    pub fn is_nameless(&self) -> bool {
        // A name that is one begins with a slash.
        let name = std::fs::read_link(format!("/proc/self/fd/{}", self.as_fd().as_raw_fd()));
        name.is_ok_and(|name| !name.as_os_str().as_encoded_bytes().starts_with(b"/"))
    }

    /// The descriptor alone. Who takes it may be kept waiting when it is closed.
    #[expect(clippy::expect_used, reason = "there is no other way out of what has a destructor")]
    pub fn into_fd(mut self) -> OwnedFd {
        // PANIC: it is taken here and in `drop`, and by nobody else.
        self.fd.take().expect("it is there")
    }
}

fn kind(fd: BorrowedFd<'_>) -> io::Result<SFlag> {
    let known = statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE)?;
    Ok(SFlag::from_bits_truncate(known.stx_mode.into()) & SFlag::S_IFMT)
}

impl From<OwnedFd> for Received {
    /// One of our own.
    fn from(fd: OwnedFd) -> Received {
        Received::new(fd, None)
    }
}

impl AsFd for Received {
    #[expect(clippy::expect_used, reason = "a descriptor can't be made up")]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // PANIC: it is taken by who drops this, and by nobody else.
        self.fd.as_ref().expect("it is there").as_fd()
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let (Some(fd), Some(place)) = (self.fd.take(), self.place.take()) else { return };
        // These are the kernel's own, wherever their names lie.
        let quick = matches!(kind(fd.as_fd()), Ok(SFlag::S_IFIFO | SFlag::S_IFSOCK | SFlag::S_IFCHR));
        let room = place.room.clone();
        if let (false, Some(close)) = (quick, &room.closer) {
            close(fd, place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, sync::Mutex};

    use super::*;

    #[test]
    fn places_are_counted_in_each_room_and_given_back() {
        let all = Room::new(3, None);
        let (one, two) = (Room::new(2, Some(all.clone())), Room::new(2, Some(all.clone())));
        let held = [one.place().unwrap(), one.place().unwrap()];
        assert!(one.place().is_none(), "its own bound");
        let other = two.place().unwrap();
        assert!(two.place().is_none(), "that of all");
        assert_eq!([all.taken(), one.taken(), two.taken()], [3, 2, 1], "what was refused counts for nothing");
        assert_eq!([all.free(), one.free(), two.free()], [0, 0, 0]);
        drop(held);
        assert_eq!([all.free(), one.free(), two.free()], [2, 2, 1]);
        drop(other);
        assert_eq!([all.taken(), one.taken(), two.taken()], [0; 3]);
    }

    #[test]
    fn files_are_closed_where_the_room_says_and_hold_their_place_until_then() {
        let closed = Arc::new(Mutex::new(Vec::new()));
        let theirs = closed.clone();
        let room = Room::closing(9, None, Box::new(move |fd, place| theirs.lock().unwrap().push((fd, place))));
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let (read, write) = nix::unistd::pipe().unwrap();
        for quick in [null(), read, write] {
            drop(Received::new(quick, room.place()));
        }
        assert_eq!((room.taken(), closed.lock().unwrap().len()), (0, 0));
        drop(Received::new(File::open("/").unwrap().into(), room.place()));
        drop(Received::new(tempfile::tempfile().unwrap().into(), room.place()));
        assert_eq!((room.taken(), closed.lock().unwrap().len()), (2, 2));
        closed.lock().unwrap().clear();
        assert_eq!(room.taken(), 0);
        drop(Received::from(null()));
        drop(Received::new(null(), room.place()).into_fd());
        assert_eq!(room.taken(), 0);
    }
}
