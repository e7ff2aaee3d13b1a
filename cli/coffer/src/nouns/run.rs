//! `run`: a container from an image or a directory, and coffer in front of it until it ends.

use std::rc::Rc;

use cofferdam_client::{
    BindMount, ContainerOptions, ContainerRequest, MountSource, Networking, PullOptions, PullPolicy, RunRequest, Stdio,
};
use cofferdam_types::{Any, Labels};
use serde_json::json;

use crate::{
    args::{Args, Command, Flag, Positional, Times, many, switch, value},
    cx::{Cx, line},
    failure::Failure,
    keys::{DETACH_KEYS, Keyboard},
    nouns::{
        attach::forward,
        env::env,
        foreground::{Ends, HostStreams, Passed, attended, ended, needs_terminal, show, started, tell_detached},
        login::{NO_DOCKER, dockers_for_run},
    },
    progress,
    screen::Screen,
    signals::{FORWARDED, Signals},
    terminal::{self, Raw},
    units,
};

/// How a container is made and attended.
pub(super) const FLAGS: &[Flag] = &[
    switch("interactive", Some('i'), "give it coffer's standard input"),
    switch("tty", Some('t'), "give it a terminal"),
    switch("detach", Some('d'), "print its id and leave it running"),
    switch("checkpoint", None, "IMAGE is a checkpoint: go on with what ran in it"),
    switch("rm", None, "remove it when it has ended"),
    value("log-driver", None, "NAME", "how its output is kept: local (the default), json-file, cri, journald or none"),
    many("log-opt", None, "KEY=VALUE", "of the log driver: max-size (20m), max-file (5), labels"),
    switch("null-io", None, "no streams: it reads nothing, and what it writes is nowhere"),
    value("stdin", None, "URI", "fifo:///PATH or file:///PATH of the daemon's host in place of coffer's own"),
    value("stdout", None, "URI", "likewise; a file is appended to"),
    value("stderr", None, "URI", "likewise"),
    value("name", None, "NAME", "its id; a random one otherwise"),
    many("env", Some('e'), "KEY[=VALUE]", "set a variable; KEY alone takes its value from here"),
    many("env-file", None, "FILE", "set variables from a file with a KEY[=VALUE] on each line"),
    value("workdir", Some('w'), "DIR", "where it starts"),
    value("user", Some('u'), "USER[:GROUP]", "who it runs as: names or numbers"),
    value("hostname", None, "NAME", "its host name"),
    value("entrypoint", None, "PROGRAM", "in place of the image's entrypoint; empty for none"),
    many("mount", None, "SPEC", "type=bind,src=PATH,dst=PATH[,ro] or type=tmpfs,dst=PATH[,size=64m]"),
    switch("host-localtime", None, "its clock shows the host's time zone, by the host's /etc/localtime"),
    value("rootfs", None, "DIR", "a directory of the host is its root file system, without an IMAGE"),
    switch("read-only", None, "its root file system can't be written"),
    value("net", None, "NETWORK", "none (the default), host, the name of one, path:PATH or container:ID"),
    many("publish", Some('p'), "[ADDRESS:]HOST:CONTAINER[/udp]", "lead a port of the host, or a range, to it"),
    many("ip", None, "ADDRESS", "an address that it is to have"),
    value("mac", None, "ADDRESS", "the hardware address that its interface is to have"),
    many("dns", None, "ADDRESS", "a name server"),
    many("dns-search", None, "DOMAIN", "a domain to look through; a single . for none"),
    many("dns-option", None, "OPTION", "an option of resolv.conf, such as ndots:2"),
    many("add-host", None, "NAME:ADDRESS", "a name that its /etc/hosts knows"),
    value("memory", Some('m'), "SIZE", "limit of memory, such as 512m; 0 for none"),
    value("cpus", None, "NUMBER", "limit of processors, such as 1.5; 0 for none"),
    value("pids-limit", None, "NUMBER", "limit of processes; 0 for none"),
    many("ulimit", None, "NAME=SOFT[:HARD]", "a resource limit, such as nofile=1024:2048"),
    value("shm-size", None, "SIZE", "of /dev/shm"),
    many("sysctl", None, "KEY=VALUE", "a kernel setting of its namespaces"),
    many("cap-add", None, "NAME", "a capability more; ALL is all"),
    many("cap-drop", None, "NAME", "a capability less; ALL is all"),
    value(
        "seccomp",
        None,
        "default|unconfined|FILE",
        "the filter of system calls; a file has linux.seccomp of an OCI spec",
    ),
    value("apparmor", None, "PROFILE", "the AppArmor profile that it runs under"),
    many("userns", None, "FIRST:HOST:SIZE", "a user namespace with these ids, such as 0:100000:65536"),
    value("pid", None, "host|PATH", "a pid namespace that is not its own"),
    value("ipc", None, "host|PATH", "an ipc namespace that is not its own"),
    value("uts", None, "host|PATH", "a uts namespace that is not its own"),
    many("device", None, "HOST[:PATH][:rwm]", "a device of the host"),
    value("oom-score-adj", None, "NUMBER", "-1000 to 1000: how soon it is killed when memory is short"),
    value("cgroup", None, "PATH", "the path of its cgroup"),
    switch("allow-new-privileges", None, "let set-uid programs work"),
    many("label", Some('l'), "KEY=VALUE", "a label of the container"),
    many("annotation", None, "KEY=VALUE", "an annotation of the OCI spec"),
    value("runtime", None, "NAME|PATH", "native (the default), or a runc-compatible binary: runc, crun, youki, ..."),
    many("runtime-opt", None, "KEY=VALUE", "an option of the runtime or its shim, such as systemdCgroup=true"),
    value("group", None, "NAME", "share the shim of the containers of this group, as those of a pod do"),
    value("snapshotter", None, "NAME", "the snapshot driver"),
    value(
        "storage-opt",
        None,
        "size=SIZE",
        "the most that it may write into its root file system, where the driver can see to that",
    ),
    value("pull", None, "POLICY", "missing (the default), always or never"),
    value("platform", None, "OS/ARCH[/VARIANT]", "of the image; the host's otherwise"),
    switch("plain-http", None, "pull over http alone"),
    NO_DOCKER,
    DETACH_KEYS,
];

