//! The config of an image that is made of another one: what changes in it, and that everything else stays as it was.

use cofferdam_types::{Digest, Error, Instruction, Result, Timestamp};
use serde_json::{Map, Value, json};

/// What else there is to say of a new image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Story {
    /// Who made it.
    pub author: String,
    /// What for.
    pub message: String,
    /// What ran in the container.
    pub command: String,
    /// The layer that it has beside the others; `None`: nothing was changed.
    pub diff_id: Option<Digest>,
}

/// The config with the changes made, in the order in which they are.
pub(crate) fn amended(config: &[u8], changes: &[Instruction], story: &Story, now: Timestamp) -> Result<Vec<u8>> {
    let odd = || Error::data_loss("image config", "", "is not what it was when it was read first");
    let mut whole: Map<String, Value> = serde_json::from_slice(config).map_err(|_| odd())?;
    object(&mut whole, "config", |runs| {
        if changes.iter().any(|change| matches!(change, Instruction::Entrypoint(_))) {
            runs.remove("Cmd");
        }
        changes.iter().try_for_each(|change| apply(change, runs))
    })?;
    let created = now.to_rfc3339();
    let mut entry = json!({ "created": created, "created_by": story.command });
    for (key, text) in [("author", &story.author), ("comment", &story.message)] {
        if !text.is_empty() {
            entry[key] = json!(text);
        }
    }
    match &story.diff_id {
        Some(diff_id) => {
            object(&mut whole, "rootfs", |rootfs| list(rootfs, "diff_ids", |all| all.push(json!(diff_id))));
        }
        None => entry["empty_layer"] = json!(true),
    }
    list(&mut whole, "history", |all| all.push(entry));
    whole.insert("created".into(), json!(created));
    if !story.author.is_empty() {
        whole.insert("author".into(), json!(story.author));
    }
    Ok(Value::Object(whole).to_string().into_bytes())
}

/// Changes what lies under a key: an empty object, if there is none (or a null, as some write).
fn object<R>(map: &mut Map<String, Value>, key: &str, change: impl FnOnce(&mut Map<String, Value>) -> R) -> R {
    let mut inner = match map.remove(key) {
        Some(Value::Object(inner)) => inner,
        _ => Map::new(),
    };
    let result = change(&mut inner);
    map.insert(key.into(), Value::Object(inner));
    result
}

fn list(map: &mut Map<String, Value>, key: &str, change: impl FnOnce(&mut Vec<Value>)) {
    let mut inner = match map.remove(key) {
        Some(Value::Array(inner)) => inner,
        _ => Vec::new(),
    };
    change(&mut inner);
    map.insert(key.into(), Value::Array(inner));
}

/// Refuses what no image should say.
pub(crate) fn check(line: &Instruction) -> Result<()> {
    let refuse = |kind: &'static str, text: &str, why: &str| Err(Error::invalid(kind, text, why));
    let texts: Vec<&String> = match line {
        Instruction::Cmd(all) | Instruction::Entrypoint(all) => all.iter().collect(),
        Instruction::Label(key, value) => vec![key, value],
        Instruction::Env(text)
        | Instruction::WorkingDir(text)
        | Instruction::User(text)
        | Instruction::Expose(text)
        | Instruction::Volume(text)
        | Instruction::StopSignal(text) => vec![text],
    };
    if let Some(text) = texts.iter().find(|text| text.contains('\0')) {
        return refuse("config", &text.escape_default().to_string(), "holds a NUL byte");
    }
    match line {
        Instruction::Env(text) if text.split_once('=').is_none_or(|(name, _)| name.is_empty()) => {
            refuse("environment", text, "is not of the form NAME=VALUE")
        }
        Instruction::WorkingDir(text) | Instruction::Volume(text) if !text.starts_with('/') => {
            refuse("directory", text, "is not an absolute path")
        }
        Instruction::Label(key, _) if key.is_empty() => refuse("label", key, "has no key"),
        Instruction::StopSignal(text) if text.is_empty() => refuse("signal", text, "is empty: name one"),
        Instruction::Expose(text) if !is_exposed(text) => {
            refuse("port", text, "is not of the form PORT[/PROTOCOL], with tcp, udp or sctp")
        }
        _ => Ok(()),
    }
}

/// Changes what an image runs.
pub(crate) fn apply(line: &Instruction, runs: &mut Map<String, Value>) -> Result<()> {
    check(line)?;
    match line {
        Instruction::Cmd(all) => drop(runs.insert("Cmd".into(), json!(all))),
        Instruction::Entrypoint(all) => drop(runs.insert("Entrypoint".into(), json!(all))),
        Instruction::WorkingDir(text) => drop(runs.insert("WorkingDir".into(), json!(text))),
        Instruction::User(text) => drop(runs.insert("User".into(), json!(text))),
        Instruction::StopSignal(text) => drop(runs.insert("StopSignal".into(), json!(text))),
        Instruction::Label(key, value) => object(runs, "Labels", |all| drop(all.insert(key.clone(), json!(value)))),
        Instruction::Volume(text) => object(runs, "Volumes", |all| drop(all.insert(text.clone(), json!({})))),
        Instruction::Expose(text) => {
            let whole = if text.contains('/') { text.clone() } else { format!("{text}/tcp") };
            object(runs, "ExposedPorts", |all| drop(all.insert(whole, json!({}))));
        }
        Instruction::Env(text) => {
            let name = |text: &str| text.split_once('=').map_or(text, |(name, _)| name).to_owned();
            list(runs, "Env", |all| match all.iter_mut().find(|old| old.as_str().map(name) == Some(name(text))) {
                Some(old) => *old = json!(text),
                None => all.push(json!(text)),
            });
        }
    }
    Ok(())
}

