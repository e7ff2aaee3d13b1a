//! Caveats: what a grant leaves of the one that it comes from. Each is a condition, and a derived grant has those of all
//! above it: [`Caveats::and`] only ever adds.

use std::{borrow::Cow, collections::BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Ceiling, Digest, Error, Filter, GrantId, Id, Labels, Result, Right, Rights, Timestamp, filter};

/// A ready-made set of methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Facet {
    /// To look at everything.
    Observer,
    /// What containers have written.
    Logs,
    /// To run another process in a container.
    Exec,
    /// To end tasks.
    Kill,
    /// What happens.
    Events,
    /// What containers use.
    Metrics,
    /// Blobs, and the images that lead to them.
    Backup,
    /// To pull images.
    Pull,
    /// To create, run and remove containers.
    Deploy,
}

impl Facet {
    /// All of them.
    pub const ALL: [Facet; 9] = [
        Facet::Observer,
        Facet::Logs,
        Facet::Exec,
        Facet::Kill,
        Facet::Events,
        Facet::Metrics,
        Facet::Backup,
        Facet::Pull,
        Facet::Deploy,
    ];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Facet::Observer => "observer",
            Facet::Logs => "logs",
            Facet::Exec => "exec",
            Facet::Kill => "kill",
            Facet::Events => "events",
            Facet::Metrics => "metrics",
            Facet::Backup => "backup",
            Facet::Pull => "pull",
            Facet::Deploy => "deploy",
        }
    }

    /// Reads one.
    pub fn parse(text: &str) -> Result<Facet> {
        let why = "is no facet: give observer, logs, exec, kill, events, metrics, backup, pull or deploy";
        Facet::ALL.into_iter().find(|facet| facet.as_str() == text).ok_or_else(|| Error::invalid("facet", text, why))
    }

    /// The rights that it takes to be of any use.
    pub fn rights(self) -> Rights {
        match self {
            Facet::Exec | Facet::Kill => Rights::of([Right::Run]),
            Facet::Pull => Rights::of([Right::Write]),
            Facet::Deploy => Rights::of([Right::Write, Right::Run]),
            _ => Rights::of([Right::Read]),
        }
    }
}

/// The fields of a container by which a grant may choose.
pub const CHOOSABLE: &[&str] = &["id", "image", "runtime.name", "labels.KEY"];

/// What is known of a container when it is asked whether a grant reaches it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its id; none yet: the daemon will choose one.
    pub id: Option<&'a Id>,
    /// The name of its image.
    pub image: &'a str,
    /// Its runtime driver.
    pub runtime: &'a str,
    /// Its labels.
    pub labels: &'a Labels,
    /// The grants through which it was made, the outermost first.
    pub made_by: &'a [GrantId],
}

/// Which containers a grant reaches. Empty: all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Which {
    /// Only those with one of these ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<BTreeSet<Id>>,
    /// Of each list one filter must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Vec<String>>,
    /// Only those that were made through each of these grants.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made_by: Vec<GrantId>,
}

impl Which {
    /// Whether it is any condition at all.
    pub fn is_all(&self) -> bool {
        *self == Which::default()
    }

    /// Whether a container is among them. A filter that can't be read matches none (Z4).
    pub fn has(&self, subject: &Subject<'_>) -> bool {
        let ids = |ids: &BTreeSet<Id>| subject.id.is_some_and(|id| ids.contains(id));
        let field = |path: &[&str]| -> Option<Cow<'_, str>> {
            match path {
                ["id"] => subject.id.map(|id| id.as_str().into()),
                ["image"] => Some(subject.image.into()),
                ["runtime", "name"] => Some(subject.runtime.into()),
                ["labels", rest @ ..] => filter::label(subject.labels, rest),
                _ => None,
            }
        };
        let filtered = |texts: &Vec<String>| Filter::of(texts, CHOOSABLE).is_ok_and(|filter| filter.matches(&field));
        self.ids.as_ref().is_none_or(ids)
            && self.filters.iter().all(filtered)
            && self.made_by.iter().all(|grant| subject.made_by.contains(grant))
    }

    fn and(&self, other: &Which) -> Which {
        let ids = match (&self.ids, &other.ids) {
            (Some(ours), Some(theirs)) => Some(ours & theirs),
            (ours, theirs) => ours.clone().or_else(|| theirs.clone()),
        };
        Which { ids, filters: both(&self.filters, &other.filters), made_by: both(&self.made_by, &other.made_by) }
    }
}

/// What both demand.
pub(crate) fn both<T: Clone + PartialEq>(ours: &[T], theirs: &[T]) -> Vec<T> {
    let mut all = ours.to_vec();
    for one in theirs {
        if !all.contains(one) {
            all.push(one.clone());
        }
    }
    all
}

