//! `cp`: files go into a container and out of it.

use std::{
    fs::File,
    io::{IsTerminal as _, Read, Write as _},
    path::{Path, PathBuf},
};

use cofferdam_client::Container;
use cofferdam_types::{Code, Error, Result};

use crate::{
    args::{Command, Positional, Times, switch},
    cx::Cx,
    failure::Failure,
};

/// `coffer cp`.
pub static CP: Command = Command {
    path: &["cp"],
    about: "copy files between a container and here",
    positionals: &[Positional { name: "FROM", times: Times::Once }, Positional { name: "TO", times: Times::Once }],
    flags: &[switch("archive", Some('a'), "into a container: owners stay what they are; they are root otherwise")],
    notes: "One of FROM and TO is CONTAINER:PATH, with a path from the container's root on. The other one is a path, or - for\n\
            a tar archive on standard input or output. What is copied goes into TO if that is a directory, and takes its\n\
            name otherwise; with /. at the end of FROM it is what is in the directory. The container may run or not.\n\
            Links stay links. What is in a mount beneath FROM is left out, devices and FIFOs are not made here.",
    failure: 1,
    action: |cx| Box::pin(cp(cx)),
};

/// What one of the two words names.
#[derive(Debug, PartialEq, Eq)]
enum End<'a> {
    Inside(&'a str, &'a str),
    Here(&'a str),
    Stream,
}

/// A path with a colon is written with a slash before it: ./a:b.
fn end(word: &str) -> End<'_> {
    match word.split_once(':') {
        _ if word == "-" => End::Stream,
        Some((container, path)) if !container.is_empty() && !container.contains('/') => End::Inside(container, path),
        _ => End::Here(word),
    }
}

async fn cp(cx: Cx) -> Result<i32, Failure> {
    let containers = cx.namespace().await?.containers();
    let archive = cx.args.has("archive");
    match (end(cx.args.at(0)), end(cx.args.at(1))) {
        (End::Inside(id, path), to @ (End::Here(_) | End::Stream)) => fetch(&containers.get(id), path, &to).await?,
        (from @ (End::Here(_) | End::Stream), End::Inside(id, path)) => {
            send(&containers.get(id), &from, path, archive).await?;
        }
        _ => return Err(Failure::usage("cp: one of FROM and TO is CONTAINER:PATH, the other one a path or -")),
    }
    Ok(0)
}

/// Out of the container. A thread writes what arrives, so that a slow disk or reader makes the container's side wait.
async fn fetch(container: &Container, path: &str, to: &End<'_>) -> Result<(), Failure> {
    let place = match to {
        End::Here(to) => Some(Place::of(Path::new(to), path)?),
        _ if std::io::stdout().is_terminal() => {
            return Err(Failure::usage("cp: a terminal can't show an archive: lead the output into a file or a pipe"));
        }
        _ => None,
    };
    let (read, write) = pipe()?;
    let taken = tokio::task::spawn_blocking(move || match place {
        Some(place) => Ok(place.take(read)?),
        None => copy(read, std::io::stdout().lock()).map(|()| None).map_err(Failure::output),
    });
    let (sink, mut chunks) = cofferdam_client::channel();
    let answer = container.copy_out(path, &sink);
    drop(sink);
    let pour = tokio::task::spawn_local(async move {
        let mut write = write;
        while let Some(chunk) = chunks.next().await {
            let mut file = write;
            match tokio::task::spawn_blocking(move || file.write_all(&chunk).map(|()| file)).await {
                Ok(Ok(file)) => write = file,
                _ => return true,
            }
        }
        false
    });
    let answer = answer.await;
    if answer.is_err() {
        // Nobody may be there any more who would end the stream.
        pour.abort();
    }
    let refused = pour.await.unwrap_or(false);
    let taken = taken.await.map_err(|e| Failure::usage(format!("cp: {e}")))?;
    // What took no more knows why, and the container's side only that. What is not whole does not get to its place.
    let beside = if refused { taken? } else { answer.map_err(Failure::from).and(taken)? };
    if let Some(beside) = beside {
        beside.settle()?;
    }
    Ok(())
}