/// `coffer run`.
pub static RUN: Command = Command {
    path: &["run"],
    about: "make a container from an image and run it",
    positionals: &[
        Positional { name: "IMAGE", times: Times::Maybe },
        Positional { name: "COMMAND", times: Times::Rest },
    ],
    flags: FLAGS,
    notes: "What follows IMAGE is the container's command; with --rootfs there is no IMAGE, and all is the command. What it writes is kept for \"coffer logs\" unless --rm is given\n\
            without -d or a --log-driver, at most 100 MiB unless --log-opt says otherwise. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on to it. A restart of the\n\
            daemon is waited out, and of a part of it.\n\n\
            An image that isn't here is pulled, and a terminal shows how that gets on: the registry is shown what docker's config\n\
            file has for it, and else what \"coffer login\" has stored.\n\n\
            A container that ctrl-c doesn't end (its first process must take SIGINT itself) ends by \"coffer kill NAME\"\n\
            from elsewhere. Where the daemon doesn't pass a signal on within a second, one more ends coffer and leaves the\n\
            container as it is; before the start the first gives the run up.\n\n\
            Where the reader of standard output has left, coffer ends with 141, and the container goes on. What can't be\n\
            written otherwise is said and dropped.\n\n\
            On a terminal ctrl-p ctrl-q detaches and leaves it running. Where the terminal itself goes, it gets SIGHUP, and\n\
            coffer ends soon, whether or not it has.\n\n\
            exit code: the container's own; 127 if its command is not there, 126 if that can't be executed, 129 if it\n\
            outlives the terminal, 125 if coffer or the daemon fails, or not all of the output could be written",
    failure: 125,
    action: |cx| Box::pin(run(cx)),
};

