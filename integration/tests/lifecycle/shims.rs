//! What a shim is to the host, seen from outside.

use std::{
    collections::BTreeMap,
    fs::File,
    os::{
        fd::AsRawFd as _,
        unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
};

use cofferdam_client::{ContainerRequest, Network, ProcessOptions, RUNTIME_OPTIONS, Stdio};
use cofferdam_integration::{BUSYBOX, Daemon, all_processes, binary, bounded, output, processes, until, until_async};
use cofferdam_types::Any;
use futures::future::join_all;
use serde_json::{Value, json};

use crate::{idle, script, with};

/// The daemon's only shim.
pub fn of(daemon: &Daemon) -> i32 {
    let all: Vec<_> =
        processes(&daemon.state().join("shims")).into_iter().filter(|(_, name)| name == "coffer-shim").collect();
    let [(pid, _)] = all.as_slice() else { panic!("there is not one shim: {all:?}") };
    *pid
}

fn score(pid: i32) -> i32 {
    std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
}

/// What a process has open.
pub fn descriptors(pid: i32) -> Vec<(i32, String)> {
    let all = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap());
    let mut all: Vec<_> = all
        .filter_map(|entry| {
            let to = std::fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, to.to_str()?.to_owned()))
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_shim_is_killed_last_for_want_of_memory_and_its_container_is_not() {
    let daemon = Daemon::with_busybox();
    const CAP_SYS_RESOURCE: u32 = 24;
    let may = cofferdam_sys::process::permitted_capabilities().unwrap() & 1 << CAP_SYS_RESOURCE != 0;
    let own = score(daemon.pid() as i32);
    bounded(async {
        let namespace = daemon.open().await;
        for runtime in ["native", "runc"] {
            let container = with(&namespace, runtime, "exec sleep 1000", |c| c.runtime = runtime.into());
            let task = container.create_task(Stdio::default(), false);
            let pid = task.start().await.unwrap();
            // Lowering a score takes a capability; without it a shim is as the daemon is.
            assert_eq!(score(of(&daemon)), if may { -999 } else { own });
            assert_eq!(score(pid as i32), own, "the container's is not the shim's");
            container.remove(true).await.unwrap();
            until("its shim ends", || processes(&daemon.state().join("shims")).is_empty().then_some(()));

            let container = with(&namespace, "told", "exec sleep 1000", |c| {
                c.runtime = runtime.into();
                let value = json!({"shimOomScoreAdj": 555}).to_string().into_bytes();
                c.runtime_options = Any { type_url: RUNTIME_OPTIONS.into(), value };
            });
            let task = container.create_task(Stdio::default(), false);
            let pid = task.start().await.unwrap();
            assert_eq!((score(of(&daemon)), score(pid as i32)), (555, own));
            let exec = task.exec("more", &sleeper(), Stdio::default());
            let pid = exec.start().await.unwrap();
            assert_eq!(score(pid as i32), own, "nor is that of one more process");
            container.remove(true).await.unwrap();
            until("its shim ends", || processes(&daemon.state().join("shims")).is_empty().then_some(()));
        }
    });
}

fn sleeper() -> cofferdam_client::ProcessOptions {
    cofferdam_client::ProcessOptions { args: vec!["sleep".into(), "1000".into()], ..Default::default() }
}

// X1: what its starter forgot to close stays with the starter.
#[test]
fn x1_a_shim_inherits_no_descriptor() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(dir.path().join("shim.sock")).unwrap();
    let secret = File::open("/etc/passwd").unwrap();
    let mut command = Command::new(binary("coffer-shim"));
    command.env_clear().current_dir(dir.path()).stdin(std::os::fd::OwnedFd::from(listener));
    // SAFETY: between fork and exec two system calls are made.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, move || {
            for to in [3, 4, 77, 500] {
                if libc::dup2(secret.as_raw_fd(), to) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    let fds = until("it is ready", || {
        let fds = descriptors(child.id() as i32);
        fds.iter().any(|(_, to)| to.contains("eventpoll")).then_some(fds)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!fds.iter().any(|(_, to)| to.contains("passwd")), "{fds:?}");
}

#[test]
fn a_shim_holds_what_its_container_needs() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let (container, _task) = idle(&namespace, "box").await;
        let allowed = [
            "socket:",
            "pipe:",
            "anon_inode:[eventpoll]",
            "anon_inode:[eventfd]",
            "anon_inode:inotify",
            "anon_inode:[pidfd]",
            "pidfd:",
            // Its own, until its end is told.
            "mnt:[",
            "/dev/null",
            "/sys/fs/cgroup/",
        ];
        let state = daemon.state();
        let fds = descriptors(of(&daemon));
        let ours =
            |to: &str| allowed.iter().any(|start| to.starts_with(start)) || to.starts_with(state.to_str().unwrap());
        // The container's root file system, whose mount lies in no namespace of the shim's.
        let ours = |to: &str| to == "/" || ours(to);
        let strange: Vec<_> = fds.iter().filter(|(_, to)| !ours(to)).collect();
        assert!(strange.is_empty(), "{strange:?}");
        container.remove(true).await.unwrap();
    });
}

