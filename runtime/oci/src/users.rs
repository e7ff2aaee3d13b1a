//! Who a process is to be: USER strings looked up in a container's own `/etc/passwd` and `/etc/group`.
//!
//! Both files are the image's, so nothing about them is believed: they are found as the image's own programs would find
//! them (no symlink leads out of the root), must be regular, and are read up to a limit. What an image has written
//! there matters only for names that somebody asked for.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    os::fd::AsFd,
    path::Path,
};

use cofferdam_sys::fd::{self, Scope};
use cofferdam_types::{Code, Error, Result};

const MAX_FILE: u64 = 10 << 20;
const MAX_LINE: u64 = 64 << 10;
/// What setgroups(2) takes (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;
/// The kernel's own -1 means "leave it", and much software has signed ids.
const MAX_ID: u32 = i32::MAX as u32;

/// A user, as a process needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user id.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// Every group for setgroups(2). The primary one is first: a process that lacks it here could get around modes
    /// that deny that group.
    pub groups: Vec<u32>,
    /// The home directory, an absolute path; `/` where passwd names none.
    pub home: String,
}

/// Looks up `user` inside `root`, a directory that is or will be a container's root.
///
/// `user` is `name`, `uid`, `name:group`, `uid:gid` or a mixture; empty means root. What consists of digits is a number
/// and never a name. Without a group, the user's own and supplementary groups apply, or group 0 if passwd doesn't know
/// the number (as in Docker and today's containerd); with one, that alone.
pub fn resolve(root: impl AsFd, user: &str) -> Result<User> {
    let invalid = |why: String| {
        let shown: String = user.chars().take(64).collect();
        Error::invalid("user", shown, format!("{why}; a user looks like `name`, `1000`, `name:group` or `1000:1000`"))
    };
    if user.chars().any(char::is_control) {
        return Err(invalid("holds a control character".into()));
    }
    let (user, group) = match user.split_once(':') {
        Some((_, group)) if group.contains(':') => return Err(invalid("has more than two parts".into())),
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (user, None),
    };
    let wanted = Wanted::parse(if user.is_empty() { "0" } else { user }).map_err(&invalid)?;
    let group = group.map(Wanted::parse).transpose().map_err(&invalid)?;
    let root = root.as_fd();

    // Who is told by numbers alone needs nothing of the image but a home, and goes without where that can't be read.
    let numbers = matches!((wanted, group), (Wanted::Id(_), Some(Wanted::Id(_))));
    let mut entry = None;
    let looked = each_line(root, "etc/passwd", |line| {
        let Some(passwd) = Passwd::parse(line) else { return Ok(true) };
        let matches = match wanted {
            Wanted::Id(id) => passwd.uid == Some(id),
            Wanted::Name(name) => passwd.name == name.as_bytes(),
        };
        if matches {
            entry = Some(passwd.check(&invalid)?);
        }
        Ok(!matches)
    });
    looked.or_else(|e| if numbers && e.code == Code::InvalidArgument { Ok(()) } else { Err(e) })?;
    let entry = match (entry, wanted) {
        (Some(entry), _) => entry,
        (None, Wanted::Id(uid)) => Entry { name: None, uid, gid: 0, home: "/".into() },
        (None, Wanted::Name(name)) => {
            return Err(Error::not_found(
                "user",
                name,
                "is not in the image's /etc/passwd: name one that is, or give a number such as 1000:1000",
            ));
        }
    };

    let (gid, groups) = match group {
        Some(Wanted::Id(gid)) => (gid, vec![gid]),
        Some(Wanted::Name(name)) => {
            let gid = named_group(root, name, &invalid)?;
            (gid, vec![gid])
        }
        None => (entry.gid, supplementary(root, &entry)?),
    };
    Ok(User { uid: entry.uid, gid, groups, home: entry.home })
}

#[derive(Clone, Copy)]
enum Wanted<'a> {
    Id(u32),
    Name(&'a str),
}

impl Wanted<'_> {
    fn parse(text: &str) -> Result<Wanted<'_>, String> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Ok(Wanted::Name(text));
        }
        match text.parse().ok().filter(|id| *id <= MAX_ID) {
            Some(id) => Ok(Wanted::Id(id)),
            None => Err(format!("has the id {text}, and ids go from 0 to {MAX_ID}")),
        }
    }
}

