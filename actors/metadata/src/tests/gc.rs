//! The collector's decisions, by random histories: writers go on between its mark and each slice of its sweep.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
};

use cofferdam_types::{Any, Authority, Code, Descriptor, Digest, Fault, Keeper, Labels, Namespace, Result, Timestamp};

use super::{Fixture, default, digest, id, labels, name};
use crate::{
    Read, Table, Tx, codec,
    graph::{Bytes, Explanation, Graph, Owner, Root, Step, Subject, Sweep, Swept, end_leases, explain, usage},
    records::{
        Resource,
        containers::{self, Container},
        content::{self, Link},
        images::{self, Image},
        layers::{self, Layer},
        leases::{self, Lease},
        namespaces,
        replace::{self, Stays},
        snapshots::{self, Kind, Removed, Snapshot, Usage},
    },
    spared::Pin,
};

fn blob(text: &str) -> Resource {
    Resource::Content(digest(text))
}

fn snapshot(key: &str) -> Resource {
    Resource::Snapshot { driver: "overlay".into(), key: name(key) }
}

fn target(text: &str) -> Descriptor {
    Descriptor::new("application/vnd.oci.image.manifest.v1+json", digest(text), 1)
}

pub(super) fn other() -> Namespace {
    Namespace::new("other").unwrap()
}

/// xorshift64*: the same history for the same seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }

    fn pick(&mut self, prefix: &str, sides: u64) -> String {
        format!("{prefix}{}", self.roll(sides))
    }

    fn resource(&mut self) -> Resource {
        match self.roll(2) {
            0 => blob(&self.pick("b", BLOBS)),
            _ => snapshot(&self.pick("s", SNAPSHOTS)),
        }
    }

    /// The name of a snapshot, which may be a layer's.
    fn name(&mut self) -> String {
        match self.roll(4) {
            0 => chain(self.roll(CHAINS)).to_string(),
            _ => self.pick("s", SNAPSHOTS),
        }
    }

    fn labels(&mut self) -> Labels {
        let mut labels = Labels::new();
        for n in 0..self.roll(3) {
            let (key, value) = match self.roll(3) {
                0 => ("containerd.io/gc.ref.snapshot.overlay".to_owned(), self.name()),
                _ => (format!("containerd.io/gc.ref.content.{n}"), digest(&self.pick("b", BLOBS)).to_string()),
            };
            labels.insert(key, value);
        }
        if self.roll(12) == 0 {
            labels.insert("containerd.io/gc.root".into(), "now".into());
        }
        labels
    }
}

const BLOBS: u64 = 9;
const SNAPSHOTS: u64 = 8;
const OTHERS: u64 = 3;
/// Layers, each on the one before it.
pub(super) const CHAINS: u64 = 3;
const KINDS: usize = 32;

pub(super) fn chain(n: u64) -> Digest {
    digest(&format!("c{n}"))
}

/// The directory of a layer that is unpacked beside others.
fn dir_of(number: u64, layer: u64) -> u64 {
    1_000_000 + number * CHAINS + layer
}

/// What a commit leaves to those who own files and directories.
#[derive(Default)]
struct Left {
    blobs: Vec<Digest>,
    dirs: Vec<u64>,
}

impl Left {
    fn removed(&mut self, removed: &[Removed]) {
        self.dirs.extend(removed.iter().filter(|one| one.unreferenced).map(|one| one.snapshot.dir));
    }
}

/// The files and directories: there before a commit that needs them, and removed at some time after the one that doesn't.
#[derive(Default)]
struct Disk {
    blobs: BTreeSet<Digest>,
    dirs: BTreeSet<u64>,
    left: Left,
}

impl Disk {
    fn leave(&mut self, left: Left) {
        self.left.blobs.extend(left.blobs);
        self.left.dirs.extend(left.dirs);
    }

    /// The owners come to it. Whose blob is linked again by then stays: who links it has brought its file once more.
    fn remove(&mut self, read: &dyn Read) {
        for digest in self.left.blobs.drain(..) {
            if content::blob(read, &digest).unwrap().is_none() {
                self.blobs.remove(&digest);
            }
        }
        for dir in self.left.dirs.drain(..) {
            assert!(self.dirs.remove(&dir), "it goes once");
        }
    }

    /// Whether all that is on record is there.
    fn holds(&self, read: &dyn Read, seed: u64) {
        for ns in namespaces::names(read).unwrap() {
            for link in content::list(read, &ns, None, usize::MAX).unwrap() {
                assert!(self.blobs.contains(&link.digest), "seed {seed}: {} is on record and gone", link.digest);
            }
            for one in snapshots::list(read, &ns, "overlay", None, usize::MAX).unwrap() {
                assert!(self.dirs.contains(&one.dir), "seed {seed}: {} is on record and its tree is gone", one.key);
            }
        }
    }
}

