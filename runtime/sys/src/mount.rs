//! Mounts: option strings, and the descriptor-based mount calls (fsopen(2), open_tree(2), mount_setattr(2) …).
//!
//! What these functions make is detached: nobody's mount table shows it until somebody attaches it, and it vanishes
//! with its last descriptor. So a container's mounts can be made, with good errors, before the container exists.

use std::{
    ffi::CString,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use cofferdam_types::{Error, Mount, Result};

use crate::{c_string, check, process, userns::UserNamespace};

/// Option strings, told apart by what they act on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `MOUNT_ATTR_…` to set on the mount.
    pub set: u64,
    /// `MOUNT_ATTR_…` to clear, before those are set.
    pub clear: u64,
    /// The same for the mount and all below it (`rro` …).
    pub recursive_set: u64,
    /// The same for the mount and all below it.
    pub recursive_clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, with `MS_REC` where it was asked for.
    pub propagation: Option<u64>,
    /// A bind mount, and whether of everything below as well.
    pub bind: Option<bool>,
    /// Whether a mount that is there is to be changed.
    pub remount: bool,
    /// Whether ids are to be mapped, and of the mounts below as well.
    pub map: Option<bool>,
    /// Whether a tmpfs begins with what was in its place.
    pub copy_up: bool,
    /// Whether a source that is a symlink is to be copied as one.
    pub copy_symlink: bool,
    /// What the file system itself is to read: flags and `key=value`.
    pub data: Vec<(String, Option<String>)>,
}

