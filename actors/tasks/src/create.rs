//! A container's record and its snapshot, from an image; or on a directory of the host.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use cofferdam_images::ResolvedImage;
use cofferdam_log::{Driver, Journal};
use cofferdam_metadata::{
    Tx,
    records::{
        containers::{self, Container},
        grants, snapshots,
    },
};
use cofferdam_oci::{
    RuntimeOptions,
    spec::{self, Network, Options},
    systemd,
};
use cofferdam_snapshots::Reserved;
use cofferdam_types::{Any, Authority, Code, Error, Id, Name, Namespace, Result};
use nix::{errno::Errno, fcntl::OFlag, sys::stat::Mode};
use oci_spec::{image::ImageConfiguration, runtime::Spec};
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::oneshot;

use crate::{
    coming::Arrivals,
    handle::Deps,
    messages::{NewContainer, RunRecord},
    network::NetworkRecord,
    restore,
    rights::{bounded, limit, logs_within, made_from, not_among, within},
    shim,
};

/// The type of the spec that a record keeps (reference, section 14.4).
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// Makes record and snapshot. The directory is there before the commit that makes both visible.
pub(crate) async fn create(
    deps: &Deps,
    auth: &Authority,
    ns: &Namespace,
    mut new: NewContainer,
    coming: &Arrivals,
    placed: oneshot::Sender<Id>,
) -> Result<Container> {
    within(&new, &auth.ceiling, &deps.runtimes)?;
    limit(&mut new, &auth.ceiling)?;
    if grants::bounds_disk(&deps.metadata.read()?, &auth.grants)? {
        logs_within(&new.log)?;
    }
    check_rootfs(&new)?;
    let attributes = new.log.attributes(&new.labels)?;
    let options = RuntimeOptions::read(&new.runtime_options)?;
    if matches!(&*new.runtime, "" | "native") {
        options.check_native()?;
    }
    let id = match new.id.clone() {
        Some(id) => id,
        None => Id::new(shim::new_id()?)?,
    };
    if containers::exists(&deps.metadata.read()?, ns, &id)? {
        return Err(Error::already_exists("container", &id, containers::TAKEN));
    }
    if new.log.driver == Driver::Journald {
        Journal::open(&deps.journal, ns, &id, &attributes)?;
    }
    let network = if new.spec.is_some() { None } else { NetworkRecord::of(&new.options) };
    if let Some(NetworkRecord { network: Network::Named(name), wish, .. }) = &network {
        deps.networks.check(name, wish).await?;
    }
    confine(deps, &mut new).await?;
    let checkpoint = match &new.image {
        Some(image) if new.checkpoint => Some((image, deps.images.checkpoint(ns, image)?)),
        None if new.checkpoint => {
            return Err(Error::invalid("container", &id, "names no image: a checkpoint is one"));
        }
        _ => None,
    };
    let runtime = match (&*new.runtime, &checkpoint) {
        ("", Some((_, checkpoint))) => checkpoint.runtime.clone(),
        ("", None) => "native".to_owned(),
        (named, _) => named.to_owned(),
    };
    if let Some((image, checkpoint)) = &checkpoint {
        restore::fits(checkpoint, &runtime, image)?;
        restore::connected(network.as_ref(), &id)?;
    }
    let files = match &new.image {
        Some(image) => Some(files(deps, auth, ns, &id, image, &new).await?),
        None => None,
    };

    let cgroup = deps.layout.cgroup(ns, &id);
    let cgroup = if options.systemd_cgroup { systemd::named(&cgroup) } else { cgroup };
    let spec = match (&new.spec, &files) {
        (Some(raw), Some(_)) => given(raw, &id, cgroup)?,
        (Some(raw), None) => given(rooted(raw, &id)?, &id, cgroup)?,
        (None, Some(files)) => generate(deps, cgroup, &id, &files.image, &new.options, &files.reserved.mounts)?,
        (None, None) => match &new.rootfs {
            Some(path) => generate_on(path, cgroup, &id, &new.options).await?,
            None => {
                let why = "names no image: only one with a root file system or a spec of its own needs none";
                return Err(Error::invalid("container", &id, why));
            }
        },
    };
    let spec = match (&checkpoint, &files) {
        (Some((image, checkpoint)), Some(files)) => {
            let root = mounted(&files.reserved.mounts)?;
            deps.images.apply_changes(ns, checkpoint, root).await?;
            let stored = deps.images.checkpoint_spec(ns, checkpoint)?;
            let bad = |e: serde_json::Error| Error::internal("spec", &id, e.to_string());
            let mut made: Spec = serde_json::from_slice(&spec).map_err(bad)?;
            restore::carry(&mut made, &stored, image)?;
            serde_json::to_vec(&made).map_err(bad)?
        }
        _ => spec,
    };
    bounded(&spec, &auth.ceiling)?;
    let stop_signal = files.as_ref().map(|files| stop_signal(&id, &files.image));
    let run = RunRecord {
        remove_on_exit: new.remove_on_exit,
        stop_signal,
        log: new.log,
        own_spec: new.spec.is_some(),
        network,
        rootfs: new.rootfs,
    };
    let mut record = Container::new(id, runtime, Any { type_url: SPEC_TYPE.to_owned(), value: spec });
    record.transient = new.remove_on_exit;
    record.storage = new.storage;
    record.labels = new.labels;
    record.runtime_options = new.runtime_options;
    record.group = new.group;
    let reserved = files.map(|files| {
        record.image = files.name;
        record.driver = files.driver;
        record.snapshot_key = Some(files.key);
        files.reserved
    });
    record.options = serde_json::to_vec(&run).map_err(|e| Error::internal("container", "", e.to_string()))?;
    let mounts = reserved.as_ref().map(|reserved| &*reserved.mounts).unwrap_or_default();
    let announced = coming.announce(ns, &record, &run, mounts);
    if announced.is_some() {
        // Nobody comes between this and the first look at the commit, which puts it into the writer's queue.
        let _ = placed.send(record.id.clone());
    }
    let namespace = ns.clone();
    let entered = announced.as_ref().map(|announced| announced.entered.clone()).unwrap_or_default();
    let commit = deps.metadata.write(auth, move |tx: &mut Tx<'_>| {
        // It may run again in a batch without others that failed.
        entered.set(false);
        let record = containers::create(tx, &namespace, record.clone())?;
        if let Some(reserved) = &reserved {
            reserved.create(tx, &namespace)?;
        }
        entered.set(true);
        Ok(record)
    });
    let made = commit.await;
    if let Some(announced) = announced {
        announced.settle(&made);
    }
    made
}

