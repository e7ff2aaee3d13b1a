//! The class of service by which the processor shares its cache and memory bandwidth out (resctrl; runtime-spec, Linux,
//! "IntelRdt"). As with runc a class that the spec names stays, since it is somebody else's as well, and the container's
//! own goes with it.

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use cofferdam_sys::mountinfo;
use cofferdam_types::{Error, Id, Result};
use oci_spec::runtime::LinuxIntelRdt;

/// What resctrl has beside classes.
const TAKEN: [&str; 3] = ["info", "mon_groups", "mon_data"];

fn invalid(why: &str) -> Error {
    Error::invalid("spec", "linux.intelRdt", why)
}

fn io(what: &str, e: &std::io::Error) -> Error {
    Error::io("spec", "linux.intelRdt", what, e)
}

/// Where the host has resctrl.
pub(super) fn root() -> Result<PathBuf> {
    let mounts = mountinfo::read().map_err(|e| io("reading the mount table", &e))?;
    mounts.into_iter().find(|mount| mount.kind == "resctrl").map(|mount| mount.point).ok_or_else(|| {
        let why = "no resctrl is mounted here (mount -t resctrl resctrl /sys/fs/resctrl), or the processor has no such \
                   thing: leave it out";
        Error::unimplemented("spec", "linux.intelRdt", why)
    })
}

/// Whether it is one that can be made, where the host has it.
pub(super) fn check(rdt: &LinuxIntelRdt) -> Result<()> {
    if let Some(name) = rdt.clos_id()
        && (matches!(&**name, "" | "." | "..") || name.contains(['/', '\0', '\n']) || TAKEN.contains(&&**name))
    {
        return Err(invalid("closID is not the name of a class: it is one part of a path"));
    }
    let whole = !rdt.schemata().iter().flatten().collect::<Vec<_>>().is_empty();
    if whole && (rdt.l3_cache_schema().is_some() || rdt.mem_bw_schema().is_some()) {
        return Err(invalid("schemata holds all: leave l3CacheSchema and memBwSchema out"));
    }
    if lines(rdt).iter().any(|line| !line.contains(':') || line.contains('\0')) {
        return Err(invalid("a line of a schema is like L3:0=ff;1=c0"));
    }
    Ok(())
}

/// The lines for a class's `schemata`.
fn lines(rdt: &LinuxIntelRdt) -> Vec<String> {
    let split = |text: &String| text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>();
    let mut all: Vec<String> = rdt.schemata().iter().flatten().flat_map(split).collect();
    let bandwidth = rdt.mem_bw_schema().iter().flat_map(split).collect::<Vec<_>>();
    let cache = rdt.l3_cache_schema().iter().flat_map(split);
    // Of two schemas for the bandwidth the one in its own field counts.
    all.extend(cache.filter(|line| bandwidth.is_empty() || !line.starts_with("MB:")));
    all.extend(bandwidth);
    all.retain(|line| !line.is_empty());
    all
}

/// A class, with a container in it.
#[derive(Debug)]
pub(super) struct Class {
    dir: PathBuf,
    /// Whether it is the container's own.
    own: bool,
    /// A group that counts what the container alone uses.
    monitor: Option<PathBuf>,
}

impl Class {
    /// Makes or finds it below resctrl's root. On an error nothing is left.
    pub fn new(root: &Path, rdt: &LinuxIntelRdt, id: &Id) -> Result<Class> {
        let counts = [rdt.enable_cmt(), rdt.enable_mbm(), rdt.enable_monitoring()].iter().any(|on| **on == Some(true));
        if counts && !root.join("info/L3_MON").is_dir() {
            let why = "this processor or kernel doesn't count cache and memory traffic: leave the monitoring out";
            return Err(Error::unimplemented("spec", "linux.intelRdt", why));
        }
        let named = rdt.clos_id().as_deref();
        let dir = root.join(named.unwrap_or(id));
        let mut class = Class { dir, own: named.is_none(), monitor: None };
        let lines = lines(rdt);
        match named {
            Some(name) if class.dir.is_dir() => agrees(&class.dir, name, &lines)?,
            Some(name) if lines.is_empty() => {
                let why = format!("there is no class {name}: make it first, or say what is to be its schema");
                return Err(Error::not_found("spec", "linux.intelRdt", why));
            }
            _ => {
                make(&class.dir)?;
                set(root, &class.dir, &lines).inspect_err(|_| drop(fs::remove_dir(&class.dir)))?;
            }
        }
        if *rdt.enable_monitoring() == Some(true) {
            let group = class.dir.join("mon_groups").join(&**id);
            make(&group).inspect_err(|_| class.remove())?;
            class.monitor = Some(group);
        }
        Ok(class)
    }

