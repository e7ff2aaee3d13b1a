//! Times the RPC surface: `rpc SOCKET PID DIRECTORY N`, of a daemon that takes 12,000 connections. DIRECTORY is for a file
//! of 1 GiB, which should be in the page cache. One JSON line per figure, as `peers/measure` prints them.
//!
//! `null_call` is `Gate.hello` through the daemon's gate, guard and session, and `null_call_bare` the same call to a program
//! that has nothing but capnp-rpc, on a socket of its own: they are made in turns. So are `call`, of a namespace that is held, and
//! `chain_of_three`, which looks it up before.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};

use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side, twoparty::VatNetwork};
use cofferdam_client::{Client, Grant, GrantOptions, block_on, channel};
use cofferdam_wire::{
    connect,
    gate_capnp::{gate, namespaces, root},
    namespace_capnp::namespace,
};
use futures::io::{BufReader, BufWriter};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::compat::{TokioAsyncReadCompatExt as _, TokioAsyncWriteCompatExt as _};

/// Calls that one sample is the mean of.
const CALLS: u32 = 2000;
const LIVE: usize = 100_000;
const IDLE: usize = 10_000;
const GIB: usize = 1 << 30;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["bare", socket] => block_on(bare(socket)).expect("a runtime"),
        [socket, pid, dir, count] => {
            let count = count.parse().expect("a number of rounds");
            // A daemon takes half as many connections as it may have descriptors.
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("as many descriptors as there may be");
            block_on(calls(socket, dir, count)).expect("a runtime");
            block_on(bytes(socket, dir, count)).expect("a runtime");
            block_on(revoked(socket, count.min(5))).expect("a runtime");
            idle(socket, pid, IDLE.min(hard as usize / 2 - 100));
        }
        // `cargo bench` without arguments: there is no daemon to time.
        _ => eprintln!("usage: rpc SOCKET PID DIRECTORY N (integration/benches/figures runs it)"),
    }
}

/// A gate that has nothing behind it, served by capnp-rpc and nothing else.
struct Bare;

impl gate::Server for Bare {
    async fn hello(self: Rc<Self>, _: gate::HelloParams, mut results: gate::HelloResults) -> capnp::Result<()> {
        let mut answer = results.get();
        answer.set_version(1);
        answer.set_daemon("0.1.0");
        answer.set_fds(true);
        answer.init_features(0);
        Ok(())
    }

    async fn enter(self: Rc<Self>, _: gate::EnterParams, mut results: gate::EnterResults) -> capnp::Result<()> {
        results.get().set_root(capnp_rpc::new_client(Bare));
        Ok(())
    }
}

impl root::Server for Bare {
    async fn namespaces(
        self: Rc<Self>,
        _: root::NamespacesParams,
        mut results: root::NamespacesResults,
    ) -> capnp::Result<()> {
        results.get().set_namespaces(capnp_rpc::new_client(Bare));
        Ok(())
    }
}

impl namespaces::Server for Bare {
    async fn get(self: Rc<Self>, _: namespaces::GetParams, mut results: namespaces::GetResults) -> capnp::Result<()> {
        results.get().set_namespace(capnp_rpc::new_client(Bare));
        Ok(())
    }
}

/// As much as there is to tell of a new namespace, read from nowhere.
impl namespace::Server for Bare {
    async fn info(self: Rc<Self>, _: namespace::InfoParams, mut results: namespace::InfoResults) -> capnp::Result<()> {
        let mut answer = results.get().init_info();
        answer.set_name("default");
        answer.set_created(1);
        answer.set_updated(1);
        Ok(())
    }
}

/// The plain network of capnp-rpc's own examples.
fn plain(stream: UnixStream, side: Side) -> Box<VatNetwork<impl futures::AsyncRead + Unpin>> {
    let (reader, writer) = stream.into_split();
    let (reader, writer) = (BufReader::new(reader.compat()), BufWriter::new(writer.compat_write()));
    Box::new(VatNetwork::new(reader, writer, side, Default::default()))
}

async fn bare(socket: &str) {
    // Of the turn before.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).expect("a socket");
    println!("serves");
    while let Ok((stream, _)) = listener.accept().await {
        let gate: gate::Client = capnp_rpc::new_client(Bare);
        tokio::task::spawn_local(RpcSystem::new(plain(stream, Side::Server), Some(gate.client)));
    }
}

async fn own(socket: &str) -> gate::Client {
    let stream = UnixStream::connect(socket).await.expect("it listens");
    let (network, _) = connect::network(stream, Side::Client, 64 << 20);
    let mut system = RpcSystem::new(Box::new(network), None);
    let gate = system.bootstrap(Side::Server);
    tokio::task::spawn_local(system);
    gate
}

fn root_of(gate: &gate::Client) -> root::Client {
    gate.enter_request().send().pipeline.get_root()
}

