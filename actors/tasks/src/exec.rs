//! Another process in a container.

use std::{os::fd::AsFd as _, rc::Rc};

use cofferdam_metadata::records::containers;
use cofferdam_oci::spec::{self, ExecOptions};
use cofferdam_types::{Authority, Code, Error, Id, Result, Timestamp};
use cofferdam_wire::convert::life;
use oci_spec::runtime::Spec;

use crate::{
    entry::{Entry, Process},
    handle::Deps,
    link::Remote,
    messages::{ExecRequest, Stdio},
    run::set_stdio,
    shim::{self, from_shim},
    told,
};

/// How many that have ended are kept as they are for whoever comes to ask. A client that wants no more of one deletes it.
const KEPT: usize = 64;

/// Makes a process, ready but not started; gives its id.
pub(crate) async fn exec(
    deps: &Deps,
    entry: &Rc<Entry>,
    auth: &Authority,
    id: Option<Id>,
    request: ExecRequest,
    stdio: Stdio,
) -> Result<String> {
    if !request.cap_add.is_empty() && !auth.ceiling.host {
        return Err(Error::denied("process", "", "asks for more capabilities, which needs the host right"));
    }
    let id = match id {
        Some(id) => id.to_string(),
        None => shim::new_id()?,
    };
    if id == *entry.id {
        let why = "is the id of the container, by which the end of its first process is told: choose another";
        return Err(Error::invalid("process", &id, why));
    }
    if entry.init.ended().is_some() {
        return Err(Error::failed_precondition("task", &entry.id, "is stopped: nothing can be run in it"));
    }
    if entry.execs.borrow().contains_key(&id) {
        return Err(Error::already_exists("process", &id, "is there already: choose another id"));
    }
    let deleted = entry.leaving.borrow().get(&id).cloned();
    if let Some(deleted) = deleted {
        // Its end is told before the start of the next one of its name.
        told::record_end(deps, entry, &id, &deleted, true).await?;
        told::forget(entry, &id, &deleted).await;
    }
    let remote = entry.remote().await?;
    let process = spec(deps, entry, &request)?;
    let mut call = remote.container.exec_request();
    let mut message = call.get().init_request();
    message.set_id(&id);
    message.set_process(&process);
    message.set_terminal(request.terminal);
    // What a daemon that comes after this one has to know to end it with its grant. A shim that is older keeps it to itself.
    if let Some(grant) = auth.grants.last() {
        message.set_grant(grant.to_string());
    }
    set_stdio(message.init_stdio(), stdio, &remote.fds);
    let answer = entry.answer(&remote, call.send().promise).await?;
    let life = life(answer.get().and_then(|a| a.get_life()).map_err(from_shim)?)?;
    entry.execs.borrow_mut().insert(id.clone(), Process::new(life));
    entry.past.borrow_mut().take(&id);
    if let Err(error) = forget_oldest(deps, entry, &remote).await {
        // It is made, whatever becomes of others.
        tracing::warn!(container = %entry.id, %error, "those that ended long ago can't be forgotten yet");
    }
    Ok(id)
}

/// Has the shim forget those that ended first: nobody may ever delete them, and each makes the container's own deletion
/// longer. Their ends are kept, of a few thousand.
async fn forget_oldest(deps: &Deps, entry: &Rc<Entry>, remote: &Remote) -> Result<()> {
    let mut ended: Vec<(Timestamp, String)> = {
        let execs = entry.execs.borrow();
        execs.iter().filter_map(|(id, process)| Some((process.ended()?.at, id.clone()))).collect()
    };
    ended.sort();
    for (_, id) in &ended[..ended.len().saturating_sub(KEPT)] {
        let Ok(process) = entry.process(id) else { continue };
        let recorded = told::record_end(deps, entry, id, &process, true).await;
        if told::may_come(&recorded) {
            // They stay until it can be.
            return Ok(());
        }
        recorded?;
        let mut call = remote.container.delete_exec_request();
        call.get().set_id(id);
        call.get().set_drain(deps.drain.as_secs() as u32);
        match entry.answer(remote, call.send().promise).await {
            Err(error) if error.code != Code::NotFound => return Err(error),
            _ => {
                entry.execs.borrow_mut().remove(id);
                if let Some(exit) = process.ended() {
                    entry.past.borrow_mut().keep(id.clone(), exit);
                }
            }
        }
    }
    Ok(())
}

/// The `process` of the spec, from the container's own and what is asked for. Users are looked up in the container's
/// root as it is now, through its first process.
fn spec(deps: &Deps, entry: &Entry, request: &ExecRequest) -> Result<Vec<u8>> {
    let record = containers::get(&deps.metadata.read()?, &entry.namespace, &entry.id)?;
    let spec: Spec = serde_json::from_slice(&record.spec.value)
        .map_err(|e| Error::data_loss("container", &entry.id, format!("its stored spec can't be read: {e}")))?;
    let first = spec.process().as_ref().ok_or_else(|| {
        Error::failed_precondition("container", &entry.id, "has no process in its spec to take the settings from")
    })?;
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let options = ExecOptions {
        args: request.args.clone(),
        env: request.env.clone(),
        cwd: text(&request.workdir),
        user: text(&request.user),
        tty: request.terminal,
        cap_add: request.cap_add.clone(),
        cap_drop: request.cap_drop.clone(),
    };
    let pid = entry.init.life.borrow().pid;
    if pid == 0 {
        let why = "is created, and not restored from its checkpoint yet: start it first";
        return Err(Error::failed_precondition("task", &entry.id, why));
    }
    let root = cofferdam_sys::fd::open_path(format!("/proc/{pid}/root").as_ref())
        .map_err(|e| Error::io("container", &entry.id, "its root can't be opened", &e))?;
    let process = spec::exec(first, &options, root.as_fd())?;
    serde_json::to_vec(&process).map_err(|e| Error::internal("process", "", e.to_string()))
}
