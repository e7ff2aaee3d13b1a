//! Runs a container, talks with it over streams, and gets its exit.
//!
//!     cargo run --example run -- /run/cofferdam/cofferd.sock default docker.io/demo/busybox:latest
//!
//! The tests run it too (`integration/tests/lifecycle/examples.rs`).

use std::path::Path;

use cofferdam_client::{Client, Error, Input, Output, Result, RunRequest, channel};

/// What `tr` makes of a text, in a container of an image.
pub async fn example(socket: &Path, namespace: &str, image: &str, text: &str) -> Result<String> {
    // Nothing is awaited but the connection: whether the daemon lets us in comes out of the first answer.
    let client = Client::connect_as(socket, "example").await?;

    let (sink, mut output) = channel();
    let mut request = RunRequest::new(namespace, image);
    request.container.options.args = ["tr", "a-z", "A-Z"].map(str::to_owned).into();
    request.container.remove_on_exit = true;
    request.stdio.stdin = Input::Stream;
    request.stdio.stdout = Output::Stream(sink);

    // Every call of the run is on its way when this returns, and each stands for what has yet to be made.
    let run = client.run(request)?;
    let input = run.task().stdin();
    input.write(text.as_bytes()).await?;
    input.end().await?;

    let mut written = Vec::new();
    while let Some(chunk) = output.next().await {
        written.extend(chunk);
    }
    let exit = run.wait().await?;
    if exit.status != 0 {
        return Err(Error::internal("container", run.id(), format!("ended with {}", exit.status)));
    }
    String::from_utf8(written).map_err(|_| Error::data_loss("output", run.id(), "is no text"))
}

#[allow(dead_code, reason = "a test has it as a module")]
fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, namespace, image] = &arguments[..] else {
        return Err(Error::invalid("arguments", "", "give the daemon's socket, a namespace and an image"));
    };
    println!("{}", cofferdam_client::block_on(example(socket.as_ref(), namespace, image, "hello"))??);
    Ok(())
}
