//! `update`: change the limits of containers.

use std::io::Read as _;

use serde_json::{Map, Value, json};

use crate::{
    args::{Args, Command, Positional, Times, value},
    cx::Cx,
    failure::Failure,
    nouns::container::each,
    units::{cpus, number, size},
};

/// What a file of resources may hold.
const LIMIT: u64 = 64 << 10;
const PERIOD: u64 = 100_000;

/// `coffer update`.
pub static UPDATE: Command = Command {
    path: &["update"],
    about: "change the limits of containers, running or not",
    positionals: &[Positional { name: "CONTAINER", times: Times::Many }],
    flags: &[
        value("memory", Some('m'), "SIZE", "limit of memory, such as 512m; 0 for none"),
        value("memory-swap", None, "SIZE", "limit of memory and swap together; 0 for none"),
        value("memory-reservation", None, "SIZE", "what it is to keep when memory is short; 0 for all of it"),
        value("cpus", None, "NUMBER", "limit of processors, such as 1.5; 0 for none"),
        value("cpu-shares", None, "NUMBER", "its share against others; 1024 is the usual one"),
        value("cpuset-cpus", None, "LIST", "processors that it may run on, such as 0-1,3"),
        value("cpuset-mems", None, "LIST", "memory nodes that it may use"),
        value("pids-limit", None, "NUMBER", "limit of processes; 0 for none"),
        value("resources", None, "FILE", "linux.resources of the OCI runtime spec, as JSON; - is standard input"),
    ],
    notes: "What isn't named stays as it is. Limits are kept with the container, and hold when it is started again.",
    failure: 1,
    action: |cx| Box::pin(update(cx)),
};

async fn update(cx: Cx) -> Result<i32, Failure> {
    let resources = resources(&cx.args)?;
    let resources = serde_json::to_vec(&resources).map_err(|e| Failure::usage(e.to_string()))?;
    let containers = cx.namespace().await?.containers();
    each(&cx, async |id| Ok(containers.get(id).update_resources(&resources).await?)).await
}

/// The flags, over the file.
fn resources(args: &Args) -> Result<Value, Failure> {
    let mut all = match args.value("resources") {
        Some(path) => file(path)?,
        None => Map::new(),
    };
    let mut set = |group: &str, field: &str, value: Option<Value>| {
        if let Some(value) = value {
            let place = all.entry(group).or_insert_with(|| json!({}));
            place[field] = value;
        }
    };
    // 0 is no limit to a person, -1 to the spec.
    let limit = |n: u64| if n == 0 { json!(-1) } else { json!(n) };
    set("memory", "limit", args.read("memory", size)?.map(limit));
    set("memory", "swap", args.read("memory-swap", size)?.map(limit));
    set("memory", "reservation", args.read("memory-reservation", size)?.map(limit));
    if let Some(nano) = args.read("cpus", cpus)? {
        let quota = nano / (1_000_000_000 / PERIOD);
        set("cpu", "quota", Some(limit(quota)));
        set("cpu", "period", Some(json!(PERIOD)));
    }
    set("cpu", "shares", args.read("cpu-shares", number)?.map(|n| json!(n)));
    set("cpu", "cpus", args.value("cpuset-cpus").map(|list| json!(list)));
    set("cpu", "mems", args.value("cpuset-mems").map(|list| json!(list)));
    set("pids", "limit", args.read("pids-limit", number)?.map(limit));
    if all.is_empty() {
        return Err(Failure::usage("update: nothing is to be changed (\"coffer update --help\" says what can be)"));
    }
    Ok(Value::Object(all))
}

fn file(path: &str) -> Result<Map<String, Value>, Failure> {
    let mut text = String::new();
    let read = match path {
        "-" => std::io::stdin().take(LIMIT).read_to_string(&mut text),
        path => std::fs::File::open(path).and_then(|file| file.take(LIMIT).read_to_string(&mut text)),
    };
    read.map_err(|e| Failure::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Failure::usage(format!("--resources {path:?}: is not a JSON object: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands;

    fn read(flags: &[&str]) -> Result<Value, Failure> {
        let words = [&["update"], flags, &["box"]].concat();
        resources(&commands::parse(words.iter().map(|word| (*word).to_owned()).collect()).ok().unwrap())
    }

    #[test]
    fn flags_become_resources() {
        let all =
            read(&["-m", "64m", "--memory-swap", "0", "--cpus", "1.5", "--pids-limit", "7", "--cpuset-cpus", "0"]);
        let expected = json!({
            "memory": {"limit": 64 << 20, "swap": -1},
            "cpu": {"quota": 150_000, "period": 100_000, "cpus": "0"},
            "pids": {"limit": 7},
        });
        assert_eq!(all.ok().unwrap(), expected);
        assert_eq!(read(&["--cpus", "0"]).ok().unwrap()["cpu"]["quota"], -1);
        assert!(read(&[]).err().unwrap().text.contains("nothing is to be changed"));
        assert!(read(&["-m", "lots"]).err().unwrap().text.contains("--memory"));
    }
}
