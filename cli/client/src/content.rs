//! Content.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    rc::Rc,
};

use cofferdam_types::{Digest, Digester, Error, Labels, Result, Timestamp};
use cofferdam_wire::{
    content_capnp::{blob, blob_info, content, ingest, ingest_info},
    convert::{labels, set_labels, set_texts, text},
    error::malformed,
};
use serde::Serialize;

use crate::{
    call::{Reply, done_by, reply_by},
    connect::Link,
    cursor::Cursor,
    stdio::Sink,
};

/// What a blob is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlobInfo {
    /// Which bytes.
    pub digest: Digest,
    /// How many.
    pub size: u64,
    /// Its labels in this namespace.
    pub labels: Labels,
    /// When it was made.
    #[serde(serialize_with = "crate::json::time")]
    pub created: Timestamp,
    /// When it was last changed.
    #[serde(serialize_with = "crate::json::time")]
    pub updated: Timestamp,
}

/// What an ingest is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IngestInfo {
    /// Its name.
    pub reference: String,
    /// How many bytes are there.
    pub offset: u64,
    /// How many there will be; 0 is unknown.
    pub total: u64,
    /// The digest that it must have; empty is any.
    pub expected: String,
    /// When it was begun.
    #[serde(serialize_with = "crate::json::time")]
    pub started: Timestamp,
    /// When the last bytes came.
    #[serde(serialize_with = "crate::json::time")]
    pub updated: Timestamp,
    /// Of the bytes that are there; empty unless [`Ingest::info`] says it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub digest: String,
}

fn blob_info(reader: blob_info::Reader<'_>) -> Result<BlobInfo> {
    Ok(BlobInfo {
        digest: text(reader.get_digest())?.parse()?,
        size: reader.get_size(),
        labels: labels(reader.get_labels())?,
        created: Timestamp(reader.get_created()),
        updated: Timestamp(reader.get_updated()),
    })
}

fn ingest_info(reader: ingest_info::Reader<'_>) -> Result<IngestInfo> {
    Ok(IngestInfo {
        reference: text(reader.get_reference())?.to_owned(),
        offset: reader.get_offset(),
        total: reader.get_total(),
        expected: text(reader.get_expected())?.to_owned(),
        started: Timestamp(reader.get_started()),
        updated: Timestamp(reader.get_updated()),
        digest: text(reader.get_digest())?.to_owned(),
    })
}

/// The content of a namespace.
#[derive(Clone)]
pub struct Content {
    pub(crate) link: Rc<Link>,
    pub(crate) client: content::Client,
}

impl Content {
    /// One blob.
    pub fn get(&self, digest: &str) -> Blob {
        let mut request = self.client.get_request();
        request.get().set_digest(digest);
        Blob { link: self.link.clone(), client: request.send().pipeline.get_blob() }
    }

    /// All blobs that pass one of the filters.
    pub fn list<S: AsRef<str>>(&self, filters: &[S]) -> Cursor<BlobInfo> {
        let mut request = self.client.list_request();
        set_texts(request.get().init_filters(filters.len() as u32), filters);
        Cursor::over_records(&self.link, request.send().pipeline.get_cursor(), blob_info)
    }

    /// Opens an ingest, or takes up where an earlier one of that name ended. A `total` of 0 and empty texts are unknown
    /// or the default.
    pub fn ingest(&self, reference: &str, total: u64, expected: &str, algorithm: &str) -> Ingest {
        let mut request = self.client.ingest_request();
        request.get().set_reference(reference);
        request.get().set_total(total);
        request.get().set_expected(expected);
        request.get().set_algorithm(algorithm);
        Ingest { link: self.link.clone(), client: request.send().pipeline.get_ingest() }
    }

