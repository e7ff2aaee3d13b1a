//! Checkpoints, as containers come from them and go into them.
//!
//! What is in a checkpoint is somebody else's word. It names nothing here (K2), its files are made anew beneath a
//! directory of ours (K3), and of the spec in it only what the process is taken (K1): what it may do, and what of the host
//! it sees, is up to who restores it.

use std::{
    fs::File,
    io::Read as _,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
};

use capnp::capability::Response;
use cofferdam_images::Checkpoint;
use cofferdam_metadata::records::containers;
use cofferdam_oci::{
    RuntimeOptions, criu,
    spec::{NAMES, Network},
};
use cofferdam_types::{Authority, Code, Error, Name, Namespace, Result};
use cofferdam_wire::shim_capnp::{shim_container::checkpoint_results, shim_hold};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::{
    entry::Entry,
    handle::Deps,
    layout,
    link::Remote,
    messages::RunRecord,
    network::NetworkRecord,
    recover::ANSWER,
    run::Prepared,
    shim::{self, from_shim},
};

/// Files of a checkpoint, and bytes of a name: criu makes a few for each process.
const MAX_FILES: usize = 100_000;
const MAX_NAME: usize = 255;

/// What criu is to put up with, at the cost of a restore that may not succeed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpOptions {
    /// Established TCP connections.
    pub tcp_established: bool,
    /// Unix sockets whose other end is outside.
    pub unix_sockets: bool,
}

/// A container that was checkpointed and stands still; it goes on when this falls, and the files go.
#[derive(Debug)]
pub struct Dumped {
    dir: PathBuf,
    runtime: String,
    hold: Option<oneshot::Sender<()>>,
    over: Option<oneshot::Receiver<()>>,
}

impl Dumped {
    /// Where criu's images are.
    pub fn images(&self) -> PathBuf {
        self.dir.join(criu::IMAGES)
    }

    /// Lets it go on, and waits until it does.
    pub async fn release(mut self) {
        drop(self.hold.take());
        if let Some(over) = self.over.take() {
            let _ = over.await;
        }
    }

    /// The form that they have: `native` or `runc`.
    pub fn runtime(&self) -> &str {
        &self.runtime
    }
}

impl Drop for Dumped {
    fn drop(&mut self) {
        if let Err(error) = layout::remove(&self.dir) {
            tracing::warn!(%error, "a checkpoint's files are left behind");
        }
    }
}

/// The criu that a container's options name, or the daemon's.
fn criu_for(deps: &Deps, options: &RuntimeOptions) -> PathBuf {
    options.criu_path.clone().unwrap_or_else(|| deps.criu.clone())
}

/// Whose form a driver's checkpoints have.
fn form(runtime: &str) -> &'static str {
    if matches!(runtime, "" | "native") { "native" } else { "runc" }
}

/// Has the shim write what runs in a container into a directory of ours.
pub(crate) async fn dump(deps: &Deps, entry: &Rc<Entry>, remote: &Remote, options: DumpOptions) -> Result<Dumped> {
    let record = containers::get(&deps.metadata.read()?, &entry.namespace, &entry.id)?;
    let run: RunRecord = serde_json::from_slice(&record.options).unwrap_or_default();
    connected(run.network.as_ref(), &entry.id)?;
    let ((hold, dropped), (tell, over)) = (oneshot::channel::<()>(), oneshot::channel());
    let dumped = Dumped {
        dir: deps.layout.checkpoint(&format!("dump-{}", shim::new_id()?)),
        runtime: form(&record.runtime).to_owned(),
        hold: Some(hold),
        over: Some(over),
    };
    let dir = folders(&dumped.dir, &entry.id)?;
    let mut request = remote.container.checkpoint_request();
    let mut fields = request.get().init_request();
    fields.set_spec(&record.spec.value);
    fields.set_directory(remote.fds.push(OwnedFd::from(dir)));
    let given = RuntimeOptions::read(&record.runtime_options)?;
    fields.set_criu(criu_for(deps, &given).to_string_lossy().as_ref());
    fields.set_tcp_established(options.tcp_established);
    fields.set_unix_sockets(options.unix_sockets);
    let was = entry.paused.replace(true);
    let held = answered(entry, remote, request.send().promise).await;
    let held = held.inspect_err(|_| entry.paused.set(was))?;
    let (entry, container) = (entry.clone(), remote.container.clone());
    tokio::task::spawn_local(async move {
        let _ = dropped.await;
        // That is how the shim learns that it may let the container go on. Whatever is asked behind that it answers behind
        // that.
        drop(held);
        let _ = container.state_request().send().promise.await;
        entry.paused.set(was);
        let _ = tell.send(());
    });
    Ok(dumped)
}

