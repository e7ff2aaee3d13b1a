//! Another image of one: the same files, packed otherwise.

use cofferdam_client::ConvertOptions;

use crate::{
    args::{Command, Positional, Times, switch, value},
    cx::Cx,
    failure::Failure,
    progress,
};

/// `coffer image convert`.
pub static CONVERT: Command = Command {
    path: &["image", "convert"],
    about: "make another image of one, that holds the same files",
    positionals: &[Positional { name: "IMAGE", times: Times::Once }, Positional { name: "NAME", times: Times::Once }],
    flags: &[
        value("compression", None, "NAME", "of its layers: gzip, zstd or none; as they are otherwise"),
        switch("oci", None, "OCI's media types instead of docker's"),
        value("platform", None, "OS/ARCH[/VARIANT]", "for this alone; for all that are here otherwise"),
    ],
    notes: "IMAGE stays as it is; NAME may be one that is there: it stands for the new image then. The same image gives the same bytes.\n\
            Layers that only their maker distributes stay as they are. Prints the whole name.",
    failure: 1,
    action: |cx| Box::pin(convert(cx)),
};

async fn convert(cx: Cx) -> Result<i32, Failure> {
    let args = &cx.args;
    let options = ConvertOptions {
        name: args.at(1).to_owned(),
        compression: args.text("compression"),
        oci: args.has("oci"),
        platform: args.text("platform"),
    };
    if options.compression.is_empty() && !options.oci && options.platform.is_empty() {
        let why = "image convert: say what is to be different: --compression, --oci or --platform";
        return Err(Failure::usage(why));
    }
    let image = cx.namespace().await?.images().get(args.at(0));
    let names = progress::follow(&image.convert(&options)).await?;
    cx.names(names.iter().map(String::as_str))?;
    Ok(0)
}
