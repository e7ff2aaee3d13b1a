//! Content: blobs by digest.

use std::{
    io::{IsTerminal as _, Write as _},
    os::fd::AsFd as _,
};

use crate::{
    args::{Command, Positional, Times, many, switch, value},
    cx::{Cx, Table},
    failure::Failure,
    units::{number, show_age, show_size},
};

/// `coffer content ls`.
pub static LS: Command = Command {
    path: &["content", "ls"],
    about: "list blobs",
    positionals: &[],
    flags: &[
        switch("quiet", Some('q'), "digests alone"),
        many("filter", None, "FILTER", "such as digest==DIGEST or labels.KEY==VALUE"),
    ],
    notes: "-o json: one array",
    failure: 1,
    action: |cx| Box::pin(ls(cx)),
};

async fn ls(cx: Cx) -> Result<i32, Failure> {
    let list = cx.namespace().await?.content().list(cx.args.all("filter")).all().await?;
    if cx.args.has("quiet") {
        let digests: Vec<String> = list.iter().map(|info| info.digest.to_string()).collect();
        cx.names(digests.iter().map(String::as_str))?;
    } else if cx.json {
        cx.document(&list)?;
    } else {
        let mut table = Table::new(&["DIGEST", "SIZE", "CREATED", "LABELS"]);
        for info in &list {
            let labels = info.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
            table.row([info.digest.to_string(), show_size(info.size), show_age(info.created), labels]);
        }
        table.print()?;
    }
    Ok(0)
}

/// `coffer content get`.
pub static GET: Command = Command {
    path: &["content", "get"],
    about: "write a blob to standard output",
    positionals: &[Positional { name: "DIGEST", times: Times::Once }],
    flags: &[
        value("offset", None, "BYTES", "where to begin"),
        value("length", None, "BYTES", "how much; to the end otherwise"),
    ],
    notes: "",
    failure: 1,
    action: |cx| Box::pin(get(cx)),
};

async fn get(cx: Cx) -> Result<i32, Failure> {
    let offset = cx.args.read("offset", number)?.unwrap_or_default();
    let length = cx.args.read("length", number)?.unwrap_or_default();
    let blob = cx.namespace().await?.content().get(cx.args.at(0));
    let out = std::io::stdout();
    if !out.is_terminal() {
        let fd = out.as_fd().try_clone_to_owned().map_err(|e| Failure::io("standard output", e))?;
        blob.read_fd(offset, length, fd).await?;
        return Ok(0);
    }
    let (sink, mut receiver) = cofferdam_client::channel();
    let reading = blob.read(offset, length, &sink);
    // The stream ends when its last sink is gone.
    drop(sink);
    let writing = async {
        while let Some(chunk) = receiver.next().await {
            out.lock().write_all(&chunk).map_err(Failure::output)?;
        }
        Ok::<_, Failure>(())
    };
    let (read, written) = tokio::join!(reading, writing);
    read?;
    written?;
    Ok(0)
}
