//! The child's file-system steps. The same rules as in [`super::child`]: system calls and the stack.

use std::{
    ffi::{CStr, CString},
    mem, ptr,
};

use super::{
    child::{Done, Errno, ok},
    step::{Attributes, Make, Target},
};

/// As many symlinks as the kernel follows itself.
const MAX_LINKS: usize = 40;
const PATH_MAX: usize = libc::PATH_MAX as usize;
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Descriptors of the container's root that are opened when first needed.
pub(super) struct Root {
    root: i32,
    /// The container's /dev/null, made sure of.
    null: i32,
    /// An empty read-only directory on a file system of its own, attached somewhere already.
    empty: i32,
}

impl Root {
    pub fn new() -> Root {
        Root { root: -1, null: -1, empty: -1 }
    }

    /// A directory that is to become the root.
    pub fn at(root: i32) -> Root {
        Root { root, ..Root::new() }
    }

    pub fn fd(&mut self) -> Done<i32> {
        if self.root < 0 {
            let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
            // SAFETY: the pointer is valid for the call.
            self.root = ok(unsafe { libc::open(c"/".as_ptr(), flags) }.into())? as i32;
        }
        Ok(self.root)
    }

    fn null(&mut self) -> Done<i32> {
        if self.null < 0 {
            let fd = open_in(self.fd()?, c"/dev/null", libc::O_PATH, libc::RESOLVE_NO_SYMLINKS)?;
            let stat = stat(fd)?;
            if stat.st_mode & libc::S_IFMT != libc::S_IFCHR || stat.st_rdev != libc::makedev(1, 3) {
                return Err(libc::ENODEV);
            }
            self.null = fd;
        }
        Ok(self.null)
    }
}

pub(super) fn close(fd: i32) {
    // SAFETY: the callers own the descriptor and forget it.
    unsafe { libc::close(fd) };
}

fn stat(fd: i32) -> Done<libc::stat> {
    // SAFETY: stat is plain numbers, for which zero is a value; the pointer is valid for the call.
    unsafe {
        let mut stat: libc::stat = mem::zeroed();
        ok(libc::fstat(fd, &mut stat).into())?;
        Ok(stat)
    }
}

/// Whether a place is the root itself, by whatever links: what is mounted on that nobody sees whose root it is already.
fn is_root(root: i32, place: i32) -> Done<bool> {
    let identity = |fd: i32| -> Done<(u64, u64)> {
        // SAFETY: statx is plain numbers, for which zero is a value; the pointers are valid for the call.
        unsafe {
            let mut stat: libc::statx = mem::zeroed();
            let wanted = libc::STATX_INO | libc::STATX_MNT_ID;
            ok(libc::statx(fd, c"".as_ptr(), libc::AT_EMPTY_PATH, wanted, &mut stat).into())?;
            Ok((stat.stx_mnt_id, stat.stx_ino))
        }
    };
    Ok(identity(root)? == identity(place)?)
}

/// openat2(2) with `root` as `/`, never through a magic link.
fn open_in(root: i32, path: &CStr, flags: i32, resolve: u64) -> Done<i32> {
    // SAFETY: open_how is plain numbers, for which zero is a value; the pointers are valid for the call.
    unsafe {
        let mut how: libc::open_how = mem::zeroed();
        how.flags = (flags | libc::O_CLOEXEC) as u64;
        how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS | resolve;
        loop {
            match ok(libc::syscall(libc::SYS_openat2, root, path.as_ptr(), &how, size_of::<libc::open_how>())) {
                Err(libc::EAGAIN | libc::EINTR) => {}
                other => return Ok(other? as i32),
            }
        }
    }
}

/// A path that can be cut and spliced without memory from a heap.
struct PathBuffer {
    bytes: [u8; PATH_MAX],
    len: usize,
}

impl PathBuffer {
    fn new(path: &CStr) -> Done<PathBuffer> {
        let mut buffer = PathBuffer { bytes: [0; PATH_MAX], len: 0 };
        buffer.push(path.to_bytes())?;
        Ok(buffer)
    }

    /// Appends, leaving room for the NUL.
    fn push(&mut self, more: &[u8]) -> Done {
        let end = self.len + more.len();
        match self.bytes.get_mut(self.len..end) {
            Some(room) if end < PATH_MAX => room.copy_from_slice(more),
            _ => return Err(libc::ENAMETOOLONG),
        }
        self.len = end;
        Ok(())
    }

