//! Where an image comes from when it does not come from a registry: a directory, a tar that can be read at any
//! offset, or a stream that comes once.

mod file;
mod spool;
pub(crate) mod walk;

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
    sync::Arc,
};

use cofferdam_types::{Error, Result, media::Compression};

pub(crate) use file::{Outer, Section};
pub(crate) use spool::Spool;
use walk::{Kind, Member, Walk, refused};

/// Links from link to link that are followed within an archive.
const MAX_LINKS: usize = 8;

/// What an image is imported from. Descriptors, never paths: whoever hands them over could open them.
#[derive(Debug)]
pub enum Source {
    /// An OCI layout as a directory. Nothing outside it is read, no symbolic link followed.
    Directory(OwnedFd),
    /// An OCI layout or a docker archive as a tar, plain or compressed: a regular file, a pipe or a socket.
    Archive(OwnedFd),
}

/// An image archive or directory of which any part can be read at any time.
pub(crate) enum Layout {
    Directory(OwnedFd),
    Tar { file: Arc<File>, members: HashMap<String, Member> },
}

/// A file within a layout.
#[derive(Debug)]
pub(crate) struct Part {
    pub size: u64,
    pub section: Section,
}

impl Layout {
    /// Lists a plain tar. Only headers are read.
    pub fn tar(file: Arc<File>, size: u64) -> Result<Layout> {
        let mut walk = Walk::new(Section::new(file.clone(), 0, size));
        let mut members = HashMap::new();
        while let Some(member) = walk.next()? {
            if member.kind == Kind::Other {
                continue;
            }
            // Of two files under one name, one reader takes the first and another the last: two images.
            if let Some(before) = members.insert(member.name.clone(), member) {
                return Err(refused(format!("duplicated {}", before.name)));
            }
        }
        Ok(Layout::Tar { file, members })
    }

    /// A regular file by its path in the layout; `None` if there is none.
    pub fn open(&self, path: &str) -> Result<Option<Part>> {
        match self {
            Layout::Directory(dir) => {
                // O_NONBLOCK: a FIFO in the place of a blob must not hang us before it is found to be one.
                let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOFOLLOW;
                let fd = match cofferdam_sys::fd::open_no_symlinks(dir.as_fd(), Path::new(path), flags, 0) {
                    Ok(fd) => fd,
                    Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                        return Ok(None);
                    }
                    Err(e) => {
                        return Err(Error::invalid(
                            "archive",
                            "",
                            format!("{path} can't be opened as a plain file ({e})"),
                        ));
                    }
                };
                let file = File::from(fd);
                let meta = file.metadata().map_err(|e| Error::io("archive", "", format!("looking at {path}"), &e))?;
                if !meta.is_file() {
                    return Err(refused(format!("{path} is not a regular file")));
                }
                Ok(Some(Part { size: meta.len(), section: Section::new(Arc::new(file), 0, meta.len()) }))
            }
            Layout::Tar { file, members } => {
                let Some(name) = follow(path, |name| members.get(name).map(|m| &m.kind))? else { return Ok(None) };
                Ok(members.get(&name).map(|member| Part {
                    size: member.size,
                    section: Section::new(file.clone(), member.offset, member.size),
                }))
            }
        }
    }

    /// A small file, whole.
    pub fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(mut part) = self.open(path)? else { return Ok(None) };
        if part.size > limit {
            return Err(refused(format!("{path} has {} bytes: at most {limit} are read", part.size)));
        }
        let mut bytes = Vec::new();
        part.section.read_to_end(&mut bytes).map_err(walk::broken)?;
        Ok(Some(bytes))
    }
}

/// The regular file that `path` leads to within an archive whose members `kind` knows. Nothing outside is touched: a
/// path is only ever a key.
pub(crate) fn follow<'a>(path: &str, kind: impl Fn(&str) -> Option<&'a Kind>) -> Result<Option<String>> {
    let mut name = path.to_owned();
    for _ in 0..=MAX_LINKS {
        let next = match kind(&name) {
            Some(Kind::File) => return Ok(Some(name)),
            Some(Kind::Symlink(target)) if !target.starts_with('/') => {
                let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                lexical(&format!("{directory}/{target}"))
            }
            Some(Kind::Hardlink(target)) => lexical(target),
            _ => return Ok(None),
        };
        name = next.ok_or_else(|| refused(format!("{path} links out of the archive")))?;
    }
    Err(refused(format!("{path} is a link without end")))
}

fn lexical(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// How a file that can be read at any offset is packed.
pub(crate) fn sniff(file: &File) -> io::Result<Compression> {
    let mut head = [0; 4];
    let n = file.read_at(&mut head, 0)?;
    Ok(Compression::sniff(&head[..n]))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use cofferdam_types::Code;

    use super::*;

    fn tar_of(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Result<Layout> {
        let mut tar = tar::Builder::new(Vec::new());
        build(&mut tar);
        let bytes = tar.into_inner().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        Layout::tar(Arc::new(file), bytes.len() as u64)
    }

    fn file(tar: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content).unwrap();
    }

    fn link(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, target: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_entry_type(kind);
        tar.append_link(&mut header, name, target).unwrap();
    }

    #[test]
    fn a_tar_is_read_through_its_links() {
        use tar::EntryType::{Link, Symlink};
        let layout = tar_of(|tar| {
            file(tar, "x.tar", b"layer");
            link(tar, Symlink, "a/layer.tar", "../x.tar");
            link(tar, Link, "b", "a/layer.tar");
            link(tar, Symlink, "out", "../../etc/passwd");
            link(tar, Symlink, "absolute", "/etc/passwd");
            link(tar, Symlink, "loop", "loop");
            link(tar, Symlink, "dangling", "nothing");
        })
        .unwrap();
        for name in ["x.tar", "a/layer.tar", "b"] {
            assert_eq!(layout.read(name, 100).unwrap().unwrap(), b"layer", "{name}");
        }
        assert!(layout.read("x.tar", 4).is_err());
        for name in ["absolute", "dangling", "nothing"] {
            assert!(layout.open(name).unwrap().is_none(), "{name}");
        }
        for name in ["out", "loop"] {
            assert_eq!(layout.open(name).unwrap_err().code, Code::InvalidArgument, "{name}");
        }
    }

    #[test]
    fn a_name_that_stands_twice_is_refused() {
        let twice = tar_of(|tar| {
            file(tar, "index.json", b"1");
            file(tar, "./index.json", b"2");
        });
        assert!(twice.err().unwrap().message.contains("duplicated index.json"));
    }

    // F3 and A1/A2 of the negative tests, for the layout itself.
    #[test]
    fn f3_a_directory_is_not_left() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/f"), "inside").unwrap();
        symlink(outside.path().join("secret"), dir.path().join("absolute")).unwrap();
        symlink(outside.path(), dir.path().join("dir")).unwrap();
        symlink("sub/f", dir.path().join("inner")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let layout = Layout::Directory(cofferdam_sys::fd::open_dir(dir.path()).unwrap());
        assert_eq!(layout.read("sub/f", 100).unwrap().unwrap(), b"inside");
        assert!(layout.open("none").unwrap().is_none());
        let up = format!("../{}/secret", outside.path().file_name().unwrap().to_str().unwrap());
        for name in ["absolute", "dir/secret", "inner", "fifo", "sub", &up] {
            assert_eq!(layout.open(name).unwrap_err().code, Code::InvalidArgument, "{name}");
        }
    }
}
