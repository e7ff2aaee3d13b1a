//! Images on their way out, into a descriptor or a sink of the client's.

use cofferdam_transfer::ExportOptions;
use cofferdam_types::Result;
use cofferdam_wire::{common_capnp::byte_stream, job_capnp::job, received::Received};

use super::{
    Place,
    bytes::{End, pipe, pump},
    ends, foreign, jobs,
};

pub async fn into_fd(place: &Place, options: ExportOptions, target: Received) -> Result<job::Client> {
    let target = foreign::vouched(target, &place.session.files).await?;
    let job = place.services().transfer.export(place.authority(), &place.namespace, options, target).await?;
    Ok(jobs::begun(place, job))
}

pub async fn into_sink(place: &Place, options: ExportOptions, sink: byte_stream::Client) -> Result<job::Client> {
    let (read, write) = pipe(End::Read)?;
    let job = place.services().transfer.export(place.authority(), &place.namespace, options, write).await?;
    let (meter, ended) = (place.session.meter.clone(), ends::of(place));
    tokio::task::spawn_local(async move {
        // A client that takes no more: the job finds a pipe that nobody reads. One whose grant ends is sent no more, and no end: it
        // has not got all of it.
        let pumped = tokio::select! {
            biased;
            error = ended => Err(error),
            pumped = pump(&meter, read, sink) => pumped,
        };
        if let Err(error) = pumped {
            tracing::debug!(%error, "an export ended early");
        }
    });
    Ok(jobs::begun(place, job))
}