/// What the shim answers once criu is done, or the runtime. They are given their time; a shim that answers nothing else
/// meanwhile is not waited for: it lets the container go on by itself when it is done, since nobody holds that.
async fn answered(
    entry: &Rc<Entry>,
    remote: &Remote,
    asked: impl Future<Output = capnp::Result<Response<checkpoint_results::Owned>>>,
) -> Result<shim_hold::Client> {
    let limit = criu::DEADLINE + ANSWER;
    let is_there = async {
        loop {
            tokio::time::sleep(ANSWER).await;
            let state = remote.container.state_request().send().promise;
            if let Err(error) = entry.answer(remote, state).await {
                return error;
            }
        }
    };
    let late =
        || Error::deadline_exceeded("task", &entry.id, format!("was not checkpointed within {limit:?}: it goes on"));
    let answer = tokio::select! {
        answer = tokio::time::timeout(limit, asked) => answer.map_err(|_| late())?.map_err(from_shim)?,
        error = is_there => return Err(match error.code {
            Code::Unavailable => {
                let why = "is not checkpointed: its shim doesn't answer, and lets it go on when it does";
                Error::deadline_exceeded("task", &entry.id, why)
            }
            _ => error,
        }),
    };
    answer.get().and_then(|a| a.get_hold()).map_err(from_shim)
}

/// Makes the directory of a checkpoint's files, with what goes into it.
fn folders(dir: &Path, id: &str) -> Result<File> {
    layout::make(dir)?;
    for name in [criu::IMAGES, criu::WORK] {
        layout::make(&dir.join(name))?;
    }
    File::open(dir).map_err(|e| Error::io("checkpoint", id, "its directory can't be opened", &e))
}

/// What a shim needs to know of the checkpoint that it restores.
pub(crate) struct Source {
    pub dir: OwnedFd,
    pub options: DumpOptions,
    pub criu: PathBuf,
}

/// Brings what criu wrote into the directory that goes with the shim.
pub(crate) async fn lay_out(
    deps: &Deps,
    auth: &Authority,
    ns: &Namespace,
    name: &Name,
    prepared: &Prepared,
    shim: &str,
) -> Result<Source> {
    let record = &prepared.record;
    if !auth.ceiling.host {
        return Err(Error::denied(
            "container",
            &record.id,
            "is to be restored from a checkpoint, which needs the host right",
        ));
    }
    connected(prepared.run.network.as_ref(), &record.id)?;
    let checkpoint = deps.images.checkpoint(ns, name)?;
    fits(&checkpoint, &record.runtime, name)?;
    let memory = deps.images.checkpoint_memory(ns, &checkpoint)?;
    let dir = folders(&deps.layout.restored(shim, &record.id), &record.id)?;
    let into = deps.layout.restored(shim, &record.id).join(criu::IMAGES);
    let subject = name.to_string();
    let unpacked = tokio::task::spawn_blocking(move || unpack(memory, &into, &subject)).await;
    unpacked.unwrap_or_else(|e| Err(Error::internal("checkpoint", name, e.to_string())))?;
    let options = DumpOptions { tcp_established: checkpoint.tcp_established, unix_sockets: checkpoint.unix_sockets };
    Ok(Source { dir: dir.into(), options, criu: criu_for(deps, &prepared.options) })
}

/// A checkpoint has the form of the driver that wrote it.
pub(crate) fn fits(checkpoint: &Checkpoint, runtime: &str, name: &Name) -> Result<()> {
    if form(runtime) == checkpoint.runtime {
        return Ok(());
    }
    let (made, asked) = (&checkpoint.runtime, form(runtime));
    let why = format!("was made by the driver {made} and can't be restored by {asked}: ask for the runtime {made}");
    Err(Error::failed_precondition("checkpoint", name, why))
}

/// A network namespace is not in a checkpoint: it is made and connected anew. One that is another container's may not be
/// there any more when that one's processes come back.
pub(crate) fn connected(network: Option<&NetworkRecord>, id: &str) -> Result<()> {
    match network.map(|record| &record.network) {
        Some(Network::Container(other)) => {
            let why = format!("shares the network of {other}, with which it can be neither checkpointed nor restored");
            Err(Error::unimplemented("container", id, why))
        }
        _ => Ok(()),
    }
}

