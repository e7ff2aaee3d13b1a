//! `Content`, `Blob` and `Ingest` (content.capnp).

use std::{
    cell::RefCell,
    io::{Read, Seek as _, SeekFrom, Write as _},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
};

use cofferdam_content::{BlobReader, Info, Ingest as Writer, IngestOptions, Status};
use cofferdam_types::{Algorithm, Digest, Error, Name, Result, filter};
use cofferdam_wire::{
    common_capnp::byte_stream,
    connect::CHUNK,
    content_capnp::{blob, blob_cursor, blob_info, content, ingest, ingest_cursor, ingest_info},
    convert::{labels, set_labels, text, texts},
    error::from_rpc,
};

use super::{Place, cursor::Cursor, filters, inflow, outflow, rpc};

/// The content of a namespace.
pub struct Content(pub Place);

fn set_blob(mut builder: blob_info::Builder<'_>, info: &Info) {
    builder.set_digest(info.digest.to_string());
    builder.set_size(info.size);
    set_labels(builder.reborrow().init_labels(info.labels.len() as u32), &info.labels);
    builder.set_created(info.created.0);
    builder.set_updated(info.updated.0);
}

fn set_ingest(mut builder: ingest_info::Builder<'_>, status: &Status) {
    builder.set_reference(&*status.reference);
    builder.set_offset(status.offset);
    builder.set_total(status.total.unwrap_or_default());
    builder.set_expected(status.expected.as_ref().map(Digest::to_string).unwrap_or_default());
    builder.set_started(status.started.0);
    builder.set_updated(status.updated.0);
}

fn algorithm(name: &str) -> Result<Algorithm> {
    if name.is_empty() {
        return Ok(Algorithm::Sha256);
    }
    let known = Algorithm::ALL.into_iter().find(|algorithm| algorithm.as_str() == name);
    known.ok_or_else(|| Error::invalid("algorithm", name, "is not one of sha256, sha512 and blake3"))
}

impl content::Server for Content {
    async fn get(self: Rc<Self>, params: content::GetParams, mut results: content::GetResults) -> capnp::Result<()> {
        let digest: Digest = rpc(rpc(text(params.get()?.get_digest()))?.parse())?;
        rpc(self.0.services().content.info(&self.0.namespace, &digest))?;
        results.get().set_blob(self.0.hand_out(Blob { place: self.0.clone(), digest }));
        Ok(())
    }

    async fn list(self: Rc<Self>, params: content::ListParams, mut results: content::ListResults) -> capnp::Result<()> {
        let filters = rpc(filters(params.get()?.get_filters(), &["digest", "labels.KEY"]))?;
        let (handle, namespace) = (self.0.services().content.clone(), self.0.namespace.clone());
        let cursor = Cursor::new(
            Box::new(move |after, max| {
                let after = after.map(str::parse::<Digest>).transpose()?;
                handle.list(&namespace, after.as_ref(), max)
            }),
            |info: &Info| info.digest.to_string(),
            move |info| {
                filters.matches(&|path: &[&str]| match path {
                    ["digest"] => Some(info.digest.to_string().into()),
                    ["labels", rest @ ..] => filter::label(&info.labels, rest),
                    _ => None,
                })
            },
        );
        results.get().set_cursor(self.0.hand_out(BlobCursor(cursor)));
        Ok(())
    }

    async fn ingest(
        self: Rc<Self>,
        params: content::IngestParams,
        mut results: content::IngestResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let expected = rpc(text(params.get_expected()))?;
        let options = IngestOptions {
            reference: rpc(Name::new(rpc(text(params.get_reference()))?))?,
            total: (params.get_total() != 0).then_some(params.get_total()),
            expected: if expected.is_empty() { None } else { Some(rpc(expected.parse())?) },
            algorithm: rpc(text(params.get_algorithm()).and_then(algorithm))?,
            unread: false,
        };
        let opened = self.0.services().content.ingest(&self.0.authority().by_hand(), &self.0.namespace, options).await;
        let writer = Arc::new(Mutex::new(Some(rpc(opened)?)));
        results.get().set_ingest(self.0.hand_out(Ingest { place: self.0.clone(), writer }));
        Ok(())
    }