/// Gives it the default AppArmor profile, where the kernel has AppArmor and nothing else is said.
async fn confine(deps: &Deps, new: &mut NewContainer) -> Result<()> {
    if let Some(loader) = deps.apparmor.clone().filter(|_| new.spec.is_none() && new.options.apparmor.is_none()) {
        let loaded = tokio::task::spawn_blocking(move || loader.load()).await;
        let name = loaded.unwrap_or_else(|e| Err(Error::internal("apparmor", "", e.to_string())))?;
        new.options.apparmor = Some(name.to_owned());
    }
    Ok(())
}

/// Whether what is said of the root file system goes together.
fn check_rootfs(new: &NewContainer) -> Result<()> {
    let Some(path) = &new.rootfs else { return Ok(()) };
    let why = if new.image.is_some() {
        "is a root file system beside that of an image: leave out one"
    } else if new.checkpoint {
        "can't be what is restored: a checkpoint is an image"
    } else if new.spec.is_some() {
        "doesn't go with a spec of its own: give root.path there"
    } else if !new.driver.is_empty() {
        "is no snapshot: leave out the snapshot driver"
    } else if new.storage != 0 {
        "is no snapshot: leave out the limit of its storage"
    } else if !Path::new(path).is_absolute() {
        "is not absolute: give the whole path on the daemon's host"
    } else if path.contains('\0') {
        "holds a NUL byte"
    } else {
        return Ok(());
    };
    Err(Error::invalid("rootfs", path.escape_default(), why))
}

/// The mounts that are a container's root file system; none where its own spec names it.
pub(crate) async fn root_mounts(
    deps: &Deps,
    ns: &Namespace,
    record: &Container,
    run: &RunRecord,
) -> Result<Vec<cofferdam_types::Mount>> {
    match (&record.snapshot_key, &run.rootfs) {
        (Some(key), _) => {
            deps.snapshots.ready(ns, &record.driver, key).await?;
            deps.snapshots.mounts(ns, &record.driver, key)
        }
        // What the container mounts in it is not to appear on the host.
        (None, Some(path)) => Ok(vec![cofferdam_types::Mount {
            kind: "bind".to_owned(),
            source: path.clone(),
            options: ["rbind", "rw", "rprivate"].map(str::to_owned).to_vec(),
        }]),
        (None, None) => Ok(Vec::new()),
    }
}

