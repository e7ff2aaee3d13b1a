//! Tasks and the processes in them.

use std::{ops::Deref, rc::Rc};

use capnp::capability::FromClientHook as _;
use cofferdam_types::{Result, Timestamp};
use cofferdam_wire::{
    container_capnp::{self as wire, attachment, process, task},
    convert::{set_texts, text, texts},
    error::malformed,
};
use serde::Serialize;

use crate::{
    call::{Made, Reply, done_by, make, reply_by},
    connect::Link,
    job::Job,
    metrics::{Metrics, ProcessInfo, metrics, process_info},
    network::{self, NetworkStatus},
    stdio::{Sink, Stdio},
};

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Status {
    /// It is being made.
    Creating,
    /// It is ready but not started.
    Created,
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// It has ended.
    Stopped,
}

impl Status {
    /// As a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// The exit code, or 128 + the signal's number.
    pub status: u32,
    /// When.
    #[serde(serialize_with = "crate::json::time")]
    pub at: Timestamp,
    /// Empty for an ordinary end; else such as "oom killed", "shim lost", "host restarted".
    pub reason: String,
}

/// How a process stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Where it is in its life.
    pub status: Status,
    /// On the host; 0 when it has ended.
    pub pid: u32,
    /// How it ended.
    pub exit: Option<Exit>,
}

/// What a task is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskInfo {
    /// Where it is in its life.
    pub status: Status,
    /// On the host; 0 when it has ended.
    pub pid: u32,
    /// When it was made.
    #[serde(serialize_with = "crate::json::time")]
    pub created: Timestamp,
    /// When it was started.
    #[serde(serialize_with = "crate::json::time")]
    pub started: Timestamp,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Whether what it writes is kept.
    pub log: bool,
    /// The other processes in it.
    pub execs: Vec<String>,
    /// When it ran out of memory last.
    #[serde(serialize_with = "crate::json::time")]
    pub oomed: Timestamp,
    /// How often the kernel killed one of its processes for that.
    pub ooms: u64,
    /// So many bytes of its output could not be kept; lists leave it out.
    pub log_lost: u64,
    /// What it is connected to, until it ends.
    pub network: Option<NetworkStatus>,
}

fn exit(reader: wire::exit::Reader<'_>) -> Result<Exit> {
    Ok(Exit {
        status: reader.get_status(),
        at: Timestamp(reader.get_at()),
        reason: text(reader.get_reason())?.to_owned(),
    })
}

fn status(status: Result<wire::Status, capnp::NotInSchema>) -> Result<Status> {
    Ok(match status.map_err(|e| malformed(e.into()))? {
        wire::Status::Creating => Status::Creating,
        wire::Status::Created => Status::Created,
        wire::Status::Running => Status::Running,
        wire::Status::Paused => Status::Paused,
        wire::Status::Stopped => Status::Stopped,
    })
}

pub(crate) fn task_info(reader: wire::task_info::Reader<'_>) -> Result<TaskInfo> {
    Ok(TaskInfo {
        status: status(reader.get_status())?,
        pid: reader.get_pid(),
        created: Timestamp(reader.get_created()),
        started: Timestamp(reader.get_started()),
        exit: if reader.has_exit() { Some(exit(reader.get_exit().map_err(malformed)?)?) } else { None },
        terminal: reader.get_terminal(),
        log: reader.get_log(),
        execs: texts(reader.get_execs())?,
        oomed: Timestamp(reader.get_oomed()),
        ooms: reader.get_ooms(),
        log_lost: reader.get_log_lost(),
        network: reader.has_network().then(|| network::status(reader.get_network().map_err(malformed)?)).transpose()?,
    })
}

