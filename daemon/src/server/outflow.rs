//! Bytes of a file into a descriptor of the client's, at the pace of whoever reads there.
//!
//! While nobody reads, the call waits and no thread does.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use cofferdam_kernel::Pool;
use cofferdam_types::{Error, Result};
use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::socket::{MsgFlags, send},
};
use tokio::io::Interest;

use super::foreign::{Foreign, Way, unwatched};

/// Read at once, and kept while nobody takes it.
const BLOCK: usize = 64 << 10;
/// What one turn on a thread of the pool moves at most: others wait for one.
const TURN: usize = 4 << 20;
/// How long a turn may last, and how long it waits for a reader who is just about to read: to go away from the thread and come
/// back takes longer than he does.
const LONG: Duration = Duration::from_millis(20);
const MOMENT: u8 = 1;

fn write(to: &Foreign, bytes: &[u8]) -> io::Result<usize> {
    Ok(match to.socket {
        true => send(to.fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?,
        false => nix::unistd::write(&to.fd, bytes)?,
    })
}

/// What is under way.
struct Flow {
    from: io::Take<File>,
    to: Foreign,
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
    fn turn(&mut self) -> Result<Turn> {
        let (mut moved, began) = (0, Instant::now());
        while moved < TURN {
            if self.written == self.block.len() {
                self.block.resize(BLOCK, 0);
                let read = self.from.read(&mut self.block).map_err(|e| Error::io("blob", "", "can't be read", &e))?;
                self.block.truncate(read);
                self.written = 0;
                if read == 0 {
                    return Ok(Turn::Done);
                }
            }
            match write(&self.to, &self.block[self.written..]) {
                Ok(n) => {
                    self.written += n;
                    moved += n;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let mut ready = [PollFd::new(self.to.fd.as_fd(), PollFlags::POLLOUT)];
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
pub async fn pour(pool: &Pool, from: File, length: u64, to: OwnedFd) -> Result<()> {
    let to = Foreign::take(to, Way::Out)?;
    let ready = to.watch(Interest::WRITABLE)?;
    let mut flow = Flow { from: from.take(length), to, block: Vec::new(), written: 0 };
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
        os::unix::net::UnixStream,
    };

    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;

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
            run(pour(&pool, source(&bytes), 8_999_999, write)).unwrap();
            assert_eq!(fcntl(&kept, FcntlArg::F_GETFL).unwrap(), flags, "the client's flags are the client's");
            assert!(reader.join().unwrap() == bytes[..8_999_999], "socket: {socket}");
        }
    }

    #[test]
    fn who_never_reads_holds_no_thread() {
        let pool = Pool::new("test", 1, 8);
        run(async {
            let mut kept = Vec::new();
            let mut flows = futures::stream::FuturesUnordered::new();
            for _ in 0..3 {
                let (read, write) = nix::unistd::pipe().unwrap();
                kept.push(read);
                flows.push(pour(&pool, source(&vec![1; 1 << 20]), 1 << 20, write));
            }
            let other = async {
                let (read, write) = nix::unistd::pipe().unwrap();
                let mut read = File::from(read);
                pour(&pool, source(b"goes on"), 7, write).await.unwrap();
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
        run(pour(&pool, source(b" and behind"), 11, file.try_clone().unwrap().into())).unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before and behind");
        let null = File::options().write(true).open("/dev/null").unwrap();
        run(pour(&pool, source(&[0; 100_000]), 100_000, null.into())).unwrap();
        let (read, _write) = nix::unistd::pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        for bad in [read, null.into(), File::open("/").unwrap().into()] {
            let error = run(pour(&pool, source(b"x"), 1, bad)).unwrap_err();
            assert_eq!(error.code, cofferdam_types::Code::InvalidArgument, "{error}");
        }
    }
}
