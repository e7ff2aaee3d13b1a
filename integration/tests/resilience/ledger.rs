//! Work of which it is kept what was asked for and what was answered. Whatever happened to the daemon or its disk since, all
//! that was acknowledged must be there, whole; of what was under way, all or nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{Read as _, Seek as _, Write as _},
    path::Path,
};

use cofferdam_client::{Client, ContainerRequest, ImportFormat, ImportOptions, Namespace, PullOptions, SnapshotKind};
use cofferdam_integration::{BUSYBOX, DEADLINE, Daemon, Registry};
use cofferdam_types::{Algorithm, Code, Digest, Error, Labels, Result};

use crate::random::Random;

/// A daemon under such work collects after each removal: what strikes it strikes its collections too.
pub const COLLECTS: &[&str] = &["--gc", "startup_delay=1ms,schedule_delay=0,pause_threshold=0.5"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Blob,
    /// A blob that another keeps, which has its name, by a label alone.
    Kept,
    Image,
    Active,
    Committed,
    Container,
    /// A blob or a snapshot that was kept once: only known when a collection has removed it.
    Garbage,
    /// An event that tells of what was made: its topic, and the name that it has in it.
    Event,
}

pub type Key = (Kind, String);

/// How things were found.
pub type Found = Vec<(Key, Option<String>)>;

/// From one moment to another somebody was at it, and had it there or away.
#[derive(Debug)]
struct Fact {
    asked: usize,
    answered: Option<usize>,
    /// What is in it.
    there: Option<String>,
}

/// All that one worker asked for, in order. A moment is what the caller's clock says.
#[derive(Debug, Default)]
pub struct Ledger {
    name: String,
    /// Of its snapshots; the default driver where it is empty.
    driver: &'static str,
    facts: BTreeMap<Key, Vec<Fact>>,
    /// The events up to there were compared before.
    told: u64,
}

impl Ledger {
    /// How a thing may be at a moment.
    fn may_be(&self, key: &Key, moment: usize) -> Vec<Option<&str>> {
        let mut states = vec![None];
        for fact in self.facts.get(key).into_iter().flatten().filter(|fact| fact.asked < moment) {
            if fact.answered.is_some_and(|answered| answered <= moment) {
                states.clear();
            }
            states.push(fact.there.as_deref());
        }
        states
    }

    /// Compares everything with how it may be at a moment, and gives how it is. The error says what is wrong.
    pub async fn compare(&self, ns: &Namespace, moment: usize) -> std::result::Result<Found, String> {
        let mut all = Vec::new();
        let events = told(ns, self.told).await.map_err(|error| format!("events: {error}"))?;
        for key in self.facts.keys() {
            let found = match key.0 {
                Kind::Event => events.contains(&key.1).then(String::new),
                _ => self.look(ns, key).await?,
            };
            let states = self.may_be(key, moment);
            if !states.contains(&found.as_deref()) {
                let short = |text: Option<&str>| text.map(|text| text[..text.len().min(30)].to_owned());
                let states: Vec<_> = states.into_iter().map(short).collect();
                return Err(format!("{key:?} is {:?} and should be one of {states:?}", short(found.as_deref())));
            }
            all.push((key.clone(), found));
        }
        Ok(all)
    }

    /// What is there for certain, of a kind.
    fn certain(&self, kind: Kind) -> Vec<Key> {
        let here = |key: &&Key| key.0 == kind && matches!(self.may_be(key, usize::MAX)[..], [Some(_)]);
        self.facts.keys().filter(here).cloned().collect()
    }
}

/// Does one thing after the other, at random.
pub struct Worker<'a> {
    pub ledger: Ledger,
    clock: Box<dyn Fn() -> usize + 'a>,
    random: Random,
    scratch: &'a Path,
    count: u64,
    /// What nothing keeps any more, and no collection has been known to remove.
    garbage: Vec<String>,
}