    fn get(&self, from: usize, to: usize) -> &[u8] {
        self.bytes.get(from..to).unwrap_or_default()
    }

    /// Calls `f` with the part `from..to` as a C string.
    fn with<T>(&mut self, from: usize, to: usize, f: impl FnOnce(&CStr) -> Done<T>) -> Done<T> {
        let Some(byte) = self.bytes.get_mut(to) else { return Err(libc::ENAMETOOLONG) };
        let saved = mem::replace(byte, 0);
        let result = CStr::from_bytes_until_nul(self.get(from, to + 1)).map_err(|_| libc::EINVAL).and_then(f);
        if let Some(byte) = self.bytes.get_mut(to) {
            *byte = saved;
        }
        result
    }

    /// The next component after `from`: its start and end.
    fn component(&self, from: usize) -> Option<(usize, usize)> {
        let rest = self.get(from, self.len);
        let start = from + rest.iter().position(|b| *b != b'/')?;
        let end = self.get(start, self.len).iter().position(|b| *b == b'/').map_or(self.len, |n| start + n);
        Some((start, end))
    }
}

/// Opens a target (`O_PATH`), having made what is missing of it. A dangling symlink is followed, within the root, and
/// what it points at is made, as a program in the container would see it.
pub(super) fn ensure(root: i32, target: &Target) -> Done<i32> {
    let resolve = if target.no_symlinks { libc::RESOLVE_NO_SYMLINKS } else { 0 };
    match open_in(root, &target.path, libc::O_PATH, resolve) {
        Err(libc::ENOENT) => {}
        other => return other,
    }
    let mut path = PathBuffer::new(&target.path)?;
    for _ in 0..MAX_LINKS {
        if let Some(fd) = make_all(root, &mut path, target.make, resolve)? {
            return Ok(fd);
        }
    }
    Err(libc::ELOOP)
}

/// Makes each missing component; `None` if a dangling symlink was put into the path instead, which starts anew.
fn make_all(root: i32, path: &mut PathBuffer, make: Make, resolve: u64) -> Done<Option<i32>> {
    let mut parent = open_in(root, c"/", libc::O_PATH, 0)?;
    let mut at = 0;
    while let Some((start, end)) = path.component(at) {
        let open = |path: &mut PathBuffer| path.with(0, end, |prefix| open_in(root, prefix, libc::O_PATH, resolve));
        let mut found = open(path);
        if found == Err(libc::ENOENT) {
            let file = make == Make::File && path.component(end).is_none();
            // SAFETY: the pointer is valid for the call.
            let made = path.with(start, end, |name| unsafe {
                if file {
                    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY | libc::O_CLOEXEC;
                    ok(libc::openat(parent, name.as_ptr(), flags, 0o644).into()).map(|fd| close(fd as i32))
                } else {
                    ok(libc::mkdirat(parent, name.as_ptr(), 0o755).into()).map(drop)
                }
            });
            match made {
                Ok(()) => found = open(path),
                // The name is taken and leads nowhere: a symlink.
                Err(libc::EEXIST) => {
                    let spliced = splice_link(parent, path, start, end);
                    close(parent);
                    return spliced.map(|()| None);
                }
                Err(e) => found = Err(e),
            }
        }
        close(parent);
        parent = found?;
        at = end;
    }
    Ok(Some(parent))
}

/// Replaces the component `start..end`, a symlink in `parent`, by what it says.
fn splice_link(parent: i32, path: &mut PathBuffer, start: usize, end: usize) -> Done {
    let mut link = [0u8; PATH_MAX];
    // SAFETY: the buffer is valid for its length.
    let len = path.with(start, end, |name| unsafe {
        ok(libc::readlinkat(parent, name.as_ptr(), link.as_mut_ptr().cast(), link.len()) as libc::c_long)
    })? as usize;
    let link = link.get(..len).unwrap_or_default();
    let mut spliced = PathBuffer { bytes: [0; PATH_MAX], len: 0 };
    if link.first() != Some(&b'/') {
        spliced.push(path.get(0, start))?;
    }
    spliced.push(link)?;
    spliced.push(path.get(end, path.len))?;
    *path = spliced;
    Ok(())
}