/// A history that goes on: who makes it, what is on disk, and how often each kind of write succeeded.
pub(super) struct History {
    pub(super) dice: Dice,
    disk: Arc<Mutex<Disk>>,
    dir: u64,
    done: [u64; KINDS],
}

impl History {
    pub(super) fn of(seed: u64) -> History {
        let (dice, disk) = (Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)), Arc::default());
        History { dice, disk, dir: 0, done: [0; KINDS] }
    }
}

/// One write of somebody's, which may be refused.
pub(super) fn step(f: &mut Fixture, history: &mut History) {
    let dice = &mut history.dice;
    let ns = if dice.roll(6) == 0 { other() } else { default() };
    let auth = match dice.roll(10) {
        0 => Authority::system().by_hand(),
        1 => Authority { keeper: Keeper::Lease(name(&dice.pick("x", OTHERS))), ..Authority::system() },
        _ => Authority::system(),
    };
    let (b, s, x) = (dice.pick("b", BLOBS), dice.name(), dice.pick("x", OTHERS));
    let (to, layer) = (dice.pick("x", OTHERS), dice.roll(CHAINS));
    let (labels, resource) = (dice.labels(), dice.resource());
    history.dir += 1;
    let number = history.dir;
    let parent = (dice.roll(2) == 0).then(|| name(&dice.name()));
    let kind = dice.roll(KINDS as u64) as usize;
    let ends = [None, Some(Timestamp(1)), Some(Timestamp(u64::MAX))][dice.roll(3) as usize];
    let stays = [Stays::All, Stays::Views, Stays::None][dice.roll(3) as usize];
    {
        // Whoever makes something has it on disk before.
        let mut disk = history.disk.lock().unwrap();
        disk.dirs.insert(number);
        match kind {
            0..=3 => drop(disk.blobs.insert(digest(&b))),
            26..=28 => disk.dirs.extend((0..=layer).map(|n| dir_of(number, n))),
            _ => {}
        }
    }
    let write = move |tx: &mut Tx<'_>| -> Result<Left> {
        let mut left = Left::default();
        match kind {
            0..=3 => {
                let mut link = Link::new(digest(&b), 1);
                link.labels.clone_from(&labels);
                content::create(tx, &ns, link)?;
            }
            4 => drop(content::update(tx, &ns, &digest(&b), &labels, &[])?),
            5 => left.blobs.extend(content::delete(tx, &ns, &digest(&b))?.then(|| digest(&b))),
            6..=8 => {
                let view = parent.is_some() && number.is_multiple_of(4);
                let kind = if view { Kind::View } else { Kind::Active };
                let mut new = Snapshot::new("overlay", name(&s), kind, parent.clone(), number);
                new.labels.clone_from(&labels);
                snapshots::create(tx, &ns, new)?;
            }
            9 | 10 => {
                let to = parent.clone().unwrap_or_else(|| name(&s));
                snapshots::commit(tx, &ns, "overlay", &s, to, &labels, Usage::default())?;
            }
            11 => left.removed(&[snapshots::delete(tx, &ns, "overlay", &s)?]),
            12 | 13 => {
                let mut image = Image::new(name(&x), target(&b));
                image.labels.clone_from(&labels);
                match images::find(tx, &ns, &x)? {
                    None => images::create(tx, &ns, image)?,
                    Some(_) => images::update(tx, &ns, image)?,
                };
            }
            14 => images::delete(tx, &ns, &x)?,
            15 => {
                let mut container = Container::new(id(&x), "native", Any { type_url: "t".into(), value: vec![1] });
                container.driver = "overlay".into();
                container.snapshot_key = Some(name(&s));
                containers::create(tx, &ns, container)?;
            }
            16 => containers::delete(tx, &ns, &x)?,
            17 => {
                let mut lease = Lease::new(name(&x));
                lease.expires = ends;
                if !labels.is_empty() {
                    lease.labels.insert(leases::FLAT.into(), "1".into());
                }
                match leases::find(tx, &ns, &x)? {
                    None => leases::create(tx, &ns, lease)?,
                    Some(_) => leases::update(tx, &ns, lease)?,
                };
            }
            18 => leases::hold(tx, &ns, &x, &resource)?,
            19 => match labels.len() {
                0 => leases::delete(tx, &ns, &x)?,
                _ => leases::release(tx, &ns, &x, &resource).map(drop)?,
            },
            20 | 21 => drop(snapshots::update(tx, &ns, "overlay", &s, &labels, &[])?),
            22 => drop(snapshots::rename(tx, &ns, "overlay", &s, parent.clone().unwrap_or_else(|| name(&s)))?),
            23 => {
                let mut container = containers::get(tx, &ns, &x)?;
                container.labels.clone_from(&labels);
                containers::update(tx, &ns, container)?;
            }
            24 => {
                let mut container = containers::get(tx, &ns, &x)?;
                container.id = id(&to);
                container.snapshot_key = Some(name(&s));
                containers::rename(tx, &ns, &x, container)?;
            }
            25 => drop(images::tag(tx, &ns, &x, name(&to), true)?),
            26..=28 => {
                // As a pull does: what is unpacked already is only linked.
                for n in 0..=layer {
                    if snapshots::find(tx, &ns, "overlay", &chain(n).to_string())?.is_some() {
                        continue;
                    }
                    if layers::find(tx, "overlay", &chain(n))?.is_none() {
                        let parent = (n > 0).then(|| chain(n - 1));
                        let (detached, created) = (true, Timestamp::default());
                        let (chain, dir) = (chain(n), dir_of(number, n));
                        let new = Layer { chain, parent, dir, detached, usage: Usage::default(), created };
                        layers::create(tx, "overlay", new)?;
                    }
                    layers::link(tx, &ns, "overlay", &chain(n), &labels)?;
                }
                let mut image = Image::new(name(&x), target(&b));
                let top = chain(layer).to_string();
                image.labels.insert("containerd.io/gc.ref.snapshot.overlay".into(), top);
                match images::find(tx, &ns, &x)? {
                    None => images::create(tx, &ns, image)?,
                    Some(_) => images::update(tx, &ns, image)?,
                };
            }
            29 | 30 => {
                let old = layers::get(tx, "overlay", &chain(layer))?.dir;
                let new = (number, Usage::default());
                left.dirs.extend(replace::replace(tx, "overlay", &chain(layer), old, new, stays)?.then_some(old));
            }
            _ => emptied(tx, &other(), &mut left)?,
        }
        Ok(left)
    };
    if let Ok(left) = f.write_as(&auth, write) {
        history.disk.lock().unwrap().leave(left);
        history.done[kind] += 1;
    }
}

