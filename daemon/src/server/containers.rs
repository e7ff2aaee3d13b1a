//! `Containers` and `Container` (container.capnp).

use std::{collections::BTreeMap, pin::pin, rc::Rc};

use capnp::capability::{FromClientHook, FromServer, Promise};
use cofferdam_metadata::records::{
    containers::{self as records, Container as Record},
    tasks::{self, Task},
};
use cofferdam_tasks::{Changes, CopyOptions, NewContainer, ProcessState, RunRecord};
use cofferdam_transfer::{CommitOptions, normalize};
use cofferdam_types::{Any, Code, Error, Id, Instruction, Name, Result, filter, media::Compression};
use cofferdam_wire::{
    container_capnp::{
        commit_options, config_change, container, container_changes, container_cursor, container_info, containers,
        create_params,
    },
    convert::{any, labels, set_any, set_labels, text, texts},
    error::malformed,
};
use tokio::sync::{oneshot, watch};

use super::{
    Place,
    bytes::{End, PipeSink, pipe, pump},
    changes::Pair,
    coming::Coming,
    cursor::Cursor,
    ends, filters,
    guard::Guarded,
    images, jobs, logs, networks, options, rpc, stdio,
    tasks::{Process, set_exit, status},
    trail, within,
};

/// The containers of a namespace.
pub struct Containers(pub Place);

impl Containers {
    fn hand_out(&self, id: Id) -> container::Client {
        let place = within::container(&self.0, &id);
        place.clone().hand_out(Container { place, id })
    }

    /// Makes one. `early` is given what calls that come before the answer are for.
    async fn make(
        &self,
        new: NewContainer,
        early: impl FnOnce(container::Client) -> capnp::Result<()>,
    ) -> capnp::Result<container::Client> {
        trail::note(|| new.image.as_ref().map_or_else(|| "no image".to_owned(), |image| format!("from {image}")));
        if new.spec.is_some() {
            trail::note(|| "a spec of its own");
        }
        trail::note(|| new.options.args.join(" "));
        if let Some(id) = &new.id {
            trail::object("container", id);
        }
        rpc(within::may_make(&self.0, &new))?;
        let (placed, expected) = oneshot::channel();
        let tasks = &self.0.services().tasks;
        let making = tasks.create_container(self.0.authority(), &self.0.namespace, new, self.0.presence(), placed);
        let mut making = pin!(making);
        let id = tokio::select! {
            biased;
            Ok(id) = expected => id,
            made = &mut making => return Ok(self.hand_out(rpc(made)?.id)),
        };
        trail::object("container", &id);
        let (tell, made) = watch::channel(None);
        let place = within::container(&self.0, &id);
        let container = Rc::new(Container { place: place.clone(), id });
        let dispatch = <container::Client as FromServer<Container>>::from_server(container);
        let coming: Guarded = place.hand_out(Coming { dispatch, made });
        early(container::Client::new(coming.into_client_hook()))?;
        let made = making.await;
        tell.send_replace(Some(made.as_ref().map(drop).map_err(Clone::clone)));
        Ok(self.hand_out(rpc(made)?.id))
    }

    /// Reads the parameters. The image, where there is one, must be one of ours, and of this namespace.
    async fn params(&self, reader: create_params::Reader<'_>) -> Result<NewContainer> {
        let image = match reader.has_image() {
            true => Some(images::recognise(&self.0, reader.get_image().map_err(malformed)?).await?),
            false => None,
        };
        let id = text(reader.get_id())?;
        Ok(NewContainer {
            id: if id.is_empty() { None } else { Some(Id::new(id)?) },
            image,
            rootfs: match text(reader.get_rootfs())? {
                "" => None,
                path => Some(path.to_owned()),
            },
            platform: images::platform(text(reader.get_platform())?)?,
            options: options::read(reader.get_options().map_err(malformed)?)?,
            spec: None,
            runtime_options: any(reader.get_runtime_options().map_err(malformed)?)?,
            labels: labels(reader.get_labels())?,
            runtime: text(reader.get_runtime())?.to_owned(),
            driver: text(reader.get_driver())?.to_owned(),
            storage: reader.get_storage(),
            remove_on_exit: reader.get_remove_on_exit(),
            checkpoint: reader.get_checkpoint(),
            log: cofferdam_log::Options::parse(text(reader.get_log_driver())?, &labels(reader.get_log_options())?)?,
            group: match text(reader.get_group())? {
                "" => None,
                group => Some(Id::new(group)?),
            },
        })
    }
}

