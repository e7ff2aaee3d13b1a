//! Containers: list, inspect, and what ends them.

use std::{cell::RefCell, collections::VecDeque, rc::Rc, time::Duration};

use cofferdam_client::{Client, ContainerInfo, Namespace, Process, Status, Task, TaskInfo};
use cofferdam_types::Code;
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::{
    args::{Command, Flag, Positional, Times, many, switch, value},
    cx::{Cx, Table, line, say},
    failure::Failure,
    nouns::foreground::tell,
    units::{number, show_age, show_span, signal},
};

/// How many are stopped at once.
const SIDE_BY_SIDE: usize = 32;

const CONTAINERS: &[Positional] = &[Positional { name: "CONTAINER", times: Times::Many }];

/// `coffer ps`.
pub static PS: Command = Command {
    path: &["ps"],
    about: "list containers",
    positionals: &[],
    flags: &[
        switch("all", Some('a'), "those that do not run as well"),
        switch("quiet", Some('q'), "ids alone"),
        many("filter", None, "FILTER", "such as image==NAME or labels.KEY==VALUE"),
    ],
    notes: "-o json: one array",
    failure: 1,
    action: |cx| Box::pin(ps(cx)),
};

async fn ps(cx: Cx) -> Result<i32, Failure> {
    let mut list = cx.namespace().await?.containers().list(cx.args.all("filter")).all().await?;
    if !cx.args.has("all") {
        list.retain(|info| info.task.as_ref().is_some_and(|task| task.status != Status::Stopped));
    }
    if cx.args.has("quiet") {
        cx.names(list.iter().map(|info| info.id.as_str()))?;
    } else if cx.json {
        cx.document(&list)?;
    } else {
        let mut table = Table::new(&["CONTAINER", "IMAGE", "CREATED", "STATUS", "PID", "ADDRESS"]);
        for info in &list {
            let pid = info.task.as_ref().map(|task| task.pid).filter(|pid| *pid != 0);
            table.row([
                info.id.clone(),
                if info.rootfs.is_empty() { info.image.clone() } else { info.rootfs.clone() },
                show_age(info.created),
                status(info.task.as_ref()),
                pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                addresses(info),
            ]);
        }
        table.print()?;
    }
    Ok(0)
}

/// Where it can be reached.
fn addresses(info: &ContainerInfo) -> String {
    let Some(network) = info.task.as_ref().and_then(|task| task.network.as_ref()) else { return "-".to_owned() };
    let bare = network.addresses.iter().map(|address| address.split('/').next().unwrap_or_default().to_owned());
    bare.chain(network.ports.iter().map(ToString::to_string)).collect::<Vec<_>>().join(",")
}

fn status(task: Option<&TaskInfo>) -> String {
    let Some(task) = task else { return "no task".to_owned() };
    match (&task.exit, task.status) {
        (Some(exit), _) => {
            let reason = if exit.reason.is_empty() { String::new() } else { format!(", {}", exit.reason) };
            format!("exited ({}{reason}) {}", exit.status, show_age(exit.at))
        }
        (None, Status::Running) => {
            format!(
                "up {}",
                show_span(cofferdam_types::Timestamp::now().seconds().saturating_sub(task.started.seconds()))
            )
        }
        (None, other) => other.as_str().to_owned(),
    }
}

/// `coffer inspect`.
pub static INSPECT: Command = Command {
    path: &["inspect"],
    about: "show all that is known of containers, as JSON",
    positionals: CONTAINERS,
    flags: &[],
    notes: "one JSON document for each; -o json puts each on one line",
    failure: 1,
    action: |cx| Box::pin(inspect(cx)),
};

async fn inspect(cx: Cx) -> Result<i32, Failure> {
    let containers = cx.namespace().await?.containers();
    show_each(&cx, async |id| containers.get(id).info().await).await
}

/// One of the processes that were run in a container, in place of its first.
pub const PROCESS: Flag = value("exec", None, "ID", "what was run in it, by the id that \"coffer exec -d\" printed");

/// The process that is named so; only of one container.
fn one_process(cx: &Cx, command: &str) -> Result<Option<String>, Failure> {
    let exec = cx.args.value("exec").map(str::to_owned);
    if exec.is_some() && cx.args.from(0).len() > 1 {
        return Err(Failure::usage(format!(
            "{command}: --exec names a process of one container, and there are several"
        )));
    }
    Ok(exec)
}