    /// Puts a process in; those that it makes are there too.
    pub fn add(&self, pid: i32) -> Result<()> {
        // The class first: a group of it takes only what is in it.
        [Some(&self.dir), self.monitor.as_ref()].into_iter().flatten().try_for_each(|dir| {
            let file = fs::OpenOptions::new().write(true).open(dir.join("tasks"));
            file.and_then(|mut file| file.write_all(pid.to_string().as_bytes()))
                .map_err(|e| io("joining the class", &e))
        })
    }

    /// Removes what is the container's own. Its processes are gone, or are nobody's class then.
    pub fn remove(&self) {
        let own = self.own.then_some(&self.dir);
        for dir in self.monitor.as_ref().into_iter().chain(own) {
            if let Err(error) = fs::remove_dir(dir)
                && error.kind() != ErrorKind::NotFound
            {
                tracing::warn!(%error, class = %dir.display(), "a class of service is left behind");
            }
        }
    }
}

/// Makes a class or a group, in place of one that a dead container of that name left.
fn make(dir: &Path) -> Result<()> {
    let made = match fs::create_dir(dir) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            if fs::read_to_string(dir.join("tasks")).map_err(|e| io("looking into a class", &e))?.trim().is_empty() {
                fs::remove_dir(dir).and_then(|()| fs::create_dir(dir))
            } else {
                let why = format!("the class {} is there and in use: name another closID", dir.display());
                return Err(Error::already_exists("spec", "linux.intelRdt", why));
            }
        }
        made => made,
    };
    made.map_err(|e| match e.raw_os_error() {
        Some(libc::ENOSPC) => {
            let why = "the processor has no more classes or counters: remove one, or share one by its closID";
            Error::resource_exhausted("spec", "linux.intelRdt", why)
        }
        _ => io("making a class", &e),
    })
}

/// Writes a class's schemata.
fn set(root: &Path, class: &Path, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let file = fs::OpenOptions::new().write(true).open(class.join("schemata"));
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|e| {
        // The kernel has a sentence for it.
        let said = fs::read_to_string(root.join("info/last_cmd_status")).unwrap_or_default();
        let what = format!("writing the schema: {}", said.trim());
        if e.raw_os_error() == Some(libc::EINVAL) { invalid(&what) } else { io(&what, &e) }
    })
}

/// Whether a class that is there already has these lines.
fn agrees(class: &Path, name: &str, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let there = fs::read_to_string(class.join("schemata")).map_err(|e| io("reading a class's schemata", &e))?;
    let there: BTreeMap<_, _> = there.lines().filter_map(parts).collect();
    for line in lines {
        let Some((kind, wanted)) = parts(line) else { continue };
        let has = there.get(kind);
        if !wanted.iter().all(|(domain, value)| has.and_then(|has| has.get(domain)) == Some(value)) {
            let why = format!("the class {name} is there already, and its schema for {kind} is another one");
            return Err(Error::failed_precondition("spec", "linux.intelRdt", why));
        }
    }
    Ok(())
}