impl<'a> Worker<'a> {
    /// One that has a directory to itself.
    pub fn new(
        (name, driver): (&str, &'static str),
        scratch: &'a Path,
        seed: u64,
        clock: impl Fn() -> usize + 'a,
    ) -> Worker<'a> {
        let ledger = Ledger { name: name.into(), driver, ..Ledger::default() };
        Worker { ledger, clock: Box::new(clock), random: Random::new(seed), scratch, count: 0, garbage: Vec::new() }
    }

    /// Does the next thing. What fails because the daemon goes stays open.
    pub async fn step(&mut self, client: &Client, ns: &Namespace) -> Result<()> {
        self.count += 1;
        let id = format!("{}-{}", self.ledger.name, self.count);
        if self.random.below(8) == 0 {
            return self.collect(client).await;
        }
        // What is there goes more often the more of it there is.
        let kinds = [Kind::Blob, Kind::Kept, Kind::Image, Kind::Committed, Kind::Container, Kind::Active];
        let kind = kinds[self.random.below(kinds.len() as u64) as usize];
        let mut there = self.ledger.certain(kind);
        if self.random.below(8) < there.len() as u64 {
            let key = there.swap_remove(self.random.below(there.len() as u64) as usize);
            return self.remove(client, ns, key).await;
        }
        let text = format!("{id} {}", "x".repeat(self.random.below(40_000) as usize));
        let driver = self.ledger.driver;
        match kind {
            Kind::Blob => {
                let digest = Digest::of(Algorithm::Sha256, text.as_bytes()).to_string();
                let key = (kind, digest.clone());
                self.fact(key, Some(text.clone()), ingest(ns, &id, &text, &digest)).await
            }
            Kind::Kept => {
                let key = Digest::of(Algorithm::Sha256, name_of(&text).as_bytes()).to_string();
                self.fact((kind, key), Some(text.clone()), keep(ns, &id, &text)).await
            }
            Kind::Image => {
                let dir = self.scratch.join(&id);
                fs::create_dir(&dir).unwrap();
                fs::write(dir.join("text"), &text).unwrap();
                let name = format!("test/{id}:latest");
                let event = ("/images/create", name.clone());
                let imported = self.made((kind, name.clone()), text, event, import(ns, driver, &name, &dir)).await;
                fs::remove_dir_all(&dir).unwrap();
                imported
            }
            Kind::Active => {
                let event = ("/snapshot/prepare", id.clone());
                self.made((kind, id.clone()), String::new(), event, prepare(ns, driver, &id)).await
            }
            Kind::Committed => {
                let key = format!("{id}-active");
                self.fact((Kind::Active, key.clone()), Some(String::new()), prepare(ns, driver, &key)).await?;
                let tree = tree(ns, driver, &key).await?;
                fs::write(Path::new(&tree).join("text"), &text).unwrap();
                let snapshot = ns.snapshots(driver).get(&key);
                let commit = async { snapshot.commit(&id, &kept()).info().await.map(drop) };
                // Two facts of one commit.
                let asked = self.ask((Kind::Active, key), None);
                let done = self.fact((kind, id.clone()), Some(text), commit).await;
                self.answer(&asked, done)
            }
            Kind::Container => {
                let event = ("/containers/create", id.clone());
                self.made((kind, id.clone()), String::new(), event, create(ns, driver, &id)).await?;
                if self.random.below(2) == 0 {
                    run(client, ns, (driver, BUSYBOX), &format!("{id}-run")).await
                } else {
                    Ok(())
                }
            }
            Kind::Garbage | Kind::Event => unreachable!("nobody makes it"),
        }
    }

    /// Removes something. What it alone has kept is garbage then, and is collected at once or whenever it comes to that.
    async fn remove(&mut self, client: &Client, ns: &Namespace, key: Key) -> Result<()> {
        let alone = match key.0 {
            Kind::Kept => Some(kept_by(ns, &key.1).await?),
            Kind::Image => Some(ns.images().get(&key.1).detail("").await?.chain_id),
            _ => None,
        };
        self.fact(key.clone(), None, remove(ns, self.ledger.driver, &key)).await?;
        self.garbage.extend(alone);
        if key.0 == Kind::Image && self.random.below(2) == 0 { self.collect(client).await } else { Ok(()) }
    }