fn namespace_of(root: &root::Client) -> namespace::Client {
    let mut get = root.namespaces_request().send().pipeline.get_namespaces().get_request();
    get.get().set_name("default");
    get.send().pipeline.get_namespace()
}

/// What one of many calls takes, one after the other, in microseconds.
async fn each(call: impl AsyncFn()) -> f64 {
    let began = Instant::now();
    for _ in 0..CALLS {
        call().await;
    }
    began.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS)
}

async fn hello(gate: &gate::Client) {
    gate.hello_request().send().promise.await.expect("an answer");
}

async fn info(namespace: &namespace::Client) {
    namespace.info_request().send().promise.await.expect("an answer");
}

async fn calls(socket: &str, dir: &str, count: usize) {
    let place = format!("{dir}/bare.sock");
    let mut server = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["bare", &place])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("this program again");
    server.stdout.take().expect("piped").read_exact(&mut [0; 6]).expect("it serves");
    let mut system = RpcSystem::new(plain(UnixStream::connect(&place).await.expect("it listens"), Side::Client), None);
    let bare: gate::Client = system.bootstrap(Side::Server);
    tokio::task::spawn_local(system);

    let gate = own(socket).await;
    let root = root_of(&gate);
    let held = namespace_of(&root);
    let bare_root = root_of(&bare);
    let bare_held = namespace_of(&bare_root);
    let mut samples: [Vec<f64>; 6] = Default::default();
    for round in 0..=count {
        let took = [
            each(async || hello(&bare).await).await,
            each(async || info(&bare_held).await).await,
            each(async || info(&namespace_of(&bare_root)).await).await,
            each(async || hello(&gate).await).await,
            each(async || info(&held).await).await,
            // Three calls that are sent at once: the second looks the namespace up, and the third what is known of it.
            each(async || info(&namespace_of(&root)).await).await,
        ];
        // The first round only warms up.
        if round > 0 {
            samples.iter_mut().zip(took).for_each(|(all, one)| all.push(one));
        }
    }
    server.kill().expect("it is ours");
    server.wait().expect("it ends");
    let [bare, bare_one, bare_chain, null, one, chain] = samples;
    report("null_call_bare", "us", bare);
    report("call_bare", "us", bare_one);
    report("chain_of_three_bare", "us", bare_chain);
    report("null_call", "us", null);
    report("call", "us", one);
    report("chain_of_three", "us", chain);
}

/// 1 GiB that is a blob of the daemon's, by a pipe of ours and by a stream; and by a pipe alone.
async fn bytes(socket: &str, dir: &str, count: usize) {
    let path = format!("{dir}/gibibyte");
    let mut file = File::create(&path).expect("a file");
    let mut random = vec![0; 16 << 20];
    File::open("/dev/urandom").and_then(|mut from| from.read_exact(&mut random)).expect("random bytes");
    (0..GIB / random.len()).for_each(|n| {
        random[0] = n as u8;
        file.write_all(&random).expect("room for 1 GiB");
    });
    let client = Client::connect(socket).await.expect("it listens");
    let content = client.namespace("default").content();
    let ingest = content.ingest("rpc", 0, "", "sha256");
    ingest.copy_fd(File::open(&path).expect("the file").into()).await.expect("it is taken");
    let digest = ingest.commit(0, "", &Default::default()).await.expect("a blob").to_string();
    let blob = content.get(&digest);
    let (mut pipes, mut fds, mut streams) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=count.min(5) {
        let (bare, began) = (read_all(), Instant::now());
        let from = File::open(&path).expect("the file");
        std::thread::spawn(move || copy(from, bare.0)).join().expect("it is written");
        bare.1.join().expect("it is read");
        let pipe = began.elapsed();

        let (ours, began) = (read_all(), Instant::now());
        blob.read_fd(0, 0, ours.0).await.expect("it is written");
        ours.1.join().expect("it is read");
        let fd = began.elapsed();

        let began = Instant::now();
        let (sink, mut heard) = channel();
        let reading = blob.read(0, 0, &sink);
        drop(sink);
        let mut got = 0;
        while let Some(chunk) = heard.next().await {
            got += chunk.len();
        }
        reading.await.expect("it is read");
        assert_eq!(got, GIB);
        let stream = began.elapsed();
        if round > 0 {
            pipes.push(pipe.as_secs_f64() * 1e3);
            fds.push(fd.as_secs_f64() * 1e3);
            streams.push(stream.as_secs_f64() * 1e3);
        }
    }
    content.remove(&digest).await.expect("it goes");
    std::fs::remove_file(path).expect("it goes");
    report("gibibyte_by_pipe_bare", "ms", pipes);
    report("gibibyte_by_fd", "ms", fds);
    report("gibibyte_by_stream", "ms", streams);
}

/// A pipe whose other end is read until there is no more.
fn read_all() -> (OwnedFd, std::thread::JoinHandle<()>) {
    let (read, write) = nix::unistd::pipe().expect("a pipe");
    let reader = std::thread::spawn(move || {
        let (mut from, mut block, mut all) = (File::from(read), vec![0; 64 << 10], 0);
        while let Ok(n @ 1..) = from.read(&mut block) {
            all += n;
        }
        assert_eq!(all, GIB);
    });
    (write, reader)
}

