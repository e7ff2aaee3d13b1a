//! Artifacts: files in a registry, by themselves or beside an image.

use std::{
    fs::{DirBuilder, File},
    os::{fd::AsFd as _, unix::fs::DirBuilderExt as _},
    path::Path,
    time::Duration,
};

use cofferdam_client::{ArtifactOptions, Content, Namespace, PullOptions, PushOptions, random_id};
use cofferdam_types::{Descriptor, Labels, Timestamp};
use serde::Deserialize;

use crate::{
    args::{Args, Command, Flag, Positional, Times, many, switch, value},
    cx::{Cx, Table, line, say},
    failure::Failure,
    nouns::{
        content::store,
        login::{CA, CERT, KEY, NO_DOCKER, USER, own},
    },
    progress::{self, short_name},
    units::{pair, show_size},
};

const PLAIN: Flag = switch("plain-http", None, "over http alone");
const TYPE: Flag = value("type", None, "MEDIATYPE", "what it is");
const ANNOTATION: Flag = many("annotation", Some('a'), "KEY=VALUE", "an annotation of its manifest");
const CONFIG: Flag = value("config", None, "FILE[:MEDIATYPE]", "its config; an empty one otherwise");
const FILES: Positional = Positional { name: "FILE[:MEDIATYPE]", times: Times::Any };

/// What a file is of which nobody says it.
const OCTETS: &str = "application/octet-stream";
/// The annotation that names a file (OCI image-spec, annotations.md).
const TITLE: &str = "org.opencontainers.image.title";
/// How long what is made is kept though nothing refers to it yet.
const WHILE: Duration = Duration::from_secs(3600);
/// Of a manifest.
const MAX_MANIFEST: usize = 4 << 20;

/// `coffer artifact push`.
pub static PUSH: Command = Command {
    path: &["artifact", "push"],
    about: "send files to a registry, as an artifact",
    positionals: &[Positional { name: "REFERENCE", times: Times::Once }, FILES],
    flags: &[TYPE, CONFIG, ANNOTATION, USER, CA, CERT, KEY, NO_DOCKER, PLAIN],
    notes: "REFERENCE is host[:port]/path:tag. Each FILE is a layer that has the file's name; its media type is application/octet-stream\n\
            where none is given. --type is needed unless --config has a media type. Prints the digest.",
    failure: 1,
    action: |cx| Box::pin(push(cx)),
};

async fn push(cx: Cx) -> Result<i32, Failure> {
    let digest = send(&cx, cx.args.at(0), None, |_| cx.args.at(0).to_owned()).await?;
    cx.names([&*digest])?;
    Ok(0)
}

/// `coffer artifact attach`.
pub static ATTACH: Command = Command {
    path: &["artifact", "attach"],
    about: "send files to where an image is, as an artifact that belongs to it",
    positionals: &[Positional { name: "IMAGE", times: Times::Once }, FILES],
    flags: &[
        TYPE,
        CONFIG,
        ANNOTATION,
        value("to", None, "REPOSITORY", "host[:port]/path, where the image is; its own otherwise"),
        USER,
        CA,
        CERT,
        KEY,
        NO_DOCKER,
        PLAIN,
    ],
    notes: "IMAGE must be here, and in the registry. The artifact has no tag: \"coffer artifact ls\" finds it. Prints the digest.",
    failure: 1,
    action: |cx| Box::pin(attach(cx)),
};

async fn attach(cx: Cx) -> Result<i32, Failure> {
    let info = cx.namespace().await?.images().get(cx.args.at(0)).info().await?;
    let repository = match cx.args.value("to") {
        Some(repository) => repository.to_owned(),
        None => repository(&info.name).to_owned(),
    };
    let digest = send(&cx, &repository, Some(info.target), |digest| format!("{repository}@{digest}")).await?;
    cx.names([&*digest])?;
    Ok(0)
}

/// A whole name without tag and digest.
fn repository(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let slash = name.rfind('/').unwrap_or(0);
    name[slash..].find(':').map_or(name, |colon| &name[..slash + colon])
}

/// Makes an artifact of the files that were named, and sends it to where `to` says of its digest.
async fn send(
    cx: &Cx,
    registry: &str,
    subject: Option<Descriptor>,
    to: impl FnOnce(&str) -> String,
) -> Result<String, Failure> {
    let args = &cx.args;
    let options = push_options(args, registry)?;
    let namespace = cx.namespace().await?;
    let id = random_id()?;
    let ends = u64::try_from(WHILE.as_nanos()).unwrap_or(u64::MAX);
    let ends = Timestamp(Timestamp::now().0.saturating_add(ends));
    let held = namespace.leases().create(&id, &Labels::new(), Some(ends)).namespace();
    // A name that no registry is asked for: it is only there until the artifact is sent.
    let name = format!("localhost/artifact:{id}");
    let done = made(args, &held, &name, subject, options, to).await;
    // What is left goes with the lease.
    let _ = namespace.images().remove(&name).await;
    let _ = namespace.leases().remove(&id).await;
    done
}