/// A namespace goes with all that is in it, and another one of its name comes.
fn emptied(tx: &mut Tx<'_>, ns: &Namespace, left: &mut Left) -> Result<()> {
    for image in images::list(tx, ns, None, usize::MAX)? {
        images::delete(tx, ns, &image.name)?;
    }
    for container in containers::list(tx, ns, None, usize::MAX)? {
        containers::delete(tx, ns, &container.id)?;
    }
    for lease in leases::list(tx, ns, None, usize::MAX)? {
        leases::delete(tx, ns, &lease.id)?;
    }
    // Whatever lies on something goes before that.
    loop {
        let own: Vec<_> = snapshots::list(tx, ns, "overlay", None, usize::MAX)?;
        let Some(first) = own.iter().find(|one| {
            one.layer.is_none() && snapshots::children(tx, ns, "overlay", &one.key, 1).is_ok_and(|all| all.is_empty())
        }) else {
            break;
        };
        left.removed(&[snapshots::delete(tx, ns, "overlay", &first.key)?]);
    }
    for resource in leases::by_hand(tx, ns, None, usize::MAX)? {
        if let Resource::Content(digest) = resource
            && content::delete(tx, ns, &digest)?
        {
            left.blobs.push(digest);
        }
    }
    let emptied = namespaces::delete(tx, ns)?;
    left.blobs.extend(emptied.blobs);
    left.removed(&emptied.snapshots);
    namespaces::create(tx, ns, &Labels::new()).map(drop)
}

/// What is there.
fn present(read: &dyn Read, ns: &Namespace) -> BTreeSet<Resource> {
    let blobs =
        content::list(read, ns, None, usize::MAX).unwrap().into_iter().map(|link| Resource::Content(link.digest));
    let snapshots = snapshots::list(read, ns, "overlay", None, usize::MAX).unwrap();
    blobs.chain(snapshots.iter().map(Snapshot::resource)).collect()
}