/// Attaches `mount` at a target.
pub(super) fn attach(root: i32, target: &Target, mount: i32) -> Done {
    let place = ensure(root, target)?;
    let moved = if is_root(root, place)? { Err(libc::EBUSY) } else { move_mount(mount, place) };
    close(place);
    moved
}

fn move_mount(mount: i32, place: i32) -> Done {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: the pointers are valid for the call.
    ok(unsafe { libc::syscall(libc::SYS_move_mount, mount, c"".as_ptr(), place, c"".as_ptr(), flags) }).map(drop)
}

fn set_attributes(mount: i32, a: &Attributes) -> Done {
    if a.set == 0 && a.clear == 0 && a.propagation == 0 {
        return Ok(());
    }
    let attr = libc::mount_attr { attr_set: a.set, attr_clr: a.clear, propagation: a.propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if a.recursive { libc::AT_RECURSIVE } else { 0 };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: the pointers are valid for the call and the size is that of the struct.
    ok(unsafe { libc::syscall(libc::SYS_mount_setattr, mount, c"".as_ptr(), flags, &attr, size) }).map(drop)
}

fn clone_tree(path: i32, recursive: bool) -> Done<i32> {
    let recursive = if recursive { libc::AT_RECURSIVE as u32 } else { 0 };
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32 | recursive;
    // SAFETY: the pointer is valid for the call.
    ok(unsafe { libc::syscall(libc::SYS_open_tree, path, c"".as_ptr(), flags) }).map(|fd| fd as i32)
}

/// This is a copy of the host's namespace: nothing done here may get back to it.
fn make_private() -> Done {
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the pointers are valid for the call, or null where mount(2) takes none.
    ok(unsafe { libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), private, ptr::null()) }.into()).map(drop)
}

/// Opens a directory of the host.
pub(super) fn open_directory(path: &CStr) -> Done<i32> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the pointer is valid for the call.
    ok(unsafe { libc::open(path.as_ptr(), flags) }.into()).map(|fd| fd as i32)
}

/// Writes a file that is there.
pub(super) fn write(path: &CStr, text: &CStr) -> Done {
    // SAFETY: the pointers are valid for the calls and the length.
    unsafe {
        let fd = ok(libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC).into())? as i32;
        let written = ok(libc::write(fd, text.as_ptr().cast(), text.count_bytes()) as libc::c_long);
        close(fd);
        written.map(drop)
    }
}

/// Mounts the root on a directory, where hooks find it; the root's descriptor.
pub(super) fn place(mount: i32, directory: i32) -> Done<i32> {
    make_private()?;
    move_mount(mount, directory)?;
    close(directory);
    // SAFETY: no memory is involved.
    ok(unsafe { libc::fcntl(mount, libc::F_DUPFD_CLOEXEC, 3) }.into()).map(|fd| fd as i32)
}

/// Makes `mount` the root of this mount namespace and lets go of what was there.
pub(super) fn pivot(mount: i32) -> Done {
    make_private()?;
    // SAFETY: the pointers are valid for the call.
    unsafe {
        // Any place will do to attach it for the moment; `/` is always there.
        let flags = libc::MOVE_MOUNT_F_EMPTY_PATH;
        ok(libc::syscall(libc::SYS_move_mount, mount, c"".as_ptr(), libc::AT_FDCWD, c"/".as_ptr(), flags))?;
    }
    enter(mount)
}

/// Makes an attached mount the root, by the descriptor of its own root.
pub(super) fn enter(mount: i32) -> Done {
    // SAFETY: the pointers are valid for the calls.
    unsafe {
        ok(libc::fchdir(mount).into())?;
        // Both in one place: the old root ends up on top of the new one (pivot_root(2)).
        ok(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
        ok(libc::umount2(c".".as_ptr(), libc::MNT_DETACH).into())?;
        ok(libc::chdir(c"/".as_ptr()).into())?;
    }
    Ok(())
}

/// A detached mount of a new file system.
pub(super) fn make_mount(kind: &CStr, data: &[(CString, Option<CString>)], attributes: &Attributes) -> Done<i32> {
    // SAFETY: the pointers are valid for the calls, or null where fsconfig(2) takes none.
    unsafe {
        let fs = ok(libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC))? as i32;
        let config = |command: u32, key: *const libc::c_char, value: *const libc::c_char| {
            ok(libc::syscall(libc::SYS_fsconfig, fs, command, key, value, 0))
        };
        for (key, value) in data {
            match value {
                Some(value) => config(libc::FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr())?,
                None => config(libc::FSCONFIG_SET_FLAG, key.as_ptr(), ptr::null())?,
            };
        }
        config(libc::FSCONFIG_CMD_CREATE, ptr::null(), ptr::null())?;
        let set = attributes.set as u32;
        let mount = ok(libc::syscall(libc::SYS_fsmount, fs, libc::FSMOUNT_CLOEXEC, set))? as i32;
        close(fs);
        set_attributes(mount, &Attributes { set: 0, clear: 0, ..*attributes })?;
        Ok(mount)
    }
}