impl containers::Server for Containers {
    async fn create(
        self: Rc<Self>,
        params: containers::CreateParams,
        mut results: containers::CreateResults,
    ) -> capnp::Result<()> {
        let new = rpc(self.params(params.get()?.get_params()?).await)?;
        let early = |container| {
            results.get().set_container(container);
            results.set_pipeline()
        };
        let container = self.make(new, early).await?;
        results.get().set_container(container);
        Ok(())
    }

    async fn create_from_spec(
        self: Rc<Self>,
        params: containers::CreateFromSpecParams,
        mut results: containers::CreateFromSpecResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let mut new = rpc(self.params(params.get_params()?).await)?;
        new.spec = Some(params.get_spec()?.to_vec());
        let options = rpc(any(params.get_runtime_options()?))?;
        if options != Any::default() {
            new.runtime_options = options;
        }
        let early = |container| {
            results.get().set_container(container);
            results.set_pipeline()
        };
        let container = self.make(new, early).await?;
        results.get().set_container(container);
        Ok(())
    }

    async fn get(
        self: Rc<Self>,
        params: containers::GetParams,
        mut results: containers::GetResults,
    ) -> capnp::Result<()> {
        let id = rpc(Id::new(rpc(text(params.get()?.get_id()))?))?;
        let view = rpc(self.0.services().metadata.read())?;
        rpc(records::require(&view, &self.0.namespace, &id))?;
        rpc(within::reached(&self.0, &view, &id))?;
        results.get().set_container(self.hand_out(id));
        Ok(())
    }

    async fn list(
        self: Rc<Self>,
        params: containers::ListParams,
        mut results: containers::ListResults,
    ) -> capnp::Result<()> {
        let filters = rpc(filters(params.get()?.get_filters(), &["id", "image", "runtime.name", "labels.KEY"]))?;
        let (metadata, namespace) = (self.0.services().metadata.clone(), self.0.namespace.clone());
        let reach = self.0.held.reach.clone();
        let cursor = Cursor::new(
            Box::new(move |after, max| records::list(&metadata.read()?, &namespace, after, max)),
            |record: &Record| record.id.to_string(),
            move |record| {
                reach.caveats.containers.has(&record.subject())
                    && filters.matches(&|path: &[&str]| match path {
                        ["id"] => Some(record.id.as_str().into()),
                        ["image"] => Some(record.image.as_str().into()),
                        ["runtime", "name"] => Some(record.runtime.as_str().into()),
                        ["labels", rest @ ..] => filter::label(&record.labels, rest),
                        _ => None,
                    })
            },
        );
        results.get().set_cursor(self.0.hand_out(ContainerCursor { place: self.0.clone(), cursor }));
        Ok(())
    }
}

struct ContainerCursor {
    place: Place,
    cursor: Cursor<Record>,
}

impl container_cursor::Server for ContainerCursor {
    async fn next(
        self: Rc<Self>,
        params: container_cursor::NextParams,
        mut results: container_cursor::NextResults,
    ) -> capnp::Result<()> {
        let (block, end) = rpc(self.cursor.next(params.get()?.get_max()))?;
        let mut answer = results.get();
        answer.set_end(end);
        let mut items = answer.init_items(block.len() as u32);
        let [first, ..] = &block[..] else { return Ok(()) };
        let last = block.last().unwrap_or(first);
        let view = rpc(self.place.services().metadata.read())?;
        // Most of a long list have none, and to ask for each of them is what a list would take its time for.
        let tasks = rpc(tasks::between(&view, &self.place.namespace, &first.id, &last.id))?;
        drop(view);
        let mut tasks = tasks.into_iter().peekable();
        for (n, record) in block.iter().enumerate() {
            while tasks.next_if(|task| task.id < record.id).is_some() {}
            let task = tasks.next_if(|task| task.id == record.id);
            rpc(set_info(&self.place, items.reborrow().get(n as u32), record, task, false).await)?;
        }
        Ok(())
    }
}