/// How another process runs in a container. What is left empty is the container's own.
#[derive(Clone, Debug, Default)]
pub struct ProcessOptions {
    /// What runs.
    pub args: Vec<String>,
    /// On top of the container's.
    pub env: Vec<String>,
    /// Where it starts.
    pub workdir: String,
    /// Who runs it.
    pub user: String,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Capabilities on top of the container's: needs the `host` right.
    pub cap_add: Vec<String>,
    /// Capabilities of the container's that it doesn't get.
    pub cap_drop: Vec<String>,
}

/// A process in a container.
#[derive(Clone)]
pub struct Process {
    link: Rc<Link>,
    client: process::Client,
    made: Made,
}

impl Process {
    /// Waits until it is made, or found: whatever else it is asked for waits for that by itself, and fails as this does.
    pub fn made(&self) -> Reply<()> {
        self.made.reply(&self.link)
    }

    /// Starts it, and gives its pid on the host.
    pub fn start(&self) -> Reply<u32> {
        reply_by(&self.link, &self.client, self.client.start_request(), |answer| Ok(answer.get_pid()))
    }

    /// Waits for its end; before the start, while it runs, or afterwards.
    pub fn wait(&self) -> Reply<Exit> {
        let request = self.client.wait_request();
        reply_by(&self.link, &self.client, request, |answer| exit(answer.get_exit().map_err(malformed)?))
    }

    /// How it stands.
    pub fn state(&self) -> Reply<State> {
        reply_by(&self.link, &self.client, self.client.state_request(), |answer| {
            Ok(State {
                status: status(answer.get_status())?,
                pid: answer.get_pid(),
                exit: if answer.has_exit() { Some(exit(answer.get_exit().map_err(malformed)?)?) } else { None },
            })
        })
    }

    /// Sends a signal to it, or with `all` to every process of the container.
    pub fn kill(&self, signal: u32, all: bool) -> Reply<()> {
        let mut request = self.client.kill_request();
        request.get().set_signal(signal);
        request.get().set_all(all);
        done_by(&self.link, &self.client, request)
    }

    /// Gives its terminal another size.
    pub fn resize(&self, rows: u16, columns: u16) -> Reply<()> {
        let mut request = self.client.resize_request();
        request.get().set_rows(rows);
        request.get().set_columns(columns);
        done_by(&self.link, &self.client, request)
    }

    /// Ends its standard input.
    pub fn close_stdin(&self) -> Reply<()> {
        done_by(&self.link, &self.client, self.client.close_stdin_request())
    }

    /// Follows what it writes from now on, and feeds its input.
    pub fn attach(&self, stdio: Stdio) -> Attachment {
        let mut request = self.client.attach_request();
        stdio.fill(request.get().init_stdio(), &self.link.fds);
        let (pipeline, made) = make(request);
        Attachment { link: self.link.clone(), client: pipeline.get_attachment(), made }
    }

    /// Its standard input, where that was declared as a stream.
    pub fn stdin(&self) -> Sink {
        Sink::new(&self.link, self.client.stdin_request().send().pipeline.get_sink())
    }

    /// Forgets it after its end.
    pub fn delete(&self) -> Reply<Exit> {
        reply_by(&self.link, &self.client, self.client.delete_request(), |answer| {
            exit(answer.get_exit().map_err(malformed)?)
        })
    }
}

/// A client of yours on a process. Dropping it detaches.
#[derive(Clone)]
pub struct Attachment {
    link: Rc<Link>,
    client: attachment::Client,
    made: Made,
}

impl Attachment {
    /// Waits until it is attached: what the process writes from then on arrives.
    pub fn made(&self) -> Reply<()> {
        self.made.reply(&self.link)
    }

    /// Waits until it ends: "exit", "detached" or "overflow".
    pub fn wait(&self) -> Reply<String> {
        reply_by(&self.link, &self.client, self.client.wait_request(), |answer| {
            Ok(text(answer.get_reason())?.to_owned())
        })
    }
}

/// A container's first process, and the others in it.
#[derive(Clone)]
pub struct Task {
    process: Process,
    client: task::Client,
}

impl Deref for Task {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}

