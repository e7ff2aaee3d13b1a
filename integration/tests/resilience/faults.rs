//! The same storm over a runtime that hangs, one that fails half-way, and a disk that fills up.

use std::{cell::RefCell, fs, path::PathBuf, rc::Rc, time::Duration};

use cofferdam_client::{
    Client, ContainerRequest, Events, LogRecord, ProcessOptions, RUNTIME_OPTIONS, Run, Status, Stdio,
};
use cofferdam_integration::{
    BUSYBOX, Daemon, bounded, count, fill, input, is_long, processes, script, small_disk, small_state, until,
    until_async,
};
use cofferdam_sys::cgroup::{Cgroup, Layout};
use cofferdam_types::{Any, Code};
use cofferdam_wire::life::file_name;

use crate::{
    ends_when_told,
    late::{hook, hooked},
    random::{Random, seed},
    start,
    storm::{Life, Storm, children, kill_one},
    tell,
};

/// What goes wrong the container's id says, as `<id>-<fault>-<verb>`: it is in every invocation. What it runs dies with it, as a
/// runtime dies with its shim.
const WRAPPER: &str = r#"#!/bin/sh
for word; do
    case $word in create | start | kill | delete) verb=$word; break ;; esac
done
case "$*" in
    *-hang-$verb*) exec sleep 1000 ;;
    *-refuse-$verb*) exit 77 ;;
    *-halfway-$verb*) setpriv --pdeathsig KILL runc "$@"; exit 77 ;;
    *) exec runc "$@" ;;
esac
"#;

/// What goes wrong, at which verbs, and with one container of how many.
struct Faults {
    kinds: &'static [&'static str],
    verbs: &'static [&'static str],
    one_in: u64,
    /// Of how many strikes one is at the daemon.
    daemon_in: u64,
}