/// What must stay, found the plain way: once more round until nothing is added.
fn must_stay(read: &dyn Read, ns: &Namespace, pinned: &[Resource]) -> BTreeSet<Resource> {
    let there = present(read, ns);
    let now = Timestamp::now();
    let (mut full, mut flat): (BTreeSet<Resource>, BTreeSet<Resource>) =
        (pinned.iter().cloned().collect(), BTreeSet::new());
    for image in images::list(read, ns, None, usize::MAX).unwrap() {
        full.insert(Resource::Content(image.target.digest));
        full.extend(
            Resource::from_labels(&image.labels).into_iter().filter(|r| matches!(r, Resource::Snapshot { .. })),
        );
    }
    for container in containers::list(read, ns, None, usize::MAX).unwrap() {
        full.insert(snapshot(container.snapshot_key.as_deref().unwrap()));
        let named = Resource::from_labels(&container.labels).into_iter();
        full.extend(named.filter(|r| matches!(r, Resource::Snapshot { .. })));
    }
    full.extend(leases::by_hand(read, ns, None, usize::MAX).unwrap());
    for lease in leases::list(read, ns, None, usize::MAX).unwrap().into_iter().filter(|lease| !lease.ended(now)) {
        let held = leases::resources(read, ns, &lease.id, None, usize::MAX).unwrap();
        if lease.is_flat() { flat.extend(held) } else { full.extend(held) }
    }
    let labels_of = |resource: &Resource| match resource {
        Resource::Content(digest) => content::find(read, ns, digest).unwrap().map(|link| (link.labels, None)),
        Resource::Snapshot { driver, key } => {
            snapshots::find(read, ns, driver, key).unwrap().map(|found| (found.labels, found.parent))
        }
    };
    for resource in &there {
        if labels_of(resource).is_some_and(|(labels, _)| labels.contains_key("containerd.io/gc.root")) {
            full.insert(resource.clone());
        }
    }
    loop {
        let before = (full.len(), flat.len());
        for resource in full.clone() {
            let Some((labels, parent)) = labels_of(&resource) else { continue };
            let refers = Resource::from_labels(&labels).into_iter();
            let blob = matches!(resource, Resource::Content(_));
            full.extend(refers.filter(|r| blob || matches!(r, Resource::Snapshot { .. })));
            full.extend(parent.map(|key| snapshot(&key)));
        }
        for resource in flat.clone() {
            flat.extend(labels_of(&resource).and_then(|(_, parent)| parent).map(|key| snapshot(&key)));
        }
        if before == (full.len(), flat.len()) {
            return full.union(&flat).filter(|resource| there.contains(resource)).cloned().collect();
        }
    }
}

/// A collection, with `meanwhile` between its steps.
fn collect(f: &mut Fixture, slice: usize, meanwhile: impl FnMut(&mut Fixture)) {
    collect_and(f, slice, meanwhile, |_| ());
}

/// The same, which says what is left to who owns the files.
fn collect_and(f: &mut Fixture, slice: usize, mut meanwhile: impl FnMut(&mut Fixture), mut then: impl FnMut(&Swept)) {
    let collection = f.write(|tx| Ok(tx.spared().begin())).unwrap();
    let view = f.view();
    for ns in [default(), other()] {
        let graph = Graph::read(&view, &ns, Timestamp::now()).unwrap();
        let ended = graph.ended().to_vec();
        let space = ns.clone();
        let sweep = Arc::new(Mutex::new(Sweep::new(collection, ns.clone(), &graph)));
        meanwhile(f);
        f.write(move |tx| end_leases(tx, &space, &ended)).unwrap();
        while !sweep.lock().unwrap().is_done() {
            meanwhile(f);
            let theirs = sweep.clone();
            let swept = f.write(move |tx| theirs.lock().unwrap().slice(tx, slice)).unwrap();
            sweep.lock().unwrap().done(&swept, slice);
            then(&swept);
        }
    }
    f.shared.spared().end(collection);
}