/// Changes the mount at a target.
pub(super) fn change(root: i32, target: &Target, attributes: &Attributes) -> Done {
    let resolve = if target.no_symlinks { libc::RESOLVE_NO_SYMLINKS } else { 0 };
    let fd = open_in(root, &target.path, libc::O_PATH, resolve)?;
    let changed = set_attributes(fd, attributes);
    close(fd);
    changed
}

/// Writes a kernel parameter.
pub(super) fn sysctl(path: &CStr, value: &CStr) -> Done {
    let proc = make_mount(c"proc", &[], &Attributes::default())?;
    let fd = open_in(proc, path, libc::O_WRONLY, libc::RESOLVE_NO_SYMLINKS)?;
    // SAFETY: the pointer is valid for the length.
    ok(unsafe { libc::write(fd, value.as_ptr().cast(), value.count_bytes()) } as libc::c_long)?;
    close(fd);
    close(proc);
    Ok(())
}

/// Whether a target is this directory.
pub(super) fn is_same(root: i32, target: &Target, device: u64, inode: u64) -> Done<bool> {
    let fd = ensure(root, target)?;
    let stat = stat(fd);
    close(fd);
    stat.map(|stat| (stat.st_dev, stat.st_ino) == (device, inode))
}

/// Makes a device node.
pub(super) fn device(root: i32, dir: &Target, name: &CStr, mode: u32, device: u64, owner: (u32, u32)) -> Done {
    let dir = ensure(root, dir)?;
    // SAFETY: the pointers are valid for the calls.
    unsafe {
        let old = libc::umask(0);
        let made = ok(libc::mknodat(dir, name.as_ptr(), mode, device).into());
        libc::umask(old);
        match made {
            Ok(_) if owner == (0, 0) => {}
            Ok(_) => drop(ok(libc::fchownat(dir, name.as_ptr(), owner.0, owner.1, libc::AT_SYMLINK_NOFOLLOW).into())?),
            Err(libc::EEXIST) => {
                let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
                let fd = ok(libc::openat(dir, name.as_ptr(), flags).into())? as i32;
                let stat = stat(fd)?;
                close(fd);
                if stat.st_mode & libc::S_IFMT != mode & libc::S_IFMT || stat.st_rdev != device {
                    return Err(libc::EEXIST);
                }
            }
            Err(e) => return Err(e),
        }
    }
    close(dir);
    Ok(())
}

/// Makes a symlink; whatever has its name already stays.
pub(super) fn symlink(root: i32, dir: &Target, name: &CStr, to: &CStr) -> Done {
    let dir = ensure(root, dir)?;
    // SAFETY: the pointers are valid for the call.
    match ok(unsafe { libc::symlinkat(to.as_ptr(), dir, name.as_ptr()) }.into()) {
        Err(e) if e != libc::EEXIST => return Err(e),
        _ => close(dir),
    }
    Ok(())
}

