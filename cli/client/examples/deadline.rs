//! Stores what comes from a source that stalls, with a deadline; and waits for something no longer than it likes.
//!
//!     cargo run --example deadline -- /run/cofferdam/cofferd.sock default web
//!
//! The tests run it too (`integration/tests/lifecycle/examples.rs`).

use std::{io::Write as _, path::Path, time::Duration};

use cofferdam_client::{Client, Code, Context, Error, Exit, Result};

/// The error of a call whose deadline passed, how much was stored by then, and the container's exit, if it ended soon.
pub async fn example(socket: &Path, namespace: &str, container: &str) -> Result<(Error, u64, Option<Exit>)> {
    let client = Client::connect_as(socket, "example").await?;
    // The deadline is that of each call on what is reached from here. The correlation id stands in the daemon's log.
    let hurried = client.namespace(namespace).with(&Context {
        correlation_id: "example".into(),
        deadline: Some(Duration::from_millis(300)),
        ..Context::default()
    });

    let (source, mut writer) = std::io::pipe().map_err(|e| Error::io("pipe", "", "can't be made", &e))?;
    writer.write_all(b"begun").map_err(|e| Error::io("pipe", "", "can't be written", &e))?;
    let ingest = hurried.content().ingest("example", 0, "", "");
    let error = match ingest.take_fd(source.into()).await {
        Err(error) => error,
        Ok(_) => return Err(Error::internal("pipe", "", "ended, though its writer is there")),
    };
    // The call has ended. What was read before is there, to be gone on with or not.
    let stored = ingest.info().await?.offset;
    client.namespace(namespace).content().abort("example").await?;
    drop(writer);

    // What waits for something to happen has no deadline of the daemon's, but one of ours: then the wait is cancelled.
    let web = hurried.containers().get(container);
    let exit = match web.task().wait().within(Duration::from_millis(500)).await {
        Err(error) if error.code == Code::DeadlineExceeded => None,
        ended => Some(ended?),
    };
    Ok((error, stored, exit))
}

#[allow(dead_code, reason = "a test has it as a module")]
fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, namespace, container] = &arguments[..] else {
        return Err(Error::invalid("arguments", "", "give the daemon's socket, a namespace and a container"));
    };
    let (error, stored, exit) = cofferdam_client::block_on(example(socket.as_ref(), namespace, container))??;
    println!("{error}; {stored} bytes were stored; {exit:?}");
    Ok(())
}