    /// All ingests that are under way, or were interrupted, and pass one of the filters.
    pub fn ingests<S: AsRef<str>>(&self, filters: &[S]) -> Cursor<IngestInfo> {
        let mut request = self.client.ingests_request();
        set_texts(request.get().init_filters(filters.len() as u32), filters);
        Cursor::of(&self.link, request.send().pipeline.get_cursor(), ingest_info)
    }

    /// How an ingest stands, without taking hold of it.
    pub fn status(&self, reference: &str) -> Reply<IngestInfo> {
        let mut request = self.client.status_request();
        request.get().set_reference(reference);
        reply_by(&self.link, &self.client, request, |answer| ingest_info(answer.get_info().map_err(malformed)?))
    }

    /// Throws an ingest away.
    pub fn abort(&self, reference: &str) -> Reply<()> {
        let mut request = self.client.abort_request();
        request.get().set_reference(reference);
        done_by(&self.link, &self.client, request)
    }

    /// Removes a blob from this namespace.
    pub fn remove(&self, digest: &str) -> Reply<()> {
        let mut request = self.client.remove_request();
        request.get().set_digest(digest);
        done_by(&self.link, &self.client, request)
    }
}

/// A blob.
#[derive(Clone)]
pub struct Blob {
    link: Rc<Link>,
    client: blob::Client,
}

impl Blob {
    /// What it is.
    pub fn info(&self) -> Reply<BlobInfo> {
        reply_by(&self.link, &self.client, self.client.info_request(), |answer| {
            blob_info(answer.get_info().map_err(malformed)?)
        })
    }

    /// Writes its bytes into the sink and ends that. A length of 0 is "to the end".
    pub fn read(&self, offset: u64, length: u64, sink: &Sink) -> Reply<()> {
        let mut request = self.client.read_request();
        request.get().set_offset(offset);
        request.get().set_length(length);
        request.get().set_sink(sink.client.clone());
        done_by(&self.link, &self.client, request)
    }

    /// Writes its bytes into a pipe, socket or file of yours. A length of 0 is "to the end".
    pub fn read_fd(&self, offset: u64, length: u64, sink: OwnedFd) -> Reply<()> {
        let mut request = self.client.read_fd_request();
        request.get().set_offset(offset);
        request.get().set_length(length);
        request.get().set_sink(self.link.fds.push(sink));
        done_by(&self.link, &self.client, request)
    }

    /// Takes what is named, labels or labels.KEY, from `labels`; all of them where nothing is. An entry that is absent
    /// there is removed.
    pub fn update<S: AsRef<str>>(&self, labels: &Labels, fields: &[S]) -> Reply<BlobInfo> {
        let mut request = self.client.update_request();
        set_labels(request.get().init_labels(labels.len() as u32), labels);
        set_texts(request.get().init_fields(fields.len() as u32), fields);
        reply_by(&self.link, &self.client, request, |answer| blob_info(answer.get_info().map_err(malformed)?))
    }
}

/// What is becoming a blob.
#[derive(Clone)]
pub struct Ingest {
    link: Rc<Link>,
    client: ingest::Client,
}

impl Ingest {
    /// How it stands.
    pub fn info(&self) -> Reply<IngestInfo> {
        reply_by(&self.link, &self.client, self.client.info_request(), |answer| {
            ingest_info(answer.get_info().map_err(malformed)?)
        })
    }

    /// Where its bytes go, behind those that are there.
    pub fn sink(&self) -> Sink {
        Sink::new(&self.link, self.client.sink_request().send().pipeline.get_sink())
    }

    /// Reads a pipe, socket or file of yours to its end, a file from where it stands, and gives the new offset.
    pub fn take_fd(&self, source: OwnedFd) -> Reply<u64> {
        let mut request = self.client.take_fd_request();
        request.get().set_source(self.link.fds.push(source));
        reply_by(&self.link, &self.client, request, |answer| Ok(answer.get_offset()))
    }

