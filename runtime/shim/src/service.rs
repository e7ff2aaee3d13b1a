//! The shim's RPC: shim.capnp, each method a few lines.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    rc::Rc,
    time::Duration,
};

use cofferdam_log::{Driver as LogDriver, Journal, Writer};
use cofferdam_oci::{CheckpointRequest, RuntimeOptions, native::Native, seccomp};
use cofferdam_types::{Error, Id, Namespace, Result};
use cofferdam_wire::{
    SHIM_VERSION,
    convert::{labels, mounts, set_life, set_texts, text},
    error::{malformed, to_rpc},
    fdstream::Fds,
    shim_capnp::{create_request, shim, shim_attachment, shim_container},
};

use crate::{
    Shared,
    calls::through,
    checkpoint::{self, Driver},
    container::{Container, Create, Source},
    dump,
    process::{Attachment, Process},
    sink::duplicate,
    stdio::Wishes,
    surroundings,
};

/// See [`drain`].
const DRAIN: Duration = Duration::from_secs(300);

/// What one connection sees.
pub struct Service {
    shared: Rc<Shared>,
    fds: Fds,
}

impl Service {
    /// For a connection whose descriptors are `fds`.
    pub fn new(shared: Rc<Shared>, fds: Fds) -> Service {
        Service { shared, fds }
    }

    fn hand_out(&self, container: Rc<Container>) -> shim_container::Client {
        capnp_rpc::new_client(Held { shared: self.shared.clone(), fds: self.fds.clone(), container })
    }

    fn request(&self, reader: create_request::Reader<'_>) -> Result<Create> {
        let spec = reader.get_spec().map_err(malformed)?;
        let options = match reader.get_runtime_options().map_err(malformed)? {
            [] => RuntimeOptions::default(),
            json => RuntimeOptions::parse(json)?,
        };
        surroundings::apply(&options)?;
        let driver = Driver {
            runtime: text(reader.get_runtime())?.to_owned(),
            root: text(reader.get_runtime_root())?.into(),
            options: options.clone(),
            oom_score: self.shared.oom_score,
        };
        // A mount of the root file system by a path, as those drivers and criu want it: in a mount namespace of ours,
        // so that it ends with us, whatever happens. One for all of a group.
        let own_mounts = !driver.native() || reader.get_restore();
        if own_mounts && !self.shared.own_mounts.get() {
            private_mounts()?;
            self.shared.own_mounts.set(true);
        }
        let source = if reader.get_restore() {
            Some(Source {
                dir: self.fds.take(reader.get_checkpoint())?.into_fd(),
                criu: text(reader.get_criu())?.into(),
                tcp_established: reader.get_tcp_established(),
                unix_sockets: reader.get_unix_sockets(),
            })
        } else {
            None
        };
        let bundle = self.fds.take(reader.get_bundle())?.into_fd();
        Ok(Create {
            namespace: Namespace::new(text(reader.get_namespace())?)?,
            id: Id::new(text(reader.get_id())?)?,
            bundle: if own_mounts { here(&bundle)? } else { bundle },
            spec: serde_json::from_slice(spec)
                .map_err(|e| Error::invalid("spec", "", format!("is not an OCI runtime spec: {e}")))?,
            rootfs: mounts(reader.get_rootfs())?,
            runtime: driver.make(self.shared.ahead.take())?,
            driver,
            source,
            stdio: Wishes::read(reader.get_stdio().map_err(malformed)?, &self.fds)?,
            terminal: reader.get_terminal(),
            pipes: (options.io_uid, options.io_gid),
            filter: seccomp::from_bytes(reader.get_filter().map_err(malformed)?),
            log: if reader.get_log() { Some(self.log(reader)?) } else { None },
            grant: text(reader.get_grant())?.to_owned(),
        })
    }
}

impl Service {
    fn log(&self, reader: create_request::Reader<'_>) -> Result<Writer> {
        if !reader.has_logging() {
            return Ok(Writer::plain(self.fds.take(reader.get_log_fd())?.into_fd()));
        }
        let logging = reader.get_logging().map_err(malformed)?;
        let attributes = labels(logging.get_attributes())?;
        let driver: LogDriver = text(logging.get_driver())?.parse()?;
        Ok(match (driver, driver.format()) {
            (_, Some(format)) => {
                let dir = self.fds.take(logging.get_directory())?.into_fd();
                Writer::files(dir, format, logging.get_max_size(), logging.get_max_files(), &attributes)
            }
            (LogDriver::Journald, None) => {
                let (namespace, id) = (text(reader.get_namespace())?, text(reader.get_id())?);
                let path = text(logging.get_journal())?;
                Writer::journal(Journal::open(path.as_ref(), namespace, id, &attributes)?)
            }
            (_, None) => Writer::nowhere(),
        })
    }
}