impl Faults {
    /// A life that may meet one.
    fn life(&self, random: &mut Random, n: u64, runtime: &str) -> Life {
        let fault = random.below(self.one_in) == 0;
        let mut one_of = |all: &[&'static str]| all[random.below(all.len() as u64) as usize];
        let (kind, verb) = (one_of(self.kinds), one_of(self.verbs));
        let mut id = if fault { format!("f{n}-{kind}-{verb}") } else { format!("f{n}") };
        if fault && (kind, verb) == ("halfway", "create") && random.below(2) == 0 {
            id += "-refuse-delete";
        }
        let mut life = Life { runtime: runtime.into(), ..Life::random(random, id) };
        if fault {
            // By force it goes with its shim, which others of a group would have as well.
            life.group = "";
        }
        if fault && verb == "kill" {
            // Removed under who waits for it: that one finds the end in the journal, as of all that goes by itself.
            (life.kept, life.killed) = (false, true);
            (life.script, life.code) = ("exec sleep 1000".into(), 137);
        }
        life
    }

    /// So many lives, with a strike every so often.
    fn rage(&self, daemon: &Daemon, name: &str, lives: u64, pause: Duration) {
        // The death of its shim would free whoever hangs: most come to their deadline.
        let hangs = |pid: i32| children(pid).iter().any(|pid| name_of(*pid) == "sleep");
        let runtime = daemon.path().join("runtime");
        script(&runtime, WRAPPER);
        let mut random = Random::new(seed());
        let storm = Storm {
            name,
            lives: (0..lives).map(|n| self.life(&mut random, n, runtime.to_str().unwrap())).collect(),
            pause,
            strike: Box::new(move |random| {
                let spare = random.below(32) != 0;
                kill_one(daemon, random, self.daemon_in, |pid| spare && hangs(pid))
            }),
            accounts_for: |life, outcome| match outcome {
                // One that could not be started is killed: it would look as if it ran.
                Ok(exit) => exit.status == 137 && exit.reason.is_empty() && life.id.ends_with("-start"),
                Err(error) => {
                    let planned = error.code == Code::DeadlineExceeded || error.message.contains("exit status: 77");
                    planned && ["-create", "-start"].iter().any(|verb| life.id.contains(verb))
                }
            },
        };
        storm.rage(daemon);
    }
}

fn name_of(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

const VERBS: &[&str] = &["create", "start", "kill", "delete"];

#[test]
fn each_run_has_one_end_though_the_runtime_hangs() {
    let daemon = Daemon::with_busybox();
    let name = "a runtime that hangs";
    // At each a deadline of half a minute strikes.
    let faults = Faults {
        kinds: &["hang"],
        verbs: if is_long() { VERBS } else { &["delete"] },
        one_in: count(40, 3),
        daemon_in: count(10, 15),
    };
    faults.rage(&daemon, name, count(2000, 8), Duration::from_secs(count(2, 30)));
}

#[test]
fn each_run_has_one_end_though_the_runtime_fails() {
    let daemon = Daemon::with_busybox();
    let faults = Faults { kinds: &["refuse", "halfway"], verbs: VERBS, one_in: 2, daemon_in: count(40, 15) };
    faults.rage(&daemon, "a runtime that fails half-way", count(2000, 24), Duration::from_millis(200));
}

/// By force alone: without, the error is the operator's to look at.
#[test]
fn a_runtime_that_fails_at_deletions_keeps_no_container() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let runtime = daemon.path().join("runtime");
    script(&runtime, WRAPPER);
    bounded(async {
        let client = daemon.client().await;
        let mut request = daemon.run("box-refuse-delete", ["sh", "-c", "exit 4"]);
        request.container.runtime = runtime.to_str().unwrap().into();
        let run = client.run(request).unwrap();
        let exit = run.wait().await.unwrap();
        assert_eq!(exit.status, 4);
        for error in [run.task().delete().await.unwrap_err(), run.container().remove(false).await.unwrap_err()] {
            assert_eq!(error.code, Code::Internal, "{error}");
        }
        assert_eq!(run.task().state().await.unwrap().exit, Some(exit));
        run.container().remove(true).await.unwrap();
        assert_eq!(run.container().info().await.unwrap_err().code, Code::NotFound);
    });
    daemon.settles(&before);
}

/// What is made and is not on record goes, whatever its runtime says of that; as does what was made half-way.
#[test]
fn a_runtime_that_undoes_nothing_keeps_nothing_that_could_not_be_made() {
    let daemon = small_disk(64, 4096);
    daemon.import_busybox();
    let before = daemon.leftovers();
    let runtime = daemon.path().join("runtime");
    script(&runtime, WRAPPER);
    bounded(async {
        let namespace = daemon.open().await;
        let created = async |id: &str| {
            let mut request = ContainerRequest { id: id.into(), ..ContainerRequest::default() };
            request.runtime = runtime.to_str().unwrap().into();
            request.options.args = ["sleep", "1000"].map(String::from).into();
            let container = namespace.containers().create(&namespace.images().get(BUSYBOX), &request);
            container.info().await.unwrap();
            container
        };
        let (halfway, whole) = (created("a-halfway-create-refuse-delete").await, created("b-refuse-delete").await);
        let error = halfway.create_task(Stdio::default(), false).state().await.unwrap_err();
        assert!(error.message.contains("exit status: 77"), "{error}");

        let neighbour = Neighbour(Some(fill(&daemon.root(), 0)));
        exhaust(&namespace.events()).await;
        let error = whole.create_task(Stdio::default(), false).state().await.unwrap_err();
        assert_eq!(error.code, Code::ResourceExhausted, "{error}");
        drop(neighbour);
        for container in [halfway, whole] {
            container.remove(false).await.unwrap();
        }
    });
    daemon.settles(&before);
}

#[test]
fn what_can_not_be_set_up_leaves_nothing() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let logs = daemon.root().join("logs").join(daemon.namespace());
    fs::write(&logs, "where the directories of logs are to be").unwrap();
    bounded(async {
        let namespace = daemon.open().await;
        let request = daemon.run("box", ["true"]).container;
        let container = namespace.containers().create(&namespace.images().get(BUSYBOX), &request);
        container.info().await.unwrap();
        container.create_task(Stdio::default(), true).state().await.unwrap_err();
        assert!(!daemon.state().join("tasks").join(daemon.namespace()).join("box").exists());
        fs::remove_file(&logs).unwrap();
        let task = container.create_task(Stdio::default(), true);
        task.start().await.unwrap();
        assert_eq!(task.wait().await.unwrap().status, 0);
        container.remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

/// A neighbour who takes all room, and gives it back when it goes.
pub struct Neighbour(pub Option<PathBuf>);

impl Drop for Neighbour {
    fn drop(&mut self) {
        if let Some(filler) = self.0.take() {
            fs::remove_file(filler).unwrap();
        }
    }
}

#[test]
fn each_run_has_one_end_though_the_disk_fills_up() {
    let daemon = small_disk(64, 4096);
    daemon.import_busybox();
    let mut random = Random::new(seed());
    let mut neighbour = Neighbour(None);
    let host = &daemon;
    let storm = Storm {
        name: "a disk that fills up",
        lives: (0..count(2000, 40)).map(|n| Life::random(&mut random, format!("d{n}"))).collect(),
        pause: Duration::from_millis(100),
        strike: Box::new(move |random| {
            if random.below(4) != 0 {
                return kill_one(host, random, count(40, 15), |_| false);
            }
            match neighbour.0.take() {
                Some(filler) => fs::remove_file(filler).unwrap(),
                None => neighbour.0 = Some(fill(&host.root(), random.below(3) * (64 << 10))),
            }
            "times that the disk was filled or emptied"
        }),
        accounts_for: |_, outcome| outcome.as_ref().is_err_and(|error| error.code == Code::ResourceExhausted),
    };
    storm.rage(&daemon);
}

/// The tables have room of their own: until that is gone too.
pub async fn exhaust(events: &Events) {
    for size in [15 << 10, 1 << 10, 16] {
        let much = serde_json::json!({ "text": "x".repeat(size) });
        until_async("there is no room", async || match events.publish("/test/much", &much).await {
            Ok(_) => None,
            Err(error) => {
                assert_eq!(error.code, Code::ResourceExhausted, "{error}");
                Some(())
            }
        })
        .await;
    }
}

/// A container that runs, and ends when it is told, where there is no room since the last event.
pub struct Cramped {
    pub client: Client,
    pub run: Run,
    pub file: fs::File,
    pub events: Events,
    pub last: u64,
    pub neighbour: Neighbour,
}

pub async fn cramped(daemon: &Daemon) -> Cramped {
    let client = daemon.client().await;
    let (request, file) = ends_when_told(daemon, "box");
    let (run, _) = start(&client, request).await;
    let events = client.namespace(daemon.namespace()).events();
    until_async("its start is recorded", async || {
        let info = run.container().info().await.unwrap();
        info.task.is_some_and(|task| task.pid != 0).then_some(())
    })
    .await;
    let neighbour = Neighbour(Some(fill(&daemon.root(), 0)));
    exhaust(&events).await;
    let last = events.last().await.unwrap();
    Cramped { client, run, file, events, last, neighbour }
}

/// It stands still or goes on, as it is told; the news comes when there is room.
#[test]
fn a_pause_on_a_full_disk_is_one_and_is_recorded_later() {
    let daemon = small_disk(64, 4096);
    daemon.import_busybox();
    bounded(async {
        let Cramped { run, file, events, last, neighbour, .. } = cramped(&daemon).await;
        for _ in 0..2 {
            run.task().pause().await.unwrap();
            assert_eq!(run.task().state().await.unwrap().status, Status::Paused);
            run.task().resume().await.unwrap();
            assert_eq!(run.task().state().await.unwrap().status, Status::Running);
        }
        assert_eq!(events.last().await.unwrap(), last, "there was room");
        drop(neighbour);
        let mut told = events.subscribe(last, &["topic==\"/tasks/paused\"", "topic==\"/tasks/resumed\""]);
        for topic in ["/tasks/paused", "/tasks/resumed"].repeat(2) {
            assert_eq!(told.next().await.unwrap().expect("no gap").topic, topic);
        }
        tell(&file, 7);
        assert_eq!(run.wait().await.unwrap().status, 7);
        run.container().remove(false).await.unwrap();
    });
}

/// Nobody asks for it any more, and it comes.
#[test]
fn an_end_on_a_full_disk_is_recorded_when_there_is_room() {
    let daemon = small_disk(64, 4096);
    daemon.import_busybox();
    bounded(async {
        let Cramped { run, file, events, last, neighbour, .. } = cramped(&daemon).await;
        tell(&file, 7);
        // That doesn't keep anybody from being told.
        assert_eq!(run.wait().await.unwrap().status, 7);
        until("it can't be recorded", || daemon.log().contains("an exit can't be recorded").then_some(()));
        drop(neighbour);
        let exit = events.subscribe(last, &["topic==\"/tasks/exit\""]).next().await.unwrap().expect("no gap");
        assert_eq!(exit.payload["exit_status"], 7);
        run.container().remove(false).await.unwrap();
    });
}

/// A shim tells it from memory, and lives; so do the others of its group.
#[test]
fn an_end_on_a_full_state_is_told_and_written_when_there_is_room() {
    let daemon = small_state(4);
    daemon.import_busybox();
    bounded(async {
        let client = daemon.client().await;
        let mut runs = Vec::new();
        for id in ["short", "long"] {
            let (mut request, file) = ends_when_told(&daemon, id);
            request.container.group = "pod".into();
            runs.push((start(&client, request).await.0, file));
        }
        let neighbour = Neighbour(Some(fill(&daemon.state(), 0)));
        tell(&runs[0].1, 5);
        let exit = runs[0].0.wait().await.unwrap();
        assert_eq!((exit.status, &*exit.reason), (5, ""));
        let shims = || fs::read_dir(daemon.state().join("shims")).unwrap().map(|entry| entry.unwrap().path());
        let life = || {
            let record = shims().map(|dir| dir.join("short.life")).find(|path| path.exists()).unwrap();
            cofferdam_wire::life::decode(&fs::read(record).unwrap()).unwrap()
        };
        assert_eq!(life().exited.0, 0, "there was room");
        drop(neighbour);
        until("it is on record", || (life().exited.0 != 0 && life().status == 5).then_some(()));
        tell(&runs[1].1, 7);
        assert_eq!(runs[1].0.wait().await.unwrap().status, 7);
    });
}

/// What can't be put on record doesn't run; who is told so finds what has ended, and not what is yet to be started.
#[test]
fn an_exec_that_is_not_put_on_record_has_ended_when_its_start_has_failed() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (request, file) = ends_when_told(&daemon, "box");
        let (run, _) = start(&client, request).await;
        let options = ProcessOptions { args: ["sleep", "1000"].map(String::from).into(), ..ProcessOptions::default() };
        let execs = ["one", "two", "three"].map(|id| run.task().exec(id, &options, Stdio::default()));
        for exec in &execs {
            exec.made().await.unwrap();
        }
        // Something is in the place where each new record is written first.
        let shims: Vec<_> =
            fs::read_dir(daemon.state().join("shims")).unwrap().map(|dir| dir.unwrap().path()).collect();
        let new = |shim: &PathBuf, id: &str| shim.join(format!("{}.new", file_name("box", id)));
        let theirs =
            shims.iter().find(|shim| shim.join(file_name("box", "one")).exists()).expect("its shim's directory");
        for id in ["one", "two", "three"] {
            fs::create_dir(new(theirs, id)).unwrap();
        }
        for exec in &execs {
            let error = exec.start().await.unwrap_err();
            assert!(error.kind == "life record", "{error}");
            let state = exec.state().await.unwrap();
            assert_eq!((state.status, state.exit.map(|exit| exit.status)), (Status::Stopped, Some(137)));
            assert_eq!(exec.wait().await.unwrap().status, 137);
            assert_eq!(exec.delete().await.unwrap().status, 137);
        }
        for id in ["one", "two", "three"] {
            fs::remove_dir(new(theirs, id)).unwrap();
        }
        tell(&file, 7);
        assert_eq!(run.wait().await.unwrap().status, 7);
    });
}

