//! The chain of plugins of a network: ADD in order, DEL in reverse.

use std::path::Path;

use cofferdam_types::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    Plugins, Wish,
    conf::VERSIONS,
    outcome::Outcome,
    plugin::Call,
    wish::{Port, address},
};

/// What a network's configuration says. Kept with each container that is connected, so that it is disconnected as it
/// was connected, whatever becomes of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chain {
    /// The network's name.
    pub name: String,
    /// The versions of CNI that it may be used in, the oldest first.
    pub versions: Vec<String>,
    /// The plugins, as they are configured.
    pub plugins: Vec<Map<String, Value>>,
}

/// Who is connected where.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Unlike any other that was ever connected.
    pub container: &'a str,
    /// The path of its network namespace.
    pub netns: &'a Path,
    /// The interface to be.
    pub interface: &'a str,
}

impl Chain {
    /// The types of its plugins.
    pub fn types(&self) -> Vec<&str> {
        self.plugins.iter().map(kind).collect()
    }

    fn can(&self, capability: &str) -> bool {
        let has = |plugin: &Map<String, Value>| {
            plugin.get("capabilities").and_then(|all| all.get(capability)) == Some(&Value::Bool(true))
        };
        self.plugins.iter().any(has)
    }

    /// Whether its plugins can do what is asked for.
    pub fn check(&self, wish: &Wish) -> Result<()> {
        for (wanted, capability, what) in [
            (!wish.ports.is_empty(), "portMappings", "publish ports: add the plugin portmap to it"),
            (!wish.addresses.is_empty(), "ips", "give an address that is asked for"),
            (wish.mac.is_some(), "mac", "give a hardware address that is asked for"),
        ] {
            if wanted && !self.can(capability) {
                let why = format!(
                    "can't {what} (with `\"capabilities\": {{\"{capability}\": true}}` in the configuration of a plugin \
                     that knows it)"
                );
                return Err(Error::failed_precondition("network", &self.name, why));
            }
        }
        Ok(())
    }