/// Into the container.
async fn send(container: &Container, from: &End<'_>, path: &str, archive: bool) -> Result<(), Failure> {
    let contents = matches!(from, End::Here(from) if from.ends_with("/.") || *from == ".");
    let into = contents || *from == End::Stream;
    let sink = match container.copy_in(path, into, archive).await {
        // The directory is made then, under the name that it is to have.
        Err(error) if contents && error.code == Code::NotFound && error.kind == "path" => {
            container.copy_in(path, false, archive).await.map(|sink| (sink, false))
        }
        other => other.map(|sink| (sink, contents)),
    };
    let (sink, contents) = sink?;
    let (mut read, write) = pipe()?;
    let packed = match from {
        End::Here(from) => {
            let from = PathBuf::from(from);
            tokio::task::spawn_blocking(move || pack(&from, contents, write))
        }
        _ => tokio::task::spawn_blocking(move || {
            let copied = copy(std::io::stdin().lock(), write);
            copied.map_err(|e| Error::io("archive", "-", "can't be copied", &e))
        }),
    };
    loop {
        let chunk = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; 64 << 10];
            let n = read.read(&mut chunk)?;
            chunk.truncate(n);
            Ok::<_, std::io::Error>((read, chunk))
        });
        let (again, chunk) = chunk
            .await
            .map_err(|e| Failure::usage(format!("cp: {e}")))?
            .map_err(|e| Failure::io("cp: reading the archive", e))?;
        read = again;
        // Its end says why it takes no more.
        if chunk.is_empty() || sink.write(&chunk).await.is_err() {
            break;
        }
    }
    drop(read);
    // Who takes no more says why; what is packed may then go on for ever, as standard input may.
    sink.end().await?;
    Ok(packed.await.map_err(|e| Failure::usage(format!("cp: {e}")))??)
}

/// A pipe: read end, write end.
fn pipe() -> Result<(File, File), Failure> {
    let (read, write) = std::io::pipe().map_err(|e| Failure::io("cp: a pipe", e))?;
    Ok((File::from(std::os::fd::OwnedFd::from(read)), File::from(std::os::fd::OwnedFd::from(write))))
}

fn copy(mut from: impl Read, mut to: impl std::io::Write) -> std::io::Result<()> {
    std::io::copy(&mut from, &mut to).and_then(|_| to.flush())
}

/// Packs what is at a path here: under its own name, or what is in it.
fn pack(from: &Path, contents: bool, out: File) -> Result<()> {
    let fault = |e: std::io::Error| Error::io("path", from.display(), "can't be copied", &e);
    let mut tar = tar::Builder::new(out);
    tar.follow_symlinks(false);
    tar.sparse(false);
    let meta =
        if from.as_os_str().as_encoded_bytes().ends_with(b"/") { from.metadata() } else { from.symlink_metadata() };
    let meta = meta.map_err(fault)?;
    if !(meta.is_dir() || meta.is_file() || meta.is_symlink()) {
        let why = "is a device, FIFO or socket: only files, links and directories are copied";
        return Err(Error::invalid("path", from.display(), why));
    }
    if meta.is_dir() {
        let whole = from.canonicalize().map_err(fault)?;
        let name =
            if contents { Path::new(".") } else { Path::new(whole.file_name().unwrap_or_else(|| "root".as_ref())) };
        tar.append_dir_all(name, &whole).map_err(fault)?;
    } else {
        let name = from.file_name().ok_or_else(|| Error::invalid("path", from.display(), "has no name"))?;
        tar.append_path_with_name(from, name).map_err(fault)?;
    }
    tar.finish().map_err(fault)
}

/// Where what comes out of a container belongs.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// The directory that it goes into.
    above: PathBuf,
    /// What the one thing at the archive's top is to be called; `None`: as it is.
    name: Option<PathBuf>,
}

