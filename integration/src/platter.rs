//! A disk whose power can be cut: the one file of a small FUSE file system, for a loop device to lie on. Every write is
//! kept in order, and so is every flush, which the loop driver makes an fsync of. What a power cut may leave is made of
//! that: all that was written before the last flush, and any part of what came after it.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant, UNIX_EPOCH},
};

use fuser::{
    BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request, WriteFlags,
};
use nix::mount::{MntFlags, umount2};

use crate::DEADLINE;

/// What a disk writes whole or not at all.
const BLOCK: usize = 4096;
const TTL: Duration = Duration::from_secs(3600);
const FILE: INodeNo = INodeNo(2);
const NAME: &str = "disk";

type Block = Arc<[u8; BLOCK]>;

/// All that is on a disk. Clones share their blocks.
#[derive(Clone)]
pub struct Image(Vec<Option<Block>>);

impl Image {
    /// One with nothing on it.
    pub fn empty(mib: usize) -> Image {
        Image(vec![None; (mib << 20) / BLOCK])
    }

    fn read(&self, offset: usize, size: usize) -> Vec<u8> {
        let end = (offset + size).min(self.0.len() * BLOCK);
        let mut bytes = Vec::with_capacity(end.saturating_sub(offset));
        let mut at = offset;
        while at < end {
            let (n, from) = (at / BLOCK, at % BLOCK);
            let to = BLOCK.min(from + end - at);
            match &self.0[n] {
                Some(block) => bytes.extend_from_slice(&block[from..to]),
                None => bytes.resize(bytes.len() + to - from, 0),
            }
            at += to - from;
        }
        bytes
    }

    /// Writes, and gives the blocks as they are now.
    fn write(&mut self, offset: usize, data: &[u8]) -> Vec<Op> {
        let (mut at, mut rest, mut ops) = (offset, data, Vec::new());
        while !rest.is_empty() {
            let (n, from) = (at / BLOCK, at % BLOCK);
            let (now, later) = rest.split_at(rest.len().min(BLOCK - from));
            let mut block = self.0[n].as_deref().copied().unwrap_or([0; BLOCK]);
            block[from..from + now.len()].copy_from_slice(now);
            let block = Arc::new(block);
            self.0[n] = Some(block.clone());
            ops.push(Op::Write(n, block));
            at += now.len();
            rest = later;
        }
        ops
    }
}

#[derive(Clone)]
enum Op {
    Write(usize, Block),
    Flush,
}

/// What was written to a disk, and when it was flushed.
pub struct Record {
    base: Image,
    ops: Vec<Op>,
}

impl Record {
    /// How many writes and flushes there are.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Where the flushes are.
    pub fn flushes(&self) -> Vec<usize> {
        (0..self.ops.len()).filter(|n| matches!(self.ops[*n], Op::Flush)).collect()
    }

    /// What may be on the disk when the power goes before operation `at`. Which of the blocks that weren't flushed are
    /// written `stays` says for each.
    pub fn cut(&self, at: usize, mut stays: impl FnMut() -> bool) -> Image {
        let mut image = self.base.clone();
        let flushed = self.ops[..at].iter().rposition(|op| matches!(op, Op::Flush)).unwrap_or(0);
        for (n, op) in self.ops[..at].iter().enumerate() {
            match op {
                Op::Write(block, data) if n < flushed || stays() => image.0[*block] = Some(data.clone()),
                _ => {}
            }
        }
        image
    }
}

struct State {
    image: Image,
    record: Option<Record>,
    /// What it doesn't take, and how often it was asked to.
    refused: Option<(Vec<u8>, usize)>,
}

/// A disk that is there.
pub struct Platter {
    dir: PathBuf,
    state: Arc<Mutex<State>>,
    session: Option<BackgroundSession>,
}

impl Platter {
    /// Serves a disk as a file of a directory, which is made for it.
    pub fn serve(dir: &Path, image: Image) -> Platter {
        fs::create_dir(dir).expect("a mount point");
        let state = Arc::new(Mutex::new(State { image, record: None, refused: None }));
        let session = fuser::Session::new(Served(state.clone()), dir, &fuser::Config::default())
            .and_then(fuser::Session::spawn)
            .expect("/dev/fuse is there, and serves");
        Platter { dir: dir.to_owned(), state, session: Some(session) }
    }

    /// The disk.
    pub fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    /// Keeps what is written from now on.
    pub fn record(&self) {
        let mut state = lock(&self.state);
        state.record = Some(Record { base: state.image.clone(), ops: Vec::new() });
    }