pub(super) async fn run(cx: Cx) -> Result<i32, Failure> {
    let (detach, tty) = (cx.args.has("detach"), cx.args.has("tty"));
    let mut request = request(&cx.args, &cx.namespace)?;
    let interactive = cx.args.has("interactive");
    if !detach {
        needs_terminal("run", interactive && tty)?;
    }
    let null = cx.args.has("null-io");
    let host = HostStreams::read(&cx.args)?;
    // Nothing of ours is handed over to who would write or read there when we have left: neither keys, nor what passes the
    // shim anyway.
    let here = !detach && !null;
    let keyboard = if interactive && tty && here { Keyboard::open(&cx.args)? } else { None };
    let screen = (here && (tty || request.log)).then(|| Screen::open(tty, true)).transpose()?;
    let ends = Ends::of(keyboard.as_ref(), screen.as_ref())?;
    let streams = move || host.over(if here { ends.stdio(interactive, tty)? } else { Stdio::default() });
    let client = cx.client().await?;
    dockers_for_run(&cx.args, &client, &mut request).await?;
    request.stdio = streams()?;
    let size = request.stdio.size;
    // They are ours for as long as we run, and nobody reads them before the container is made.
    request.again = Some(Box::new(streams));
    let (namespace, image) = (request.namespace.clone(), request.image.reference.clone());
    if detach {
        let run = client.run(request)?;
        progress::beside(run.started(), &client, &namespace, &image).await?;
        let id = run.id();
        line(&if cx.json { json!({ "id": id }).to_string() } else { id.to_owned() })?;
        return Ok(0);
    }
    let signals = Signals::take(FORWARDED)?;
    let raw = if tty && interactive { Raw::stdin()? } else { None };
    let run = Rc::new(client.run(request)?);
    let start = async { Ok(progress::beside(run.started(), &client, &namespace, &image).await.map(drop)?) };
    let undo = async { run.container().remove(true).await };
    let mut before = started(&signals, tty, start, undo).await?;
    if let Some(raw) = &raw {
        raw.started()?;
    }
    let passing = run.clone();
    let pass = move |passed| {
        let run = passing.clone();
        async move {
            match passed {
                Passed::Signal(signal) => run.kill(signal).await,
                Passed::Size(rows, columns) => run.resize(rows, columns).await,
            }
        }
    };
    // Of the time before the signals were taken nothing is known.
    if let Some((rows, columns)) = terminal::size().filter(|now| tty && *now != size) {
        before.push(Passed::Size(rows, columns));
    }
    let what = format!("container {}", run.id());
    let exit = tokio::select! {
        exit = attended(&signals, &what, tty, before, run.wait(), pass) => Some(exit?),
        detached = forward(keyboard) => { detached?; None }
        failure = show(screen.as_ref()) => return Err(failure),
    };
    let id = run.id().to_owned();
    // With it go the last openings of what is shown.
    drop(run);
    match exit {
        Some(exit) => ended(&signals, screen, raw, &id, &exit, RUN.failure).await,
        None => {
            drop(raw);
            tell_detached(&id);
            Ok(0)
        }
    }
}

