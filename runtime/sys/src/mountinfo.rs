//! The mount table as `/proc/*/mountinfo` shows it (proc_pid_mountinfo(5)).

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its id.
    pub id: u32,
    /// The id of the mount that it lies on.
    pub parent: u32,
    /// The device number of files on it.
    pub device: (u32, u32),
    /// Which directory of its file system is mounted.
    pub root: PathBuf,
    /// Where, relative to the reader's root.
    pub point: PathBuf,
    /// Per-mount options.
    pub options: String,
    /// Optional fields: `shared:1`, `master:2`.
    pub propagation: Vec<String>,
    /// The type of the file system.
    pub kind: String,
    /// What was mounted, as file systems please.
    pub source: OsString,
    /// Options of the file system.
    pub super_options: String,
}

/// The mounts that this process sees.
pub fn read() -> io::Result<Vec<Info>> {
    parse(&std::fs::read("/proc/thread-self/mountinfo")?)
}

/// The id of the mount that a descriptor of a process (its pid, or `self`) lies on, as its fdinfo tells it.
pub fn id_of_fd(process: impl std::fmt::Display, fd: i32) -> io::Result<Option<u32>> {
    let info = std::fs::read_to_string(format!("/proc/{process}/fdinfo/{fd}"))?;
    Ok(info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok()))
}

/// Whether something is mounted exactly at `path`.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    Ok(read()?.iter().any(|m| m.point == path))
}

/// Reads a whole table.
pub fn parse(table: &[u8]) -> io::Result<Vec<Info>> {
    table
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse_line(line).ok_or_else(|| {
                let line = String::from_utf8_lossy(line);
                io::Error::new(io::ErrorKind::InvalidData, format!("mountinfo line not understood: {line}"))
            })
        })
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Info> {
    let mut words = line.split(|b| *b == b' ');
    let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
    let number = |word: &[u8]| std::str::from_utf8(word).ok()?.parse::<u32>().ok();
    let id = number(words.next()?)?;
    let parent = number(words.next()?)?;
    let (major, minor) = std::str::from_utf8(words.next()?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let root = OsString::from_vec(unescape(words.next()?)).into();
    let point = OsString::from_vec(unescape(words.next()?)).into();
    let options = text(words.next()?);
    let propagation = words.by_ref().take_while(|w| *w != b"-").map(text).collect();
    let kind = text(words.next()?);
    let source = OsString::from_vec(unescape(words.next()?));
    let super_options = text(words.next().unwrap_or_default());
    Some(Info { id, parent, device, root, point, options, propagation, kind, source, super_options })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'\\'
            && let [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] = tail
        {
            out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = tail;
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_whole() {
        let table = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
                      40 35 0:5 / /a\\134b ro - tmpfs  rw\n";
        let mounts = parse(table).unwrap();
        assert_eq!(mounts[0].point, Path::new("/mnt 2"));
        assert_eq!(mounts[0].propagation, ["master:1", "shared:7"]);
        assert_eq!((mounts[0].kind.as_str(), mounts[0].device), ("ext3", (98, 0)));
        assert_eq!(mounts[1].point, Path::new("/a\\b"));
        assert!(parse(b"36 35 98:0 /mnt1").is_err());
        assert!(read().unwrap().iter().any(|m| m.kind == "proc"));
    }
}
