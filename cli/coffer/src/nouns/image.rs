//! Images.

use std::os::fd::{AsFd as _, OwnedFd};

use cofferdam_client::{ImageDetail, ImageInfo, ImportFormat, ImportOptions, PullOptions, PushOptions};
use cofferdam_types::Platform;
use serde::Serialize;

use crate::{
    args::{Args, Command, Positional, Times, many, switch, value},
    cx::{Cx, Table},
    failure::Failure,
    nouns::{
        container::each,
        image_layout::Layout,
        lease::LEASE,
        login::{CA, CERT, KEY, NO_DOCKER, USER, own},
    },
    progress::{self, short_name},
    target::{Old, Target},
    units::{moment, show_age, show_size, size},
};

/// `coffer image pull`.
pub static PULL: Command = Command {
    path: &["image", "pull"],
    about: "get an image from a registry",
    positionals: &[Positional { name: "REFERENCE", times: Times::Once }],
    flags: &[
        many(
            "platform",
            None,
            "OS/ARCH[/VARIANT]",
            "other than the host's; of several the host's is unpacked, or the first",
        ),
        switch("all-platforms", None, "fetch all that there are, and unpack the host's"),
        USER,
        CA,
        CERT,
        KEY,
        NO_DOCKER,
        switch("plain-http", None, "over http alone"),
        value("snapshotter", None, "NAME", "the driver to unpack into"),
        switch("no-unpack", None, "only fetch"),
        value("rate", None, "SIZE", "fetch no more than this in a second, such as 5M"),
        value("zstd-window", None, "SIZE", "take zstd layers that need so much memory to be read; 32M otherwise"),
        switch("schema1", None, "manifests of docker's first schema too, which become OCI ones"),
        LEASE,
    ],
    notes: "REFERENCE is host[:port]/path[:tag][@digest]. Without --user the registry is shown what docker's config file has for it, and\n\
            else what \"coffer login\" has stored. Progress goes to standard error, the image's name to standard output. ctrl-c cancels.",
    failure: 1,
    action: |cx| Box::pin(pull(cx)),
};

async fn pull(cx: Cx) -> Result<i32, Failure> {
    let options = pull_options(&cx.args)?;
    let job = cx.namespace_to_fill().await?.images().pull(&options);
    names(&cx, progress::follow(&job).await?)
}

fn pull_options(args: &Args) -> Result<PullOptions, Failure> {
    let mut platforms = args.all("platform").to_vec();
    if !platforms.is_empty() && args.has("all-platforms") {
        return Err(Failure::usage("image pull: --all-platforms fetches those of --platform too: leave one out"));
    }
    // One alone is what is meant. Of several that counts which can run here.
    let runs = |text: &String| text.parse().is_ok_and(|platform: Platform| Platform::host().accepts(&platform));
    let first = platforms.iter().position(runs).unwrap_or(0);
    let platform = if platforms.is_empty() { String::new() } else { platforms.remove(first) };
    let own = own(args, args.at(0))?;
    Ok(PullOptions {
        reference: args.at(0).to_owned(),
        platform,
        platforms,
        all_platforms: args.has("all-platforms"),
        rate: args.read("rate", size)?.unwrap_or(0),
        zstd_window: args.read("zstd-window", size)?.unwrap_or(0),
        plain_http: args.has("plain-http"),
        user: own.user,
        secret: own.secret,
        driver: args.text("snapshotter"),
        fetch_only: args.has("no-unpack"),
        ca_certificates: own.ca,
        client_certificate: own.certificate,
        client_key: own.key,
        schema1: args.has("schema1"),
    })
}

fn names(cx: &Cx, names: Vec<String>) -> Result<i32, Failure> {
    cx.names(names.iter().map(String::as_str))?;
    Ok(0)
}

/// `coffer image push`.
pub static PUSH: Command = Command {
    path: &["image", "push"],
    about: "send an image to a registry",
    positionals: &[
        Positional { name: "IMAGE", times: Times::Once },
        Positional { name: "REFERENCE", times: Times::Maybe },
    ],
    flags: &[
        value("platform", None, "OS/ARCH[/VARIANT]", "the image for this platform alone"),
        USER,
        CA,
        CERT,
        KEY,
        NO_DOCKER,
        switch("plain-http", None, "over http alone"),
        value("chunk-size", None, "SIZE", "of a blob in one request; all of it otherwise"),
        many("mount-from", None, "PATH", "a repository of the same registry that may have its layers already"),
        switch("all-layers", None, "those too that aren't meant to be distributed"),
    ],
    notes: "REFERENCE is host[:port]/path[:tag]; without one the image's own name. What the registry has already isn't sent. Progress\n\
            goes to standard error, the whole name to standard output. ctrl-c cancels.",
    failure: 1,
    action: |cx| Box::pin(push(cx)),
};

