//! Records and files compared, both ways, beside ordinary work: whatever is told, or removed, is looked at again while
//! its digest or its ref is held.

use std::str::FromStr;

use cofferdam_metadata::{
    Tx,
    records::{self, content::Blob},
};
use cofferdam_types::{Algorithm, Authority, Code, Digest, Fault, Finding, Findings, Result};

use crate::store::{RefKey, Store};

const PAGE: usize = 500;

/// One of the comparisons.
type Part = fn(&Store, bool, &mut Findings) -> Result<()>;

impl Store {
    /// What the sweep of a start removes is told here, and removed with `repair`. A blob whose bytes are gone is then taken
    /// off the records, which stand in the way of nobody who stores it again.
    pub(crate) fn check(&self, repair: bool) -> Vec<Finding> {
        let mut found = Findings::beside(self.meta.writable().is_ok());
        let parts: [(&str, Part); 4] = [
            ("blobs", Store::check_blobs),
            ("files of blobs", Store::check_blob_files),
            ("ingests", Store::check_ingests),
            ("files of ingests", Store::check_ingest_files),
        ];
        for (part, check) in parts {
            if let Err(error) = check(self, repair, &mut found) {
                found.unchecked(format!("content/{part}"), &error);
            }
        }
        found.done()
    }

    fn check_blobs(&self, repair: bool, found: &mut Findings) -> Result<()> {
        let mut after: Option<String> = None;
        loop {
            let page = records::content::blobs(&self.meta.read()?, after.as_deref(), PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.digest.to_string());
            for Blob { digest, size, altered, .. } in page {
                // One that can't be looked at keeps nobody from the others.
                let checked = match self.files.blob_size(&digest) {
                    Ok(is) if is == Some(size) && !altered => Ok(()),
                    Ok(_) => self.check_blob(&digest, repair, found),
                    Err(error) => Err(error),
                };
                if let Err(error) = checked {
                    found.unchecked(format!("blob/{digest}"), &error);
                }
            }
        }
    }

    fn check_blob(&self, digest: &Digest, repair: bool, found: &mut Findings) -> Result<()> {
        let _reserved = self.reserved.hold_all(vec![digest.clone()]);
        let blob = records::readable(records::content::blob(&self.meta.read()?, digest))?;
        let Some(blob) = blob.flatten() else { return Ok(()) };
        let (fault, what) = match self.files.blob_size(digest)? {
            // Somebody may have put another file in its place since, and not come to say so.
            Some(size) if size == blob.size && (!blob.altered || self.is_sound(&blob)?) => {
                let id = digest.clone();
                let mended = move |tx: &mut Tx<'_>| records::content::mended(tx, &id);
                return if blob.altered && repair {
                    self.meta.write_blocking(&Authority::system(), mended)
                } else {
                    Ok(())
                };
            }
            Some(size) if size == blob.size => {
                (Fault::BlobDamaged, "its bytes are not what its digest says".to_owned())
            }
            Some(size) => (Fault::BlobDamaged, format!("its file has {size} bytes and not {}", blob.size)),
            None => (Fault::BlobMissing, format!("its file of {} bytes is gone", blob.size)),
        };
        let (mut dropped, mut then) = (false, "".to_owned());
        if repair {
            let id = digest.clone();
            let drop = move |tx: &mut Tx<'_>| records::check::drop_blob(tx, &id);
            then = match self.meta.write_blocking(&Authority::system(), drop) {
                Ok(true) => {
                    dropped = true;
                    // What is left of it is a file that no namespace has.
                    let left = self.remove_unlinked(digest).err();
                    let left = left.map(|error| format!(", and its file can't be removed: {error}"));
                    format!("it was taken off the records{}: ", left.unwrap_or_default())
                }
                Ok(false) => "it stays on the records, since a row that can't be read may be of it: ".to_owned(),
                Err(error) => format!("it stays on the records, since {error}: "),
            };
        }
        let what = format!("{what}: {then}pull or import again what it is of");
        found.add(fault, format!("blob/{digest}"), what, dropped);
        Ok(())
    }

