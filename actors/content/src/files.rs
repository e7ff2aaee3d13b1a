//! The directories, and what may happen to the files in them. Knows no records and no namespaces.
//!
//! ```text
//! blobs/<algorithm>/<hex>   0400   whole and verified; never changed, only replaced by the same bytes or removed
//! ingest/<name>             0600   bytes received so far
//! ```
//! Every directory is opened once and is 0700 whatever the umask says; files are reached by their names beneath those
//! descriptors. A name is a digest's hex or a number of ours, never a text that a client chose.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
};

use cofferdam_sys::fd::make_private;
use cofferdam_types::{Algorithm, Code, Digest, Error, Result};
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat, renameat2},
    sys::stat::{FileStat, Mode, fchmod, fstat, fstatat, mkdirat},
    unistd::{UnlinkatFlags, fsync, unlinkat},
};

/// The directories of the files.
#[derive(Debug)]
pub(crate) struct Files {
    /// In the order of [`Algorithm::ALL`].
    blobs: [OwnedFd; 3],
    ingest: OwnedFd,
}

impl Files {
    /// Opens the store beneath `root`, making what is missing.
    pub(crate) fn open(root: &OwnedFd) -> Result<Files> {
        // The root itself may have been made by someone else, under whatever umask.
        private(root)?;
        let blobs = directory(root, "blobs")?;
        let [a, b, c] = Algorithm::ALL.map(|algorithm| directory(&blobs, algorithm.as_str()));
        let files = Files { blobs: [a?, b?, c?], ingest: directory(root, "ingest")? };
        // A power cut must not take back directories whose files are acknowledged later.
        for dir in [root, &blobs] {
            match fsync(dir) {
                // Nothing was made.
                Ok(()) | Err(Errno::EROFS) => {}
                Err(e) => return Err(fault("sync its directories", e)),
            }
        }
        Ok(files)
    }

    fn blobs(&self, algorithm: Algorithm) -> &OwnedFd {
        match algorithm {
            Algorithm::Sha256 => &self.blobs[0],
            Algorithm::Sha512 => &self.blobs[1],
            Algorithm::Blake3 => &self.blobs[2],
        }
    }

