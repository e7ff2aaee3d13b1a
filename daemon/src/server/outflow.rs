//! Bytes of a file into a descriptor of the client's, at the pace of whoever reads there.
//!
//! While nobody reads, the call waits and no thread does.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::AsRawFd as _,
    sync::Arc,
    time::{Duration, Instant},
};

use cofferdam_kernel::Pool;
use cofferdam_types::{Error, Result};
use cofferdam_wire::received::{Received, Room};
use nix::{
    errno::Errno,
    fcntl::{SpliceFFlags, splice},
    poll::{PollFd, PollFlags, poll},
    sys::socket::{MsgFlags, send},
};
use tokio::io::Interest;

use super::foreign::{Foreign, Way, unwatched};

/// Read at once, and kept while nobody takes it.
const BLOCK: usize = 64 << 10;
/// What one turn on a thread of the pool moves at most: others wait for one. To go away from the thread and come back takes as long
/// as some hundred kilobytes.
const TURN: usize = 32 << 20;
/// How long a turn may last, and how long it waits for a reader who is just about to read: to go away from the thread and come
/// back takes longer than he does.
const LONG: Duration = Duration::from_millis(20);
const MOMENT: u8 = 1;

fn write(to: &Foreign, bytes: &[u8]) -> io::Result<usize> {
    Ok(match to.socket {
        true => send(to.fd().as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?,
        false => nix::unistd::write(to.fd(), bytes)?,
    })
}

/// What is under way.
struct Flow {
    from: io::Take<File>,
    to: Foreign,
    /// Whether the file's own pages can go into the pipe, uncopied: nobody changes them.
    splices: bool,
    block: Vec<u8>,
    /// How much of the block is written.
    written: usize,
}

/// How a turn ended.
enum Turn {
    Done,
    Again,
    /// Nobody reads at the moment.
    Full,
}

impl Flow {
    fn new(from: File, length: u64, to: Foreign) -> Flow {
        let splices = to.pipe;
        Flow { from: from.take(length), to, splices, block: Vec::new(), written: 0 }
    }

    /// Moves some, of what is left; none where there is no more.
    fn step(&mut self) -> Result<io::Result<usize>> {
        if self.splices {
            let most = self.from.limit().min(TURN as u64) as usize;
            match splice(self.from.get_ref(), None, self.to.fd(), None, most, SpliceFFlags::SPLICE_F_NONBLOCK) {
                Ok(n) => {
                    self.from.set_limit(self.from.limit() - n as u64);
                    return Ok(Ok(n));
                }
                // Not from this file system.
                Err(Errno::EINVAL) => self.splices = false,
                Err(e) => return Ok(Err(e.into())),
            }
        }
        if self.written == self.block.len() {
            self.block.resize(BLOCK, 0);
            let read = self.from.read(&mut self.block).map_err(|e| Error::io("blob", "", "can't be read", &e))?;
            self.block.truncate(read);
            self.written = 0;
            if read == 0 {
                return Ok(Ok(0));
            }
        }
        let written = write(&self.to, &self.block[self.written..]);
        self.written += written.as_ref().copied().unwrap_or_default();
        Ok(written)
    }

    fn turn(&mut self) -> Result<Turn> {
        let (mut moved, began) = (0, Instant::now());
        while moved < TURN {
            match self.step()? {
                Ok(0) => return Ok(Turn::Done),
                Ok(n) => moved += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let mut ready = [PollFd::new(self.to.fd(), PollFlags::POLLOUT)];
                    if began.elapsed() > LONG || !poll(&mut ready, MOMENT).is_ok_and(|ready| ready > 0) {
                        return Ok(Turn::Full);
                    }
                }
                Err(e) => return Err(Way::Out.fault(&e)),
            }
        }
        Ok(Turn::Again)
    }
}

/// Writes `length` bytes of `from` into the client's descriptor.
pub async fn pour(pool: &Pool, from: File, length: u64, to: impl Into<Received>, files: &Arc<Room>) -> Result<()> {
    let (to, aside) = Foreign::take(to.into(), Way::Out, files).await?;
    let poured = flow(pool, Flow::new(from, length, to)).await;
    // Its end of the pipe is closed by now. What happened to the file comes first: that the pipe broke follows from it.
    match aside {
        Some(aside) => aside.done().await.and(poured),
        None => poured,
    }
}

