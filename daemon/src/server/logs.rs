//! `Container.logs` (container.capnp): from the files of a log into a client's sink.

use std::time::Duration;

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

/// Writes the log into the sink; with `follow` until the task has ended and all of it is written.
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
    let (mut reader, mut selector) = services.pool.run(move || start(&dir, format, query)).await?;
    loop {
        // Asked before the log is read: what it wrote before its end is in the log by then.
        let running = follow
            && (until == Timestamp(0) || Timestamp::now() <= until)
            && match services.tasks.query(namespace, id, String::new()).await {
                Ok(state) => state.exit.is_none(),
                Err(error) => error.code == Code::Unavailable,
            };
        loop {
            let room = place.session.meter.room(MESSAGE).await;
            let read = move || {
                let entries = reader.read(BLOCK)?;
                let any = !entries.is_empty();
                let shown: Vec<_> = entries.into_iter().filter_map(|entry| selector.take(entry)).collect();
                Ok((reader, selector, any, shown))
            };
            let (same, passes, any, shown) = services.pool.run(read).await?;
            (reader, selector) = (same, passes);
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
