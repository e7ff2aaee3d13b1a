//! How the shim is, for whoever looks for a fault.

use cofferdam_wire::{SHIM_VERSION, convert::set_life, shim_capnp::shim_dump};

use crate::Shared;

/// Fills in all that is known.
pub fn fill(mut dump: shim_dump::Builder<'_>, shared: &Shared) {
    dump.set_version(SHIM_VERSION);
    dump.set_pid(std::process::id());
    dump.set_started(shared.started.0);
    // The descriptor that lists them is one of them.
    let listed = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1));
    dump.set_descriptors(listed as u32);
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    dump.set_resident(kib(&rollup, "Rss:") << 10);
    dump.set_proportional(kib(&rollup, "Pss:") << 10);
    dump.set_connections(shared.connections.get() as u32);
    let containers = shared.containers.all();
    let mut list = dump.init_containers(containers.len() as u32);
    for (n, container) in containers.iter().enumerate() {
        let mut entry = list.reborrow().get(n as u32);
        entry.set_namespace(&*container.namespace);
        entry.set_id(&*container.id);
        entry.set_driver(container.driver());
        entry.set_paused(container.paused());
        let lives = container.lives();
        let mut processes = entry.init_processes(lives.len() as u32);
        for (n, life) in lives.iter().enumerate() {
            set_life(processes.reborrow().get(n as u32), life);
        }
    }
}

fn kib(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}
