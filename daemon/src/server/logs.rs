//! `Container.logs` (container.capnp): from the files of a log into a client's sink.

use std::{
    fs::File,
    io::ErrorKind,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use cofferdam_log::{Entry, Position, Query, Stream, What, start};
use cofferdam_metadata::records::containers as records;
use cofferdam_tasks::RunRecord;
use cofferdam_types::{Code, Error, Id, Result, Timestamp};
use cofferdam_wire::{
    container_capnp::{log_options, log_record, log_sink},
    error::{from_rpc, malformed},
};

use super::Place;

/// About how many bytes of a log go into one message.
const BLOCK: usize = 128 << 10;
/// And how many that has with them: places and times take as much again, where records are small.
const MESSAGE: usize = 2 * BLOCK;
/// How often a followed log is looked at: the shim writes it, and tells nobody.
const LOOK: Duration = Duration::from_millis(50);

/// What a client asks for.
pub fn query(reader: log_options::Reader<'_>) -> Result<Query> {
    let place = Position { segment: reader.get_segment(), offset: reader.get_offset() };
    Ok(Query {
        since: Timestamp(reader.get_since()),
        until: Timestamp(reader.get_until()),
        stream: match reader.get_streams().map_err(|e| malformed(e.into()))? {
            log_options::Streams::Both => None,
            log_options::Streams::Stdout => Some(Stream::Stdout),
            log_options::Streams::Stderr => Some(Stream::Stderr),
        },
        tail: Some(reader.get_tail()).filter(|lines| *lines != u64::MAX),
        after: Some(place).filter(|place| *place != Position::default()),
    })
}

/// The directory of a log, by what is held of it: its name may come to be that of another container's.
fn opened(dir: &Path) -> Result<Option<(File, PathBuf)>> {
    match File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir) {
        Ok(held) => {
            let path = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
            Ok(Some((held, path)))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("log", "", "can't be opened", &e)),
    }
}

/// Whether the container is still the one that was asked for. Of one that is the grant must still reach it.
fn is_there(place: &Place, asked: &records::Container) -> Result<bool> {
    let which = &place.held.reach.caveats.containers;
    let view = match place.services().metadata.read() {
        // It comes back, and who chooses nothing needn't hear of it.
        Err(error) if error.code == Code::Unavailable && which.is_all() => return Ok(true),
        view => view?,
    };
    match records::head(&view, &place.namespace, &asked.id)? {
        Some(now) if now.created == asked.created => {
            let gone = || Error::not_found("container", &asked.id, "does not exist");
            if which.is_all() || which.has(&now.subject()) { Ok(true) } else { Err(gone()) }
        }
        _ => Ok(false),
    }
}

/// Writes the log into the sink; with `follow` until the task has ended and all of it is written, or the container is another, or
/// none that the grant reaches. Where there is no task yet it waits for one.
pub async fn copy(place: &Place, id: &Id, follow: bool, query: Query, sink: &log_sink::Client) -> Result<()> {
    let (services, namespace) = (place.services(), &place.namespace);
    let record = records::get(&services.metadata.read()?, namespace, id)?;
    let run: RunRecord = serde_json::from_slice(&record.options).unwrap_or_default();
    let driver = run.log.driver;
    let format = driver.format().ok_or_else(|| {
        let why = match driver {
            cofferdam_log::Driver::Journald => format!("is in the journal: journalctl CONTAINER_ID={id}"),
            _ => format!("is not kept: its log driver is {}", driver.as_str()),
        };
        Error::failed_precondition("log", id, why)
    })?;
    let dir = services.tasks.layout().log_dir(namespace, id);
    let until = query.until;
    let (mut query, mut log, mut begun) = (query, None, false);
    loop {
        // Asked before the log is read: what it wrote before its end is in the log by then.
        let running = follow
            && (until == Timestamp(0) || Timestamp::now() <= until)
            && match services.tasks.query(namespace, id, String::new()).await {
                Ok(state) => {
                    begun = true;
                    state.exit.is_none()
                }
                // Of a container that is just being made, or made to run again, the task is to come.
                Err(error) if error.code == Code::NotFound => !begun,
                Err(error) => error.code == Code::Unavailable,
            }
            && is_there(place, &record)?;
        if log.is_none() {
            let dir = dir.clone();
            let found = services.pool.run(move || opened(&dir)).await?;
            // Asked behind that: it is that one's then.
            if !is_there(place, &record)? {
                return end(sink).await;
            }
            match found {
                Some((held, path)) => {
                    let query = query.clone();
                    let begin = move || Ok((held, start(&path, format, query)?));
                    log = Some(services.pool.run(begin).await?);
                }
                // What comes has no end yet that could be counted from.
                None => query.tail = None,
            }
        }
        while let Some((held, (mut reader, mut selector))) = log.take() {
            let room = place.session.meter.room(MESSAGE).await;
            let read = move || {
                let entries = reader.read(BLOCK)?;
                let any = !entries.is_empty();
                let shown: Vec<_> = entries.into_iter().filter_map(|entry| selector.take(entry)).collect();
                Ok(((reader, selector), any, shown))
            };
            let (going, any, shown) = services.pool.run(read).await?;
            log = Some((held, going));
            is_there(place, &record)?;
            if !shown.is_empty() {
                let mut request = sink.write_request();
                set_records(&mut request, &shown);
                // They are in the message, and that may wait for long.
                drop(shown);
                room.send(request).await?;
            }
            if !any {
                break;
            }
        }
        if !running {
            return end(sink).await;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn end(sink: &log_sink::Client) -> Result<()> {
    sink.end_request().send().promise.await.map_err(from_rpc)?;
    Ok(())
}

fn set_records(request: &mut capnp::capability::StreamingRequest<log_sink::write_params::Owned>, entries: &[Entry]) {
    let mut list = request.get().init_records(entries.len() as u32);
    for (n, entry) in entries.iter().enumerate() {
        let mut builder = list.reborrow().get(n as u32);
        builder.set_time(entry.time.0);
        builder.set_segment(entry.next.segment);
        builder.set_offset(entry.next.offset);
        match &entry.what {
            What::Output(stream, bytes) => {
                builder.set_stream(match stream {
                    Stream::Stdout => log_record::Stream::Stdout,
                    Stream::Stderr => log_record::Stream::Stderr,
                });
                builder.set_bytes(bytes);
            }
            What::Lost(why) => builder.set_lost(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A container is removed, and made anew under its name, while somebody follows its log.
    #[test]
    fn the_directory_of_a_log_is_that_of_one_container() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("web");
        assert!(opened(&dir).unwrap().is_none());
        std::fs::create_dir(&dir).unwrap();
        let (_held, path) = opened(&dir).unwrap().unwrap();
        let read = |dir: &Path| {
            let format = cofferdam_log::Driver::Cri.format().unwrap();
            let (mut reader, _) = start(dir, format, Query::default()).unwrap();
            reader.read(BLOCK).unwrap()
        };
        let write = || std::fs::write(dir.join("output.log"), "2026-01-01T00:00:00Z stdout F hello\n").unwrap();
        write();
        assert_eq!(read(&path).len(), 1);
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(read(&path).is_empty());
        std::fs::create_dir(&dir).unwrap();
        write();
        assert_eq!((read(&path).len(), read(&dir).len()), (0, 1));
    }
}
