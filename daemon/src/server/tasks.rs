//! `Task` and `Process` (container.capnp): one server for both, since a task is its first process and more.

use std::rc::Rc;

use cofferdam_metadata::records::tasks::{Exit, State};
use cofferdam_tasks::{DumpOptions, ExecRequest};
use cofferdam_transfer::{CheckpointOptions, normalize};
use cofferdam_types::{Error, Id, Name, Result};
use cofferdam_wire::{
    container_capnp::{Status, exit, process, task},
    convert::{text, texts},
};

use super::{
    Place,
    attachments::Attachment,
    bytes::{self, PipeSink},
    jobs, metrics, rpc, stdio, trail,
};

/// A process of a container; the empty `exec` is the first one.
#[derive(Clone)]
pub struct Process {
    pub place: Place,
    pub id: Id,
    pub exec: String,
}

/// The status as the schema has it.
pub fn status(state: State) -> Status {
    match state {
        State::Creating => Status::Creating,
        State::Created => Status::Created,
        State::Running => Status::Running,
        State::Paused => Status::Paused,
        State::Stopped => Status::Stopped,
    }
}

/// Fills an exit.
pub fn set_exit(mut builder: exit::Builder<'_>, exit: &Exit) {
    builder.set_status(exit.status);
    builder.set_at(exit.at.0);
    builder.set_reason(&exit.reason);
}

impl Process {
    fn tasks(&self) -> &cofferdam_tasks::Tasks {
        &self.place.services().tasks
    }

    /// Another process of the container.
    fn other(&self, exec: String) -> process::Client {
        let place = self.place.named("process", format_args!("{}/{exec}", self.id));
        place.clone().hand_out(Process { place, id: self.id.clone(), exec })
    }

    async fn pause_or_resume(&self, pause: bool) -> Result<()> {
        self.tasks().pause(&self.place.namespace, &self.id, self.place.authority().clone(), pause).await
    }
}

impl process::Server for Process {
    async fn start(self: Rc<Self>, _: process::StartParams, mut results: process::StartResults) -> capnp::Result<()> {
        let auth = self.place.authority().clone();
        let started = self.tasks().start_process(&self.place.namespace, &self.id, auth, self.exec.clone()).await;
        results.get().set_pid(rpc(started)?);
        Ok(())
    }

    async fn wait(self: Rc<Self>, _: process::WaitParams, mut results: process::WaitResults) -> capnp::Result<()> {
        let exit = rpc(self.tasks().wait(&self.place.namespace, &self.id, &self.exec).await)?;
        set_exit(results.get().init_exit(), &exit);
        Ok(())
    }

    async fn state(self: Rc<Self>, _: process::StateParams, mut results: process::StateResults) -> capnp::Result<()> {
        let state = rpc(self.tasks().query(&self.place.namespace, &self.id, self.exec.clone()).await)?;
        let mut answer = results.get();
        answer.set_status(status(state.state));
        answer.set_pid(state.pid);
        if let Some(exit) = &state.exit {
            set_exit(answer.init_exit(), exit);
        }
        Ok(())
    }

    async fn kill(self: Rc<Self>, params: process::KillParams, _: process::KillResults) -> capnp::Result<()> {
        let params = params.get()?;
        let auth = self.place.authority().clone();
        let (signal, all) = (params.get_signal(), params.get_all());
        trail::note(|| format!("signal {signal}{}", if all { " to all" } else { "" }));
        if all && !self.exec.is_empty() && !self.place.held.reach.allows("Task.kill") {
            let why = "is one process, and this grant is not for the others of its container";
            return rpc(Err(Error::denied("process", &self.exec, why)));
        }
        rpc(self.tasks().kill(&self.place.namespace, &self.id, auth, self.exec.clone(), signal, all).await)
    }

    async fn resize(self: Rc<Self>, params: process::ResizeParams, _: process::ResizeResults) -> capnp::Result<()> {
        let params = params.get()?;
        let auth = self.place.authority().clone();
        let (rows, columns) = (params.get_rows(), params.get_columns());
        rpc(self.tasks().resize(&self.place.namespace, &self.id, auth, self.exec.clone(), rows, columns).await)
    }

    async fn close_stdin(
        self: Rc<Self>,
        _: process::CloseStdinParams,
        _: process::CloseStdinResults,
    ) -> capnp::Result<()> {
        let auth = self.place.authority().clone();
        rpc(self.tasks().close_stdin(&self.place.namespace, &self.id, auth, self.exec.clone()).await)
    }

    async fn attach(
        self: Rc<Self>,
        params: process::AttachParams,
        mut results: process::AttachResults,
    ) -> capnp::Result<()> {
        let streams = rpc(stdio::read(&self.place, params.get()?.get_stdio()?))?;
        let auth = self.place.authority().clone();
        let attached = self.tasks().attach(&self.place.namespace, &self.id, auth, self.exec.clone(), streams).await;
        let object = Attachment::until(self.place.held.until_over(), rpc(attached)?);
        results.get().set_attachment(self.place.session.hand_out_rc(object, &self.place.held));
        Ok(())
    }

    async fn stdin(self: Rc<Self>, _: process::StdinParams, mut results: process::StdinResults) -> capnp::Result<()> {
        let auth = self.place.authority().clone();
        let pipe = rpc(self.tasks().stdin(&self.place.namespace, &self.id, auth, self.exec.clone()).await)?;
        // The end of the stream is the end of the process's input: the shim's own copy of the pipe goes too.
        let me = self.clone();
        let then = capnp::capability::Promise::from_future(async move {
            let auth = me.place.authority().clone();
            rpc(me.tasks().close_stdin(&me.place.namespace, &me.id, auth, me.exec.clone()).await)
        });
        let sink = rpc(bytes::nonblocking(&pipe).and_then(|()| PipeSink::new(pipe, Some(then))))?;
        results.get().set_sink(self.place.hand_out(sink));
        Ok(())
    }

