//! A stack of layers in overlay form, looked at as the overlay mount would show it.
//!
//! Layers come from images: no name is followed by the kernel, links are expanded here and never leave the stack.

use std::{
    collections::BTreeSet,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
};

use cofferdam_types::{Error, Result};
use nix::{
    errno::Errno,
    fcntl::readlinkat,
    sys::stat::{SFlag, fstat},
};

use crate::{
    at,
    at::fail,
    tree::{clean, join},
};

const LINKS: usize = 255;
const STEPS: usize = 16_384;

/// One directory as the mount would show it: the directories that are merged, nearest first.
pub(crate) type Node = Vec<Part>;

pub(crate) struct Part {
    /// 0 is the layer that is being settled.
    pub(crate) layer: usize,
    /// Readable.
    pub(crate) fd: OwnedFd,
}

pub(crate) enum Step {
    Missing,
    /// The merged directory, and which of its parts its owner and mode come from where the first is only implicit.
    Dir {
        node: Node,
        lower: Option<OwnedFd>,
    },
    Link {
        target: Vec<u8>,
    },
    /// Anything else.
    Other,
}

/// What depends on the order of the archive, or is an error in any.
pub(crate) fn undecided(path: &[u8], why: &str) -> Error {
    let path = String::from_utf8_lossy(path);
    Error::failed_precondition("layer", &path, format!("{path} {why}: apply the layer in place on its parent"))
}

pub(crate) struct Stack<'a> {
    /// The layer itself, then its parents, nearest first.
    pub(crate) layers: &'a [BorrowedFd<'a>],
}

impl Stack<'_> {
    /// The root, of the layers from `first` on.
    pub(crate) fn root(&self, first: usize) -> Result<Node> {
        let mut node = Node::new();
        for (layer, root) in self.layers.iter().enumerate().skip(first) {
            let fd = at::open_dir(root, b".").map_err(|errno| fail(b"", "opening a layer", errno))?;
            let opaque = at::is_opaque(&fd).map_err(|errno| fail(b"", "opening a layer", errno))?;
            node.push(Part { layer, fd });
            if opaque {
                break;
            }
        }
        Ok(node)
    }

    /// What `name` is in a directory. Where `soft`, a directory of the layer itself is only there because something
    /// lies in it, and what it stands for is decided below it.
    pub(crate) fn step(&self, node: &[Part], name: &[u8], soft: bool) -> Result<Step> {
        let problem = |errno| fail(name, "looking into a layer", errno);
        let mut merged = Node::new();
        let (mut lower, mut own_only) = (None, false);
        for Part { layer, fd } in node {
            let found = match at::open_path(fd, name) {
                Ok(found) => found,
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(problem(errno)),
            };
            let stat = fstat(&found).map_err(problem)?;
            let undecided = soft && merged.iter().all(|part| part.layer == 0);
            if at::is_whiteout(&stat) {
                break;
            }
            if !at::is_dir(&stat) {
                if !merged.is_empty() && !undecided || lower.is_some() {
                    break;
                }
                if at::kind(&stat) != SFlag::S_IFLNK {
                    return Ok(Step::Other);
                }
                let target = readlinkat(&found, "").map_err(problem)?;
                return Ok(Step::Link { target: target.into_vec() });
            }
            let dir = at::open_dir(fd, name).map_err(problem)?;
            let opaque = at::is_opaque(&dir).map_err(problem)?;
            let own = *layer == 0 && soft;
            if !own && lower.is_none() {
                lower =
                    Some(dir.try_clone().map_err(|error| problem(Errno::from_raw(error.raw_os_error().unwrap_or(0))))?);
            }
            if !own_only {
                merged.push(Part { layer: *layer, fd: dir });
            }
            if own && opaque {
                own_only = true;
            } else if opaque || own_only {
                break;
            }
        }
        Ok(if merged.is_empty() { Step::Missing } else { Step::Dir { node: merged, lower } })
    }

    /// The directory at a path without links; an empty node where it is missing.
    pub(crate) fn node(&self, path: &[u8], first: usize, soft: &BTreeSet<Vec<u8>>) -> Result<Node> {
        let mut node = self.root(first)?;
        let mut real = Vec::new();
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            real = join(&real, name);
            node = match self.step(&node, name, soft.contains(&real))? {
                Step::Dir { node, .. } => node,
                _ => return Ok(Node::new()),
            };
        }
        Ok(node)
    }

    /// Where `target`, met in the directory `from`, leads: a path without links. What is missing is kept as it is.
    pub(crate) fn resolve(
        &self,
        from: &[u8],
        target: &[u8],
        first: usize,
        soft: &BTreeSet<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        let mut nodes: Vec<Node> = Vec::new();
        let mut real: Vec<Vec<u8>> = Vec::new();
        let mut todo: Vec<Vec<u8>> = target.rsplit(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        if !target.starts_with(b"/") {
            todo.extend(from.rsplit(|b| *b == b'/').map(<[u8]>::to_vec));
        }
        let root = self.root(first)?;
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = todo.pop() {
            steps += 1;
            if steps > STEPS || links > LINKS || real.len() > 512 {
                return Err(undecided(target, "is a link of a lower layer that leads nowhere"));
            }
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    nodes.pop();
                    real.pop();
                    continue;
                }
                _ => {}
            }
            let path = join(&real.join(&b'/'), &name);
            match self.step(nodes.last().unwrap_or(&root), &name, soft.contains(&path))? {
                Step::Dir { node, .. } => {
                    nodes.push(node);
                    real.push(name);
                }
                Step::Missing => {
                    nodes.push(Node::new());
                    real.push(name);
                }
                Step::Link { target } => {
                    links += 1;
                    if target.starts_with(b"/") {
                        nodes.clear();
                        real.clear();
                    }
                    todo.extend(target.rsplit(|b| *b == b'/').map(<[u8]>::to_vec));
                }
                Step::Other => return Err(undecided(&path, "is a file in a lower layer and has entries in this one")),
            }
        }
        Ok(clean(&real.join(&b'/')))
    }
}