/// Fills what is to be said about a container. Lists leave the spec out: a hundred of them would outgrow a message.
async fn set_info(
    place: &Place,
    mut builder: container_info::Builder<'_>,
    record: &Record,
    task: Option<Task>,
    whole: bool,
) -> Result<()> {
    builder.set_id(&*record.id);
    set_labels(builder.reborrow().init_labels(record.labels.len() as u32), &record.labels);
    builder.set_image(&record.image);
    builder.set_runtime(&record.runtime);
    builder.set_driver(&record.driver);
    builder.set_snapshot_key(record.snapshot_key.as_ref().map_or("", |key| key.as_str()));
    if whole {
        set_any(builder.reborrow().init_spec(), &record.spec);
        let mut list = builder.reborrow().init_extensions(record.extensions.len() as u32);
        for (n, (name, value)) in record.extensions.iter().enumerate() {
            let mut extension = list.reborrow().get(n as u32);
            extension.set_name(name);
            set_any(extension.init_value(), value);
        }
    }
    builder.set_created(record.created.0);
    builder.set_updated(record.updated.0);
    builder.set_group(record.group.as_ref().map_or("", |group| group.as_str()));
    let run: RunRecord = serde_json::from_slice(&record.options).unwrap_or_default();
    builder.set_remove_on_exit(run.remove_on_exit);
    builder.set_stop_signal(run.stop_signal.unwrap_or(libc::SIGTERM as u32));
    builder.set_log_driver(run.log.driver.as_str());
    let log = run.log.pairs();
    set_labels(builder.reborrow().init_log_options(log.len() as u32), &log);
    if !run.own_spec {
        networks::set_options(builder.reborrow().init_network(), &run.network.clone().unwrap_or_default());
    }
    builder.set_rootfs(run.rootfs.as_deref().unwrap_or_default());

    let (tasks, namespace) = (&place.services().tasks, &place.namespace);
    let Some(stored) = task else { return Ok(()) };
    let state = match tasks.query(namespace, &record.id, String::new()).await {
        Ok(state) => state,
        Err(error) if error.code == Code::NotFound => return Ok(()),
        // One whose shim doesn't answer must not hide the others.
        Err(error) if error.code == Code::Unavailable && !whole => ProcessState {
            state: stored.state,
            pid: stored.pid,
            created: stored.created,
            started: stored.started,
            exit: stored.exit,
            oomed: stored.oomed,
            ooms: stored.ooms,
        },
        Err(error) => return Err(error),
    };
    let lost = if whole { tasks.log_lost(namespace, &record.id).await.unwrap_or_default() } else { 0 };
    let execs = if whole { tasks.execs(namespace, &record.id).await.unwrap_or_default() } else { Vec::new() };
    let mut task = builder.init_task();
    task.set_status(status(state.state));
    task.set_pid(state.pid);
    task.set_created(state.created.0);
    task.set_started(state.started.unwrap_or_default().0);
    task.set_oomed(state.oomed.0);
    task.set_ooms(state.ooms);
    if let Some(exit) = &state.exit {
        set_exit(task.reborrow().init_exit(), exit);
    }
    if let Some(attachment) = &stored.attachment {
        let connected = place.services().networks.connected(&place.services().metadata.read()?, attachment);
        // What its network gave it is told where it can be read.
        if let Some(connected) = cofferdam_metadata::records::readable(connected)?.flatten() {
            networks::set_status(task.reborrow().init_network(), &connected);
        }
    }
    task.set_terminal(stored.terminal);
    task.set_log(stored.log);
    task.set_log_lost(lost);
    cofferdam_wire::convert::set_texts(task.init_execs(execs.len() as u32), &execs);
    Ok(())
}

fn changes(reader: container_changes::Reader<'_>) -> Result<Changes> {
    let mut extensions = BTreeMap::new();
    for extension in reader.get_extensions().map_err(malformed)?.iter() {
        let value = any(extension.get_value().map_err(malformed)?)?;
        extensions.insert(text(extension.get_name())?.to_owned(), value);
    }
    let spec = any(reader.get_spec().map_err(malformed)?)?;
    Ok(Changes { labels: labels(reader.get_labels())?, spec, extensions })
}

fn commit_options(reader: commit_options::Reader<'_>) -> Result<CommitOptions> {
    let changes = reader.get_changes().map_err(malformed)?.iter().map(config_change).collect::<Result<_>>()?;
    let compression = match text(reader.get_compression())? {
        "" | "gzip" => Compression::Gzip,
        "zstd" => Compression::Zstd,
        "none" => Compression::None,
        other => return Err(Error::invalid("compression", other, "is not one of gzip, zstd and none")),
    };
    Ok(CommitOptions {
        name: Name::new(normalize(text(reader.get_name())?)?)?,
        author: text(reader.get_author())?.to_owned(),
        message: text(reader.get_message())?.to_owned(),
        changes,
        pause: !reader.get_no_pause(),
        compression,
    })
}

