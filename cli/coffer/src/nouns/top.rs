//! `top`: the processes in a container.

use std::time::Duration;

use crate::{
    args::{Command, Positional, Times},
    cx::{Cx, Table},
    failure::Failure,
    units::{shorten, show_age, show_size},
};

/// What is shown of a command.
const COMMAND: usize = 60;

/// `coffer top`.
pub static TOP: Command = Command {
    path: &["top"],
    about: "show the processes in a container, with their pids on the host and inside",
    positionals: &[Positional { name: "CONTAINER", times: Times::Once }],
    flags: &[],
    notes: "A process that \"coffer exec\" made has its id in the column EXEC. -o json: one array",
    failure: 1,
    action: |cx| Box::pin(top(cx)),
};

async fn top(cx: Cx) -> Result<i32, Failure> {
    let processes = cx.namespace().await?.containers().get(cx.args.at(0)).task().processes().await?;
    if cx.json {
        cx.document(&processes)?;
        return Ok(0);
    }
    let mut table = Table::new(&["PID", "INSIDE", "USER", "STATE", "STARTED", "CPU", "MEMORY", "EXEC", "COMMAND"]);
    for process in &processes {
        table.row([
            process.pid.to_string(),
            process.inner_pid.to_string(),
            process.uid.to_string(),
            process.state.clone(),
            show_age(process.started),
            format!("{:.2} s", Duration::from_nanos(process.cpu).as_secs_f64()),
            show_size(process.resident),
            if process.exec.is_empty() { "-".to_owned() } else { process.exec.clone() },
            shorten(&process.command.join(" "), COMMAND),
        ]);
    }
    table.print()?;
    Ok(0)
}
