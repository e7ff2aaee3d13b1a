//! The mounts of a spec: made out here and attached inside, or made inside where they show the namespaces or belong to
//! the user namespace of their maker.

use std::{
    borrow::Cow,
    cell::Cell,
    ffi::OsStr,
    io::ErrorKind,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use cofferdam_sys::{
    cgroup::Cgroup,
    fd::{self, Scope},
    mount,
    userns::UserNamespace,
};
use cofferdam_types::{Error, Mount as RootMount, Result};
use oci_spec::runtime::{Mount, Spec};

use super::{
    ahead::Ahead,
    copyup,
    identity::c_string,
    plan,
    step::{Attributes, Make, Step, Target},
    user,
};
use crate::{CreateRequest, spec};

/// A path of the host; a relative one starts at the bundle.
pub(super) fn open_source(request: &CreateRequest<'_>, path: &Path) -> Result<OwnedFd> {
    let opened = if path.is_absolute() {
        fd::open_path(path)
    } else {
        fd::open(request.bundle, path, libc::O_PATH, 0, Scope::Beneath)
    };
    opened.map_err(|e| match e.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            Error::not_found("mount", path.display(), "does not exist on the host: create it first")
        }
        _ => Error::io("mount", path.display(), "opening the source", &e),
    })
}

/// What a mount is made for.
#[derive(Clone, Copy)]
pub(super) struct Wish<'a> {
    pub request: &'a CreateRequest<'a>,
    pub cgroup: &'a Cgroup,
    pub user: Option<&'a UserNamespace>,
    /// The root file system, detached.
    pub root: BorrowedFd<'a>,
    pub ahead: &'a Ahead,
}

/// The steps that make one mount of a spec; `late` ones come behind everything that makes files.
pub(super) fn mount(wish: &Wish<'_>, spec: &Mount, steps: &mut Vec<Step>, late: &mut Vec<Step>) -> Result<()> {
    let spec = &labelled(wish.request.spec, spec);
    let options = mount::Options::parse(spec.options().as_deref().unwrap_or_default())?;
    let kind = spec.typ().as_deref().unwrap_or("none");
    let context = |e: Error| e.context(format!("mount {}", spec.destination().display()));
    let mut target = plan::target(spec.destination(), Make::Directory)?;
    if options.remount {
        return remount(&options, &target, late).map_err(context);
    }
    if options.copy_symlink
        && let Some(link) = link(wish.request, spec)?
    {
        steps.push(link);
        return Ok(());
    }
    let map = mapping(wish, spec, &options).map_err(context)?;
    let fail = |e: std::io::Error| context(Error::io("mount", "", "binding it", &e));
    let bind = |source: BorrowedFd<'_>, recursive: bool| {
        if let Some((key, _)) = options.data.first() {
            let why = "neither a bind mount nor that of the container's own group has it: leave it out";
            return Err(context(Error::unimplemented("mount option", key, why)));
        }
        let mount = mount::clone_tree(source, recursive).map_err(fail)?;
        if let Some(map) = &map {
            map.apply(&mount).map_err(context)?;
        }
        mount::apply_options(&mount, &options).map_err(fail)?;
        Ok(mount)
    };
    if let Some(recursive) = options.bind.or_else(|| (kind == "bind").then_some(false)) {
        let missing = || Error::invalid("mount", spec.destination().display(), "a bind mount needs a source");
        let source = open_source(wish.request, spec.source().as_deref().ok_or_else(missing)?)?;
        if fd::file_type(&fd::stat(&source).map_err(fail)?) != libc::S_IFDIR {
            target.make = Make::File;
        }
        steps.push(Step::Attach { target, mount: bind(source.as_fd(), recursive)?, fresh: false });
        return Ok(());
    }
    match kind {
        "cgroup" => return cgroups(wish, &options, target, steps, late).map_err(context),
        "none" => {
            return Err(context(Error::invalid("mount", kind, "has neither a type nor the option bind or rbind")));
        }
        _ if options.copy_up => {
            if kind != "tmpfs" {
                return Err(context(Error::invalid("mount option", "tmpcopyup", "is for a tmpfs")));
            }
            let fail = |e: std::io::Error| context(Error::io("mount", "", "copying up", &e));
            let keep = |option: &&String| !matches!(option.as_str(), "tmpcopyup" | "ro");
            let words = spec.options().iter().flatten().filter(keep).cloned().collect();
            let made = RootMount { kind: kind.to_owned(), source: kind.to_owned(), options: words };
            let made = mount::detached(&made).map_err(context)?;
            let path = Path::new(OsStr::from_bytes(target.path.to_bytes()));
            // The root shows ids as they are out here already.
            let owner = wish.user.map_or((0, 0), UserNamespace::outer_root);
            copyup::copy(wish.root, path, made.as_fd(), owner).map_err(fail)?;
            if options.set & libc::MOUNT_ATTR_RDONLY != 0 {
                late.push(read_only_later(&target));
            }
            steps.push(Step::Attach { target, mount: made, fresh: false });
        }
        // A new mount would begin at the group of whoever makes it, which out here is the host's root.
        "cgroup2" => {
            let why = "this host has no v2 hierarchy: leave the mount out";
            let missing = || context(Error::unimplemented("mount", kind, why));
            let group = wish.cgroup.unified().ok_or_else(missing)?;
            steps.push(Step::Attach { target, mount: bind(group, false)?, fresh: false });
        }
        _ if INSIDE.contains(&kind) || (wish.user.is_some() && OWNED.contains(&kind)) => {
            if map.is_some() {
                let why = "the mount is made inside the container, where ids are its own already";
                return Err(context(Error::unimplemented("mount option", "idmap", why)));
            }
            target.no_symlinks |= matches!(kind, "proc" | "sysfs");
            // Later mounts and devices lie in it: closed once they are there.
            let closed = kind == "tmpfs" && options.set & libc::MOUNT_ATTR_RDONLY != 0;
            if closed {
                late.push(read_only_later(&target));
            }
            steps.push(inside(kind, &options, target, closed)?);
        }
        _ => {
            let source = spec.source().as_ref().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            let mut options = spec.options().clone().unwrap_or_default();
            if kind == "tmpfs" {
                // Later mounts and devices lie in it: closed once they are there.
                let parsed = options.iter().rev().find(|o| *o == "ro" || *o == "rw");
                if parsed.is_some_and(|o| o == "ro") {
                    options.retain(|o| o != "ro");
                    late.push(read_only_later(&target));
                }
            }
            options.retain(|option| !matches!(option.as_str(), "idmap" | "ridmap"));
            let mount = RootMount { kind: kind.to_owned(), source, options };
            let made = wish.ahead.mount(&mount).map_err(context)?;
            if let Some(map) = &map {
                map.apply(&made).map_err(context)?;
            }
            steps.push(Step::Attach { target, mount: made, fresh: kind == "tmpfs" && map.is_none() });
        }
    }
    Ok(())
}