/// An image, and the directory that the container writes to.
struct Files {
    name: String,
    image: ResolvedImage,
    driver: String,
    key: Name,
    reserved: Reserved,
}

async fn files(
    deps: &Deps,
    auth: &Authority,
    ns: &Namespace,
    id: &Id,
    name: &Name,
    new: &NewContainer,
) -> Result<Files> {
    let chosen = &auth.ceiling.images;
    let image = deps.images.resolve_of(chosen, ns, name, &new.platform).await.map_err(|error| match error.code {
        Code::NotFound if !chosen.has(name, &[]) => not_among(name),
        _ => error,
    })?;
    made_from(&image, name, &auth.ceiling)?;
    let known = deps.images.own(chosen, ns, name, &image.target)?.is_all();
    let driver = if new.driver.is_empty() { deps.snapshots.drivers()[0].to_owned() } else { new.driver.clone() };
    let parent = parent(deps, auth, ns, &image, &driver, known).await?;
    let key = Name::new(id.as_str())?;
    let reserved = match deps.snapshots.reserve(ns, &driver, &key, parent.as_ref(), false).await {
        // Whose container it is was made meanwhile.
        Err(e) if e.code == Code::AlreadyExists && containers::exists(&deps.metadata.read()?, ns, id)? => {
            return Err(Error::already_exists("container", id, containers::TAKEN));
        }
        other => other?,
    };
    if new.storage != 0 {
        deps.snapshots.limit_reserved(&reserved, new.storage).await?;
    }
    Ok(Files { name: name.to_string(), image, driver, key, reserved })
}

/// The snapshot that containers of the image start from; unpacks the image if it isn't there, or if it isn't known to be that
/// image's.
async fn parent(
    deps: &Deps,
    auth: &Authority,
    ns: &Namespace,
    image: &ResolvedImage,
    driver: &str,
    known: bool,
) -> Result<Option<Name>> {
    let Some(top) = image.chain_ids.last() else { return Ok(None) };
    let name = Name::new(top.to_string())?;
    if !known || snapshots::find(&deps.metadata.read()?, ns, driver, &name)?.is_none() {
        deps.images.unpack(auth, ns, image, driver, None).await?;
    }
    Ok(Some(name))
}

/// A spec of the client's own. One that names no cgroup gets ours: what the record says is then true of every driver.
pub(crate) fn given(raw: &[u8], id: &Id, cgroup: String) -> Result<Vec<u8>> {
    let bad = |e: serde_json::Error| Error::invalid("spec", id, format!("is not an OCI runtime spec: {e}"));
    let spec: Spec = serde_json::from_slice(raw).map_err(bad)?;
    if cgroup_of(&spec).is_some() { Ok(raw.to_vec()) } else { with_cgroup(raw, id, cgroup) }
}

/// A spec that is to do without an image.
fn rooted<'a>(raw: &'a [u8], id: &Id) -> Result<&'a [u8]> {
    #[derive(Deserialize)]
    struct Outer {
        root: Option<Root>,
    }
    #[derive(Deserialize)]
    struct Root {
        path: Option<PathBuf>,
    }
    let bad = |e: serde_json::Error| Error::invalid("spec", id, format!("is not an OCI runtime spec: {e}"));
    let spec: Outer = serde_json::from_slice(raw).map_err(bad)?;
    if spec.root.and_then(|root| root.path).is_some_and(|path| path.is_absolute()) {
        return Ok(raw);
    }
    let why = "has no absolute path on the host: give one, or an image";
    Err(Error::invalid("spec", "root.path", why))
}

/// A spec with this cgroup: as it came, with what our own types don't know.
pub(crate) fn with_cgroup(raw: &[u8], id: &Id, cgroup: String) -> Result<Vec<u8>> {
    let bad = |e: serde_json::Error| Error::invalid("spec", id, format!("is not an OCI runtime spec: {e}"));
    // Most of a spec is passed on unread.
    type Parts = BTreeMap<String, Box<RawValue>>;
    let mut whole: Parts = serde_json::from_slice(raw).map_err(bad)?;
    let linux = whole.get("linux").map_or("null", |linux| linux.get());
    let linux: Option<Parts> =
        serde_json::from_str(linux).map_err(|_| Error::invalid("spec", id, "has a `linux` that is no object"))?;
    let mut linux = linux.unwrap_or_default();
    linux.insert("cgroupsPath".to_owned(), to_raw_value(&cgroup).map_err(bad)?);
    whole.insert("linux".to_owned(), to_raw_value(&linux).map_err(bad)?);
    serde_json::to_vec(&whole).map_err(bad)
}

