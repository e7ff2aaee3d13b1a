//! What nobody reads, and what fails again and again, costs no memory and leaves nothing behind.

use cofferdam_client::{ContainerRequest, Output, ProcessOptions, Stdio};
use cofferdam_integration::{Daemon, bounded, count, output, pipe};
use cofferdam_types::Code;

use crate::{idle, named, with};

/// A field of /proc/<pid>/status in KiB.
fn memory(pid: i32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

// R1: 64 MiB pass a shim whose only reader is asleep.
#[test]
fn r1_output_that_nobody_reads_stays_out_of_memory() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let container = with(
            &namespace,
            "box",
            "read go; dd if=/dev/zero bs=64k count=1024; echo done >&2; exec sleep 1000",
            |_| {},
        );
        let (stdin, go) = cofferdam_integration::input();
        let task = container.create_task(Stdio { stdin, ..Stdio::default() }, true);
        task.start().await.unwrap();
        // Never read; and one that says when it is over.
        let (_asleep, blocked) = pipe();
        let ((stderr, arrivals), none) = (output(), Stdio::default());
        let attached = task.attach(Stdio { stdout: Output::Fd(blocked), ..none });
        let watching = task.attach(Stdio { stderr, ..Stdio::default() });
        attached.made().await.unwrap();
        watching.made().await.unwrap();
        let shim = crate::shims::of(&daemon);
        let (shim_before, daemon_before) = (memory(shim, "VmHWM"), memory(daemon.pid() as i32, "VmHWM"));
        std::io::Write::write_all(&mut { go }, b"go\n").unwrap();
        arrivals.contains("done").await;
        // What the kernel calls the peak may sink by some pages: its counters are split.
        let grown = memory(shim, "VmHWM").saturating_sub(shim_before);
        assert!(grown < 2048, "the shim grew by {grown} KiB");
        let grown = memory(daemon.pid() as i32, "VmHWM").saturating_sub(daemon_before);
        assert!(grown < 8192, "the daemon grew by {grown} KiB");

        // One more process at a terminal whose client never reads is made to wait.
        let (_asleep, blocked) = pipe();
        let args = ["sh", "-c", "yes | head -c 100000000"].map(String::from).into();
        let options = ProcessOptions { args, terminal: true, ..ProcessOptions::default() };
        let exec = task.exec("more", &options, Stdio { stdout: Output::Fd(blocked), ..Stdio::default() });
        let pid = exec.start().await.unwrap();
        cofferdam_integration::until("it waits for its reader", || {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            let waits = |pid: &str| {
                let wchan = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                wchan.contains(") S ")
            };
            (children.split_whitespace().count() == 2 && children.split_whitespace().all(waits)).then_some(())
        });
        let grown = memory(shim, "VmHWM").saturating_sub(shim_before);
        assert!(grown < 2048, "the shim grew by {grown} KiB");
        container.remove(true).await.unwrap();
    });
}

/// Who fail side by side.
const LANES: usize = 4;

// R2: whatever was tried and failed is forgotten.
#[test]
fn r2_failed_attempts_leave_memory_and_descriptors_flat() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let (container, task) = idle(&namespace, "box").await;
        let shim = crate::shims::of(&daemon);
        let cofferd = daemon.pid() as i32;
        let missing = ProcessOptions { args: vec!["nonsense".into()], ..ProcessOptions::default() };
        let round = async |n: usize| {
            let exec = task.exec(&format!("e{n}"), &missing, Stdio::default());
            assert_eq!(exec.start().await.unwrap_err().code, Code::NotFound);
            exec.delete().await.unwrap();
            let bad =
                ProcessOptions { args: vec!["true".into()], user: "nobody-such".into(), ..ProcessOptions::default() };
            assert!(task.exec(&format!("bad{n}"), &bad, Stdio::default()).state().await.is_err());
            let unknown = task.process("none");
            let (_read, write) = pipe();
            assert!(unknown.attach(Stdio { stdout: Output::Fd(write), ..Stdio::default() }).wait().await.is_err());
            let error = unknown.resize(1, 1).await.unwrap_err();
            assert_eq!(named(&error), (Code::NotFound, "process", "none"));
            let request = ContainerRequest { id: "Bad Id".into(), ..ContainerRequest::default() };
            let image = namespace.images().get(cofferdam_integration::BUSYBOX);
            assert_eq!(
                namespace.containers().create(&image, &request).info().await.unwrap_err().code,
                Code::InvalidArgument
            );
        };
        // Of descriptors that came with a request which failed before it took them a connection keeps 64, and the daemon keeps the
        // 1,024 newest events: a long run has them all before it looks.
        let warm = count(1000, 80) as usize;
        for n in 0..warm / LANES {
            futures::future::join_all((0..LANES).map(|lane| round(n * LANES + lane))).await;
        }
        let state = || {
            let threads = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
            [descriptors(shim), descriptors(cofferd), threads(shim), threads(cofferd)]
        };
        let (held, rss) = (state(), [memory(shim, "VmRSS"), memory(cofferd, "VmRSS")]);
        // Of 100,000 failures a long run sees: each round has five.
        let rounds = count(20_000, 200) as usize;
        let lanes = (0..LANES).map(async |lane| {
            for n in (warm + lane..warm + rounds).step_by(LANES) {
                round(n).await;
            }
        });
        let began = std::time::Instant::now();
        futures::future::join_all(lanes).await;
        println!("long-run: R2, failures | {} in {} s", rounds * 5, began.elapsed().as_secs());
        // What was let go of last is let go of beside the answer.
        cofferdam_integration::until_async("nothing more is held", async || {
            state().iter().zip(held).all(|(now, before)| *now <= before + 1).then_some(())
        })
        .await;
        for (pid, before) in [shim, cofferd].into_iter().zip(rss) {
            let grown = memory(pid, "VmRSS").saturating_sub(before);
            assert!(grown < 1024, "{pid} grew by {grown} KiB in {rounds} rounds");
        }
        container.remove(true).await.unwrap();
    });
    daemon.settles(&before);
}
