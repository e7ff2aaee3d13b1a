//! Names and labels of images.

use crate::{
    args::{Command, Positional, Times, switch, value},
    cx::Cx,
    failure::Failure,
    nouns::{
        container::each,
        lifecycle::{label_changes, show_labels},
    },
    progress::follow,
};

/// `coffer image tag`.
pub static TAG: Command = Command {
    path: &["image", "tag"],
    about: "give an image another name",
    positionals: &[Positional { name: "IMAGE", times: Times::Once }, Positional { name: "NAME", times: Times::Once }],
    flags: &[switch("replace", None, "even if NAME stands for another image")],
    notes: "Both names stand for the same then. Prints the whole name.",
    failure: 1,
    action: |cx| Box::pin(tag(cx)),
};

async fn tag(cx: Cx) -> Result<i32, Failure> {
    let images = cx.namespace().await?.images();
    let info = images.tag(cx.args.at(0), cx.args.at(1), cx.args.has("replace")).info().await?;
    cx.names([info.name.as_str()])?;
    Ok(0)
}

/// `coffer image untag`.
pub static UNTAG: Command = Command {
    path: &["image", "untag"],
    about: "remove names of images",
    positionals: &[Positional { name: "NAME", times: Times::Many }],
    flags: &[],
    notes: "As \"coffer image rm\": an image goes with its last name, soon after.",
    failure: 1,
    action: |cx| Box::pin(untag(cx)),
};

async fn untag(cx: Cx) -> Result<i32, Failure> {
    let images = cx.namespace().await?.images();
    each(&cx, async |name| Ok(images.remove(name).await?)).await
}

/// `coffer image label`.
pub static LABEL: Command = Command {
    path: &["image", "label"],
    about: "set labels of an image, and remove some",
    positionals: &[
        Positional { name: "IMAGE", times: Times::Once },
        Positional { name: "KEY=[VALUE]", times: Times::Many },
    ],
    flags: &[],
    notes: "KEY= without a value removes that label. Prints the labels that there are then. They belong to the name: what is in the\n\
            image doesn't change.",
    failure: 1,
    action: |cx| Box::pin(label(cx)),
};

async fn label(cx: Cx) -> Result<i32, Failure> {
    let (labels, fields) = label_changes("image label", &cx)?;
    let info = cx.namespace().await?.images().get(cx.args.at(0)).update(&labels, &fields).await?;
    show_labels(&cx, &info.labels)
}

/// `coffer image unpack`.
pub static UNPACK: Command = Command {
    path: &["image", "unpack"],
    about: "make snapshots of the layers of images that were only fetched",
    positionals: &[Positional { name: "IMAGE", times: Times::Many }],
    flags: &[
        value("platform", None, "OS/ARCH[/VARIANT]", "other than the host's"),
        value("snapshotter", None, "NAME", "the driver to unpack into"),
    ],
    notes: "What is unpacked already stays as it is.",
    failure: 1,
    action: |cx| Box::pin(unpack(cx)),
};

async fn unpack(cx: Cx) -> Result<i32, Failure> {
    let images = cx.namespace().await?.images();
    let (platform, driver) = (cx.args.text("platform"), cx.args.text("snapshotter"));
    each(&cx, async |name| follow(&images.get(name).start_unpack(&platform, &driver)).await.map(drop)).await
}
