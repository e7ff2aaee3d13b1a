//! Figures and processes, as the schema has them (metrics.capnp, `ProcessInfo` of container.capnp).

use cofferdam_sys::metrics::Metrics;
use cofferdam_tasks::ProcessEntry;
use cofferdam_types::Timestamp;
use cofferdam_wire::{container_capnp::process_info, convert::set_texts, metrics_capnp::metrics};

/// Fills figures that were read just now.
pub fn set_metrics(mut builder: metrics::Builder<'_>, read: &Metrics) {
    builder.set_at(Timestamp::now().0);
    if let Some(cpu) = &read.cpu {
        let mut to = builder.reborrow().init_cpu();
        to.set_usage(cpu.usage);
        to.set_user(cpu.user);
        to.set_system(cpu.system);
        to.set_periods(cpu.periods);
        to.set_throttled_periods(cpu.throttled_periods);
        to.set_throttled(cpu.throttled);
    }
    if let Some(memory) = &read.memory {
        let mut to = builder.reborrow().init_memory();
        to.set_usage(memory.usage);
        to.set_peak(memory.peak);
        to.set_limit(memory.limit);
        to.set_working_set(memory.working_set);
        to.set_failures(memory.failures);
        to.set_swap(memory.swap);
        to.set_swap_limit(memory.swap_limit);
        to.set_oom_kills(memory.oom_kills);
        to.set_under_oom(memory.under_oom);
        let mut list = to.init_stat(memory.stat.len() as u32);
        for (n, (name, value)) in memory.stat.iter().enumerate() {
            let mut stat = list.reborrow().get(n as u32);
            stat.set_name(name);
            stat.set_value(*value);
        }
    }
    if let Some(pids) = &read.pids {
        let mut to = builder.reborrow().init_pids();
        to.set_current(pids.current);
        to.set_limit(pids.limit);
    }
    let mut list = builder.reborrow().init_io(read.io.len() as u32);
    for (n, io) in read.io.iter().enumerate() {
        let mut to = list.reborrow().get(n as u32);
        to.set_major(io.major);
        to.set_minor(io.minor);
        to.set_read(io.read);
        to.set_written(io.written);
        to.set_reads(io.reads);
        to.set_writes(io.writes);
    }
    let mut list = builder.init_hugetlb(read.hugetlb.len() as u32);
    for (n, huge) in read.hugetlb.iter().enumerate() {
        let mut to = list.reborrow().get(n as u32);
        to.set_page_size(&huge.page_size);
        to.set_usage(huge.usage);
        to.set_peak(huge.peak);
        to.set_limit(huge.limit);
        to.set_failures(huge.failures);
    }
}

/// Fills one process.
pub fn set_process(mut builder: process_info::Builder<'_>, entry: &ProcessEntry) {
    let process = &entry.process;
    builder.set_pid(process.pid as u32);
    builder.set_inner_pid(process.inner_pid as u32);
    builder.set_parent(process.parent as u32);
    builder.set_first(entry.first);
    builder.set_exec(&entry.exec);
    builder.set_uid(process.uid);
    set_texts(builder.reborrow().init_command(process.command.len() as u32), &process.command);
    builder.set_state(&*process.state.encode_utf8(&mut [0; 4]));
    builder.set_started(process.started.0);
    builder.set_cpu(process.cpu);
    builder.set_resident(process.resident);
}