impl Task {
    pub(crate) fn new(link: &Rc<Link>, client: task::Client, made: Made) -> Task {
        Task { process: Process { link: link.clone(), client: client.clone().cast_to(), made }, client }
    }

    /// Another process in the container, ready but not yet started. An empty id: the daemon chooses one.
    pub fn exec(&self, id: &str, options: &ProcessOptions, stdio: Stdio) -> Process {
        let mut request = self.client.exec_request();
        request.get().set_id(id);
        let mut builder = request.get().init_options();
        set_texts(builder.reborrow().init_args(options.args.len() as u32), &options.args);
        set_texts(builder.reborrow().init_env(options.env.len() as u32), &options.env);
        builder.set_workdir(&options.workdir);
        builder.set_user(&options.user);
        builder.set_terminal(options.terminal);
        set_texts(builder.reborrow().init_cap_add(options.cap_add.len() as u32), &options.cap_add);
        set_texts(builder.init_cap_drop(options.cap_drop.len() as u32), &options.cap_drop);
        stdio.fill(request.get().init_stdio(), &self.link.fds);
        let (pipeline, made) = make(request);
        Process { link: self.link.clone(), client: pipeline.get_process(), made }
    }

    /// One of the other processes.
    pub fn process(&self, id: &str) -> Process {
        let mut request = self.client.process_request();
        request.get().set_id(id);
        let (pipeline, made) = make(request);
        Process { link: self.link.clone(), client: pipeline.get_process(), made }
    }

    /// Freezes every process of the container.
    pub fn pause(&self) -> Reply<()> {
        done_by(&self.link, &self.client, self.client.pause_request())
    }

    /// Lets them go on.
    pub fn resume(&self) -> Reply<()> {
        done_by(&self.link, &self.client, self.client.resume_request())
    }

    /// Every process of the container, on the host.
    pub fn pids(&self) -> Reply<Vec<u32>> {
        reply_by(&self.link, &self.client, self.client.pids_request(), |answer| {
            Ok(answer.get_pids().map_err(malformed)?.iter().collect())
        })
    }

    /// The processes of the container, with the execs that they belong to.
    pub fn processes(&self) -> Reply<Vec<ProcessInfo>> {
        reply_by(&self.link, &self.client, self.client.processes_request(), |answer| {
            answer.get_processes().map_err(malformed)?.iter().map(process_info).collect()
        })
    }

    /// Changes limits: `linux.resources` of the OCI runtime spec, as JSON. What it doesn't name stays as it is.
    pub fn update(&self, resources: &[u8]) -> Reply<()> {
        let mut request = self.client.update_request();
        request.get().set_resources(resources);
        done_by(&self.link, &self.client, request)
    }

    /// What it uses and has used.
    pub fn metrics(&self) -> Reply<Metrics> {
        reply_by(&self.link, &self.client, self.client.metrics_request(), |answer| {
            metrics(answer.get_metrics().map_err(malformed)?)
        })
    }

    /// Makes an image of what runs in the container, with its changed files. It stands still meanwhile.
    pub fn checkpoint(&self, options: &CheckpointOptions) -> Job {
        let mut request = self.client.checkpoint_request();
        let mut builder = request.get().init_options();
        builder.set_name(&options.name);
        builder.set_leave_running(options.leave_running);
        builder.set_tcp_established(options.tcp_established);
        builder.set_unix_sockets(options.unix_sockets);
        Job { link: self.process.link.clone(), client: request.send().pipeline.get_job() }
    }
}

/// How a container is checkpointed.
#[derive(Clone, Debug, Default)]
pub struct CheckpointOptions {
    /// Of the image; there must be none.
    pub name: String,
    /// It goes on afterwards; otherwise it is killed once the image is stored.
    pub leave_running: bool,
    /// Keep established TCP connections.
    pub tcp_established: bool,
    /// Keep unix sockets whose other end is outside the container.
    pub unix_sockets: bool,
}