    async fn delete(
        self: Rc<Self>,
        _: process::DeleteParams,
        mut results: process::DeleteResults,
    ) -> capnp::Result<()> {
        let auth = self.place.authority().clone();
        let exit = self.tasks().delete_process(&self.place.namespace, &self.id, auth, self.exec.clone()).await;
        set_exit(results.get().init_exit(), &rpc(exit)?);
        Ok(())
    }
}

impl task::Server for Process {
    async fn exec(self: Rc<Self>, params: task::ExecParams, mut results: task::ExecResults) -> capnp::Result<()> {
        let params = params.get()?;
        let id = rpc(text(params.get_id()))?;
        let id = if id.is_empty() { None } else { Some(rpc(Id::new(id))?) };
        let options = params.get_options()?;
        let request = ExecRequest {
            args: rpc(texts(options.get_args()))?,
            env: rpc(texts(options.get_env()))?,
            workdir: rpc(text(options.get_workdir()))?.to_owned(),
            user: rpc(text(options.get_user()))?.to_owned(),
            terminal: options.get_terminal(),
            cap_add: rpc(texts(options.get_cap_add()))?,
            cap_drop: rpc(texts(options.get_cap_drop()))?,
        };
        trail::note(|| request.args.join(" "));
        let streams = rpc(stdio::read(&self.place, params.get_stdio()?))?;
        let auth = self.place.authority().clone();
        let exec = rpc(self.tasks().exec(&self.place.namespace, &self.id, auth, id, request, streams).await)?;
        trail::object("process", format_args!("{}/{exec}", self.id));
        results.get().set_process(self.other(exec));
        Ok(())
    }

    async fn process(
        self: Rc<Self>,
        params: task::ProcessParams,
        mut results: task::ProcessResults,
    ) -> capnp::Result<()> {
        let exec = rpc(text(params.get()?.get_id()))?.to_owned();
        if exec.is_empty() {
            // As a `Process` it would be subject to what is allowed with those that are run beside it.
            return rpc(Err(Error::invalid("process", "", "is the first one: the task is that itself")));
        }
        rpc(self.tasks().known(&self.place.namespace, &self.id, exec.clone()).await)?;
        results.get().set_process(self.other(exec));
        Ok(())
    }

    async fn pause(self: Rc<Self>, _: task::PauseParams, _: task::PauseResults) -> capnp::Result<()> {
        rpc(self.pause_or_resume(true).await)
    }

    async fn resume(self: Rc<Self>, _: task::ResumeParams, _: task::ResumeResults) -> capnp::Result<()> {
        rpc(self.pause_or_resume(false).await)
    }

    async fn pids(self: Rc<Self>, _: task::PidsParams, mut results: task::PidsResults) -> capnp::Result<()> {
        let pids = rpc(self.tasks().pids(&self.place.namespace, &self.id).await)?;
        let mut list = results.get().init_pids(pids.len() as u32);
        for (n, pid) in pids.iter().enumerate() {
            list.set(n as u32, *pid);
        }
        Ok(())
    }

    async fn update(self: Rc<Self>, params: task::UpdateParams, _: task::UpdateResults) -> capnp::Result<()> {
        let (auth, resources) = (self.place.authority().clone(), params.get()?.get_resources()?.to_vec());
        trail::note(|| String::from_utf8_lossy(&resources).into_owned());
        rpc(self.tasks().query(&self.place.namespace, &self.id, String::new()).await)?;
        rpc(self.tasks().update_resources(&self.place.namespace, &self.id, auth, resources).await)
    }

    async fn metrics(self: Rc<Self>, _: task::MetricsParams, mut results: task::MetricsResults) -> capnp::Result<()> {
        let read = rpc(self.tasks().metrics(&self.place.namespace, &self.id).await)?;
        metrics::set_metrics(results.get().init_metrics(), &read);
        Ok(())
    }

    async fn processes(
        self: Rc<Self>,
        _: task::ProcessesParams,
        mut results: task::ProcessesResults,
    ) -> capnp::Result<()> {
        let processes = rpc(self.tasks().processes(&self.place.namespace, &self.id).await)?;
        let mut list = results.get().init_processes(processes.len() as u32);
        for (n, entry) in processes.iter().enumerate() {
            metrics::set_process(list.reborrow().get(n as u32), entry);
        }
        Ok(())
    }

    async fn checkpoint(
        self: Rc<Self>,
        params: task::CheckpointParams,
        mut results: task::CheckpointResults,
    ) -> capnp::Result<()> {
        let reader = params.get()?.get_options()?;
        let options = rpc((|| {
            Ok(CheckpointOptions {
                name: Name::new(normalize(text(reader.get_name())?)?)?,
                leave_running: reader.get_leave_running(),
                dump: DumpOptions {
                    tcp_established: reader.get_tcp_established(),
                    unix_sockets: reader.get_unix_sockets(),
                },
            })
        })())?;
        trail::note(|| format!("to {}", options.name));
        let services = self.place.services();
        let (auth, namespace) = (self.place.authority(), &self.place.namespace);
        let job = services.transfer.checkpoint(auth, namespace, &services.tasks, &self.id, options).await;
        results.get().set_job(jobs::begun(&self.place, rpc(job)?));
        Ok(())
    }
}
