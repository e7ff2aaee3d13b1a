//! The driver with the real runc and a busybox root, and with scripts in its place where runc would behave too well.

use std::{
    os::{fd::AsRawFd as _, unix::fs::symlink},
    sync::atomic::{AtomicU32, Ordering},
};

use cofferdam_sys::process::Exit;
use cofferdam_types::{Id, Mount, Namespace};
use oci_spec::{image::ImageConfiguration, runtime::Spec};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::{
    spec::{ExecOptions, Options, exec, generate},
    users,
};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Copies a program, in another process: a child that another test forks meanwhile would inherit our descriptor, and
/// the kernel executes nothing that is open for writing.
fn install(from: &Path, to: &Path) {
    let done = std::process::Command::new("install").args(["-m", "755"]).arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

struct Fixture {
    dir: TempDir,
    driver: RuncDriver,
    namespace: Namespace,
    id: Id,
}

impl Fixture {
    fn new() -> Fixture {
        let runc =
            ["/usr/sbin/runc", "/usr/bin/runc", "/usr/local/sbin/runc"].into_iter().find(|p| Path::new(p).exists());
        Fixture::with(Path::new(runc.expect("these tests need runc")))
    }

    fn with(binary: &Path) -> Fixture {
        // This thread gets a mount namespace of its own, as a shim has.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        process::set_child_subreaper(true).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("image/bin");
        std::fs::create_dir_all(&bin).unwrap();
        install(Path::new("/bin/busybox"), &bin.join("busybox"));
        for name in ["sh", "sleep", "echo", "cat", "id", "tty", "stty", "mount", "grep", "unshare"] {
            symlink("busybox", bin.join(name)).unwrap();
        }
        std::fs::write(bin.join("plain"), "no program").unwrap();
        std::fs::create_dir(dir.path().join("bundle")).unwrap();
        let driver = RuncDriver::new(binary, dir.path().join("state")).unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = Namespace::new(format!("runc-test.t{}.n{number:02}", std::process::id())).unwrap();
        Fixture { dir, driver, namespace, id: Id::new(format!("runc-{number}")).unwrap() }
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    fn spec(&self, args: &[&str], tty: bool) -> Spec {
        let image: ImageConfiguration = serde_json::from_value(json!({
            "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "config": {}
        }))
        .unwrap();
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let options = Options { args, tty, ..Options::default() };
        let cgroup = format!("/{}/{}", self.namespace, self.id);
        let root = fd::open_dir(&self.dir.path().join("image")).unwrap();
        generate(&cgroup, &self.id, &image, &options, |user| users::resolve(&root, user)).unwrap()
    }

    fn create(&self, spec: &Spec, stdio: Stdio<'_>) -> Result<Container> {
        let image = self.dir.path().join("image");
        let rootfs =
            [Mount { kind: "bind".into(), source: image.to_str().unwrap().into(), options: vec!["rbind".into()] }];
        let bundle = fd::open_dir(&self.bundle()).unwrap();
        self.driver.create(&CreateRequest {
            id: &self.id,
            namespace: &self.namespace,
            bundle: bundle.as_fd(),
            bundle_path: &self.bundle(),
            spec,
            rootfs: &rootfs,
            stdio,
            filter: None,
        })
    }

    /// A container of which only the streams don't matter.
    fn quiet(&self, args: &[&str]) -> Container {
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
        self.create(&self.spec(args, false), stdio).unwrap()
    }

    fn started(&self, args: &[&str]) -> Container {
        let container = self.quiet(args);
        self.driver.start(&container).unwrap();
        container
    }

    fn exec(&self, container: &Container, args: &[&str], stdio: Stdio<'_>) -> Result<Process> {
        let options = ExecOptions { args: args.iter().map(|a| (*a).to_owned()).collect(), ..ExecOptions::default() };
        let first = self.spec(&["x"], false);
        let root = fd::open_dir(&self.dir.path().join("image")).unwrap();
        let process = exec(first.process().as_ref().unwrap(), &options, root.as_fd()).unwrap();
        self.driver.exec(container, &ExecRequest { id: &Id::new("e1").unwrap(), process: &process, stdio, group: None })
    }

    fn status(&self, container: &Container) -> String {
        let state = self.driver.act(container, &["state", &container.id]).unwrap();
        serde_json::from_slice::<serde_json::Value>(&state).unwrap()["status"].as_str().unwrap().to_owned()
    }

    fn end(&self, container: &Container) -> Exit {
        self.driver.kill(container, libc::SIGKILL).unwrap();
        let exit = process::waitid(&container.init.pidfd, true).unwrap().unwrap();
        self.driver.delete(container).unwrap();
        self.nothing_is_left();
        exit
    }

    fn nothing_is_left(&self) {
        let left: Vec<_> = std::fs::read_dir(self.bundle()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(!self.dir.path().join("state").join(self.namespace.as_str()).join(self.id.as_str()).exists());
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "{mounts}");
        for group in self.groups() {
            assert!(!group.join(self.id.as_str()).exists(), "{group:?}");
        }
    }

    /// Where the namespace's own cgroup may be: in each hierarchy.
    fn groups(&self) -> Vec<PathBuf> {
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]).map(|h| h.join(self.namespace.as_str())).collect()
    }
}

