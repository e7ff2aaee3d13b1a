//! A private daemon.

use std::{
    ffi::OsString,
    fs::File,
    os::{
        fd::{AsRawFd as _, BorrowedFd},
        unix::{fs::PermissionsExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use cofferdam_client::{Client, ImportFormat, ImportOptions, Namespace, RunRequest};
use cofferdam_sys::cgroup::{Cgroup, Layout};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tempfile::TempDir;

use crate::{
    Leftovers, binary, files,
    leftovers::{all_processes, cgroups, mounts},
    wait::{DEADLINE, until},
};

/// The name of the image that [`Daemon::import_busybox`] makes.
pub const BUSYBOX: &str = "test/busybox:latest";

/// What runs its arguments where there are no cgroups but those of v2.
const UNIFIED: &str = r#"umount --lazy /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec "$0" "$@""#;

/// A daemon with a root, a state directory and a namespace of its own: tests run side by side, and cgroups are named
/// after namespace and id. Its end is the end of all that it started.
pub struct Daemon {
    dir: TempDir,
    namespace: String,
    child: Mutex<Option<Child>>,
    log: String,
    flags: &'static [&'static str],
    /// Whether it sees no cgroups but those of v2.
    unified: bool,
    /// A network namespace that it runs in, in place of the test's.
    netns: Option<File>,
    /// Where its programs lie, if it has copies of its own.
    programs: Option<PathBuf>,
    /// What its environment has beside the test's.
    variables: Vec<(String, String)>,
}

impl Daemon {
    /// Starts one. Returns when it serves.
    pub fn start() -> Daemon {
        Daemon::with_flags(&[])
    }

    /// Starts one with more flags.
    pub fn with_flags(flags: &'static [&'static str]) -> Daemon {
        Daemon::new(flags, false, None).begin()
    }

    /// Starts one with more in its environment.
    pub fn with_variables(variables: &[(&str, &str)]) -> Daemon {
        let mut daemon = Daemon::new(&[], false, None);
        daemon.variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        daemon.begin()
    }

    /// Starts one, with busybox, in a network namespace of its own, so that what its plugins do to the host's network is
    /// done there. Its networks are configured in [`Daemon::networks`].
    pub fn with_network(flags: &'static [&'static str]) -> Daemon {
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
            cofferdam_sys::network::loopback_up().expect("a loopback");
            File::open("/proc/thread-self/ns/net").expect("its own")
        });
        let daemon = Daemon::new(flags, false, Some(thread.join().expect("it doesn't panic"))).begin();
        daemon.import_busybox();
        daemon
    }

    fn new(flags: &'static [&'static str], unified: bool, netns: Option<File>) -> Daemon {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new().prefix("cofferdam-").tempdir().expect("a directory for a daemon");
        // The root file systems of containers lie below: their users must get there.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).expect("its mode");
        let namespace = format!("t{}-n{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let log = std::env::var("COFFERD_LOG").unwrap_or_else(|_| "info".into());
        Daemon {
            dir,
            namespace,
            child: Mutex::new(None),
            log,
            flags,
            unified,
            netns,
            programs: None,
            variables: Vec::new(),
        }
    }

    /// The first start.
    fn begin(self) -> Daemon {
        self.restart();
        self.create_namespace();
        self
    }

    /// Makes the test's namespace, on a root that has none.
    pub(crate) fn create_namespace(&self) {
        let name = self.namespace.clone();
        self.ask(async move |client| client.namespaces().create(&name, &Default::default()).await)
            .expect("a namespace");
    }

    /// Starts one that has busybox, as [`BUSYBOX`].
    pub fn with_busybox() -> Daemon {
        let daemon = Daemon::start();
        daemon.import_busybox();
        daemon
    }

    /// The same on a host that has nothing but cgroup v2, as far as it can see: in a mount namespace of its own. The
    /// groups are those that this host's v2 hierarchy has too.
    pub fn unified_with_busybox() -> Daemon {
        let daemon = Daemon::new(&[], true, None).begin();
        daemon.import_busybox();
        daemon
    }

    /// One that has busybox and runs copies of the programs in a directory, which can be replaced: see [`Daemon::upgrade`].
    pub fn installed_with_busybox(from: &Path) -> Daemon {
        let mut daemon = Daemon::new(&[], false, None);
        let programs = daemon.path().join("bin");
        std::fs::create_dir(&programs).expect("a directory for its programs");
        daemon.programs = Some(programs);
        daemon.install(from);
        let daemon = daemon.begin();
        daemon.import_busybox();
        daemon
    }

    /// Puts new files in the place of its programs, as a package manager does: what runs goes on from files without a name.
    pub fn upgrade(&self) {
        self.install(&files::programs());
    }

    fn install(&self, from: &Path) {
        for name in ["cofferd", "coffer-shim"] {
            let (place, new) = (self.program(name), self.path().join("new"));
            std::fs::copy(from.join(name), &new).expect("a copy of a program");
            std::fs::rename(&new, place).expect("the copy is put in its place");
        }
    }

    /// The file of one of the programs that it is started from.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.as_ref().map_or_else(|| binary(name), |dir| dir.join(name))
    }

    /// Imports busybox from its root file system.
    pub fn import_busybox(&self) {
        let source = File::open(files::images().join("rootfs/busybox")).expect("run deploy/images");
        let namespace = self.namespace.clone();
        let import = async move |client: Client| {
            let options = ImportOptions {
                name: BUSYBOX.into(),
                format: ImportFormat::Rootfs,
                command: vec!["/bin/sh".into()],
                ..ImportOptions::default()
            };
            client.namespace(&namespace).images().import_fd(&options, source.into()).wait().await
        };
        self.ask(import).expect("busybox is imported");
    }

    /// One exchange, whether or not the caller is in a runtime already.
    fn ask<T: Send>(
        &self,
        ask: impl AsyncFnOnce(Client) -> cofferdam_types::Result<T> + Send,
    ) -> cofferdam_types::Result<T> {
        let socket = self.socket();
        std::thread::scope(|scope| {
            let thread =
                scope.spawn(move || cofferdam_client::block_on(async { ask(Client::connect(socket).await?).await })?);
            thread.join().expect("the exchange doesn't panic")
        })
    }

    /// What must last.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// What ends with a reboot.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The directory that holds both, for what else a test needs.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where its networks are configured, and, before all others, where their plugins lie.
    pub fn networks(&self) -> (PathBuf, PathBuf) {
        (self.path().join("net.d"), self.path().join("cni"))
    }

    /// The table of hosts by which it reaches registries; it need not be there.
    pub fn hosts(&self) -> PathBuf {
        self.path().join("hosts.d")
    }

    /// The option that names it, but to an earlier release that has none.
    fn given_hosts(&self) -> Vec<OsString> {
        let knows = || {
            let help = Command::new(self.program("cofferd")).arg("--help").output().expect("it tells what it takes");
            String::from_utf8_lossy(&help.stdout).contains("--hosts")
        };
        if self.programs.is_none() || knows() { vec!["--hosts".into(), self.hosts().into()] } else { Vec::new() }
    }

    /// Says in it how a registry is reached.
    pub fn set_hosts(&self, registry: &str, text: &str) {
        let dir = self.hosts().join(registry);
        std::fs::create_dir_all(&dir).expect("a directory in the table of hosts");
        std::fs::write(dir.join("hosts.toml"), text).expect("a file in the table of hosts");
    }

    /// Does something in the network namespace that it runs in.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let netns = self.netns.as_ref().expect("it was started with a network");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                cofferdam_sys::process::setns(netns, libc::CLONE_NEWNET).expect("its namespace");
                act()
            });
            thread.join().expect("it doesn't panic")
        })
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.state().join("cofferd.sock")
    }

    /// The namespace that the test works in.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.child.lock().expect("not poisoned").as_ref().expect("it runs").id()
    }

    /// What it wrote to its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Kills it, as a crash would.
    pub fn kill9(&self) {
        if let Some(mut child) = self.child.lock().expect("not poisoned").take() {
            child.kill().expect("it can be killed");
            child.wait().expect("it ends");
        }
    }

    /// Ends it with SIGTERM; its containers go on.
    pub fn stop(&self) {
        if self.child.lock().expect("not poisoned").is_none() {
            return;
        }
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid() as i32), nix::sys::signal::SIGTERM)
            .expect("it can be signalled");
        self.ends("the daemon");
    }

    /// Waits until it has ended, as it does behind a SIGTERM that `to` got.
    pub fn ends(&self, to: &str) {
        let mut child = self.child.lock().expect("not poisoned").take().expect("it runs");
        let status = until(&format!("{to} ends after SIGTERM"), || child.try_wait().expect("it is ours"));
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// Ends it and all that it started, as when the host's power goes, and unmounts what it lay on.
    pub fn power_off(&self) {
        self.kill9();
        // Shims first: they would report the end of their containers to each other's records otherwise.
        for (pid, _) in all_processes(self.path()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        let Ok(layout) = Layout::detect() else { return };
        for group in cgroups(&self.namespace) {
            if let Ok(cgroup) = Cgroup::open(&layout, &group) {
                let _ = cgroup.kill();
                let _ = cgroup.remove();
            }
            let _ = cofferdam_sys::cgroup::prune_above(&layout, &group, 0);
        }
        // Only what a container of a killed shim had; else removing the directory would reach through it.
        for mount in mounts(self.path()).into_iter().rev() {
            let _ = nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH);
        }
    }

    /// Starts it, after [`Daemon::kill9`] or [`Daemon::stop`] or instead of them, and says how long it took to serve.
    pub fn restart(&self) -> Duration {
        self.kill9();
        let began = Instant::now();
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).expect("its log");
        let (configs, plugins) = self.networks();
        let mut command = Command::new(if self.unified { "unshare".into() } else { self.program("cofferd") });
        if self.unified {
            command.args(["--mount", "--propagation", "private", "sh", "-ec", UNIFIED]).arg(self.program("cofferd"));
        }
        if let Some(netns) = self.netns.as_ref().map(|netns| netns.as_raw_fd()) {
            let enter = move || {
                // SAFETY: the descriptor is open: its owner outlives the start.
                let netns = unsafe { BorrowedFd::borrow_raw(netns) };
                cofferdam_sys::process::setns(netns, libc::CLONE_NEWNET)
            };
            // SAFETY: the closure makes one system call.
            unsafe { command.pre_exec(enter) };
        }
        let mut child = command
            .arg("--root")
            .arg(self.root())
            .arg("--state")
            .arg(self.state())
            .arg("--shim")
            .arg(self.program("coffer-shim"))
            .arg("--cni-config")
            .arg(configs)
            .arg("--cni-plugins")
            .arg(std::env::join_paths([plugins, "/usr/lib/cni".into()]).expect("no colons"))
            .args(self.given_hosts())
            .args(["--log", &self.log])
            .args(self.flags)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("cofferd can be started");
        until("the daemon serves", || {
            if let Some(status) = child.try_wait().expect("it is ours") {
                panic!("cofferd ended with {status}: {}", self.log());
            }
            let stream = std::os::unix::net::UnixStream::connect(self.socket()).ok()?;
            // A child that its killed predecessor was just starting has that one's socket until it executes.
            let listener = getsockopt(&stream, PeerCredentials).ok()?;
            (listener.pid() == child.id() as i32).then_some(())
        });
        *self.child.lock().expect("not poisoned") = Some(child);
        began.elapsed()
    }

    /// A new connection.
    pub async fn client(&self) -> Client {
        Client::connect(self.socket()).await.expect("it listens")
    }

    /// A new connection's view of the namespace.
    pub async fn open(&self) -> Namespace {
        self.client().await.namespace(&self.namespace)
    }

    /// A run of busybox in the namespace.
    pub fn run<S: Into<String>>(&self, id: &str, args: impl IntoIterator<Item = S>) -> RunRequest {
        let mut request = RunRequest::new(&self.namespace, BUSYBOX);
        request.container.id = id.into();
        request.container.options.args = args.into_iter().map(Into::into).collect();
        request
    }

    /// `coffer`, to be run with this daemon and namespace.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary("coffer"));
        command.env("COFFER_SOCKET", self.socket()).env("COFFER_NAMESPACE", &self.namespace).stdin(Stdio::null());
        // Whoever runs the test may have one of his own.
        command.env("DOCKER_CONFIG", self.path().join("docker"));
        command
    }

    /// Runs `coffer` to its end.
    pub fn coffer(&self, args: &[&str]) -> Output {
        self.command().args(args).output().expect("coffer can be started")
    }

    /// The cgroup of a container that has one.
    pub fn cgroup(&self, id: &str) -> String {
        let end = format!("/{}/{id}", self.namespace);
        let found = cgroups(&self.namespace).into_iter().find(|group| group.ends_with(&end));
        found.unwrap_or_else(|| panic!("{id} has no cgroup"))
    }

    /// What is there now.
    pub fn leftovers(&self) -> Leftovers {
        Leftovers::count(self)
    }

    /// Waits until nothing is there but what was there `before`: what is deleted goes in the background.
    pub fn settles(&self, before: &Leftovers) {
        let end = Instant::now() + DEADLINE;
        loop {
            let extra = self.leftovers().beyond(before);
            if extra.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "left behind: {extra:#?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- the daemon's log ends with");
            lines.iter().rev().for_each(|line| eprintln!("{line}"));
            eprintln!("--- still there: {:#?}", self.leftovers());
        }
        self.power_off();
    }
}