    /// Copies a pipe, socket or file of yours, which begins where it stands now. What an earlier copy left is thrown away if the
    /// source can't seek, and gone on with if the source begins with it; `failed_precondition` if it doesn't.
    pub async fn copy_fd(&self, source: OwnedFd) -> Result<u64> {
        let found = self.info().await?;
        if found.offset == 0 {
            return self.take_fd(source).await;
        }
        let digest: Digest = found.digest.parse()?;
        let read = move || skip(source.into(), found.offset, &digest);
        // The connection is served meanwhile.
        let read = tokio::task::spawn_blocking(read).await;
        let read =
            read.map_err(|e| Error::internal("ingest", &found.reference, format!("its source was not read: {e}")))?;
        match read.map_err(|e| Error::io("ingest", &found.reference, "read its source", &e))? {
            (source, Some(true)) => self.take_fd(source.into()).await,
            (source, None) => {
                self.truncate().await?;
                self.take_fd(source.into()).await
            }
            (_, Some(false)) => {
                let why = format!(
                    "has {} bytes by now that this source doesn't begin with: abort it, or take another reference",
                    found.offset
                );
                Err(Error::failed_precondition("ingest", found.reference, why))
            }
        }
    }

    /// Begins it anew.
    pub fn truncate(&self) -> Reply<()> {
        done_by(&self.link, &self.client, self.client.truncate_request())
    }

    /// Makes a blob of it, synced to disk. A size of 0 and an empty digest are not compared.
    pub fn commit(&self, size: u64, expected: &str, labels: &Labels) -> Reply<Digest> {
        let mut request = self.client.commit_request();
        request.get().set_size(size);
        request.get().set_expected(expected);
        set_labels(request.get().init_labels(labels.len() as u32), labels);
        reply_by(&self.link, &self.client, request, |answer| text(answer.get_digest())?.parse())
    }
}

/// Moves a source on by so much, if its next bytes have this digest; whether they have, or none where it can't seek.
fn skip(mut source: File, by: u64, digest: &Digest) -> io::Result<(File, Option<bool>)> {
    use io::{Seek as _, SeekFrom};
    let (meta, at) = (source.metadata()?, source.stream_position());
    let Some(mut at) = at.ok().filter(|_| meta.is_file()) else { return Ok((source, None)) };
    let to = at.saturating_add(by);
    let (mut digester, mut buffer) = (Digester::new(digest.algorithm()), vec![0; 256 << 10]);
    while at < to {
        let want = buffer.len().min(usize::try_from(to - at).unwrap_or(usize::MAX));
        match source.read_at(&mut buffer[..want], at) {
            Ok(0) => return Ok((source, Some(false))),
            Ok(count) => {
                digester.update(&buffer[..count]);
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    source.seek(SeekFrom::Start(to))?;
    Ok((source, Some(digester.finish() == *digest)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use cofferdam_types::Algorithm;

    use super::*;

    #[test]
    fn a_source_goes_on_only_behind_what_it_begins_with() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"--abcdef").unwrap();
        let skipped = |bytes: &[u8], by: u64| {
            let mut source = file.try_clone().unwrap();
            source.seek(io::SeekFrom::Start(2)).unwrap();
            let (mut source, same) = skip(source, by, &Digest::of(Algorithm::Blake3, bytes)).unwrap();
            let mut rest = String::new();
            source.read_to_string(&mut rest).unwrap();
            (same, rest)
        };
        assert_eq!(skipped(b"abcd", 4), (Some(true), "ef".into()));
        assert_eq!(skipped(b"abcdef", 6), (Some(true), String::new()));
        assert_eq!(skipped(b"abcx", 4).0, Some(false));
        assert_eq!(skipped(b"abcdefg", 7).0, Some(false));
        // Of a pipe nothing is taken.
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"abcd").unwrap();
        drop(writer);
        let (mut reader, same) =
            skip(OwnedFd::from(reader).into(), 4, &Digest::of(Algorithm::Sha256, b"abcd")).unwrap();
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!((same, &*rest), (None, "abcd"));
    }
}