/// What SELinux labels by a mount option: file systems that have no labels of their own. The kernel's own have them by its
/// policy.
fn takes_label(kind: &str, options: &[String]) -> bool {
    let bind = options.iter().any(|o| matches!(o.as_str(), "bind" | "rbind" | "remount") || o.starts_with("context="));
    !bind && !matches!(kind, "bind" | "none" | "cgroup" | "cgroup2") && !INSIDE.contains(&kind)
}

fn label(spec: &Spec) -> Option<String> {
    let label = spec.linux().as_ref()?.mount_label().as_deref().filter(|label| !label.is_empty())?;
    Some(format!("context={label}"))
}

/// A mount with the spec's `linux.mountLabel`.
fn labelled<'m>(spec: &Spec, mount: &'m Mount) -> Cow<'m, Mount> {
    let options = mount.options().as_deref().unwrap_or_default();
    match label(spec).filter(|_| takes_label(mount.typ().as_deref().unwrap_or("none"), options)) {
        None => Cow::Borrowed(mount),
        Some(label) => {
            let mut labelled = mount.clone();
            labelled.set_options(Some(options.iter().cloned().chain([label]).collect()));
            Cow::Owned(labelled)
        }
    }
}

/// The root file system with it.
pub(super) fn labelled_root<'m>(spec: &Spec, mount: &'m RootMount) -> Cow<'m, RootMount> {
    match label(spec).filter(|_| takes_label(&mount.kind, &mount.options)) {
        None => Cow::Borrowed(mount),
        Some(label) => {
            let options = mount.options.iter().cloned().chain([label]).collect();
            Cow::Owned(RootMount { options, ..mount.clone() })
        }
    }
}