async fn made(
    args: &Args,
    held: &Namespace,
    name: &str,
    subject: Option<Descriptor>,
    options: PushOptions,
    to: impl FnOnce(&str) -> String,
) -> Result<String, Failure> {
    let content = held.content();
    let mut artifact = ArtifactOptions {
        name: name.to_owned(),
        artifact_type: args.text("type"),
        annotations: args.read_all("annotation", pair)?.into_iter().collect(),
        subject,
        ..ArtifactOptions::default()
    };
    if let Some(config) = args.value("config") {
        let (path, media_type) = typed(config, OCTETS);
        artifact.config = Some(blob(&content, path, media_type).await?);
    }
    for file in args.from(1) {
        let (path, media_type) = typed(file, OCTETS);
        let mut layer = blob(&content, path, media_type).await?;
        let title = Path::new(path).file_name().and_then(|name| name.to_str());
        let title = title.ok_or_else(|| Failure::usage(format!("{path:?} has no name that can be given to others")))?;
        layer.annotations.insert(TITLE.into(), title.to_owned());
        artifact.layers.push(layer);
    }
    let image = held.images().create_artifact(&artifact);
    let digest = image.info().await?.target.digest.to_string();
    let options = PushOptions { reference: to(&digest), ..options };
    progress::follow(&image.push(&options)).await?;
    Ok(digest)
}

fn push_options(args: &Args, image: &str) -> Result<PushOptions, Failure> {
    let own = own(args, image)?;
    Ok(PushOptions {
        plain_http: args.has("plain-http"),
        user: own.user,
        secret: own.secret,
        ca_certificates: own.ca,
        client_certificate: own.certificate,
        client_key: own.key,
        ..PushOptions::default()
    })
}

/// A file and its media type: what follows the last colon, if that is one.
fn typed<'a>(text: &'a str, usual: &'a str) -> (&'a str, &'a str) {
    match text.rsplit_once(':') {
        Some((path, kind)) if kind.contains('/') && !path.is_empty() && !Path::new(text).exists() => (path, kind),
        _ => (text, usual),
    }
}

/// Makes a blob of a file.
async fn blob(content: &Content, path: &str, media_type: &str) -> Result<Descriptor, Failure> {
    let file = File::open(path).map_err(|e| Failure::io(path, e))?;
    let meta = file.metadata().map_err(|e| Failure::io(path, e))?;
    if !meta.is_file() {
        return Err(Failure::usage(format!("{path:?} is not a file: pack a directory first")));
    }
    let reference = format!("artifact-{}", random_id()?);
    let digest = store(content, &reference, file.into(), (meta.len(), "", ""), &Labels::new()).await?;
    Ok(Descriptor::new(media_type, digest.parse()?, meta.len()))
}

fn pull_options(args: &Args) -> Result<PullOptions, Failure> {
    let own = own(args, args.at(0))?;
    Ok(PullOptions {
        reference: args.at(0).to_owned(),
        plain_http: args.has("plain-http"),
        user: own.user,
        secret: own.secret,
        ca_certificates: own.ca,
        client_certificate: own.certificate,
        client_key: own.key,
        fetch_only: true,
        ..PullOptions::default()
    })
}

/// `coffer artifact pull`.
pub static PULL: Command = Command {
    path: &["artifact", "pull"],
    about: "get an artifact, and write its files into a directory",
    positionals: &[
        Positional { name: "REFERENCE", times: Times::Once },
        Positional { name: "DIRECTORY", times: Times::Maybe },
    ],
    flags: &[USER, CA, CERT, KEY, NO_DOCKER, PLAIN, switch("force", None, "over files that are there")],
    notes: "REFERENCE is host[:port]/path:tag or @digest. DIRECTORY is the present one otherwise; it is made where it isn't there. Files\n\
            without a name stay in the content. Prints the paths. The artifact stays here under its name: \"coffer image rm\" removes it.",
    failure: 1,
    action: |cx| Box::pin(pull(cx)),
};

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Descriptor>,
}

