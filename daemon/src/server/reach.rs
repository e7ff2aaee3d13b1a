//! What a grant lets through: which methods, of which objects.
//!
//! A facet is a list of methods that are allowed; everything else is not, whatever comes to be. Methods that need nothing
//! are always allowed: they lead to objects of which no method may be called, or feed what an allowed method has begun.

use std::sync::{Arc, LazyLock};

use cofferdam_types::{Caveats, Ceiling, Error, Facet, Result, Right, Rights};
use cofferdam_wire::needs::{METHODS, Method, needs};

/// Names of methods, as `Interface.method`, in parts that more than one list has.
type Names = &'static [&'static [&'static str]];

const FIND: &[&str] = &["Containers.get", "Containers.list", "ContainerCursor.next"];

const PROCESS: &[&str] = &[
    "Process.start",
    "Process.wait",
    "Process.state",
    "Process.kill",
    "Process.resize",
    "Process.closeStdin",
    "Process.attach",
    "Process.stdin",
    "Process.delete",
];

/// What is done to containers and to what runs in them. Who chooses containers has these too: what comes to be here looks at what the
/// grant chooses.
const CONTAINERS: &[&str] = &[
    "Containers.create",
    "Container.info",
    "Container.createTask",
    "Container.task",
    "Container.remove",
    "Container.removed",
    "Container.logs",
    "Container.updateResources",
    "Container.update",
    "Container.rename",
    "Container.copyOut",
    "Container.copyIn",
    "Container.changes",
    "ChangeCursor.next",
    "Task.start",
    "Task.wait",
    "Task.state",
    "Task.kill",
    "Task.resize",
    "Task.closeStdin",
    "Task.attach",
    "Task.stdin",
    "Task.delete",
    "Task.exec",
    "Task.process",
    "Task.pause",
    "Task.resume",
    "Task.pids",
    "Task.update",
    "Task.metrics",
    "Task.processes",
    "Networks.list",
    "Networks.get",
    "NetworkCursor.next",
];

const IMAGES: &[&str] = &["Images.get", "Images.list", "ImageCursor.next", "Image.info", "Image.detail"];

const FETCH: &[&str] = &["Images.pull", "Images.fetch", "Images.explainRoute", "Image.unpack", "Image.startUnpack"];

const EXPORT: &[&str] = &["Image.export", "Image.exportFd", "Images.export", "Images.exportFd"];

const JOB: &[&str] = &["Job.info", "Job.watch", "Job.wait"];

/// The methods of a facet.
const fn facet(facet: Facet) -> Names {
    match facet {
        // All that the right to read allows.
        Facet::Observer => &[],
        Facet::Logs => &[FIND, &["Container.logs"]],
        Facet::Exec => &[FIND, &["Container.task", "Task.exec", "Task.process", "Task.state"], PROCESS],
        Facet::Kill => &[FIND, &["Container.task", "Task.kill", "Task.state", "Task.wait"]],
        Facet::Events => &[&["Events.subscribe", "Events.last", "EventCursor.next"]],
        Facet::Metrics => &[FIND, &["Container.task", "Task.metrics", "Task.state"]],
        Facet::Backup => &[
            &["Content.get", "Content.list", "BlobCursor.next", "Blob.info", "Blob.read", "Blob.readFd"],
            IMAGES,
            EXPORT,
            JOB,
        ],
        Facet::Pull => &[IMAGES, &["Images.obtain"], FETCH, JOB, &["Job.cancel"]],
        Facet::Deploy => &[FIND, CONTAINERS, PROCESS, IMAGES, &["Images.obtain"]],
    }
}

/// The methods in which what a grant chooses is looked at: a grant that chooses has no other, whatever comes to be. Snapshots,
/// content, events and what else is told by the namespace know no containers; commits, checkpoints, imports and the like make
/// images of any name, of whatever is in them.
const CHOOSING: Names = &[
    &["Namespace.info", "Containers.createFromSpec"],
    FIND,
    CONTAINERS,
    PROCESS,
    IMAGES,
    FETCH,
    EXPORT,
    JOB,
    &[
        "Images.obtain",
        "Images.remove",
        "Images.tag",
        "Images.prune",
        "PrunedImageCursor.next",
        "Image.update",
        "Image.report",
        "Image.push",
        "Job.cancel",
    ],
];

fn has(names: Names, name: &str) -> bool {
    names.iter().any(|part| part.contains(&name))
}

/// Whether what the caveats choose is looked at in a method. An image may be of what is in any container, as a commit or a checkpoint
/// is: whoever chooses containers gets it out in no way.
fn knows(caveats: &Caveats, name: &str) -> bool {
    let (containers, images) = (!caveats.containers.is_all(), !caveats.ceiling.images.is_all());
    (!containers && !images || has(CHOOSING, name)) && !(containers && has(&[EXPORT], name))
}

fn in_facet(one: Facet, method: &Method) -> bool {
    match one {
        Facet::Observer => method.needs == Right::Read,
        other => has(facet(other), method.name),
    }
}

/// See the module.
#[derive(Debug)]
pub struct Reach {
    rights: Rights,
    /// The methods that are left, in order; none: all that the rights allow.
    methods: Option<Vec<(u64, u64, u16)>>,
    /// What the objects themselves look at.
    pub caveats: Caveats,
}

static EVERYTHING: LazyLock<Arc<Reach>> = LazyLock::new(|| {
    let caveats = Caveats { rights: Rights::ALL, ceiling: Ceiling::FULL, ..Caveats::none() };
    Arc::new(Reach { rights: Rights::ALL, methods: None, caveats })
});

impl Reach {
    /// What the operator has.
    pub fn everything() -> Arc<Reach> {
        EVERYTHING.clone()
    }

    /// What these leave.
    pub fn of(caveats: &Caveats) -> Arc<Reach> {
        let chooses = !caveats.containers.is_all() || !caveats.ceiling.images.is_all();
        let left = |method: &&Method| {
            let facets = caveats.facets.iter().all(|any| any.iter().any(|one| in_facet(*one, method)));
            method.needs != Right::None && facets && knows(caveats, method.name)
        };
        let methods = (chooses || !caveats.facets.is_empty()).then(|| {
            let mut keys: Vec<_> = METHODS.iter().filter(left).map(|m| (m.own, m.interface, m.method)).collect();
            keys.sort_unstable();
            keys
        });
        Arc::new(Reach { rights: caveats.rights, methods, caveats: caveats.clone() })
    }

    /// Whether a method of an object may be called. `own` is the object's interface, `interface` the one that declares the
    /// method.
    pub fn check(&self, own: u64, interface: u64, method: u16) -> Result<()> {
        let Some(right) = needs(interface, method) else {
            return Err(Error::unimplemented("method", "", "is not known to this daemon"));
        };
        if right == Right::None {
            return Ok(());
        }
        let listed = |keys: &Vec<_>| keys.binary_search(&(own, interface, method)).is_ok();
        if self.rights.has(right) && self.methods.as_ref().is_none_or(listed) {
            return Ok(());
        }
        Err(self.refuse(own, interface, method, right))
    }

    #[cold]
    fn refuse(&self, own: u64, interface: u64, method: u16, right: Right) -> Error {
        let same = |m: &&Method| (m.own, m.interface, m.method) == (own, interface, method);
        let Some(method) = METHODS.iter().find(same) else {
            return Error::denied("method", "", "is no method of this object");
        };
        let why = if !self.rights.has(right) {
            format!("needs the {right} right, and this grant has {}", self.rights)
        } else if !knows(&self.caveats, method.name) {
            "knows no containers, and this grant chooses some: ask for one that doesn't".to_owned()
        } else {
            let with: Vec<_> = Facet::ALL.into_iter().filter(|one| in_facet(*one, method)).map(Facet::as_str).collect();
            let ask = match with.as_slice() {
                [] => "a grant without facets".to_owned(),
                [one] => format!("the facet {one}"),
                many => format!("one of the facets {}", many.join(", ")),
            };
            format!("is not among the methods that this grant was given for: ask for {ask}")
        };
        Error::denied("method", method.name, why)
    }

    /// Whether a method may be called, by its name.
    pub fn allows(&self, name: &str) -> bool {
        METHODS.iter().any(|m| m.name == name && self.check(m.own, m.interface, m.method).is_ok())
    }

    /// The names of all that may be called and that need something.
    pub fn methods(&self) -> Vec<&'static str> {
        let may = |m: &&Method| m.needs != Right::None && self.check(m.own, m.interface, m.method).is_ok();
        let mut names: Vec<_> = METHODS.iter().filter(may).map(|m| m.name).collect();
        names.sort_unstable();
        names
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Instant};

    use cofferdam_types::{Id, Pictures, Which};

    use super::*;

    fn of(facets: &[Facet], rights: Rights) -> Caveats {
        let facets = if facets.is_empty() { Vec::new() } else { vec![facets.iter().copied().collect()] };
        Caveats { facets, rights, ..Caveats::none() }
    }

    fn reached(caveats: &Caveats) -> BTreeSet<&'static str> {
        Reach::of(caveats).methods().into_iter().collect()
    }

    #[test]
    fn every_method_that_a_list_names_is_there() {
        // Each by its name: what stands for more than one would let through what nobody has looked at.
        for name in Facet::ALL.into_iter().flat_map(facet).chain(CHOOSING).copied().flatten() {
            assert!(METHODS.iter().any(|method| method.name == *name), "{name} is no method");
        }
    }

    #[test]
    fn a_facet_has_what_its_rights_allow() {
        for one in Facet::ALL {
            let all = reached(&of(&[one], Rights::HOST));
            let with = reached(&of(&[one], one.rights()));
            assert_eq!(all, with, "{}: its rights are less than its methods need", one.as_str());
            assert!(!all.is_empty());
            // None leads to the operator's own.
            assert!(all.iter().all(|name| !name.starts_with("System.") && !name.starts_with("Root.")), "{all:?}");
        }
        let read = reached(&of(&[], Rights::of([Right::Read])));
        assert_eq!(reached(&of(&[Facet::Observer], Rights::HOST)), read);
        assert!(read.contains("Container.info") && !read.contains("Container.remove") && !read.contains("Root.system"));
    }

    // Z5, of methods: for all pairs of facets and rights, what comes from a grant has no method that it hasn't.
    #[test]
    fn z5_a_derived_grant_has_no_method_more() {
        let rights = [Right::Read, Right::Write, Right::Run, Right::Host].map(|right| Rights::of([right]));
        let which = Which { ids: Some([Id::new("web").unwrap()].into()), ..Which::default() };
        let mut all = Vec::new();
        for rights in rights {
            all.push(of(&[], rights));
            for one in Facet::ALL {
                all.push(of(&[one], rights));
                all.push(of(&[one, Facet::Logs], rights));
                all.push(Caveats { containers: which.clone(), ..of(&[one], rights) });
                let images = Ceiling { images: Pictures(vec![vec!["a".into()]]), ..Ceiling::FULL };
                all.push(Caveats { ceiling: images, ..of(&[one], rights) });
            }
        }
        for parent in &all {
            let above = reached(parent);
            for child in &all {
                let derived = parent.and(child);
                let below = reached(&derived);
                assert!(below.is_subset(&above), "{parent:?} {child:?}: {:?}", below.difference(&above));
            }
        }
    }

    #[test]
    fn who_chooses_sees_nothing_of_what_knows_no_containers() {
        let which = Which { ids: Some([Id::new("web").unwrap()].into()), ..Which::default() };
        let caveats =
            Caveats { containers: which, ..of(&[Facet::Observer, Facet::Deploy, Facet::Backup], Rights::HOST) };
        let reached = reached(&caveats);
        for name in [
            "Events.subscribe",
            "Content.get",
            "Snapshots.get",
            "Jobs.list",
            "Leases.list",
            "Namespace.explain",
            "Container.commit",
            "Task.checkpoint",
            "Images.importFd",
            "Credentials.list",
            "Credentials.put",
            "CredentialCursor.next",
            "Images.createArtifact",
            "Images.referrers",
            "Image.convert",
            "Image.export",
            "Image.exportFd",
            "Images.export",
            "Images.exportFd",
        ] {
            assert!(METHODS.iter().any(|m| m.name == name), "{name}");
            assert!(!reached.contains(name), "{name}");
        }
        assert!(reached.contains("Container.logs") && reached.contains("Task.kill"));
    }

    #[test]
    fn who_chooses_images_alone_gets_those_out() {
        let images = Ceiling { images: Pictures(vec![vec!["a".into()]]), ..Ceiling::FULL };
        let reached = reached(&Caveats { ceiling: images, ..of(&[Facet::Backup], Rights::HOST) });
        assert!(reached.contains("Images.export") && !reached.contains("Content.get"));
    }

    #[test]
    fn a_puller_gets_images_in_every_way_that_there_is_and_sends_none() {
        let routes = Ceiling { images: Pictures(vec![vec!["registry.invalid/team/*".into()]]), ..Ceiling::FULL };
        for ceiling in [Ceiling::FULL, routes] {
            let reached = reached(&Caveats { ceiling, ..of(&[Facet::Pull], Facet::Pull.rights()) });
            for name in ["Images.pull", "Images.fetch", "Images.obtain", "Images.explainRoute", "Job.wait"] {
                assert!(reached.contains(name), "{name}");
            }
            for name in
                ["Image.push", "Images.remove", "Images.tag", "Images.import", "Content.get", "Containers.create"]
            {
                assert!(!reached.contains(name), "{name}");
            }
        }
    }

    // Whatever a later release brings: who chooses, or has a facet, has it only when somebody has looked at it.
    #[test]
    fn what_nobody_has_looked_at_is_let_through_by_nothing() {
        let which = Which { ids: Some([Id::new("web").unwrap()].into()), ..Which::default() };
        let all: BTreeSet<_> = Facet::ALL.into_iter().flat_map(facet).chain(CHOOSING).copied().flatten().collect();
        assert!(all.iter().all(|name| !name.ends_with('*')), "{all:?}");
        for one in Facet::ALL.into_iter().filter(|one| *one != Facet::Observer) {
            let caveats = of(&[one], Rights::ALL);
            let named: BTreeSet<_> = facet(one).iter().copied().flatten().copied().collect();
            assert!(reached(&caveats).is_subset(&named), "{}", one.as_str());
            let chosen: BTreeSet<_> = named.into_iter().filter(|name| has(CHOOSING, name)).collect();
            assert!(reached(&Caveats { containers: which.clone(), ..caveats }).is_subset(&chosen), "{}", one.as_str());
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let logs = Reach::of(&of(&[Facet::Logs], Rights::of([Right::Read])));
        let said = |name: &str| {
            let m = METHODS.iter().find(|m| m.name == name).unwrap();
            logs.check(m.own, m.interface, m.method).map_err(|e| e.to_string())
        };
        assert_eq!(said("Container.logs"), Ok(()));
        assert_eq!(said("Namespace.containers"), Ok(()));
        let (run, other) = (said("Container.createTask").unwrap_err(), said("Container.info").unwrap_err());
        assert!(run.contains("needs the run right") && run.contains("Container.createTask"), "{run}");
        let ask = "is not among the methods that this grant was given for: ask for one of the facets observer, deploy";
        assert!(other.contains(ask), "{other}");
        let stats = said("Task.state").unwrap_err();
        assert!(stats.ends_with("ask for one of the facets observer, exec, kill, metrics, deploy"), "{stats}");
        assert_eq!(logs.check(7, 7, 7).unwrap_err().code, cofferdam_types::Code::Unimplemented);
    }

    #[test]
    fn who_may_pull_has_nothing_to_do_with_credentials() {
        for one in [Facet::Pull, Facet::Deploy, Facet::Backup, Facet::Exec] {
            let reached = reached(&of(&[one], Rights::HOST));
            assert!(reached.iter().all(|name| !name.starts_with("Credential")), "{}: {reached:?}", one.as_str());
        }
    }

    #[test]
    fn a_task_is_not_a_process() {
        let exec = reached(&of(&[Facet::Exec], Rights::HOST));
        assert!(exec.contains("Process.kill") && exec.contains("Task.exec"));
        assert!(!exec.contains("Task.kill") && !exec.contains("Task.attach") && !exec.contains("Task.delete"));
    }

    // What is asked at a call is one look into one list, wherever the grant comes from: that is all that its time depends on.
    #[test]
    fn a_check_is_as_short_for_a_grant_of_many() {
        let mut caveats = of(&[Facet::Deploy], Rights::HOST);
        let first = Reach::of(&caveats);
        for _ in 0..16 {
            caveats = caveats.and(&of(&[Facet::Deploy, Facet::Logs], Rights::HOST));
        }
        let last = Reach::of(&caveats);
        assert!(last.methods.as_ref().unwrap().len() <= first.methods.as_ref().unwrap().len());
        assert!(last.methods.as_ref().unwrap().is_sorted());
    }

    #[test]
    #[ignore = "timed: integration/benches/figures runs it, on a machine that is quiet"]
    fn a_check_takes_no_time() {
        let m = METHODS.iter().find(|m| m.name == "Task.processes").unwrap();
        let (mut caveats, mut live) = (of(&[Facet::Deploy], Rights::HOST), cofferdam_grants::Live::new());
        for depth in 1..=17 {
            if depth > 1 {
                caveats = caveats.and(&of(&[Facet::Deploy], Rights::HOST));
                live = cofferdam_grants::Live::below(&[&live]);
            }
            let what = match depth {
                1 | 4 => format!("check:{depth}"),
                17 => "check".to_owned(),
                _ => continue,
            };
            let reach = Reach::of(&caveats);
            let mut samples: Vec<f64> = (0..20)
                .map(|_| {
                    let begun = Instant::now();
                    for _ in 0..10_000 {
                        // As the guard asks: whether the grant is there, and what it lets through.
                        assert!(std::hint::black_box(live.end()).is_none());
                        std::hint::black_box(reach.check(m.own, m.interface, m.method)).unwrap();
                    }
                    begun.elapsed().as_secs_f64() * 1e9 / 1e4
                })
                .collect();
            samples.sort_by(f64::total_cmp);
            let (min, median, max) = (samples[0], samples[10], samples[19]);
            println!(
                r#"{{"peer":"cofferd","what":"{what}","unit":"ns","n":20,"min":{min},"median":{median},"max":{max},"samples":{samples:?}}}"#
            );
            assert!(median <= 100.0, "{what}: {median} ns");
        }
    }
}