/// (name, to set, to clear); an access-time mode clears the others.
const ATTRIBUTES: &[(&str, u64, u64)] = &[
    ("ro", libc::MOUNT_ATTR_RDONLY, 0),
    ("rw", 0, libc::MOUNT_ATTR_RDONLY),
    ("nosuid", libc::MOUNT_ATTR_NOSUID, 0),
    ("suid", 0, libc::MOUNT_ATTR_NOSUID),
    ("nodev", libc::MOUNT_ATTR_NODEV, 0),
    ("dev", 0, libc::MOUNT_ATTR_NODEV),
    ("noexec", libc::MOUNT_ATTR_NOEXEC, 0),
    ("exec", 0, libc::MOUNT_ATTR_NOEXEC),
    ("noatime", libc::MOUNT_ATTR_NOATIME, libc::MOUNT_ATTR__ATIME),
    ("atime", libc::MOUNT_ATTR_RELATIME, libc::MOUNT_ATTR__ATIME),
    ("relatime", libc::MOUNT_ATTR_RELATIME, libc::MOUNT_ATTR__ATIME),
    ("norelatime", libc::MOUNT_ATTR_STRICTATIME, libc::MOUNT_ATTR__ATIME),
    ("strictatime", libc::MOUNT_ATTR_STRICTATIME, libc::MOUNT_ATTR__ATIME),
    ("nostrictatime", libc::MOUNT_ATTR_RELATIME, libc::MOUNT_ATTR__ATIME),
    ("nodiratime", libc::MOUNT_ATTR_NODIRATIME, 0),
    ("diratime", 0, libc::MOUNT_ATTR_NODIRATIME),
    ("nosymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, 0),
    ("symfollow", 0, libc::MOUNT_ATTR_NOSYMFOLLOW),
];

/// Words that only repeat a default.
const NOTHING: &[&str] = &["defaults", "loud", ""];

impl Options {
    /// Reads option strings in order; a later one overrides an earlier one.
    pub fn parse<S: AsRef<str>>(options: impl IntoIterator<Item = S>) -> Result<Options> {
        let mut parsed = Options::default();
        for option in options {
            parsed.add(option.as_ref())?;
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) -> Result<()> {
        if let Some((_, set, clear)) = ATTRIBUTES.iter().find(|(name, ..)| *name == option) {
            self.clear |= clear;
            self.set = self.set & !clear | set;
            return Ok(());
        }
        if let Some((_, set, clear)) = ATTRIBUTES.iter().find(|(name, ..)| option.strip_prefix('r') == Some(name)) {
            self.recursive_clear |= clear;
            self.recursive_set = self.recursive_set & !clear | set;
            return Ok(());
        }
        match option {
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "private" => self.propagation = Some(libc::MS_PRIVATE),
            "rprivate" => self.propagation = Some(libc::MS_PRIVATE | libc::MS_REC),
            "slave" => self.propagation = Some(libc::MS_SLAVE),
            "rslave" => self.propagation = Some(libc::MS_SLAVE | libc::MS_REC),
            "shared" => self.propagation = Some(libc::MS_SHARED),
            "rshared" => self.propagation = Some(libc::MS_SHARED | libc::MS_REC),
            "unbindable" => self.propagation = Some(libc::MS_UNBINDABLE),
            "runbindable" => self.propagation = Some(libc::MS_UNBINDABLE | libc::MS_REC),
            "remount" => self.remount = true,
            "idmap" => self.map = Some(self.map.unwrap_or(false)),
            "ridmap" => self.map = Some(true),
            "tmpcopyup" => self.copy_up = true,
            "copy-symlink" => self.copy_symlink = true,
            _ if option.contains('\0') => {
                return Err(Error::invalid("mount option", option.escape_default(), "holds a NUL byte"));
            }
            _ if NOTHING.contains(&option) => {}
            _ => self.data.push(match option.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (option.to_owned(), None),
            }),
        }
        Ok(())
    }
}

/// A file system being configured, before it is a mount.
#[derive(Debug)]
pub struct Filesystem {
    fd: OwnedFd,
    kind: String,
}

impl Filesystem {
    /// Begins with one of type `kind`.
    pub fn open(kind: &str) -> Result<Filesystem> {
        let name = c_string(kind.as_bytes()).map_err(|e| Error::io("mount", kind, "its type", &e))?;
        // SAFETY: the pointer is valid for the call; a good result is a fresh descriptor.
        let fd =
            check(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), libc::FSOPEN_CLOEXEC) }).map_err(|e| {
                if e.raw_os_error() == Some(libc::ENODEV) {
                    return Error::unimplemented("mount", kind, "this kernel has no such file system");
                }
                Error::io("mount", kind, "fsopen", &e)
            })?;
        // SAFETY: see above.
        Ok(Filesystem { fd: unsafe { OwnedFd::from_raw_fd(fd as RawFd) }, kind: kind.to_owned() })
    }

    /// Sets `key` to a string (of at most 255 bytes: the kernel's limit), or as a flag.
    pub fn set(&self, key: &str, value: Option<&str>) -> Result<()> {
        self.try_set(key, value).map_err(|e| match value {
            Some(value) => self.explain(&format!("option {key}={value}"), &e),
            None => self.explain(&format!("option {key}"), &e),
        })
    }

    fn try_set(&self, key: &str, value: Option<&str>) -> io::Result<()> {
        let command = if value.is_some() { libc::FSCONFIG_SET_STRING } else { libc::FSCONFIG_SET_FLAG };
        self.config(command, Some(key), value)
    }

    fn config(&self, command: u32, key: Option<&str>, value: Option<&str>) -> io::Result<()> {
        let c = |text: Option<&str>| text.map(|t| c_string(t.as_bytes())).transpose();
        let (key, value) = (c(key)?, c(value)?);
        let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |t| t.as_ptr());
        let (fd, key, value) = (self.fd.as_raw_fd(), pointer(&key), pointer(&value));
        // SAFETY: the pointers are valid for the call, or null where the command takes none.
        check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, command, key, value, 0) }).map(drop)
    }

    /// Sets `key` to what a descriptor stands for.
    fn set_fd(&self, key: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        let key = c_string(key.as_bytes())?;
        let (fs, command, none) = (self.fd.as_raw_fd(), libc::FSCONFIG_SET_FD, std::ptr::null::<u8>());
        // SAFETY: the pointer is valid for the call.
        check(unsafe { libc::syscall(libc::SYS_fsconfig, fs, command, key.as_ptr(), none, fd.as_raw_fd()) }).map(drop)
    }

    /// Makes the mount, detached.
    pub fn mount(self, attributes: u64) -> Result<OwnedFd> {
        self.mount_as(attributes, None)
    }

    /// The same, as this user and group to the file systems below, where it isn't ourselves.
    fn mount_as(self, attributes: u64, ids: Option<(u32, u32)>) -> Result<OwnedFd> {
        let create = || self.config(libc::FSCONFIG_CMD_CREATE, None, None);
        let created = match ids {
            Some((uid, gid)) => process::with_file_ids(uid, gid, create).and_then(|result| result),
            None => create(),
        };
        created.map_err(|e| self.explain("creating the file system", &e))?;
        // SAFETY: no memory is involved; a good result is a fresh descriptor.
        let fd = check(unsafe {
            libc::syscall(libc::SYS_fsmount, self.fd.as_raw_fd(), libc::FSMOUNT_CLOEXEC, attributes as u32)
        })
        .map_err(|e| self.explain("fsmount", &e))?;
        // SAFETY: see above.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    }

    /// The kernel leaves sentences on the descriptor that say more than the errno.
    fn explain(&self, what: &str, error: &io::Error) -> Error {
        let mut file = std::fs::File::from(match self.fd.try_clone() {
            Ok(fd) => fd,
            Err(_) => return Error::io("mount", &self.kind, what, error),
        });
        let mut said = Vec::new();
        let mut line = [0u8; 1024];
        while let Ok(length @ 1..) = file.read(&mut line) {
            let text = String::from_utf8_lossy(&line[..length]);
            // In front of each stands how grave it is.
            let sentence = ["e ", "w ", "i "].iter().find_map(|grave| text.strip_prefix(grave)).unwrap_or(&text);
            said.push(sentence.trim().to_owned());
            if said.len() >= 8 {
                break;
            }
        }
        let what = if said.is_empty() { what.to_owned() } else { format!("{what}: {}", said.join("; ")) };
        match error.raw_os_error() {
            // An option, or where it leads.
            Some(libc::EINVAL | libc::ERANGE | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG) => {
                Error::invalid("mount", &self.kind, format!("{what}: {error}"))
            }
            Some(libc::ENOTBLK) => {
                Error::failed_precondition("mount", &self.kind, format!("{what}: its source: {error}"))
            }
            _ => Error::io("mount", &self.kind, what, error),
        }
    }
}

