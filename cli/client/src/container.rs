//! Containers.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use capnp::struct_list;
use cofferdam_types::{Any, Labels, Result, Timestamp};
use cofferdam_wire::{
    container_capnp::{container, container_info, containers, create_params, extension},
    convert::{any, labels, set_any, set_labels, set_texts, text},
    error::malformed,
};
use serde::Serialize;

use crate::{
    call::{Made, Reply, done_by, make, reply_by},
    commit::CommitOptions,
    connect::Link,
    cursor::Cursor,
    image::Image,
    job::Job,
    logs::{LogOptions, LogRecord, Records},
    network::{self, Network, Networking},
    options::ContainerOptions,
    process::{Task, TaskInfo, task_info},
    snapshot::{Change, change},
    stdio::{Sink, Stdio},
};

/// The type of [`ContainerRequest::runtime_options`], which are JSON: see docs/drivers.md.
pub const RUNTIME_OPTIONS: &str = "types.cofferdam.dev/runtime-options/1";

/// What a container is made from.
#[derive(Clone, Debug, Default)]
pub struct ContainerRequest {
    /// Letters and digits with single '.', '_' or '-' between them; empty: the daemon chooses one.
    pub id: String,
    /// How it runs.
    pub options: ContainerOptions,
    /// Its labels.
    pub labels: Labels,
    /// native (also if empty) or runc; a path needs the `host` right.
    pub runtime: String,
    /// What the driver and its shim are told beside the spec; needs the `host` right.
    pub runtime_options: Any,
    /// Of its snapshot; empty is the default.
    pub driver: String,
    /// The most bytes that it may have written into its root file system; 0 is no limit.
    pub storage: u64,
    /// Of its image, os/arch[/variant]; empty is the host's.
    pub platform: String,
    /// The daemon removes it when it has ended, whether or not you are still there.
    pub remove_on_exit: bool,
    /// How what it writes is kept: local (also if empty), json-file, cri, journald or none.
    pub log_driver: String,
    /// Of the log driver: max-size, max-file, labels.
    pub log_options: Labels,
    /// Containers of one group share a shim; empty: none.
    pub group: String,
    /// A directory of the host that is the root file system, in place of an image; empty: there is an image. Needs the
    /// `host` right.
    pub rootfs: String,
    /// The image is a checkpoint, and what it was made of is to go on: give it to the task too. Needs the `host` right.
    pub checkpoint: bool,
}

/// What a container is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerInfo {
    /// Its id.
    pub id: String,
    /// Its labels.
    pub labels: Labels,
    /// The name of its image when it was made.
    pub image: String,
    /// The directory of the host that is its root file system; empty: it has a snapshot, or a spec that names it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rootfs: String,
    /// What runs it.
    pub runtime: String,
    /// Of its snapshot.
    pub driver: String,
    /// Its snapshot.
    pub snapshot_key: String,
    /// When it was made.
    #[serde(serialize_with = "crate::json::time")]
    pub created: Timestamp,
    /// When it was last changed.
    #[serde(serialize_with = "crate::json::time")]
    pub updated: Timestamp,
    /// Whether it goes when it has ended.
    pub remove_on_exit: bool,
    /// The number of the signal that asks it to end.
    pub stop_signal: u32,
    /// How what it writes is kept.
    pub log_driver: String,
    /// Of the log driver.
    pub log_options: Labels,
    /// The group that it shares a shim with; empty: none.
    pub group: String,
    /// What it sees of networks; `None` where a spec of its own says it.
    pub network: Option<Network>,
    /// What it wants of that.
    pub networking: Networking,
    /// Its task, if it has one.
    pub task: Option<TaskInfo>,
    /// The OCI runtime spec; lists leave it out.
    #[serde(serialize_with = "crate::json::any", skip_serializing_if = "crate::json::is_empty")]
    pub spec: Any,
    /// Payloads of others; lists leave them out.
    #[serde(serialize_with = "crate::json::anys", skip_serializing_if = "BTreeMap::is_empty")]
    pub extensions: BTreeMap<String, Any>,
}

/// What of a container can change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerChanges {
    /// Its labels.
    pub labels: Labels,
    /// Its OCI runtime spec, JSON: needs the `host` right.
    pub spec: Any,
    /// Payloads of yours.
    pub extensions: BTreeMap<String, Any>,
}

fn extensions(list: capnp::Result<struct_list::Reader<'_, extension::Owned>>) -> Result<BTreeMap<String, Any>> {
    let pair = |extension: extension::Reader<'_>| {
        Ok((text(extension.get_name())?.to_owned(), any(extension.get_value().map_err(malformed)?)?))
    };
    list.map_err(malformed)?.iter().map(pair).collect()
}