impl Place {
    fn of(to: &Path, from: &str) -> Result<Place, Failure> {
        if to.is_dir() {
            return Ok(Place { above: to.to_owned(), name: None });
        }
        let slash = to.as_os_str().as_encoded_bytes().ends_with(b"/");
        let above = match to.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => Path::new("/"),
        };
        if slash || !above.is_dir() || to.file_name().is_none() {
            let missing = if slash { to } else { above };
            return Err(Error::not_found("path", missing.display(), "is not a directory here: make it first").into());
        }
        if from.ends_with("/.") {
            std::fs::create_dir(to).map_err(|e| Failure::io(&format!("cp: {}", to.display()), e))?;
            return Ok(Place { above: to.to_owned(), name: None });
        }
        Ok(Place { above: above.to_owned(), name: to.file_name().map(PathBuf::from) })
    }

    /// Unpacks an archive. A thing that is to have another name is made beside its place.
    fn take(self, archive: File) -> Result<Option<Beside>> {
        let Some(name) = &self.name else { return unpack(archive, &self.above).map(|()| None) };
        let dir = tempfile::Builder::new().prefix(".coffer-cp-").tempdir_in(&self.above);
        let dir = dir.map_err(|e| unwritten(&self.above, &e))?;
        unpack(archive, dir.path())?;
        Ok(Some(Beside { dir, to: self.above.join(name) }))
    }
}

/// A thing that is whole, and has yet to get its name.
struct Beside {
    dir: tempfile::TempDir,
    to: PathBuf,
}

impl Beside {
    fn settle(self) -> Result<()> {
        let made = std::fs::read_dir(self.dir.path()).and_then(|mut all| all.next().transpose());
        match made.map_err(|e| unwritten(&self.to, &e))? {
            Some(made) => std::fs::rename(made.path(), &self.to).map_err(|e| unwritten(&self.to, &e)),
            None => Err(Error::invalid("path", self.to.display(), "gets nothing: it is no file, link or directory")),
        }
    }
}

fn unwritten(path: &Path, error: &std::io::Error) -> Error {
    Error::io("path", path.display(), "can't be written", error)
}

/// Unpacks what a container gave, and believes nothing of it: no path leads out of `to`, neither by its names nor by a link,
/// and nothing gets rights by its mode.
fn unpack(archive: File, to: &Path) -> Result<()> {
    let fault = |e: std::io::Error| unwritten(to, &e);
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_permissions(false);
    archive.set_preserve_ownerships(false);
    archive.set_unpack_xattrs(false);
    for entry in archive.entries().map_err(fault)? {
        let mut entry = entry.map_err(fault)?;
        let kind = entry.header().entry_type();
        if kind.is_block_special() || kind.is_character_special() || kind.is_fifo() {
            continue;
        }
        if !entry.unpack_in(to).map_err(fault)? {
            return Err(Error::invalid("path", String::from_utf8_lossy(&entry.path_bytes()), "leads out of its place"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn words_are_paths_here_or_in_a_container() {
        for (word, meant) in [
            ("-", End::Stream),
            ("box:/a", End::Inside("box", "/a")),
            ("box:a:b", End::Inside("box", "a:b")),
            ("./a:b", End::Here("./a:b")),
            ("/a:b", End::Here("/a:b")),
            (":a", End::Here(":a")),
            ("a", End::Here("a")),
        ] {
            assert_eq!(end(word), meant, "{word}");
        }
    }

    /// An archive with one file of this name, behind a link `way` to `target`.
    fn archive(target: &Path, name: &str) -> File {
        let mut tar = tar::Builder::new(tempfile::tempfile().unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, "way", target).unwrap();
        let mut header = tar::Header::new_gnu();
        // Past the library's own look at it.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o4755);
        header.set_size(4);
        header.set_cksum();
        tar.append(&header, &b"evil"[..]).unwrap();
        let mut file = tar.into_inner().unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file
    }

    #[test]
    fn what_leads_out_of_its_place_is_refused() {
        let (to, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in ["way/file", "../file", "a/../../file"] {
            assert!(unpack(archive(outside.path(), name), to.path()).is_err(), "{name}");
            let _ = std::fs::remove_file(to.path().join("way"));
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(!to.path().parent().unwrap().join("file").exists());
        // A link that was here already is no way either.
        symlink(outside.path(), to.path().join("there")).unwrap();
        assert!(unpack(archive(Path::new("x"), "there/file"), to.path()).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        // Nothing gets rights by its mode.
        unpack(archive(Path::new("y"), "file"), &to.path().join(".")).unwrap();
        let mode = std::os::unix::fs::MetadataExt::mode(&to.path().join("file").metadata().unwrap());
        assert_eq!(mode & 0o7000, 0);
    }
}
