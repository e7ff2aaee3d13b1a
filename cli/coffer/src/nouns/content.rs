//! Content: blobs by digest, and the ingests that become blobs.

use std::{
    fs::File,
    io::{IsTerminal as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
};

use cofferdam_client::Content;
use cofferdam_types::{Code, Labels, validate_labels};

use crate::{
    args::{Command, Positional, Times, many, switch, value},
    cx::{Cx, Table},
    failure::Failure,
    nouns::{
        container::each,
        lease::LEASE,
        lifecycle::{label_changes, show_labels},
    },
    units::{number, pair, show_age, show_size, size},
};

const DIGEST: Positional = Positional { name: "DIGEST", times: Times::Once };

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
    positionals: &[DIGEST],
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

/// `coffer content ingest`.
pub static INGEST: Command = Command {
    path: &["content", "ingest"],
    about: "make a blob of a file, or of standard input",
    positionals: &[
        Positional { name: "REFERENCE", times: Times::Once },
        Positional { name: "FILE", times: Times::Maybe },
    ],
    flags: &[
        value("expected", None, "DIGEST", "which blob it must become"),
        value("size", None, "SIZE", "how large it must be"),
        value("algorithm", None, "NAME", "sha256 (the default), sha512 or blake3"),
        many("label", Some('l'), "KEY=VALUE", "a label of the blob"),
        LEASE,
    ],
    notes: "REFERENCE is a name of your choice for what is under way. What is interrupted stays; the same command goes on\n\
            with it where FILE can seek and begins with it, and begins anew where FILE can't. \"coffer content abort\" ends it. Prints\n\
            the digest, also of a blob that is here already.",
    failure: 1,
    action: |cx| Box::pin(ingest(cx)),
};

async fn ingest(cx: Cx) -> Result<i32, Failure> {
    let source: OwnedFd = match cx.args.at(1) {
        "" | "-" => std::io::stdin().as_fd().try_clone_to_owned().map_err(|e| Failure::io("standard input", e))?,
        path => {
            let file = File::open(path).map_err(|e| Failure::io(path, e))?;
            if file.metadata().is_ok_and(|meta| meta.is_dir()) {
                return Err(Failure::io(path, std::io::Error::from_raw_os_error(libc::EISDIR)));
            }
            file.into()
        }
    };
    let labels = cx.args.read_all("label", pair)?.into_iter().collect();
    // They are set with the last byte, which may be long after the first.
    validate_labels(&labels)?;
    let (expected, algorithm) = (cx.args.text("expected"), cx.args.text("algorithm"));
    if let Some((own, _)) = expected.split_once(':').filter(|(own, _)| !algorithm.is_empty() && *own != algorithm) {
        let why = format!("content ingest: --expected is a digest by {own}: leave --algorithm {algorithm} out");
        return Err(Failure::usage(why));
    }
    let size = cx.args.read("size", size)?.unwrap_or_default();
    let content = cx.namespace_to_fill().await?.content();
    let digest = store(&content, cx.args.at(0), source, (size, &expected, &algorithm), &labels).await?;
    cx.names([&*digest])?;
    Ok(0)
}

/// Makes a blob of a source. One that is here already only gets the labels.
pub async fn store(
    content: &Content,
    reference: &str,
    source: OwnedFd,
    (size, expected, algorithm): (u64, &str, &str),
    labels: &Labels,
) -> Result<String, Failure> {
    let write = async || {
        let ingest = content.ingest(reference, size, expected, algorithm);
        ingest.copy_fd(source).await?;
        ingest.commit(size, expected, labels).await
    };
    match write().await {
        Ok(digest) => Ok(digest.to_string()),
        Err(error) if error.code == Code::AlreadyExists && &*error.kind == "blob" => {
            if !labels.is_empty() {
                let fields: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
                content.get(&error.id).update(labels, &fields).await?;
            }
            Ok(error.id.to_string())
        }
        // Too many bytes, or others than were to come: the same command again would find them.
        Err(error) if matches!(error.code, Code::DataLoss | Code::OutOfRange) && &*error.kind == "ingest" => {
            let failure = Failure::from(error);
            let text = format!("{}. What came of it stays: \"coffer content abort {reference}\" ends it", failure.text);
            Err(Failure { text, ..failure })
        }
        Err(error) => Err(error.into()),
    }
}

/// `coffer content active`.
pub static ACTIVE: Command = Command {
    path: &["content", "active"],
    about: "list what is becoming a blob, or was interrupted",
    positionals: &[],
    flags: &[
        switch("quiet", Some('q'), "references alone"),
        many("filter", None, "FILTER", "such as ref==NAME or ref~=/^layer-/"),
    ],
    notes: "-o json: one array",
    failure: 1,
    action: |cx| Box::pin(active(cx)),
};

async fn active(cx: Cx) -> Result<i32, Failure> {
    let list = cx.namespace().await?.content().ingests(cx.args.all("filter")).all().await?;
    if cx.args.has("quiet") {
        cx.names(list.iter().map(|info| info.reference.as_str()))?;
    } else if cx.json {
        cx.document(&list)?;
    } else {
        let mut table = Table::new(&["REFERENCE", "SIZE", "TOTAL", "STARTED", "UPDATED"]);
        for info in list {
            let total = if info.total == 0 { "-".to_owned() } else { show_size(info.total) };
            let (started, updated) = (show_age(info.started), show_age(info.updated));
            table.row([info.reference, show_size(info.offset), total, started, updated]);
        }
        table.print()?;
    }
    Ok(0)
}

/// `coffer content abort`.
pub static ABORT: Command = Command {
    path: &["content", "abort"],
    about: "throw away what was to become a blob",
    positionals: &[Positional { name: "REFERENCE", times: Times::Many }],
    flags: &[],
    notes: "Whoever is still writing it is told so.",
    failure: 1,
    action: |cx| Box::pin(abort(cx)),
};

async fn abort(cx: Cx) -> Result<i32, Failure> {
    let content = cx.namespace().await?.content();
    each(&cx, async |reference| Ok(content.abort(reference).await?)).await
}

/// `coffer content rm`.
pub static RM: Command = Command {
    path: &["content", "rm"],
    about: "remove blobs from this namespace",
    positionals: &[Positional { name: "DIGEST", times: Times::Many }],
    flags: &[],
    notes: "Images that need one can't be unpacked or exported any more until it is here again. What is unpacked stays.",
    failure: 1,
    action: |cx| Box::pin(rm(cx)),
};

async fn rm(cx: Cx) -> Result<i32, Failure> {
    let content = cx.namespace().await?.content();
    each(&cx, async |digest| Ok(content.remove(digest).await?)).await
}

/// `coffer content label`.
pub static LABEL: Command = Command {
    path: &["content", "label"],
    about: "set labels of a blob, and remove some",
    positionals: &[DIGEST, Positional { name: "KEY=[VALUE]", times: Times::Many }],
    flags: &[],
    notes: "KEY= without a value removes that label. Prints the labels that there are then.",
    failure: 1,
    action: |cx| Box::pin(label(cx)),
};

async fn label(cx: Cx) -> Result<i32, Failure> {
    let (labels, fields) = label_changes("content label", &cx)?;
    let info = cx.namespace().await?.content().get(cx.args.at(0)).update(&labels, &fields).await?;
    show_labels(&cx, &info.labels)
}

/// `coffer content edit`.
pub static EDIT: Command = Command {
    path: &["content", "edit"],
    about: "make another blob of one, with an editor",
    positionals: &[DIGEST],
    flags: &[value("editor", None, "COMMAND", "instead of $VISUAL or $EDITOR; a shell runs it with the file's path")],
    notes: "A blob never changes: what is written becomes one of its own, with the labels of the first. Prints its digest.",
    failure: 1,
    action: |cx| Box::pin(edit(cx)),
};

async fn edit(cx: Cx) -> Result<i32, Failure> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let editor = cx.args.value("editor").map(str::to_owned).or_else(|| set("VISUAL")).or_else(|| set("EDITOR"));
    let editor = editor.ok_or_else(|| Failure::usage("there is no editor: set EDITOR, or give --editor"))?;
    let content = cx.namespace().await?.content();
    let blob = content.get(cx.args.at(0));
    let info = blob.info().await?;
    let dir = tempfile::tempdir().map_err(|e| Failure::io("a temporary directory", e))?;
    let path = dir.path().join("blob");
    let file = File::create_new(&path).map_err(|e| Failure::io("a temporary file", e))?;
    blob.read_fd(0, 0, file.into()).await?;
    let script = format!("{editor} \"$1\"");
    let status = std::process::Command::new("sh").args(["-c", &script, "sh"]).arg(&path).status();
    let status = status.map_err(|e| Failure::io("the editor", e))?;
    if !status.success() {
        return Err(Failure::usage(format!("the editor ended with {status}: no blob was made")));
    }
    // Opened by its name: an editor may have put another file there.
    let edited = File::open(&path).map_err(|e| Failure::io("the edited file", e))?;
    let reference = format!("edit-{}-{}", info.digest.hex(), std::process::id());
    let algorithm = info.digest.algorithm().as_str();
    let digest = store(&content, &reference, edited.into(), (0, "", algorithm), &info.labels).await?;
    cx.names([&*digest])?;
    Ok(0)
}