/// Gives back what reading a spec and making a container took: a shim lives long and holds little. Later: what ends at
/// once need not be tidied up.
async fn trim() {
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    cofferdam_sys::memory::trim();
    let _ = cofferdam_sys::memory::trim_stack();
}

fn private_mounts() -> Result<()> {
    use nix::{
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
    };
    let os = |e: nix::Error| Error::io("shim", "", "can't have mounts of its own", &e.into());
    unshare(CloneFlags::CLONE_NEWNS).map_err(os)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>).map_err(os)
}

/// The same directory in our own mount namespace: nothing can be mounted on one of another's.
fn here(dir: &OwnedFd) -> Result<OwnedFd> {
    let os = |e: std::io::Error| Error::io("bundle", "", "can't be opened in the shim's mount namespace", &e);
    let path = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).map_err(os)?;
    let found = std::fs::File::open(path).map_err(os)?;
    let same = |fd: &OwnedFd| nix::sys::stat::fstat(fd).map(|s| (s.st_dev, s.st_ino)).map_err(|e| os(e.into()));
    let found = OwnedFd::from(found);
    if same(&found)? != same(dir)? {
        return Err(Error::failed_precondition("bundle", "", "was moved while the container was made: try again"));
    }
    Ok(found)
}

impl shim::Server for Service {
    async fn hello(self: Rc<Self>, _: shim::HelloParams, mut results: shim::HelloResults) -> capnp::Result<()> {
        if self.shared.containers.had_any() {
            // It is free for another container, or was found again.
            tokio::task::spawn_local(trim());
        }
        let mut answer = results.get();
        answer.set_version(SHIM_VERSION);
        answer.set_pid(std::process::id());
        answer.init_features(0);
        Ok(())
    }

    async fn create(self: Rc<Self>, params: shim::CreateParams, mut results: shim::CreateResults) -> capnp::Result<()> {
        self.shared.containers.wanted();
        let request = self.request(params.get()?.get_request()?).map_err(to_rpc)?;
        let shared = self.shared.clone();
        let making = async move { shared.containers.create(shared.calls.clone(), request).await };
        let made = through(making).await.map_err(to_rpc)?;
        let mut answer = results.get();
        set_life(answer.reborrow().init_life(), &made.lives()[0]);
        answer.set_container(self.hand_out(made));
        Ok(())
    }

    async fn container(
        self: Rc<Self>,
        params: shim::ContainerParams,
        mut results: shim::ContainerResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let key = (|| Ok((Namespace::new(text(params.get_namespace())?)?, Id::new(text(params.get_id())?)?)))();
        let (namespace, id) = key.map_err(to_rpc)?;
        let found = self.shared.containers.get(&namespace, &id).await;
        results.get().set_container(self.hand_out(found.map_err(to_rpc)?));
        Ok(())
    }

    async fn prepare(self: Rc<Self>, params: shim::PrepareParams, _: shim::PrepareResults) -> capnp::Result<()> {
        let network = params.get()?.get_network();
        let native = Native::new().and_then(|native| if network { native.ahead() } else { Ok(native) });
        self.shared.ahead.replace(Some(native.map_err(to_rpc)?));
        Ok(())
    }

    async fn dump(self: Rc<Self>, _: shim::DumpParams, mut results: shim::DumpResults) -> capnp::Result<()> {
        dump::fill(results.get().init_dump(), &self.shared);
        Ok(())
    }
}

/// A container, as one connection holds it.
struct Held {
    shared: Rc<Shared>,
    fds: Fds,
    container: Rc<Container>,
}

impl Held {
    /// Does something with the container to its end, whatever becomes of the caller.
    async fn act<T: 'static, F: Future<Output = Result<T>> + 'static>(
        &self,
        id: capnp::Result<capnp::text::Reader<'_>>,
        what: impl FnOnce(Rc<Container>, String) -> F,
    ) -> capnp::Result<T> {
        let id = text(id).map_err(to_rpc)?.to_owned();
        through(what(self.container.clone(), id)).await.map_err(to_rpc)
    }

    fn process(&self, id: capnp::Result<capnp::text::Reader<'_>>) -> capnp::Result<Rc<Process>> {
        text(id).and_then(|id| self.container.process(id)).map_err(to_rpc)
    }
}

impl shim_container::Server for Held {
    async fn start(
        self: Rc<Self>,
        params: shim_container::StartParams,
        mut results: shim_container::StartResults,
    ) -> capnp::Result<()> {
        let life = self.act(params.get()?.get_id(), |container, id| async move { container.start(&id).await }).await?;
        tokio::task::spawn_local(trim());
        set_life(results.get().init_life(), &life);
        Ok(())
    }