    /// Collects. What was garbage before is gone with the second, whatever was under way before the first.
    async fn collect(&mut self, client: &Client) -> Result<()> {
        client.collector().collect(false).await?;
        client.collector().collect(false).await?;
        let answered = Some((self.clock)());
        for id in self.garbage.drain(..) {
            let was = Fact { asked: 0, answered: None, there: Some(String::new()) };
            let gone = Fact { asked: 0, answered, there: None };
            self.ledger.facts.insert((Kind::Garbage, id), vec![was, gone]);
        }
        Ok(())
    }

    fn ask(&mut self, key: Key, there: Option<String>) -> Key {
        let asked = (self.clock)();
        self.ledger.facts.entry(key.clone()).or_default().push(Fact { asked, answered: None, there });
        key
    }

    fn answer(&mut self, key: &Key, done: Result<()>) -> Result<()> {
        if done.is_ok() {
            self.ledger.facts.get_mut(key).unwrap().last_mut().unwrap().answered = Some((self.clock)());
        }
        done
    }

    /// Makes something, and the event that tells of it with it.
    async fn made(
        &mut self,
        key: Key,
        there: String,
        (topic, name): (&str, String),
        act: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let event = self.ask((Kind::Event, said(topic, &name)), Some(String::new()));
        let done = self.fact(key, Some(there), act).await;
        self.answer(&event, done)
    }

    async fn fact(&mut self, key: Key, there: Option<String>, act: impl Future<Output = Result<()>>) -> Result<()> {
        let key = self.ask(key, there);
        let done = act.await;
        self.answer(&key, done)
    }

    /// Compares everything with what was answered. How it is now it is for certain.
    pub async fn settle(&mut self, ns: &Namespace) {
        let last = ns.events().last().await.unwrap();
        let found = self.ledger.compare(ns, usize::MAX).await.unwrap_or_else(|wrong| panic!("{wrong}"));
        let answered = Some((self.clock)());
        // An event isn't looked for twice: there are too many of them.
        self.ledger.told = last;
        let there = found.into_iter().filter(|((kind, _), there)| there.is_some() && *kind != Kind::Event);
        self.ledger.facts = there.map(|(key, there)| (key, vec![Fact { asked: 0, answered, there }])).collect();
    }
}

/// How an event is written down.
fn said(topic: &str, name: &str) -> String {
    format!("{topic} {name}")
}

/// All events behind one, as far as ledgers have such.
async fn told(ns: &Namespace, after: u64) -> Result<BTreeSet<String>> {
    let topics = [("/images/create", "name"), ("/snapshot/prepare", "key"), ("/containers/create", "id")];
    let (all, mut told) = (ns.events(), BTreeSet::new());
    // What comes now is behind all that was.
    let last = all.publish("/test/ledger", &serde_json::json!({})).await?;
    let mut events = all.subscribe::<&str>(after, &[]);
    loop {
        let event = events.next().await?.map_err(|gap| broken(format!("{gap:?}")))?;
        if event.sequence >= last {
            return Ok(told);
        }
        let field = topics.iter().find(|(topic, _)| *event.topic == **topic).map(|(_, field)| *field);
        let name = field.and_then(|field| event.payload[field].as_str());
        told.extend(name.map(|name| said(&event.topic, name)));
    }
}

/// The label of a blob that keeps another.
const KEEPS: &str = "containerd.io/gc.ref.content.0";

fn kept() -> Labels {
    Labels::from([("containerd.io/gc.root".to_owned(), "now".to_owned())])
}

async fn ingest(ns: &Namespace, reference: &str, text: &str, digest: &str) -> Result<()> {
    ingest_with(ns, reference, text, digest, &kept()).await
}

async fn ingest_with(ns: &Namespace, reference: &str, text: &str, digest: &str, labels: &Labels) -> Result<()> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    let ingest = ns.content().ingest(reference, text.len() as u64, digest, "");
    ingest.take_fd(file.into()).await?;
    ingest.commit(text.len() as u64, digest, labels).await.map(drop)
}