/// As the daemon does it: in blocks, by read and write.
fn copy(mut from: File, to: OwnedFd) {
    let (mut to, mut block) = (File::from(to), vec![0; 64 << 10]);
    while let Ok(n @ 1..) = from.read(&mut block) {
        to.write_all(&block[..n]).expect("it is read");
    }
}

/// What comes from a grant, on connections of its own.
struct Holder {
    gates: Vec<gate::Client>,
    roots: Vec<root::Client>,
}

/// A grant of which so many live capabilities are held.
async fn given(socket: &str, client: &Client, many: usize) -> (Grant, String, Holder) {
    let options = GrantOptions { facets: vec!["observer".into()], ..GrantOptions::default() };
    let grant = client.namespace("default").grants().create(&options);
    let token = grant.save(None).await.expect("a token");
    let mut holder = Holder { gates: Vec::new(), roots: Vec::new() };
    while holder.roots.len() < many {
        let gate = own(socket).await;
        for _ in 0..many.min(1000).div_ceil(200) {
            // Each is answered when it is on record, and no more than 256 may be under way.
            let calls = (0..many.min(200)).map(|_| {
                let mut restore = gate.restore_request();
                restore.get().set_token(&token);
                restore.send()
            });
            let (answers, roots): (Vec<_>, Vec<_>) = calls.map(|call| (call.promise, call.pipeline.get_root())).unzip();
            holder.roots.extend(roots);
            futures::future::try_join_all(answers).await.expect("an answer");
        }
        holder.gates.push(gate);
    }
    info(&namespace_of(holder.roots.last().expect("there is one"))).await;
    (grant, token, holder)
}

/// Revokes a grant, and says in milliseconds how soon somebody felt it who asks all the time, on a thread of his own, and when
/// the answer came.
async fn revoke(socket: &str, grant: &Grant, token: &str) -> (f64, f64) {
    let (to, from) = std::sync::mpsc::sync_channel(0);
    let (place, theirs) = (socket.to_owned(), token.to_owned());
    let asks = std::thread::spawn(move || {
        block_on(async {
            let gate = own(&place).await;
            let mut restore = gate.restore_request();
            restore.get().set_token(&theirs);
            let held = namespace_of(&restore.send().pipeline.get_root());
            info(&held).await;
            to.send(()).expect("somebody waits");
            while held.info_request().send().promise.await.is_ok() {}
            Instant::now()
        })
        .expect("a runtime")
    });
    from.recv().expect("he asks");
    let began = Instant::now();
    grant.revoke().await.expect("it is taken back");
    let answered = began.elapsed();
    let felt = asks.join().expect("he was told").duration_since(began);
    (felt.as_secs_f64() * 1e3, answered.as_secs_f64() * 1e3)
}

/// One grant among 100,000 live capabilities; and the one that they come from.
async fn revoked(socket: &str, count: usize) {
    let client = Client::connect(socket).await.expect("it listens");
    let (mut one, mut all) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    let note = |to: &mut (Vec<f64>, Vec<f64>), took: (f64, f64)| {
        to.0.push(took.0);
        to.1.push(took.1);
    };
    for _ in 0..count {
        let (many, token, held) = given(socket, &client, LIVE).await;
        for _ in 0..4 {
            let (grant, token, _held) = given(socket, &client, 1).await;
            note(&mut one, revoke(socket, &grant, &token).await);
        }
        note(&mut all, revoke(socket, &many, &token).await);
        drop(held);
    }
    report("revoke_one_of_100000_is_felt", "ms", one.0);
    report("revoke_one_of_100000_is_answered", "ms", one.1);
    report("revoke_100000_is_felt", "ms", all.0);
    report("revoke_100000_is_answered", "ms", all.1);
}

fn idle(socket: &str, pid: &str, many: usize) {
    let memory = || {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it runs");
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("it is there");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number")
    };
    // What others needed is given back when it has been quiet for a while.
    std::thread::sleep(Duration::from_secs(5));
    let before = memory();
    block_on(async {
        let mut gates = Vec::new();
        for _ in 0..many {
            let gate = own(socket).await;
            hello(&gate).await;
            gates.push(gate);
        }
        std::thread::sleep(Duration::from_secs(5));
        report("idle_connection", "KiB", vec![(memory() - before) / many as f64]);
    })
    .expect("a runtime");
}

fn report(what: &str, unit: &str, mut samples: Vec<f64>) {
    samples.sort_by(f64::total_cmp);
    let line = serde_json::json!({
        "peer": "cofferd", "what": what, "unit": unit, "n": samples.len(),
        "min": samples[0], "median": samples[samples.len() / 2], "max": samples[samples.len() - 1], "samples": samples,
    });
    println!("{line}");
}