fn config_change(reader: config_change::Reader<'_>) -> Result<Instruction> {
    use config_change::Which;
    let owned = |field| text(field).map(str::to_owned);
    Ok(match reader.which().map_err(|e| malformed(e.into()))? {
        Which::Cmd(all) => Instruction::Cmd(texts(all)?),
        Which::Entrypoint(all) => Instruction::Entrypoint(texts(all)?),
        Which::Env(text) => Instruction::Env(owned(text)?),
        Which::WorkingDir(text) => Instruction::WorkingDir(owned(text)?),
        Which::User(text) => Instruction::User(owned(text)?),
        Which::Label(label) => {
            let label = label.map_err(malformed)?;
            Instruction::Label(owned(label.get_key())?, owned(label.get_value())?)
        }
        Which::Expose(text) => Instruction::Expose(owned(text)?),
        Which::Volume(text) => Instruction::Volume(owned(text)?),
        Which::StopSignal(text) => Instruction::StopSignal(owned(text)?),
    })
}

/// One container.
struct Container {
    place: Place,
    id: Id,
}

impl Container {
    fn tasks(&self) -> &cofferdam_tasks::Tasks {
        &self.place.services().tasks
    }

    async fn tell(&self, info: container_info::Builder<'_>, record: &Record) -> capnp::Result<()> {
        let task = rpc(tasks::find(&rpc(self.place.services().metadata.read())?, &self.place.namespace, &self.id))?;
        rpc(set_info(&self.place, info, record, task, true).await)
    }

    fn first(&self) -> Process {
        Process { place: self.place.clone(), id: self.id.clone(), exec: String::new() }
    }
}

impl container::Server for Container {
    async fn info(self: Rc<Self>, _: container::InfoParams, mut results: container::InfoResults) -> capnp::Result<()> {
        let view = rpc(self.place.services().metadata.read())?;
        let ns = &self.place.namespace;
        // One that has lost its spec is told without: it is there, and can be removed.
        let record = records::get(&view, ns, &self.id).or_else(|error| match error.code {
            Code::DataLoss => records::head(&view, ns, &self.id)?.ok_or(error),
            _ => Err(error),
        });
        let record = rpc(record)?;
        drop(view);
        self.tell(results.get().init_info(), &record).await
    }

    async fn create_task(
        self: Rc<Self>,
        params: container::CreateTaskParams,
        mut results: container::CreateTaskResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let streams = rpc(stdio::read(&self.place, params.get_stdio()?))?;
        let auth = self.place.authority().clone();
        let checkpoint = match params.has_checkpoint() {
            true => {
                let image = rpc(images::recognise(&self.place, params.get_checkpoint()?).await)?;
                trail::note(|| format!("from {image}"));
                Some(image)
            }
            false => None,
        };
        let (tasks, log) = (self.tasks(), params.get_log());
        rpc(tasks
            .create_task(&self.place.namespace, &self.id, auth, streams, log, checkpoint, self.place.presence())
            .await)?;
        results.get().set_task(self.place.hand_out(self.first()));
        Ok(())
    }

    async fn task(self: Rc<Self>, _: container::TaskParams, mut results: container::TaskResults) -> capnp::Result<()> {
        // Not how it is: an object that is refused because its shim is silent would be of no use when that talks again.
        rpc(self.tasks().known(&self.place.namespace, &self.id, String::new()).await)?;
        results.get().set_task(self.place.hand_out(self.first()));
        Ok(())
    }

    async fn remove(self: Rc<Self>, params: container::RemoveParams, _: container::RemoveResults) -> capnp::Result<()> {
        let force = params.get()?.get_force();
        rpc(self.tasks().remove(&self.place.namespace, &self.id, self.place.authority().clone(), force).await)
    }

    async fn removed(self: Rc<Self>, _: container::RemovedParams, _: container::RemovedResults) -> capnp::Result<()> {
        rpc(self.tasks().removed(&self.place.namespace, &self.id).await)
    }

    async fn logs(self: Rc<Self>, params: container::LogsParams, _: container::LogsResults) -> capnp::Result<()> {
        let params = params.get()?;
        let query = rpc(logs::query(params.get_options()?))?;
        rpc(logs::copy(&self.place, &self.id, params.get_follow(), query, &params.get_sink()?).await)
    }

