//! The life record: what became of a process, in a small file that outlives daemon and shim.
//!
//! Layout, little endian: magic `CFDLIFE\0`, version u32, length u32, CRC-32 of the payload u32, payload. The payload is
//! a Cap'n Proto message whose root is `Life` (shim.capnp). The file is replaced by rename, so a reader sees the old or
//! the new record, never half of one. It lies on the state file system, which ends with a reboot: it is not synced.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd, BorrowedFd},
};

use capnp::{message, serialize};
use cofferdam_types::{Error, Result};
use nix::{
    fcntl::{OFlag, openat, renameat},
    sys::stat::Mode,
    unistd::{UnlinkatFlags, unlinkat},
};

use crate::{
    convert::{Life, life, set_life},
    error::malformed,
    shim_capnp,
};

const MAGIC: &[u8; 8] = b"CFDLIFE\0";
const VERSION: u32 = 1;
const HEADER: usize = 20;
/// A record is a few hundred bytes; what is larger isn't one.
const LIMIT: usize = 64 << 10;

/// The file name of a record in its shim's directory. `@` stands in no id.
pub fn file_name(container: &str, exec: &str) -> String {
    if exec.is_empty() { format!("{container}.life") } else { format!("{container}@{exec}.life") }
}

/// The exec of a container that a file in its shim's directory is the record of.
pub fn exec_of<'a>(file: &'a str, container: &str) -> Option<&'a str> {
    file.strip_prefix(container)?.strip_prefix('@')?.strip_suffix(".life").filter(|exec| !exec.is_empty())
}

/// The bytes of a record.
pub fn encode(record: &Life) -> Vec<u8> {
    let mut message = message::Builder::new_default();
    set_life(message.init_root::<shim_capnp::life::Builder<'_>>(), record);
    let payload = serialize::write_message_to_words(&message);
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
    bytes.extend_from_slice(&payload);
    bytes
}

/// Reads the bytes of a record.
pub fn decode(bytes: &[u8]) -> Result<Life> {
    let bad = |why: &str| Error::data_loss("life record", "", why);
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    if bytes.get(..8) != Some(MAGIC) {
        return Err(bad("has no magic"));
    }
    match word(8) {
        Some(VERSION) => {}
        other => return Err(bad(&format!("has version {other:?}; this build reads {VERSION}"))),
    }
    let length = word(12).ok_or_else(|| bad("is too short"))? as usize;
    let payload = bytes.get(HEADER..HEADER + length).ok_or_else(|| bad("is too short"))?;
    if word(16) != Some(crc32fast::hash(payload)) {
        return Err(bad("has a wrong checksum"));
    }
    let message = serialize::read_message(payload, message::ReaderOptions::new()).map_err(malformed)?;
    life(message.get_root::<shim_capnp::life::Reader<'_>>().map_err(malformed)?)
}

/// Puts a record in place of the one that was there, which stays if that fails.
pub fn store(dir: BorrowedFd<'_>, name: &str, record: &Life) -> Result<()> {
    let io = |what: &str, e: nix::Error| Error::io("life record", name, what, &e.into());
    let fresh = format!("{name}.new");
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let fd = openat(dir, fresh.as_str(), flags, Mode::from_bits_truncate(0o600)).map_err(|e| io("can't be made", e))?;
    let written = File::from(fd)
        .write_all(&encode(record))
        .map_err(|e| Error::io("life record", name, "can't be written", &e))
        .and_then(|()| renameat(dir, &*fresh, dir.as_fd(), name).map_err(|e| io("can't be put in place", e)));
    written.inspect_err(|_| {
        let _ = unlinkat(dir, &*fresh, UnlinkatFlags::NoRemoveDir);
    })
}

/// Reads the record of that name; `not_found` if there is none.
pub fn load(dir: BorrowedFd<'_>, name: &str) -> Result<Life> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let fd = openat(dir, name, flags, Mode::empty())
        .map_err(|e| Error::io("life record", name, "can't be opened", &e.into()))?;
    let mut bytes = Vec::new();
    File::from(fd)
        .take(LIMIT as u64)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io("life record", name, "can't be read", &e))?;
    decode(&bytes)
}

#[cfg(test)]
mod tests {
    use cofferdam_types::{Code, Timestamp};

    use super::*;

    fn sample() -> Life {
        Life {
            id: "shell".into(),
            pid: 4711,
            created: Timestamp(1),
            started: Timestamp(2),
            exited: Timestamp(3),
            status: 137,
            reason: "oom killed".into(),
            signal: 9,
            output_end: Timestamp(4),
            oomed: Timestamp(5),
            ooms: 6,
            grant: "00000000000000000000000000000007".into(),
            deleted: true,
        }
    }

    /// The first form of a record: four words of data, without what came later.
    fn first_form() -> Vec<u8> {
        let text = |length: u64| 1 << 2 | 1 | (2 | length << 3) << 32;
        let words = [4 << 32 | 2 << 48, 4711 | 137 << 32, 1, 2, 3, text(6), text(11)];
        let mut payload = [0u32.to_le_bytes(), 10u32.to_le_bytes()].concat();
        payload.extend(words.iter().flat_map(|word: &u64| word.to_le_bytes()));
        payload.extend(b"shell\0\0\0oom killed\0\0\0\0\0\0");
        let head = [MAGIC.as_slice(), &VERSION.to_le_bytes(), &(payload.len() as u32).to_le_bytes()].concat();
        [head, crc32fast::hash(&payload).to_le_bytes().to_vec(), payload].concat()
    }

    #[test]
    fn a_file_names_its_exec() {
        let name = file_name("box", "shell.life");
        assert_eq!((name.as_str(), exec_of(&name, "box")), ("box@shell.life.life", Some("shell.life")));
        for (file, container) in
            [("box.life", "box"), ("box@shell.life.new", "box"), ("box@a.life", "bo"), ("box@.life", "box")]
        {
            assert_eq!(exec_of(file, container), None, "{file}");
        }
    }

    #[test]
    fn a_record_of_an_older_shim_is_read() {
        let old = Life {
            signal: 0,
            output_end: Timestamp(0),
            oomed: Timestamp(0),
            ooms: 0,
            grant: String::new(),
            deleted: false,
            ..sample()
        };
        assert_eq!(decode(&first_form()).unwrap(), old);
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let fd = File::open(dir.path()).unwrap();
        let name = file_name("redis", "");
        assert_eq!(load(fd.as_fd(), &name).unwrap_err().code, Code::NotFound);
        store(fd.as_fd(), &name, &Life::default()).unwrap();
        store(fd.as_fd(), &name, &sample()).unwrap();
        assert_eq!(load(fd.as_fd(), &name).unwrap(), sample());
    }

    #[test]
    fn a_damaged_record_is_never_believed() {
        let good = encode(&sample());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert_eq!(decode(&bad).unwrap_err().code, Code::DataLoss, "byte {at}");
            assert_eq!(decode(&good[..at]).unwrap_err().code, Code::DataLoss, "cut at {at}");
        }
    }
}
