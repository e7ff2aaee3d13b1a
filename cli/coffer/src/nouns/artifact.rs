//! Artifacts: files in a registry, by themselves or beside an image.

use std::{
    cell::Cell,
    fs::{DirBuilder, File},
    os::{fd::AsFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use cofferdam_client::{ArtifactOptions, Content, Namespace, PullOptions, PushOptions, Verdict, random_id};
use cofferdam_types::{
    Descriptor, Error, Labels, Timestamp,
    media::{self, Kind},
};
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
const MAX_MANIFEST: u64 = 4 << 20;

/// `coffer artifact push`.
pub static PUSH: Command = Command {
    path: &["artifact", "push"],
    about: "send files to a registry, as an artifact",
    positionals: &[Positional { name: "REFERENCE", times: Times::Once }, FILES],
    flags: &[TYPE, CONFIG, ANNOTATION, USER, CA, CERT, KEY, NO_DOCKER, PLAIN],
    notes: "REFERENCE is host[:port]/path:tag. Each FILE is a layer that has the file's name, no two the same; its media type is\n\
            application/octet-stream where none is given. --type is needed unless --config has a media type. Prints the digest.",
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
    let files = titled(args.from(1))?;
    if args.text("type").is_empty() && args.value("config").is_none() {
        let why = "doesn't say what it is: give --type MEDIATYPE, or a --config with one";
        return Err(Failure::usage(format!("{}: {why}", args.command.name())));
    }
    let options = push_options(args, registry)?;
    let namespace = cx.namespace().await?;
    let id = random_id()?;
    let ends = u64::try_from(WHILE.as_nanos()).unwrap_or(u64::MAX);
    let ends = Timestamp(Timestamp::now().0.saturating_add(ends));
    let held = namespace.leases().create(&id, &Labels::new(), Some(ends)).namespace();
    // A name that no registry is asked for: it is only there until the artifact is sent.
    let name = format!("localhost/artifact:{id}");
    let done = made(args, &files, &held, &name, subject, options, to).await;
    // What is left goes with the lease.
    let _ = namespace.images().remove(&name).await;
    let _ = namespace.leases().remove(&id).await;
    done
}

async fn made(
    args: &Args,
    files: &[Titled<'_>],
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
    for file in files {
        let mut layer = blob(&content, file.path, file.media_type).await?;
        layer.annotations.insert(TITLE.into(), file.title.to_owned());
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

/// A file of an artifact.
#[derive(Debug)]
struct Titled<'a> {
    path: &'a str,
    media_type: &'a str,
    /// What it is called by who gets it.
    title: &'a str,
}

/// The files that were named, all of which can be got again.
fn titled(files: &[String]) -> Result<Vec<Titled<'_>>, Failure> {
    let mut all: Vec<Titled<'_>> = Vec::new();
    for file in files {
        let (path, media_type) = typed(file, OCTETS);
        let title = Path::new(path).file_name().and_then(|name| name.to_str()).and_then(plain);
        let title = title.ok_or_else(|| Failure::usage(format!("{path:?} has no name that can be given to others")))?;
        if let Some(other) = all.iter().find(|other| other.title == title) {
            let why =
                format!("{:?} and {path:?} would have one name: rename one, or pack them into one file", other.path);
            return Err(Failure::usage(why));
        }
        all.push(Titled { path, media_type, title });
    }
    Ok(all)
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
            without a name stay in the content. Prints the paths. The artifact stays here under its name: \"coffer image rm\" removes it.\n\
            Where one of the files is there already none is written without --force.",
    failure: 1,
    action: |cx| Box::pin(pull(cx)),
};

#[derive(Deserialize)]
struct Manifest {
    layers: Option<Vec<Descriptor>>,
}

/// What of an image can be told before any of it is fetched: it has an index, or the config of an image and a layer that is no
/// file.
#[derive(Default)]
struct Told(Cell<bool>);

impl Told {
    fn is_image(&self, one: &Descriptor) -> bool {
        match media::kind(&one.media_type) {
            Kind::Index => true,
            Kind::Config => {
                self.0.set(true);
                false
            }
            Kind::Layer(_) => self.0.get() && !one.annotations.contains_key(TITLE),
            _ => false,
        }
    }
}

async fn pull(cx: Cx) -> Result<i32, Failure> {
    let options = pull_options(&cx.args)?;
    let namespace = cx.namespace().await?;
    let (told, image) = (Told::default(), Rc::new(Cell::new(false)));
    let (seen, reference) = (image.clone(), options.reference.clone());
    let choose = async move |one: Descriptor, _: u16| match told.is_image(&one) {
        false => Ok(Verdict::Take),
        true => {
            seen.set(true);
            Err(Error::failed_precondition("artifact", &reference, "is an image"))
        }
    };
    let names = progress::follow(&namespace.images().fetch(&options, choose)).await;
    let names = names.map_err(|failure| match image.get() {
        true => not_one(&options.reference),
        false => failure,
    })?;
    let name = names.first().ok_or_else(|| Failure::usage("artifact pull: nothing came"))?;
    let target = namespace.images().get(name).info().await?.target;
    let content = namespace.content();
    let bytes = small(&content, &target).await?;
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|_| not_one(name))?;
    let dir = Path::new(if cx.args.at(1).is_empty() { "." } else { cx.args.at(1) });
    let layers = manifest.layers.unwrap_or_default();
    let files = placed(&layers, dir, cx.args.has("force"))?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(|e| Failure::io(&dir.display().to_string(), e))?;
    let mut written = Vec::new();
    for (layer, path) in files {
        write(&content, layer, &path, cx.args.has("force")).await.map_err(|e| e.or_code(1))?;
        written.push(path.display().to_string());
    }
    cx.names(written.iter().map(String::as_str))?;
    Ok(0)
}

fn not_one(reference: &str) -> Failure {
    Failure::usage(format!("{reference} is an image, and not an artifact: \"coffer image pull\" gets it"))
}

/// Where each file goes: looked at before any is written.
fn placed<'a>(layers: &'a [Descriptor], dir: &Path, force: bool) -> Result<Vec<(&'a Descriptor, PathBuf)>, Failure> {
    let mut files: Vec<(&Descriptor, PathBuf)> = Vec::new();
    for layer in layers {
        let digest = &layer.digest;
        let Some(title) = layer.annotations.get(TITLE) else {
            say(&format!("{digest} has no name, and stays in the content"));
            continue;
        };
        let refuse = |why: String| Failure::usage(format!("artifact pull: {why}"));
        let other = |why: &str| refuse(format!("{title:?} {why}: get {digest} by \"coffer content get\""));
        // What somebody else calls a file must not lead out of the directory.
        let path = dir.join(plain(title).ok_or_else(|| other("is no name of a file"))?);
        if files.iter().any(|(_, there)| *there == path) {
            return Err(other("is the name of two files"));
        }
        if !force && path.symlink_metadata().is_ok() {
            return Err(refuse(format!("{} is there already: --force writes over it", path.display())));
        }
        files.push((layer, path));
    }
    Ok(files)
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
    if of.size > MAX_MANIFEST {
        return Err(Failure::usage(format!("{} is larger than a manifest may be", of.digest)));
    }
    let (sink, mut receiver) = cofferdam_client::channel();
    let reading = content.get(&of.digest.to_string()).read(0, of.size, &sink);
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
    fn what_could_not_be_got_again_is_not_sent() {
        let files = |all: &[&str]| all.iter().map(|file| (*file).to_owned()).collect::<Vec<_>>();
        let good = files(&["d1/a.json:text/x", "d2/b"]);
        let all = titled(&good).unwrap();
        assert_eq!((all[0].path, all[0].media_type, all[0].title), ("d1/a.json", "text/x", "a.json"));
        for bad in [&["d1/a", "d2/a"][..], &["a", "a"], &["a\nb"], &[".."], &["/"]] {
            assert!(titled(&files(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn where_one_file_can_not_be_written_none_is() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("there"), "mine").unwrap();
        let file = |title: &str| {
            let mut layer = Descriptor::new(OCTETS, format!("sha256:{}", "ab".repeat(32)).parse().unwrap(), 1);
            layer.annotations.insert(TITLE.into(), title.into());
            layer
        };
        let refused = |titles: &[&str], force: bool| {
            let layers: Vec<_> = titles.iter().map(|title| file(title)).collect();
            placed(&layers, dir.path(), force).map(|files| files.len()).map_err(|failure| failure.text)
        };
        assert!(refused(&["new", "there"], false).unwrap_err().contains("is there already: --force"));
        assert_eq!(refused(&["new", "there"], true), Ok(2));
        assert!(refused(&["new", "new"], true).unwrap_err().contains("the name of two files"));
        assert!(refused(&["new", "../x"], true).unwrap_err().contains("no name of a file"));
    }

    #[test]
    fn an_image_is_told_by_its_index_or_by_its_config_and_a_layer_without_a_name() {
        let is_image = |kinds: &[&str], title: bool| {
            let told = Told::default();
            kinds.iter().any(|kind| {
                let mut one = Descriptor::new(*kind, format!("sha256:{}", "ab".repeat(32)).parse().unwrap(), 1);
                if title {
                    one.annotations.insert(TITLE.into(), "x".into());
                }
                told.is_image(&one)
            })
        };
        let empty = "application/vnd.oci.empty.v1+json";
        assert!(is_image(&[media::OCI_INDEX], false));
        assert!(is_image(&[media::OCI_MANIFEST, media::OCI_CONFIG, media::OCI_LAYER_GZIP], false));
        assert!(!is_image(&[media::OCI_MANIFEST, media::OCI_CONFIG, media::OCI_LAYER_GZIP], true));
        assert!(!is_image(&[media::OCI_MANIFEST, empty, media::OCI_LAYER], false));
        assert!(!is_image(&[media::OCI_MANIFEST, media::OCI_CONFIG, "text/x"], false));
    }

    #[test]
    fn names_of_others_do_not_lead_out_of_the_directory() {
        assert_eq!(plain("report.json"), Some("report.json"));
        for bad in ["", ".", "..", "../x", "/x", "a/b", "a\nb", "a\0b", &"x".repeat(256)] {
            assert_eq!(plain(bad), None, "{bad:?}");
        }
    }
}