/// A process of a task: the first one, or the one that is named.
pub fn process(task: &Task, exec: Option<&str>) -> Process {
    exec.map_or_else(|| Process::clone(task), |exec| task.process(exec))
}

/// `coffer kill`.
pub static KILL: Command = Command {
    path: &["kill"],
    about: "send a signal to containers",
    positionals: CONTAINERS,
    flags: &[
        value("signal", Some('s'), "SIGNAL", "a number, or a name with or without SIG; KILL otherwise"),
        switch("all", Some('a'), "to every process of the container"),
        PROCESS,
    ],
    notes: "",
    failure: 1,
    action: |cx| Box::pin(kill(cx)),
};

async fn kill(cx: Cx) -> Result<i32, Failure> {
    let signal = cx.args.read("signal", signal)?.unwrap_or(9);
    let containers = cx.namespace().await?.containers();
    let all = cx.args.has("all");
    let exec = one_process(&cx, "kill")?;
    if all && exec.is_some() {
        return Err(Failure::usage("kill: --all is for the whole container, and --exec names one of its processes"));
    }
    each(&cx, async |id| Ok(process(&containers.get(id).task(), exec.as_deref()).kill(signal, all).await?)).await
}

/// What failed of several things: coffer goes on, and fails with the last.
#[derive(Default)]
pub struct Failures(Option<Failure>);

impl Failures {
    /// One more: the one before is said.
    pub fn add(&mut self, failure: impl Into<Failure>) {
        if let Some(earlier) = self.0.replace(failure.into()) {
            say(&earlier.text);
        }
    }

    /// How coffer ends: with this exit code, or the last failure.
    pub fn end(self, code: i32) -> Result<i32, Failure> {
        self.0.map_or(Ok(code), Err)
    }
}

/// Shows a document of each that is named, goes on after a failure, and fails with the last.
pub async fn show_each<T: Serialize>(
    cx: &Cx,
    look: impl AsyncFn(&str) -> cofferdam_types::Result<T>,
) -> Result<i32, Failure> {
    let mut failures = Failures::default();
    for name in cx.args.from(0) {
        match look(name).await {
            Ok(document) => cx.document(&document)?,
            Err(error) => failures.add(error),
        }
    }
    failures.end(0)
}

/// Does something to each that is named, goes on after a failure, and fails with the last. Names those that it was done
/// to: each at once, or all in the end for programs.
pub async fn each(cx: &Cx, act: impl AsyncFn(&str) -> Result<(), Failure>) -> Result<i32, Failure> {
    let (mut failures, mut done) = (Failures::default(), Vec::new());
    for id in cx.args.from(0) {
        match act(id).await {
            Ok(()) if cx.json => done.push(id.as_str()),
            Ok(()) => line(id)?,
            Err(failure) => failures.add(failure),
        }
    }
    if cx.json {
        cx.names(done)?;
    }
    failures.end(0)
}

/// `coffer stop`.
pub static STOP: Command = Command {
    path: &["stop"],
    about: "ask containers to end, and kill those that don't",
    positionals: CONTAINERS,
    flags: &[
        value("time", Some('t'), "SECONDS", "how long each may take; 10 otherwise"),
        value("signal", Some('s'), "SIGNAL", "how it is asked; as its image said at its creation, or TERM"),
    ],
    notes: "What is paused is asked, and goes on.",
    failure: 1,
    action: |cx| Box::pin(stop(cx)),
};

async fn stop(cx: Cx) -> Result<i32, Failure> {
    let patience = Duration::from_secs(cx.args.read("time", number)?.unwrap_or(10));
    let asked = cx.args.read("signal", signal)?;
    let namespace = cx.namespace().await?;
    // Side by side: together they take no longer than one may. A connection has a bound of calls.
    let room = Rc::new(Semaphore::new(SIDE_BY_SIDE));
    let stops = cx.args.from(0).iter().map(|id| {
        let (namespace, id, room) = (namespace.clone(), id.clone(), room.clone());
        tokio::task::spawn_local(async move {
            let _held = room.acquire().await;
            stop_one(&namespace, &id, asked, patience).await
        })
    });
    let stops = RefCell::new(stops.collect::<VecDeque<_>>());
    each(&cx, async |_| {
        let next = stops.borrow_mut().pop_front();
        match next {
            Some(stop) => stop.await.map_err(|e| Failure::usage(format!("stop: {e}")))?,
            None => Ok(()),
        }
    })
    .await
}

