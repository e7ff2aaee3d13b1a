//! The second of the three proofs: everything that a grant leads to, walked over a real connection with arguments that are
//! generated from the schema, and compared with what `explain` says. Where a method isn't among those it is denied, on every
//! object, whatever its arguments; and what the grant doesn't choose is not there, whoever is asked for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use capnp::{
    any_pointer, capability::Client as Object, message::ReaderOptions, private::capability::PipelineOp, serialize,
    traits::HasTypeId as _,
};
use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side};
use cofferdam_client::{CredentialInfo, GrantOptions, Secret, Stdio};
use cofferdam_integration::{BUSYBOX, DEADLINE, Daemon, bounded};
use cofferdam_types::{Code, Error, Right};
use cofferdam_wire::{
    connect,
    error::from_rpc,
    gate_capnp::{gate, root},
    needs::{METHODS, Method, Shape, shape},
};

use crate::{container, idle};

#[path = "../../fuzz/src/arguments.rs"]
mod made;

/// Objects of each interface that are looked at.
const EACH: usize = 3;
/// How long what may be called is waited for: some of it waits for what doesn't come.
const PATIENCE: Duration = Duration::from_millis(500);
/// Arguments that each method is tried with.
const TRIES: usize = 4;

/// What leads to a grant's namespace has these, and no others.
const WAY: [&str; 4] = ["Root.namespaces", "Namespaces.get", "Namespaces.list", "NamespaceCursor.next"];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[(self.next() % all.len() as u64) as usize]
    }
}

/// Parameters of a method: its texts are `text`, and all else is random, or nothing.
fn arguments(shape: &Shape, text: &str, random: Option<&mut Random>) -> Vec<u8> {
    match random {
        None => made::arguments(shape, text, || 0, |_| false),
        Some(random) => {
            let (words, texts) = (random.next(), random.next());
            let (mut words, mut texts) = (Random(words | 1), Random(texts | 1));
            let word = move || words.next() >> (words.next() % 64);
            made::arguments(shape, text, word, move |_| texts.next() % 3 == 0)
        }
    }
}

/// Something that the grant has led to.
struct Found {
    own: u64,
    object: Object,
    /// By which methods and names.
    way: String,
}

type Answer = Result<capnp::capability::Response<any_pointer::Owned>, Error>;

impl Found {
    async fn call(&self, method: &Method, arguments: &[u8], patience: Duration) -> Option<Answer> {
        let mut request =
            self.object.new_call::<any_pointer::Owned, any_pointer::Owned>(method.interface, method.method, None);
        let message = serialize::read_message(arguments, ReaderOptions::new()).unwrap();
        let set: capnp::Result<()> = request.get().set_as(message.get_root::<any_pointer::Reader<'_>>().unwrap());
        set.unwrap();
        let answer = tokio::time::timeout(patience, request.send().promise).await.ok()?;
        Some(answer.map_err(from_rpc))
    }
}

/// What a walk is told.
struct Walk<'a> {
    /// The methods that the grant has, as `explain` says.
    allowed: BTreeSet<String>,
    /// Names that may stand for something.
    names: &'a [&'a str],
    /// What the grant doesn't choose.
    hidden: Option<&'a str>,
    random: Random,
}