struct Passwd<'a> {
    name: &'a [u8],
    uid: Option<u32>,
    gid: Option<u32>,
    home: &'a [u8],
}

struct Entry {
    name: Option<Vec<u8>>,
    uid: u32,
    gid: u32,
    home: String,
}

impl Passwd<'_> {
    /// `name:password:uid:gid:gecos:home:shell`; `None` for a comment or anything else that is no entry.
    fn parse(line: &[u8]) -> Option<Passwd<'_>> {
        let mut fields = line.split(|b| *b == b':');
        let name = fields.next().filter(|n| !n.is_empty())?;
        let (_, uid, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Passwd { name, uid: id(uid), gid: id(gid), home: fields.nth(1).unwrap_or_default() })
    }

    fn check(&self, invalid: &dyn Fn(String) -> Error) -> Result<Entry> {
        let (Some(uid), Some(gid)) = (self.uid, self.gid) else {
            return Err(invalid(format!("has ids in the image's /etc/passwd that are not 0 to {MAX_ID}")));
        };
        let home = std::str::from_utf8(self.home).ok().filter(|home| !home.chars().any(char::is_control));
        let home = home.ok_or_else(|| invalid("has a home in the image's /etc/passwd that is no clean text".into()))?;
        let home = if home.starts_with('/') { home } else { "/" };
        Ok(Entry { name: Some(self.name.to_vec()), uid, gid, home: home.to_owned() })
    }
}

fn id(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok().filter(|id| *id <= MAX_ID)
}

/// `name:password:gid:member,member`.
fn group(line: &[u8]) -> Option<(&[u8], Option<u32>, &[u8])> {
    let mut fields = line.split(|b| *b == b':');
    let name = fields.next().filter(|n| !n.is_empty())?;
    let gid = fields.nth(1)?;
    Some((name, id(gid), fields.next().unwrap_or_default()))
}

fn named_group(root: impl AsFd, wanted: &str, invalid: &dyn Fn(String) -> Error) -> Result<u32> {
    let mut found = None;
    each_line(root, "etc/group", |line| {
        let Some((_, gid, _)) = group(line).filter(|(name, ..)| *name == wanted.as_bytes()) else { return Ok(true) };
        let wrong = || invalid(format!("names a group whose id in the image's /etc/group is not 0 to {MAX_ID}"));
        found = Some(gid.ok_or_else(wrong)?);
        Ok(false)
    })?;
    found.ok_or_else(|| {
        let message = "is not in the image's /etc/group: name one that is, or give a number";
        Error::not_found("group", wanted, message)
    })
}

fn supplementary(root: impl AsFd, entry: &Entry) -> Result<Vec<u32>> {
    let mut groups = vec![entry.gid];
    let Some(name) = &entry.name else { return Ok(groups) };
    each_line(root, "etc/group", |line| {
        let Some((_, Some(gid), members)) = group(line) else { return Ok(true) };
        if members.split(|b| *b == b',').any(|member| member == name) {
            groups.push(gid);
        }
        Ok(true)
    })?;
    let primary = groups.remove(0);
    groups.retain(|gid| *gid != primary);
    groups.sort_unstable();
    groups.dedup();
    groups.insert(0, primary);
    if groups.len() > MAX_GROUPS {
        return Err(Error::invalid("user", entry.uid, format!("is in more than {MAX_GROUPS} groups of the image")));
    }
    Ok(groups)
}

