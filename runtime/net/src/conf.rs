//! Configurations of networks: the files of a directory, each one plugin (`.conf`, `.json`) or a chain (`.conflist`).

use std::{
    fs::File,
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use cofferdam_types::{Error, Result};
use nix::libc;
use serde_json::{Map, Value};

use crate::{Chain, check_name};

/// The versions of CNI that are spoken, the oldest first.
pub(crate) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// More than any configuration takes.
const MAX_FILE: u64 = 1 << 20;
const MAX_FILES: usize = 1000;
const MAX_PLUGINS: usize = 32;

/// A network that is configured.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// The file that says so.
    pub file: PathBuf,
    /// What it says.
    pub chain: Chain,
}

/// Every network, by name. Of several of one name the first file counts, chains before single plugins. Of files that
/// can't be read as one the second list says why.
pub fn list(dir: &Path) -> Result<(Vec<Network>, Vec<Error>)> {
    let mut found: Vec<Network> = Vec::new();
    let mut errors = Vec::new();
    for file in files(dir)? {
        match read(&file) {
            Ok(chain) if found.iter().any(|other| other.chain.name == chain.name) => {}
            Ok(chain) => found.push(Network { file, chain }),
            Err(error) => errors.push(error),
        }
    }
    found.sort_by(|a, b| a.chain.name.cmp(&b.chain.name));
    Ok((found, errors))
}

/// The network of that name.
pub fn find(dir: &Path, name: &str) -> Result<Network> {
    check_name("network", name)?;
    let (found, errors) = list(dir)?;
    if let Some(network) = found.into_iter().find(|network| network.chain.name == name) {
        return Ok(network);
    }
    let bad: Vec<String> = errors.iter().map(|error| format!("{} {}", error.id, error.message)).collect();
    let bad =
        if bad.is_empty() { String::new() } else { format!("; of these no network could be read: {}", bad.join("; ")) };
    let why = format!("is not configured: put a file for it into {}{bad}", dir.display());
    Err(Error::not_found("network", name, why))
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| Error::io("directory", dir.display(), "can't be listed", &e))?,
    };
    let kind = |path: &Path| match path.extension()?.to_str()? {
        "conflist" => Some(0),
        "conf" | "json" => Some(1),
        _ => None,
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<(u8, PathBuf)> = paths.filter_map(|path| Some((kind(&path)?, path))).take(MAX_FILES).collect();
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

fn read(path: &Path) -> Result<Chain> {
    let io = |e: std::io::Error| Error::io("file", path.display(), "can't be read", &e);
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(io)?;
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(io)?;
    let wrong = |why: String| Error::failed_precondition("file", path.display(), why);
    if text.len() as u64 > MAX_FILE {
        return Err(wrong(format!("has more than {MAX_FILE} bytes: it is no configuration of a network")));
    }
    let document = serde_json::from_slice(&text).map_err(|e| wrong(format!("is not JSON: {e}")))?;
    let is_list = path.extension().is_some_and(|extension| extension == "conflist");
    parse(document, is_list).map_err(|e| wrong(e.message))
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    map.get(key).and_then(Value::as_str)
}

/// Reads what a file holds. Errors say what is wrong in it.
pub(crate) fn parse(document: Value, is_list: bool) -> Result<Chain> {
    let wrong = |why: String| Error::failed_precondition("network", "", why);
    let Value::Object(mut top) = document else { return Err(wrong("is no object".into())) };
    let name = text(&top, "name").ok_or_else(|| wrong("has no `name`".into()))?.to_owned();
    check_name("network", &name).map_err(|e| wrong(format!("has the name {}, which {}", e.id, e.message)))?;
    let versions = versions(&top)?;
    let plugins = if is_list {
        match top.remove("plugins") {
            Some(Value::Array(plugins)) => plugins,
            _ => return Err(wrong("has no list `plugins`: that is what a .conflist is for".into())),
        }
    } else {
        vec![Value::Object(top)]
    };
    if plugins.is_empty() || plugins.len() > MAX_PLUGINS {
        return Err(wrong(format!("has {} plugins: give 1 to {MAX_PLUGINS}", plugins.len())));
    }
    let mut checked = Vec::new();
    for plugin in plugins {
        let Value::Object(plugin) = plugin else { return Err(wrong("has a plugin that is no object".into())) };
        let kind = text(&plugin, "type").ok_or_else(|| wrong("has a plugin without a `type`".into()))?;
        // F2: the type becomes part of a path, of ours as of a plugin that calls another.
        let ipam = plugin.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str);
        for kind in [Some(kind), ipam.filter(|kind| !kind.is_empty())].into_iter().flatten() {
            check_name("plugin", kind).map_err(|e| wrong(format!("has the plugin {}, which {}", e.id, e.message)))?;
        }
        checked.push(plugin);
    }
    Ok(Chain { name, versions, plugins: checked })
}

/// The versions that a configuration may be used in, the oldest first: `cniVersions`, or `cniVersion` alone.
fn versions(top: &Map<String, Value>) -> Result<Vec<String>> {
    let wrong = |why: String| Error::failed_precondition("network", "", why);
    // Absent, it is the first one.
    let one = text(top, "cniVersion").filter(|version| !version.is_empty()).unwrap_or(VERSIONS[0]);
    let mut named = vec![one];
    match top.get("cniVersions") {
        None => {}
        Some(Value::Array(list)) => named.extend(list.iter().filter_map(Value::as_str)),
        Some(_) => return Err(wrong("has a `cniVersions` that is no list".into())),
    }
    let ours = VERSIONS.iter().filter(|version| named.contains(version)).map(|version| (*version).to_owned());
    let ours: Vec<String> = ours.collect();
    if ours.is_empty() {
        let shown: String = named.join(", ").chars().take(100).collect();
        return Err(wrong(format!("is for CNI {}: {} are spoken here", shown.escape_default(), VERSIONS.join(", "))));
    }
    Ok(ours)
}