impl Walk<'_> {
    fn allows(&self, method: &Method) -> bool {
        let way = ["Root.", "Namespaces.", "NamespaceCursor."].iter().any(|one| method.name.starts_with(one));
        match way {
            true => WAY.contains(&method.name),
            false => method.needs == Right::None || self.allowed.contains(method.name),
        }
    }

    /// Of what was found by a name that is hidden nothing is told.
    fn hides(&self, found: &Found) -> bool {
        self.hidden.is_some_and(|name| found.way.contains(&format!("Containers.get({name})")))
    }

    /// Walks, and gives the names of the interfaces that were reached, with how many calls were denied on them.
    async fn over(&mut self, root: root::Client) -> BTreeMap<&'static str, usize> {
        let mut open = vec![Found { own: root::Client::TYPE_ID, object: root.client, way: "Root".into() }];
        let (mut seen, mut denied): (BTreeMap<u64, usize>, BTreeMap<&str, usize>) = Default::default();
        let mut kept = Vec::new();
        while let Some(found) = open.pop() {
            let count = seen.entry(found.own).or_default();
            if *count >= EACH && !self.hides(&found) {
                continue;
            }
            *count += 1;
            for method in METHODS.iter().filter(|method| method.own == found.own) {
                let shape = shape(method.interface, method.method).unwrap();
                let interface = method.name.split_once('.').unwrap().0;
                if !self.allows(method) {
                    *denied.entry(interface).or_default() += self.is_denied(&found, method, shape).await;
                    continue;
                }
                denied.entry(interface).or_default();
                if shape.gives.is_empty() {
                    continue;
                }
                let names = if shape.texts.is_empty() { &[""] } else { self.names };
                // What stands first is a name; an expectation or a way that follows need not be given.
                let shape = &Shape { texts: &shape.texts[..shape.texts.len().min(1)], ..*shape };
                for name in names {
                    let answer = match found.call(method, &arguments(shape, name, None), PATIENCE).await {
                        Some(Ok(answer)) => answer,
                        Some(Err(_)) => continue,
                        // It waits for what doesn't come, whatever its name.
                        None => break,
                    };
                    for (field, own) in shape.gives {
                        let at = [PipelineOp::GetPointerField(*field as u16)];
                        let Ok(object) = answer.get().unwrap().get_pipelined_cap(&at).map(Object::new) else {
                            continue;
                        };
                        let way = format!("{} {}({name})", found.way, method.name);
                        open.insert(0, Found { own: *own, object, way });
                    }
                }
            }
            self.foreign(&found).await;
            kept.push(found);
        }
        // What may be called comes last: it may end what it is called on. It does as it likes, but is not denied.
        for found in &kept {
            for method in METHODS.iter().filter(|method| method.own == found.own) {
                let shape = shape(method.interface, method.method).unwrap();
                if !self.allows(method) || !shape.gives.is_empty() && !self.hides(found) {
                    continue;
                }
                let name = *self.random.of(self.names);
                let arguments = arguments(shape, name, Some(&mut self.random));
                match found.call(method, &arguments, PATIENCE).await {
                    Some(Ok(_)) if self.hides(found) && shape.gives.is_empty() && method.needs != Right::None => {
                        panic!("{} of {} was answered", method.name, found.way)
                    }
                    Some(Err(error)) => {
                        assert!(
                            (error.code, &*error.kind) != (Code::Denied, "method"),
                            "{} {}: {error}",
                            found.way,
                            method.name
                        );
                    }
                    _ => {}
                }
            }
        }
        denied
    }

    /// How often it was denied: as often as it was tried.
    async fn is_denied(&mut self, found: &Found, method: &Method, shape: &Shape) -> usize {
        for n in 0..TRIES {
            let name = *self.random.of(self.names);
            let arguments = match n {
                0 => arguments(shape, name, None),
                _ => arguments(shape, name, Some(&mut self.random)),
            };
            let answer = found.call(method, &arguments, DEADLINE).await;
            let what = format!("{} on {} with {arguments:02x?}", method.name, found.way);
            let error = match answer.unwrap_or_else(|| panic!("{what}: no answer")) {
                Ok(_) => panic!("{what} was answered"),
                Err(error) => error,
            };
            let denied = error.code == Code::Denied && error.kind == "method" && error.id == method.name;
            assert!(denied || self.hides(found) && error.code == Code::NotFound, "{what}: {error}");
        }
        TRIES
    }

    /// What is no method of this object is none by another's name either.
    async fn foreign(&mut self, found: &Found) {
        let own: BTreeSet<u64> = METHODS.iter().filter(|m| m.own == found.own).map(|m| m.interface).collect();
        for _ in 0..10 {
            let method = self.random.of(METHODS);
            if own.contains(&method.interface) {
                continue;
            }
            let shape = shape(method.interface, method.method).unwrap();
            let answer = found.call(method, &arguments(shape, "", None), DEADLINE).await.expect("an answer");
            let error = answer.err().unwrap_or_else(|| panic!("{} on {}", method.name, found.way));
            let no = matches!(error.code, Code::Denied | Code::Unimplemented | Code::NotFound);
            assert!(no, "{} on {}: {error}", method.name, found.way);
        }
    }
}