/// Opens a path that may be missing.
fn open_optional(root: i32, path: &CStr) -> Done<Option<i32>> {
    match open_in(root, path, libc::O_PATH, 0) {
        Ok(fd) => Ok(Some(fd)),
        Err(libc::ENOENT | libc::ENOTDIR) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Hides what is at `path`.
pub(super) fn mask(root: &mut Root, path: &CStr) -> Done {
    let Some(place) = open_optional(root.fd()?, path)? else { return Ok(()) };
    if is_root(root.fd()?, place)? {
        return Err(libc::EBUSY);
    }
    if stat(place)?.st_mode & libc::S_IFMT == libc::S_IFDIR {
        // One empty file system serves them all: the first mount of it is attached, the others are copies.
        if root.empty < 0 {
            let read_only = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
            root.empty = make_empty(&read_only)?;
            move_mount(root.empty, place)?;
        } else {
            let copy = clone_tree(root.empty, false)?;
            move_mount(copy, place)?;
            close(copy);
        }
    } else {
        let copy = clone_tree(root.null()?, false)?;
        move_mount(copy, place)?;
        close(copy);
    }
    close(place);
    Ok(())
}

/// An empty tmpfs whose superblock is read-only as well: a remount of the mount alone would not open it.
fn make_empty(attributes: &Attributes) -> Done<i32> {
    // SAFETY: the pointers are valid for the calls, or null where fsconfig(2) takes none.
    unsafe {
        let fs = ok(libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), libc::FSOPEN_CLOEXEC))? as i32;
        let none = ptr::null::<libc::c_char>();
        ok(libc::syscall(libc::SYS_fsconfig, fs, libc::FSCONFIG_SET_FLAG, c"ro".as_ptr(), none, 0))?;
        ok(libc::syscall(libc::SYS_fsconfig, fs, libc::FSCONFIG_CMD_CREATE, none, none, 0))?;
        let set = attributes.set as u32;
        let mount = ok(libc::syscall(libc::SYS_fsmount, fs, libc::FSMOUNT_CLOEXEC, set))? as i32;
        close(fs);
        Ok(mount)
    }
}

/// Makes a path read-only, with all that is mounted below it; the root without that, as a read-only root is.
pub(super) fn read_only(root: i32, path: &CStr) -> Done {
    let Some(place) = open_optional(root, path)? else { return Ok(()) };
    if is_root(root, place)? {
        return set_attributes(place, &Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() });
    }
    let copy = clone_tree(place, true)?;
    let recursive = Attributes { set: libc::MOUNT_ATTR_RDONLY, recursive: true, ..Attributes::default() };
    set_attributes(copy, &recursive)?;
    move_mount(copy, place)?;
    close(copy);
    close(place);
    Ok(())
}

/// A terminal of the container's devpts: (master, slave). With `console` the slave also becomes /dev/console.
pub(super) fn terminal(root: i32, rows: u16, cols: u16, uid: u32, console: bool) -> Result<(i32, i32), Errno> {
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let pts = open_in(root, c"/dev/pts", libc::O_PATH | libc::O_DIRECTORY, libc::RESOLVE_NO_SYMLINKS)?;
    // What a container has put there may be anything, and opening a device already does something.
    // SAFETY: statfs is plain numbers, for which zero is a value; the pointers are valid for the calls.
    unsafe {
        let mut fs: libc::statfs = mem::zeroed();
        ok(libc::fstatfs(pts, &mut fs).into())?;
        if fs.f_type != DEVPTS_MAGIC {
            return Err(libc::ENODEV);
        }
        let master = open_in(pts, c"ptmx", flags, libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_XDEV)?;
        close(pts);
        if stat(master)?.st_rdev != libc::makedev(5, 2) {
            return Err(libc::ENODEV);
        }
        let unlock: libc::c_int = 0;
        ok(libc::ioctl(master, libc::TIOCSPTLCK, &unlock).into())?;
        let slave = ok(libc::ioctl(master, libc::TIOCGPTPEER, flags | libc::O_CLOEXEC).into())? as i32;
        let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        ok(libc::ioctl(slave, libc::TIOCSWINSZ, &size).into())?;
        ok(libc::fchown(slave, uid, u32::MAX).into())?;
        if console {
            let place = ensure_console(root)?;
            let copy = clone_tree(slave, false)?;
            move_mount(copy, place)?;
            close(copy);
            close(place);
        }
        Ok((master, slave))
    }
}

/// /dev/console, made if missing; a symlink there is refused.
fn ensure_console(root: i32) -> Done<i32> {
    let open = || open_in(root, c"/dev/console", libc::O_PATH, libc::RESOLVE_NO_SYMLINKS);
    match open() {
        Err(libc::ENOENT) => {}
        other => return other,
    }
    let dev = open_in(root, c"/dev", libc::O_PATH | libc::O_DIRECTORY, libc::RESOLVE_NO_SYMLINKS)?;
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY | libc::O_CLOEXEC;
    // SAFETY: the pointer is valid for the call.
    close(ok(unsafe { libc::openat(dev, c"console".as_ptr(), flags, 0o600) }.into())? as i32);
    close(dev);
    open()
}
