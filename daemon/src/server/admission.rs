//! Who may connect: a bound on all connections, and a share of it for each user; and what these may keep here.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use cofferdam_kernel::Pool;
use cofferdam_types::{Error, GrantId, Result};
use cofferdam_wire::received::{Closer, Room};
use futures::FutureExt as _;

use super::{
    foreign::{FILES, FILES_OF_ALL},
    share::Share,
};

/// What the connections of one user, or of one grant, keep together, beside the little that each has for itself.
const KEPT: usize = 64 << 20;
/// And those of all but the operator.
const KEPT_BY_ALL: usize = 256 << 20;
/// So many descriptors of theirs may wait for each connection that there may be: half of these are the operator's, and one user or
/// grant has half of what is left.
const DESCRIPTORS: usize = 4;
/// Threads that close what one of them sent.
const CLOSERS: usize = 2;

/// By whom a connection is had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Whose {
    /// A user, on the main socket.
    User(u32),
    /// Who can connect to a socket that is a grant. Whichever user that is: root in a container is no operator.
    Grant(GrantId),
}

/// Counts connections. What other users have together leaves a quarter free: they can't shut out the operator.
pub struct Admission {
    most: u32,
    /// The daemon's own user, who is the operator.
    own: u32,
    /// All that are open.
    open: Arc<AtomicU32>,
    /// Those of others. None has an entry without a connection, so that there are no more than connections.
    others: Mutex<HashMap<Whose, Theirs>>,
    /// The operator's, and what those of others are parts of.
    lot: Lot,
    all: Lot,
}

/// What connections may have together.
#[derive(Clone)]
pub struct Lot {
    /// Of what they may keep; none: the operator's.
    pub share: Option<Arc<Share>>,
    /// Descriptors that they sent and that are not closed yet.
    pub fds: Arc<Room>,
    /// Threads that read and write files of theirs.
    pub files: Arc<Room>,
}

/// Closes what they sent on threads of its own, one for each that takes its time. There is room in its queue for all that there may be.
fn closer(most: usize) -> Closer {
    let pool = Pool::new("closing", CLOSERS, most + 1024);
    Box::new(move |fd, place| {
        let close = move || {
            drop((fd, place));
            Ok(())
        };
        // It is taken at once, and nobody waits for it.
        let _ = pool.run(close).now_or_never();
    })
}

/// What one of the others has.
struct Theirs {
    connections: u32,
    lot: Lot,
}

/// A connection that was let in, for as long as it is open.
pub struct Admitted {
    admission: Arc<Admission>,
    whose: Whose,
    /// What it has together with others of its holder.
    pub lot: Lot,
}

impl Admission {
    /// At most `most` connections; `open` tells how many there are.
    pub fn new(most: u32, own: u32, open: Arc<AtomicU32>) -> Arc<Admission> {
        let fds = DESCRIPTORS * most as usize;
        let every = Room::new(fds, None);
        let lot = Lot {
            share: None,
            fds: Room::closing(fds, Some(every.clone()), closer(fds)),
            files: Room::new(FILES_OF_ALL, None),
        };
        let all = Lot {
            share: Some(Share::new(KEPT_BY_ALL, None)),
            fds: Room::new(fds / 2, Some(every)),
            files: Room::new(FILES_OF_ALL, None),
        };
        Arc::new(Admission { most, own, open, others: Mutex::default(), lot, all })
    }

    /// Of one of the others.
    fn part(&self) -> Lot {
        let fds = (DESCRIPTORS * self.most as usize).div_ceil(4);
        Lot {
            share: Some(Share::new(KEPT, self.all.share.clone())),
            fds: Room::closing(fds, Some(self.all.fds.clone()), closer(fds)),
            files: Room::new(FILES, Some(self.all.files.clone())),
        }
    }

    /// Lets a connection in, if there is room for it.
    pub fn admit(self: &Arc<Self>, whose: Whose) -> Result<Admitted> {
        let most = self.most;
        let refuse = |why: String| Err(Error::resource_exhausted("connection", "", why));
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if self.open.load(Ordering::Relaxed) >= most {
            return refuse(format!("is refused: {most} are open, which is all that the daemon takes (--connections)"));
        }
        let mut lot = self.lot.clone();
        if whose != Whose::User(self.own) {
            let share = most.div_ceil(8);
            let mine = others.get(&whose).map_or(0, |theirs| theirs.connections);
            if mine >= share {
                return refuse(match whose {
                    Whose::User(uid) => {
                        format!("is refused: user {uid} has {mine}, which is all that one user may have")
                    }
                    Whose::Grant(_) => format!("is refused: {mine} hold this grant, which is all that may"),
                });
            }
            if others.values().map(|theirs| theirs.connections).sum::<u32>() >= most - most / 4 {
                return refuse("is refused: the others of the daemon's connections are kept for its operator".into());
            }
            let theirs = others.entry(whose).or_insert_with(|| Theirs { connections: 0, lot: self.part() });
            theirs.connections += 1;
            lot = theirs.lot.clone();
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(Admitted { admission: self.clone(), whose, lot })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut others = self.admission.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(theirs) = others.get_mut(&self.whose) {
            theirs.connections -= 1;
            if theirs.connections == 0 {
                others.remove(&self.whose);
            }
        }
        self.admission.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_cant_shut_out_the_operator() {
        let open = Arc::new(AtomicU32::new(0));
        let admission = Admission::new(16, 0, open.clone());
        let mut held: Vec<Admitted> = (0..2).map(|_| admission.admit(Whose::User(1000)).ok().unwrap()).collect();
        let error = admission.admit(Whose::User(1000)).err().unwrap();
        assert_eq!(error.code, cofferdam_types::Code::ResourceExhausted);
        assert!(error.message.contains("user 1000 has 2"), "{error}");
        held.extend(
            (1001..1006)
                .flat_map(|uid| (0..2).map(move |_| uid))
                .map(|uid| admission.admit(Whose::User(uid)).ok().unwrap()),
        );
        assert_eq!(open.load(Ordering::Relaxed), 12);
        assert!(admission.admit(Whose::User(1006)).err().unwrap().message.contains("kept for its operator"));
        held.extend((0..4).map(|_| admission.admit(Whose::User(0)).ok().unwrap()));
        assert!(admission.admit(Whose::User(0)).err().unwrap().message.contains("16 are open"));
        held.pop();
        held.push(admission.admit(Whose::User(0)).ok().unwrap());
        held.clear();
        // A socket that is a grant is nobody's own, whoever connects.
        let shared: Vec<_> = (0..2).map(|_| admission.admit(Whose::Grant(GrantId(7))).ok().unwrap()).collect();
        assert!(admission.admit(Whose::Grant(GrantId(7))).err().unwrap().message.contains("hold this grant"));
        drop(shared);
        assert_eq!(open.load(Ordering::Relaxed), 0);
        assert!(admission.others.lock().unwrap().is_empty(), "nothing is kept of who has gone");
        assert!(admission.admit(Whose::User(1000)).is_ok());
    }
}
