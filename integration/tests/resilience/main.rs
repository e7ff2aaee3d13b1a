//! What outlives what: restarts and crashes of the daemon, of its actors and of shims; bounds; the burst of a run.

mod absent;
mod bounds;
mod burst;
mod crashes;
mod deaths;
mod drills;
mod faults;
mod files;
mod groups;
mod hostile;
mod kills;
mod late;
mod ledger;
mod lost;
mod neighbours;
mod outside;
mod power;
mod proxy;
mod random;
mod raw;
mod refused;
mod restart;
mod starts;
mod storm;

use std::{collections::BTreeMap, io::Write as _};

use cofferdam_client::{Client, Exit, Run, RunRequest};
use cofferdam_integration::{Daemon, input, until};
use cofferdam_types::Timestamp;

/// Runs a script that ends with the code that the test writes into the file.
pub fn ends_when_told(daemon: &Daemon, id: &str) -> (RunRequest, std::fs::File) {
    let mut request = daemon.run(id, ["sh", "-c", "read code; exit $code"]);
    let (stdin, tell) = input();
    request.stdio.stdin = stdin;
    (request, tell)
}

/// Says with which code it is to end.
pub fn tell(file: &std::fs::File, code: u32) {
    writeln!(&mut { file }, "{code}").unwrap();
}

/// Starts a run, and gives its pid.
pub async fn start(client: &Client, request: RunRequest) -> (Run, u32) {
    let run = client.run(request).unwrap();
    let pid = run.started().await.unwrap();
    (run, pid)
}

/// The shim of a container's first process.
pub fn shim_of(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

/// Sends a signal.
pub fn send(pid: u32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal).unwrap();
}

/// How often each was started, first process or other, by its id; and its ends.
#[derive(Debug, Default)]
pub struct History {
    pub starts: BTreeMap<String, usize>,
    pub ends: BTreeMap<String, Vec<Exit>>,
}

/// Every end of a container that is in the journal, and those of other processes by their ids.
pub async fn journal(client: &Client, namespace: &str) -> BTreeMap<String, Vec<Exit>> {
    history(client, namespace).await.ends
}

/// Everything of that kind that is in the journal.
pub async fn history(client: &Client, namespace: &str) -> History {
    let events = client.namespace(namespace).events();
    let mut found = History::default();
    // A last event of our own: everything before it has been seen when it comes.
    let last = events.publish("/test/end", &serde_json::json!({})).await.unwrap();
    let topics = ["/tasks/start", "/tasks/exec-started", "/tasks/exit", "/test/end"];
    let topics = topics.map(|topic| format!("topic==\"{topic}\""));
    let mut events = events.subscribe(0, &topics.each_ref().map(|topic| &**topic));
    loop {
        let event = events.next().await.unwrap().expect("no gap");
        if event.sequence == last {
            return found;
        }
        let text = |field: &str| event.payload[field].as_str().unwrap().to_owned();
        match &*event.topic {
            "/tasks/start" => {
                *found.starts.entry(text("container_id")).or_default() += 1;
                continue;
            }
            "/tasks/exec-started" => {
                *found.starts.entry(text("exec_id")).or_default() += 1;
                continue;
            }
            // Of somebody who looked before.
            "/test/end" => continue,
            _ => {}
        }
        found.ends.entry(text("id")).or_default().push(Exit {
            status: event.payload["exit_status"].as_u64().unwrap() as u32,
            at: Timestamp::parse_rfc3339(&text("exited_at")).unwrap(),
            reason: text("reason"),
        });
    }
}

/// The statuses of these.
pub async fn exits(client: &Client, namespace: &str) -> BTreeMap<String, Vec<u32>> {
    let statuses = |ends: Vec<Exit>| ends.into_iter().map(|exit| exit.status).collect();
    journal(client, namespace).await.into_iter().map(|(id, ends)| (id, statuses(ends))).collect()
}

/// Whether a process runs; one that ended and is not yet taken in doesn't.
pub fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X'])))
}

/// Waits for a process's end, without asking the daemon.
pub fn until_ended(pid: u32) {
    until("the process ends", || (!runs(pid)).then_some(()));
}
