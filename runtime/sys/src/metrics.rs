//! What a cgroup uses and has used: v1, v2, and both side by side. One set of figures for all; what the host doesn't
//! count is `None` or 0.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use cofferdam_types::{Code, Result};

use crate::cgroup::Cgroup;

/// Figures of a group and all below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Processor time.
    pub cpu: Option<Cpu>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Processes and threads.
    pub pids: Option<Pids>,
    /// Block devices that it used.
    pub io: Vec<Io>,
    /// Huge pages, by size.
    pub hugetlb: Vec<Hugetlb>,
}

/// Processor time, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// In use, the page cache included.
    pub usage: u64,
    /// The most that was.
    pub peak: u64,
    /// 0: none.
    pub limit: u64,
    /// In use but for what the kernel can drop at once.
    pub working_set: u64,
    /// How often the limit was in the way.
    pub failures: u64,
    /// Swap alone.
    pub swap: u64,
    /// Swap alone; 0: none.
    pub swap_limit: u64,
    /// How often a process was killed for want of memory.
    pub oom_kills: u64,
    /// Whether it stands still for want of memory (v1, with the killer disabled).
    pub under_oom: bool,
    /// `memory.stat`, in the kernel's own words.
    pub stat: Vec<(String, u64)>,
}

/// Processes and threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    /// How many there are.
    pub current: u64,
    /// 0: none.
    pub limit: u64,
}

/// One block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hugetlb {
    /// As the kernel names it: `2MB`.
    pub page_size: String,
    /// In use.
    pub usage: u64,
    /// The most that was; v1 alone.
    pub peak: u64,
    /// 0: none.
    pub limit: u64,
    /// How often the limit was in the way.
    pub failures: u64,
}

impl Metrics {
    /// Reads them. A file that this kernel doesn't have counts nothing; one that can't be read is an error.
    pub fn read(cgroup: &Cgroup) -> Result<Metrics> {
        let controllers = cgroup.controllers()?;
        let has = |name: &str| controllers.iter().any(|c| c == name);
        let unified = |name: &str| cgroup.unified().filter(|_| has(name));
        let part = |name: &str, v2: &str| match (cgroup.v1(name), unified(v2)) {
            (Some(dir), _) => Some(Part { cgroup, dir, v1: true }),
            (None, dir) => dir.map(|dir| Part { cgroup, dir, v1: false }),
        };
        Ok(Metrics {
            cpu: cpu(cgroup)?,
            memory: part("memory", "memory").map(|part| memory(&part)).transpose()?,
            pids: part("pids", "pids").map(|part| pids(&part)).transpose()?,
            io: part("blkio", "io").map_or(Ok(Vec::new()), |part| io(&part))?,
            hugetlb: part("hugetlb", "hugetlb").map_or(Ok(Vec::new()), |part| hugetlb(&part))?,
        })
    }
}

/// A group in one hierarchy.
struct Part<'c> {
    cgroup: &'c Cgroup,
    dir: BorrowedFd<'c>,
    v1: bool,
}

impl Part<'_> {
    fn text(&self, file: &str) -> Result<String> {
        match self.cgroup.read_at(self.dir, file) {
            Err(e) if matches!(e.code, Code::NotFound | Code::Unimplemented) => Ok(String::new()),
            other => other,
        }
    }

    fn number(&self, file: &str) -> Result<u64> {
        Ok(number(&self.text(file)?))
    }

    /// A limit; 0 for none.
    fn limit(&self, file: &str) -> Result<u64> {
        // v1 says "none" by the largest number of whole pages.
        Ok(Some(self.number(file)?).filter(|limit| *limit < NONE_V1).unwrap_or_default())
    }

    fn keys(&self, file: &str) -> Result<Vec<(String, u64)>> {
        let text = self.text(file)?;
        let pair = |line: &str| line.split_once(' ').map(|(key, value)| (key.to_owned(), number(value)));
        Ok(text.lines().filter_map(pair).collect())
    }
}

const NONE_V1: u64 = (i64::MAX as u64) - (1 << 20);
const MICRO: u64 = 1000;

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_default()
}

fn get(keys: &[(String, u64)], name: &str) -> u64 {
    keys.iter().find(|(key, _)| key == name).map_or(0, |(_, value)| *value)
}