/// Asks a container to end, and kills it where it doesn't.
pub async fn stop_one(namespace: &Namespace, id: &str, asked: Option<u32>, patience: Duration) -> Result<(), Failure> {
    let container = namespace.containers().get(id);
    let (status, wanted) = match container.info().await {
        Ok(info) => (info.task.map_or(Status::Stopped, |task| task.status), info.stop_signal),
        // Who may end tasks and nothing else learns how they stand, and not what their image said.
        Err(error) if error.code == Code::Denied => match container.task().state().await {
            Err(error) if error.code == Code::NotFound && error.kind == "task" => (Status::Stopped, 0),
            state => (state?.status, 0),
        },
        Err(error) => return Err(error.into()),
    };
    let asked = match status {
        Status::Stopped => return Ok(()),
        // Nothing of it has begun that could take a signal.
        Status::Created => 9,
        _ => asked.unwrap_or(if wanted == 0 { 15 } else { wanted }),
    };
    let task = container.task();
    let mut ended = task.wait();
    // It may end, and be removed, by itself at any moment.
    let gone = |answer: cofferdam_types::Result<()>| match answer {
        Err(error) if error.code != Code::NotFound => Err(error),
        _ => Ok(()),
    };
    gone(task.kill(asked, false).await)?;
    if status == Status::Paused {
        // It takes the signal when it goes on. Somebody else may have let it.
        match task.resume().await {
            Err(error) if error.code == Code::FailedPrecondition => {}
            other => gone(other)?,
        }
    }
    let waited = match tokio::time::timeout(patience, &mut ended).await {
        Ok(ended) => ended,
        Err(_) => {
            gone(task.kill(9, true).await)?;
            ended.await
        }
    };
    Ok(gone(waited.map(drop))?)
}

/// `coffer wait`.
pub static WAIT: Command = Command {
    path: &["wait"],
    about: "wait until containers have ended",
    positionals: CONTAINERS,
    flags: &[PROCESS],
    notes: "Prints the exit code of each. A restart of the daemon is waited out.\n\n\
            exit code: the container's own, of several the last one's; 1 if coffer or the daemon fails",
    failure: 1,
    action: |cx| Box::pin(wait(cx)),
};

async fn wait(cx: Cx) -> Result<i32, Failure> {
    let client = cx.client().await?;
    let exec = one_process(&cx, "wait")?;
    let (mut code, mut failures) = (0, Failures::default());
    for id in cx.args.from(0) {
        let again = |client: Client| {
            let task = client.namespace(&cx.namespace).containers().get(id).task();
            process(&task, exec.as_deref()).wait()
        };
        let exit = match client.persist(again).await {
            Ok(exit) => exit,
            Err(error) => {
                failures.add(error);
                continue;
            }
        };
        line(&if cx.json {
            let mut told = serde_json::json!({ "id": id, "exit": exit });
            if let Some(exec) = &exec {
                told["exec"] = exec.as_str().into();
            }
            told.to_string()
        } else {
            exit.status.to_string()
        })?;
        code = tell(id, &exit);
    }
    failures.end(code)
}

/// `coffer rm`.
pub static RM: Command = Command {
    path: &["rm"],
    about: "remove containers",
    positionals: CONTAINERS,
    flags: &[switch("force", Some('f'), "kill those that run")],
    notes: "",
    failure: 1,
    action: |cx| Box::pin(rm(cx)),
};

async fn rm(cx: Cx) -> Result<i32, Failure> {
    let containers = cx.namespace().await?.containers();
    let force = cx.args.has("force");
    each(&cx, async |id| Ok(containers.get(id).remove(force).await?)).await
}

#[cfg(test)]
mod tests {
    use cofferdam_client::Exit;
    use cofferdam_types::Timestamp;

    use super::*;

    #[test]
    fn a_status_says_what_matters() {
        let mut task = TaskInfo {
            status: Status::Running,
            pid: 1,
            created: Timestamp::now(),
            started: Timestamp::now(),
            exit: None,
            terminal: false,
            log: true,
            execs: vec![],
            oomed: Timestamp(0),
            ooms: 0,
            log_lost: 0,
            network: None,
        };
        assert_eq!(status(None), "no task");
        assert!(status(Some(&task)).starts_with("up 0 seconds"));
        task.status = Status::Paused;
        assert_eq!(status(Some(&task)), "paused");
        task.status = Status::Stopped;
        task.exit = Some(Exit { status: 137, at: Timestamp::now(), reason: "oom killed".into() });
        assert_eq!(status(Some(&task)), "exited (137, oom killed) 0 seconds ago");
    }
}