/// `L3:0=00ff;1=c0` by domain, without the zeros that the kernel puts before a mask.
fn parts(line: &str) -> Option<(&str, BTreeMap<&str, &str>)> {
    let (kind, values) = line.trim().split_once(':')?;
    let values = values.split(';').filter_map(|part| part.split_once('='));
    let plain = |value: &'_ str| value.trim().len() - value.trim().trim_start_matches('0').len().max(1);
    Some((kind.trim(), values.map(|(domain, value)| (domain.trim(), &value.trim()[plain(value)..])).collect()))
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Code;
    use serde_json::{Value, json};

    use super::*;

    fn rdt(value: Value) -> LinuxIntelRdt {
        serde_json::from_value(value).unwrap()
    }

    fn id() -> Id {
        Id::new("rdt-test").unwrap()
    }

    /// A class that is there, with plain files for the kernel's.
    fn with_class(schemata: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("gold")).unwrap();
        fs::write(root.path().join("gold/schemata"), schemata).unwrap();
        fs::write(root.path().join("gold/tasks"), "").unwrap();
        root
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [
            json!({"closID": "a/b"}),
            json!({"closID": ".."}),
            json!({"closID": "info"}),
            json!({"schemata": ["L3:0=f"], "memBwSchema": "MB:0=10"}),
            json!({"l3CacheSchema": "0=f"}),
        ] {
            assert_eq!(check(&rdt(bad.clone())).unwrap_err().code, Code::InvalidArgument, "{bad}");
        }
        check(&rdt(json!({"closID": "gold", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=10"}))).unwrap();
    }

    #[test]
    fn the_field_of_the_bandwidth_counts() {
        let both = rdt(json!({"l3CacheSchema": "L3:0=f\nMB:0=90", "memBwSchema": "MB:0=10"}));
        assert_eq!(lines(&both), ["L3:0=f", "MB:0=10"]);
        assert_eq!(lines(&rdt(json!({"l3CacheSchema": "L3:0=f\nMB:0=90"}))), ["L3:0=f", "MB:0=90"]);
        assert_eq!(lines(&rdt(json!({"schemata": ["L3:0=f", "MB:0=10"]}))), ["L3:0=f", "MB:0=10"]);
    }

    #[test]
    fn a_named_class_must_be_what_is_asked_for_and_stays() {
        let root = with_class("    MB:0=  10;1=100\n    L3:0=00ff;1=000c0\n");
        let new = |value| Class::new(root.path(), &rdt(value), &id());
        let class = new(json!({"closID": "gold", "l3CacheSchema": "L3:0=ff;1=c0", "memBwSchema": "MB:0=10"})).unwrap();
        class.add(4711).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("gold/tasks")).unwrap(), "4711");
        class.remove();
        assert!(root.path().join("gold").is_dir());
        new(json!({"closID": "gold"})).unwrap();
        let other = new(json!({"closID": "gold", "schemata": ["L3:0=f"]})).unwrap_err();
        assert_eq!(other.code, Code::FailedPrecondition);
        assert_eq!(new(json!({"closID": "none"})).unwrap_err().code, Code::NotFound);
        let counted = new(json!({"closID": "gold", "enableMonitoring": true})).unwrap_err();
        assert_eq!(counted.code, Code::Unimplemented);
    }

    #[test]
    fn a_schema_is_written_line_by_line() {
        let root = with_class("");
        set(root.path(), &root.path().join("gold"), &["L3:0=f".to_owned(), "MB:0=10".to_owned()]).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("gold/schemata")).unwrap(), "L3:0=f\nMB:0=10\n");
    }

    /// A cgroup hierarchy is such a file system too: a directory has its `tasks`, and goes with them.
    #[test]
    fn a_class_of_ones_own_is_made_joined_and_goes() {
        let layout = cofferdam_sys::cgroup::Layout::detect().unwrap();
        let Some(v1) = layout.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c.starts_with("name="))) else {
            // Without v1 nothing here makes a `tasks` by itself.
            return;
        };
        let root = &v1.root;
        let id = Id::new(format!("rdt-test-{}", std::process::id())).unwrap();
        let class = Class::new(root, &rdt(json!({})), &id).unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        class.add(child.id() as i32).unwrap();
        let used = Class::new(root, &rdt(json!({})), &id).unwrap_err();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(used.code, Code::AlreadyExists);
        // What a container of that name left is taken away first.
        let again = Class::new(root, &rdt(json!({})), &id).unwrap();
        again.remove();
        assert!(!root.join(&*id).exists());
        again.remove();
    }
}