/// v2 counts time without its controller; v1 has a controller for it, and another for the limit.
fn cpu(cgroup: &Cgroup) -> Result<Option<Cpu>> {
    let mut cpu = Cpu::default();
    let v1 = |name: &str| cgroup.v1(name).map(|dir| Part { cgroup, dir, v1: true });
    let unified = match cgroup.unified() {
        Some(dir) => (Part { cgroup, dir, v1: false }).keys("cpu.stat")?,
        None => Vec::new(),
    };
    let (acct, limit) = (v1("cpuacct"), v1("cpu"));
    if acct.is_none() && limit.is_none() && unified.is_empty() {
        return Ok(None);
    }
    if let Some(acct) = acct {
        cpu.usage = acct.number("cpuacct.usage")?;
        cpu.user = acct.number("cpuacct.usage_user")?;
        cpu.system = acct.number("cpuacct.usage_sys")?;
    } else {
        cpu.usage = get(&unified, "usage_usec") * MICRO;
        cpu.user = get(&unified, "user_usec") * MICRO;
        cpu.system = get(&unified, "system_usec") * MICRO;
    }
    if let Some(limit) = limit {
        let stat = limit.keys("cpu.stat")?;
        cpu.periods = get(&stat, "nr_periods");
        cpu.throttled_periods = get(&stat, "nr_throttled");
        cpu.throttled = get(&stat, "throttled_time");
    } else {
        cpu.periods = get(&unified, "nr_periods");
        cpu.throttled_periods = get(&unified, "nr_throttled");
        cpu.throttled = get(&unified, "throttled_usec") * MICRO;
    }
    Ok(Some(cpu))
}

fn memory(part: &Part<'_>) -> Result<Memory> {
    let stat = part.keys("memory.stat")?;
    let mut memory = if part.v1 {
        let oom = part.keys("memory.oom_control")?;
        let (usage, limit) = (part.number("memory.usage_in_bytes")?, part.limit("memory.limit_in_bytes")?);
        let (both, both_limit) =
            (part.number("memory.memsw.usage_in_bytes")?, part.limit("memory.memsw.limit_in_bytes")?);
        Memory {
            usage,
            peak: part.number("memory.max_usage_in_bytes")?,
            limit,
            working_set: usage.saturating_sub(get(&stat, "total_inactive_file")),
            failures: part.number("memory.failcnt")?,
            swap: both.saturating_sub(usage),
            swap_limit: both_limit.saturating_sub(limit),
            oom_kills: get(&oom, "oom_kill"),
            under_oom: get(&oom, "under_oom") != 0,
            stat: Vec::new(),
        }
    } else {
        let events = part.keys("memory.events")?;
        let usage = part.number("memory.current")?;
        Memory {
            usage,
            peak: part.number("memory.peak")?,
            limit: part.limit("memory.max")?,
            working_set: usage.saturating_sub(get(&stat, "inactive_file")),
            failures: get(&events, "max"),
            swap: part.number("memory.swap.current")?,
            swap_limit: part.limit("memory.swap.max")?,
            oom_kills: get(&events, "oom_kill"),
            under_oom: false,
            stat: Vec::new(),
        }
    };
    memory.stat = stat;
    Ok(memory)
}

fn pids(part: &Part<'_>) -> Result<Pids> {
    Ok(Pids { current: part.number("pids.current")?, limit: part.limit("pids.max")? })
}

