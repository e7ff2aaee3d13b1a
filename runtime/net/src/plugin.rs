//! One invocation of a plugin.

use std::{
    ffi::OsString,
    fs::File,
    io::{Seek as _, Write as _},
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use cofferdam_sys::program::{self, Streams};
use cofferdam_types::{Error, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::Deserialize;
use serde_json::Value;

use crate::check_name;

/// The most that a plugin may answer.
const MAX_ANSWER: usize = 1 << 20;

/// Where plugins lie, and how long each may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugins {
    /// Looked through in this order.
    pub dirs: Vec<PathBuf>,
    /// Of one invocation.
    pub deadline: Duration,
}

/// What an invocation is told beside the configuration.
pub(crate) struct Call<'a> {
    pub command: &'a str,
    pub container: &'a str,
    pub netns: Option<&'a Path>,
    pub interface: &'a str,
}

/// What a plugin that failed answers.
#[derive(Deserialize)]
struct Failure {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// The codes of CNI that mean something to us.
const INCOMPATIBLE: u32 = 1;
const TRY_AGAIN: u32 = 11;

impl Plugins {
    fn find(&self, kind: &str) -> Result<PathBuf> {
        check_name("plugin", kind)?;
        let is_program = |path: &Path| {
            std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        let mut paths = self.dirs.iter().map(|dir| dir.join(kind));
        paths.find(|path| is_program(path)).ok_or_else(|| {
            let dirs: Vec<String> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
            let why = format!("is not installed: it is looked for in {}", dirs.join(" and "));
            Error::failed_precondition("plugin", kind, why)
        })
    }

    /// Runs a plugin with `config` as its input, and gives what it answers; null where it says nothing.
    pub(crate) fn call(&self, kind: &str, call: &Call<'_>, config: &Value) -> Result<Value> {
        let binary = self.find(kind)?;
        let what = call.command;
        let io = |e: std::io::Error| Error::io("plugin", kind, format!("{what} can't be run"), &e);
        let mut command = program::command(&binary);
        command
            .current_dir("/")
            .env("CNI_COMMAND", what)
            .env("CNI_CONTAINERID", call.container)
            .env("CNI_NETNS", call.netns.map(Path::as_os_str).unwrap_or_default())
            .env("CNI_IFNAME", call.interface)
            .env("CNI_ARGS", "IgnoreUnknown=1")
            .env("CNI_PATH", self.path());
        let streams = Streams::Apart(input(config).map_err(io)?, MAX_ANSWER);
        let Some(ended) = program::run(command, streams, self.deadline).map_err(io)? else {
            let why = format!("{what} took longer than {:?} and was killed", self.deadline);
            return Err(Error::deadline_exceeded("plugin", kind, why));
        };
        if !ended.status.success() {
            return Err(failed(kind, what, &ended));
        }
        if ended.cut {
            let why = format!("{what} answered more than {MAX_ANSWER} bytes");
            return Err(Error::failed_precondition("plugin", kind, why));
        }
        if ended.output.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&ended.output).map_err(|e| {
            let why = format!("{what} answered what is not JSON ({e}): {}", shown(&ended.output));
            Error::failed_precondition("plugin", kind, why)
        })
    }

    fn path(&self) -> OsString {
        std::env::join_paths(&self.dirs).unwrap_or_default()
    }
}

/// The configuration as a file that is nowhere.
fn input(config: &Value) -> std::io::Result<File> {
    let memory: OwnedFd = memfd_create(c"cni", MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(&serde_json::to_vec(config)?)?;
    file.rewind()?;
    Ok(file)
}

fn failed(kind: &str, what: &str, ended: &program::Ended) -> Error {
    let failure = serde_json::from_slice::<Failure>(&ended.output).ok().filter(|f| f.code != 0 || !f.msg.is_empty());
    let Some(Failure { code, msg, details }) = failure else {
        // What a panic writes comes last.
        let said = if ended.errors.is_empty() { &ended.output } else { &ended.errors };
        let why = format!("{what} failed ({}): {}", ended.status, shown(said));
        return Error::failed_precondition("plugin", kind, why);
    };
    let details = if details.is_empty() || msg.contains(&details) { String::new() } else { format!("; {details}") };
    let why = format!("{what} failed: {}", shown(format!("{msg}{details}").as_bytes()));
    match code {
        TRY_AGAIN => Error::unavailable("plugin", kind, why),
        INCOMPATIBLE => {
            let advice = "; set `cniVersion` in the network's configuration to one that the plugin knows";
            Error::failed_precondition("plugin", kind, why + advice)
        }
        _ => Error::failed_precondition("plugin", kind, why),
    }
}

/// What a foreign program wrote, fit for an error.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(1024).collect()
}