/// Gives each line of a file to `f` until it says false. A file that isn't there has no lines.
fn each_line(root: impl AsFd, path: &'static str, mut f: impl FnMut(&[u8]) -> Result<bool>) -> Result<()> {
    let refuse = |why: String| Error::invalid("image file", format!("/{path}"), why);
    let io = |error: &std::io::Error| Error::io("image file", format!("/{path}"), "could not be read", error);
    // As O_PATH first: opening a device or a FIFO would already do something.
    let found = match fd::open(root, Path::new(path), libc::O_PATH, 0, Scope::InRoot) {
        Ok(found) => found,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::ELOOP) => {
            return Err(refuse("is a symlink that leads nowhere".into()));
        }
        Err(e) => return Err(io(&e)),
    };
    let stat = fd::stat(&found).map_err(|e| io(&e))?;
    if fd::file_type(&stat) != libc::S_IFREG {
        return Err(refuse(
            "is not a regular file, and nobody can be looked up in it: give user and group as numbers, such as 1000:1000"
                .into(),
        ));
    }
    if stat.st_size as u64 > MAX_FILE {
        return Err(refuse(format!("has {} bytes: at most {MAX_FILE} are read", stat.st_size)));
    }
    let file = File::from(fd::reopen(&found, libc::O_RDONLY | libc::O_NOCTTY).map_err(|e| io(&e))?);
    let mut reader = BufReader::new(file.take(MAX_FILE));
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader).take(MAX_LINE + 1).read_until(b'\n', &mut line).map_err(|e| io(&e))?;
        if read as u64 > MAX_LINE {
            return Err(refuse(format!("has a line of more than {MAX_LINE} bytes")));
        }
        if read == 0 || !f(line.trim_ascii_end())? {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use tempfile::TempDir;

    use super::*;

    const PASSWD: &str = "# comment\n\
        root:x:0:0:root:/root:/bin/sh\n\
        \n\
        short:x\n\
        redis:x:999:1000:gecos, with: colon\n\
        web:x:33:33:www:/var/www:/bin/false\n\
        1000:x:7:7:digits:/home/digits:/bin/sh\n\
        web:x:34:34:second:/:/bin/false\n\
        huge:x:4294967295:0::/:\n\
        rel:x:40:40::home:/bin/sh\n";
    const GROUP: &str = "root:x:0:root\nadm:x:4:syslog,web\nwww-data:x:33:web\nredis:x:1000:\nvideo:x:44:web,redis\n\
        50:x:51:\nhuge:x:2147483648:\ntwice:x:44:web\n";

    fn root() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/passwd"), PASSWD).unwrap();
        fs::write(dir.path().join("etc/group"), GROUP).unwrap();
        dir
    }

    fn look(dir: &TempDir, user: &str) -> Result<User> {
        resolve(File::open(dir.path()).unwrap(), user)
    }

    fn ids(user: User) -> (u32, u32, Vec<u32>, String) {
        (user.uid, user.gid, user.groups, user.home)
    }

    #[test]
    fn p2_names_and_numbers_get_all_their_groups() {
        let dir = root();
        for (text, uid, gid, groups, home) in [
            ("", 0, 0, vec![0], "/root"),
            ("root", 0, 0, vec![0], "/root"),
            ("web", 33, 33, vec![33, 4, 44], "/var/www"),
            ("33", 33, 33, vec![33, 4, 44], "/var/www"),
            ("redis", 999, 1000, vec![1000, 44], "/"),
            ("rel", 40, 40, vec![40], "/"),
            // An explicit group alone counts.
            ("web:adm", 33, 4, vec![4], "/var/www"),
            ("web:100", 33, 100, vec![100], "/var/www"),
            ("1234:www-data", 1234, 33, vec![33], "/"),
            ("12345:54321", 12345, 54321, vec![54321], "/"),
            ("12345", 12345, 0, vec![0], "/"),
            (":adm", 0, 4, vec![4], "/root"),
            ("web:", 33, 33, vec![33, 4, 44], "/var/www"),
            ("2147483647:0", 2147483647, 0, vec![0], "/"),
        ] {
            assert_eq!(ids(look(&dir, text).unwrap()), (uid, gid, groups, home.to_owned()), "{text}");
        }
    }

    #[test]
    fn p3_ids_out_of_range_are_refused() {
        let dir = root();
        let big = "1".repeat(400);
        for bad in [
            "-1",
            "2147483648",
            "4294967295",
            "4294967296",
            "18446744073709551616",
            "0:-1",
            "0:2147483648",
            "huge",
            "root:huge",
            "0:4294967295",
            &big,
        ] {
            assert_eq!(look(&dir, bad).unwrap_err().code, Code::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn p4_digits_are_never_looked_up_as_a_name() {
        let dir = root();
        assert_eq!(ids(look(&dir, "1000").unwrap()), (1000, 0, vec![0], "/".into()));
        assert_eq!(look(&dir, "root:50").unwrap().gid, 50);
        assert_eq!(look(&dir, "007").unwrap().uid, 7);
    }

    #[test]
    fn what_is_missing_is_said() {
        let dir = root();
        let error = look(&dir, "nobody").unwrap_err();
        assert_eq!((error.code, error.id.as_str()), (Code::NotFound, "nobody"));
        assert!(error.message.contains("/etc/passwd") && error.message.contains("1000:1000"));
        assert_eq!(look(&dir, "root:nobody").unwrap_err().code, Code::NotFound);
        for bad in ["a:b:c", "root\n", "ro\0ot", "0:ro\tot"] {
            assert_eq!(look(&dir, bad).unwrap_err().code, Code::InvalidArgument, "{bad:?}");
        }
        // An image without the files: numbers work, names don't.
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(ids(look(&empty, "5:6").unwrap()), (5, 6, vec![6], "/".into()));
        assert_eq!(ids(look(&empty, "").unwrap()), (0, 0, vec![0], "/".into()));
        assert_eq!(look(&empty, "root").unwrap_err().code, Code::NotFound);
    }

    #[test]
    fn p5_strange_files_are_refused_at_once() {
        let fifo = |path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let device = |path: &Path| {
            use nix::sys::stat::{Mode, SFlag, makedev, mknod};
            mknod(path, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 5)).unwrap();
        };
        let large = |path: &Path| fs::write(path, "x:x:1:1::/:\n".repeat(1_000_000)).unwrap();
        let line = |path: &Path| fs::write(path, "x".repeat(10 << 20)).unwrap();
        let directory = |path: &Path| fs::create_dir(path).unwrap();
        let itself = |path: &Path| symlink("passwd", path).unwrap();
        type Maker<'a> = (&'a str, &'a dyn Fn(&Path));
        let makers: [Maker<'_>; 6] = [
            ("fifo", &fifo),
            ("device", &device),
            ("11 MiB", &large),
            ("line", &line),
            ("dir", &directory),
            ("loop", &itself),
        ];
        for (name, make) in makers {
            for file in ["passwd", "group"] {
                if name == "loop" && file == "group" {
                    continue;
                }
                let dir = root();
                let path = dir.path().join("etc").join(file);
                fs::remove_file(&path).unwrap();
                make(&path);
                let error = look(&dir, "web").unwrap_err();
                assert_eq!(error.code, Code::InvalidArgument, "{name} {file}: {error}");
                assert_eq!(error.id, format!("/etc/{file}"), "{name}");
                assert_eq!(ids(look(&dir, "5:6").unwrap()), (5, 6, vec![6], "/".into()), "{name} {file}");
            }
        }
        let dir = root();
        fs::remove_file(dir.path().join("etc/passwd")).unwrap();
        // Inside the root there is no such file.
        symlink("/proc/self/exe", dir.path().join("etc/passwd")).unwrap();
        assert_eq!(look(&dir, "web").unwrap_err().code, Code::NotFound);
    }

    #[test]
    fn p5_symlinks_stay_inside_the_root() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("passwd"), "canary:x:66:66::/:\n").unwrap();
        let dir = root();
        let passwd = dir.path().join("etc/passwd");
        for target in [
            outside.path().join("passwd"),
            Path::new("../../../..").join(outside.path().join("passwd").strip_prefix("/").unwrap()),
        ] {
            fs::remove_file(&passwd).unwrap();
            symlink(&target, &passwd).unwrap();
            assert_eq!(look(&dir, "canary").unwrap_err().code, Code::NotFound);
        }
        // One that is meant, as Nix images have it, works.
        fs::create_dir(dir.path().join("store")).unwrap();
        fs::write(dir.path().join("store/passwd"), "nix:x:70:70::/home/nix:\n").unwrap();
        fs::remove_file(&passwd).unwrap();
        symlink("/store/passwd", &passwd).unwrap();
        assert_eq!(look(&dir, "nix").unwrap().home, "/home/nix");
        // So does an /etc that is itself a way out.
        fs::remove_dir_all(dir.path().join("etc")).unwrap();
        symlink(outside.path(), dir.path().join("etc")).unwrap();
        assert_eq!(look(&dir, "canary").unwrap_err().code, Code::NotFound);
    }

    #[test]
    fn l4_a_home_with_control_bytes_is_refused() {
        let dir = root();
        for home in ["/ho\rme", "/\x1b[31m", "/a\0b", "/\u{85}"] {
            fs::write(dir.path().join("etc/passwd"), format!("web:x:1:1:a\x07b:{home}:/bin/sh\n")).unwrap();
            assert_eq!(look(&dir, "web").unwrap_err().code, Code::InvalidArgument, "{home:?}");
        }
    }
}