async fn push(cx: Cx) -> Result<i32, Failure> {
    let args = &cx.args;
    let own = own(args, if args.at(1).is_empty() { args.at(0) } else { args.at(1) })?;
    let options = PushOptions {
        reference: args.at(1).to_owned(),
        platform: args.text("platform"),
        plain_http: args.has("plain-http"),
        user: own.user,
        secret: own.secret,
        ca_certificates: own.ca,
        client_certificate: own.certificate,
        client_key: own.key,
        chunk: args.read("chunk-size", size)?.unwrap_or(0),
        mount_from: args.all("mount-from").to_vec(),
        foreign: args.has("all-layers"),
    };
    let image = cx.namespace().await?.images().get(args.at(0));
    names(&cx, progress::follow(&image.push(&options)).await?)
}

/// `coffer image import`.
pub static IMPORT: Command = Command {
    path: &["image", "import"],
    about: "make images from an archive, a layout or a root file system",
    positionals: &[Positional { name: "PATH", times: Times::Once }, Positional { name: "NAME", times: Times::Maybe }],
    flags: &[
        switch("rootfs", None, "PATH is a root file system: it becomes an image of one layer"),
        many("cmd", None, "WORD", "with --rootfs: a word of the image's command"),
        many("change", Some('c'), "INSTRUCTION", "with --rootfs: something of the config, as in a Dockerfile"),
        value("created", None, "TIME", "with --rootfs: when it says that it was made; now otherwise"),
        value("author", Some('a'), "TEXT", "with --rootfs: who made it"),
        value("message", Some('m'), "TEXT", "with --rootfs: what for"),
        value("platform", None, "OS/ARCH[/VARIANT]", "other than the host's"),
        value("snapshotter", None, "NAME", "the driver to unpack into"),
        switch("no-unpack", None, "only store"),
        LEASE,
    ],
    notes: "PATH is an OCI layout or a docker archive, a directory or packed, or with --rootfs a directory or a tar archive;\n\
            - is standard input. NAME is needed where the archive names no image; of several it may be the repository of those that\n\
            have a tag alone. Progress goes to standard error, the names of the images to standard output. ctrl-c cancels.\n\
            INSTRUCTION is as of \"coffer commit\". With --created the same files give the same image. With --no-unpack it may be any\n\
            artifact too.",
    failure: 1,
    action: |cx| Box::pin(import(cx)),
};

async fn import(cx: Cx) -> Result<i32, Failure> {
    let args = &cx.args;
    let options = ImportOptions {
        name: args.at(1).to_owned(),
        format: if args.has("rootfs") { ImportFormat::Rootfs } else { ImportFormat::Detect },
        platform: args.text("platform"),
        driver: args.text("snapshotter"),
        no_unpack: args.has("no-unpack"),
        command: args.all("cmd").to_vec(),
        changes: args.all("change").to_vec(),
        created: args.read("created", moment)?.unwrap_or_default(),
        author: args.text("author"),
        comment: args.text("message"),
    };
    if !args.has("rootfs") && ["cmd", "change", "created", "author", "message"].iter().any(|flag| args.has(flag)) {
        let why = "image import: --cmd, --change, --created, --author and --message are for --rootfs: an image says these itself";
        return Err(Failure::usage(why));
    }
    if args.has("rootfs") && options.name.is_empty() {
        return Err(Failure::usage("image import: with --rootfs the NAME of the image must follow PATH"));
    }
    let source = source(args.at(0))?;
    let job = cx.namespace_to_fill().await?.images().import_fd(&options, source);
    names(&cx, progress::follow(&job).await?)
}

fn source(path: &str) -> Result<OwnedFd, Failure> {
    if path == "-" {
        return std::io::stdin().as_fd().try_clone_to_owned().map_err(|e| Failure::io("standard input", e));
    }
    // A directory opens for reading like a file.
    std::fs::File::open(path).map(OwnedFd::from).map_err(|e| Failure::io(path, e))
}

/// `coffer image export`.
pub static EXPORT: Command = Command {
    path: &["image", "export"],
    about: "write images into an archive",
    positionals: &[Positional { name: "NAME... FILE", times: Times::Many }],
    flags: &[
        value("platform", None, "OS/ARCH[/VARIANT]", "the images for this platform alone; all that is here otherwise"),
        switch("directory", Some('d'), "make FILE a directory, not an archive"),
    ],
    notes: "An OCI layout in a tar archive, as \"coffer image import\" and others read it; \"docker load\" reads it too. The same images give\n\
            the same bytes. FILE must not be there, unless it is a pipe or a device; - is standard output. Progress goes to standard error. ctrl-c cancels.",
    failure: 1,
    action: |cx| Box::pin(export(cx)),
};

