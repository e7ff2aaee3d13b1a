//! A storm: containers live side by side while daemon and shims are killed at random. Each has one end, of which all
//! that speaks of it says the same, and nothing stays.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::File,
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::mpsc::{RecvTimeoutError, sync_channel},
    time::{Duration, Instant},
};

use cofferdam_client::{Client, Exit, Namespace, Network, Output, ProcessOptions, RunRequest, Stdio};
use cofferdam_integration::{DEADLINE, Daemon, bounded, count, descriptors, is_long, processes, until, until_async};
use cofferdam_types::{Code, Error, Result};
use nix::sys::signal::Signal;

use crate::{
    History, history,
    random::{Random, seed},
};

/// Lives side by side.
const LANES: usize = 8;
/// What a whole storm may take.
const LIMIT: Duration = Duration::from_secs(1500);
/// What each says.
const SAID: &str = "said";
/// What one answer may take: the deadlines of a runtime that hangs strike before.
const PATIENCE: Duration = Duration::from_secs(240);

/// A container's life, as it is planned.
pub struct Life {
    pub id: String,
    pub runtime: String,
    pub script: String,
    /// With which code it ends by itself.
    pub code: u32,
    /// Whether all of it is killed once it has started.
    pub killed: bool,
    /// Whether it stays until it is removed.
    pub kept: bool,
    /// With which code another process ends that is run in it.
    pub exec: Option<u32>,
    /// With whom it shares a shim; empty: with nobody.
    pub group: &'static str,
    /// Whether what it writes is kept.
    pub log: bool,
    pub streams: Streams,
    pub network: Network,
}

/// Where it reads and writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    Null,
    Terminal,
    /// A pipe of the host's, by its path.
    Fifo,
}

impl Life {
    pub fn random(random: &mut Random, id: String) -> Life {
        let code = 1 + random.below(100) as u32;
        let exec = (random.below(3) == 0).then(|| 1 + random.below(100) as u32);
        // Long enough for the other to be there, most often.
        let tenths = u64::from(exec.is_some());
        let script = format!("echo {SAID}; sleep 0.{tenths}{}; exit {code}", random.below(10));
        let kept = random.below(2) == 0;
        let group = if random.below(4) == 0 { "pod" } else { "" };
        let log = random.below(2) == 0;
        let streams = match random.below(4) {
            0 => Streams::Terminal,
            1 => Streams::Fifo,
            _ => Streams::Null,
        };
        let network = Network::None;
        Life { id, runtime: "native".into(), script, code, killed: false, kept, exec, group, log, streams, network }
    }

    fn request(&self, daemon: &Daemon) -> RunRequest {
        let mut request = daemon.run(&self.id, ["sh", "-c", &self.script]);
        request.container.remove_on_exit = !self.kept;
        request.container.runtime = self.runtime.clone();
        request.container.group = self.group.into();
        request.container.options.terminal = self.streams == Streams::Terminal;
        request.container.options.network = self.network.clone();
        request.log = self.log;
        if self.streams == Streams::Fifo {
            let path = pipe_of(daemon, &self.id).to_str().unwrap().to_owned();
            let streams =
                move || -> Result<Stdio> { Ok(Stdio { stdout: Output::Fifo(path.clone()), ..Stdio::default() }) };
            request.stdio = streams().unwrap();
            request.again = Some(Box::new(streams));
        }
        request
    }
}

/// What dies, and what a client may be told besides.
pub struct Storm<'a> {
    pub name: &'a str,
    pub lives: Vec<Life>,
    /// Between two strikes there is up to so much time.
    pub pause: Duration,
    /// Does harm, and says what it did.
    pub strike: Box<dyn FnMut(&mut Random) -> &'static str + Send + 'a>,
    /// Whether an outcome is one that the storm's own harm accounts for.
    pub accounts_for: fn(&Life, &Result<Exit>) -> bool,
}

/// The container's own end, that its shim was killed, or that this happened before there was anything that could end.
fn is_ordinary(life: &Life, outcome: &Result<Exit>) -> bool {
    match outcome {
        Ok(exit) if exit.reason.is_empty() => is_own(life, outcome),
        Ok(exit) => (exit.status, &*exit.reason) == (137, "shim lost"),
        Err(error) => error.code == Code::Unavailable && ["shim", "process"].contains(&&*error.kind),
    }
}

/// Whether it ended as it was planned: by itself, or killed once it had started.
fn is_own(life: &Life, outcome: &Result<Exit>) -> bool {
    outcome.as_ref().is_ok_and(|exit| exit.reason.is_empty() && exit.status == life.code)
}

fn exec_of(life: &Life) -> String {
    format!("{}-exec", life.id)
}