    async fn ingests(
        self: Rc<Self>,
        params: content::IngestsParams,
        mut results: content::IngestsResults,
    ) -> capnp::Result<()> {
        let filters = rpc(filters(params.get()?.get_filters(), &["ref"]))?;
        let (handle, namespace) = (self.0.services().content.clone(), self.0.namespace.clone());
        let cursor = Cursor::new(
            Box::new(move |after, max| handle.statuses(&namespace, after, max)),
            |status: &Status| status.reference.to_string(),
            move |status| {
                filters.matches(&|path: &[&str]| match path {
                    ["ref"] => Some(status.reference.as_str().into()),
                    _ => None,
                })
            },
        );
        results.get().set_cursor(self.0.hand_out(IngestCursor(cursor)));
        Ok(())
    }

    async fn abort(self: Rc<Self>, params: content::AbortParams, _: content::AbortResults) -> capnp::Result<()> {
        let reference = rpc(Name::new(rpc(text(params.get()?.get_reference()))?))?;
        rpc(self.0.services().content.abort(self.0.authority(), &self.0.namespace, &reference).await)
    }

    async fn remove(self: Rc<Self>, params: content::RemoveParams, _: content::RemoveResults) -> capnp::Result<()> {
        let digest: Digest = rpc(rpc(text(params.get()?.get_digest()))?.parse())?;
        rpc(self.0.services().content.delete(self.0.authority(), &self.0.namespace, &digest).await)
    }

    async fn status(
        self: Rc<Self>,
        params: content::StatusParams,
        mut results: content::StatusResults,
    ) -> capnp::Result<()> {
        let reference = rpc(Name::new(rpc(text(params.get()?.get_reference()))?))?;
        let status = rpc(self.0.services().content.status(&self.0.namespace, &reference))?;
        set_ingest(results.get().init_info(), &status);
        Ok(())
    }
}

struct BlobCursor(Cursor<Info>);

impl blob_cursor::Server for BlobCursor {
    async fn next(
        self: Rc<Self>,
        params: blob_cursor::NextParams,
        mut results: blob_cursor::NextResults,
    ) -> capnp::Result<()> {
        let (block, end) = rpc(self.0.next(params.get()?.get_max()))?;
        let mut answer = results.get();
        answer.set_end(end);
        let mut items = answer.init_items(block.len() as u32);
        for (n, info) in block.iter().enumerate() {
            set_blob(items.reborrow().get(n as u32), info);
        }
        Ok(())
    }
}

struct IngestCursor(Cursor<Status>);

impl ingest_cursor::Server for IngestCursor {
    async fn next(
        self: Rc<Self>,
        params: ingest_cursor::NextParams,
        mut results: ingest_cursor::NextResults,
    ) -> capnp::Result<()> {
        let (block, end) = rpc(self.0.next(params.get()?.get_max()))?;
        let mut answer = results.get();
        answer.set_end(end);
        let mut items = answer.init_items(block.len() as u32);
        for (n, status) in block.iter().enumerate() {
            set_ingest(items.reborrow().get(n as u32), status);
        }
        Ok(())
    }
}

/// One blob of the namespace.
struct Blob {
    place: Place,
    digest: Digest,
}

impl Blob {
    /// What is read of it: where that is, checked against the size, and how much it is.
    fn range(&self, offset: u64, length: u64) -> Result<(BlobReader, u64)> {
        let reader = self.place.services().content.reader(&self.place.namespace, &self.digest)?;
        let size = reader.size();
        let end = if length == 0 { size } else { offset.saturating_add(length) };
        if offset > size || end > size {
            return Err(Error::out_of_range("blob", &self.digest, format!("has {size} bytes: ask for fewer")));
        }
        Ok((reader, end - offset))
    }

    /// The same as a file that is there.
    fn file(&self, offset: u64, length: u64) -> Result<(std::fs::File, u64)> {
        let (reader, left) = self.range(offset, length)?;
        let failed = |e: std::io::Error| Error::io("blob", &self.digest, "can't be read", &e);
        let mut file = reader.into_file().map_err(failed)?;
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        Ok((file, left))
    }

