//! A client's streams, as the tasks subsystem takes them: descriptors. Streams that are capabilities end here, in pipes.

use cofferdam_tasks::{Input, Output, Stdio};
use cofferdam_types::Result;
use cofferdam_wire::{
    common_capnp::{byte_stream, input, output, stdio},
    convert::text,
    error::malformed,
};

use super::{
    Place,
    bytes::{End, pipe, pump},
};

/// Reads a `Stdio`. The pipes of streams are pumped for as long as the connection lives, and has its grant, and that
/// chooses the container: their bytes go to its client.
pub fn read(place: &Place, reader: stdio::Reader<'_>) -> Result<Stdio> {
    let stdin = if !reader.has_stdin() {
        Input::Null
    } else {
        match reader.get_stdin().map_err(malformed)?.which().map_err(|e| malformed(e.into()))? {
            input::Null(()) => Input::Null,
            input::Fd(number) => Input::Fd(place.session.fds.take(number)?),
            input::Stream(()) => Input::Pipe,
            input::Fifo(path) => Input::Fifo(text(path)?.to_owned()),
            input::File(path) => Input::File(text(path)?.to_owned()),
        }
    };
    let stdout = if reader.has_stdout() { out(place, reader.get_stdout())? } else { Output::Null };
    let stderr = if reader.has_stderr() { out(place, reader.get_stderr())? } else { Output::Null };
    Ok(Stdio { stdin, stdout, stderr, rows: reader.get_rows(), columns: reader.get_columns() })
}

fn out(place: &Place, reader: capnp::Result<output::Reader<'_>>) -> Result<Output> {
    Ok(match reader.map_err(malformed)?.which().map_err(|e| malformed(e.into()))? {
        output::Null(()) => Output::Null,
        output::Fd(number) => Output::Fd(place.session.fds.take(number)?),
        output::Fifo(path) => Output::Fifo(text(path)?.to_owned()),
        output::File(path) => Output::File(text(path)?.to_owned()),
        output::Stream(stream) => {
            let stream: byte_stream::Client = stream.map_err(malformed)?;
            let (read, write) = pipe(End::Read)?;
            let (over, meter) = (place.held.until_over(), place.session.meter.clone());
            tokio::task::spawn_local(async move {
                // A client that takes no more loses its stream: the process sees a closed pipe, as from any reader.
                let ended = tokio::select! {
                    ended = pump(&meter, read, stream) => ended,
                    why = over => Err(why),
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "an output stream ended early");
                }
            });
            Output::Fd(write.into())
        }
    })
}