#[test]
fn nothing_reachable_is_ever_removed_whatever_is_written_meanwhile() {
    let (mut removed, mut spared, mut done) = (0, 0, [0; KINDS]);
    for seed in 1..=200u64 {
        let mut history = History::of(seed);
        let disk = history.disk.clone();
        let mut f = Fixture::new();
        f.write(|tx| namespaces::create(tx, &other(), &Labels::new()).map(drop)).unwrap();
        for _ in 0..70 {
            step(&mut f, &mut history);
        }
        let mut pins: Vec<(Vec<Resource>, Pin)> = Vec::new();
        let slice = 1 + history.dice.roll(4) as usize;
        let swept = |swept: &Swept| {
            let mut left = Left { blobs: swept.blobs.clone(), dirs: Vec::new() };
            left.removed(&swept.snapshots);
            disk.lock().unwrap().leave(left);
        };
        // What must stay is written down before each step of the sweep, and compared at the next.
        let mut before: Option<[BTreeSet<Resource>; 2]> = None;
        let begun = present(&f.view(), &default()).len();
        let meanwhile = |f: &mut Fixture| {
            if let Some(before) = before.take() {
                let view = f.view();
                for (ns, stay) in [default(), other()].iter().zip(before) {
                    let there = present(&view, ns);
                    let lost: Vec<_> = stay.difference(&there).collect();
                    assert!(lost.is_empty(), "seed {seed}: {lost:?} was reachable and is gone");
                }
            }
            match history.dice.roll(6) {
                0 => {
                    let resources = vec![history.dice.resource()];
                    let (shared, theirs) = (f.shared.spared().clone(), resources.clone());
                    let pin = f.write(move |_| Ok(Pin::new(shared.clone(), default(), theirs.clone()))).unwrap();
                    pins.push((resources, pin));
                }
                1 => drop(pins.pop()),
                _ => {}
            }
            for _ in 0..history.dice.roll(4) {
                step(f, &mut history);
            }
            if history.dice.roll(3) == 0 {
                disk.lock().unwrap().remove(&f.view());
            }
            disk.lock().unwrap().holds(&f.view(), seed);
            let pinned: Vec<_> = pins.iter().flat_map(|(resources, _)| resources.clone()).collect();
            let view = f.view();
            before = Some([must_stay(&view, &default(), &pinned), must_stay(&view, &other(), &[])]);
        };
        collect_and(&mut f, slice, meanwhile, swept);
        let view = f.view();
        for (ns, stay) in [default(), other()].iter().zip(before.unwrap()) {
            let there = present(&view, ns);
            assert!(stay.is_subset(&there), "seed {seed}: the last slice");
            spared += there.len() - stay.len();
        }
        pins.clear();
        // The second finds all that is left, and nothing more.
        let must = [must_stay(&view, &default(), &[]), must_stay(&view, &other(), &[])];
        collect_and(&mut f, slice, |_| {}, swept);
        let view = f.view();
        for (ns, stay) in [default(), other()].iter().zip(must) {
            assert_eq!(present(&view, ns), stay, "seed {seed}");
        }
        disk.lock().unwrap().remove(&view);
        disk.lock().unwrap().holds(&view, seed);
        let mut found = crate::records::check::all(&view).unwrap();
        found.retain(|one| one.fault == Fault::IndexWrong);
        assert_eq!(found, [], "seed {seed}: what is counted and listed is right");
        removed += begun.saturating_sub(present(&view, &default()).len());
        history.done.iter().zip(&mut done).for_each(|(one, all)| *all += one);
    }
    assert!(removed > 300 && spared > 20, "the histories don't reach what they are for: {removed} {spared}");
    assert!(done.iter().all(|times| *times > 10), "a kind of write hardly ever succeeds: {done:?}");
}

/// What a flat lease alone keeps the mark reaches, and goes no further: if something refers to it while the collection goes on, what
/// it refers to in its turn stays too.
#[test]
fn what_lies_behind_a_flat_lease_stays_once_something_refers_to_it() {
    let content = "containerd.io/gc.ref.content";
    type Late = fn(&mut Tx<'_>) -> Result<()>;
    let image: Late = |tx| images::create(tx, &default(), Image::new(name("late"), target("top"))).map(drop);
    let whole: Late =
        |tx| leases::update_fields(tx, &default(), "flat", &Labels::new(), None, &["labels".into()]).map(drop);
    let lease: Late = |tx| {
        leases::create(tx, &default(), Lease::new(name("late")))?;
        leases::hold(tx, &default(), "late", &snapshot("over"))
    };
    for (late, stays) in [(image, "behind"), (whole, "behind"), (lease, "labelled")] {
        let mut f = Fixture::new();
        let labels = [format!("{content}.0={}", digest("middle")), format!("{content}={}", digest("behind"))];
        f.write(move |tx| {
            let mut lease = Lease::new(name("flat"));
            lease.labels.insert(leases::FLAT.into(), "1".into());
            leases::create(tx, &default(), lease)?;
            content::create(tx, &default(), link("top", &labels[0]))?;
            content::create(tx, &default(), link("middle", &labels[1]))?;
            content::create(tx, &default(), link("behind", ""))?;
            leases::hold(tx, &default(), "flat", &blob("top"))?;
            for (dir, (key, parent)) in
                [("labelled", None), ("under", None), ("over", Some("under"))].into_iter().enumerate()
            {
                let mut new = Snapshot::new("overlay", name(key), Kind::Committed, parent.map(name), dir as u64 + 1);
                if key == "under" {
                    new.labels = self::labels("containerd.io/gc.ref.snapshot.overlay=labelled");
                }
                snapshots::create(tx, &default(), new)?;
            }
            leases::hold(tx, &default(), "flat", &snapshot("over"))
        })
        .unwrap();
        let mut late = Some(late);
        collect(&mut f, 1, |f| {
            if let Some(late) = late.take() {
                f.write(late).unwrap();
            }
        });
        let there = present(&f.view(), &default());
        let stays = if stays == "behind" { blob("behind") } else { snapshot("labelled") };
        assert!(there.contains(&stays), "{stays:?} is gone, of {there:?}");
    }
}

/// Where a row can't be read, what it refers to can't be told from what nothing refers to.
#[test]
fn a_row_that_cant_be_read_keeps_its_namespace_and_no_other_from_being_collected() {
    type Spoil = (Table, &'static [&'static str]);
    let odd = digest("odd").to_string();
    let odd: &'static str = Box::leak(odd.into_boxed_str());
    let spoils: [Spoil; 5] = [
        (Table::IMAGES, &["default", "shop"]),
        (Table::CONTAINERS, &["default", "box"]),
        (Table::CONTENT, Box::leak(Box::new(["default", odd]))),
        (Table::SNAPSHOTS, &["default", "overlay", "top"]),
        (Table::HELD, &["default", "", "something", "else"]),
    ];
    for (table, key) in spoils {
        let mut f = Fixture::new();
        shop(&mut f);
        f.write(move |tx| {
            namespaces::create(tx, &other(), &Labels::new())?;
            content::create(tx, &other(), link("loose", ""))?;
            let mut lease = Lease::new(name("over"));
            lease.expires = Some(Timestamp(1));
            leases::create(tx, &default(), lease)?;
            tx.put(table, &codec::key(key), b"\xff")
        })
        .unwrap();
        let graph = Graph::read(&f.view(), &default(), Timestamp::now()).unwrap();
        assert!(graph.is_blind() && graph.unreadable().len() == 1 && graph.garbage().is_empty(), "{key:?}");
        assert_eq!(graph.unreadable()[0].code, Code::DataLoss);
        assert_eq!(graph.ended(), [name("over")], "leases end all the same");
        let before = present_of(&graph);
        collect(&mut f, 2, |_| ());
        let after = Graph::read(&f.view(), &default(), Timestamp::now()).unwrap();
        assert_eq!(present_of(&after), before, "{key:?}: something may have been referred to");
        assert!(present(&f.view(), &other()).is_empty(), "{key:?}: the others are collected");
        let ask = |resource| {
            explain(&f.view(), f.shared.spared(), &default(), &Subject::Resource(resource), Timestamp::now()).unwrap()
        };
        let answer = ask(blob("odd"));
        assert!(answer.stays && answer.why.contains("can't be read"), "{answer:?}");
        usage(&f.view(), Timestamp::now(), &HashMap::new()).unwrap();
    }
}