#[test]
fn a_shim_is_made_ahead_and_its_death_costs_nothing() {
    let daemon = Daemon::with_busybox();
    let spares = daemon.state().join("spares");
    let ahead = || -> Option<String> {
        let name = std::fs::read_dir(&spares).unwrap().next()?.unwrap().file_name();
        (!all_processes(&spares).is_empty()).then(|| name.into_string().unwrap())
    };
    bounded(async {
        let namespace = daemon.open().await;
        assert!(ahead().is_none(), "there is none before a container");
        let _one = idle(&namespace, "one").await;
        let spare = until_async("one is made", async || ahead()).await;
        let _two = idle(&namespace, "two").await;
        assert!(daemon.state().join("shims").join(&spare).exists(), "the second container has it");
        let next = until_async("another is made", async || ahead()).await;
        assert_ne!(next, spare);
        for (pid, _) in all_processes(&spares) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        until_async("it is dead", async || all_processes(&spares).is_empty().then_some(())).await;
        let _three = idle(&namespace, "three").await;
        until_async("another is made", async || ahead()).await;
        daemon.restart();
        let containers = daemon.open().await.containers();
        for id in ["one", "two", "three"] {
            containers.get(id).remove(true).await.unwrap();
        }
        until_async("the old one is swept", async || ahead().is_none().then_some(())).await;
    });
}

#[test]
fn a_shim_is_used_again_and_keeps_nothing() {
    let daemon = Daemon::with_busybox();
    let spares = daemon.state().join("spares");
    bounded(async {
        let namespace = daemon.open().await;
        // What each shim holds while it has a container, by its uses, and what lies in its directory.
        let mut held: BTreeMap<i32, Vec<(usize, usize)>> = BTreeMap::new();
        for n in 0..24 {
            let id = format!("box-{n}");
            let (container, task) = idle(&namespace, &id).await;
            let (shim, others) = (of(&daemon), all_processes(&spares).len());
            let files = std::fs::read_dir(format!("/proc/{shim}/cwd")).unwrap().count();
            held.entry(shim).or_default().push((descriptors(shim).len(), files));
            if n % 3 == 1 {
                // One that ran, and one that never will: nobody may run anything in what stands still.
                let probe = |id: &str| task.exec(id, &sleeper(), Stdio::default());
                let ran = probe("ran");
                ran.start().await.unwrap();
                ran.kill(9, false).await.unwrap();
                ran.wait().await.unwrap();
                ran.delete().await.unwrap();
                let never = probe("never");
                never.made().await.unwrap();
                task.pause().await.unwrap();
                never.start().await.unwrap_err();
                task.resume().await.unwrap();
            }
            container.remove(true).await.unwrap();
            until_async("it is back", async || (all_processes(&spares).len() > others).then_some(())).await;
        }
        assert!(held.len() <= 3, "{held:?}");
        for uses in held.values().filter(|uses| uses.len() > 1) {
            assert!(uses[1..].iter().all(|use_| *use_ == uses[1]), "{held:?}");
        }
        // One whose processes the host sees as its own may have left some behind.
        let on_the_host = |request: &mut ContainerRequest| {
            request.options.namespaces = vec![("pid".into(), "host".into())];
        };
        let container = with(&namespace, "host", "exec sleep 1000", on_the_host);
        container.create_task(Stdio::default(), false).start().await.unwrap();
        let shim = of(&daemon);
        container.remove(true).await.unwrap();
        until_async("it ends", async || (!std::fs::exists(format!("/proc/{shim}")).unwrap()).then_some(())).await;
    });
}