impl Drop for Fixture {
    /// A container's cgroup goes with it; its namespace's is nobody's container's.
    fn drop(&mut self) {
        for group in self.groups() {
            let _ = std::fs::remove_dir(group);
        }
    }
}

fn read(mut reader: impl Read) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_container_runs_from_create_to_delete() {
    let fixture = Fixture::new();
    let null = File::open("/dev/null").unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: writer.as_fd(), stderr: writer.as_fd() };
    let spec = fixture.spec(&["sh", "-c", "id; grep Cap /proc/self/status; exit 7"], false);
    let container = fixture.create(&spec, stdio).unwrap();
    assert!(process::is_alive(&container.init.pidfd));
    assert_eq!(fixture.status(&container), "created");
    assert_eq!(container.cgroup, format!("/{}/{}", fixture.namespace, fixture.id));
    fixture.driver.start(&container).unwrap();
    drop(writer);
    let output = read(reader);
    assert!(output.contains("uid=0 gid=0"), "{output}");
    assert!(output.contains("CapInh:\t0000000000000000") && output.contains("CapAmb:\t0000000000000000"), "{output}");
    assert!(output.contains("CapBnd:\t00000000a80425fb"), "{output}");
    assert_eq!(process::waitid(&container.init.pidfd, true).unwrap(), Some(Exit::Code(7)));
    fixture.driver.kill(&container, libc::SIGTERM).unwrap();
    fixture.driver.delete(&container).unwrap();
    fixture.nothing_is_left();
    fixture.driver.delete(&container).unwrap();
}

#[test]
fn all_capabilities_can_be_applied() {
    let fixture = Fixture::new();
    let mut spec = fixture.spec(&["sleep", "1000"], false);
    let all = crate::caps::Set::all().to_spec();
    let capabilities = json!({"bounding": all, "permitted": all, "effective": all});
    spec.process_mut().as_mut().unwrap().set_capabilities(serde_json::from_value(capabilities).unwrap());
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
    let container = fixture.create(&spec, stdio).unwrap();
    fixture.end(&container);
}

#[test]
fn a_running_container_can_be_acted_on() {
    let fixture = Fixture::new();
    let container = fixture.started(&["sleep", "1000"]);
    let null = File::open("/dev/null").unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: writer.as_fd(), stderr: writer.as_fd() };
    let process = fixture.exec(&container, &["sh", "-c", "echo hello; exit 3"], stdio).unwrap();
    drop(writer);
    assert_eq!(read(reader), "hello\n");
    assert_eq!(process::waitid(&process.pidfd, true).unwrap(), Some(Exit::Code(3)));
    assert_eq!(fixture.driver.pids(&container).unwrap(), [container.init.pid]);

    fixture.driver.pause(&container).unwrap();
    assert_eq!(fixture.status(&container), "paused");
    fixture.driver.resume(&container).unwrap();
    assert_eq!(fixture.status(&container), "running");
    let error = fixture.driver.resume(&container).unwrap_err();
    assert_eq!((error.code, error.id.as_str()), (Code::FailedPrecondition, fixture.id.as_str()), "{error}");

    let resources: LinuxResources = serde_json::from_value(json!({"pids": {"limit": 77}})).unwrap();
    fixture.driver.update(&container, &resources).unwrap();
    let limits = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(|h| format!("{h}{}/pids.max", container.cgroup));
    assert!(limits.iter().any(|file| std::fs::read_to_string(file).is_ok_and(|text| text == "77\n")));
    assert_eq!(fixture.end(&container), Exit::Signal(9));
    let error = fixture.driver.pids(&container).unwrap_err();
    assert_eq!(error.code, Code::NotFound, "{error}");
}

