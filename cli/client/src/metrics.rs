//! What a container uses, and the processes in it.

use cofferdam_types::{Result, Timestamp};
use cofferdam_wire::{
    container_capnp::process_info as process_wire,
    convert::{text, texts},
    error::malformed,
    metrics_capnp::{self as wire, metrics as metrics_wire},
};
use serde::Serialize;

/// A process of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessInfo {
    /// On the host.
    pub pid: u32,
    /// In the container's own pid namespace.
    pub inner_pid: u32,
    /// On the host; 0 where that is none of the container's.
    pub parent: u32,
    /// Whether it is the container's first process.
    pub first: bool,
    /// The exec whose first process it is; empty for others.
    pub exec: String,
    /// Who it runs as.
    pub uid: u32,
    /// Its arguments, cut off where they are long.
    pub command: Vec<String>,
    /// As ps(1) has it.
    pub state: String,
    /// When it was made.
    #[serde(serialize_with = "crate::json::time")]
    pub started: Timestamp,
    /// Processor time in nanoseconds.
    pub cpu: u64,
    /// Bytes.
    pub resident: u64,
}

/// What a container uses and has used. What the host doesn't count is `None` or 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metrics {
    /// When these figures were read.
    #[serde(serialize_with = "crate::json::time")]
    pub at: Timestamp,
    /// Processor time.
    pub cpu: Option<Cpu>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Processes and threads.
    pub pids: Option<Pids>,
    /// The block devices that it used.
    pub io: Vec<Io>,
    /// Huge pages, by size.
    pub hugetlb: Vec<Hugetlb>,
}

/// Processor time, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// All of it.
    pub usage: u64,
    /// In programs.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
    /// Periods of a limit in which it wanted to run.
    pub periods: u64,
    /// Those in which it was stopped.
    pub throttled_periods: u64,
    /// How long it stood still for that.
    pub throttled: u64,
}

/// Memory, in bytes; a limit of 0 is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// In use, the page cache included.
    pub usage: u64,
    /// The most that was.
    pub peak: u64,
    /// What it may use.
    pub limit: u64,
    /// In use but for what the kernel can drop at once.
    pub working_set: u64,
    /// How often the limit was in the way.
    pub failures: u64,
    /// Swap alone.
    pub swap: u64,
    /// Swap alone.
    pub swap_limit: u64,
    /// How often a process was killed for want of memory.
    pub oom_kills: u64,
    /// Whether it stands still for want of memory.
    pub under_oom: bool,
    /// memory.stat, in the kernel's own words.
    #[serde(serialize_with = "crate::json::map")]
    pub stat: Vec<(String, u64)>,
}

/// Processes and threads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pids {
    /// How many there are.
    pub current: u64,
    /// How many there may be; 0 is no limit.
    pub limit: u64,
}

/// One block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Io {
    /// Of the device.
    pub major: u32,
    /// Of the device.
    pub minor: u32,
    /// Bytes.
    pub read: u64,
    /// Bytes.
    pub written: u64,
    /// Requests.
    pub reads: u64,
    /// Requests.
    pub writes: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hugetlb {
    /// As the kernel names it: 2MB.
    pub page_size: String,
    /// In use.
    pub usage: u64,
    /// The most that was; cgroup v1 alone.
    pub peak: u64,
    /// 0 is no limit.
    pub limit: u64,
    /// How often the limit was in the way.
    pub failures: u64,
}

pub(crate) fn process_info(reader: process_wire::Reader<'_>) -> Result<ProcessInfo> {
    Ok(ProcessInfo {
        pid: reader.get_pid(),
        inner_pid: reader.get_inner_pid(),
        parent: reader.get_parent(),
        first: reader.get_first(),
        exec: text(reader.get_exec())?.to_owned(),
        uid: reader.get_uid(),
        command: texts(reader.get_command())?,
        state: text(reader.get_state())?.to_owned(),
        started: Timestamp(reader.get_started()),
        cpu: reader.get_cpu(),
        resident: reader.get_resident(),
    })
}

pub(crate) fn metrics(reader: metrics_wire::Reader<'_>) -> Result<Metrics> {
    let hugetlb = |huge: wire::hugetlb::Reader<'_>| {
        Ok(Hugetlb {
            page_size: text(huge.get_page_size())?.to_owned(),
            usage: huge.get_usage(),
            peak: huge.get_peak(),
            limit: huge.get_limit(),
            failures: huge.get_failures(),
        })
    };
    let io = |io: wire::io::Reader<'_>| Io {
        major: io.get_major(),
        minor: io.get_minor(),
        read: io.get_read(),
        written: io.get_written(),
        reads: io.get_reads(),
        writes: io.get_writes(),
    };
    Ok(Metrics {
        at: Timestamp(reader.get_at()),
        cpu: if reader.has_cpu() { Some(cpu(reader.get_cpu().map_err(malformed)?)) } else { None },
        memory: if reader.has_memory() { Some(memory(reader.get_memory().map_err(malformed)?)?) } else { None },
        pids: if reader.has_pids() {
            let pids = reader.get_pids().map_err(malformed)?;
            Some(Pids { current: pids.get_current(), limit: pids.get_limit() })
        } else {
            None
        },
        io: reader.get_io().map_err(malformed)?.iter().map(io).collect(),
        hugetlb: reader.get_hugetlb().map_err(malformed)?.iter().map(hugetlb).collect::<Result<_>>()?,
    })
}

fn cpu(cpu: wire::cpu::Reader<'_>) -> Cpu {
    Cpu {
        usage: cpu.get_usage(),
        user: cpu.get_user(),
        system: cpu.get_system(),
        periods: cpu.get_periods(),
        throttled_periods: cpu.get_throttled_periods(),
        throttled: cpu.get_throttled(),
    }
}

fn memory(memory: wire::memory::Reader<'_>) -> Result<Memory> {
    let stat = memory.get_stat().map_err(malformed)?;
    let stat = stat.iter().map(|stat| Ok((text(stat.get_name())?.to_owned(), stat.get_value())));
    Ok(Memory {
        usage: memory.get_usage(),
        peak: memory.get_peak(),
        limit: memory.get_limit(),
        working_set: memory.get_working_set(),
        failures: memory.get_failures(),
        swap: memory.get_swap(),
        swap_limit: memory.get_swap_limit(),
        oom_kills: memory.get_oom_kills(),
        under_oom: memory.get_under_oom(),
        stat: stat.collect::<Result<_>>()?,
    })
}