/// A detached copy of the mount that `path` is on, starting there; `recursive`: with what is mounted below.
pub fn clone_tree(path: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC
        | libc::AT_EMPTY_PATH as u32
        | if recursive { libc::AT_RECURSIVE as u32 } else { 0 };
    // SAFETY: the pointer is valid for the call; a good result is a fresh descriptor.
    unsafe {
        let fd = libc::syscall(libc::SYS_open_tree, path.as_fd().as_raw_fd(), c"".as_ptr(), flags);
        Ok(OwnedFd::from_raw_fd(check(fd)? as RawFd))
    }
}

/// Sets and clears `MOUNT_ATTR_…` and sets the propagation (0: leave) of the mount that `fd` is the root of.
pub fn set_attributes(fd: impl AsFd, set: u64, clear: u64, propagation: u64, recursive: bool) -> io::Result<()> {
    if set == 0 && clear == 0 && propagation == 0 {
        return Ok(());
    }
    let attr = libc::mount_attr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: the pointers are valid for the call and the size is that of the struct.
    check(unsafe { libc::syscall(libc::SYS_mount_setattr, fd.as_fd().as_raw_fd(), c"".as_ptr(), flags, &attr, size) })
        .map(drop)
}

/// Has the mount that `fd` is the root of (`recursive`: and those below) show files as belonging to whom they belong to
/// inside `namespace`: what is 0 on disk is the namespace's root. Possible once per mount, and before it is attached.
pub fn map_ids(fd: impl AsFd, namespace: impl AsFd, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_fd().as_raw_fd() as u64,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: the pointers are valid for the call and the size is that of the struct.
    check(unsafe { libc::syscall(libc::SYS_mount_setattr, fd.as_fd().as_raw_fd(), c"".as_ptr(), flags, &attr, size) })
        .map(drop)
}

/// What [`map_ids`] may answer, as a sentence.
pub fn explain_map_ids(what: impl std::fmt::Display, error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EINVAL) => Error::unimplemented(
            "mount",
            what,
            "is on a file system whose ids can't be mapped (ext4, xfs, btrfs and tmpfs can): use another one",
        ),
        _ => Error::io("mount", what, "mapping its ids", error),
    }
}