/// K3: plain files alone, each made anew beneath our directory.
fn unpack(memory: impl std::io::Read, dir: &Path, name: &str) -> Result<()> {
    let refuse =
        |why: String| Error::invalid("checkpoint", name, format!("its archive {why}: it was not made by criu"));
    let broken = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::StorageFull => Error::io("checkpoint", name, "unpacking it", &e),
        _ => Error::data_loss("checkpoint", name, format!("its archive can't be read: {e}")),
    };
    let held = File::open(dir).map_err(broken)?;
    let mut archive = tar::Archive::new(memory);
    let mut files = 0;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&path).into_owned();
        if entry.header().entry_type() == tar::EntryType::Directory && matches!(&*path, b"." | b"./") {
            continue;
        }
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(refuse(format!("has {shown:?}, which is no plain file")));
        }
        let plain = std::str::from_utf8(path.strip_prefix(b"./").unwrap_or(&path)).ok().filter(|name| {
            !name.is_empty() && name.len() <= MAX_NAME && !matches!(*name, "." | "..") && !name.contains(['/', '\0'])
        });
        let Some(plain) = plain else { return Err(refuse(format!("has {shown:?}, which is no name of a file"))) };
        files += 1;
        if files > MAX_FILES {
            return Err(refuse(format!("has more than {MAX_FILES} files")));
        }
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let made = cofferdam_sys::fd::open_no_symlinks(held.as_fd(), Path::new(plain), flags, 0o600);
        let mut file = File::from(made.map_err(|e| refuse(format!("has {plain:?} twice, or it can't be made ({e})")))?);
        let size = entry.size();
        let copied = std::io::copy(&mut (&mut entry).take(size), &mut file).map_err(broken)?;
        if copied != size {
            return Err(Error::data_loss("checkpoint", name, format!("its archive is cut off in {plain}")));
        }
    }
    if !dir.join("inventory.img").exists() {
        return Err(refuse("has no inventory.img".into()));
    }
    Ok(())
}