fn io(part: &Part<'_>) -> Result<Vec<Io>> {
    let mut all: Vec<Io> = Vec::new();
    let mut device = |name: &str, change: &mut dyn FnMut(&mut Io)| {
        let Some((major, minor)) = name.split_once(':') else { return };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { return };
        let at = all.iter().position(|io| (io.major, io.minor) == (major, minor)).unwrap_or_else(|| {
            all.push(Io { major, minor, ..Io::default() });
            all.len() - 1
        });
        change(&mut all[at]);
    };
    if part.v1 {
        for (file, bytes) in
            [("blkio.throttle.io_service_bytes_recursive", true), ("blkio.throttle.io_serviced_recursive", false)]
        {
            for line in part.text(file)?.lines() {
                let mut words = line.split_whitespace();
                let (Some(name), Some(what), Some(value)) = (words.next(), words.next(), words.next()) else {
                    continue;
                };
                device(name, &mut |io| match (what, bytes) {
                    ("Read", true) => io.read = number(value),
                    ("Write", true) => io.written = number(value),
                    ("Read", false) => io.reads = number(value),
                    ("Write", false) => io.writes = number(value),
                    _ => {}
                });
            }
        }
    } else {
        for line in part.text("io.stat")?.lines() {
            let mut words = line.split_whitespace();
            let Some(name) = words.next() else { continue };
            device(name, &mut |io| {
                for (key, value) in words.by_ref().filter_map(|word| word.split_once('=')) {
                    match key {
                        "rbytes" => io.read = number(value),
                        "wbytes" => io.written = number(value),
                        "rios" => io.reads = number(value),
                        "wios" => io.writes = number(value),
                        _ => {}
                    }
                }
            });
        }
    }
    Ok(all)
}

