//! Layer archives: applying a tar to a directory, confined to its root.
//!
//! [`apply`] reads a layer (plain, gzip or zstd) once: one thread inflates, one hashes, the caller's parses the tar and
//! makes the files, and of many small ones another fills them. Every path is resolved beneath the directory descriptor that the caller gave, one name at a time
//! and never by the kernel through a symbolic link, so that no archive and no concurrent renamer can lead a write out.
//!
//! A layer is applied in one of two forms. *In place*, onto the tree of its parent, where a whiteout deletes. Or
//! *detached*, into an empty directory that will be one layer of an overlay mount, before its parent is even there:
//! what only the parent knows (the owner of a directory that the archive merely passes through, the content of a
//! hard link to a lower file, a directory that is a symbolic link below) is left to [`settle`].
//!
//! Nothing here waits for a sync: the caller does that once for many layers. After an error the tree is incomplete and belongs in
//! the bin.

mod apply;
mod at;
mod budget;
mod fill;
mod flush;
mod frames;
mod header;
mod merged;
mod pax;
mod put;
mod reader;
mod settle;
mod stream;
#[cfg(test)]
mod tests;
mod tree;

use std::path::PathBuf;

use cofferdam_types::{Digest, Error};

pub use apply::apply;
pub use budget::{Budget, Share};
pub use put::Put;
pub use settle::settle;
pub use stream::inflated;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Told by the first bytes; anything unknown is read as a plain tar.
    #[default]
    Sniff,
    /// Not at all.
    Plain,
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 8878, any number of frames.
    Zstd,
}

/// What an archive may cost. Whatever exceeds one of these is refused as `resource_exhausted`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Entries, counting the directories that are made because an entry lies in them.
    pub max_entries: u64,
    /// Bytes of the uncompressed stream.
    pub max_bytes: u64,
    /// Names on one path.
    pub max_depth: usize,
    /// Bytes of one path.
    pub max_path: usize,
    /// Bytes of one extended attribute.
    pub max_xattr: usize,
    /// How many times larger than its compressed form a stream may be, once it has given more than `ratio_free` bytes.
    pub max_ratio: u64,
    /// Bytes that are inflated before `max_ratio` is looked at.
    pub ratio_free: u64,
    /// Bytes of paths remembered until the end of the archive (directories, whiteouts, links into lower layers).
    pub max_names: usize,
    /// What a zstd frame may need to be read.
    pub max_window: u64,
    /// Which that is taken from.
    pub budget: Option<Budget>,
}

impl Default for Limits {
    /// Those that the process was told.
    fn default() -> Limits {
        let chosen = cofferdam_types::Limits::get();
        let most = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Limits {
            max_entries: chosen.entries,
            max_bytes: chosen.inflated,
            max_depth: most(chosen.levels),
            max_path: most(chosen.path),
            max_xattr: 64 << 10,
            max_ratio: chosen.ratio,
            ratio_free: 256 << 20,
            max_names: most(chosen.names),
            max_window: 32 << 20,
            budget: None,
        }
    }
}

/// How to apply a layer.
#[derive(Clone, Debug)]
pub struct ApplyOptions {
    /// How it is compressed.
    pub compression: Compression,
    /// Write whiteouts as overlayfs wants them instead of deleting in place. The directory must be empty.
    pub overlay: bool,
    /// The parent layers are not there: hard links to files that are not in the archive are recorded for [`settle`].
    /// Needs `overlay`.
    pub detached: bool,
    /// Make device nodes; otherwise an archive that has one is refused.
    pub devices: bool,
    /// Begin to write to the disk before the end, in steps: for a caller who syncs it all then.
    pub flush: bool,
    /// Not a layer but files that are put into a tree. Not together with `overlay`.
    pub put: Option<Put>,
    /// What it may cost.
    pub limits: Limits,
}

impl Default for ApplyOptions {
    /// In place, with devices.
    fn default() -> ApplyOptions {
        ApplyOptions {
            compression: Compression::Sniff,
            overlay: false,
            detached: false,
            devices: true,
            flush: false,
            put: None,
            limits: Limits::default(),
        }
    }
}

impl ApplyOptions {
    /// For an empty directory that will be one layer of an overlay mount.
    pub fn detached() -> ApplyOptions {
        ApplyOptions { overlay: true, detached: true, ..ApplyOptions::default() }
    }
}

/// A hard link whose target is in a lower layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowerLink {
    /// Where the link belongs, in this layer.
    pub path: PathBuf,
    /// What it links to, in the layers below.
    pub target: PathBuf,
    /// The number of its entry in the archive.
    pub position: u64,
}

/// What [`apply`] did. All paths are relative to the root and have no symbolic link on the way.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The sha256 of the uncompressed stream, to its very end.
    pub diff_id: Digest,
    /// Bytes of the uncompressed stream.
    pub size: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Extended attributes that an image may not set, or that the filesystem can't hold.
    pub dropped_xattrs: u64,
    /// Directories that were made (0755, root) because an entry lies in them, parents first.
    pub implicit_parents: Vec<PathBuf>,
    /// Hard links for [`settle`], in the order of the archive.
    pub lower_links: Vec<LowerLink>,
    /// Whiteouts written in overlay form.
    pub whiteouts: Vec<PathBuf>,
    /// Directories whose own entry came behind entries in them.
    pub late_directories: Vec<PathBuf>,
    /// Why the archive can't be applied detached, though it was read to its end: [`settle`] says it.
    pub undecided: Option<Error>,
}
