//! What outlives what: restarts and crashes of the daemon, of its actors and of shims; bounds; the burst of a run.

mod bounds;
mod burst;
mod crashes;
mod drills;
mod neighbours;
mod proxy;
mod restart;

use std::io::Write as _;

use cofferdam_client::{Client, Run, RunRequest};
use cofferdam_integration::{Daemon, input, until};

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

/// Whether a process runs; one that ended and is not yet taken in doesn't.
pub fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X'])))
}

/// Waits for a process's end, without asking the daemon.
pub fn until_ended(pid: u32) {
    until("the process ends", || (!runs(pid)).then_some(()));
}