    /// Opens a blob for reading.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        openat(self.blobs(digest.algorithm()), digest.hex(), flags, Mode::empty())
            .map(File::from)
            .map_err(|e| Error::io("blob", digest, "can't open its file", &e.into()))
    }

    /// The size of the blob's file, if it is there.
    pub(crate) fn blob_size(&self, digest: &Digest) -> Result<Option<u64>> {
        let found = stat(self.blobs(digest.algorithm()), digest.hex())?;
        Ok(found.map(|stat| u64::try_from(stat.st_size).unwrap_or(0)))
    }

    /// Removes a blob's file; it is no error that there is none.
    pub(crate) fn remove_blob(&self, digest: &Digest) -> Result<()> {
        unlink(self.blobs(digest.algorithm()), digest.hex())
    }

    /// The names in the directory of an algorithm.
    pub(crate) fn blob_names(&self, algorithm: Algorithm) -> Result<Vec<String>> {
        names(self.blobs(algorithm))
    }

    /// Removes a file from the directory of an algorithm whose name is no digest.
    pub(crate) fn remove_stray(&self, algorithm: Algorithm, name: &str) -> Result<()> {
        unlink(self.blobs(algorithm), name)
    }

    /// Opens the file of an ingest, making it if it isn't there.
    pub(crate) fn ingest(&self, name: &str) -> Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = openat(&self.ingest, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map(File::from)
            .map_err(|e| fault("make the file of an ingest", e))?;
        // A failed commit may have left it read-only.
        fchmod(file.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| fault("set the mode of an ingest", e))?;
        Ok(file)
    }

    /// Opens the file of an ingest as it is, if there is one.
    pub(crate) fn find_ingest(&self, name: &str) -> Result<Option<File>> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        match openat(&self.ingest, name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(fault("open the file of an ingest", e)),
        }
    }

    /// The state of an ingest's file, if there is one.
    pub(crate) fn ingest_stat(&self, name: &str) -> Result<Option<FileStat>> {
        stat(&self.ingest, name)
    }

    /// Gives back the room of an ingest's file, if there is one and it can be done.
    pub(crate) fn empty_ingest(&self, name: &str) {
        let flags = OFlag::O_WRONLY | OFlag::O_TRUNC | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let _ = openat(&self.ingest, name, flags, Mode::empty());
    }

    /// Removes the file of an ingest; it is no error that there is none.
    pub(crate) fn remove_ingest(&self, name: &str) -> Result<()> {
        unlink(&self.ingest, name)
    }

    /// The names of all ingest files.
    pub(crate) fn ingest_names(&self) -> Result<Vec<String>> {
        names(&self.ingest)
    }

    /// Makes an ingest's file the blob's, in place of one that may be there: the new bytes were verified just now,
    /// which heals a blob that the disk has damaged. Whoever counts on the old file must find one after a power cut too:
    /// then the new one is synced first.
    pub(crate) fn publish(&self, name: &str, file: &File, digest: &Digest) -> Result<()> {
        let (to, hex) = (self.blobs(digest.algorithm()), digest.hex());
        let moved = match renameat2(&self.ingest, name, to, hex, RenameFlags::RENAME_NOREPLACE) {
            // EINVAL: a file system without the flag.
            Err(Errno::EEXIST | Errno::EINVAL) => {
                // What the disk did not take nobody goes on with.
                let synced = file.sync_all().inspect_err(|_| drop(file.set_len(0)));
                synced.map_err(|e| Error::io("blob", digest, "can't sync its file", &e))?;
                renameat(&self.ingest, name, to, hex)
            }
            other => other,
        };
        moved.map_err(|e| match e {
            Errno::ENOENT => Error::failed_precondition("ingest", "", "was aborted: begin again"),
            e => Error::io("blob", digest, "can't move it into place", &e.into()),
        })
    }

    /// Takes back [`Files::publish`].
    pub(crate) fn unpublish(&self, name: &str, digest: &Digest) -> Result<()> {
        renameat(self.blobs(digest.algorithm()), digest.hex(), &self.ingest, name)
            .map_err(|e| Error::io("blob", digest, "can't move it back", &e.into()))
    }

    /// Makes the names of blobs of this algorithm durable.
    pub(crate) fn sync_names(&self, algorithm: Algorithm) -> Result<()> {
        fsync(self.blobs(algorithm)).map_err(|e| fault("sync the directory of blobs", e))
    }

    /// Makes the names of ingests durable.
    pub(crate) fn sync_ingests(&self) -> Result<()> {
        fsync(&self.ingest).map_err(|e| fault("sync the directory of ingests", e))
    }

    /// The device of the files, as stat(2) names it.
    pub(crate) fn device(&self) -> Result<u64> {
        fstat(&self.ingest).map(|stat| stat.st_dev).map_err(|e| fault("look at its directories", e))
    }
}

/// Makes a file read-only, before it becomes a blob.
pub(crate) fn seal(file: &File) -> Result<()> {
    fchmod(file.as_fd(), Mode::S_IRUSR).map_err(|e| fault("set the mode of a blob", e))
}

/// Opens a directory beneath another, making it if it isn't there, with mode 0700 in either case.
fn directory(parent: &OwnedFd, name: &str) -> Result<OwnedFd> {
    match mkdirat(parent, name, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(e) => return Err(fault("make its directories", e)),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let dir = openat(parent, name, flags, Mode::empty()).map_err(|e| fault("open its directories", e))?;
    private(&dir)?;
    Ok(dir)
}

fn private(dir: &OwnedFd) -> Result<()> {
    make_private(dir).map_err(|e| fault("set the mode of its directories", e))
}

fn names(dir: &OwnedFd) -> Result<Vec<String>> {
    // A descriptor of its own: the position in the listing belongs to the open file.
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listing = Dir::openat(dir, ".", flags, Mode::empty()).map_err(|e| fault("list its directories", e))?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let entry = entry.map_err(|e| fault("list its directories", e))?;
        match entry.file_name().to_str() {
            Ok("." | "..") => {}
            Ok(name) => names.push(name.to_owned()),
            Err(_) => tracing::warn!(name = ?entry.file_name(), "a foreign file lies in the content store"),
        }
    }
    Ok(names)
}