fn present_of(graph: &Graph) -> BTreeSet<Resource> {
    graph.nodes().map(|node| node.resource.clone()).collect()
}

/// What leases hold is in rows of its own: one whose row can't be read counts as one without an end.
#[test]
fn a_lease_that_cant_be_read_holds_what_it_held_and_the_rest_is_collected() {
    let mut f = Fixture::new();
    f.write(|tx| {
        for text in ["held", "loose"] {
            content::create(tx, &default(), link(text, ""))?;
        }
        leases::create(tx, &default(), Lease::new(name("l")))?;
        leases::hold(tx, &default(), "l", &blob("held"))?;
        tx.put(Table::LEASES, &codec::key(&["default", "l"]), b"\xff")
    })
    .unwrap();
    let graph = Graph::read(&f.view(), &default(), Timestamp::now()).unwrap();
    assert!(!graph.is_blind() && graph.unreadable().len() == 1);
    collect(&mut f, 1, |_| ());
    assert_eq!(Vec::from_iter(present(&f.view(), &default())), [blob("held")]);
    // Its id can't be read either: whatever is held for one that isn't there may be what it held.
    f.write(|tx| {
        content::create(tx, &default(), link("loose", ""))?;
        tx.remove(Table::LEASES, &codec::key(&["default", "l"]))?;
        tx.put(Table::LEASES, b"default\0\xff", b"\xff")
    })
    .unwrap();
    collect(&mut f, 1, |_| ());
    assert_eq!(Vec::from_iter(present(&f.view(), &default())), [blob("held")]);
}

fn link(text: &str, labels: &str) -> Link {
    let mut link = Link::new(digest(text), 10);
    link.labels = self::labels(labels);
    link
}

/// An index with a manifest, its config, and a chain of two snapshots; a container on these.
fn shop(f: &mut Fixture) {
    f.write(|tx| {
        let content = "containerd.io/gc.ref.content";
        content::create(tx, &default(), link("index", &format!("{content}.m.0={}", digest("manifest"))))?;
        let config = digest("config");
        content::create(tx, &default(), link("manifest", &format!("{content}={config} {content}x={}", digest("odd"))))?;
        content::create(tx, &default(), link("config", "containerd.io/gc.ref.snapshot.overlay=top"))?;
        content::create(tx, &default(), link("odd", ""))?;
        content::create(tx, &default(), link("pinned", "containerd.io/gc.root=2026-01-01T00:00:00Z"))?;
        images::create(tx, &default(), Image::new(name("shop"), target("index")))?;
        let mut dir = 0;
        for (key, parent) in [("base", None), ("top", Some("base")), ("lone", None), ("box", Some("lone"))] {
            dir += 1;
            let kind = if key == "box" { Kind::Active } else { Kind::Committed };
            snapshots::create(tx, &default(), Snapshot::new("overlay", name(key), kind, parent.map(name), dir))?;
        }
        let mut container = Container::new(id("box"), "native", Any { type_url: "t".into(), value: vec![1] });
        (container.driver, container.snapshot_key) = ("overlay".into(), Some(name("box")));
        containers::create(tx, &default(), container).map(drop)
    })
    .unwrap();
}