fn is_exposed(text: &str) -> bool {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    matches!(protocol, "tcp" | "udp" | "sctp") && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Algorithm;

    use super::*;

    fn base() -> Vec<u8> {
        json!({
            "architecture": "amd64", "os": "linux", "created": "2020-01-01T00:00:00Z", "x-of-a-builder": [1, 2],
            "config": { "Env": ["PATH=/bin", "A=1"], "Cmd": ["sh"], "Labels": null, "Healthcheck": { "Test": ["NONE"] } },
            "rootfs": { "type": "layers", "diff_ids": ["sha256:aa"] },
            "history": [{ "created_by": "a builder" }],
        })
        .to_string()
        .into_bytes()
    }

    fn make(changes: &[Instruction], story: &Story) -> Value {
        serde_json::from_slice(&amended(&base(), changes, story, Timestamp(1_000_000_000)).unwrap()).unwrap()
    }

    #[test]
    fn the_rest_stays_and_history_says_what_was_done() {
        let diff_id = Digest::of(Algorithm::Sha256, b"tar");
        let story = Story {
            author: "ann".into(),
            message: "a note".into(),
            command: "/bin/sh".into(),
            diff_id: Some(diff_id.clone()),
        };
        let made = make(&[], &story);
        assert_eq!(made["config"]["Healthcheck"], json!({ "Test": ["NONE"] }));
        assert_eq!(made["x-of-a-builder"], json!([1, 2]));
        assert_eq!(made["rootfs"]["diff_ids"], json!(["sha256:aa", diff_id]));
        assert_eq!((&made["author"], &made["created"]), (&json!("ann"), &json!("1970-01-01T00:00:01.000000000Z")));
        let entry = json!({
            "created": "1970-01-01T00:00:01.000000000Z", "created_by": "/bin/sh", "author": "ann", "comment": "a note"
        });
        assert_eq!(made["history"], json!([{ "created_by": "a builder" }, entry]));
        let made = make(&[], &Story::default());
        assert_eq!(made["rootfs"]["diff_ids"], json!(["sha256:aa"]));
        assert_eq!(made["history"][1]["empty_layer"], json!(true));
        assert_eq!(made.get("author"), None);
    }

    #[test]
    fn each_change_is_made_in_its_place() {
        use Instruction as C;
        let text = |text: &str| text.to_owned();
        let made = make(
            &[
                C::Env(text("A=2=3")),
                C::Env(text("B=")),
                C::WorkingDir(text("/srv")),
                C::User(text("1000:10")),
                C::Label(text("k"), text("v")),
                C::Expose(text("80")),
                C::Expose(text("53/udp")),
                C::Volume(text("/data")),
                C::StopSignal(text("SIGQUIT")),
            ],
            &Story::default(),
        );
        let runs = json!({
            "Env": ["PATH=/bin", "A=2=3", "B="], "Cmd": ["sh"], "Labels": { "k": "v" },
            "Healthcheck": { "Test": ["NONE"] }, "WorkingDir": "/srv", "User": "1000:10",
            "ExposedPorts": { "80/tcp": {}, "53/udp": {} }, "Volumes": { "/data": {} }, "StopSignal": "SIGQUIT",
        });
        assert_eq!(made["config"], runs);
        // What the old entrypoint was given is nothing for the new one.
        let entry = C::Entrypoint(vec![text("/init")]);
        let made = make(std::slice::from_ref(&entry), &Story::default());
        assert_eq!((&made["config"]["Entrypoint"], made["config"].get("Cmd")), (&json!(["/init"]), None));
        let made = make(&[C::Cmd(vec![text("-v")]), entry], &Story::default());
        assert_eq!(made["config"]["Cmd"], json!(["-v"]));
    }

    #[test]
    fn what_no_image_should_say_is_refused() {
        use Instruction as C;
        let text = |text: &str| text.to_owned();
        for bad in [
            C::Env(text("=x")),
            C::Env(text("x")),
            C::WorkingDir(text("srv")),
            C::Volume(text("")),
            C::Label(text(""), text("v")),
            C::Expose(text("0")),
            C::Expose(text("80/icmp")),
            C::Expose(text("65536")),
            C::StopSignal(text("")),
            C::Cmd(vec![text("a\0b")]),
        ] {
            assert_eq!(check(&bad).unwrap_err().code, cofferdam_types::Code::InvalidArgument, "{bad:?}");
        }
    }
}