/// Applies everything of `options` that acts on a mount; without a propagation of its own the copy is made private, so
/// that nothing mounted in it or in its source reaches the other.
pub fn apply_options(fd: impl AsFd, options: &Options) -> io::Result<()> {
    let propagation = options.propagation.unwrap_or(libc::MS_PRIVATE | libc::MS_REC);
    let recursive = propagation & libc::MS_REC != 0;
    set_attributes(&fd, 0, 0, propagation & !libc::MS_REC, recursive)?;
    set_attributes(&fd, options.set, options.clear, 0, false)?;
    set_attributes(&fd, options.recursive_set, options.recursive_clear, 0, true)
}

/// Attaches a detached mount at a path below another one that is still detached (Linux 6.15). A link on the way would be
/// followed: it is for a file system in which there is none.
pub fn attach_in(mount: impl AsFd, above: impl AsFd, path: &Path) -> io::Result<()> {
    let path = c_string(path.as_os_str().as_bytes())?;
    let (mount, above) = (mount.as_fd().as_raw_fd(), above.as_fd().as_raw_fd());
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH;
    // SAFETY: the pointers are valid for the call.
    check(unsafe { libc::syscall(libc::SYS_move_mount, mount, c"".as_ptr(), above, path.as_ptr(), flags) }).map(drop)
}

/// Makes `mount` detached: an overlay, a bind, or any other file system by its type.
pub fn detached(mount: &Mount) -> Result<OwnedFd> {
    detached_in(mount, None)
}

/// The same with the ids of a user namespace, see [`map_ids`].
pub fn detached_in(mount: &Mount, namespace: Option<&UserNamespace>) -> Result<OwnedFd> {
    let options = Options::parse(&mount.options)?;
    let foreign = [
        ("remount", options.remount),
        ("idmap", options.map.is_some()),
        ("tmpcopyup", options.copy_up),
        ("copy-symlink", options.copy_symlink),
    ];
    if let Some((option, _)) = foreign.iter().find(|(_, set)| *set) {
        return Err(Error::invalid("mount option", option, "doesn't go with this mount: leave it out"));
    }
    let fail = |what: &str, e: &io::Error| Error::io("mount", &mount.source, what, e);
    if let Some(recursive) = options.bind.or_else(|| (mount.kind == "bind").then_some(false)) {
        if let Some((key, _)) = options.data.first() {
            return Err(Error::invalid("mount option", key, "a bind mount has no options of a file system"));
        }
        let source = crate::fd::open_path(mount.source.as_ref()).map_err(|e| fail("opening the source", &e))?;
        let fd = clone_tree(source, recursive).map_err(|e| fail("open_tree", &e))?;
        if let Some(namespace) = namespace {
            map_ids(&fd, namespace, recursive).map_err(|e| explain_map_ids(&mount.source, &e))?;
        }
        apply_options(&fd, &options).map_err(|e| fail("mount_setattr", &e))?;
        return Ok(fd);
    }
    let fs = Filesystem::open(&mount.kind)?;
    if !mount.source.is_empty() {
        fs.set("source", Some(&mount.source))?;
    }
    let overlay = mount.kind == "overlay";
    let layers = match namespace.filter(|_| overlay) {
        Some(namespace) => mapped_layers(&options.data, namespace.as_fd())?,
        None => Layers::default(),
    };
    for (key, value) in &options.data {
        match value {
            Some(_) if !layers.named.is_empty() && LAYERS.contains(&key.as_str()) => {}
            Some(layers) if overlay && key == "lowerdir" => lower_directories(&fs, layers)?,
            value => fs.set(key, value.as_deref())?,
        }
    }
    for (key, layer) in &layers.named {
        fs.set_fd(key, layer.as_fd()).map_err(|e| match e.raw_os_error() {
            Some(libc::EINVAL) => no_mapped_layers(),
            _ => fs.explain(&format!("a layer with mapped ids as {key}"), &e),
        })?;
    }
    // What the overlay makes for itself must have an owner whom the namespace knows.
    let ids = namespace.filter(|_| overlay).map(UserNamespace::outer_root);
    let fd = fs.mount_as(options.set, ids)?;
    if let Some(namespace) = namespace.filter(|_| !overlay) {
        map_ids(&fd, namespace, false).map_err(|e| explain_map_ids(&mount.kind, &e))?;
    }
    if options.propagation.is_some() || options.recursive_set | options.recursive_clear != 0 {
        apply_options(&fd, &options).map_err(|e| fail("mount_setattr", &e))?;
    }
    Ok(fd)
}