async fn export(cx: Cx) -> Result<i32, Failure> {
    let (path, names) = match cx.args.from(0) {
        [names @ .., path] if !names.is_empty() => (path.as_str(), names.to_vec()),
        _ => return Err(Failure::usage("image export: name the images, then the FILE to write")),
    };
    if cx.args.has("directory") && path == "-" {
        let why = "image export: - is standard output, which is no directory: name one, or leave --directory out";
        return Err(Failure::usage(why));
    }
    let images = cx.namespace().await?.images();
    if cx.args.has("directory") {
        let (layout, target) = Layout::begin(path)?;
        return layout
            .end(progress::follow(&images.export_fd(&names, &cx.args.text("platform"), target)).await)
            .map(|_| 0);
    }
    let export = async |fd| progress::follow(&images.export_fd(&names, &cx.args.text("platform"), fd)).await.map(drop);
    if path == "-" {
        let out = std::io::stdout().as_fd().try_clone_to_owned().map_err(|e| Failure::io("standard output", e))?;
        return export(out).await.map(|()| 0);
    }
    let target = Target::open(path, Old::Stays)?;
    export(target.fd()?).await?;
    target.done().map(|()| 0)
}

/// `coffer image ls`.
pub static LS: Command = Command {
    path: &["image", "ls"],
    about: "list images",
    positionals: &[],
    flags: &[
        switch("quiet", Some('q'), "names alone"),
        many("filter", None, "FILTER", "such as name~=REGEX or labels.KEY==VALUE"),
    ],
    notes: "-o json: one array",
    failure: 1,
    action: |cx| Box::pin(ls(cx)),
};

async fn ls(cx: Cx) -> Result<i32, Failure> {
    let images = cx.namespace().await?.images();
    let list: Vec<ImageInfo> = images.list(cx.args.all("filter")).all().await?;
    if cx.args.has("quiet") {
        cx.names(list.iter().map(|info| info.name.as_str()))?;
        return Ok(0);
    }
    let mut table = Table::new(&["NAME", "DIGEST", "PLATFORM", "SIZE", "UNPACKED", "CREATED"]);
    let mut documents = Vec::new();
    // All questions are under way before the first answer is read, so many images cost one round trip; but no more
    // than the daemon lets be in flight.
    for block in list.chunks(64) {
        let details: Vec<_> = block.iter().map(|info| images.get(&info.name).detail("")).collect();
        for (info, detail) in block.iter().zip(details) {
            let detail = detail.await.ok();
            if cx.json {
                documents.push(Listed::new(info, detail));
            } else {
                table.row(row(info, detail.as_ref()));
            }
        }
    }
    if cx.json {
        cx.document(&documents)?
    } else {
        table.print()?
    }
    Ok(0)
}

/// What the table has, for programs. What is not known of an image is `null`.
#[derive(Serialize)]
struct Listed<'i> {
    #[serde(flatten)]
    info: &'i ImageInfo,
    platform: Option<Platform>,
    size: Option<u64>,
    unpacked: Option<bool>,
}

impl Listed<'_> {
    fn new(info: &ImageInfo, detail: Option<ImageDetail>) -> Listed<'_> {
        let (size, unpacked) = (detail.as_ref().map(|d| d.size), detail.as_ref().map(|d| d.unpacked));
        Listed { info, platform: detail.map(|d| d.platform), size, unpacked }
    }
}

/// An image for another platform, or one whose content is not all there, has no detail.
fn row(info: &ImageInfo, detail: Option<&ImageDetail>) -> [String; 6] {
    let of = |show: fn(&ImageDetail) -> String| detail.map_or_else(|| "-".to_owned(), show);
    [
        info.name.clone(),
        short_name(&info.target.digest.to_string()),
        of(|detail| {
            let platform = &detail.platform;
            let parts = [&platform.os, &platform.architecture, &platform.variant];
            parts.into_iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("/")
        }),
        of(|detail| show_size(detail.size)),
        of(|detail| if detail.unpacked { "yes" } else { "no" }.to_owned()),
        show_age(info.created),
    ]
}

/// `coffer image rm`.
pub static RM: Command = Command {
    path: &["image", "rm"],
    about: "remove images",
    positionals: &[Positional { name: "NAME", times: Times::Many }],
    flags: &[switch("sync", None, "wait until what nothing keeps then is removed")],
    notes: "Containers made from them go on. Without --sync what nothing keeps goes soon after.",
    failure: 1,
    action: |cx| Box::pin(rm(cx)),
};

async fn rm(cx: Cx) -> Result<i32, Failure> {
    let images = cx.namespace().await?.images();
    let code = each(&cx, async |name| Ok(images.remove(name).await?)).await?;
    if cx.args.has("sync") {
        // Once, for all of them.
        cx.client().await?.collector().collect(false).await?;
    }
    Ok(code)
}
