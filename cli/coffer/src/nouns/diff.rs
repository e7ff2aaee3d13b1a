//! What differs between file systems: as a list, as a layer; and what layers make.

use std::{
    fs::File,
    io::IsTerminal as _,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use cofferdam_client::{Change, ChangeKind, Cursor};
use serde::Serialize;

use super::snapshot::{LABEL, SNAPSHOTTER, labels, snapshots};
use crate::{
    args::{Command, Positional, Times, switch, value},
    cx::{Cx, line},
    failure::Failure,
    target::{Old, Target},
};

/// `coffer diff`.
pub static DIFF: Command = Command {
    path: &["diff"],
    about: "list what was changed in a container's files, or between snapshots",
    positionals: &[
        Positional { name: "CONTAINER", times: Times::Once },
        Positional { name: "BASE", times: Times::Maybe },
    ],
    flags: &[
        switch(
            "snapshot",
            None,
            "CONTAINER is the key of a snapshot: compare it with the snapshot BASE, or its parent",
        ),
        SNAPSHOTTER,
    ],
    notes: "A is what is new, C what is another than before, or has something in it that is, D what is gone. What is mounted\n\
            in a container isn't looked at. In a path what isn't printable is written as \\n, \\t, \\\\ or \\xHH.\n\
            -o json: one array, with kind and path",
    failure: 1,
    action: |cx| Box::pin(diff(cx)),
};

/// A change, for programs.
#[derive(Serialize)]
struct Listed {
    kind: ChangeKind,
    path: String,
}

async fn diff(cx: Cx) -> Result<i32, Failure> {
    let mut changes = match cx.args.has("snapshot") {
        true => snapshots(&cx).await?.get(cx.args.at(0)).changes(cx.args.at(1)),
        false if cx.args.at(1).is_empty() && !cx.args.has("snapshotter") => {
            cx.namespace().await?.containers().get(cx.args.at(0)).changes()
        }
        false => return Err(Failure::usage("diff: BASE and --snapshotter are for snapshots: add --snapshot")),
    };
    show(&cx, &mut changes).await?;
    Ok(0)
}

async fn show(cx: &Cx, changes: &mut Cursor<Change>) -> Result<(), Failure> {
    let mut all = Vec::new();
    while let Some(Change { kind, path }) = changes.next().await? {
        let path = printable(&path);
        if cx.json {
            all.push(Listed { kind, path });
            continue;
        }
        let letter = match kind {
            ChangeKind::Added => 'A',
            ChangeKind::Changed => 'C',
            ChangeKind::Deleted => 'D',
        };
        line(&format!("{letter} {path}"))?;
    }
    if cx.json { cx.document(&all) } else { Ok(()) }
}

/// A path as one line of plain text, from which its bytes can be told.
fn printable(path: &[u8]) -> String {
    let mut text = String::new();
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                c if c.is_control() => {
                    let mut bytes = [0; 4];
                    c.encode_utf8(&mut bytes).bytes().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
                }
                c => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

/// `coffer snapshot diff`.
pub static SNAPSHOT_DIFF: Command = Command {
    path: &["snapshot", "diff"],
    about: "make a layer of what was changed in a snapshot",
    positionals: &[Positional { name: "KEY", times: Times::Once }, Positional { name: "BASE", times: Times::Maybe }],
    flags: &[
        SNAPSHOTTER,
        value(
            "file",
            Some('f'),
            "PATH",
            "write it there, over what file is there, and store nothing; - is standard output",
        ),
        value("compression", Some('c'), "NAME", "gzip (the default), zstd or none"),
        value("media-type", None, "TYPE", "of the layer, instead of --compression, which it says too"),
        LABEL,
    ],
    notes: "BASE is another snapshot; its parent, where none is given. Without --file the layer becomes a blob of the content\n\
            store, labelled with the digest of its tar and with each --label, and its digest is printed. \"coffer diff\n\
            --snapshot\" lists the same. -o json: media type, digest, size and diff id",
    failure: 1,
    action: |cx| Box::pin(snapshot_diff(cx)),
};

fn media_type(cx: &Cx) -> Result<String, Failure> {
    let suffix = match cx.args.text("compression").as_str() {
        "" if cx.args.value("media-type") == Some("") => {
            return Err(Failure::usage("snapshot diff: --media-type needs a type, such as application/x-tar+zstd"));
        }
        "" if cx.args.has("media-type") => return Ok(cx.args.text("media-type")),
        _ if cx.args.has("media-type") => {
            return Err(Failure::usage(
                "snapshot diff: --media-type says how it is compressed: leave --compression out",
            ));
        }
        "" | "gzip" => "+gzip",
        "zstd" => "+zstd",
        "none" => "",
        other => {
            return Err(Failure::usage(format!("snapshot diff: --compression {other:?}: give gzip, zstd or none")));
        }
    };
    Ok(format!("{}{suffix}", cofferdam_types::media::OCI_LAYER))
}

async fn snapshot_diff(cx: Cx) -> Result<i32, Failure> {
    let (media_type, labels, base) = (media_type(&cx)?, labels(&cx)?, cx.args.at(1));
    let snapshot = snapshots(&cx).await?.get(cx.args.at(0));
    let Some(path) = cx.args.value("file") else {
        let layer = snapshot.diff(base, &media_type, &labels).await?;
        if cx.json {
            cx.document(&layer)?
        } else {
            line(&layer.descriptor.digest.to_string())?
        }
        return Ok(0);
    };
    if !labels.is_empty() {
        return Err(Failure::usage("snapshot diff: --label is for what is stored: leave it or --file out"));
    }
    if path != "-" {
        let target = Target::open(path, Old::Goes)?;
        let layer = snapshot.diff_fd(base, &media_type, target.fd()?).await?;
        target.done()?;
        if cx.json {
            cx.document(&layer)?
        } else {
            line(&layer.descriptor.digest.to_string())?
        }
        return Ok(0);
    }
    let out = std::io::stdout();
    if out.is_terminal() {
        return Err(Failure::usage("snapshot diff: a layer is nothing for a terminal: redirect it, or give a path"));
    }
    let fd = out.as_fd().try_clone_to_owned().map_err(|e| Failure::io("standard output", e))?;
    snapshot.diff_fd(base, &media_type, fd).await?;
    Ok(0)
}

/// `coffer snapshot unpack`.
pub static SNAPSHOT_UNPACK: Command = Command {
    path: &["snapshot", "unpack"],
    about: "unpack an image that is here",
    positionals: &[Positional { name: "IMAGE", times: Times::Once }],
    flags: &[
        SNAPSHOTTER,
        value("platform", None, "OS/ARCH[/VARIANT]", "of an image for several; the host's otherwise"),
    ],
    notes: "Prints the key of the snapshot that has all of it, on which \"coffer snapshot prepare\" and \"view\" can lie. What is\n\
            unpacked already stays as it is.",
    failure: 1,
    action: |cx| Box::pin(unpack(cx)),
};

async fn unpack(cx: Cx) -> Result<i32, Failure> {
    let image = cx.namespace().await?.images().get(cx.args.at(0));
    let chain = image.unpack(&cx.args.text("platform"), &cx.args.text("snapshotter")).await?;
    cx.names([&*chain])?;
    Ok(0)
}

/// `coffer snapshot mount`.
pub static SNAPSHOT_MOUNT: Command = Command {
    path: &["snapshot", "mount"],
    about: "mount a snapshot here",
    positionals: &[Positional { name: "KEY", times: Times::Once }, Positional { name: "TARGET", times: Times::Once }],
    flags: &[SNAPSHOTTER],
    notes: "The daemon makes the mount, and coffer attaches it to the directory TARGET, in the mount namespace that it runs in:\n\
            that takes CAP_SYS_ADMIN there. Devices and set-user-id bits in it have no effect. End it by \"umount TARGET\".\n\
            \"coffer snapshot mounts\" has the host's own words for it",
    failure: 1,
    action: |cx| Box::pin(mount(cx)),
};

async fn mount(cx: Cx) -> Result<i32, Failure> {
    let target = cx.args.at(1);
    let place = File::open(target).map_err(|e| Failure::io(target, e))?;
    let mount = snapshots(&cx).await?.get(cx.args.at(0)).mount_fd().await?;
    attach(&mount, &place).map_err(|e| Failure::io(target, e))?;
    Ok(0)
}

/// move_mount(2) of a mount that is attached nowhere onto a directory.
fn attach(mount: &OwnedFd, place: &File) -> std::io::Result<()> {
    let (mount, place, here) = (mount.as_raw_fd(), place.as_raw_fd(), c"".as_ptr());
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: the descriptors are open and the paths end in NUL.
    match unsafe { libc::syscall(libc::SYS_move_mount, mount, here, place, here, flags) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_line_that_says_every_byte() {
        assert_eq!(printable("/a/é b".as_bytes()), "/a/é b");
        assert_eq!(printable(b"/\xff\xfe/new\nline\\n\x1b[2J\t"), "/\\xff\\xfe/new\\nline\\\\n\\x1b[2J\\t");
        assert_eq!(printable("/\u{85}".as_bytes()), "/\\xc2\\x85");
    }
}