/// Making a container takes deep calls, which nobody makes again while it idles.
#[test]
fn a_shim_gives_back_what_making_a_container_took() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let (container, _task) = idle(&namespace, "box").await;
        let shim = of(&daemon);
        let stack = || {
            let maps = std::fs::read_to_string(format!("/proc/{shim}/smaps")).unwrap();
            let of_stack = maps.lines().skip_while(|line| !line.ends_with("[stack]"));
            let rss = of_stack.into_iter().find_map(|line| line.strip_prefix("Rss:")).unwrap();
            rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        until_async("its stack is small", async || (stack() <= 52).then_some(())).await;
        container.remove(true).await.unwrap();
    });
}

/// It is a subreaper: what a container leaves behind falls to it, and is taken in when it ends.
#[test]
fn orphans_fall_to_the_shim_and_leave_no_zombie() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let model = with(&namespace, "model", "(sleep 1000 & echo orphan $!); exec sleep 1000", |_| {});
        let mut spec: Value = serde_json::from_slice(&model.info().await.unwrap().spec.value).unwrap();
        model.remove(false).await.unwrap();
        // In a pid namespace of its own the container's first process would be the one.
        spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "pid");
        spec["linux"].as_object_mut().unwrap().remove("cgroupsPath");
        for runtime in ["native", "runc"] {
            let request =
                cofferdam_client::ContainerRequest { id: "box".into(), runtime: runtime.into(), ..Default::default() };
            let image = namespace.images().get(BUSYBOX);
            let bytes = serde_json::to_vec(&spec).unwrap();
            let container = namespace.containers().create_from_spec(Some(&image), &request, &bytes);
            let (stdout, arrivals) = output();
            let task = container.create_task(Stdio { stdout, ..Stdio::default() }, false);
            let init = task.start().await.unwrap() as i32;
            let text = arrivals.contains("\n").await;
            let orphan: i32 = text.trim().strip_prefix("orphan ").unwrap().parse().unwrap();
            let shim = of(&daemon);
            let parent = |pid: i32| {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
                stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<i32>().ok()
            };
            until_async("the orphan falls to the shim", async || (parent(orphan) == Some(shim)).then_some(())).await;
            assert_eq!(parent(init), Some(shim));
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(orphan), nix::sys::signal::SIGKILL).unwrap();
            until_async("it leaves no zombie", async || {
                (!Path::new(&format!("/proc/{orphan}")).exists()).then_some(())
            })
            .await;
            assert!(task.state().await.unwrap().exit.is_none(), "the container goes on");
            container.remove(true).await.unwrap();
            until("its shim ends", || processes(&daemon.state().join("shims")).is_empty().then_some(()));
        }
    });
}