pub(super) fn request(args: &Args, namespace: &str) -> Result<RunRequest, Failure> {
    args.filled()?;
    if args.has("detach") && args.has("interactive") && !args.has("tty") {
        return Err(Failure::usage("run: -d leaves nobody to give standard input: leave out -i"));
    }
    let streams = ["stdin", "stdout", "stderr"].into_iter().find(|stream| args.has(stream));
    if args.has("null-io") {
        let flags = ["interactive", "tty", "log-driver", "log-opt"].into_iter().find(|flag| args.has(flag));
        if let Some(flag) = flags.or(streams) {
            return Err(Failure::usage(format!("run: --null-io leaves no streams: leave out --{flag}")));
        }
    }
    if args.has("interactive") && args.has("stdin") {
        return Err(Failure::usage("run: -i and --stdin are two standard inputs: leave out one"));
    }
    let checkpoint = args.has("checkpoint") || args.command.path == ["restore"];
    let rootfs = rootfs(args, checkpoint)?;
    let image = if rootfs.is_empty() { args.at(0) } else { "" };
    let mut request = RunRequest::new(namespace, image);
    if checkpoint && !args.from(1).is_empty() {
        return Err(Failure::usage("run: --checkpoint goes on with what ran: leave out the command"));
    }
    request.pull = match args.value("pull") {
        // It is made here, or imported.
        None if checkpoint => PullPolicy::Never,
        None | Some("missing") => PullPolicy::Missing,
        Some("always") => PullPolicy::Always,
        Some("never") => PullPolicy::Never,
        Some(other) => return Err(Failure::usage(format!("run: --pull {other:?}: give missing, always or never"))),
    };
    request.image = PullOptions {
        reference: image.to_owned(),
        platform: args.text("platform"),
        plain_http: args.has("plain-http"),
        driver: args.text("snapshotter"),
        ..PullOptions::default()
    };
    request.container = ContainerRequest {
        id: args.text("name"),
        options: options(args)?,
        labels: pairs(args, "label")?,
        runtime: args.text("runtime"),
        runtime_options: runtime_options(args)?,
        driver: args.text("snapshotter"),
        storage: args.read("storage-opt", units::storage)?.unwrap_or_default(),
        platform: args.text("platform"),
        remove_on_exit: args.has("rm"),
        log_driver: args.text("log-driver"),
        log_options: pairs(args, "log-opt")?,
        group: args.text("group"),
        rootfs,
        checkpoint,
    };
    request.log = !args.has("null-io") && (!args.has("rm") || args.has("detach") || args.has("log-driver"));
    Ok(request)
}

/// The directory that takes the place of an image; empty where there is one.
fn rootfs(args: &Args, checkpoint: bool) -> Result<String, Failure> {
    let Some(dir) = args.value("rootfs") else {
        let missing = || Failure::usage("run: IMAGE is missing, or --rootfs DIR (\"coffer run --help\" says more)");
        return if args.at(0).is_empty() { Err(missing()) } else { Ok(String::new()) };
    };
    let of_images = ["pull", "platform", "plain-http", "snapshotter"].into_iter().find(|flag| args.has(flag));
    if let Some(flag) = of_images.or_else(|| checkpoint.then_some("checkpoint")) {
        return Err(Failure::usage(format!("run: --rootfs has no image: leave out --{flag}")));
    }
    let whole = std::path::absolute(dir).map_err(|e| Failure::io(&format!("--rootfs {dir:?}"), e))?;
    whole.into_os_string().into_string().map_err(|_| Failure::usage(format!("run: --rootfs {dir:?}: is not UTF-8")))
}

/// A value that reads as a number or a truth value is one; the daemon knows which options there are.
fn runtime_options(args: &Args) -> Result<Any, Failure> {
    let pairs = pairs(args, "runtime-opt")?;
    if pairs.is_empty() {
        return Ok(Any::default());
    }
    let value = |text: &String| match serde_json::from_str(text) {
        Ok(plain @ (serde_json::Value::Bool(_) | serde_json::Value::Number(_))) => plain,
        _ => text.clone().into(),
    };
    let object: serde_json::Map<_, _> = pairs.iter().map(|(key, text)| (key.clone(), value(text))).collect();
    let value = serde_json::Value::from(object).to_string().into_bytes();
    Ok(Any { type_url: cofferdam_client::RUNTIME_OPTIONS.to_owned(), value })
}