    async fn wait(
        self: Rc<Self>,
        params: shim_container::WaitParams,
        mut results: shim_container::WaitResults,
    ) -> capnp::Result<()> {
        let life = self.process(params.get()?.get_id())?.wait().await;
        set_life(results.get().init_life(), &life);
        Ok(())
    }

    async fn state(
        self: Rc<Self>,
        _: shim_container::StateParams,
        mut results: shim_container::StateResults,
    ) -> capnp::Result<()> {
        let paused = self.container.settled().await;
        let (lives, grants) = (self.container.lives(), self.container.grants());
        let mut answer = results.get();
        answer.set_paused(paused);
        answer.set_log_lost(self.container.log_lost());
        set_texts(answer.reborrow().init_grants(grants.len() as u32), &grants);
        let mut list = answer.init_processes(lives.len() as u32);
        for (n, life) in lives.iter().enumerate() {
            set_life(list.reborrow().get(n as u32), life);
        }
        Ok(())
    }

    async fn kill(
        self: Rc<Self>,
        params: shim_container::KillParams,
        _: shim_container::KillResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let signal = params.get_signal();
        let none = |_| to_rpc(Error::invalid("signal", signal, "is not a signal; kill -l lists those that are"));
        let signal = i32::try_from(signal).map_err(none)?;
        let all = params.get_all();
        self.act(params.get_id(), |container, id| async move { container.kill(&id, signal, all).await }).await
    }

    async fn exec(
        self: Rc<Self>,
        params: shim_container::ExecParams,
        mut results: shim_container::ExecResults,
    ) -> capnp::Result<()> {
        let request = params.get()?.get_request()?;
        let life = (|| {
            let id = Id::new(text(request.get_id())?)?;
            let process = serde_json::from_slice(request.get_process().map_err(malformed)?)
                .map_err(|e| Error::invalid("process", &id, format!("is not a process of an OCI spec: {e}")))?;
            let stdio = Wishes::read(request.get_stdio().map_err(malformed)?, &self.fds)?;
            self.container.exec(id, process, stdio, request.get_terminal(), text(request.get_grant())?)
        })();
        set_life(results.get().init_life(), &life.map_err(to_rpc)?);
        Ok(())
    }

    async fn resize(
        self: Rc<Self>,
        params: shim_container::ResizeParams,
        _: shim_container::ResizeResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let id = text(params.get_id()).map_err(to_rpc)?;
        self.container.resize(id, params.get_rows(), params.get_columns()).map_err(to_rpc)
    }

    async fn close_stdin(
        self: Rc<Self>,
        params: shim_container::CloseStdinParams,
        _: shim_container::CloseStdinResults,
    ) -> capnp::Result<()> {
        self.process(params.get()?.get_id())?.close_stdin();
        Ok(())
    }

    async fn attach(
        self: Rc<Self>,
        params: shim_container::AttachParams,
        mut results: shim_container::AttachResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let process = text(params.get_id()).and_then(|id| self.container.attachable(id)).map_err(to_rpc)?;
        let wishes = Wishes::read(params.get_stdio()?, &self.fds).map_err(to_rpc)?;
        let attachment = process.attach(wishes.stdin, wishes.stdout, wishes.stderr).map_err(to_rpc)?;
        results.get().set_attachment(capnp_rpc::new_client(Attached(attachment)));
        Ok(())
    }

    async fn delete_exec(
        self: Rc<Self>,
        params: shim_container::DeleteExecParams,
        mut results: shim_container::DeleteExecResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let (keep, drain) = (params.get_keep(), drain(params.get_drain()));
        let life = text(params.get_id()).and_then(|id| self.container.delete_exec(id, keep, drain)).map_err(to_rpc)?;
        set_life(results.get().init_life(), &life);
        Ok(())
    }

    async fn forget_exec(
        self: Rc<Self>,
        params: shim_container::ForgetExecParams,
        _: shim_container::ForgetExecResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        self.container
            .forget_exec(text(params.get_id()).map_err(to_rpc)?, cofferdam_types::Timestamp(params.get_created()));
        Ok(())
    }

    async fn end_grant(
        self: Rc<Self>,
        params: shim_container::EndGrantParams,
        _: shim_container::EndGrantResults,
    ) -> capnp::Result<()> {
        let grant = params.get()?.get_grant();
        self.act(grant, |container, grant| async move { container.end_grant(&grant).await }).await
    }

    async fn delete(
        self: Rc<Self>,
        params: shim_container::DeleteParams,
        mut results: shim_container::DeleteResults,
    ) -> capnp::Result<()> {
        let (container, drain) = (self.container.clone(), drain(params.get()?.get_drain()));
        let life = through(async move { container.delete().await }).await.map_err(to_rpc)?;
        self.shared.let_go(&self.container, drain);
        set_life(results.get().init_life(), &life);
        Ok(())
    }

