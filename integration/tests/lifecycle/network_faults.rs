//! Plugins that fail, hang and talk nonsense, and whatever else dies while a container is being connected.

use std::{collections::BTreeSet, path::PathBuf, process::Command, time::Duration};

use cofferdam_client::{Network, PortMapping, ProcessOptions, Status, Stdio};
use cofferdam_integration::{Daemon, bounded, until, until_async};
use cofferdam_types::Code;

use crate::{
    idle,
    network::{blue, configure, no_traces, on_blue, says, started, traces},
    script, with,
};

/// A network `odd` whose first plugin is `bridge`'s own, and whose second is a script that does with `$CNI_COMMAND` what
/// the file of that name in [`Odd::tell`] says.
struct Odd {
    dir: PathBuf,
}

impl Odd {
    fn new(daemon: &Daemon) -> Odd {
        blue(daemon);
        let (configs, dir) = daemon.networks();
        let whole = std::fs::read_to_string(configs.join("blue.conflist")).unwrap();
        let whole: serde_json::Value = serde_json::from_str(&whole).unwrap();
        let mut plugins = whole["plugins"].as_array().unwrap().clone();
        plugins.push(serde_json::json!({ "type": "odd" }));
        // Its leases lie where the traces of the other are looked for.
        configure(daemon, "blue", &plugins);
        let script = format!(
            "#!/bin/sh\ncd {}\nread -r config\necho $CNI_COMMAND $CNI_CONTAINERID >> log\n\
             [ -e $CNI_COMMAND ] && . ./$CNI_COMMAND\n\
             [ $CNI_COMMAND = ADD ] && printf %s \"$config\" | sed 's/.*\"prevResult\":\\(.*\\),\"type\":\"odd\"}}$/\\1/'\nexit 0\n",
            dir.display()
        );
        // By way of another process, which nobody forks from: a program that is open for writing can't be executed.
        let mut write = Command::new("sh");
        write.args(["-c", "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""]).arg(dir.join("odd")).arg(script);
        assert!(write.status().unwrap().success());
        Odd { dir }
    }

    /// What it does in place of succeeding.
    fn tell(&self, command: &str, line: &str) {
        std::fs::write(self.dir.join("new"), format!("{line}\n")).unwrap();
        std::fs::rename(self.dir.join("new"), self.dir.join(command)).unwrap();
    }

    fn forget(&self, command: &str) {
        std::fs::remove_file(self.dir.join(command)).unwrap();
    }

    /// How often it was called so.
    fn count(&self, command: &str) -> usize {
        let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        log.lines().filter(|line| line.starts_with(command)).count()
    }

    async fn called(&self, command: &str, times: usize) {
        until_async(command, async || (self.count(command) >= times).then_some(())).await;
    }
}

#[test]
fn a_plugin_that_fails_or_talks_nonsense_leaves_nothing() {
    let daemon = Daemon::with_network(&["--cni-timeout", "2"]);
    let odd = Odd::new(&daemon);
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        for (n, (line, code, part)) in [
            ("echo '{\"code\":999,\"msg\":\"as told\"}'; exit 1", Code::FailedPrecondition, "as told"),
            ("echo nonsense; exit 0", Code::FailedPrecondition, "not JSON"),
            ("exit 0", Code::FailedPrecondition, "no object"),
            ("head -c 3000000 /dev/zero; exit 0", Code::FailedPrecondition, "bytes"),
            ("kill -9 $$", Code::FailedPrecondition, "signal: 9"),
            ("sleep 1000 & wait", Code::DeadlineExceeded, "was killed"),
        ]
        .into_iter()
        .enumerate()
        {
            odd.tell("ADD", line);
            let mut request = script(&daemon, "box", "true");
            on_blue(&mut request.container);
            let port = PortMapping { host_port: 8080, container_port: 80, ..PortMapping::default() };
            request.container.options.networking.ports = vec![port];
            let error = client.run(request).unwrap().wait().await.unwrap_err();
            assert_eq!((error.code, &*error.kind, &*error.id), (code, "plugin", "odd"), "{line}: {error}");
            assert!(error.message.contains(part), "{line}: {error}");
            // What came before it in the chain was done, and is undone.
            assert_eq!((odd.count("ADD"), odd.count("DEL")), (n + 1, n + 1), "{line}");
        }
        odd.forget("ADD");
        assert_eq!(says(&client, &daemon, "box", "echo fine", |r| on_blue(&mut r.container)).await, "fine\n");
    });
    no_traces(&daemon);
    daemon.settles(&before);
}