    async fn update_resources(
        self: Rc<Self>,
        params: container::UpdateResourcesParams,
        _: container::UpdateResourcesResults,
    ) -> capnp::Result<()> {
        let (auth, resources) = (self.place.authority().clone(), params.get()?.get_resources()?.to_vec());
        trail::note(|| String::from_utf8_lossy(&resources).into_owned());
        rpc(self.tasks().update_resources(&self.place.namespace, &self.id, auth, resources).await)
    }

    async fn update(
        self: Rc<Self>,
        params: container::UpdateParams,
        mut results: container::UpdateResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let (changes, fields) = (rpc(changes(params.get_changes()?))?, rpc(texts(params.get_fields()))?);
        trail::note(|| fields.join(" "));
        let auth = self.place.authority().clone();
        let record = rpc(self.tasks().change(&self.place.namespace, &self.id, auth, changes, fields).await)?;
        self.tell(results.get().init_info(), &record).await
    }

    async fn rename(
        self: Rc<Self>,
        params: container::RenameParams,
        mut results: container::RenameResults,
    ) -> capnp::Result<()> {
        let id = rpc(Id::new(rpc(text(params.get()?.get_id()))?))?;
        let auth = self.place.authority().clone();
        trail::note(|| format!("to {id}"));
        rpc(within::may_rename(&self.place, &self.id, &id))?;
        rpc(self.tasks().rename(&self.place.namespace, &self.id, auth, id.clone()).await)?;
        let place = within::container(&self.place, &id);
        results.get().set_container(place.clone().hand_out(Container { place, id }));
        Ok(())
    }

    async fn changes(
        self: Rc<Self>,
        _: container::ChangesParams,
        mut results: container::ChangesResults,
    ) -> capnp::Result<()> {
        let record = rpc(self.tasks().container(&self.place.namespace, &self.id))?;
        let Some(key) = &record.snapshot_key else {
            let why = "has no files of its own: its root is a directory of the host";
            return rpc(Err(Error::failed_precondition("container", &self.id, why)));
        };
        let pair = Pair { place: &self.place, driver: &record.driver, key, base: None };
        results.get().set_cursor(rpc(pair.list().await)?);
        Ok(())
    }

    async fn commit(
        self: Rc<Self>,
        params: container::CommitParams,
        mut results: container::CommitResults,
    ) -> capnp::Result<()> {
        let options = rpc(commit_options(params.get()?.get_options()?))?;
        trail::note(|| format!("to {}", options.name));
        let (services, namespace) = (self.place.services(), &self.place.namespace);
        let job = services.transfer.commit(self.place.authority(), namespace, &services.tasks, &self.id, options).await;
        results.get().set_job(jobs::begun(&self.place, rpc(job)?));
        Ok(())
    }

    async fn copy_out(
        self: Rc<Self>,
        params: container::CopyOutParams,
        _: container::CopyOutResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let path = rpc(text(params.get_path()))?.to_owned();
        trail::note(|| path.clone());
        let (read, write) = rpc(pipe(End::Read))?;
        let (tasks, auth) = (self.tasks(), self.place.authority());
        let packed = tasks.copy_out(auth, &self.place.namespace, &self.id, path, write);
        // What goes wrong first ends the other: one that packs finds a pipe that nobody reads.
        let pumped = pump(&self.place.session.meter, read, params.get_sink()?);
        rpc(tokio::select! {
            copied = async { tokio::try_join!(packed, pumped).map(drop) } => copied,
            why = ends::of(&self.place) => Err(why),
        })
    }

    async fn copy_in(
        self: Rc<Self>,
        params: container::CopyInParams,
        mut results: container::CopyInResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let options = CopyOptions {
            path: rpc(text(params.get_path()))?.to_owned(),
            into: params.get_into(),
            keep_owners: params.get_keep_owners(),
        };
        trail::note(|| options.path.clone());
        let auth = self.place.authority();
        let arrival = rpc(self.tasks().copy_in(auth, &self.place.namespace, &self.id, options).await)?;
        let (read, write) = rpc(pipe(End::Write))?;
        let sink = rpc(PipeSink::new(write, None))?;
        let (close, ended) = (sink.closer(), ends::of(&self.place));
        let unpacked = tokio::task::spawn_local(async move {
            let unpacked = arrival.unpack(read, ended).await;
            // Its client may never end it.
            close();
            unpacked
        });
        let then = Promise::from_future(async move {
            rpc(unpacked.await.unwrap_or_else(|e| Err(Error::internal("path", "", e.to_string()))))
        });
        results.get().set_sink(self.place.hand_out(sink.then(then)));
        Ok(())
    }
}
