//! `commit`: what was changed in a container becomes an image.

use cofferdam_client::CommitOptions;
use cofferdam_types::instructions;

use crate::{
    args::{Command, Positional, Times, many, switch, value},
    cx::Cx,
    failure::Failure,
    progress,
};

/// `coffer commit`.
pub static COMMIT: Command = Command {
    path: &["commit"],
    about: "make an image of a container's, and what was changed in its files",
    positionals: &[
        Positional { name: "CONTAINER", times: Times::Once },
        Positional { name: "IMAGE", times: Times::Once },
    ],
    flags: &[
        value("author", Some('a'), "TEXT", "who made it, such as \"Ann <ann@example.org>\""),
        value("message", Some('m'), "TEXT", "what for"),
        many("change", Some('c'), "INSTRUCTION", "something of the config, as in a Dockerfile"),
        value("compression", None, "NAME", "of the layer: gzip (the default), zstd or none"),
        switch("no-pause", None, "let the container run while it is compared"),
    ],
    notes: "The container stands still while it is compared, unless --no-pause is given: then a file that changes just then can\n\
            be between two states. IMAGE may be a name that is there: it stands for the new image then. What is mounted in the\n\
            container isn't part of it. INSTRUCTION is one of CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and\n\
            WORKDIR, such as --change 'CMD [\"/bin/app\", \"-v\"]' or --change 'ENV A=1 B=\"2 3\"'. An ENTRYPOINT takes the CMD away.",
    failure: 1,
    action: |cx| Box::pin(commit(cx)),
};

async fn commit(cx: Cx) -> Result<i32, Failure> {
    let options = CommitOptions {
        name: cx.args.at(1).to_owned(),
        author: cx.args.text("author"),
        message: cx.args.text("message"),
        changes: cx.args.read_all("change", instructions)?.into_iter().flatten().collect(),
        no_pause: cx.args.has("no-pause"),
        compression: cx.args.text("compression"),
    };
    let job = cx.namespace().await?.containers().get(cx.args.at(0)).commit(&options);
    let names = progress::follow(&job).await?;
    cx.names(names.iter().map(String::as_str))?;
    Ok(0)
}