/// The cgroup that a container's spec names.
pub(crate) fn cgroup_in(spec: &[u8]) -> Option<String> {
    cgroup_of(&serde_json::from_slice(spec).ok()?)
}

/// The cgroup that a spec names, from the root of its hierarchy.
pub(crate) fn cgroup_of(spec: &Spec) -> Option<String> {
    let path = spec.linux().as_ref()?.cgroups_path().as_ref()?.to_str()?;
    let made = || systemd::path(path).unwrap_or_else(|| format!("/{}", path.trim_start_matches('/')));
    (!path.is_empty()).then(made)
}

fn generate(
    deps: &Deps,
    cgroup: String,
    id: &Id,
    image: &ResolvedImage,
    options: &Options,
    mounts: &[cofferdam_types::Mount],
) -> Result<Vec<u8>> {
    written(spec::generate(&cgroup, id, &image.config.image, options, |user| deps.users.look_up(mounts, user))?, id)
}

/// The same on a directory of the host. It may lie on a file system that doesn't answer, and nobody waits for that but
/// who asked.
async fn generate_on(path: &str, cgroup: String, id: &Id, options: &Options) -> Result<Vec<u8>> {
    let (path, container, options) = (path.to_owned(), id.clone(), options.clone());
    let made = tokio::task::spawn_blocking(move || {
        let root = directory(&path)?;
        let look_up = |user: &str| cofferdam_oci::users::resolve(&root, user);
        written(spec::generate(&cgroup, &container, &ImageConfiguration::default(), &options, look_up)?, &container)
    });
    made.await.unwrap_or_else(|e| Err(Error::internal("spec", id, e.to_string())))
}

fn directory(path: &str) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty()).map_err(|e| match e {
        Errno::ENOENT => Error::not_found("rootfs", path, "is not on the daemon's host: make it first"),
        Errno::ENOTDIR => Error::invalid("rootfs", path, "is not a directory"),
        other => Error::io("rootfs", path, "can't be opened", &other.into()),
    })
}

fn written(spec: Spec, id: &Id) -> Result<Vec<u8>> {
    serde_json::to_vec(&spec).map_err(|e| Error::internal("spec", id, e.to_string()))
}

/// What asks the container to end. An image that names nonsense can be run all the same: nobody who runs it could mend
/// it.
fn stop_signal(id: &Id, image: &ResolvedImage) -> u32 {
    let number = spec::stop_signal(&image.config.image).unwrap_or_else(|error| {
        tracing::warn!(container = %id, %error, "it is asked to end by SIGTERM");
        libc::SIGTERM
    });
    number.unsigned_abs()
}

/// The root file system as a mount that is attached nowhere: it goes with the descriptor.
pub(crate) fn mounted(mounts: &[cofferdam_types::Mount]) -> Result<OwnedFd> {
    match mounts {
        [one] => cofferdam_sys::mount::detached(one),
        _ => Err(Error::internal("snapshot", "", format!("has {} mounts where one is expected", mounts.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_without_a_cgroup_gets_ours_and_keeps_the_rest() {
        let id = Id::new("box").unwrap();
        let ours = |raw: &str| {
            let spec = given(raw.as_bytes(), &id, "/cofferdam/1/shop/box".into()).unwrap();
            (
                serde_json::from_slice::<serde_json::Value>(&spec).unwrap(),
                cgroup_of(&serde_json::from_slice(&spec).unwrap()),
            )
        };
        let (spec, cgroup) = ours(r#"{"ociVersion":"1.0.2","newer":{"than":"us"}}"#);
        assert_eq!((&spec["newer"]["than"], cgroup.as_deref()), (&"us".into(), Some("/cofferdam/1/shop/box")));
        let raw = r#"{"ociVersion":"1.0.2","linux":{"cgroupsPath":"mine/box"}}"#;
        assert_eq!(given(raw.as_bytes(), &id, String::new()).unwrap(), raw.as_bytes());
        assert_eq!(ours(raw).1.as_deref(), Some("/mine/box"));
        assert!(given(b"[]", &id, String::new()).is_err());
    }
}