fn info(reader: container_info::Reader<'_>) -> Result<ContainerInfo> {
    let said = reader.has_network().then(|| reader.get_network().map_err(malformed)).transpose()?;
    let (network, networking) = said.map(network::options).transpose()?.unzip();
    Ok(ContainerInfo {
        id: text(reader.get_id())?.to_owned(),
        labels: labels(reader.get_labels())?,
        image: text(reader.get_image())?.to_owned(),
        rootfs: text(reader.get_rootfs())?.to_owned(),
        runtime: text(reader.get_runtime())?.to_owned(),
        driver: text(reader.get_driver())?.to_owned(),
        snapshot_key: text(reader.get_snapshot_key())?.to_owned(),
        spec: any(reader.get_spec().map_err(malformed)?)?,
        created: Timestamp(reader.get_created()),
        updated: Timestamp(reader.get_updated()),
        task: if reader.has_task() { Some(task_info(reader.get_task().map_err(malformed)?)?) } else { None },
        remove_on_exit: reader.get_remove_on_exit(),
        stop_signal: reader.get_stop_signal(),
        log_driver: text(reader.get_log_driver())?.to_owned(),
        log_options: labels(reader.get_log_options())?,
        group: text(reader.get_group())?.to_owned(),
        extensions: extensions(reader.get_extensions())?,
        network,
        networking: networking.unwrap_or_default(),
    })
}

/// The containers of a namespace.
#[derive(Clone)]
pub struct Containers {
    pub(crate) link: Rc<Link>,
    pub(crate) client: containers::Client,
}

impl Containers {
    /// Makes the record and the writable snapshot; nothing runs yet.
    pub fn create(&self, image: &Image, request: &ContainerRequest) -> Container {
        let mut call = self.client.create_request();
        fill(call.get().init_params(), Some(image), request);
        let (pipeline, made) = make(call);
        Container { link: self.link.clone(), client: pipeline.get_container(), made }
    }

    /// The same without an image, on the directory that the request names as its root file system.
    pub fn create_on_rootfs(&self, request: &ContainerRequest) -> Container {
        let mut call = self.client.create_request();
        fill(call.get().init_params(), None, request);
        let (pipeline, made) = make(call);
        Container { link: self.link.clone(), client: pipeline.get_container(), made }
    }

    /// The same with an OCI runtime spec (JSON) of your own instead of the options. Without an image it has no snapshot:
    /// its root file system is the host's directory at `root.path`. Needs the `host` right.
    pub fn create_from_spec(&self, image: Option<&Image>, request: &ContainerRequest, spec: &[u8]) -> Container {
        let mut call = self.client.create_from_spec_request();
        fill(call.get().init_params(), image, request);
        call.get().set_spec(spec);
        let (pipeline, made) = make(call);
        Container { link: self.link.clone(), client: pipeline.get_container(), made }
    }

    /// One that exists.
    pub fn get(&self, id: &str) -> Container {
        let mut request = self.client.get_request();
        request.get().set_id(id);
        let (pipeline, made) = make(request);
        Container { link: self.link.clone(), client: pipeline.get_container(), made }
    }

    /// All that pass one of the filters.
    pub fn list<S: AsRef<str>>(&self, filters: &[S]) -> Cursor<ContainerInfo> {
        let mut request = self.client.list_request();
        set_texts(request.get().init_filters(filters.len() as u32), filters);
        Cursor::over_records(&self.link, request.send().pipeline.get_cursor(), info)
    }
}

fn fill(mut params: create_params::Builder<'_>, image: Option<&Image>, request: &ContainerRequest) {
    params.set_id(&request.id);
    if let Some(image) = image {
        params.set_image(image.client.clone());
    }
    request.options.fill(params.reborrow().init_options());
    set_labels(params.reborrow().init_labels(request.labels.len() as u32), &request.labels);
    params.set_runtime(&request.runtime);
    if request.runtime_options != Any::default() {
        set_any(params.reborrow().init_runtime_options(), &request.runtime_options);
    }
    params.set_driver(&request.driver);
    params.set_storage(request.storage);
    params.set_platform(&request.platform);
    params.set_remove_on_exit(request.remove_on_exit);
    params.set_group(&request.group);
    params.set_checkpoint(request.checkpoint);
    params.set_rootfs(&request.rootfs);
    params.set_log_driver(&request.log_driver);
    set_labels(params.init_log_options(request.log_options.len() as u32), &request.log_options);
}

/// A container.
#[derive(Clone)]
pub struct Container {
    link: Rc<Link>,
    client: container::Client,
    made: Made,
}

impl Container {
    /// Waits until it is made, or found: whatever else it is asked for waits for that by itself, and fails as this does.
    pub fn made(&self) -> Reply<()> {
        self.made.reply(&self.link)
    }

    /// What it is.
    pub fn info(&self) -> Reply<ContainerInfo> {
        reply_by(&self.link, &self.client, self.client.info_request(), |answer| {
            info(answer.get_info().map_err(malformed)?)
        })
    }

    /// Makes its first process, ready but not yet started. With `log` what it writes is kept.
    pub fn create_task(&self, stdio: Stdio, log: bool) -> Task {
        let mut request = self.client.create_task_request();
        stdio.fill(request.get().init_stdio(), &self.link.fds);
        request.get().set_log(log);
        let (pipeline, made) = make(request);
        Task::new(&self.link, pipeline.get_task(), made)
    }