async fn pull(cx: Cx) -> Result<i32, Failure> {
    let options = pull_options(&cx.args)?;
    let namespace = cx.namespace().await?;
    let names = progress::follow(&namespace.images().pull(&options)).await?;
    let name = names.first().ok_or_else(|| Failure::usage("artifact pull: nothing came"))?;
    let target = namespace.images().get(name).info().await?.target;
    let content = namespace.content();
    let bytes = small(&content, &target).await?;
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .map_err(|_| Failure::usage(format!("{name} is not an artifact: it is pulled by \"coffer image pull\"")))?;
    let dir = Path::new(if cx.args.at(1).is_empty() { "." } else { cx.args.at(1) });
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(|e| Failure::io(&dir.display().to_string(), e))?;
    let mut written = Vec::new();
    for layer in &manifest.layers {
        let digest = layer.digest.to_string();
        let Some(title) = layer.annotations.get(TITLE) else {
            say(&format!("{digest} has no name, and stays in the content"));
            continue;
        };
        let path = dir.join(plain(title).ok_or_else(|| {
            // What somebody else calls a file must not lead out of the directory.
            Failure::usage(format!(
                "artifact pull: {title:?} is no name of a file: get {digest} by \"coffer content get\""
            ))
        })?);
        let shown = path.display().to_string();
        write(&content, layer, &path, cx.args.has("force")).await.map_err(|e| e.or_code(1))?;
        written.push(shown);
    }
    cx.names(written.iter().map(String::as_str))?;
    Ok(0)
}

/// A name that stands for a file in the directory itself.
fn plain(title: &str) -> Option<&str> {
    let plain = !title.is_empty() && title.len() <= 255 && !matches!(title, "." | "..");
    (plain && !title.contains(['/', '\0']) && !title.chars().any(char::is_control)).then_some(title)
}

/// Beside the path first: what is there is whole, or isn't there.
async fn write(content: &Content, layer: &Descriptor, path: &Path, force: bool) -> Result<(), Failure> {
    let shown = path.display().to_string();
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    let file = tempfile::NamedTempFile::new_in(dir).map_err(|e| Failure::io(&shown, e))?;
    let fd = file.as_fd().try_clone_to_owned().map_err(|e| Failure::io(&shown, e))?;
    content.get(&layer.digest.to_string()).read_fd(0, 0, fd).await?;
    let kept = if force { file.persist(path) } else { file.persist_noclobber(path) };
    kept.map(drop).map_err(|e| Failure::io(&shown, e.error))
}

/// A document.
async fn small(content: &Content, of: &Descriptor) -> Result<Vec<u8>, Failure> {
    let (sink, mut receiver) = cofferdam_client::channel();
    let reading = content.get(&of.digest.to_string()).read(0, MAX_MANIFEST as u64, &sink);
    // The stream ends when its last sink is gone.
    drop(sink);
    let gather = async {
        let mut bytes = Vec::new();
        while let Some(chunk) = receiver.next().await {
            bytes.extend_from_slice(&chunk);
        }
        bytes
    };
    let (read, bytes) = tokio::join!(reading, gather);
    read?;
    Ok(bytes)
}

/// `coffer artifact ls`.
pub static LS: Command = Command {
    path: &["artifact", "ls"],
    about: "list what a registry has that belongs to an image",
    positionals: &[Positional { name: "REFERENCE", times: Times::Once }],
    flags: &[value("type", None, "MEDIATYPE", "that alone"), USER, CA, CERT, KEY, NO_DOCKER, PLAIN],
    notes: "REFERENCE is host[:port]/path:tag or @digest. -o json: one array",
    failure: 1,
    action: |cx| Box::pin(ls(cx)),
};

async fn ls(cx: Cx) -> Result<i32, Failure> {
    let options = pull_options(&cx.args)?;
    let found = cx.namespace().await?.images().referrers(&options, &cx.args.text("type")).all().await?;
    if cx.json {
        cx.document(&found)?;
        return Ok(0);
    }
    let mut table = Table::new(&["DIGEST", "TYPE", "SIZE", "ANNOTATIONS"]);
    for one in &found {
        let kind = one.artifact_type.clone().unwrap_or_else(|| "-".into());
        let said: Vec<_> = one.annotations.iter().map(|(key, value)| format!("{key}={value}")).collect();
        table.row([short_name(&one.digest.to_string()), kind, show_size(one.size), said.join(",")]);
    }
    if found.is_empty() {
        line("nothing belongs to it")?
    } else {
        table.print()?
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_what_stands_before_tag_and_digest() {
        for (name, want) in [
            ("h:5000/a/b:1", "h:5000/a/b"),
            ("h:5000/a", "h:5000/a"),
            ("h/a:1@sha256:00", "h/a"),
            ("h:5000/a@sha256:00", "h:5000/a"),
        ] {
            assert_eq!(repository(name), want);
        }
    }

    #[test]
    fn a_file_may_have_a_media_type() {
        assert_eq!(typed("a.json:application/json", OCTETS), ("a.json", "application/json"));
        assert_eq!(typed("dir/a", OCTETS), ("dir/a", OCTETS));
        assert_eq!(typed("a:b", OCTETS), ("a:b", OCTETS));
    }

    #[test]
    fn names_of_others_do_not_lead_out_of_the_directory() {
        assert_eq!(plain("report.json"), Some("report.json"));
        for bad in ["", ".", "..", "../x", "/x", "a/b", "a\nb", "a\0b", &"x".repeat(256)] {
            assert_eq!(plain(bad), None, "{bad:?}");
        }
    }
}