    /// What is asked for, as far as a plugin says that it knows it.
    fn runtime_config(plugin: &Map<String, Value>, wish: &Wish) -> Map<String, Value> {
        let ports = |ports: &[Port]| json!(ports);
        let with_prefix = |text: &String| match (text.contains('/'), address(text)) {
            (false, Some(ip)) => format!("{text}/{}", if ip.is_ipv4() { 32 } else { 128 }),
            _ => text.clone(),
        };
        let ipam = plugin.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str);
        // The one finds the prefix itself; the other would take a missing one for an error.
        let addresses: Vec<String> = match ipam {
            Some("static") => wish.addresses.iter().map(with_prefix).collect(),
            _ => wish.addresses.clone(),
        };
        let all = [
            ("portMappings", (!wish.ports.is_empty()).then(|| ports(&wish.ports))),
            ("ips", (!wish.addresses.is_empty()).then(|| json!(addresses))),
            ("mac", wish.mac.as_ref().map(|mac| json!(mac))),
        ];
        let knows = |name: &str| plugin.get("capabilities").and_then(|all| all.get(name)) == Some(&Value::Bool(true));
        all.into_iter()
            .filter(|(name, _)| knows(name))
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    }

    fn config(&self, plugin: &Map<String, Value>, version: &str, wish: &Wish, previous: Option<&Value>) -> Value {
        let mut config = plugin.clone();
        config.remove("cniVersions");
        config.insert("name".into(), json!(self.name));
        config.insert("cniVersion".into(), json!(version));
        let runtime = Chain::runtime_config(plugin, wish);
        if !runtime.is_empty() {
            config.insert("runtimeConfig".into(), Value::Object(runtime));
        }
        if let Some(previous) = previous {
            config.insert("prevResult".into(), previous.clone());
        }
        Value::Object(config)
    }

    /// The version to speak: the newest that all plugins know, where the configuration leaves a choice.
    pub fn version(&self, plugins: &Plugins) -> Result<String> {
        let mut versions = self.versions.clone();
        if versions.len() > 1 {
            for plugin in &self.plugins {
                let call = Call { command: "VERSION", container: "", netns: None, interface: "" };
                let answer =
                    plugins.call(kind(plugin), &call, &json!({ "cniVersion": VERSIONS[VERSIONS.len() - 1] }))?;
                let known = answer.get("supportedVersions").and_then(Value::as_array).cloned().unwrap_or_default();
                versions.retain(|version| known.contains(&json!(version)));
            }
        }
        versions.pop().ok_or_else(|| {
            let why = format!("may be used in CNI {}, and its plugins know none of these", self.versions.join(", "));
            Error::failed_precondition("network", &self.name, why)
        })
    }

    /// Connects. Gives the answer of the last plugin; `keep` is given those before it, each before the next plugin runs:
    /// some can't undo their work without. After an error [`Chain::del`] is due.
    pub fn add(
        &self,
        plugins: &Plugins,
        place: &Place<'_>,
        version: &str,
        wish: &Wish,
        mut keep: impl FnMut(&Value) -> Result<()>,
    ) -> Result<Value> {
        let mut previous: Option<Value> = None;
        for plugin in &self.plugins {
            if let Some(previous) = &previous {
                keep(previous)?;
            }
            let call = Call {
                command: "ADD",
                container: place.container,
                netns: Some(place.netns),
                interface: place.interface,
            };
            let config = self.config(plugin, version, wish, previous.as_ref());
            let answer = plugins.call(kind(plugin), &call, &config).map_err(|e| self.about(e))?;
            previous = Some(self.answer(plugin, version, answer, place.interface)?);
        }
        previous.ok_or_else(|| Error::failed_precondition("network", &self.name, "has no plugins"))
    }

    /// Checks an answer at once: the next plugin is not bothered with one that is none.
    fn answer(&self, plugin: &Map<String, Value>, version: &str, answer: Value, interface: &str) -> Result<Value> {
        let wrong =
            |why: String| self.about(Error::failed_precondition("plugin", kind(plugin), format!("ADD answered {why}")));
        let Value::Object(mut answer) = answer else { return Err(wrong("no object".into())) };
        match answer.get("cniVersion").and_then(Value::as_str) {
            Some(theirs) if theirs != version => {
                let theirs: String = theirs.chars().take(40).collect();
                return Err(wrong(format!("in version {theirs:?} where {version} was spoken")));
            }
            Some(_) => {}
            None => drop(answer.insert("cniVersion".into(), json!(version))),
        }
        let answer = Value::Object(answer);
        Outcome::read(&answer, interface).map_err(|e| wrong(e.message))?;
        Ok(answer)
    }

    /// Disconnects; what is not connected is fine. `answer` is the last one there was. What is left to do after an error is done by doing it again.
    pub fn del(
        &self,
        plugins: &Plugins,
        place: &Place<'_>,
        version: &str,
        wish: &Wish,
        answer: Option<&Value>,
    ) -> Result<()> {
        // Of older ones DEL is not told the result.
        let previous = answer
            .filter(|_| VERSIONS.iter().position(|v| *v == version) >= VERSIONS.iter().position(|v| *v == "0.4.0"));
        for plugin in self.plugins.iter().rev() {
            // A plugin stumbles over a file that is none.
            let netns = Some(place.netns).filter(|path| cofferdam_sys::network::is_pinned(path));
            let call = Call { command: "DEL", container: place.container, netns, interface: place.interface };
            let config = self.config(plugin, version, wish, previous);
            // In order, and not past an error: an address must not be free while a port still leads to it.
            plugins.call(kind(plugin), &call, &config).map_err(|e| self.about(e))?;
        }
        Ok(())
    }

    fn about(&self, error: Error) -> Error {
        error.context(format_args!("network {}", self.name))
    }
}

fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}