/// Changes a mount that is there by then.
fn remount(options: &mount::Options, target: &Target, late: &mut Vec<Step>) -> Result<()> {
    if let Some((key, _)) = options.data.first() {
        let why = "can't be changed by a remount: give it where the file system is mounted";
        return Err(Error::unimplemented("mount option", key, why));
    }
    let copy = || Target { path: target.path.clone(), make: target.make, no_symlinks: target.no_symlinks };
    let propagation = options.propagation.unwrap_or(0);
    let changes = [
        (options.set, options.clear & !options.set, propagation & !libc::MS_REC, propagation & libc::MS_REC != 0),
        (options.recursive_set, options.recursive_clear & !options.recursive_set, 0, true),
    ];
    for (set, clear, propagation, recursive) in changes {
        // The recursion of a propagation would take the attributes along.
        let parts = if recursive {
            vec![(0, 0, propagation, true), (set, clear, 0, propagation == 0)]
        } else {
            vec![(set, clear, propagation, false)]
        };
        for (set, clear, propagation, recursive) in parts {
            if set | clear | propagation != 0 {
                let attributes = Attributes { set, clear, propagation, recursive };
                late.push(Step::Change { target: copy(), attributes });
            }
        }
    }
    Ok(())
}

/// The symlink that a mount's source is, as a step; `None` if it is none.
fn link(request: &CreateRequest<'_>, spec: &Mount) -> Result<Option<Step>> {
    let Some(source) = spec.source() else { return Ok(None) };
    let to = match std::fs::read_link(request.bundle_path.join(source)) {
        Ok(to) => to,
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => return Ok(None),
        Err(e) => return Err(Error::io("mount", source.display(), "reading the link", &e)),
    };
    let (Some(parent), Some(name)) = (spec.destination().parent(), spec.destination().file_name()) else {
        return Err(Error::invalid("mount", spec.destination().display(), "can't be a link"));
    };
    let directory = plan::target(parent, Make::Directory)?;
    let text = |text: &OsStr| c_string("mounts", &text.to_string_lossy());
    Ok(Some(Step::Symlink { directory, name: text(name)?, to: text(to.as_os_str())? }))
}

/// The ids that a mount is to show.
enum Mapping<'a> {
    Own(UserNamespace, bool),
    Container(&'a UserNamespace, bool),
}

impl Mapping<'_> {
    fn apply(&self, mount: &OwnedFd) -> Result<()> {
        let (namespace, recursive) = match self {
            Mapping::Own(namespace, recursive) => (namespace, *recursive),
            Mapping::Container(namespace, recursive) => (*namespace, *recursive),
        };
        mount::map_ids(mount, namespace, recursive).map_err(|e| mount::explain_map_ids("its source", &e))
    }
}

/// Those of a mount of its own, or with `idmap` alone those of the container's user namespace.
fn mapping<'a>(wish: &Wish<'a>, spec: &Mount, options: &mount::Options) -> Result<Option<Mapping<'a>>> {
    let (uids, gids) = (user::ranges(spec.uid_mappings()), user::ranges(spec.gid_mappings()));
    let recursive = options.map == Some(true);
    match (uids.is_empty(), gids.is_empty(), wish.user) {
        (true, true, _) if options.map.is_none() => Ok(None),
        (true, true, Some(user)) => Ok(Some(Mapping::Container(user, recursive))),
        (false, false, _) => Ok(Some(Mapping::Own(user::make(&uids, &gids)?, recursive))),
        _ => {
            let why = "needs uidMappings and gidMappings, or a user namespace whose ids it takes";
            Err(Error::invalid("mount option", "idmap", why))
        }
    }
}

/// What shows the namespaces of its maker.
const INSIDE: &[&str] = &["proc", "sysfs", "mqueue"];
/// What belongs to the user namespace of its maker.
const OWNED: &[&str] = &["tmpfs", "devpts"];

/// A mount that the container's first process makes itself. `open`: not read-only yet.
fn inside(kind: &str, options: &mount::Options, target: Target, open: bool) -> Result<Step> {
    let data = options.data.iter().map(|(key, value)| {
        let value = value.as_ref().map(|v| c_string("mounts", v)).transpose()?;
        Ok((c_string("mounts", key)?, value))
    });
    let read_only = if open { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let attributes = Attributes {
        set: (options.set | options.recursive_set) & !read_only,
        clear: 0,
        propagation: options.propagation.unwrap_or(0) & !libc::MS_REC,
        recursive: false,
    };
    let mut data = data.collect::<Result<Vec<_>>>()?;
    if INSIDE.contains(&kind) && attributes.set & libc::MOUNT_ATTR_RDONLY != 0 {
        // The file system too: a remount of the mount alone would not open it.
        data.push((c"ro".to_owned(), None));
    }
    Ok(Step::Mount { target, kind: c_string("mounts", kind)?, data, attributes, made: Cell::new(-1) })
}

fn read_only_later(target: &Target) -> Step {
    let target = Target { path: target.path.clone(), make: target.make, no_symlinks: target.no_symlinks };
    Step::Change { target, attributes: Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() } }
}

/// What the groups of v1 are mounted in.
fn above_hierarchies() -> RootMount {
    RootMount { kind: "tmpfs".into(), source: "tmpfs".into(), options: vec!["mode=755".into()] }
}