#[test]
fn a_terminal_comes_back_with_its_size() {
    let fixture = Fixture::new();
    let spec = fixture.spec(&["sh", "-c", "tty; stty size; exec sleep 1000"], true);
    let mut container = fixture.create(&spec, Stdio::Terminal { rows: 33, cols: 77 }).unwrap();
    let mut console = File::from(container.init.console.take().unwrap());
    fixture.driver.start(&container).unwrap();
    let mut text = Vec::new();
    while text.iter().filter(|b| **b == b'\n').count() < 2 {
        let mut block = [0; 256];
        let n = console.read(&mut block).unwrap();
        text.extend_from_slice(&block[..n]);
    }
    assert_eq!(String::from_utf8(text).unwrap(), "/dev/pts/0\r\n33 77\r\n");
    let process = fixture.exec(&container, &["tty"], Stdio::Terminal { rows: 5, cols: 6 }).unwrap();
    assert!(process.console.is_some());
    assert_eq!(process::waitid(&process.pidfd, true).unwrap(), Some(Exit::Code(0)));
    fixture.end(&container);
    assert_eq!(std::fs::read_dir(fixture.dir.path().join("state")).unwrap().count(), 1, "no console socket is left");
}

#[test]
fn everything_dies_even_when_paused() {
    let fixture = Fixture::new();
    let container = fixture.started(&["sh", "-c", "sleep 1000 & sleep 1000"]);
    fixture.driver.pause(&container).unwrap();
    fixture.driver.kill_all(&container).unwrap();
    assert_eq!(process::waitid(&container.init.pidfd, true).unwrap(), Some(Exit::Signal(9)));
    fixture.driver.kill_all(&container).unwrap();
    fixture.driver.delete(&container).unwrap();
    fixture.nothing_is_left();
}

#[test]
fn a_failed_create_leaves_nothing_and_says_why() {
    let fixture = Fixture::new();
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
    for terminal in [false, true] {
        let spec = fixture.spec(&["no-such-program"], terminal);
        let stdio = if terminal { Stdio::Terminal { rows: 1, cols: 1 } } else { stdio };
        let error = fixture.create(&spec, stdio).unwrap_err();
        assert_eq!((error.code, error.id.as_str()), (Code::NotFound, "no-such-program"), "{error}");
        fixture.nothing_is_left();
    }
    let error = fixture.create(&fixture.spec(&["/bin/plain"], false), stdio).unwrap_err();
    assert_eq!((error.code, error.kind.as_ref()), (Code::FailedPrecondition, "command"), "{error}");
    fixture.nothing_is_left();

    // What the spec has wrong is its maker's, in runc's words.
    let mut spec = fixture.spec(&["true"], false);
    spec.process_mut().as_mut().unwrap().set_args(Some(Vec::new()));
    let error = fixture.create(&spec, stdio).unwrap_err();
    assert_eq!((error.code, error.id.as_str()), (Code::FailedPrecondition, fixture.id.as_str()), "{error}");
    assert!(error.message.contains("args must not be empty"), "{error}");
    fixture.nothing_is_left();

    // A second one of the same id is refused, and the first lives on.
    let container = fixture.started(&["sleep", "1000"]);
    let error = fixture.create(&fixture.spec(&["sleep", "1"], false), stdio).unwrap_err();
    assert_eq!(error.code, Code::AlreadyExists, "{error}");
    assert_eq!(fixture.status(&container), "running");
    let error = fixture.exec(&container, &["no-such-program"], stdio).unwrap_err();
    assert_eq!((error.code, error.kind.as_ref()), (Code::NotFound, "command"), "{error}");
    fixture.end(&container);
}

/// A driver whose binary is this script.
#[test]
fn what_could_not_be_started_is_dead() {
    let fixture = Fixture::new();
    let container = fixture.quiet(&["sleep", "1000"]);
    let fails = RuncDriver::new("/bin/false", fixture.dir.path().join("state")).unwrap();
    fails.start(&container).unwrap_err();
    let exit = process::waitid(&container.init.pidfd, true).unwrap().unwrap();
    assert_eq!(exit.status(), 128 + libc::SIGKILL as u32, "it waited, and would for ever");
    fixture.driver.delete(&container).unwrap();
}