/// Attaches a detached mount to the directory that `place` is.
pub fn attach(mount: impl AsFd, place: impl AsFd) -> io::Result<()> {
    let (mount, place, here) = (mount.as_fd().as_raw_fd(), place.as_fd().as_raw_fd(), c"".as_ptr());
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: the descriptors are open and the paths end in NUL.
    check(unsafe { libc::syscall(libc::SYS_move_mount, mount, here, place, here, flags) }).map(drop)
}

/// Gives an overlay its lower directories one by one: neither their number nor the sum of their lengths is bounded by
/// the page that mount(2) has, nor by the 255 bytes that fsconfig(2) has.
fn lower_directories(fs: &Filesystem, layers: &str) -> Result<()> {
    let directories = split_layers(layers);
    for (index, directory) in directories.iter().enumerate() {
        match fs.try_set("lowerdir+", Some(directory)) {
            Ok(()) => {}
            // Before Linux 6.8 there is only the whole string.
            Err(e) if index == 0 && e.raw_os_error() == Some(libc::EINVAL) => return fs.set("lowerdir", Some(layers)),
            Err(e) => return Err(fs.explain(&format!("layer {directory}"), &e)),
        }
    }
    Ok(())
}

/// The options of an overlay that name directories.
const LAYERS: &[&str] = &["lowerdir", "upperdir", "workdir"];

fn no_mapped_layers() -> Error {
    let why = "this kernel has no overlays of layers with mapped ids (Linux 6.15 has): use the snapshotter native";
    Error::unimplemented("mount", "overlay", why)
}