    fn check_blob_files(&self, repair: bool, found: &mut Findings) -> Result<()> {
        for algorithm in Algorithm::ALL {
            for name in self.files.blob_names(algorithm)? {
                let id = format!("blob/{}:{name}", algorithm.as_str());
                let Ok(digest) = Digest::from_str(&format!("{}:{name}", algorithm.as_str())) else {
                    let removed = repair.then(|| self.files.remove_stray(algorithm, &name));
                    found.stray(Fault::BlobUnrecorded, id, "a file whose name is no digest", removed);
                    continue;
                };
                if records::content::is_kept(&self.meta.read()?, &digest)? {
                    continue;
                }
                // Who deletes it holds one of the two until the file is gone too.
                let _settled = self.settled();
                let _reserved = self.reserved.hold_all(vec![digest.clone()]);
                let there = self.files.blob_size(&digest)?.is_some();
                if !there || self.placed.any(&digest) || records::content::is_kept(&self.meta.read()?, &digest)? {
                    continue;
                }
                let removed = repair.then(|| self.remove_unlinked(&digest).map(drop));
                found.stray(Fault::BlobUnrecorded, id, "no namespace has it", removed);
            }
        }
        Ok(())
    }

    fn check_ingests(&self, repair: bool, found: &mut Findings) -> Result<()> {
        for ns in self.namespaces()? {
            for record in records::ingests::list(&self.meta.read()?, &ns, None, usize::MAX)? {
                if self.files.ingest_stat(&record.id.to_string())?.is_some() {
                    continue;
                }
                // Its writer may be about to make the file, or to make a blob of it.
                let Some(_held) = self.refs.try_hold(RefKey::Ref(ns.clone(), record.reference.clone())) else {
                    continue;
                };
                let now =
                    records::readable(records::ingests::find(&self.meta.read()?, &ns, &record.reference))?.flatten();
                if now.is_none_or(|now| now.id != record.id)
                    || self.files.ingest_stat(&record.id.to_string())?.is_some()
                {
                    continue;
                }
                let drop = || match self.drop_record(&Authority::system(), &ns, &record.reference, Some(record.id)) {
                    Err(error) if error.code != Code::NotFound => Err(error),
                    _ => Ok(()),
                };
                let id = format!("ingest/{ns}/{}", record.reference);
                found.stray(Fault::IngestMissing, id, "its bytes are gone", repair.then(drop));
            }
        }
        Ok(())
    }

    fn check_ingest_files(&self, repair: bool, found: &mut Findings) -> Result<()> {
        let names = self.files.ingest_names()?;
        // Looked at after the files: a record comes before its file.
        let ids = records::ingests::ids(&self.meta.read()?)?;
        for name in names {
            let known = name.parse().is_ok_and(|id| ids.as_ref().is_none_or(|ids| ids.contains(&id)));
            if known || self.files.ingest_stat(&name)?.is_none() {
                continue;
            }
            // A scratch ingest is held by its name. A recorded one that ended just now takes its file along with it.
            let Some(_held) = self.refs.try_hold(RefKey::Scratch(name.clone())) else { continue };
            if !self.stays(&name)? {
                continue;
            }
            let removed = repair.then(|| self.files.remove_ingest(&name));
            found.stray(Fault::IngestUnrecorded, format!("ingest/{name}"), "no ingest has it", removed);
        }
        Ok(())
    }

    /// Whether a file without a record is nobody's: who has just dropped its record removes it at once.
    fn stays(&self, name: &str) -> Result<bool> {
        for _ in 0..LOOKS {
            if self.files.ingest_stat(name)?.is_none() {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
        Ok(self.files.ingest_stat(name)?.is_some())
    }
}

/// How often and how long apart it is looked for what somebody is about to remove.
const LOOKS: u32 = 20;
const LOOK: std::time::Duration = std::time::Duration::from_millis(10);