fn script(text: &str) -> Fixture {
    let mut fixture = Fixture::with(Path::new("/bin/sh"));
    let binary = fixture.dir.path().join("runtime");
    let source = fixture.dir.path().join("source");
    std::fs::write(&source, format!("#!/bin/sh\n{text}\n")).unwrap();
    install(&source, &binary);
    fixture.driver = RuncDriver::new(&binary, fixture.dir.path().join("state")).unwrap();
    fixture
}

impl Fixture {
    fn invoke(&self, args: &[&str]) -> Result<String> {
        let (namespace, id, bundle) = (self.namespace.as_str(), self.id.as_str(), self.bundle());
        let place = Place { namespace, id, bundle: &bundle };
        self.driver.run(&place, args, Streams::Captured).map(|output| String::from_utf8(output).unwrap())
    }
}

#[test]
fn x1_no_descriptor_and_no_variable_reaches_the_binary() {
    // SAFETY: no memory is involved. A descriptor that somebody forgot to mark.
    let leaky = unsafe { libc::fcntl(File::open("/etc/passwd").unwrap().as_raw_fd(), libc::F_DUPFD, 200) };
    assert!(leaky >= 200);
    let fixture = script("env; readlink /proc/$$/fd/*; ps -o pgid= -p $$ | grep -qw $$ && echo leader");
    let output = fixture.invoke(&["x"]).unwrap();
    // SAFETY: ours, and nobody else knows of it.
    unsafe { libc::close(leaky) };
    assert!(!output.contains("/etc/passwd") && output.contains("leader"), "{output}");
    let names: Vec<_> = output.lines().filter_map(|l| l.split_once('=')).map(|(name, _)| name).collect();
    assert!(names.iter().all(|name| ["PATH", "PWD", "OLDPWD", "_", "SHLVL"].contains(name)), "{names:?}");
}

#[test]
fn r1_output_is_capped_and_time_is_short() {
    let fixture = script("head -c 10000000 /dev/zero | tr '\\0' x");
    assert_eq!(fixture.invoke(&["x"]).unwrap().len(), command::MAX_OUTPUT);

    // It and what it started die at the deadline; a child that keeps the pipe open holds nobody up.
    let mut fixture = script("sleep 1000 & echo $! > child; wait");
    fixture.driver = fixture.driver.clone().with_deadline(Duration::from_millis(500));
    let error = fixture.invoke(&["x"]).unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded, "{error}");
    let child: i32 = std::fs::read_to_string(fixture.bundle().join("child")).unwrap().trim().parse().unwrap();
    // We are its subreaper.
    assert_eq!(
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None)
            .map(|status| status.pid())
            .unwrap()
            .unwrap()
            .as_raw(),
        child
    );

    let fixture = script("sleep 1000 & echo $! > child; echo done");
    assert_eq!(fixture.invoke(&["x"]).unwrap(), "done\n");
    let child: i32 = std::fs::read_to_string(fixture.bundle().join("child")).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::SIGKILL).unwrap();
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None).unwrap();
}

#[test]
fn the_last_error_of_this_invocation_is_the_text() {
    let fixture = script(
        r#"if [ "$7" = first ]; then
            printf '{"level":"error","msg":"of the first"}\n' >> log.json; exit 1
        fi
        if [ "$7" = second ]; then
            printf '{"level":"warning","msg":"no"}\n{"level":"error","msg":"one"}\n{"level":"error","msg":"two\\u001b[2J"}\nrubbish\n' >> log.json
            exit 1
        fi
        echo spoken >&2; exit 5"#,
    );
    assert!(fixture.invoke(&["first"]).unwrap_err().message.ends_with("of the first"));
    assert!(fixture.invoke(&["second"]).unwrap_err().message.ends_with(": two [2J"));
    // Not an earlier one's.
    assert!(fixture.invoke(&["third"]).unwrap_err().message.ends_with(": spoken"));
}

/// Who ends with 1 and says why has not broken down; all else that a binary does is nobody's doing but its own.
#[test]
fn a_binary_that_refuses_is_told_from_one_that_breaks() {
    let code = |script_text: &str, verb: &str| script(script_text).invoke(&[verb]).unwrap_err().code;
    for (text, verb, expected) in [
        ("echo 'bad spec' >&2; exit 1", "create", Code::FailedPrecondition),
        ("echo 'bad spec' >&2; exit 1", "start", Code::FailedPrecondition),
        ("echo 'write x: no space left on device' >&2; exit 1", "create", Code::ResourceExhausted),
        ("exit 1", "create", Code::Internal),
        ("echo panic >&2; exit 2", "create", Code::Internal),
        ("echo gone >&2; kill -9 $$", "create", Code::Internal),
        ("echo 'bad' >&2; exit 1", "pause", Code::Internal),
    ] {
        assert_eq!(code(text, verb), expected, "{verb}: {text}");
    }
}