#[test]
fn r7_a_container_that_logs_goes_on_though_the_disk_is_full() {
    let daemon = small_disk(64, 4096);
    daemon.import_busybox();
    bounded(async {
        let client = daemon.client().await;
        let script =
            "n=0; while ! read -t 0 told; do n=$((n + 1)); echo \"line $n of what it says\"; usleep 500; done; exit 7";
        let mut request = daemon.run("box", ["sh", "-c", script]);
        let (stdin, file) = input();
        (request.stdio.stdin, request.log) = (stdin, true);
        let (run, _) = start(&client, request).await;
        let container = run.container();
        let lost = async || container.info().await.unwrap().task.unwrap().log_lost;
        let read = async || {
            let seen = Rc::new(RefCell::new((String::new(), Vec::new())));
            let into = seen.clone();
            let take = move |record: LogRecord<'_>| {
                let (text, said) = &mut *into.borrow_mut();
                text.push_str(std::str::from_utf8(record.bytes).unwrap());
                said.extend((!record.lost.is_empty()).then(|| record.lost.to_owned()));
                Ok(())
            };
            container.logs(false, take).await.unwrap();
            seen.take()
        };
        until_async("it writes", async || (!read().await.0.is_empty()).then_some(())).await;
        let neighbour = Neighbour(Some(fill(&daemon.root(), 0)));
        let some = until_async("some of it is lost", async || Some(lost().await).filter(|lost| *lost > 0)).await;
        // It goes on, and who asks is answered.
        until_async("more of it is lost", async || (lost().await > some).then_some(())).await;
        let (text, said) = read().await;
        assert!(text.starts_with("line 1 ") && text.ends_with('\n'), "{said:?}");
        drop(neighbour);
        until_async("the log says what is missing", async || (!read().await.1.is_empty()).then_some(())).await;
        tell(&file, 1);
        assert_eq!(run.wait().await.unwrap().status, 7);
        let (text, said) = read().await;
        let numbers: Vec<u64> = text.lines().map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect();
        let whole: Vec<_> = numbers.iter().map(|n| format!("line {n} of what it says\n")).collect();
        assert_eq!(whole.concat(), text, "whole lines");
        assert!(numbers.is_sorted_by(|a, b| a < b), "each once");
        // With what is said to be missing it is so many lines that the container wrote.
        let number = |why: &String| why.split(' ').next().unwrap().parse::<usize>().unwrap();
        let all = text.len() + said.iter().map(number).sum::<usize>();
        let (mut wrote, mut n) = (0, 0);
        while wrote < all {
            n += 1;
            wrote += format!("line {n} of what it says\n").len();
        }
        assert!(wrote == all && n >= *numbers.last().unwrap(), "{wrote} {all} {n}: {said:?}");
        container.remove(false).await.unwrap();
    });
}