/// The top of what a token gives, on a connection of its own.
async fn top(daemon: &Daemon, token: &str) -> root::Client {
    let stream = tokio::net::UnixStream::connect(daemon.socket()).await.unwrap();
    let (network, _fds) = connect::network(stream, Side::Client, 64 << 20);
    let mut system = RpcSystem::new(Box::new(network), None);
    let gate: gate::Client = system.bootstrap(Side::Server);
    tokio::task::spawn_local(system);
    let mut request = gate.restore_request();
    request.get().set_token(token);
    request.send().promise.await.unwrap().get().unwrap().get_root().unwrap()
}

#[test]
fn z_everything_that_a_grant_leads_to_is_what_explain_says() {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let facets = |text: &str| GrantOptions { facets: words(text), ..GrantOptions::default() };
    let rights = |text: &str| GrantOptions { rights: words(text), may_delegate: true, ..GrantOptions::default() };
    let web = |options: GrantOptions| GrantOptions { containers: words("web"), ..options };
    let grants = [
        facets("observer"),
        facets("logs"),
        facets("exec"),
        facets("kill"),
        facets("events metrics"),
        facets("backup"),
        facets("pull"),
        facets("deploy"),
        rights("read"),
        rights("read write"),
        web(facets("observer")),
        web(facets("logs")),
        web(facets("exec kill")),
        web(facets("deploy")),
        rights("read write run host"),
    ];
    let seed = std::env::var("COFFERDAM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5eed_1234_u64);
    let mut reached: BTreeMap<&str, usize> = BTreeMap::new();
    for options in grants {
        // Each has its own, since it may end what it finds.
        let daemon = Daemon::with_busybox();
        bounded(async {
            let operator = daemon.open().await;
            for id in ["web", "db"] {
                let (_, task) = idle(&operator, id).await;
                let long = cofferdam_client::ProcessOptions { args: words("sleep 1000"), ..Default::default() };
                task.exec("more", &long, Stdio::default()).start().await.unwrap();
            }
            container(&operator, "still", "true").info().await.unwrap();
            operator.leases().create("lease", &Default::default(), None).info().await.unwrap();
            let shown = CredentialInfo { host: "h.invalid".into(), user: "me".into(), ..CredentialInfo::default() };
            operator.credentials().put(&shown, &Secret("s3cret".into())).await.unwrap();
            let other = operator.grants().create(&facets("logs"));
            let other = other.info().await.unwrap().id;
            let blobs = operator.content().list::<&str>(&[]).all().await.unwrap();
            let digest = blobs[0].digest.to_string();
            let grant = operator.grants().create(&GrantOptions { may_save: true, ..options.clone() });
            let allowed = grant.explain().await.unwrap().into_iter().collect::<BTreeSet<_>>();
            let token = grant.save(None).await.unwrap();
            let names = [
                "",
                "web",
                "db",
                "still",
                "more",
                BUSYBOX,
                &digest,
                "lease",
                "h.invalid",
                "/etc",
                &other,
                daemon.namespace(),
            ];
            let hidden = (!options.containers.is_empty()).then_some("db");
            println!("{:?} {:?} seed {seed}", options.facets, options.rights);
            let mut walk = Walk { allowed, names: &names, hidden, random: Random(seed) };
            for (interface, count) in walk.over(top(&daemon, &token).await).await {
                *reached.entry(interface).or_default() += count;
            }
            // What he didn't choose is as it was.
            if hidden.is_some() {
                assert_eq!(operator.containers().get("db").task().state().await.unwrap().status.as_str(), "running");
            }
        });
    }
    println!("{reached:#?}");
    // Before and above all grants, what is a client's own, and what is only given for streams.
    let apart = [
        "Gate",
        "System",
        "Collector",
        "FindingCursor",
        "ShimCursor",
        "ByteOwnerCursor",
        "CollectedCursor",
        "LogSink",
        "Attachment",
        "Audit",
        "AuditCursor",
        "Chooser",
        // Of what a registry says, and here is none.
        "DescriptorCursor",
        // Of the schema alone: a daemon answers `unimplemented`.
    ];
    let all: BTreeSet<&str> = METHODS.iter().map(|method| method.name.split_once('.').unwrap().0).collect();
    let missed: Vec<_> = all.iter().filter(|name| !reached.contains_key(*name) && !apart.contains(name)).collect();
    assert!(missed.is_empty(), "nothing leads to {missed:?}");
}