/// The file systems that begin empty, of a container that has no wishes.
pub(super) fn empty() -> Result<Vec<RootMount>> {
    let own = spec::mounts_of(&spec::Options::default())?.into_iter().filter_map(|mount| {
        let kind = mount.typ().as_deref().filter(|kind| OWNED.contains(kind))?.to_owned();
        let source = mount.source().as_ref()?.to_string_lossy().into_owned();
        Some(RootMount { kind, source, options: mount.options().clone().unwrap_or_default() })
    });
    Ok(own.chain([above_hierarchies()]).collect())
}

/// `/sys/fs/cgroup` as the host has it, but for each hierarchy the container's own group alone.
fn cgroups(
    wish: &Wish<'_>,
    options: &mount::Options,
    target: Target,
    steps: &mut Vec<Step>,
    late: &mut Vec<Step>,
) -> Result<()> {
    let cgroup = wish.cgroup;
    let fail = |e: std::io::Error| Error::io("cgroup", cgroup.path(), "binding it", &e);
    let bind = |dir| {
        let mount = mount::clone_tree(dir, false).map_err(fail)?;
        mount::set_attributes(&mount, options.set, options.clear, libc::MS_PRIVATE, false).map_err(fail)?;
        Ok::<_, Error>(mount)
    };
    let parts: Vec<_> = cgroup.parts().collect();
    if let [(hierarchy, dir)] = parts[..]
        && hierarchy.unified
    {
        steps.push(Step::Attach { target, mount: bind(dir)?, fresh: false });
        return Ok(());
    }
    let base = target.path.to_string_lossy().into_owned();
    if options.set & libc::MOUNT_ATTR_RDONLY != 0 {
        late.push(read_only_later(&target));
    }
    if wish.user.is_some() {
        let options = mount::Options { data: vec![("mode".into(), Some("755".into()))], ..options.clone() };
        steps.push(inside("tmpfs", &options, target, true)?);
    } else {
        let mount = wish.ahead.mount(&above_hierarchies())?;
        mount::set_attributes(&mount, options.set & !libc::MOUNT_ATTR_RDONLY, 0, 0, false).map_err(fail)?;
        steps.push(Step::Attach { target, mount, fresh: true });
    }
    for (hierarchy, dir) in parts {
        let name = hierarchy.root.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let place = |name: &str| plan::target(Path::new(&format!("{base}/{name}")), Make::Directory);
        steps.push(Step::Attach { target: place(&name)?, mount: bind(dir)?, fresh: false });
        if hierarchy.controllers.len() > 1 {
            for controller in hierarchy.controllers.iter().filter(|c| **c != name) {
                let directory = plan::target(Path::new(&base), Make::Directory)?;
                let (link, to) = (c_string("cgroup", controller)?, c_string("cgroup", &name)?);
                steps.push(Step::Symlink { directory, name: link, to });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_label_goes_to_what_has_none_of_its_own() {
        let spec = |label: &str| -> Spec {
            serde_json::from_value(json!({"ociVersion": "1.2.0", "linux": {"mountLabel": label}})).unwrap()
        };
        let of = |spec: &Spec, kind: &str, options: &[&str]| {
            let mount = json!({"destination": "/x", "type": kind, "options": options});
            labelled(spec, &serde_json::from_value(mount).unwrap()).options().clone().unwrap_or_default()
        };
        let spec_with = spec("system_u:object_r:container_file_t:s0:c1,c2");
        let option = "context=system_u:object_r:container_file_t:s0:c1,c2";
        assert_eq!(of(&spec_with, "tmpfs", &["nosuid"]), ["nosuid", option]);
        assert_eq!(of(&spec_with, "devpts", &[]), [option]);
        for (kind, options) in
            [("proc", &[][..]), ("sysfs", &[]), ("cgroup2", &[]), ("bind", &["rbind"]), ("tmpfs", &["context=mine"])]
        {
            assert_eq!(of(&spec_with, kind, options), options, "{kind}");
        }
        assert!(of(&spec(""), "tmpfs", &[]).is_empty());
        let root = |kind: &str| RootMount { kind: kind.into(), source: "x".into(), options: vec!["index=off".into()] };
        assert_eq!(labelled_root(&spec_with, &root("overlay")).options, ["index=off", option]);
        assert_eq!(labelled_root(&spec_with, &root("bind")).options, ["index=off"]);
        // It is one option, whatever is in it.
        assert_eq!(mount::Options::parse([option]).unwrap().data, [("context".into(), Some(option[8..].into()))]);
    }
}