/// What is about to be made is noted before that: also where it can't be recorded, and all die who know of it.
#[test]
fn what_a_client_chose_is_swept_though_nobody_recorded_it() {
    let daemon = small_disk(64, 4096);
    daemon.import_busybox();
    let before = daemon.leftovers();
    let runtime = daemon.path().join("runtime");
    script(
        &runtime,
        "#!/bin/sh\ncase \" $* \" in *' create '*) runc \"$@\"; exec sleep 1000 ;; esac\nexec runc \"$@\"\n",
    );
    bounded(async {
        let namespace = daemon.open().await;
        let above = format!("/given-{}", daemon.pid());
        let cgroup = format!("{above}/box");
        let mut request = ContainerRequest { id: "box".into(), ..ContainerRequest::default() };
        request.runtime = runtime.to_str().unwrap().into();
        request.options.args = ["sleep", "1000"].map(String::from).into();
        request.options.cgroup = cgroup.clone();
        let root = daemon.path().join("kept");
        let options = serde_json::json!({ "root": root });
        request.runtime_options = Any { type_url: RUNTIME_OPTIONS.into(), value: options.to_string().into_bytes() };
        let container = namespace.containers().create(&namespace.images().get(BUSYBOX), &request);
        container.info().await.unwrap();
        let neighbour = Neighbour(Some(fill(&daemon.root(), 0)));
        exhaust(&namespace.events()).await;
        let layout = Layout::detect().unwrap();
        let pids = || Cgroup::open(&layout, &cgroup).and_then(|cgroup| cgroup.pids()).unwrap_or_default();
        let task = container.create_task(Stdio::default(), false);
        let kept = root.join(daemon.namespace()).join("box");
        let is_made = || !pids().is_empty() && kept.join("state.json").exists();
        tokio::select! {
            state = task.state() => panic!("{state:?}"),
            () = until_async("it is made", async || is_made().then_some(())) => {}
        }
        daemon.kill9();
        for (pid, name) in processes(&daemon.state()) {
            if name == "coffer-shim" {
                crate::send(pid as u32, nix::sys::signal::Signal::SIGKILL);
            }
        }
        assert!(!pids().is_empty(), "it outlives them");
        drop(neighbour);
        daemon.restart();
        until("its cgroup is gone", || {
            let there = [&cgroup, &above].map(|path| Cgroup::exists(&layout, path).unwrap());
            (there == [false, false]).then_some(())
        });
        until("so is what its runtime kept", || (!kept.exists()).then_some(()));
        daemon.open().await.containers().get("box").remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

/// Whichever runtime was making it: the daemon lives, and knows what it asked for.
#[test]
fn a_cgroup_of_a_clients_choice_goes_with_a_shim_that_dies() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let runtime = daemon.path().join("runtime");
    script(
        &runtime,
        "#!/bin/sh\ncase \" $* \" in *' create '*) runc \"$@\"; exec sleep 1000 ;; esac\nexec runc \"$@\"\n",
    );
    bounded(async {
        let namespace = daemon.open().await;
        let layout = Layout::detect().unwrap();
        let above = format!("/given-{}", daemon.pid());
        let cgroup = format!("{above}/box");
        let pids = || Cgroup::open(&layout, &cgroup).and_then(|cgroup| cgroup.pids()).unwrap_or_default();
        let hooks = serde_json::json!({ "createRuntime": hook("exec sleep 1000") });
        for (runtime, hooks) in [("native", hooks), (runtime.to_str().unwrap(), serde_json::json!({}))] {
            let mut request = ContainerRequest { id: "box".into(), runtime: runtime.into(), ..Default::default() };
            request.options.cgroup = cgroup.clone();
            let container = hooked(&namespace, &request, "exec sleep 1000", hooks).await;
            container.info().await.unwrap();
            let task = container.create_task(Stdio::default(), false);
            let (made, ()) = tokio::join!(task.state(), async {
                until_async("it is being made", async || (!pids().is_empty()).then_some(())).await;
                let shims = processes(&daemon.state());
                shims.iter().filter(|(_, name)| name == "coffer-shim").for_each(|(pid, _)| {
                    crate::send(*pid as u32, nix::sys::signal::Signal::SIGKILL);
                });
            });
            let error = made.unwrap_err();
            assert_eq!((error.code, &*error.kind), (Code::Unavailable, "shim"), "{error}");
            let there = [&cgroup, &above].map(|path| Cgroup::exists(&layout, path).unwrap());
            assert_eq!(there, [false, false], "{runtime}: {:?}", pids());
            container.remove(false).await.unwrap();
        }
    });
    daemon.settles(&before);
}