fn options(args: &Args) -> Result<ContainerOptions, Failure> {
    Ok(ContainerOptions {
        args: args.from(usize::from(!args.has("rootfs"))).to_vec(),
        entrypoint: args
            .value("entrypoint")
            .map(|program| if program.is_empty() { vec![] } else { vec![program.into()] }),
        env: env(args)?,
        workdir: args.text("workdir"),
        user: args.text("user"),
        hostname: args.text("hostname"),
        terminal: args.has("tty"),
        read_only: args.has("read-only"),
        mounts: mounts(args)?,
        cap_add: args.all("cap-add").to_vec(),
        cap_drop: args.all("cap-drop").to_vec(),
        network: args.read("net", units::network)?.unwrap_or_default(),
        networking: Networking {
            ports: args.read_all("publish", units::ports)?.into_iter().flatten().collect(),
            addresses: args.all("ip").to_vec(),
            mac: args.text("mac"),
            dns_servers: args.all("dns").to_vec(),
            dns_search: args.all("dns-search").to_vec(),
            dns_options: args.all("dns-option").to_vec(),
            hosts: args.read_all("add-host", units::host)?,
        },
        memory: args.read("memory", units::size)?.unwrap_or_default(),
        nano_cpus: args.read("cpus", units::cpus)?.unwrap_or_default(),
        pids: args.read("pids-limit", units::number)?.unwrap_or_default(),
        allow_new_privileges: args.has("allow-new-privileges"),
        seccomp_unconfined: args.value("seccomp") == Some("unconfined"),
        seccomp_profile: match args.value("seccomp") {
            None | Some("default" | "unconfined") => Vec::new(),
            Some(file) => match std::fs::read(file).map_err(|e| Failure::io(&format!("--seccomp {file}"), e))? {
                // It would be taken for none that was named.
                empty if empty.is_empty() => return Err(Failure::usage(format!("--seccomp {file}: is empty"))),
                profile => profile,
            },
        },
        userns: args.read_all("userns", units::id_map)?,
        oom_score_adj: args.read("oom-score-adj", units::oom_score)?.unwrap_or_default(),
        devices: args.read_all("device", units::device)?,
        apparmor: args.text("apparmor"),
        namespaces: namespaces(args)?,
        cgroup: args.text("cgroup"),
        rlimits: args.read_all("ulimit", units::ulimit)?,
        sysctls: pairs(args, "sysctl")?,
        annotations: pairs(args, "annotation")?,
        shm_size: args.read("shm-size", units::room)?.unwrap_or_default(),
    })
}

fn mounts(args: &Args) -> Result<Vec<BindMount>, Failure> {
    let mut mounts = args.read_all("mount", units::mount)?;
    if args.has("host-localtime") {
        let (path, options) = ("/etc/localtime", ["rbind", "nosuid", "nodev", "noexec"].map(String::from).to_vec());
        mounts.push(BindMount {
            target: path.into(),
            source: MountSource::Host(path.into()),
            read_only: true,
            options,
        });
    }
    Ok(mounts)
}

fn namespaces(args: &Args) -> Result<Vec<(String, String)>, Failure> {
    let mut chosen = Vec::new();
    for kind in ["pid", "ipc", "uts"] {
        chosen.extend(args.read(kind, units::namespace)?.map(|place| (kind.to_owned(), place)));
    }
    Ok(chosen)
}