/// Which images a grant reaches: of each list one pattern must fit. A pattern is a digest, a whole name, or the
/// beginning of one with `*` behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pictures(pub Vec<Vec<String>>);

impl Pictures {
    /// Whether there is no condition.
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an image is among them: by its name, or by what the name stands for where that is known: an index, or the
    /// manifest that was chosen in it.
    pub fn has(&self, name: &str, stands_for: &[&Digest]) -> bool {
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(begin) => name.starts_with(begin),
            None => pattern == name || stands_for.iter().any(|digest| digest.to_string() == *pattern),
        };
        self.0.iter().all(|patterns| patterns.iter().any(fits))
    }

    /// Whether there may be some of a repository (`docker.io/library/redis`) among them, of whatever tag. In a repository who gets
    /// one of its images gets at what all are made of.
    pub fn has_some_of(&self, repository: &str) -> bool {
        let within = |name: &str| name.strip_prefix(repository).is_some_and(|rest| rest.starts_with([':', '@']));
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(begin) => repository.starts_with(begin) || within(begin),
            None => within(pattern),
        };
        self.0.iter().all(|patterns| patterns.iter().any(fits))
    }

    /// What both allow.
    pub fn and(&self, other: &Pictures) -> Pictures {
        Pictures(both(&self.0, &other.0))
    }
}

/// Which networks a container may ask for: of each list one must be it. `none` is its own, `container` that of another one, `host` that
/// of the host, what begins with a slash a namespace of the host's by its path, and all else the name of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nets(pub Vec<Vec<String>>);

impl Nets {
    /// Whether there is no condition.
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one is among them.
    pub fn has(&self, net: &str) -> bool {
        self.0.iter().all(|nets| nets.iter().any(|one| one == net))
    }

    /// What both allow.
    pub fn and(&self, other: &Nets) -> Nets {
        Nets(both(&self.0, &other.0))
    }
}

/// How much there may be at once of what comes through a grant, or through those that come from it: theirs counts too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Containers that were made through it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub containers: Option<u64>,
    /// Calls under way, those that wait included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
    /// Bytes of blobs that came through it, and of what its containers may write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
}

impl Quota {
    /// Whether there is no bound.
    pub fn is_none(&self) -> bool {
        *self == Quota::default()
    }

    /// The least of both.
    #[must_use]
    pub fn and(&self, other: &Quota) -> Quota {
        let least = |ours: Option<u64>, theirs: Option<u64>| ours.into_iter().chain(theirs).min();
        Quota {
            containers: least(self.containers, other.containers),
            calls: least(self.calls, other.calls),
            disk: least(self.disk, other.disk),
        }
    }
}

/// What is left of a grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caveats {
    /// These rights.
    pub rights: Rights,
    /// Of each list the methods of one facet; none: all that the rights allow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facets: Vec<BTreeSet<Facet>>,
    /// These containers.
    #[serde(default, skip_serializing_if = "Which::is_all")]
    pub containers: Which,
    /// The bounds of what is made through it.
    pub ceiling: Ceiling,
    /// So much at once.
    #[serde(default, skip_serializing_if = "Quota::is_none")]
    pub quota: Quota,
    /// Until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
    /// Whether its holder may derive others.
    pub may_delegate: bool,
    /// Whether its holder may have tokens made.
    pub may_save: bool,
}

impl Caveats {
    /// None: everything that a namespace has.
    pub fn none() -> Caveats {
        Caveats {
            rights: Rights::HOST,
            facets: Vec::new(),
            containers: Which::default(),
            ceiling: Ceiling::FULL,
            quota: Quota::default(),
            not_after: None,
            may_delegate: true,
            may_save: true,
        }
    }

    /// Both: whoever has to meet two sets of conditions reaches what meets each of them.
    #[must_use]
    pub fn and(&self, other: &Caveats) -> Caveats {
        let rights = self.rights.intersect(other.rights);
        let mut ceiling = self.ceiling.intersect(&other.ceiling);
        // A ceiling never says more than the rights.
        ceiling.networks = ceiling.may_connect() && rights.has(Right::Networks);
        ceiling.host &= rights.has(Right::Host);
        Caveats {
            rights,
            facets: both(&self.facets, &other.facets),
            containers: self.containers.and(&other.containers),
            ceiling,
            quota: self.quota.and(&other.quota),
            not_after: self.not_after.into_iter().chain(other.not_after).min(),
            may_delegate: self.may_delegate && other.may_delegate,
            may_save: self.may_save && other.may_save,
        }
    }