fn hugetlb(part: &Part<'_>) -> Result<Vec<Hugetlb>> {
    let end = if part.v1 { ".usage_in_bytes" } else { ".current" };
    let listed = std::fs::read_dir(format!("/proc/self/fd/{}", part.dir.as_raw_fd()));
    let listed = listed
        .map_err(|e| cofferdam_types::Error::io("cgroup", part.cgroup.path(), "listing its hugetlb files", &e))?;
    let names = listed.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut sizes: Vec<String> = names
        .filter_map(|name| Some(name.strip_prefix("hugetlb.")?.strip_suffix(end)?.to_owned()))
        // `hugetlb.2MB.rsvd` is of reservations.
        .filter(|size| !size.contains('.'))
        .collect();
    sizes.sort();
    let each = |size: String| {
        let file = |what: &str| format!("hugetlb.{size}.{what}");
        Ok(if part.v1 {
            Hugetlb {
                usage: part.number(&file("usage_in_bytes"))?,
                peak: part.number(&file("max_usage_in_bytes"))?,
                limit: part.limit(&file("limit_in_bytes"))?,
                failures: part.number(&file("failcnt"))?,
                page_size: size,
            }
        } else {
            Hugetlb {
                usage: part.number(&file("current"))?,
                peak: 0,
                limit: part.limit(&file("max"))?,
                failures: get(&part.keys(&file("events"))?, "max"),
                page_size: size,
            }
        })
    };
    sizes.into_iter().map(each).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cgroup::{Hierarchy, Layout};

    fn files(dir: &Path, files: &[(&str, &str)]) {
        std::fs::create_dir_all(dir.join("g")).unwrap();
        for (file, text) in files {
            std::fs::write(dir.join("g").join(file), text).unwrap();
        }
    }

    fn hierarchy(root: &Path, controllers: &[&str]) -> Hierarchy {
        let unified = controllers.is_empty();
        Hierarchy { root: root.to_owned(), controllers: controllers.iter().map(|c| (*c).to_owned()).collect(), unified }
    }

    fn read(hierarchies: Vec<Hierarchy>) -> Metrics {
        Metrics::read(&Cgroup::open(&Layout { hierarchies }, "/g").unwrap()).unwrap()
    }

    const V1: &[(&str, &str)] = &[
        ("cpuacct.usage", "3000\n"),
        ("cpuacct.usage_user", "2000\n"),
        ("cpuacct.usage_sys", "1000\n"),
        ("cpu.stat", "nr_periods 5\nnr_throttled 2\nthrottled_time 700\n"),
        ("memory.usage_in_bytes", "5000\n"),
        ("memory.max_usage_in_bytes", "6000\n"),
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory.memsw.usage_in_bytes", "5300\n"),
        ("memory.memsw.limit_in_bytes", "9223372036854771712\n"),
        ("memory.failcnt", "3\n"),
        ("memory.stat", "cache 10\ntotal_inactive_file 1000\n"),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 1\noom_kill 4\n"),
        ("pids.current", "2\n"),
        ("pids.max", "max\n"),
        ("blkio.throttle.io_service_bytes_recursive", "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n"),
        ("blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n"),
        ("hugetlb.2MB.usage_in_bytes", "7\n"),
        ("hugetlb.2MB.rsvd.usage_in_bytes", "99\n"),
        ("hugetlb.2MB.max_usage_in_bytes", "8\n"),
        ("hugetlb.2MB.limit_in_bytes", "4096\n"),
        ("hugetlb.2MB.failcnt", "1\n"),
    ];
    const V2: &[(&str, &str)] = &[
        ("cgroup.controllers", "cpu io memory pids hugetlb\n"),
        ("cpu.stat", "usage_usec 3\nuser_usec 2\nsystem_usec 1\nnr_periods 5\nnr_throttled 2\nthrottled_usec 7\n"),
        ("memory.current", "5000\n"),
        ("memory.peak", "6000\n"),
        ("memory.max", "max\n"),
        ("memory.swap.current", "300\n"),
        ("memory.swap.max", "400\n"),
        ("memory.events", "low 0\nhigh 0\nmax 3\noom 5\noom_kill 4\n"),
        ("memory.stat", "anon 10\ninactive_file 1000\n"),
        ("pids.current", "2\n"),
        ("pids.max", "50\n"),
        ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n"),
        ("hugetlb.2MB.current", "7\n"),
        ("hugetlb.2MB.max", "max\n"),
        ("hugetlb.2MB.events", "max 1\n"),
    ];

    #[test]
    fn both_hierarchies_give_the_same_figures() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        files(&one, V1);
        files(&two, V2);
        let all = ["cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb"];
        let mut v1 = read(vec![hierarchy(&one, &all)]);
        let mut v2 = read(vec![hierarchy(&two, &[])]);

        let cpu = Cpu { usage: 3000, user: 2000, system: 1000, periods: 5, throttled_periods: 2, throttled: 700 };
        assert_eq!(v1.cpu.take().unwrap(), cpu);
        assert_eq!(v2.cpu.take().unwrap(), Cpu { throttled: 7000, ..cpu });
        let memory = v1.memory.take().unwrap();
        assert_eq!(memory.stat, [("cache".to_owned(), 10), ("total_inactive_file".to_owned(), 1000)]);
        let common = Memory {
            usage: 5000,
            peak: 6000,
            limit: 0,
            working_set: 4000,
            failures: 3,
            swap: 300,
            swap_limit: 0,
            oom_kills: 4,
            under_oom: true,
            stat: memory.stat.clone(),
        };
        assert_eq!(memory, common);
        let unified = v2.memory.take().unwrap();
        assert_eq!(unified, Memory { swap_limit: 400, under_oom: false, stat: unified.stat.clone(), ..common });
        assert_eq!(v1.pids, Some(Pids { current: 2, limit: 0 }));
        assert_eq!(v2.pids, Some(Pids { current: 2, limit: 50 }));
        assert_eq!(v1.io, [Io { major: 8, minor: 0, read: 10, written: 20, reads: 1, writes: 2 }]);
        assert_eq!(v1.io, v2.io);
        let huge = Hugetlb { page_size: "2MB".into(), usage: 7, peak: 8, limit: 4096, failures: 1 };
        assert_eq!(v1.hugetlb, std::slice::from_ref(&huge));
        assert_eq!(v2.hugetlb, [Hugetlb { peak: 0, limit: 0, ..huge }]);
    }

    #[test]
    fn of_a_hybrid_host_each_figure_comes_from_where_its_controller_is() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        files(&one, &[("memory.usage_in_bytes", "1\n")]);
        files(&two, &[("cgroup.controllers", "pids\n"), ("cpu.stat", "usage_usec 3\n"), ("pids.current", "2\n")]);
        let metrics = read(vec![hierarchy(&one, &["memory"]), hierarchy(&two, &[])]);
        assert_eq!(metrics.cpu, Some(Cpu { usage: 3000, ..Cpu::default() }));
        assert_eq!(metrics.memory, Some(Memory { usage: 1, working_set: 1, ..Memory::default() }));
        assert_eq!(metrics.pids, Some(Pids { current: 2, limit: 0 }));
        assert_eq!((metrics.io, metrics.hugetlb), (vec![], vec![]));
        // A host without any of it counts nothing.
        let bare = read(vec![hierarchy(&one, &["freezer"])]);
        assert_eq!(bare, Metrics::default());
    }
}