/// Orphans end all the while beside them, with a status of their own.
#[test]
fn each_process_has_its_own_status_among_orphans() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        for runtime in ["native", "runc"] {
            // In a pid namespace of its own the container's first process would have the orphans.
            let container = with(&namespace, "box", "while test ! -e /over; do ( (exit 99) & ); done; exit 42", |c| {
                c.runtime = runtime.into();
                c.options.namespaces = vec![("pid".into(), "host".into())];
            });
            let task = container.create_task(Stdio::default(), false);
            task.start().await.unwrap();
            let run = async |script: String| {
                let options = ProcessOptions { args: vec!["sh".into(), "-c".into(), script], ..Default::default() };
                let process = task.exec("", &options, Stdio::default());
                process.start().await.unwrap();
                process.wait().await.unwrap().status
            };
            let codes: Vec<u32> = (1..=8).collect();
            let found = join_all(codes.iter().map(|code| run(format!("exit {code}")))).await;
            assert_eq!(found, codes, "{runtime}");
            assert_eq!(run("kill -TERM $$".into()).await, 143, "{runtime}");
            assert_eq!(run("touch /over".into()).await, 0);
            assert_eq!(task.wait().await.unwrap().status, 42, "{runtime}");
            container.remove(false).await.unwrap();
        }
    });
    daemon.settles(&before);
}

// X2: the program that a container's first process was a moment ago, or that it runs by that name, can't be written.
#[test]
fn x2_the_shims_program_can_not_be_written_through_a_container() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let container = crate::container(&namespace, "box", "exec sleep 1000");
        let task = container.create_task(Stdio::default(), false);
        let pid = task.state().await.unwrap().pid;
        let before = std::fs::read(binary("coffer-shim")).unwrap();
        let held: Vec<File> = [pid as i32, of(&daemon)]
            .iter()
            .map(|pid| File::options().read(true).custom_flags(libc::O_PATH).open(format!("/proc/{pid}/exe")).unwrap())
            .collect();
        container.remove(true).await.unwrap();
        until("its shim ends", || processes(&daemon.state().join("shims")).is_empty().then_some(()));
        // Nobody runs it any more, nor the one that was made ahead, so that it is not busy.
        for (pid, _) in all_processes(&daemon.state()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        until("the spare one ends", || all_processes(&daemon.state()).is_empty().then_some(()));
        for file in held {
            let way = format!("/proc/self/fd/{}", file.as_raw_fd());
            // While shims of other tests run the same file it is busy, which is found first.
            let error = until("nobody runs it", || {
                let error = File::options().write(true).open(&way).unwrap_err();
                (error.raw_os_error() != Some(libc::ETXTBSY)).then_some(error)
            });
            assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
        }
        assert!(std::fs::read(binary("coffer-shim")).unwrap() == before);

        // As its own command it is the shim's program, in the container: it finds nothing to do there.
        let client = daemon.client().await;
        let mut request = daemon.run("self", ["/proc/self/exe"]);
        request.container.remove_on_exit = true;
        assert!(client.run(request).unwrap().wait().await.is_ok_and(|exit| exit.status != 0));
    });
}

// X8: nothing of a container is ever loaded by what is ours: the shim has no interpreter that could be found elsewhere.
#[test]
fn x8_the_shim_loads_no_library() {
    let bytes = std::fs::read(binary("coffer-shim")).unwrap();
    let number =
        |at: usize, size: usize| bytes[at..at + size].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b)) as usize;
    assert_eq!(&bytes[..5], b"\x7fELF\x02");
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let kinds: Vec<usize> = (0..count).map(|n| number(table + n * size, 4)).collect();
    const PT_INTERP: usize = 3;
    assert!(count > 2 && !kinds.contains(&PT_INTERP), "{kinds:?}");
}