/// What the blob says that keeps the one with this text.
fn name_of(text: &str) -> String {
    format!("keeps {}", Digest::of(Algorithm::Sha256, text.as_bytes()))
}

/// Makes a blob that a lease keeps until another blob does, whose label is all that keeps it then. The lease has that one's
/// name.
async fn keep(ns: &Namespace, id: &str, text: &str) -> Result<()> {
    let keeper = name_of(text);
    let name = Digest::of(Algorithm::Sha256, keeper.as_bytes()).to_string();
    let lease = ns.leases().create(&name, &Labels::new(), None);
    lease.info().await?;
    let digest = Digest::of(Algorithm::Sha256, text.as_bytes()).to_string();
    ingest_with(&lease.namespace(), id, text, &digest, &Labels::new()).await?;
    ingest_with(ns, id, &keeper, &name, &Labels::from([(KEEPS.to_owned(), digest)])).await?;
    ns.leases().remove(&name).await
}

/// What a blob keeps.
async fn kept_by(ns: &Namespace, keeper: &str) -> Result<String> {
    let labels = ns.content().get(keeper).info().await?.labels;
    labels.get(KEEPS).cloned().ok_or_else(|| broken("it has lost its label"))
}

async fn import(ns: &Namespace, driver: &str, name: &str, dir: &Path) -> Result<()> {
    let options = ImportOptions {
        name: name.into(),
        driver: driver.into(),
        format: ImportFormat::Rootfs,
        command: vec!["/bin/true".into()],
        ..ImportOptions::default()
    };
    ns.images().import_fd(&options, File::open(dir).unwrap().into()).wait().await.map(drop)
}

async fn prepare(ns: &Namespace, driver: &str, key: &str) -> Result<()> {
    ns.snapshots(driver).prepare(key, "", &kept()).info().await.map(drop)
}

async fn create(ns: &Namespace, driver: &str, id: &str) -> Result<()> {
    let mut request = ContainerRequest { id: id.into(), ..ContainerRequest::default() };
    request.options.args = vec!["true".into()];
    request.driver = driver.into();
    ns.containers().create(&ns.images().get(BUSYBOX), &request).info().await.map(drop)
}

async fn run(client: &Client, ns: &Namespace, (driver, image): (&str, &str), id: &str) -> Result<()> {
    let mut request = cofferdam_client::RunRequest::new(&ns.info().await?.name, image);
    request.container.id = id.into();
    request.container.options.args = vec!["true".into()];
    request.container.driver = driver.into();
    request.container.remove_on_exit = true;
    let exit = client.run(request)?.wait().await?;
    assert!(exit.status == 0 || !exit.reason.is_empty(), "{exit:?}");
    Ok(())
}

async fn remove(ns: &Namespace, driver: &str, (kind, name): &Key) -> Result<()> {
    match kind {
        Kind::Blob => ns.content().remove(name).await,
        Kind::Kept => {
            // Who was struck while it was made has left the lease.
            match ns.leases().remove(name).await {
                Err(error) if error.code != Code::NotFound => Err(error),
                _ => ns.content().remove(name).await,
            }
        }
        Kind::Image => ns.images().remove(name).await,
        Kind::Active | Kind::Committed => ns.snapshots(driver).get(name).remove().await,
        Kind::Container => ns.containers().get(name).remove(false).await,
        Kind::Garbage | Kind::Event => unreachable!("nobody removes it"),
    }
}

/// Where the tree of a snapshot lies that is one directory.
async fn tree(ns: &Namespace, driver: &str, key: &str) -> Result<String> {
    let mounts = ns.snapshots(driver).get(key).mounts().await?;
    assert!(mounts.len() == 1 && mounts[0].kind == "bind", "{mounts:?}");
    Ok(mounts[0].source.clone())
}