#[test]
fn who_makes_a_container_is_noted_for_as_long_as_it_does() {
    let fixture = script(r#"read -r pid _ < maker.stat; [ "$pid" -eq $$ ] && echo noted; exit 0"#);
    assert_eq!(fixture.invoke(&["create"]).unwrap(), "noted\n");
    assert!(!has_maker(&fixture.bundle()));
    assert!(fixture.invoke(&["state"]).unwrap().contains("No such file"), "it makes nothing");

    // A shim was killed meanwhile.
    let mut maker = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", maker.id())).unwrap();
    let note = |text: &str| std::fs::write(fixture.bundle().join(command::MAKER), text).unwrap();
    // The pid is another process's by now.
    let mut fields: Vec<_> = stat.split(' ').collect();
    fields[21] = "1";
    note(&fields.join(" "));
    assert!(await_maker(&fixture.bundle(), Duration::from_millis(1)).unwrap());
    assert!(!has_maker(&fixture.bundle()));
    note(&stat);
    assert!(!await_maker(&fixture.bundle(), Duration::from_millis(1)).unwrap());
    maker.kill().unwrap();
    assert!(await_maker(&fixture.bundle(), DEADLINE).unwrap());
    assert!(!has_maker(&fixture.bundle()));
    maker.wait().unwrap();
}

#[test]
fn x6_only_a_terminal_is_taken_for_one() {
    let dir = tempfile::tempdir().unwrap();
    // One whose name fits into no address is found as well.
    let deep = dir.path().join("n".repeat(100));
    std::fs::create_dir(&deep).unwrap();
    for bundle in [dir.path(), &deep] {
        takes_a_terminal_alone(bundle);
        assert!(std::fs::read_dir(bundle).unwrap().all(|entry| entry.unwrap().path() == deep));
    }
}

fn takes_a_terminal_alone(bundle: &Path) {
    let console = Console::new(bundle).unwrap();
    assert!(console.receive().is_err(), "nothing came");
    let send = |fds: &[i32]| {
        let stream = std::os::unix::net::UnixStream::connect(console.path()).unwrap();
        let rights = [nix::sys::socket::ControlMessage::ScmRights(fds)];
        let part = [std::io::IoSlice::new(b"x")];
        nix::sys::socket::sendmsg::<()>(stream.as_raw_fd(), &part, &rights, MSG, None).unwrap();
    };
    const MSG: nix::sys::socket::MsgFlags = nix::sys::socket::MsgFlags::empty();
    let null = File::open("/dev/null").unwrap();
    let terminal = File::options().read(true).write(true).open("/dev/ptmx").unwrap();
    send(&[null.as_raw_fd()]);
    assert!(console.receive().is_err());
    send(&[terminal.as_raw_fd(), terminal.as_raw_fd()]);
    assert!(console.receive().is_err());
    send(&[terminal.as_raw_fd()]);
    assert!(console.receive().is_ok());
}

#[test]
fn f4_a_symlink_in_the_bundle_is_not_followed() {
    let fixture = Fixture::new();
    let canary = fixture.dir.path().join("canary");
    std::fs::write(&canary, "untouched").unwrap();
    for name in [CONFIG, rootfs::MOUNTED, command::MAKER] {
        symlink(&canary, fixture.bundle().join(name)).unwrap();
    }
    let container = fixture.quiet(&["sleep", "1000"]);
    assert_eq!(std::fs::read_to_string(&canary).unwrap(), "untouched");
    fixture.end(&container);
}

#[test]
fn a_user_namespace_is_refused_where_ids_cant_be_mapped() {
    let f = Fixture::with(Path::new("/bin/true"));
    let mut spec = serde_json::to_value(f.spec(&["true"], false)).unwrap();
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
    let error = f.create(&serde_json::from_value(spec).unwrap(), stdio).unwrap_err();
    assert_eq!((error.code, error.id.as_str()), (Code::Unimplemented, "linux.namespaces user"));
    assert_eq!(std::fs::read_dir(f.bundle()).unwrap().count(), 0);
}