/// Sockets that a process has open, as the kernel lists them: type and path.
fn sockets(pid: i32) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let own: Vec<String> = descriptors(pid)
        .into_iter()
        .filter_map(|(_, to)| Some(to.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let fields = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields
        .filter(|f| f.get(6).is_some_and(|inode| own.iter().any(|o| o == inode)))
        .filter_map(|f| f.get(7).map(|path| (*path).to_owned()))
        .collect()
}

// S1: every socket has a name in the file system, where modes protect it.
#[test]
fn s1_no_socket_is_abstract() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        for (id, runtime) in [("a", "native"), ("b", "runc")] {
            let container = with(&namespace, id, "exec sleep 1000", |c| {
                c.runtime = runtime.into();
                c.options.terminal = true;
            });
            let (stdout, _arrivals) = output();
            container.create_task(Stdio { stdout, ..Stdio::default() }, true).start().await.unwrap();
        }
        let shims = processes(&daemon.state().join("shims"));
        let shims: Vec<i32> = shims.into_iter().filter(|(_, name)| name == "coffer-shim").map(|(pid, _)| pid).collect();
        assert_eq!(shims.len(), 2);
        for pid in shims.into_iter().chain([daemon.pid() as i32]) {
            let named = sockets(pid);
            assert!(!named.is_empty(), "it listens somewhere");
            assert!(named.iter().all(|path| path.starts_with('/')), "{named:?}");
        }
        for id in ["a", "b"] {
            namespace.containers().get(id).remove(true).await.unwrap();
        }
    });
}

// S2: root in a container that has the host's network sees the names of sockets, and reaches none.
#[test]
fn s2_a_root_container_on_the_hosts_network_reaches_no_shim() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let namespace = daemon.open().await;
        let (victim, _task) = idle(&namespace, "victim").await;
        let shim = shim_socket(&daemon);
        for runtime in ["native", "runc"] {
            let text = format!(
                "grep -c {0} /proc/net/unix; ls {0} {1}; ls /run/cofferdam",
                shim.display(),
                daemon.socket().display()
            );
            let mut request = script(&daemon, runtime, &text);
            request.container.runtime = runtime.into();
            request.container.options.network = Network::Host;
            request.container.remove_on_exit = true;
            let ((stdout, out), (stderr, err)) = (output(), output());
            request.stdio = Stdio { stdout, stderr, ..Stdio::default() };
            client.run(request).unwrap().wait().await.unwrap();
            let err = err.text().await;
            assert_eq!(err.matches("No such file or directory").count(), 3, "{err}");
            assert!(out.text().await.trim().lines().count() == 1);
        }
        victim.remove(true).await.unwrap();
    });
}

fn shim_socket(daemon: &Daemon) -> PathBuf {
    let mut all = std::fs::read_dir(daemon.state().join("shims")).unwrap();
    all.next().unwrap().unwrap().path().join("shim.sock")
}

// S2, S3: of another user not even a connection that the file system lets through is served, at any accept.
#[test]
fn s3_the_peer_is_checked_at_every_accept() {
    // Says what the other side answers to whoever it is now: the start of a message, or the end.
    const CONNECT: &str = "
import os, socket, sys
uid, path = int(sys.argv[1]), sys.argv[2]
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
s = socket.socket(socket.AF_UNIX); s.settimeout(10)
try:
    s.connect(path)
    # A bootstrap question: one segment of the bytes of Message.bootstrap(0).
    s.sendall(bytes.fromhex('0000000005000000' '0000000001000100' '0800000000000000' '0000000001000100' '0000000000000000' '0000000000000000'))
    try: print('answered' if s.recv(1) else 'closed')
    except ConnectionResetError: print('closed')
except BrokenPipeError: print('closed')
except PermissionError: print('refused')
";
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let (container, _task) = idle(&namespace, "box").await;
        let socket = shim_socket(&daemon);
        let answer = |uid: u32| {
            let ran = Command::new("python3").args(["-c", CONNECT, &uid.to_string()]).arg(&socket).output().unwrap();
            String::from_utf8(ran.stdout).unwrap().trim().to_owned() + &String::from_utf8_lossy(&ran.stderr)
        };
        assert_eq!(answer(1000), "refused", "by the file system");
        // Were the modes wrong, there would still be the check.
        for path in [socket.parent().unwrap(), &socket] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
        }
        std::fs::set_permissions(daemon.state().join("shims"), std::fs::Permissions::from_mode(0o711)).unwrap();
        for _ in 0..2 {
            assert_eq!(answer(1000), "closed");
            assert_eq!(answer(0), "answered");
        }
        container.remove(true).await.unwrap();
    });
}
