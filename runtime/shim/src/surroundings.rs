//! What the shim itself is to the host: its cgroup, and how likely the kernel is to kill it.

use std::io::Write as _;

use cofferdam_oci::RuntimeOptions;
use cofferdam_sys::{
    cgroup::{Cgroup, Layout},
    fd::open_proc_write,
};
use cofferdam_types::{Error, Result};

const SCORE: &str = "/proc/self/oom_score_adj";
/// A shim that is killed takes its container with it, and has little memory to give back.
const PROTECTED: i32 = -999;

/// Makes the shim one of the last to be killed for want of memory. Gives the score that it had before, which is what
/// containers start with; `None` where there is none to be read.
pub fn protect() -> Option<i32> {
    let before = std::fs::read_to_string(SCORE).ok()?.trim().parse().ok()?;
    // Without CAP_SYS_RESOURCE there is no way down, and the shim stays as the daemon is.
    let _ = set(PROTECTED);
    Some(before)
}

fn set(score: i32) -> std::io::Result<()> {
    open_proc_write(SCORE.as_ref())?.write_all(score.to_string().as_bytes())
}

/// Puts the shim where a container's options want it.
pub fn apply(options: &RuntimeOptions) -> Result<()> {
    if let Some(score) = options.shim_oom_score_adj {
        set(score).map_err(|e| {
            let what = format!("setting it to {score} (lowering it takes CAP_SYS_RESOURCE)");
            Error::io("runtime options", "shimOomScoreAdj", what, &e)
        })?;
    }
    if let Some(path) = &options.shim_cgroup {
        let cgroup = Cgroup::open(&Layout::detect()?, path).map_err(|mut e| {
            e.message.push_str(": make the shim's cgroup first");
            e
        })?;
        cgroup.add(std::process::id() as i32).map_err(|e| e.context("moving the shim into its cgroup"))?;
    }
    Ok(())
}
