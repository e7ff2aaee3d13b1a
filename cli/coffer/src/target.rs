//! A file that a command writes what was asked for into.

use std::{
    fs::{File, OpenOptions, Permissions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::sys::stat::{Mode, umask};
use tempfile::TempPath;

use crate::failure::Failure;

/// What becomes of a regular file that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Old {
    /// It is replaced.
    Goes,
    /// It stays, and nothing is written.
    Stays,
}

/// A file to write. A regular one appears when all of it is written; what is another kind of file, such as a device or a pipe,
/// stays what it is and is written into.
#[derive(Debug)]
pub struct Target {
    shown: String,
    file: File,
    part: Option<Part>,
}

/// What becomes a regular file.
#[derive(Debug)]
struct Part {
    now: TempPath,
    then: PathBuf,
    old: Old,
}

impl Target {
    /// A link is followed, as by a shell's redirection.
    pub fn open(path: &str, old: Old) -> Result<Target, Failure> {
        let (file, part) = open(path.as_ref(), old).map_err(|e| Failure::io(path, e))?;
        Ok(Target { shown: path.to_owned(), file, part })
    }

    /// Where to write.
    pub fn fd(&self) -> Result<OwnedFd, Failure> {
        self.file.try_clone().map(OwnedFd::from).map_err(|e| Failure::io(&self.shown, e))
    }

    /// All of it is written.
    pub fn done(self) -> Result<(), Failure> {
        let Some(Part { now, then, old }) = self.part else { return Ok(()) };
        let kept = open_to_others(&self.file).and_then(|()| match old {
            Old::Goes => now.persist(then).map_err(|e| e.error),
            Old::Stays => now.persist_noclobber(then).map_err(|e| e.error),
        });
        kept.map_err(|e| Failure::io(&self.shown, e))
    }
}

fn open(path: &Path, old: Old) -> io::Result<(File, Option<Part>)> {
    let then = match path.metadata() {
        // Never made, emptied or renamed over: whatever else has it open is to get it.
        Ok(found) if !found.is_file() => {
            let file = OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY).open(path)?;
            return Ok((file, None));
        }
        Ok(_) if old == Old::Stays => return Err(io::Error::from_raw_os_error(libc::EEXIST)),
        Ok(_) => path.canonicalize()?,
        Err(e) if e.kind() == io::ErrorKind::NotFound && path.is_symlink() => {
            return Err(io::Error::other("is a link to what is not there: remove it, or name that"));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(e) => return Err(e),
    };
    let above = then.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or_else(|| ".".as_ref());
    let (file, now) = tempfile::Builder::new().prefix(".coffer-").tempfile_in(above)?.into_parts();
    Ok((file, Some(Part { now, then, old })))
}

/// A temporary file is its owner's alone; what it becomes is as a program's files are.
fn open_to_others(file: &File) -> io::Result<()> {
    let mask = umask(Mode::empty());
    umask(mask);
    file.set_permissions(Permissions::from_mode(0o666 & !mask.bits()))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Read as _, Write as _},
        os::unix::fs::{FileTypeExt as _, symlink},
    };

    use nix::sys::stat::{SFlag, makedev, mknod};

    use super::*;

    fn write(path: &Path, old: Old, text: &str) -> Result<(), Failure> {
        let target = Target::open(path.to_str().unwrap(), old)?;
        File::from(target.fd()?).write_all(text.as_bytes()).unwrap();
        target.done()
    }

    #[test]
    fn what_is_no_regular_file_stays_what_it_is_and_is_written_into() {
        let dir = tempfile::tempdir().unwrap();
        let (null, fifo, link) = (dir.path().join("null"), dir.path().join("fifo"), dir.path().join("link"));
        mknod(&null, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 3)).unwrap();
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        // The reader is there first, or opening it would wait for one.
        let mut reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo).unwrap();
        symlink("fifo", &link).unwrap();
        for old in [Old::Goes, Old::Stays] {
            write(&null, old, "nobody reads it").unwrap();
            write(&fifo, old, "to its reader,").unwrap();
            write(&link, old, " by a link too").unwrap();
            let mut read = [0; 28];
            reader.read_exact(&mut read).unwrap();
            assert_eq!(&read, b"to its reader, by a link too");
        }
        assert!(null.symlink_metadata().unwrap().file_type().is_char_device());
        assert!(fifo.symlink_metadata().unwrap().file_type().is_fifo() && link.is_symlink());
        assert!(write(dir.path(), Old::Goes, "").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_regular_file_is_replaced_where_a_link_leads_to_it_or_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link, loose) = (dir.path().join("file"), dir.path().join("link"), dir.path().join("loose"));
        write(&file, Old::Stays, "first").unwrap();
        assert!(write(&file, Old::Stays, "second").unwrap_err().text.contains("File exists"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "first");
        symlink("file", &link).unwrap();
        write(&link, Old::Goes, "second").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "second");
        symlink("none", &loose).unwrap();
        assert!(write(&loose, Old::Goes, "third").unwrap_err().text.contains("a link to what is not there"));
        // Where not all of it is written, nothing appears.
        drop(Target::open(dir.path().join("half").to_str().unwrap(), Old::Goes).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