/// Directories of an overlay, by the names of its options.
#[derive(Default)]
struct Layers {
    named: Vec<(&'static str, OwnedFd)>,
    /// The mount that the upper layer lies in: without its own descriptor it would be none any more.
    _above: Option<OwnedFd>,
}

/// The directories of an overlay, each through a detached mount of its own with the ids of `namespace`; an overlay
/// itself can't have any. What is written lands on disk as it would without a namespace.
fn mapped_layers(options: &[(String, Option<String>)], namespace: BorrowedFd<'_>) -> Result<Layers> {
    let mapped = |directory: &str| {
        let fail = |e: io::Error| Error::io("mount", directory, "opening the layer", &e);
        let tree = clone_tree(crate::fd::open_dir(directory.as_ref()).map_err(fail)?, false).map_err(fail)?;
        map_ids(&tree, namespace, false).map_err(|e| explain_map_ids(directory, &e))?;
        Ok::<_, Error>(tree)
    };
    let named = |key: &str| options.iter().find(|(k, _)| k == key).and_then(|(_, value)| value.as_deref());
    let mut layers = Layers::default();
    for directory in named("lowerdir").map(split_layers).unwrap_or_default() {
        layers.named.push(("lowerdir+", mapped(&directory)?));
    }
    if let (Some(upper), Some(work)) = (named("upperdir"), named("workdir")) {
        // These two must lie in one mount.
        let (upper, work) = (Path::new(upper), Path::new(work));
        let (Some(above), Some(upper_name), Some(work_name)) = (upper.parent(), upper.file_name(), work.file_name())
        else {
            return Err(Error::invalid("mount", upper.display(), "is no directory for an overlay's upper layer"));
        };
        if work.parent() != Some(above) {
            return Err(Error::invalid("mount", work.display(), "must be beside the upper layer for ids to be mapped"));
        }
        let tree = mapped(&above.to_string_lossy())?;
        for (key, name) in [("upperdir", upper_name), ("workdir", work_name)] {
            let layer = crate::fd::open_no_symlinks(&tree, name.as_ref(), libc::O_DIRECTORY, 0);
            layers.named.push((key, layer.map_err(|e| Error::io("mount", upper.display(), "opening the layer", &e))?));
        }
        layers._above = Some(tree);
    }
    Ok(layers)
}

/// Splits at colons; `\:` is a colon and `\\` a backslash.
fn split_layers(layers: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut last = String::new();
    let mut chars = layers.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' => all.push(std::mem::take(&mut last)),
            '\\' => last.extend(chars.next()),
            c => last.push(c),
        }
    }
    all.push(last);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_told_apart() {
        let o = Options::parse(["rbind", "ro", "nosuid", "rslave", "noatime", "suid", "rro", "mode=755", "nr_inodes"]);
        let o = o.unwrap();
        assert_eq!(o.bind, Some(true));
        assert_eq!(o.set, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOATIME);
        assert_eq!(o.clear, libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_NOSUID);
        assert_eq!(o.recursive_set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(o.propagation, Some(libc::MS_SLAVE | libc::MS_REC));
        assert_eq!(o.data, [("mode".into(), Some("755".into())), ("nr_inodes".into(), None)]);
        let o = Options::parse(["remount", "idmap", "ridmap", "idmap", "tmpcopyup", "copy-symlink"]).unwrap();
        assert!(o.remount && o.copy_up && o.copy_symlink && o.map == Some(true) && o.data.is_empty());
        for option in ["remount", "idmap", "tmpcopyup", "copy-symlink"] {
            let mount = Mount { kind: "tmpfs".into(), source: String::new(), options: vec![option.into()] };
            assert_eq!(detached(&mount).unwrap_err().id, option);
        }
        assert!(Options::parse(["a\0b"]).is_err());
    }

    #[test]
    fn layers_split_at_unescaped_colons() {
        assert_eq!(split_layers(r"/a:/b\:c:/d\\e"), ["/a", "/b:c", r"/d\e"]);
    }

    fn bind(source: &Path, options: &[&str]) -> Mount {
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        Mount { kind: "bind".into(), source: source.to_str().unwrap().into(), options }
    }

    #[test]
    fn a_detached_bind_is_read_only_and_nobody_sees_it() {
        let dir = tempfile::tempdir().unwrap();
        let before = std::fs::read("/proc/thread-self/mountinfo").unwrap();
        let fd = detached(&bind(dir.path(), &["bind", "ro"])).unwrap();
        let create = |fd: &OwnedFd| {
            crate::fd::open(fd, Path::new("file"), libc::O_CREAT | libc::O_WRONLY, 0o600, crate::fd::Scope::Beneath)
        };
        assert_eq!(create(&fd).unwrap_err().raw_os_error(), Some(libc::EROFS));
        create(&detached(&bind(dir.path(), &["bind"])).unwrap()).unwrap();
        assert_eq!(before, std::fs::read("/proc/thread-self/mountinfo").unwrap());
        assert!(detached(&bind(dir.path(), &["bind", "size=1"])).is_err());
    }

    #[test]
    fn an_overlay_takes_many_layers_with_long_names() {
        let dir = tempfile::tempdir().unwrap();
        let mut layers = Vec::new();
        for n in 0..60 {
            let layer = dir.path().join(format!("{n}{}", "x".repeat(150)));
            std::fs::create_dir(&layer).unwrap();
            std::fs::write(layer.join(format!("file{n}")), "").unwrap();
            layers.push(layer.to_str().unwrap().to_owned());
        }
        let lower = format!("lowerdir={}", layers.join(":"));
        assert!(lower.len() > 8192);
        let mount = Mount { kind: "overlay".into(), source: "overlay".into(), options: vec![lower] };
        let fd = detached(&mount).unwrap();
        for n in 0..60 {
            let name = format!("file{n}");
            crate::fd::open(&fd, name.as_ref(), libc::O_RDONLY, 0, crate::fd::Scope::Beneath).unwrap();
        }
    }

    #[test]
    fn the_kernels_own_words_are_in_the_error() {
        let mount = |options: &[&str]| Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
        };
        let error = detached(&mount(&["lowerdir=/nonexistent"])).unwrap_err();
        assert!(error.message.contains("layer /nonexistent: No such file"), "{error}");
        let error = detached(&mount(&["lowerdir=/proc", "nonsense=1"])).unwrap_err();
        assert!(error.message.contains("nonsense=1: overlay: Unknown parameter 'nonsense'"), "{error}");
        assert_eq!(error.code, cofferdam_types::Code::InvalidArgument);
        let error = detached(&Mount { kind: "nosuchfs".into(), source: String::new(), options: vec![] }).unwrap_err();
        assert_eq!(error.code, cofferdam_types::Code::Unimplemented);
    }
}