#[test]
fn a_plugin_that_hangs_holds_up_its_own_container_alone() {
    let daemon = Daemon::with_network(&["--cni-timeout", "3"]);
    let odd = Odd::new(&daemon);
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        odd.tell("ADD", "exec sleep 1000");
        let mut request = script(&daemon, "hangs", "true");
        on_blue(&mut request.container);
        let hangs = client.run(request).unwrap();
        odd.called("ADD", 1).await;
        odd.forget("ADD");
        // Others on the same network, and without one.
        assert_eq!(says(&client, &daemon, "one", "echo fine", |r| on_blue(&mut r.container)).await, "fine\n");
        assert_eq!(says(&client, &daemon, "two", "echo fine", |_| ()).await, "fine\n");
        assert_eq!(odd.count("DEL"), 1, "the first hangs still");
        let error = hangs.wait().await.unwrap_err();
        assert_eq!((error.code, &*error.kind), (Code::DeadlineExceeded, "plugin"), "{error}");
        odd.called("DEL", 2).await;

        // A DEL that hangs keeps nobody from removing the container, and is done in the end.
        odd.tell("DEL", "exec sleep 1000");
        let namespace = daemon.open().await;
        let container = with(&namespace, "box", "exec sleep 1000", on_blue);
        started(&container).await;
        container.remove(true).await.unwrap();
        assert!(traces(&daemon).iter().any(|trace| trace.starts_with("lease")), "it is not undone yet");
        odd.forget("DEL");
    });
    no_traces(&daemon);
    daemon.settles(&before);
}

/// Whoever ran it and asks for it to be forgotten has its end: that of its container has come, and takes its time.
#[test]
fn what_ran_in_a_container_is_deleted_while_that_is_disconnected() {
    let daemon = Daemon::with_network(&["--cni-timeout", "30"]);
    let odd = Odd::new(&daemon);
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let container = with(&namespace, "box", "exec sleep 1000", on_blue);
        let (task, _) = started(&container).await;
        let sleep = ProcessOptions { args: ["sleep", "1000"].map(String::from).into(), ..ProcessOptions::default() };
        let exec = task.exec("beside", &sleep, Stdio::default());
        exec.start().await.unwrap();
        odd.tell("DEL", "until [ -e go ]; do sleep 0.01; done");
        let (removed, ()) = tokio::join!(container.remove(true), async {
            let exit = exec.wait().await.unwrap();
            assert_eq!(exit.status, 137);
            odd.called("DEL", 1).await;
            assert_eq!(exec.delete().await.unwrap(), exit);
            assert_eq!(exec.delete().await.unwrap_err().code, Code::NotFound);
            std::fs::write(odd.dir.join("go"), "").unwrap();
        });
        removed.unwrap();
    });
    no_traces(&daemon);
    daemon.settles(&before);
}

