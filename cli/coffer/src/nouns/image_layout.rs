//! An image archive as a directory: an OCI layout that others read as it is.

use std::{
    fs::{DirBuilder, File},
    io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt as _},
    path::{Component, Path, PathBuf},
    thread::JoinHandle,
};

use crate::failure::Failure;

/// A directory that is being filled from a pipe.
pub struct Layout {
    path: PathBuf,
    filling: JoinHandle<io::Result<()>>,
}

impl Layout {
    /// Makes the directory, which must not be there, and gives the end of a pipe that takes the archive.
    pub fn begin(path: &str) -> Result<(Layout, OwnedFd), Failure> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| Failure::io("a pipe", e))?;
        DirBuilder::new().mode(0o755).create(path).map_err(|e| Failure::io(path, e))?;
        let path = PathBuf::from(path);
        let into = path.clone();
        let filling = std::thread::spawn(move || fill(File::from(read), &into));
        Ok((Layout { path, filling }, write))
    }

    /// Waits until all of it is there; what is not whole is removed.
    pub fn end<T>(self, sent: Result<T, Failure>) -> Result<T, Failure> {
        let shown = self.path.display().to_string();
        let filled = self.filling.join().unwrap_or_else(|_| Err(io::Error::other("the thread that fills it panicked")));
        let done = match (sent, filled) {
            (Ok(sent), Ok(())) => return Ok(sent),
            // A reader that failed is why the writer did.
            (_, Err(e)) if e.kind() != io::ErrorKind::UnexpectedEof => Err(Failure::io(&shown, e)),
            (Ok(_), Err(e)) => Err(Failure::io(&shown, e)),
            (Err(failure), _) => Err(failure),
        };
        let _ = std::fs::remove_dir_all(&self.path);
        done
    }
}

fn fill(archive: impl io::Read, dir: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let plain =
            entry.header().entry_type().is_file() && path.components().all(|c| matches!(c, Component::Normal(_)));
        if !plain {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} is no file of a layout", path.display()),
            ));
        }
        let path = dir.join(path);
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        io::copy(&mut entry, &mut File::create_new(&path)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(name: &[u8], kind: tar::EntryType) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_size(0);
        header.set_entry_type(kind);
        header.set_cksum();
        [header.as_bytes(), &[0; 1024][..]].concat()
    }

    #[test]
    fn only_files_within_the_directory_are_written() {
        let dir = tempfile::tempdir().unwrap();
        fill(&archive(b"blobs/sha256/x", tar::EntryType::Regular)[..], dir.path()).unwrap();
        assert!(dir.path().join("blobs/sha256/x").is_file());
        for (name, kind) in [
            (&b"../x"[..], tar::EntryType::Regular),
            (b"/x", tar::EntryType::Regular),
            (b"x", tar::EntryType::Symlink),
            (b"blobs/sha256/x", tar::EntryType::Regular),
        ] {
            assert!(fill(&archive(name, kind)[..], dir.path()).is_err(), "{name:?}");
        }
    }
}
