//! The life of containers, through the client library, against a real daemon.

mod attach;
mod bounds;
mod changes;
mod checkpoint;
mod contract;
mod delivery;
mod deputies;
mod drivers;
mod early;
mod ends;
mod events;
mod examples;
mod exec;
mod failures;
mod grants;
mod hooks;
mod hung;
mod inside;
mod languages;
mod log;
mod network;
mod network_faults;
mod options;
mod paths;
mod resources;
mod rootfs;
mod shims;
mod states;
mod stop;
mod streams;
mod terminal;
mod upgrade;
mod userns;
mod walk;

use cofferdam_client::{Client, Container, ContainerRequest, Namespace, Run, RunRequest, Stdio, Task};
use cofferdam_integration::{BUSYBOX, Daemon};
use cofferdam_types::Error;

/// A container of busybox that a shell script describes, not yet with a task.
pub fn container(namespace: &Namespace, id: &str, script: &str) -> Container {
    with(namespace, id, script, |_| {})
}

/// [`container`], and something about it changed.
pub fn with(namespace: &Namespace, id: &str, script: &str, change: impl FnOnce(&mut ContainerRequest)) -> Container {
    let mut request = ContainerRequest { id: id.into(), ..ContainerRequest::default() };
    request.options.args = vec!["sh".into(), "-c".into(), script.into()];
    change(&mut request);
    namespace.containers().create(&namespace.images().get(BUSYBOX), &request)
}

/// A script as a run.
pub fn script(daemon: &Daemon, id: &str, script: &str) -> RunRequest {
    daemon.run(id, ["sh", "-c", script])
}

/// Starts a run, and waits for the start.
pub async fn start(client: &Client, request: RunRequest) -> Run {
    let run = client.run(request).unwrap();
    run.started().await.unwrap();
    run
}

/// A container that does nothing until it is killed.
pub async fn idle(namespace: &Namespace, id: &str) -> (Container, Task) {
    let container = container(namespace, id, "exec sleep 1000");
    let task = container.create_task(Stdio::default(), false);
    task.start().await.unwrap();
    (container, task)
}

/// Code, kind and id of an error.
pub fn named(error: &Error) -> (cofferdam_types::Code, &str, &str) {
    (error.code, &error.kind, &error.id)
}