    /// The same from a checkpoint: the start restores what ran then, and until then there is no process.
    pub fn create_task_from(&self, checkpoint: &Image, stdio: Stdio, log: bool) -> Task {
        let mut request = self.client.create_task_request();
        stdio.fill(request.get().init_stdio(), &self.link.fds);
        request.get().set_log(log);
        request.get().set_checkpoint(checkpoint.client.clone());
        let (pipeline, made) = make(request);
        Task::new(&self.link, pipeline.get_task(), made)
    }

    /// Its task.
    pub fn task(&self) -> Task {
        let (pipeline, made) = make(self.client.task_request());
        Task::new(&self.link, pipeline.get_task(), made)
    }

    /// What was changed in its files.
    pub fn changes(&self) -> Cursor<Change> {
        Cursor::of(&self.link, self.client.changes_request().send().pipeline.get_cursor(), change)
    }

    /// Makes an image of its own and what was changed in its files.
    pub fn commit(&self, options: &CommitOptions) -> Job {
        let mut request = self.client.commit_request();
        options.fill(request.get().init_options());
        Job { link: self.link.clone(), client: request.send().pipeline.get_job() }
    }

    /// Removes it, with its ended task and its snapshot. With `force` a running task is killed first.
    pub fn remove(&self, force: bool) -> Reply<()> {
        let mut request = self.client.remove_request();
        request.get().set_force(force);
        done_by(&self.link, &self.client, request)
    }

    /// Waits until it is gone.
    pub fn removed(&self) -> Reply<()> {
        done_by(&self.link, &self.client, self.client.removed_request())
    }

    /// Gives what was logged to `take`, oldest first; with `follow` until the task has ended. `take` should not be
    /// slow: while it works nothing else of this connection does.
    pub fn logs(&self, follow: bool, take: impl FnMut(LogRecord<'_>) -> Result<()> + 'static) -> Reply<()> {
        self.logs_with(&LogOptions { follow, ..LogOptions::default() }, take)
    }

    /// The same of what `options` choose.
    pub fn logs_with(
        &self,
        options: &LogOptions,
        take: impl FnMut(LogRecord<'_>) -> Result<()> + 'static,
    ) -> Reply<()> {
        let mut request = self.client.logs_request();
        request.get().set_follow(options.follow);
        options.fill(request.get().init_options());
        request.get().set_sink(capnp_rpc::new_client(Records(RefCell::new(take))));
        done_by(&self.link, &self.client, request)
    }

    /// Changes limits, with or without a task: `linux.resources` of the OCI runtime spec, as JSON. What it doesn't name
    /// stays as it is.
    pub fn update_resources(&self, resources: &[u8]) -> Reply<()> {
        let mut request = self.client.update_resources_request();
        request.get().set_resources(resources);
        done_by(&self.link, &self.client, request)
    }

    /// Takes the fields that are named from `changes`: labels, labels.KEY, spec, extensions, extensions.KEY; all of them
    /// where none is. An entry that is absent there is removed.
    pub fn update<S: AsRef<str>>(&self, changes: &ContainerChanges, fields: &[S]) -> Reply<ContainerInfo> {
        let mut request = self.client.update_request();
        let mut builder = request.get().init_changes();
        set_labels(builder.reborrow().init_labels(changes.labels.len() as u32), &changes.labels);
        set_any(builder.reborrow().init_spec(), &changes.spec);
        let mut list = builder.init_extensions(changes.extensions.len() as u32);
        for (n, (name, value)) in changes.extensions.iter().enumerate() {
            let mut extension = list.reborrow().get(n as u32);
            extension.set_name(name);
            set_any(extension.init_value(), value);
        }
        set_texts(request.get().init_fields(fields.len() as u32), fields);
        reply_by(&self.link, &self.client, request, |answer| info(answer.get_info().map_err(malformed)?))
    }

    /// Writes what is at an absolute path of the container into the sink, as a tar archive, and ends that. At its top is
    /// one entry with the path's last name; with "/." at the path's end, what is in the directory.
    pub fn copy_out(&self, path: &str, sink: &Sink) -> Reply<()> {
        let mut request = self.client.copy_out_request();
        request.get().set_path(path);
        request.get().set_sink(sink.client.clone());
        done_by(&self.link, &self.client, request)
    }

    /// Unpacks the tar archive that you write into the sink, whose end says how that went. `path` is a directory that is
    /// there; or, without `into`, the one thing at the archive's top takes that name in the directory above. All belongs
    /// to root unless `keep_owners`.
    pub fn copy_in(&self, path: &str, into: bool, keep_owners: bool) -> Reply<Sink> {
        let mut request = self.client.copy_in_request();
        request.get().set_path(path);
        request.get().set_into(into);
        request.get().set_keep_owners(keep_owners);
        let link = self.link.clone();
        reply_by(&self.link, &self.client, request, move |answer| {
            Ok(Sink::new(&link, answer.get_sink().map_err(malformed)?))
        })
    }

    /// Gives it another id. Its task must have ended.
    pub fn rename(&self, id: &str) -> Container {
        let mut request = self.client.rename_request();
        request.get().set_id(id);
        let (pipeline, made) = make(request);
        Container { link: self.link.clone(), client: pipeline.get_container(), made }
    }
}