    /// The same for who passes its bytes on: all of it is compared with its digest.
    fn source(&self, offset: u64, length: u64) -> Result<(Box<dyn Read + Send>, u64)> {
        let (mut reader, left) = self.range(offset, length)?;
        if left == reader.size() {
            return Ok((Box::new(self.place.services().content.judged(reader)), left));
        }
        reader.seek(SeekFrom::Start(offset)).map_err(|e| Error::io("blob", &self.digest, "can't be read", &e))?;
        Ok((Box::new(reader), left))
    }
}

impl blob::Server for Blob {
    async fn info(self: Rc<Self>, _: blob::InfoParams, mut results: blob::InfoResults) -> capnp::Result<()> {
        let info = rpc(self.place.services().content.info(&self.place.namespace, &self.digest))?;
        set_blob(results.get().init_info(), &info);
        Ok(())
    }

    async fn read(self: Rc<Self>, params: blob::ReadParams, _: blob::ReadResults) -> capnp::Result<()> {
        let params = params.get()?;
        let (mut source, mut left) = rpc(self.source(params.get_offset(), params.get_length()))?;
        let sink: byte_stream::Client = params.get_sink()?;
        while left > 0 {
            let want = left.min(CHUNK as u64) as usize;
            let room = self.place.session.meter.room(want).await;
            let read = move || {
                let mut chunk = vec![0; want];
                source.read_exact(&mut chunk).map_err(|e| {
                    match e.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
                        Some(ours) => ours.clone(),
                        None => Error::io("blob", "", "can't be read", &e),
                    }
                })?;
                Ok((source, chunk))
            };
            let (same, chunk) = rpc(self.place.services().pool.run(read).await)?;
            source = same;
            left -= chunk.len() as u64;
            let mut request = sink.write_request();
            request.get().set_chunk(&chunk);
            // It is in the message, and that may wait for long.
            drop(chunk);
            rpc(room.send(request).await)?;
        }
        rpc(sink.end_request().send().promise.await.map_err(from_rpc))?;
        Ok(())
    }

    async fn read_fd(self: Rc<Self>, params: blob::ReadFdParams, _: blob::ReadFdResults) -> capnp::Result<()> {
        let params = params.get()?;
        let sink = rpc(self.place.session.fds.take(params.get_sink()))?;
        let (file, left) = rpc(self.file(params.get_offset(), params.get_length()))?;
        rpc(outflow::pour(&self.place.services().pool, file, left, sink, &self.place.session.files).await)
    }

    async fn update(self: Rc<Self>, params: blob::UpdateParams, mut results: blob::UpdateResults) -> capnp::Result<()> {
        let params = params.get()?;
        let (labels, fields) = (rpc(labels(params.get_labels()))?, rpc(texts(params.get_fields()))?);
        let (all, auth) = (&self.place.services().content, self.place.authority());
        let info = rpc(all.update(auth, &self.place.namespace, &self.digest, labels, fields).await)?;
        set_blob(results.get().init_info(), &info);
        Ok(())
    }
}

/// An ingest that this client holds. Dropping it lets go of the reference; what was written stays.
struct Ingest {
    place: Place,
    writer: Arc<Mutex<Option<Writer>>>,
}

/// Works on the writer on a thread of the pool: writing and syncing block.
async fn on_writer<R: Send + 'static>(
    place: &Place,
    writer: &Arc<Mutex<Option<Writer>>>,
    work: impl FnOnce(&mut Option<Writer>) -> Result<R> + Send + 'static,
) -> Result<R> {
    let writer = writer.clone();
    place.services().pool.run(move || work(&mut writer.lock().unwrap_or_else(PoisonError::into_inner))).await
}

fn open(writer: &mut Option<Writer>) -> Result<&mut Writer> {
    writer.as_mut().ok_or_else(|| Error::failed_precondition("ingest", "", "is committed already"))
}