fn garbage(f: &Fixture) -> Vec<Resource> {
    let graph = Graph::read(&f.view(), &default(), Timestamp::now()).unwrap();
    graph.garbage().into_iter().map(|node| node.resource.clone()).collect()
}

#[test]
fn roots_and_references_are_those_of_the_reference() {
    let mut f = Fixture::new();
    shop(&mut f);
    // A label whose suffix doesn't begin with a dot is none.
    assert_eq!(garbage(&f), [blob("odd")]);
    // What is labelled as a reference on an image keeps snapshots alone, and one that isn't there keeps nothing.
    let labels = format!(
        "containerd.io/gc.ref.content={} containerd.io/gc.ref.snapshot.overlay=box containerd.io/gc.ref.snapshot.native=x",
        digest("odd")
    );
    f.write(move |tx| {
        let mut image = images::get(tx, &default(), "shop")?;
        image.labels = self::labels(&labels);
        images::update(tx, &default(), image)?;
        containers::delete(tx, &default(), "box")
    })
    .unwrap();
    assert_eq!(garbage(&f), [blob("odd")]);
    f.write(|tx| images::delete(tx, &default(), "shop")).unwrap();
    assert_eq!(garbage(&f).len(), 8, "all but what has the label");
    // A lease that is flat keeps what it names, and parents.
    f.write(|tx| {
        let mut lease = Lease::new(name("l"));
        lease.labels = self::labels("containerd.io/gc.flat=1");
        leases::create(tx, &default(), lease)?;
        leases::hold(tx, &default(), "l", &snapshot("box"))?;
        leases::hold(tx, &default(), "l", &blob("index"))
    })
    .unwrap();
    assert_eq!(garbage(&f).len(), 5);
    f.write(|tx| leases::update_fields(tx, &default(), "l", &Labels::new(), None, &["labels".into()])).unwrap();
    assert_eq!(garbage(&f), [blob("odd")]);
    // One that has ended keeps nothing.
    f.write(|tx| leases::update_fields(tx, &default(), "l", &Labels::new(), Some(Timestamp(1)), &["expires".into()]))
        .unwrap();
    assert_eq!(garbage(&f).len(), 8);
    assert_eq!(Graph::read(&f.view(), &default(), Timestamp::now()).unwrap().ended(), [name("l")]);
}

#[test]
fn what_refers_goes_before_what_it_refers_to() {
    let mut f = Fixture::new();
    shop(&mut f);
    f.write(|tx| {
        images::delete(tx, &default(), "shop")?;
        containers::delete(tx, &default(), "box")?;
        // Round in a circle, against the order of parents.
        let labels = self::labels("containerd.io/gc.ref.snapshot.overlay=box");
        snapshots::update(tx, &default(), "overlay", "lone", &labels, &[]).map(drop)
    })
    .unwrap();
    let order = garbage(&f);
    let at = |resource: Resource| order.iter().position(|other| *other == resource).unwrap();
    let path = [blob("index"), blob("manifest"), blob("config"), snapshot("top"), snapshot("base")].map(at);
    assert!(path.is_sorted(), "{order:?}");
    // One at a time, and each commit leaves nothing that has lost what it lies on.
    collect(&mut f, 1, |f| {
        for found in snapshots::list(&f.view(), &default(), "overlay", None, usize::MAX).unwrap() {
            snapshots::ancestors(&f.view(), &default(), &found).unwrap();
        }
    });
    assert_eq!(Vec::from_iter(present(&f.view(), &default())), [blob("pinned")]);
}

