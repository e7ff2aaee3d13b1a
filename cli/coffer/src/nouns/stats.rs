//! `stats`: what containers use, again and again.

use std::{collections::BTreeMap, io::IsTerminal as _, time::Duration};

use cofferdam_client::{Metrics, Namespace, Status, is_lost};
use cofferdam_types::Code;
use serde_json::json;

use crate::{
    args::{Command, Positional, Times, switch, value},
    cx::{Cx, Table, line, say},
    failure::Failure,
    units::{number, show_size},
};

/// `coffer stats`.
pub static STATS: Command = Command {
    path: &["stats"],
    about: "show what containers use: processors, memory, processes, block devices",
    positionals: &[Positional { name: "CONTAINER", times: Times::Any }],
    flags: &[
        switch("no-stream", None, "once, and not again"),
        value("interval", None, "SECONDS", "between two looks; 1 otherwise"),
    ],
    notes: "Without a name all that run. What was named and isn't there, or ends, is said; it goes on with the others while there\n\
            are any, and the exit code is 1 then. CPU is of one processor: 200% are two. Memory is without what the kernel can drop\n\
            at once.\n\n\
            -o json: one line for each container and look, with all that the host counts",
    failure: 1,
    action: |cx| Box::pin(stats(cx)),
};

/// Clears the terminal and goes to its corner.
const CLEAR: &str = "\x1b[2J\x1b[H";
/// What the processor is measured over where there is one look alone.
const ONCE: Duration = Duration::from_millis(200);

async fn stats(cx: Cx) -> Result<i32, Failure> {
    let seconds = |text: &str| number(text).and_then(|n| if n == 0 { Err("give 1 or more".to_owned()) } else { Ok(n) });
    let interval = Duration::from_secs(cx.args.read("interval", seconds)?.unwrap_or(1));
    let once = cx.args.has("no-stream");
    let namespace = cx.namespace().await?;
    let clear = !once && !cx.json && std::io::stdout().is_terminal();
    let mut named = cx.args.from(0).to_vec();
    let all = named.is_empty();
    let mut before = look(&namespace, &mut named).await?;
    // As long as there is one left of those that were named.
    while all || !named.is_empty() {
        tokio::time::sleep(if once { ONCE } else { interval }).await;
        let now = look(&namespace, &mut named).await?;
        show(&cx, &before, &now, clear)?;
        if once {
            break;
        }
        before = now;
    }
    let whole = all || named.len() == cx.args.from(0).len();
    if whole { Ok(0) } else { Err(Failure { text: String::new(), code: None }) }
}

/// The figures of each that has any. Of what was named and has none it is said, and it is no longer among them.
async fn look(namespace: &Namespace, named: &mut Vec<String>) -> Result<BTreeMap<String, Metrics>, Failure> {
    let all = named.is_empty();
    let ids = if all {
        let list = namespace.containers().list::<&str>(&[]).all().await?;
        let runs = |status| matches!(status, Status::Created | Status::Running | Status::Paused);
        list.into_iter().filter(|info| info.task.as_ref().is_some_and(|t| runs(t.status))).map(|info| info.id).collect()
    } else {
        named.clone()
    };
    let containers = namespace.containers();
    let asked: Vec<_> = ids.into_iter().map(|id| (containers.get(&id).task().metrics(), id)).collect();
    let mut figures = BTreeMap::new();
    for (answer, id) in asked {
        match answer.await {
            Ok(metrics) => {
                figures.insert(id, metrics);
            }
            // It ended while we looked.
            Err(error) if all && matches!(error.code, Code::NotFound | Code::FailedPrecondition) => {}
            Err(error) if all || is_lost(&error) => return Err(error.into()),
            Err(error) => {
                named.retain(|name| *name != id);
                say(&Failure::from(error).text);
            }
        }
    }
    Ok(figures)
}

/// In hundredths of one processor.
fn cpu(before: Option<&Metrics>, now: &Metrics) -> f64 {
    let (Some(before), Some(cpu)) = (before, &now.cpu) else { return 0.0 };
    let used = before.cpu.as_ref().map_or(0, |before| cpu.usage.saturating_sub(before.usage));
    let passed = now.at.0.saturating_sub(before.at.0);
    if passed == 0 { 0.0 } else { used as f64 / passed as f64 * 100.0 }
}

fn show(
    cx: &Cx,
    before: &BTreeMap<String, Metrics>,
    now: &BTreeMap<String, Metrics>,
    clear: bool,
) -> Result<(), Failure> {
    if cx.json {
        return now.iter().try_for_each(|(id, metrics)| {
            let percent = (cpu(before.get(id), metrics) * 100.0).round() / 100.0;
            line(&json!({ "id": id, "cpuPercent": percent, "metrics": metrics }).to_string())
        });
    }
    let mut table = Table::new(&["CONTAINER", "CPU %", "MEMORY", "LIMIT", "MEM %", "PIDS", "READ", "WRITTEN"]);
    for (id, metrics) in now {
        let none = || "-".to_owned();
        let memory = metrics.memory.as_ref();
        let limit = memory.map(|memory| memory.limit).filter(|limit| *limit != 0);
        let used = memory.map(|memory| memory.working_set);
        let part = used.zip(limit).map(|(used, limit)| format!("{:.2}%", used as f64 / limit as f64 * 100.0));
        table.row([
            id.clone(),
            format!("{:.2}%", cpu(before.get(id), metrics)),
            used.map_or_else(none, show_size),
            limit.map_or_else(none, show_size),
            part.unwrap_or_else(none),
            metrics.pids.as_ref().map_or_else(none, |pids| pids.current.to_string()),
            show_size(metrics.io.iter().map(|io| io.read).sum()),
            show_size(metrics.io.iter().map(|io| io.written).sum()),
        ]);
    }
    let text = table.text();
    line(&if clear { format!("{CLEAR}{text}") } else { text })
}

#[cfg(test)]
mod tests {
    use cofferdam_client::Cpu;
    use cofferdam_types::Timestamp;

    use super::*;

    #[test]
    fn processors_are_measured_between_two_looks() {
        let at = |at, usage| Metrics {
            at: Timestamp(at),
            cpu: Some(Cpu { usage, ..Cpu::default() }),
            memory: None,
            pids: None,
            io: vec![],
            hugetlb: vec![],
        };
        assert_eq!(cpu(Some(&at(1000, 100)), &at(2000, 600)), 50.0);
        assert_eq!(cpu(Some(&at(1000, 100)), &at(2000, 2100)), 200.0);
        // Of one that was started anew meanwhile there is nothing to compare.
        assert_eq!(cpu(Some(&at(1000, 600)), &at(2000, 100)), 0.0);
        assert_eq!((cpu(None, &at(1, 1)), cpu(Some(&at(1, 0)), &at(1, 1))), (0.0, 0.0));
    }
}