fn stat(dir: &OwnedFd, name: &str) -> Result<Option<FileStat>> {
    match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(fault("look at a file", e)),
    }
}

fn unlink(dir: &OwnedFd, name: &str) -> Result<()> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(e) => Err(fault("remove a file", e)),
    }
}

fn fault(what: &str, error: impl Into<std::io::Error>) -> Error {
    let mut error = Error::io("content", "", format!("the content store can't {what}"), &error.into());
    // A missing file of ours is not a missing thing of the client's.
    if error.code == Code::NotFound {
        error.code = Code::Internal;
    }
    error
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, os::unix::fs::PermissionsExt, path::Path};

    use nix::sys::stat::umask;

    use super::*;

    fn open(path: &Path) -> Files {
        Files::open(&fs::File::open(path).unwrap().into()).unwrap()
    }

    fn mode(path: impl AsRef<Path>) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    // F1 of the negative tests.
    #[test]
    fn f1_modes_do_not_depend_on_the_umask() {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"x");
        for mask in [0o000, 0o777] {
            let before = umask(Mode::from_bits_truncate(mask));
            let files = open(root.path());
            let mut file = files.ingest("1").unwrap();
            umask(before);
            file.write_all(b"x").unwrap();
            assert_eq!(mode(root.path().join("ingest/1")), 0o600);
            seal(&file).unwrap();
            files.publish("1", &file, &digest).unwrap();
            for dir in ["", "blobs", "blobs/sha256", "blobs/sha512", "blobs/blake3", "ingest"] {
                assert_eq!(mode(root.path().join(dir)), 0o700, "{dir}");
            }
            assert_eq!(mode(root.path().join("blobs/sha256").join(digest.hex())), 0o400);
            fs::remove_dir_all(root.path().join("ingest")).unwrap();
        }
    }

    #[test]
    fn a_link_in_the_place_of_a_blob_or_an_ingest_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let files = open(root.path());
        let victim = root.path().join("victim");
        fs::write(&victim, "secret").unwrap();
        // Said, since another test may have changed the umask of this process.
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o644)).unwrap();
        let digest = Digest::of(Algorithm::Sha512, b"x");
        std::os::unix::fs::symlink(&victim, root.path().join("blobs/sha512").join(digest.hex())).unwrap();
        std::os::unix::fs::symlink(&victim, root.path().join("ingest/7")).unwrap();
        assert!(files.blob(&digest).is_err());
        assert!(files.ingest("7").is_err());
        assert_eq!(mode(&victim) & 0o200, 0o200);
    }

    #[test]
    fn published_and_taken_back() {
        let root = tempfile::tempdir().unwrap();
        let files = open(root.path());
        let digest = Digest::of(Algorithm::Blake3, b"abc");
        let mut file = files.ingest("5").unwrap();
        file.write_all(b"abc").unwrap();
        files.publish("5", &file, &digest).unwrap();
        assert!(files.blob_size(&digest).unwrap() == Some(3) && files.ingest_names().unwrap().is_empty());
        assert_eq!(files.blob_names(Algorithm::Blake3).unwrap(), [digest.hex()]);
        files.unpublish("5", &digest).unwrap();
        assert_eq!(files.blob_size(&digest).unwrap(), None);
        assert_eq!(files.ingest_names().unwrap(), ["5"]);
        files.remove_ingest("5").unwrap();
        files.remove_ingest("5").unwrap();
        assert_eq!(files.publish("5", &file, &digest).unwrap_err().code, Code::FailedPrecondition);
        let mut again = files.ingest("6").unwrap();
        again.write_all(b"abc").unwrap();
        fs::write(root.path().join("blobs/blake3").join(digest.hex()), "damaged").unwrap();
        files.publish("6", &again, &digest).unwrap();
        assert_eq!(files.blob_size(&digest).unwrap(), Some(3), "the new one is in the place of the old");
    }
}
