//! What a crash may have left: files that no record knows are removed, and records that lost their file are told of.
//! Runs beside ordinary work; every removal holds what an ingest or a commit of the same thing would hold.

use std::{str::FromStr, sync::PoisonError};

use cofferdam_metadata::records;
use cofferdam_types::{Algorithm, Authority, Digest, Namespace, Result};

use crate::store::{RefKey, Store};

const PAGE: usize = 500;
/// So many damaged blobs are told of one by one.
const TOLD: u64 = 20;
const MORE: u64 = TOLD + 1;

/// What a sweep found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Files of ingests that had no record.
    pub ingest_files: u64,
    /// Records of ingests that had no file.
    pub ingest_records: u64,
    /// Files of blobs that had no record, or no digest for a name.
    pub blob_files: u64,
    /// Blobs whose file is missing or has the wrong size. Their records stay: the bytes can be fetched again.
    pub damaged: u64,
}

impl Store {
    pub(crate) fn sweep(&self) -> Result<Swept> {
        let _alone = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        let mut swept = Swept::default();
        self.sweep_ingest_files(&mut swept)?;
        self.sweep_ingest_records(&mut swept)?;
        self.sweep_blob_files(&mut swept)?;
        self.find_damage(&mut swept)?;
        if swept != Swept::default() {
            tracing::warn!(?swept, "the content store was swept");
        }
        Ok(swept)
    }

    fn sweep_ingest_files(&self, swept: &mut Swept) -> Result<()> {
        let names = self.files.ingest_names()?;
        // Looked at after the files: a record comes before its file.
        let ids = records::ingests::ids(&self.meta.read()?)?;
        for name in names {
            // Where they are not all known it may be any of them: only a record's file has a number for a name.
            if name.parse().is_ok_and(|id| ids.as_ref().is_none_or(|ids| ids.contains(&id))) {
                continue;
            }
            let Some(_held) = self.refs.try_hold(RefKey::Scratch(name.clone())) else { continue };
            self.files.remove_ingest(&name)?;
            swept.ingest_files += 1;
        }
        Ok(())
    }

    fn sweep_ingest_records(&self, swept: &mut Swept) -> Result<()> {
        for ns in self.namespaces()? {
            let view = self.meta.read()?;
            for record in records::ingests::list(&view, &ns, None, usize::MAX)? {
                if self.files.ingest_stat(&record.id.to_string())?.is_some() {
                    continue;
                }
                let key = RefKey::Ref(ns.clone(), record.reference.clone());
                let Some(_held) = self.refs.try_hold(key) else { continue };
                match self.drop_record(&Authority::system(), &ns, &record.reference, Some(record.id)) {
                    Ok(_) => swept.ingest_records += 1,
                    Err(error) if error.code == cofferdam_types::Code::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    pub(crate) fn namespaces(&self) -> Result<Vec<Namespace>> {
        let view = self.meta.read()?;
        records::namespaces::names(&view)
    }

    fn sweep_blob_files(&self, swept: &mut Swept) -> Result<()> {
        for algorithm in Algorithm::ALL {
            for name in self.files.blob_names(algorithm)? {
                let Ok(digest) = Digest::from_str(&format!("{}:{name}", algorithm.as_str())) else {
                    self.files.remove_stray(algorithm, &name)?;
                    swept.blob_files += 1;
                    continue;
                };
                if records::content::is_kept(&self.meta.read()?, &digest)? {
                    continue;
                }
                // A commit of it may be under way: its file is there before its record.
                let _reserved = self.reserved.hold_all(vec![digest.clone()]);
                swept.blob_files += u64::from(self.remove_unlinked(&digest)?);
            }
        }
        Ok(())
    }

    fn find_damage(&self, swept: &mut Swept) -> Result<()> {
        let mut after: Option<String> = None;
        loop {
            let page = records::content::blobs(&self.meta.read()?, after.as_deref(), PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.digest.to_string());
            for blob in page {
                let found = self.files.blob_size(&blob.digest)?;
                if found == Some(blob.size) {
                    continue;
                }
                let _reserved = self.reserved.hold_all(vec![blob.digest.clone()]);
                let linked = records::content::is_kept(&self.meta.read()?, &blob.digest)?;
                let found = self.files.blob_size(&blob.digest)?;
                if linked && found != Some(blob.size) {
                    let digest = &blob.digest;
                    swept.damaged += 1;
                    match swept.damaged {
                        ..=TOLD => {
                            tracing::error!(%digest, size = blob.size, ?found, "a blob is damaged on disk: fetch it again");
                        }
                        MORE => tracing::error!("more blobs are: `coffer system check` lists all"),
                        _ => {}
                    }
                }
            }
        }
    }
}
