//! Bytes from a descriptor of the client's, at the pace of whoever writes there.
//!
//! While nobody writes the call waits and no thread does.

use std::{io, os::fd::AsRawFd as _, sync::Arc};

use cofferdam_types::{Error, Result};
use cofferdam_wire::received::{Received, Room};
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;

use super::foreign::{Foreign, Way, unwatched};

/// Read at once.
const BLOCK: usize = 256 << 10;
/// What one turn moves at most: others wait for the thread, and for the ingest.
const TURN: usize = 4 << 20;

/// How a turn ended.
pub enum Turn {
    /// There is no more.
    Done,
    /// There is more.
    Again,
    /// Nobody writes at the moment.
    Empty,
}

/// Where the bytes come from.
#[derive(Clone)]
pub struct Inlet(Arc<Foreign>);

impl Inlet {
    fn read(&self, block: &mut [u8]) -> io::Result<usize> {
        Ok(match self.0.socket {
            true => recv(self.0.fd().as_raw_fd(), block, MsgFlags::MSG_DONTWAIT)?,
            false => nix::unistd::read(self.0.fd(), block)?,
        })
    }

    /// Moves what is there, up to a bound.
    pub fn turn(&self, into: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Turn> {
        let mut block = vec![0; BLOCK];
        let mut moved = 0;
        while moved < TURN {
            match self.read(&mut block) {
                Ok(0) => return Ok(Turn::Done),
                Ok(n) => {
                    into(&block[..n])?;
                    moved += n;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Empty),
                Err(e) => return Err(Way::In.fault(&e)),
            }
        }
        Ok(Turn::Again)
    }
}

/// Reads the client's descriptor to its end. `turn` runs [`Inlet::turn`] where that may block.
pub async fn draw(
    from: impl Into<Received>,
    files: &Arc<Room>,
    turn: impl AsyncFn(Inlet) -> Result<Turn>,
) -> Result<()> {
    let (from, aside) = Foreign::take(from.into(), Way::In, files).await?;
    let ready = from.watch(Interest::READABLE)?;
    let inlet = Inlet(from.into());
    loop {
        // Taken before the turn: what is written in between is not missed.
        let guard = match &ready {
            Some(ready) => Some(ready.readable().await.map_err(|e| unwatched(&e))?),
            None => None,
        };
        match (turn(inlet.clone()).await?, guard) {
            (Turn::Done, _) => break,
            (Turn::Empty, Some(mut guard)) => guard.clear_ready(),
            (Turn::Empty, None) => {
                return Err(Error::failed_precondition("fd", "", "has nothing now, and can't be waited for"));
            }
            (Turn::Again, _) => {}
        }
    }
    // The pipe of a file that can't be read ends too.
    match aside {
        Some(aside) => aside.done().await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        fs::File,
        io::{Seek as _, SeekFrom, Write as _},
        os::{fd::OwnedFd, unix::net::UnixStream},
    };

    use cofferdam_kernel::Pool;
    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test)
    }

    async fn all(pool: &Pool, from: OwnedFd) -> Result<Vec<u8>> {
        let got = RefCell::new(Vec::new());
        let turn = async |inlet: Inlet| {
            let read = move || {
                let mut bytes = Vec::new();
                let turn = inlet.turn(&mut |block| {
                    bytes.extend_from_slice(block);
                    Ok(())
                })?;
                Ok((turn, bytes))
            };
            let (turn, bytes) = pool.run(read).await?;
            got.borrow_mut().extend(bytes);
            Ok(turn)
        };
        draw(from, &Room::new(1, None), turn).await?;
        Ok(got.into_inner())
    }

    #[test]
    fn all_of_it_arrives_however_slowly_it_is_written() {
        let bytes: Vec<u8> = (0..9_000_000u32).map(|n| (n % 251) as u8).collect();
        let pool = Pool::new("test", 1, 8);
        for socket in [false, true] {
            let (read, mut write): (OwnedFd, File) = if socket {
                let (a, b) = UnixStream::pair().unwrap();
                (a.into(), File::from(OwnedFd::from(b)))
            } else {
                let (a, b) = nix::unistd::pipe().unwrap();
                (a, File::from(b))
            };
            let flags = fcntl(&read, FcntlArg::F_GETFL).unwrap();
            let kept = read.try_clone().unwrap();
            let sent = bytes.clone();
            let writer = std::thread::spawn(move || sent.chunks(100_001).for_each(|c| write.write_all(c).unwrap()));
            assert!(run(all(&pool, read)).unwrap() == bytes, "socket: {socket}");
            writer.join().unwrap();
            assert_eq!(fcntl(&kept, FcntlArg::F_GETFL).unwrap(), flags, "the client's flags are the client's");
        }
    }

    #[test]
    fn who_never_writes_holds_no_thread() {
        let pool = Pool::new("test", 1, 8);
        run(async {
            let (idle, _write) = nix::unistd::pipe().unwrap();
            tokio::select! {
                biased;
                done = all(&pool, idle) => panic!("{done:?} although nobody writes"),
                done = pool.run(|| Ok(())) => done.unwrap(),
            }
        });
    }

    #[test]
    fn files_are_read_from_where_they_stand_and_what_is_not_to_be_read_is_refused() {
        let pool = Pool::new("test", 1, 8);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before and behind").unwrap();
        file.seek(SeekFrom::Start(11)).unwrap();
        assert_eq!(run(all(&pool, file.into())).unwrap(), b"behind");
        assert_eq!(run(all(&pool, File::open("/dev/null").unwrap().into())).unwrap(), b"");
        let (_read, write) = nix::unistd::pipe().unwrap();
        let null = File::options().write(true).open("/dev/null").unwrap();
        for bad in [write, null.into(), File::open("/").unwrap().into()] {
            let error = run(all(&pool, bad)).unwrap_err();
            assert_eq!(error.code, cofferdam_types::Code::InvalidArgument, "{error}");
        }
    }
}