    async fn pause(
        self: Rc<Self>,
        _: shim_container::PauseParams,
        _: shim_container::PauseResults,
    ) -> capnp::Result<()> {
        self.act(Ok("".into()), |container, _| async move { container.pause(true).await }).await
    }

    async fn resume(
        self: Rc<Self>,
        _: shim_container::ResumeParams,
        _: shim_container::ResumeResults,
    ) -> capnp::Result<()> {
        self.act(Ok("".into()), |container, _| async move { container.pause(false).await }).await
    }

    async fn pids(
        self: Rc<Self>,
        _: shim_container::PidsParams,
        mut results: shim_container::PidsResults,
    ) -> capnp::Result<()> {
        let pids = self.act(Ok("".into()), |container, _| async move { container.pids().await }).await?;
        let mut list = results.get().init_pids(pids.len() as u32);
        for (n, pid) in pids.iter().enumerate() {
            list.set(n as u32, *pid as u32);
        }
        Ok(())
    }

    async fn checkpoint(
        self: Rc<Self>,
        params: shim_container::CheckpointParams,
        mut results: shim_container::CheckpointResults,
    ) -> capnp::Result<()> {
        let reader = params.get()?.get_request()?;
        let request = (|| {
            let container = &self.container;
            let spec = serde_json::from_slice(reader.get_spec().map_err(malformed)?)
                .map_err(|e| Error::invalid("spec", &container.id, format!("is not an OCI runtime spec: {e}")))?;
            let (cgroup, pid) = container.place()?;
            let dir = self.fds.take(reader.get_directory())?.into_fd();
            let dir = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))
                .map_err(|e| Error::io("checkpoint", &container.id, "its directory has no path", &e))?;
            Ok(CheckpointRequest {
                id: container.id.clone(),
                namespace: container.namespace.clone(),
                bundle: container.bundle()?,
                cgroup,
                pid,
                spec,
                dir,
                criu: text(reader.get_criu())?.into(),
                tcp_established: reader.get_tcp_established(),
                unix_sockets: reader.get_unix_sockets(),
            })
        })();
        let request = request.map_err(to_rpc)?;
        let hold = checkpoint::checkpoint(&self.shared, self.container.clone(), request).await.map_err(to_rpc)?;
        results.get().set_hold(capnp_rpc::new_client(hold));
        Ok(())
    }

    async fn stdin(
        self: Rc<Self>,
        params: shim_container::StdinParams,
        mut results: shim_container::StdinResults,
    ) -> capnp::Result<()> {
        let process = text(params.get()?.get_id()).and_then(|id| self.container.fed(id)).map_err(to_rpc)?;
        let write = process.stdin().and_then(|pipe| duplicate(pipe.get_ref())).map_err(to_rpc)?;
        results.get().set_write(self.fds.push(write));
        Ok(())
    }

    async fn update(
        self: Rc<Self>,
        params: shim_container::UpdateParams,
        _: shim_container::UpdateResults,
    ) -> capnp::Result<()> {
        let resources = serde_json::from_slice(params.get()?.get_resources()?).map_err(|e| {
            to_rpc(Error::invalid("resources", "", format!("is not linux.resources of an OCI spec: {e}")))
        });
        let resources = resources?;
        self.act(Ok("".into()), |container, _| async move { container.update(resources).await }).await
    }

    async fn oom(
        self: Rc<Self>,
        params: shim_container::OomParams,
        mut results: shim_container::OomResults,
    ) -> capnp::Result<()> {
        let life = self.container.process("").map_err(to_rpc)?.ooms(params.get()?.get_seen()).await;
        set_life(results.get().init_life(), &life);
        Ok(())
    }

    async fn release(
        self: Rc<Self>,
        _: shim_container::ReleaseParams,
        _: shim_container::ReleaseResults,
    ) -> capnp::Result<()> {
        let (container, others) = (self.container.clone(), !self.shared.containers.is_empty());
        let release = async move {
            container.release_root(others).await;
            Ok(())
        };
        through(release).await.map_err(to_rpc)
    }
}

/// How long who takes nothing is waited for, where a daemon says so.
fn drain(seconds: u32) -> Duration {
    if seconds == 0 { DRAIN } else { Duration::from_secs(seconds.into()) }
}

struct Attached(Attachment);

impl shim_attachment::Server for Attached {
    async fn wait(
        self: Rc<Self>,
        _: shim_attachment::WaitParams,
        mut results: shim_attachment::WaitResults,
    ) -> capnp::Result<()> {
        let reason = self.0.over().await;
        results.get().set_reason(reason);
        Ok(())
    }
}