/// The daemon dies while the plugins are at work, when they are done, when they undo their work, and with a task that runs.
#[test]
fn a_daemon_that_is_killed_undoes_what_it_began() {
    let daemon = Daemon::with_network(&[]);
    let odd = Odd::new(&daemon);
    let before = daemon.leftovers();
    // While ADD is at work: nobody knows of the task.
    odd.tell("ADD", "exec sleep 1000");
    bounded(async {
        let namespace = daemon.open().await;
        let container = with(&namespace, "box", "exec sleep 1000", on_blue);
        let task = container.create_task(Stdio::default(), false);
        let made = task.state();
        odd.called("ADD", 1).await;
        daemon.kill9();
        assert!(made.await.is_err());
    });
    odd.forget("ADD");
    assert!(traces(&daemon).iter().any(|trace| trace.starts_with("lease")));
    daemon.restart();
    no_traces(&daemon);
    assert_eq!(odd.count("DEL"), 1);
    bounded(async {
        // With a task that runs: it stays connected.
        let namespace = daemon.open().await;
        let container = namespace.containers().get("box");
        let (_, network) = started(&container).await;
        daemon.kill9();
        daemon.restart();
        let container = daemon.open().await.containers().get("box");
        let again = container.info().await.unwrap().task.unwrap();
        assert_eq!((again.status, again.network.as_ref()), (Status::Running, Some(&network)));
        assert_eq!(odd.count("DEL"), 1);
        // While DEL is at work.
        odd.tell("DEL", "exec sleep 1000");
        container.task().kill(9, false).await.unwrap();
        odd.called("DEL", 2).await;
        daemon.kill9();
        odd.forget("DEL");
        assert!(!traces(&daemon).is_empty());
        daemon.restart();
        no_traces(&daemon);
        let container = daemon.open().await.containers().get("box");
        assert_eq!(container.task().wait().await.unwrap().status, 137);
        container.remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

#[test]
fn an_actor_that_crashes_meanwhile_undoes_what_it_began() {
    let daemon = Daemon::with_network(&["--cni-timeout", "3"]);
    let odd = Odd::new(&daemon);
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        for (n, actor) in ["networks", "tasks"].into_iter().enumerate() {
            odd.tell("ADD", "exec sleep 1000");
            let container = with(&daemon.open().await, actor, "exec sleep 1000", on_blue);
            container.info().await.unwrap();
            let made = container.create_task(Stdio::default(), false).state();
            odd.called("ADD", n + 1).await;
            client.system().crash(actor).await.unwrap();
            assert!(made.await.is_err(), "{actor}");
            odd.forget("ADD");
            // Not before the ADD is over, which nobody waits for any more.
            odd.called("DEL", n + 1).await;
            until(actor, || traces(&daemon).is_empty().then_some(()));
            until_async("it can be removed", async || container.remove(true).await.ok()).await;
        }
        // Those that are connected don't notice.
        let namespace = daemon.open().await;
        let container = with(&namespace, "box", "exec sleep 1000", on_blue);
        let (_, network) = started(&container).await;
        for actor in ["networks", "tasks", "metadata"] {
            client.system().crash(actor).await.unwrap();
            let info = until_async(actor, async || container.info().await.ok()).await;
            assert_eq!(info.task.unwrap().network.as_ref(), Some(&network), "{actor}");
        }
        until_async("it can be removed", async || container.remove(true).await.ok()).await;
    });
    no_traces(&daemon);
    daemon.settles(&before);
}

#[test]
fn a_lost_shim_and_a_lost_host_give_their_networks_up() {
    let daemon = Daemon::with_network(&[]);
    blue(&daemon);
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let container = with(&namespace, "box", "exec sleep 1000", on_blue);
        let (task, _) = started(&container).await;
        let shim = crate::shims::of(&daemon);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::SIGKILL).unwrap();
        assert_eq!(task.wait().await.unwrap().reason, "shim lost");
        no_traces(&daemon);
        task.delete().await.unwrap();
        let (_, network) = started(&container).await;
        assert_eq!(network.addresses.len(), 1);
    });
    // A reboot: processes, mounts and the state directory are gone. What lies on disk is not.
    daemon.kill9();
    let processes = cofferdam_integration::processes(daemon.path());
    for (pid, _) in &processes {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::SIGKILL);
    }
    until("they are dead", || cofferdam_integration::processes(daemon.path()).is_empty().then_some(()));
    for entry in std::fs::read_dir(daemon.state().join("netns")).unwrap() {
        cofferdam_sys::network::unpin(&entry.unwrap().path()).unwrap();
    }
    std::fs::remove_dir_all(daemon.state()).unwrap();
    daemon.inside(|| {
        for line in ["-t nat -F", "-t nat -X", "-F", "-X"] {
            assert!(Command::new("iptables").args(line.split(' ')).status().unwrap().success());
        }
    });
    assert!(traces(&daemon).iter().any(|trace| trace.starts_with("lease")), "leases are kept on disk");
    daemon.restart();
    bounded(async {
        let container = daemon.open().await.containers().get("box");
        assert_eq!(container.task().wait().await.unwrap().reason, "host restarted");
        no_traces(&daemon);
        container.remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

/// Many at once: each has an address of its own, and nothing of any is left, whatever was killed meanwhile.
#[test]
fn many_at_once_with_shims_and_daemons_that_die() {
    let daemon = Daemon::with_network(&[]);
    blue(&daemon);
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let all: Vec<_> = (0..8).map(|n| with(&namespace, &format!("box-{n}"), "exec sleep 1000", on_blue)).collect();
        let all = futures::future::join_all(all.iter().map(started)).await;
        let addresses: BTreeSet<_> = all.iter().map(|(_, network)| network.addresses[0].clone()).collect();
        assert_eq!(addresses.len(), 8);
        for (task, _) in &all[..2] {
            task.kill(9, false).await.unwrap();
        }
    });
    daemon.kill9();
    for (pid, name) in
        cofferdam_integration::processes(daemon.path()).iter().filter(|(_, name)| name.contains("shim")).take(2)
    {
        println!("{name} {pid} dies");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::SIGKILL).unwrap();
    }
    daemon.restart();
    bounded(async {
        let namespace = daemon.open().await;
        let removals = (0..8).map(|n| {
            let container = namespace.containers().get(&format!("box-{n}"));
            async move { container.remove(true).await }
        });
        for removed in futures::future::join_all(removals).await {
            removed.unwrap();
        }
        let (other, _) = idle(&namespace, "other").await;
        other.remove(true).await.unwrap();
    });
    no_traces(&daemon);
    daemon.settles(&before);
}

#[test]
fn a_network_that_is_not_configured_any_more_is_given_up_as_it_was_made() {
    let daemon = Daemon::with_network(&[]);
    blue(&daemon);
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let container = with(&namespace, "box", "exec sleep 1000", on_blue);
        started(&container).await;
        std::fs::remove_file(daemon.networks().0.join("blue.conflist")).unwrap();
        container.remove(true).await.unwrap();
        let other = with(&namespace, "other", "true", |c| c.options.network = Network::Named("blue".into()));
        assert_eq!(other.info().await.unwrap_err().code, Code::NotFound);
        tokio::time::timeout(Duration::from_secs(20), other.removed()).await.unwrap().unwrap_err();
    });
    no_traces(&daemon);
    daemon.settles(&before);
}