/// Kills the daemon (once in so many times), which comes back, or a shim, which doesn't, unless it is to be spared; one that has just ended by
/// itself is let be.
pub fn kill_one(daemon: &Daemon, random: &mut Random, daemon_in: u64, spared: impl Fn(i32) -> bool) -> &'static str {
    let mut shims = processes(&daemon.state());
    shims.retain(|(_, name)| name == "coffer-shim");
    // A child that is about to execute something else looks like its shim.
    let nested: BTreeSet<i32> = shims.iter().flat_map(|(pid, _)| children(*pid)).collect();
    shims.retain(|(pid, _)| !nested.contains(pid) && !spared(*pid));
    // Nor is the daemon killed while nothing lives: a client that can't begin would be kept from it for good.
    if shims.is_empty() {
        return "strikes at nothing";
    }
    if random.below(daemon_in) == 0 {
        daemon.restart();
        return "daemons killed";
    }
    let (pid, _) = shims[random.below(shims.len() as u64) as usize];
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) => "shims killed",
        Err(_) => "strikes at nothing",
    }
}

/// The processes that one is the parent of.
pub fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

impl Storm<'_> {
    /// Has the lives lived through it, and looks at what is left.
    pub fn rage(self, daemon: &Daemon) {
        let Storm { name, lives, pause, mut strike, accounts_for } = self;
        let seed = seed();
        println!("seed {seed}");
        let mut random = Random::new(seed);
        // What a daemon opens when it first works is open from here on.
        calm(daemon, "before");
        let open = descriptors(daemon.pid());
        let before = daemon.leftovers();

        let began = Instant::now();
        let ((told, execs), strikes) = std::thread::scope(|scope| {
            let (pause, strike) = (pause.as_micros() as u64, &mut strike);
            // Closed when the lives are over, well or badly.
            let (going, over) = sync_channel::<()>(0);
            let striking = scope.spawn(move || {
                let mut strikes: BTreeMap<&str, u64> = BTreeMap::new();
                while over.recv_timeout(Duration::from_micros(random.below(pause))) == Err(RecvTimeoutError::Timeout) {
                    *strikes.entry(strike(&mut random)).or_default() += 1;
                }
                strikes
            });
            let told = {
                let _going = going;
                let lanes = all(daemon, &lives, accounts_for);
                let lanes = async { tokio::time::timeout(LIMIT, lanes).await };
                cofferdam_client::block_on(lanes).unwrap().expect("the storm doesn't end")
            };
            (told, striking.join().unwrap())
        });
        let took = began.elapsed();
        // Its harm may be undone with it: a disk has room again.
        drop(strike);

        bounded(async {
            let History { starts, ends } = history(&daemon.client().await, daemon.namespace()).await;
            let ends_of = |id: &String| ends.get(id).map(Vec::as_slice).unwrap_or_default();
            for (id, outcome) in told.iter().chain(&execs) {
                let found = ends_of(id);
                match outcome {
                    Ok(exit) => assert_eq!(found, std::slice::from_ref(exit), "{id}"),
                    Err(_) => assert!(found.len() <= 1, "{id}: {found:?}"),
                }
            }
            // What ended as it was planned has begun: that is told too.
            for life in lives.iter().filter(|life| told.get(&life.id).is_some_and(|outcome| is_own(life, outcome))) {
                assert_eq!(starts.get(&life.id), Some(&1), "the start of {}", life.id);
            }
            // Whatever a client was told.
            for (id, times) in &starts {
                assert_eq!((*times, ends_of(id).len()), (1, 1), "{id}: {:?}, {:?}", ends_of(id), told.get(id));
            }
            println!("of {} starts each has one end", starts.len());
        });
        for life in &lives {
            if let (Some(code), Some(Ok(exit))) = (life.exec, execs.get(&exec_of(life))) {
                // It may die with its container, or with the shim of both; one whose container ends first is not started.
                let late = (exit.status, &*exit.reason) == (126, "could not be started");
                let own = exit.status == code && exit.reason.is_empty();
                assert!(own || late || exit.status == 137, "{}: {exit:?}", life.id);
            }
        }
        // A daemon that only refuses would have nobody die.
        let own = lives.iter().filter(|life| is_own(life, &told[&life.id])).count() as u64;
        let least = lives.len() as u64 / count(3, 10);
        assert!(own >= least.max(1), "{own} of {} ended by themselves", lives.len());
        until("no container is left", || {
            let list = async { daemon.open().await.containers().list::<&str>(&[]).all().await.unwrap() };
            bounded(list).is_empty().then_some(())
        });
        daemon.settles(&before);
        calm(daemon, "after");
        let end = Instant::now() + DEADLINE;
        loop {
            let mut more = descriptors(daemon.pid());
            // The journal's files come and go as somebody reads.
            more.retain(|kind, n| !kind.ends_with(".seg") && open.get(kind).is_none_or(|most| *n > *most));
            if more.is_empty() {
                break;
            }
            assert!(Instant::now() < end, "descriptors are left open: {more:?} beyond {open:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        report(name, &told, &strikes, took);
        // A storm without one of them would show nothing of it.
        let both = ["daemons killed", "shims killed"].iter().all(|what| strikes.contains_key(what));
        assert!(both || !is_long(), "{strikes:?}");
    }
}

fn report(name: &str, told: &BTreeMap<String, Result<Exit>>, strikes: &BTreeMap<&str, u64>, took: Duration) {
    let mut line = format!("long-run: storm, {} | {} containers in {} s", name, told.len(), took.as_secs());
    let mut ends: BTreeMap<String, u64> = BTreeMap::new();
    for outcome in told.values() {
        let how = match outcome {
            Ok(exit) if exit.reason.is_empty() => "ends of their own".into(),
            Ok(_) => "lost with their shim".into(),
            Err(error) => format!("told `{}`", error.code.as_str()),
        };
        *ends.entry(how).or_default() += 1;
    }
    let strikes = strikes.iter().map(|(what, n)| (*what, n));
    for (what, n) in ends.iter().map(|(how, n)| (&**how, n)).chain(strikes) {
        write!(line, ", {n} {what}").unwrap();
    }
    println!("{line}");
}

/// A life while nothing dies.
fn calm(daemon: &Daemon, id: &str) {
    bounded(async {
        let mut request = daemon.run(id, ["sh", "-c", "exit 3"]);
        request.container.remove_on_exit = true;
        assert_eq!(daemon.client().await.run(request).unwrap().wait().await.unwrap().status, 3);
    });
}

type Told = BTreeMap<String, Result<Exit>>;

/// Lives all of them, and gives what a client was told of each, and of what was run in it.
async fn all(daemon: &Daemon, lives: &[Life], accounts_for: fn(&Life, &Result<Exit>) -> bool) -> (Told, Told) {
    let (next, told, execs) = (RefCell::new(lives.iter()), RefCell::new(Told::new()), RefCell::new(Told::new()));
    let lane = async || {
        loop {
            let Some(life) = next.borrow_mut().next() else { return };
            let outcome = tokio::time::timeout(PATIENCE, live(daemon, life, &execs)).await;
            let outcome = outcome.unwrap_or_else(|_| panic!("{} hangs", life.id));
            assert!(
                is_ordinary(life, &outcome) || accounts_for(life, &outcome),
                "{} ({}): {outcome:?}",
                life.id,
                life.code
            );
            told.borrow_mut().insert(life.id.clone(), outcome);
        }
    };
    futures::future::join_all((0..LANES).map(|_| lane())).await;
    (told.into_inner(), execs.into_inner())
}

fn pipe_of(daemon: &Daemon, id: &str) -> PathBuf {
    daemon.path().join(format!("{id}.pipe"))
}

/// A life, behind which nobody holds its streams any more.
async fn live(daemon: &Daemon, life: &Life, execs: &RefCell<Told>) -> Result<Exit> {
    if life.streams != Streams::Fifo {
        return live_through(daemon, life, execs).await;
    }
    let path = pipe_of(daemon, &life.id);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reads = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    let outcome = live_through(daemon, life, execs).await;
    let mut said = Vec::new();
    let free = format!("nobody holds the pipe of {}", life.id);
    until_async(&free, || std::future::ready((&reads).read_to_end(&mut said).ok())).await;
    // A shim that was killed takes along what it has not passed on.
    assert!(format!("{SAID}\n").as_bytes().starts_with(&said), "{}: {said:?}", life.id);
    std::fs::remove_file(path).unwrap();
    outcome
}

async fn live_through(daemon: &Daemon, life: &Life, execs: &RefCell<Told>) -> Result<Exit> {
    let request = life.request(daemon);
    let client = loop {
        match Client::connect(daemon.socket()).await {
            Ok(client) => break client,
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    };
    let run = client.run(request).unwrap();
    if life.killed && run.started().await.is_ok() {
        // The runtime may be what fails here; the removal has to do without it.
        let _ = run.task().kill(9, true).await;
        gone(&life.id, ask(daemon, async |ns| ns.containers().get(&life.id).remove(true).await).await);
    }
    let more = async {
        let code = life.exec?;
        run.started().await.ok()?;
        let (id, args) = (exec_of(life), ["sh".into(), "-c".into(), format!("sleep 0.05; exit {code}")]);
        let options = ProcessOptions { args: args.into(), ..ProcessOptions::default() };
        let exec = run.task().exec(&id, &options, Stdio::default());
        exec.start().await.ok()?;
        // Its container may end before it, and be gone.
        let outcome = exec.wait().await;
        execs.borrow_mut().insert(id, outcome)
    };
    let (outcome, _) = tokio::join!(run.wait(), more);
    if life.kept {
        match &outcome {
            Ok(exit) if !life.killed => bury(daemon, life, exit).await,
            _ => gone(&life.id, ask(daemon, async |ns| ns.containers().get(&life.id).remove(true).await).await),
        }
    }
    outcome
}

/// Takes a container away whose task has ended like that, as everybody who is asked says.
async fn bury(daemon: &Daemon, life: &Life, exit: &Exit) {
    let id = &*life.id;
    let (state, _) = ask(daemon, async |ns| ns.containers().get(id).task().state().await).await;
    assert_eq!(state.unwrap_or_else(|e| panic!("{id}: {e}")).exit.as_ref(), Some(exit), "{id}");
    match ask(daemon, async |ns| ns.containers().get(id).task().delete().await).await {
        (Ok(told), _) => assert_eq!(&told, exit, "{id}"),
        (Err(error), repeated) => {
            // Done the first time; or its runtime fails at it, and force is called for.
            let done = repeated && error.code == Code::NotFound;
            assert!(done || life.runtime != "native", "{id}: {error}");
            if !done {
                // One that hangs has its half minute each time.
                gone(id, ask(daemon, async |ns| ns.containers().get(id).remove(true).await).await);
                return;
            }
        }
    }
    match ask(daemon, async |ns| ns.containers().get(id).remove(false).await).await {
        (Err(error), _) if life.runtime != "native" && error.code != Code::NotFound => {
            gone(id, ask(daemon, async |ns| ns.containers().get(id).remove(true).await).await);
        }
        other => gone(id, other),
    }
}

fn gone(id: &str, answer: (Result<()>, bool)) {
    match answer.0 {
        Err(error) if error.code != Code::NotFound => panic!("{id} can't be removed: {error}"),
        _ => {}
    }
}

/// Asks on a new connection, and again while the answer is that something is away. Says whether it was asked again: what
/// was asked for may have been done before.
async fn ask<T>(daemon: &Daemon, ask: impl AsyncFn(&Namespace) -> Result<T>) -> (Result<T>, bool) {
    let until = Instant::now() + PATIENCE;
    let mut repeated = false;
    loop {
        let answer = match Client::connect(daemon.socket()).await {
            Ok(client) => ask(&client.namespace(daemon.namespace())).await,
            Err(error) => Err(error),
        };
        match answer {
            Err(Error { code: Code::Unavailable, .. }) if Instant::now() < until => repeated = true,
            Err(Error { code: Code::ResourceExhausted, .. }) if Instant::now() < until => {}
            other => return (other, repeated),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A bridge of the host's, to which some are connected.
fn bridge(daemon: &Daemon) -> Network {
    let (configs, own) = daemon.networks();
    for dir in [&configs, &own] {
        std::fs::create_dir_all(dir).unwrap();
    }
    let ipam = serde_json::json!({
        "type": "host-local", "dataDir": daemon.path().join("leases"), "ranges": [[{ "subnet": "10.214.0.0/24" }]],
    });
    let plugins = [serde_json::json!({ "type": "bridge", "bridge": "storm0", "ipam": ipam })];
    let list = serde_json::json!({ "cniVersion": "1.0.0", "name": "storm", "plugins": plugins });
    std::fs::write(configs.join("storm.conflist"), list.to_string()).unwrap();
    Network::Named("storm".into())
}

/// What is taken of it: addresses, and ends of connections.
fn taken(daemon: &Daemon) -> Vec<String> {
    let names = |dir: PathBuf| {
        let entries = std::fs::read_dir(dir).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let mut found = names(daemon.path().join("leases/storm"));
    // One of its files says which address was given last, another is a lock.
    found.retain(|name| name.starts_with("10."));
    let links = daemon.inside(|| std::process::Command::new("ip").args(["-o", "link"]).output().unwrap());
    let links = String::from_utf8(links.stdout).unwrap();
    found.extend(links.lines().filter(|line| line.contains("veth")).map(str::to_owned));
    found
}

#[test]
fn each_run_has_one_end_whatever_is_killed() {
    let daemon = Daemon::with_network(&[]);
    let network = bridge(&daemon);
    let mut random = Random::new(seed());
    let life = |n| {
        let mut life = Life::random(&mut random, format!("s{n}"));
        if random.below(8) == 0 {
            life.network = network.clone();
        }
        life
    };
    let storm = Storm {
        name: "the native runtime",
        lives: (0..count(2000, 60)).map(life).collect(),
        pause: Duration::from_millis(50),
        strike: Box::new(|random| kill_one(&daemon, random, count(40, 15), |_| false)),
        accounts_for: |_, _| false,
    };
    storm.rage(&daemon);
    until("nothing of the network is taken", || taken(&daemon).is_empty().then_some(()));
}