#[test]
fn what_stays_is_explained_and_what_goes() {
    let mut f = Fixture::new();
    shop(&mut f);
    let ask = |f: &Fixture, subject: Subject| {
        explain(&f.view(), f.shared.spared(), &default(), &subject, Timestamp::now()).unwrap()
    };
    let told = |answer: &Explanation| {
        let line = |step: &Step| format!("{} {} {}", step.kind, step.id, step.by).trim().to_owned();
        answer.chain.iter().map(line).collect::<Vec<_>>()
    };
    let base = ask(&f, Subject::Resource(snapshot("base")));
    let want = [
        "image shop".to_owned(),
        format!("content {} what it stands for", digest("index")),
        format!("content {} label containerd.io/gc.ref.content.m.0", digest("manifest")),
        format!("content {} label containerd.io/gc.ref.content", digest("config")),
        "snapshots/overlay top label containerd.io/gc.ref.snapshot.overlay".into(),
        "snapshots/overlay base its parent".into(),
    ];
    assert!(base.stays && told(&base) == want, "{base:?}");
    let lone = ask(&f, Subject::Resource(snapshot("lone")));
    assert_eq!(told(&lone), ["container box", "snapshots/overlay box its root", "snapshots/overlay lone its parent"]);
    let pinned = ask(&f, Subject::Resource(blob("pinned")));
    assert!(pinned.stays && pinned.why.contains("containerd.io/gc.root"), "{pinned:?}");
    let image = ask(&f, Subject::Image(name("shop")));
    assert_eq!((image.stays, image.blobs, image.snapshots, image.bytes), (true, 3, 2, 30));

    let odd = ask(&f, Subject::Resource(blob("odd")));
    assert!(!odd.stays && odd.why.ends_with("nothing refers to it") && odd.chain.is_empty(), "{odd:?}");
    let (shared, resources) = (f.shared.spared().clone(), vec![blob("odd")]);
    let pin = f.write(move |_| Ok(Pin::new(shared.clone(), default(), resources.clone()))).unwrap();
    assert!(ask(&f, Subject::Resource(blob("odd"))).why.contains("job"));
    drop(pin);
    f.write(|tx| {
        let mut lease = Lease::new(name("l"));
        lease.expires = Some(Timestamp(1));
        leases::create(tx, &default(), lease)?;
        leases::hold(tx, &default(), "l", &blob("odd"))?;
        images::delete(tx, &default(), "shop")
    })
    .unwrap();
    assert!(ask(&f, Subject::Resource(blob("odd"))).why.contains("lease l held it, and has ended"));
    let lease = ask(&f, Subject::Lease(name("l")));
    assert!(!lease.stays && lease.why.contains("the next collection removes it"), "{lease:?}");
    let config = ask(&f, Subject::Resource(blob("config")));
    assert!(!config.stays && config.why.contains(&digest("manifest").to_string()), "{config:?}");
    let gone = explain(&f.view(), f.shared.spared(), &default(), &Subject::Resource(blob("none")), Timestamp::now());
    super::code(gone, Code::NotFound);
}

#[test]
fn bytes_have_owners_and_are_counted_once() {
    let mut f = Fixture::new();
    shop(&mut f);
    f.write(|tx| {
        namespaces::create(tx, &other(), &Labels::new())?;
        content::create(tx, &other(), link("config", ""))?;
        content::create(tx, &other(), link("odd", ""))?;
        images::create(tx, &other(), Image::new(name("twin"), target("config")))?;
        images::create(tx, &default(), Image::new(name("twice"), target("index")))?;
        leases::create(tx, &default(), Lease::new(name("l")))?;
        leases::hold(tx, &default(), "l", &snapshot("lone"))
    })
    .unwrap();
    let tree = |dir| Bytes::Tree { driver: "overlay".into(), dir };
    let blobs = [("index", 1), ("manifest", 2), ("config", 4), ("odd", 8), ("pinned", 16), ("placed", 32)];
    let mut measured: HashMap<_, _> = blobs.map(|(text, size)| (Bytes::Blob(digest(text)), size)).into();
    measured.extend([(tree(1), 100), (tree(2), 200), (tree(3), 400), (tree(4), 800), (tree(9), 1600)]);
    let usage = usage(&f.view(), Timestamp::now(), &measured).unwrap();
    let told = |owner: &Owner| {
        let (kind, id) = owner.root.as_ref().map_or(("nothing", ""), Root::words);
        (format!("{} {kind} {id}", owner.namespace), owner.alone, owner.shared)
    };
    let mut told: Vec<_> = usage.owners.iter().map(told).collect();
    told.sort();
    let mut want = [
        ("default container box", 800, 400),
        ("default image shop", 0, 307),
        ("default image twice", 0, 307),
        ("default label ", 16, 0),
        ("default lease l", 0, 400),
        ("default nothing ", 8, 0),
        ("other image twin", 0, 4),
    ]
    .map(|(owner, alone, shared)| (owner.to_owned(), alone, shared));
    want.sort();
    assert_eq!(told, want);
    assert_eq!((usage.shared, usage.unnamed), (307 + 400, 32 + 1600));
    let sum: u64 = usage.owners.iter().map(|owner| owner.alone).sum();
    assert_eq!(sum + usage.shared + usage.unnamed, measured.values().sum::<u64>());
}