impl Ledger {
    /// What is in a thing that is there. What can't be read of one is an error.
    async fn look(&self, ns: &Namespace, key: &Key) -> std::result::Result<Option<String>, String> {
        match self.find(ns, key).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.code == Code::NotFound => Ok(None),
            Err(error) => Err(format!("{key:?}: {error}")),
        }
    }

    async fn find(&self, ns: &Namespace, (kind, name): &Key) -> Result<String> {
        match kind {
            Kind::Blob => read(ns, name).await,
            Kind::Kept => {
                let kept = kept_by(ns, name).await?;
                read(ns, &kept).await.map_err(broken)
            }
            Kind::Image => {
                let detail = ns.images().get(name).detail("").await?;
                self.view(ns, &detail.chain_id).await.map_err(broken)
            }
            Kind::Active => {
                let info = ns.snapshots(self.driver).get(name).info().await?;
                let tree = tree(ns, self.driver, name).await?;
                let there = info.kind == SnapshotKind::Active && Path::new(&tree).is_dir();
                if there { Ok(String::new()) } else { Err(broken("it has no directory")) }
            }
            Kind::Committed => {
                let info = ns.snapshots(self.driver).get(name).info().await?;
                match info.kind {
                    SnapshotKind::Committed => self.view(ns, name).await.map_err(broken),
                    _ => Err(broken("it isn't committed")),
                }
            }
            Kind::Container => ns.containers().get(name).info().await.map(|_| String::new()),
            Kind::Garbage => match ns.content().get(name).info().await {
                Err(error) if error.code == Code::NotFound => {
                    ns.snapshots(self.driver).get(name).info().await.map(|_| String::new())
                }
                other => other.map(|_| String::new()),
            },
            Kind::Event => unreachable!("all are read in one go"),
        }
    }

    /// What a committed tree says.
    async fn view(&self, ns: &Namespace, key: &str) -> Result<String> {
        let all = ns.snapshots(self.driver);
        let own = format!("{}-look", self.name);
        all.view(&own, key, &Labels::new()).info().await?;
        let text = fs::read_to_string(Path::new(&tree(ns, self.driver, &own).await?).join("text")).map_err(broken);
        all.get(&own).remove().await?;
        text
    }
}

/// What a blob says.
async fn read(ns: &Namespace, name: &str) -> Result<String> {
    let blob = ns.content().get(name);
    blob.info().await?;
    let mut file = tempfile::tempfile().unwrap();
    blob.read_fd(0, 0, file.try_clone().unwrap().into()).await.map_err(broken)?;
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(broken)?;
    Ok(text)
}

/// Of what is there, and isn't what it should be.
fn broken(why: impl std::fmt::Display) -> Error {
    Error::data_loss("broken", "", why.to_string())
}

/// Where [`is_well`] pulls from.
pub fn registry() -> Registry {
    Registry::start(&[], &["busybox"])
}

/// Records and disk agree, and the daemon does all that it ever did: the next pull, run and delete work, and the collection
/// takes what is left of them.
pub async fn is_well(daemon: &Daemon, client: &Client, ns: &Namespace, registry: &Registry) {
    agrees(client).await;
    let pull = PullOptions { reference: registry.reference("busybox"), plain_http: true, ..PullOptions::default() };
    let name = ns.images().pull(&pull).wait().await.unwrap().remove(0);
    run(client, ns, ("", &name), "afterwards").await.unwrap();
    let layer = ns.images().get(&name).detail("").await.unwrap().chain_id;
    ns.images().remove(&name).await.unwrap();
    client.collector().collect(false).await.unwrap();
    let gone = Ledger::default().find(ns, &(Kind::Garbage, layer)).await;
    assert_eq!(gone.unwrap_err().code, Code::NotFound, "nothing keeps it");
    assert!(daemon.log().lines().all(|line| !line.contains("panicked")), "{}", daemon.log());
}

/// The start's own sweep goes on beside ordinary work: until it is over, what it is about to take is told.
pub async fn agrees(client: &Client) {
    let end = std::time::Instant::now() + DEADLINE;
    loop {
        let found = client.system().check(false).all().await.unwrap();
        if found.is_empty() {
            return;
        }
        assert!(std::time::Instant::now() < end, "records and disk don't agree: {found:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