fn pairs(args: &Args, name: &str) -> Result<Labels, Failure> {
    Ok(args.read_all(name, units::pair)?.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use cofferdam_client::{Device, IdMap, Network, PortMapping, Rlimit};

    use super::*;
    use crate::commands;

    fn read(line: &[&str]) -> Result<RunRequest, Failure> {
        let words = ["run"].iter().chain(line).map(|word| (*word).to_owned()).collect();
        request(&commands::parse(words)?, "default")
    }

    #[test]
    fn the_hosts_time_zone_is_a_mount_that_can_not_be_written() {
        let request = read(&["--host-localtime", "busybox"]).unwrap();
        let [mount] = request.container.options.mounts.as_slice() else { panic!("one mount") };
        assert_eq!((&*mount.target, mount.read_only), ("/etc/localtime", true));
        assert_eq!(mount.source, MountSource::Host("/etc/localtime".into()));
        assert!(read(&["busybox"]).unwrap().container.options.mounts.is_empty());
    }

    #[test]
    fn every_flag_reaches_the_request() {
        let request = read(&[
            "-t",
            "--rm",
            "--name",
            "web",
            "-e",
            "A=1",
            "-w",
            "/srv",
            "-u",
            "www:www",
            "--hostname",
            "h",
            "--entrypoint",
            "/bin/sh",
            "--mount",
            "type=bind,src=/a,dst=/b,ro",
            "--read-only",
            "--net",
            "blue",
            "-p",
            "8080:80",
            "--ip",
            "10.1.2.3",
            "--mac",
            "02:00:00:00:00:01",
            "--dns",
            "1.1.1.1",
            "--dns-search",
            "a.example",
            "--dns-option",
            "rotate",
            "--add-host",
            "db:10.1.2.4",
            "-m",
            "64M",
            "--cpus",
            "1.5",
            "--pids-limit",
            "7",
            "--ulimit",
            "core=0",
            "--shm-size",
            "1m",
            "--sysctl",
            "net.core.x=1",
            "--cap-add",
            "NET_ADMIN",
            "--cap-drop",
            "ALL",
            "--seccomp",
            "unconfined",
            "--allow-new-privileges",
            "--userns",
            "0:100000:65536",
            "--oom-score-adj",
            "-5",
            "--device",
            "/dev/fuse:r",
            "--device",
            "/dev/sda:/dev/disk:rw",
            "--apparmor",
            "strict",
            "--pid",
            "host",
            "--uts",
            "/proc/7/ns/uts",
            "--cgroup",
            "/a/b",
            "-l",
            "a=b",
            "--annotation",
            "c=d",
            "--runtime",
            "runc",
            "--snapshotter",
            "native",
            "--group",
            "pod",
            "--pull",
            "always",
            "--platform",
            "linux/arm64",
            "--plain-http",
            "busybox",
            "ls",
            "-l",
        ])
        .unwrap();
        let options = ContainerOptions {
            args: vec!["ls".into(), "-l".into()],
            entrypoint: Some(vec!["/bin/sh".into()]),
            env: vec!["A=1".into()],
            workdir: "/srv".into(),
            user: "www:www".into(),
            hostname: "h".into(),
            terminal: true,
            read_only: true,
            mounts: vec![cofferdam_client::BindMount {
                target: "/b".into(),
                source: MountSource::Host("/a".into()),
                read_only: true,
                options: vec![],
            }],
            cap_add: vec!["NET_ADMIN".into()],
            cap_drop: vec!["ALL".into()],
            network: Network::Named("blue".into()),
            networking: Networking {
                ports: vec![PortMapping { host_port: 8080, container_port: 80, ..PortMapping::default() }],
                addresses: vec!["10.1.2.3".into()],
                mac: "02:00:00:00:00:01".into(),
                dns_servers: vec!["1.1.1.1".into()],
                dns_search: vec!["a.example".into()],
                dns_options: vec!["rotate".into()],
                hosts: vec![("db".into(), "10.1.2.4".into())],
            },
            memory: 64 << 20,
            nano_cpus: 1_500_000_000,
            pids: 7,
            allow_new_privileges: true,
            seccomp_unconfined: true,
            rlimits: vec![Rlimit { name: "RLIMIT_CORE".into(), soft: 0, hard: 0 }],
            sysctls: Labels::from([("net.core.x".into(), "1".into())]),
            annotations: Labels::from([("c".into(), "d".into())]),
            shm_size: 1 << 20,
            userns: vec![IdMap { container: 0, host: 100_000, size: 65_536 }],
            oom_score_adj: -5,
            devices: vec![
                Device { host_path: "/dev/fuse".into(), target: String::new(), access: "r".into() },
                Device { host_path: "/dev/sda".into(), target: "/dev/disk".into(), access: "rw".into() },
            ],
            apparmor: "strict".into(),
            namespaces: vec![("pid".into(), "host".into()), ("uts".into(), "/proc/7/ns/uts".into())],
            cgroup: "/a/b".into(),
            seccomp_profile: Vec::new(),
        };
        assert_eq!(request.container.options, options);
        assert_eq!(request.container.platform, "linux/arm64");
        assert_eq!(request.container.labels, Labels::from([("a".into(), "b".into())]));
        let container = &request.container;
        assert_eq!((&*container.id, &*container.runtime, &*container.driver), ("web", "runc", "native"));
        assert!(container.remove_on_exit && !request.log && container.group == "pod");
        assert_eq!(request.pull, PullPolicy::Always);
        assert_eq!((&*request.image.reference, &*request.image.platform), ("busybox", "linux/arm64"));
        assert!(request.image.plain_http);
    }

    #[test]
    fn what_is_written_is_kept_unless_nobody_could_ask_for_it() {
        assert!(read(&["x"]).unwrap().log);
        assert!(!read(&["--rm", "x"]).unwrap().log);
        assert!(read(&["--rm", "-d", "x"]).unwrap().log);
    }

    #[test]
    fn defaults_leave_the_choice_to_the_image() {
        let request = read(&["x"]).unwrap();
        assert_eq!(request.container.options, ContainerOptions::default());
        assert_eq!(read(&["--entrypoint", "", "x"]).unwrap().container.options.entrypoint, Some(vec![]));
    }

    #[test]
    fn a_root_file_system_takes_the_place_of_the_image() {
        let request = read(&["--rootfs", "/srv/root", "sh", "-c", "true"]).unwrap();
        assert_eq!((&*request.container.rootfs, &*request.image.reference), ("/srv/root", ""));
        assert_eq!(request.container.options.args, ["sh", "-c", "true"]);
        let here = std::env::current_dir().unwrap().join("root");
        let request = read(&["--rootfs=root", "--entrypoint", "/bin/sh"]).unwrap();
        assert_eq!((&*request.container.rootfs, request.container.options.args.len()), (here.to_str().unwrap(), 0));
        for flag in ["--pull=never", "--platform=linux/arm64", "--plain-http", "--snapshotter=native", "--checkpoint"] {
            let failure = read(&[flag, "--rootfs", "/srv/root"]).err().unwrap();
            assert!(failure.text.contains(flag.split('=').next().unwrap()), "{}", failure.text);
        }
        assert!(read(&[]).err().unwrap().text.contains("IMAGE is missing"));
        assert!(read(&["--rootfs="]).err().is_some());
    }

    #[test]
    fn bad_values_name_their_flag() {
        for (line, word) in [
            (["--memory", "much", "x"], "--memory"),
            (["--name", "", "x"], "--name"),
            (["--cpus", "none", "x"], "--cpus"),
            (["--net", "path:", "x"], "--net"),
            (["-p", "80", "x"], "--publish"),
            (["--add-host", "db", "x"], "--add-host"),
            (["--pull", "maybe", "x"], "--pull"),
            (["--seccomp", "/nonexistent/file", "x"], "--seccomp"),
            (["--seccomp", "/dev/null", "x"], "is empty"),
            (["--userns", "0:1", "x"], "--userns"),
            (["--userns", "0:1:0", "x"], "--userns"),
            (["--oom-score-adj", "1001", "x"], "--oom-score-adj"),
            (["--device", "fuse", "x"], "--device"),
            (["--device", "/dev/fuse:rx", "x"], "--device"),
            (["--pid", "container", "x"], "--pid"),
            (["--mount", "nonsense", "x"], "--mount"),
            (["--ulimit", "x", "x"], "--ulimit"),
            (["--storage-opt", "10g", "x"], "--storage-opt"),
            (["-d", "-i", "x"], "-d"),
        ] {
            let failure = read(&line).err().unwrap();
            assert!(failure.text.contains(word), "{}", failure.text);
        }
    }
}