    /// How many writes and flushes were kept so far.
    pub fn position(&self) -> usize {
        lock(&self.state).record.as_ref().map_or(0, Record::len)
    }

    /// Bytes that were written since it is kept, and flushed, and so is what makes them a file's: the file system writes that
    /// behind their flush, and flushes once more. Until then a power cut would leave them to nobody.
    pub fn flushed(&self) -> usize {
        let state = lock(&self.state);
        let ops = state.record.as_ref().map_or(&[][..], |record| &record.ops);
        let flushes = ops.iter().enumerate().rev().filter(|(_, op)| matches!(op, Op::Flush));
        let last = flushes.map(|(n, _)| n).nth(1).unwrap_or(0);
        ops[..last].iter().filter(|op| matches!(op, Op::Write(..))).count() * BLOCK
    }

    /// From now on it fails to write whatever has these bytes in it.
    pub fn refuse(&self, bytes: &[u8]) {
        lock(&self.state).refused = Some((bytes.to_vec(), 0));
    }

    /// It is in order again. Says how many writes failed.
    pub fn relent(&self) -> usize {
        lock(&self.state).refused.take().map_or(0, |(_, times)| times)
    }

    /// What is on it now.
    pub fn image(&self) -> Image {
        lock(&self.state).image.clone()
    }

    /// What was kept.
    pub fn recorded(&self) -> Record {
        lock(&self.state).record.take().expect("it was recorded")
    }
}

impl Platter {
    /// Unmounts it, and serves what lies on it until that is gone too.
    pub fn end(&mut self) {
        let Some(session) = self.session.take() else { return };
        let _ = umount2(&self.dir, MntFlags::MNT_DETACH);
        let end = Instant::now() + DEADLINE;
        while !session.guard.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = fs::remove_dir(&self.dir);
    }
}

impl Drop for Platter {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("not poisoned")
}

struct Served(Arc<Mutex<State>>);

impl Served {
    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let (kind, size) = match ino {
            FILE => (FileType::RegularFile, (lock(&self.0).image.0.len() * BLOCK) as u64),
            _ => (FileType::Directory, 0),
        };
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK as u32,
            flags: 0,
        }
    }
}

/// What isn't here the kernel is told to do without: holes and discards above all.
impl Filesystem for Served {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == NAME {
            true => reply.entry(&TTL, &self.attributes(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(ino));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let bytes = lock(&self.0).image.read(offset as usize, size as usize);
        reply.data(&bytes);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = lock(&self.0);
        if offset as usize + data.len() > state.image.0.len() * BLOCK {
            return reply.error(Errno::ENOSPC);
        }
        if let Some((bytes, times)) = &mut state.refused
            && data.windows(bytes.len()).any(|window| window == bytes)
        {
            *times += 1;
            return reply.error(Errno::EIO);
        }
        let ops = state.image.write(offset as usize, data);
        if let Some(record) = &mut state.record {
            record.ops.extend(ops);
        }
        drop(state);
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if let Some(record) = &mut lock(&self.0).record {
            record.ops.push(Op::Flush);
        }
        reply.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_stays_and_any_part_of_the_rest() {
        let mut image = Image::empty(1);
        let base = image.clone();
        let mut ops = image.write(100, b"before");
        ops.push(Op::Flush);
        ops.extend(image.write(BLOCK - 1, b"two"));
        assert_eq!(image.read(BLOCK - 1, 3), b"two");
        let record = Record { base, ops };
        assert_eq!((record.len(), record.flushes()), (4, vec![1]));
        let at = |at, stays: &[bool]| {
            let mut stays = stays.iter();
            let image = record.cut(at, || *stays.next().unwrap());
            (image.read(100, 6), image.read(BLOCK - 1, 3))
        };
        let (nothing, all) = (vec![0; 6], b"before".to_vec());
        assert_eq!(at(0, &[]), (nothing.clone(), vec![0; 3]));
        assert_eq!(at(1, &[false]), (nothing, vec![0; 3]));
        assert_eq!(at(2, &[]), (all.clone(), vec![0; 3]));
        assert_eq!(at(4, &[false, false]), (all.clone(), vec![0; 3]));
        assert_eq!(at(4, &[false, true]), (all.clone(), b"\0wo".to_vec()));
        assert_eq!(at(4, &[true, true]), (all, b"two".to_vec()));
    }
}
