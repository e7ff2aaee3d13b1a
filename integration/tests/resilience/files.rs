//! Files of a file system that never answers, which is a program of the client's: what they are read, written or closed by waits,
//! and nothing else does. W is an id of SECURITY.md.

use std::{
    ffi::OsStr,
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use cofferdam_client::{Client, GrantOptions, Namespace};
use cofferdam_integration::{Daemon, bounded, descriptors, until, until_async};
use cofferdam_types::{Code, Error};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyStatfs, Request,
};

const FILE: INodeNo = INodeNo(2);
/// What nobody else waits for longer.
const SOON: Duration = Duration::from_secs(10);

/// What it has been asked and doesn't answer. Dropped, each is told that it failed.
#[derive(Default)]
struct Asked {
    silent: AtomicBool,
    kept: Mutex<Vec<Box<dyn Send>>>,
}

/// Answers this process, and no other once it is silent.
struct Silent(Arc<Asked>);

impl Silent {
    fn keeps(&self, from: &Request) -> bool {
        let ours = Path::new("/proc/self/task").join(from.pid().to_string()).exists();
        self.0.silent.load(Ordering::SeqCst) && !ours
    }

    fn keep(&self, reply: impl Send + 'static) {
        self.0.kept.lock().unwrap().push(Box::new(reply));
    }

    fn attributes(ino: INodeNo) -> FileAttr {
        let kind = if ino == FILE { FileType::RegularFile } else { FileType::Directory };
        FileAttr {
            ino,
            size: 1 << 20,
            blocks: 1,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o777,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// No attributes are kept by the kernel: whoever asks for them asks here.
impl Filesystem for Silent {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == "file" {
            true => reply.entry(&Duration::ZERO, &Silent::attributes(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, from: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if self.keeps(from) {
            return self.keep(reply);
        }
        reply.attr(&Duration::ZERO, &Silent::attributes(ino));
    }

    fn read(
        &self,
        from: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if self.keeps(from) {
            return self.keep(reply);
        }
        reply.data(&vec![7; size as usize]);
    }

    fn flush(&self, from: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        if self.keeps(from) {
            return self.keep(reply);
        }
        reply.ok();
    }

    fn statfs(&self, from: &Request, _: INodeNo, reply: ReplyStatfs) {
        if self.keeps(from) {
            return self.keep(reply);
        }
        reply.statfs(0, 0, 0, 0, 0, 512, 255, 0);
    }
}

/// The mount, and what it was asked.
struct Mounted {
    dir: PathBuf,
    asked: Arc<Asked>,
    _session: fuser::BackgroundSession,
}

impl Mounted {
    fn at(dir: PathBuf) -> Mounted {
        std::fs::create_dir(&dir).unwrap();
        let asked: Arc<Asked> = Arc::default();
        let session = fuser::Session::new(Silent(asked.clone()), &dir, &fuser::Config::default());
        Mounted { dir, asked, _session: session.and_then(fuser::Session::spawn).unwrap() }
    }

    fn open(&self, writes: bool) -> OwnedFd {
        let mut options = File::options();
        let options = if writes { options.write(true) } else { options.read(true) };
        options.open(self.dir.join("file")).unwrap().into()
    }

    fn waiting(&self) -> usize {
        self.asked.kept.lock().unwrap().len()
    }

    /// It answers again.
    fn speaks(&self) {
        self.asked.silent.store(false, Ordering::SeqCst);
        self.asked.kept.lock().unwrap().clear();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.speaks();
        let _ = nix::mount::umount2(&self.dir, nix::mount::MntFlags::MNT_DETACH);
    }
}

async fn taken(namespace: &Namespace, reference: &str, file: OwnedFd) -> Result<u64, Error> {
    namespace.content().ingest(reference, 0, "", "sha256").copy_fd(file).await
}

#[test]
fn w5_a_file_that_never_answers_keeps_its_own_call_waiting_and_no_other() {
    let daemon = Daemon::with_busybox();
    let mounted = Mounted::at(daemon.path().join("silent"));
    let directory = daemon.path().join("strange");
    let words = |text: &str| text.split(' ').map(str::to_owned).collect();
    let rights = GrantOptions { rights: words("read write run"), ..GrantOptions::default() };
    let before = bounded(async {
        daemon.open().await.grants().create(&rights).export(directory.to_str().unwrap()).await.unwrap();
        let (socket, own) = (directory.join("cofferdam.sock"), daemon.client().await);
        let before = descriptors(daemon.pid()).values().sum::<usize>();

        // One that answers is read to its end, and so is one of the kernel's own.
        let theirs = Client::connect(&socket).await.unwrap();
        let seen = theirs.namespace("");
        assert_eq!(taken(&seen, "speaks", mounted.open(false)).await.unwrap(), 1 << 20);
        mounted.asked.silent.store(true, Ordering::SeqCst);

        // As many as one grant may have waiting: the next is told so, and others are served, who holds the grant among them.
        let waits: Vec<_> = (0..4)
            .map(|n| {
                let (seen, file) = (seen.clone(), mounted.open(false));
                tokio::task::spawn_local(async move { taken(&seen, &format!("waits-{n}"), file).await })
            })
            .collect();
        until_async("they are read", async || (mounted.waiting() >= 4).then_some(())).await;
        let refused = taken(&seen, "more", mounted.open(false)).await.unwrap_err();
        assert_eq!(refused.code, Code::ResourceExhausted, "{refused}");
        let passwd = || OwnedFd::from(File::open("/etc/passwd").unwrap());
        let local = tokio::time::timeout(SOON, taken(&seen, "local", passwd())).await.expect("it waits for nothing");
        assert!(local.unwrap() > 0);
        let mine = own.namespace(daemon.namespace());
        tokio::time::timeout(SOON, taken(&mine, "mine", passwd())).await.expect("the operator waits").unwrap();
        // Programs are started as ever: their shims have nothing to do with what lies open here.
        for n in 0..4 {
            let id = format!("box{n}");
            let brief = async {
                let run = crate::start(&own, daemon.run(&id, ["true"])).await.0;
                assert_eq!(run.wait().await.unwrap().status, 0);
                run.container().remove(false).await.unwrap();
            };
            tokio::time::timeout(SOON, brief).await.expect("its shim is not there");
        }
        assert!(waits.iter().all(|wait| !wait.is_finished()));

        // What nobody takes any more is given up with its connection, and its closing is waited for by nobody.
        let export = mine.images().get(cofferdam_integration::BUSYBOX).export_fd(mounted.open(true));
        let exporting = tokio::task::spawn_local(async move { export.info().await.map(drop) });
        drop((waits, theirs, seen));
        for socket in [&socket, &daemon.socket()] {
            let ask = async { Client::connect(socket).await.unwrap().namespace(daemon.namespace()).info().await };
            tokio::time::timeout(SOON, ask).await.expect("nobody is served").unwrap();
        }
        exporting.abort();
        mounted.speaks();
        drop(own);
        before
    });
    until("all of it is closed", || {
        let now = descriptors(daemon.pid()).values().sum::<usize>();
        (now <= before + 8).then_some(())
    });
}