    /// Whether something about them can never be met, or not be read.
    pub fn check(&self) -> Result<()> {
        for texts in &self.containers.filters {
            Filter::of(texts, CHOOSABLE)?;
        }
        if self.rights == Rights::default() {
            return Err(Error::denied("grant", "", "would have no right that the one it comes from has"));
        }
        if self.containers.ids.as_ref().is_some_and(BTreeSet::is_empty) {
            return Err(Error::denied("grant", "", "would reach none of the containers of the one it comes from"));
        }
        let conditional = !self.containers.is_all() || !self.ceiling.images.is_all();
        if conditional && self.facets.is_empty() {
            let why = "chooses containers or images, and names no facet: say what may be done with them";
            return Err(Error::invalid("grant", "", why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETS: [&str; 5] = ["none", "host", "container", "/run/netns/blue", "red"];

    fn labels(text: &str) -> Labels {
        text.split_whitespace().filter_map(|kv| kv.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    /// A generator that needs no library: the tests say which seed they failed with.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % sides
        }

        fn some<T: Clone>(&mut self, all: &[T]) -> Vec<T> {
            all.iter().filter(|_| self.roll(2) == 0).cloned().collect()
        }

        fn maybe<T>(&mut self, make: impl FnOnce(&mut Dice) -> T) -> Option<T> {
            (self.roll(2) == 0).then(|| make(self))
        }

        fn caveats(&mut self) -> Caveats {
            let ids =
                |dice: &mut Dice| dice.some(&["a", "b", "c"]).into_iter().map(|id| Id::new(id).unwrap()).collect();
            let filters = |dice: &mut Dice| {
                vec![dice.some(&["labels.x==1", "labels.y==1", "id==a", "image~=^i"].map(String::from))]
            };
            let patterns = |dice: &mut Dice| dice.some(&["i/one", "i/*", "other"].map(String::from));
            Caveats {
                rights: Rights::of(self.some(&Right::ALL)),
                facets: self.maybe(|dice| dice.some(&Facet::ALL).into_iter().collect()).into_iter().collect(),
                containers: Which {
                    ids: self.maybe(ids),
                    filters: self.maybe(filters).unwrap_or_default(),
                    made_by: self.some(&[GrantId(1), GrantId(2)]),
                },
                ceiling: Ceiling {
                    host: self.roll(2) == 0,
                    networks: self.roll(2) == 0,
                    memory: self.maybe(|dice| dice.roll(5)),
                    nano_cpus: self.maybe(|dice| dice.roll(5)),
                    pids: self.maybe(|dice| dice.roll(5)),
                    storage: self.maybe(|dice| dice.roll(5)),
                    images: Pictures(self.maybe(patterns).into_iter().collect()),
                    nets: Nets(self.maybe(|dice| dice.some(&NETS.map(String::from))).into_iter().collect()),
                },
                quota: Quota {
                    containers: self.maybe(|dice| dice.roll(5)),
                    calls: self.maybe(|dice| dice.roll(5)),
                    disk: self.maybe(|dice| dice.roll(5)),
                },
                not_after: self.maybe(|dice| Timestamp(dice.roll(5))),
                may_delegate: self.roll(2) == 0,
                may_save: self.roll(2) == 0,
            }
        }
    }

    /// Everything that these caveats let through, of a small world.
    fn reach(caveats: &Caveats) -> BTreeSet<String> {
        let mut reached = BTreeSet::new();
        reached.extend(caveats.rights.iter().map(|right| format!("right {right}")));
        for facet in Facet::ALL {
            if caveats.facets.iter().all(|facets| facets.contains(&facet)) {
                reached.insert(format!("facet {}", facet.as_str()));
            }
        }
        for id in ["a", "b", "c", "d"].map(|id| Id::new(id).unwrap()) {
            for labels in ["", "x=1", "y=1", "x=1 y=1"].map(labels) {
                for image in ["i/one", "other"] {
                    for made_by in [&[][..], &[GrantId(1)], &[GrantId(1), GrantId(2)]] {
                        let subject = Subject { id: Some(&id), image, runtime: "native", labels: &labels, made_by };
                        if caveats.containers.has(&subject) {
                            reached.insert(format!("container {subject:?}"));
                        }
                    }
                }
            }
        }
        for image in ["i/one", "i/two", "other", "more"] {
            if caveats.ceiling.images.has(image, &[]) {
                reached.insert(format!("image {image}"));
            }
        }
        for net in NETS {
            if caveats.ceiling.nets.has(net) {
                reached.insert(format!("net {net}"));
            }
        }
        for n in 0..6 {
            let within = |limit: Option<u64>| limit.is_none_or(|limit| n <= limit);
            let Ceiling { memory, nano_cpus, pids, storage, .. } = caveats.ceiling;
            let Quota { containers, calls, disk } = caveats.quota;
            for (what, limit) in [
                ("memory", memory),
                ("cpus", nano_cpus),
                ("pids", pids),
                ("storage", storage),
                ("containers", containers),
                ("calls", calls),
                ("disk", disk),
            ] {
                if within(limit) {
                    reached.insert(format!("{what} {n}"));
                }
            }
            if within(caveats.not_after.map(|at| at.0)) {
                reached.insert(format!("time {n}"));
            }
        }
        let flags = [
            ("host", caveats.ceiling.host),
            ("networks", caveats.ceiling.may_connect()),
            ("delegate", caveats.may_delegate),
            ("save", caveats.may_save),
        ];
        reached.extend(flags.into_iter().filter(|(_, is)| *is).map(|(flag, _)| flag.to_owned()));
        reached
    }

    // Z5: whatever is asked for, a child reaches no more than its parent; and what both allow is not lost.
    #[test]
    fn z5_a_derived_grant_reaches_what_both_do_and_no_more() {
        for seed in 1..3000u64 {
            let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let (parent, child) = (dice.caveats(), dice.caveats());
            let derived = parent.and(&child);
            let (above, asked, reached) = (reach(&parent), reach(&child), reach(&derived));
            assert!(reached.is_subset(&above), "seed {seed}: {:?}", reached.difference(&above));
            assert!(reached.is_subset(&asked), "seed {seed}: {:?}", reached.difference(&asked));
            // Host and networks go with the rights too.
            let lost: Vec<_> = above.intersection(&asked).filter(|one| !reached.contains(*one)).collect();
            assert!(lost.iter().all(|one| ["host", "networks"].contains(&one.as_str())), "seed {seed}: {lost:?}");
            assert_eq!(derived.and(&child), derived, "seed {seed}");
        }
    }

    #[test]
    fn z4_a_filter_that_can_not_be_read_chooses_nothing() {
        let which = Which { filters: vec![vec!["labels.x==".into()]], ..Which::default() };
        let id = Id::new("a").unwrap();
        let subject = Subject { id: Some(&id), image: "", runtime: "", labels: &labels("x=1"), made_by: &[] };
        assert!(Which::default().has(&subject) && !which.has(&subject));
        assert!(Caveats { containers: which, ..Caveats::none() }.check().is_err());
    }

    #[test]
    fn what_reaches_nothing_or_says_too_little_is_refused() {
        let none = Caveats::none();
        none.check().unwrap();
        let nothing = Caveats { rights: Rights::default(), ..none.clone() };
        assert_eq!(nothing.check().unwrap_err().code, crate::Code::Denied);
        let ids = |ids: &[&str]| Some(ids.iter().map(|id| Id::new(*id).unwrap()).collect());
        let some = |chosen: &[&str]| Which { ids: ids(chosen), ..Which::default() };
        let one = Caveats { containers: some(&["a"]), ..none.clone() };
        assert_eq!(one.check().unwrap_err().code, crate::Code::InvalidArgument);
        let logs = Caveats { facets: vec![[Facet::Logs].into()], ..one };
        logs.check().unwrap();
        let other = Caveats { containers: some(&["b"]), ..none };
        assert_eq!(logs.and(&other).check().unwrap_err().code, crate::Code::Denied);
    }

    #[test]
    fn images_are_chosen_by_name_beginning_or_digest() {
        let digest = Digest::of(crate::Algorithm::Sha256, b"x");
        let has = |pattern: &str, name: &str| Pictures(vec![vec![pattern.into()]]).has(name, &[&digest]);
        assert!(has("docker.io/library/redis:7", "docker.io/library/redis:7"));
        assert!(has("docker.io/library/*", "docker.io/library/redis:7"));
        assert!(has(&digest.to_string(), "anything"));
        assert!(!has("docker.io/library/redis", "docker.io/library/redis:7"));
        assert!(!has("docker.io/library/*", "docker.io/other/redis:7"));
        assert!(!has("sha256:", "anything"));
    }

    #[test]
    fn a_repository_has_some_of_the_images_or_none() {
        let some = |pattern: &str| Pictures(vec![vec!["*".into()], vec![pattern.into()]]).has_some_of("h.io/team/app");
        for yes in ["*", "h.io/*", "h.io/team/app*", "h.io/team/app:*", "h.io/team/app:1", "h.io/team/app@sha256:00"] {
            assert!(some(yes), "{yes}");
        }
        for no in ["h.io/team/app/*", "h.io/team/apple:1", "h.io/team/ap:1", "h.io/team/app", "h.io/team", "sha256:00"]
        {
            assert!(!some(no), "{no}");
        }
        assert!(Pictures::default().has_some_of("any"));
    }
}