impl ingest::Server for Ingest {
    async fn info(self: Rc<Self>, _: ingest::InfoParams, mut results: ingest::InfoResults) -> capnp::Result<()> {
        let read = |writer: &mut Option<Writer>| {
            let writer = open(writer)?;
            let reference = writer.reference().cloned();
            let status = Status {
                reference: reference.ok_or_else(|| Error::internal("ingest", "", "has no reference"))?,
                offset: writer.offset(),
                total: writer.total(),
                expected: writer.expected().cloned(),
                started: writer.started(),
                updated: writer.updated()?,
            };
            Ok((status, writer.digest_so_far()))
        };
        let (status, digest) = rpc(on_writer(&self.place, &self.writer, read).await)?;
        let mut info = results.get().init_info();
        set_ingest(info.reborrow(), &status);
        info.set_digest(digest.to_string());
        Ok(())
    }

    async fn sink(self: Rc<Self>, _: ingest::SinkParams, mut results: ingest::SinkResults) -> capnp::Result<()> {
        let object = IngestSink { place: self.place.clone(), writer: self.writer.clone(), failed: RefCell::new(None) };
        results.get().set_sink(self.place.hand_out(object));
        Ok(())
    }

    async fn truncate(self: Rc<Self>, _: ingest::TruncateParams, _: ingest::TruncateResults) -> capnp::Result<()> {
        rpc(on_writer(&self.place, &self.writer, |writer| open(writer)?.truncate()).await)
    }

    async fn take_fd(
        self: Rc<Self>,
        params: ingest::TakeFdParams,
        mut results: ingest::TakeFdResults,
    ) -> capnp::Result<()> {
        let source = rpc(self.place.session.fds.take(params.get()?.get_source()))?;
        let turn = async |inlet: inflow::Inlet| {
            on_writer(&self.place, &self.writer, move |writer| {
                let writer = open(writer)?;
                inlet.turn(&mut |bytes| writer.append(bytes))
            })
            .await
        };
        rpc(inflow::draw(source, &self.place.session.files, turn).await)?;
        let offset = |writer: &mut Option<Writer>| Ok(open(writer)?.offset());
        results.get().set_offset(rpc(on_writer(&self.place, &self.writer, offset).await)?);
        Ok(())
    }

    async fn commit(
        self: Rc<Self>,
        params: ingest::CommitParams,
        mut results: ingest::CommitResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let size = (params.get_size() != 0).then_some(params.get_size());
        let expected = rpc(text(params.get_expected()))?;
        let expected: Option<Digest> = if expected.is_empty() { None } else { Some(rpc(expected.parse())?) };
        let labels = rpc(labels(params.get_labels()))?;
        let authority = self.place.authority().by_hand();
        let commit = move |writer: &mut Option<Writer>| {
            open(writer)?;
            let Some(taken) = writer.take() else { return Err(Error::internal("ingest", "", "vanished")) };
            taken.commit_blocking(&authority, size, expected.as_ref(), labels)
        };
        let digest = rpc(on_writer(&self.place, &self.writer, commit).await)?;
        results.get().set_digest(digest.to_string());
        Ok(())
    }
}

struct IngestSink {
    place: Place,
    writer: Arc<Mutex<Option<Writer>>>,
    failed: RefCell<Option<Error>>,
}

impl byte_stream::Server for IngestSink {
    async fn write(self: Rc<Self>, params: byte_stream::WriteParams) -> capnp::Result<()> {
        let chunk = params.get()?.get_chunk()?.to_vec();
        if chunk.len() > CHUNK {
            return rpc(Err(Error::invalid("chunk", "", format!("has more than {CHUNK} bytes"))));
        }
        let write = move |writer: &mut Option<Writer>| {
            open(writer)?.write_all(&chunk).map_err(|e| Error::io("ingest", "", "can't be written", &e))
        };
        let written = on_writer(&self.place, &self.writer, write).await;
        if let Err(error) = &written {
            *self.failed.borrow_mut() = Some(error.clone());
        }
        rpc(written)
    }

    async fn end(self: Rc<Self>, _: byte_stream::EndParams, _: byte_stream::EndResults) -> capnp::Result<()> {
        match self.failed.borrow().clone() {
            Some(error) => rpc(Err(error)),
            None => Ok(()),
        }
    }
}