/// K1: of the spec in a checkpoint only what its process is. Its arguments, environment, user and directory are what
/// later processes of the container start from; it runs with them already.
pub(crate) fn carry(spec: &mut Spec, stored: &[u8], name: &Name) -> Result<()> {
    let old: Spec = serde_json::from_slice(stored)
        .map_err(|e| Error::invalid("checkpoint", name, format!("its spec can't be read: {e}")))?;
    let Some(was) = old.process() else {
        return Err(Error::invalid("checkpoint", name, "has a spec without a process"));
    };
    let Some(process) = spec.process_mut() else { return Ok(()) };
    let (had, has) = (was.terminal().unwrap_or(false), process.terminal().unwrap_or(false));
    if had != has {
        let why = if had { "with a terminal: ask for one" } else { "without a terminal: don't ask for one" };
        return Err(Error::failed_precondition("checkpoint", name, format!("was made of a container {why}")));
    }
    process.set_args(was.args().clone());
    process.set_env(was.env().clone());
    process.set_cwd(was.cwd().clone());
    process.set_user(was.user().clone());
    spec.set_hostname(old.hostname().clone());
    let seen = |spec: &Spec| {
        let mounts = spec.mounts().iter().flatten().map(|m| m.destination().display().to_string());
        mounts.collect::<std::collections::BTreeSet<_>>()
    };
    let (before, now) = (seen(&old), seen(spec));
    let differs = |with: &str, point: &str, what: &str| {
        let network = NAMES.iter().any(|(target, _)| *target == point);
        let what = if network { format!("{what}; it comes with a network or with names") } else { what.to_owned() };
        let why = format!("was made of a container {with} a mount at {point}: {what}");
        Err(Error::failed_precondition("checkpoint", name, why))
    };
    if let Some(missing) = before.difference(&now).next() {
        return differs("with", missing, "ask for one again");
    }
    if let Some(more) = now.difference(&before).next() {
        return differs("without", more, "leave that out");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Code;
    use serde_json::json;

    use super::*;

    fn archive(members: &[(&str, tar::EntryType)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind) in members {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(if *kind == tar::EntryType::Regular { 4 } else { 0 });
            header.set_link_name("/etc/passwd").unwrap();
            // As an attacker writes it: the library's own functions would refuse.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            tar.append(&header, if *kind == tar::EntryType::Regular { &b"data"[..] } else { b"" }).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn k3_members_are_plain_files_beneath_our_directory() {
        use tar::EntryType as E;
        let inventory = ("inventory.img", E::Regular);
        let dir = tempfile::tempdir().unwrap();
        let at = |n: usize| {
            let path = dir.path().join(n.to_string());
            std::fs::create_dir(&path).unwrap();
            path
        };
        unpack(&*archive(&[("./", E::Directory), inventory, ("./pages-1.img", E::Regular)]), &at(0), "x").unwrap();
        assert_eq!(std::fs::read(dir.path().join("0/pages-1.img")).unwrap(), b"data");
        let bad = [
            vec![inventory, ("container.log", E::Symlink)],
            vec![inventory, ("core-1.img", E::Link)],
            vec![inventory, ("null", E::Char)],
            vec![inventory, ("p", E::Fifo)],
            vec![inventory, ("sub", E::Directory)],
            vec![inventory, ("../outside", E::Regular)],
            vec![inventory, ("/tmp/absolute", E::Regular)],
            vec![inventory, ("a/b", E::Regular)],
            vec![inventory, ("..", E::Regular)],
            vec![inventory, inventory],
            vec![("pages-1.img", E::Regular)],
            vec![],
        ];
        for (n, members) in bad.iter().enumerate() {
            let error = unpack(&*archive(members), &at(n + 1), "x").unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument, "{members:?}: {error}");
        }
        assert!(!dir.path().join("outside").exists());
        let whole = archive(&[inventory]);
        assert_eq!(unpack(&whole[..514], &at(100), "x").unwrap_err().code, Code::DataLoss);
        // A symbolic link that waits for the file is not followed.
        let trap = at(101);
        std::os::unix::fs::symlink(dir.path().join("victim"), trap.join("inventory.img")).unwrap();
        assert!(unpack(&*whole, &trap, "x").is_err());
        assert!(!dir.path().join("victim").exists());
    }

    #[test]
    fn k1_a_stored_spec_gives_what_the_process_is_and_nothing_else() {
        let spec = |extra: serde_json::Value| -> Spec {
            let mut value = json!({
                "ociVersion": "1.0.2",
                "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["sh"], "env": ["A=1"],
                    "capabilities": {"bounding": ["CAP_CHOWN"]}},
                "mounts": [{"destination": "/proc", "type": "proc"}],
                "linux": {"namespaces": [{"type": "pid"}]},
            });
            for (key, more) in extra.as_object().unwrap() {
                match (value.get_mut(key).and_then(|v| v.as_object_mut()), more.as_object()) {
                    (Some(old), Some(more)) => old.extend(more.clone()),
                    _ => value[key] = more.clone(),
                }
            }
            serde_json::from_value(value).unwrap()
        };
        let name = Name::new("cp").unwrap();
        let hostile = spec(json!({
            "annotations": {"cdi.k8s.io/x": "vendor.com/gpu=all", "run.oci.handler": "evil"},
            "hooks": {"prestart": [{"path": "/bin/evil"}]},
            "hostname": "theirs",
            "process": {"args": ["theirs"], "env": ["B=2"], "cwd": "/srv", "user": {"uid": 7, "gid": 8},
                "capabilities": {"bounding": ["CAP_SYS_ADMIN"]}, "noNewPrivileges": false},
            "linux": {"namespaces": [], "devices": [{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}],
                "cgroupsPath": "/theirs", "seccomp": null},
        }));
        let live = spec(json!({"process": {"noNewPrivileges": true}}));
        let mut made = live.clone();
        carry(&mut made, &serde_json::to_vec(&hostile).unwrap(), &name).unwrap();
        let process = made.process().clone().unwrap();
        assert_eq!(process.args().clone().unwrap(), ["theirs"]);
        assert_eq!((process.env().clone().unwrap(), process.user().uid()), (vec!["B=2".to_owned()], 7));
        assert_eq!(made.hostname().as_deref(), Some("theirs"));
        // All else is the live one's.
        let mut expected = live.clone();
        expected.set_hostname(made.hostname().clone());
        let ours = expected.process_mut().as_mut().unwrap();
        ours.set_args(process.args().clone());
        ours.set_env(process.env().clone());
        ours.set_cwd(process.cwd().clone());
        ours.set_user(process.user().clone());
        assert_eq!(made, expected);

        let refused = |old: &Spec, new: &Spec| {
            carry(&mut new.clone(), &serde_json::to_vec(old).unwrap(), &name).unwrap_err().message
        };
        let data = spec(json!({"mounts": [{"destination": "/proc"}, {"destination": "/data", "source": "/etc"}]}));
        assert!(refused(&data, &live).contains("/data"));
        assert!(refused(&live, &data).contains("leave that out"));
        assert!(refused(&spec(json!({"process": {"terminal": true}})), &live).contains("terminal"));
        assert!(carry(&mut live.clone(), b"{", &name).is_err());
    }
}