async fn flow(pool: &Pool, mut flow: Flow) -> Result<()> {
    let ready = flow.to.watch(Interest::WRITABLE)?;
    loop {
        // Taken before the turn: a reader that comes in between is not missed.
        let guard = match &ready {
            Some(ready) => Some(ready.writable().await.map_err(|e| unwatched(&e))?),
            None => None,
        };
        let turn = move || {
            let turn = flow.turn()?;
            Ok((flow, turn))
        };
        let (same, turn) = pool.run(turn).await?;
        flow = same;
        match (turn, guard) {
            (Turn::Done, _) => return Ok(()),
            (Turn::Full, Some(mut guard)) => guard.clear_ready(),
            (Turn::Full, None) => {
                return Err(Error::failed_precondition("fd", "", "takes nothing now, and can't be waited for"));
            }
            (Turn::Again, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Seek as _, Write as _},
        os::{fd::OwnedFd, unix::net::UnixStream},
    };

    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;

    fn files() -> Arc<Room> {
        Room::new(1, None)
    }

    fn source(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test)
    }

    #[test]
    fn all_of_it_arrives_however_slowly_it_is_read() {
        let bytes: Vec<u8> = (0..9_000_000u32).map(|n| (n % 251) as u8).collect();
        let pool = Pool::new("test", 1, 8);
        for socket in [false, true] {
            let (mut read, write): (File, OwnedFd) = if socket {
                let (a, b) = UnixStream::pair().unwrap();
                (File::from(OwnedFd::from(a)), b.into())
            } else {
                let (a, b) = nix::unistd::pipe().unwrap();
                (File::from(a), b)
            };
            let flags = fcntl(&write, FcntlArg::F_GETFL).unwrap();
            let kept = write.try_clone().unwrap();
            let reader = std::thread::spawn(move || {
                let (mut all, mut block) = (Vec::<u8>::new(), vec![0; 10_000]);
                while all.len() < 8_999_999 {
                    let n = read.read(&mut block).unwrap();
                    all.extend(&block[..n]);
                }
                all
            });
            run(pour(&pool, source(&bytes), 8_999_999, write, &files())).unwrap();
            assert_eq!(fcntl(&kept, FcntlArg::F_GETFL).unwrap(), flags, "the client's flags are the client's");
            assert!(reader.join().unwrap() == bytes[..8_999_999], "socket: {socket}");
        }
    }

    #[test]
    fn who_never_reads_holds_no_thread() {
        let pool = Pool::new("test", 1, 8);
        run(async {
            let (mut kept, room) = (Vec::new(), files());
            let mut flows = futures::stream::FuturesUnordered::new();
            for _ in 0..3 {
                let (read, write) = nix::unistd::pipe().unwrap();
                kept.push(read);
                flows.push(pour(&pool, source(&vec![1; 1 << 20]), 1 << 20, write, &room));
            }
            let other = async {
                let (read, write) = nix::unistd::pipe().unwrap();
                let mut read = File::from(read);
                pour(&pool, source(b"goes on"), 7, write, &room).await.unwrap();
                let mut text = String::new();
                read.read_to_string(&mut text).unwrap();
                assert_eq!(text, "goes on");
                pool.run(|| Ok(())).await.unwrap();
            };
            tokio::select! {
                biased;
                done = futures::StreamExt::next(&mut flows) => panic!("{done:?} although nobody reads"),
                () = other => {}
            }
            // Who goes away ends it.
            kept.clear();
            while let Some(done) = futures::StreamExt::next(&mut flows).await {
                assert!(done.is_err());
            }
        });
    }

    #[test]
    fn files_keep_their_offset_and_what_is_not_written_to_is_refused() {
        let pool = Pool::new("test", 1, 8);
        let mut file = source(b"before");
        file.seek(io::SeekFrom::End(0)).unwrap();
        run(pour(&pool, source(b" and behind"), 11, OwnedFd::from(file.try_clone().unwrap()), &files())).unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before and behind");
        let null = File::options().write(true).open("/dev/null").unwrap();
        run(pour(&pool, source(&[0; 100_000]), 100_000, OwnedFd::from(null), &files())).unwrap();
        let (read, _write) = nix::unistd::pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        for bad in [read, null.into(), File::open("/").unwrap().into()] {
            let error = run(pour(&pool, source(b"x"), 1, bad, &files())).unwrap_err();
            assert_eq!(error.code, cofferdam_types::Code::InvalidArgument, "{error}");
        }
    }
}
