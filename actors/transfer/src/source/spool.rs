//! An archive that comes once: a pipe, or one that is packed as a whole.
//!
//! What comes is written where it will stay, into ingests, and hashed on the way; only the small documents are kept in
//! memory, because what they mean is known when the archive has ended.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read},
};

use cofferdam_content::{Content, Ingest};
use cofferdam_types::{Algorithm, Digest, Namespace, Result, media::Compression};

use super::walk::{self, Input, Kind, Walk, refused};
use crate::{plan::blob_path, registry::MAX_MANIFEST};

/// Documents of all images of one archive together.
const MAX_SMALL: usize = 64 << 20;
const BUFFER: usize = 256 << 10;

/// A file of the archive.
pub(crate) struct Spooled {
    pub size: u64,
    pub compression: Compression,
    pub digest: Digest,
    pub at: Place,
}

/// Where its bytes are.
pub(crate) enum Place {
    /// Small, and looks like a document.
    Memory(Vec<u8>),
    /// On its way to be a blob.
    Ingest(Box<Ingest>),
    /// The namespace had it before.
    Stored,
}

/// All files of an archive that has come.
pub(crate) struct Spool {
    kinds: HashMap<String, Kind>,
    files: HashMap<String, Spooled>,
    content: Content,
    namespace: Namespace,
}

impl Spool {
    /// Takes in a whole archive.
    pub fn take<I: Input>(input: I, content: &Content, ns: &Namespace) -> Result<Spool> {
        let mut walk = Walk::new(input);
        let (content, namespace) = (content.clone(), ns.clone());
        let mut spool = Spool { kinds: HashMap::new(), files: HashMap::new(), content, namespace };
        let (mut small, mut buffer) = (0, vec![0; BUFFER]);
        while let Some(member) = walk.next()? {
            if member.kind == Kind::Other {
                continue;
            }
            if spool.kinds.insert(member.name.clone(), member.kind.clone()).is_some() {
                return Err(refused(format!("duplicated {}", member.name)));
            }
            if member.kind != Kind::File {
                continue;
            }
            let named = named_blob(&member.name)?;
            let first = fill(&mut walk, &mut buffer)?;
            let head = &buffer[..first];
            let compression = Compression::sniff(head);
            let document = head.iter().find(|b| !b.is_ascii_whitespace()).is_some_and(|b| matches!(b, b'{' | b'['));
            let algorithm = named.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
            let (digest, at) = if document && member.size <= MAX_MANIFEST {
                let mut bytes = head.to_vec();
                walk.read_to_end(&mut bytes).map_err(walk::broken)?;
                small += bytes.len();
                if small > MAX_SMALL {
                    return Err(refused(format!("has more than {MAX_SMALL} bytes of documents")));
                }
                (Digest::of(algorithm, &bytes), Place::Memory(bytes))
            } else if let Some(stored) = named.clone().filter(|d| spool.content.is_whole(ns, d).unwrap_or(false)) {
                (stored, Place::Stored)
            } else {
                let mut ingest = spool.content.scratch(ns, algorithm)?;
                let mut filled = first;
                while filled > 0 {
                    ingest.append(&buffer[..filled])?;
                    filled = fill(&mut walk, &mut buffer)?;
                }
                (ingest.digest_so_far(), Place::Ingest(Box::new(ingest)))
            };
            if let Some(named) = named.filter(|named| *named != digest) {
                let message = format!("unexpected digest {digest} in the place of {named}");
                return Err(cofferdam_types::Error::data_loss("archive", "", message));
            }
            spool.files.insert(member.name, Spooled { size: member.size, compression, digest, at });
        }
        Ok(spool)
    }

    /// The file that `path` leads to.
    pub fn file(&self, path: &str) -> Result<Option<&Spooled>> {
        let name = super::follow(path, |name| self.kinds.get(name))?;
        Ok(name.and_then(|name| self.files.get(&name)))
    }

    /// The bytes of a file, which may have `limit` of them. The config of an artifact may be anything.
    pub fn read(&self, file: &Spooled, path: &str, limit: u64) -> Result<Vec<u8>> {
        if file.size > limit {
            return Err(refused(format!("{path} has {} bytes, and may have {limit}", file.size)));
        }
        match &file.at {
            Place::Memory(bytes) => Ok(bytes.clone()),
            Place::Ingest(ingest) => {
                let mut bytes = Vec::new();
                ingest.file()?.read_to_end(&mut bytes).map_err(walk::broken)?;
                Ok(bytes)
            }
            Place::Stored => self.content.read_verified(&self.namespace, &file.digest, limit),
        }
    }

    /// The ingests, each with what it became. One is made of what looked like a document and is among `blobs`. What is not taken
    /// from here goes with the spool.
    pub fn into_ingests(self, blobs: &HashSet<Digest>) -> Result<HashMap<Digest, Ingest>> {
        let mut ingests = HashMap::new();
        for file in self.files.into_values() {
            let ingest = match file.at {
                Place::Ingest(ingest) => *ingest,
                Place::Memory(bytes) if blobs.contains(&file.digest) => {
                    let mut ingest = self.content.scratch(&self.namespace, file.digest.algorithm())?;
                    ingest.append(&bytes)?;
                    ingest
                }
                _ => continue,
            };
            ingests.insert(file.digest, ingest);
        }
        Ok(ingests)
    }
}

/// The digest that a path of an OCI layout names; a malformed one is an error, another path is none.
fn named_blob(path: &str) -> Result<Option<Digest>> {
    let Some(rest) = path.strip_prefix("blobs/") else { return Ok(None) };
    let digest = rest.split_once('/').and_then(|(algorithm, hex)| format!("{algorithm}:{hex}").parse::<Digest>().ok());
    match digest {
        Some(digest) if blob_path(&digest) == path => Ok(Some(digest)),
        _ => Err(refused(format!("has a malformed blob path {path:?}"))),
    }
}

fn fill(source: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(walk::broken(e)),
        }
    }
    Ok(filled)
}
