//! Who sits in front of `coffer` while the daemon hangs or is away, and wants to leave.

use std::{os::fd::OwnedFd, process::Child};

use cofferdam_integration::{Arrivals, BUSYBOX, Daemon, bounded, pipe, script, until, write};
use nix::{
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, tcgetattr},
    },
    unistd::Pid,
};

use crate::{
    idle, json, ok,
    terminal::{Seat, coffer},
};

const DEAF: &str = "trap 'echo passed' USR1; trap '' INT; echo listens; while :; do sleep 0.02; done";

/// `coffer`, and what it says.
struct Front {
    program: Child,
    out: Arrivals,
    err: Arrivals,
    // It would end an input that somebody waits for.
    _input: Option<OwnedFd>,
}

fn front(daemon: &Daemon, args: &[&str]) -> Front {
    let [(out, out_end), (err, err_end)] = [pipe(), pipe()];
    let (input, feed) = pipe();
    let mut command = daemon.command();
    let program = command.args(args).stdin(input).stdout(out_end).stderr(err_end).spawn().unwrap();
    Front { program, out: Arrivals::new(out), err: Arrivals::new(err), _input: Some(feed) }
}

fn send(program: &Child, signal: Signal) {
    kill(Pid::from_raw(program.id() as i32), signal).unwrap();
}

/// Waits until it takes signals as data.
fn listens(program: &Child) {
    until("it takes signals", || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", program.id())).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        let blocked = u64::from_str_radix(blocked.trim(), 16).unwrap();
        (blocked & 1 << (Signal::SIGINT as u32 - 1) != 0).then_some(())
    });
}

impl Front {
    /// Waits until signals get through to what it is in front of.
    fn passes(&self) {
        listens(&self.program);
        until("signals are passed on", || {
            send(&self.program, Signal::SIGUSR1);
            String::from_utf8_lossy(&self.out.so_far()).contains("passed").then_some(())
        });
    }

    fn code(&mut self) -> i32 {
        let program = &mut self.program;
        until("coffer ends", || program.try_wait().unwrap()).code().expect("no signal ended it")
    }

    fn runs(&mut self) -> bool {
        self.program.try_wait().unwrap().is_none()
    }
}

/// The daemon hangs for as long as this lives.
struct Hung(Pid);

impl Hung {
    fn new(daemon: &Daemon) -> Hung {
        let pid = Pid::from_raw(daemon.pid() as i32);
        kill(pid, Signal::SIGSTOP).unwrap();
        until("it stands", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit(')').next().unwrap().trim_start().starts_with('T').then_some(())
        });
        Hung(pid)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        // It may have been killed.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// A run, an exec and an attachment, each in front of something that runs.
async fn fronts(daemon: &Daemon) -> [Front; 3] {
    let run = front(daemon, &["run", "--rm", "--log-driver", "local", "--name", "box", BUSYBOX, "sh", "-c", DEAF]);
    run.passes();
    ok(daemon, &["run", "-d", "--name", "other", BUSYBOX, "sh", "-c", DEAF]);
    let rest = [&["exec", "box", "sh", "-c", DEAF][..], &["attach", "--no-stdin", "other"]];
    let [exec, attach] = rest.map(|args| front(daemon, args));
    // It isn't the first process of its namespace, and would die of a signal that came before its trap.
    exec.out.contains("listens").await;
    exec.passes();
    attach.passes();
    [run, exec, attach]
}

fn pid(daemon: &Daemon, id: &str) -> u64 {
    json(daemon, &["inspect", id])["task"]["pid"].as_u64().unwrap()
}

/// They leave by their second signal, and what they were in front of goes on.
async fn leave(fronts: &mut [Front], code: i32, last: Signal) {
    for (front, what) in fronts.iter_mut().zip(["container box", "what runs in container box", "container other"]) {
        send(&front.program, Signal::SIGINT);
        let told = front.err.contains("Once more").await;
        assert!(told.contains(&format!("SIGINT has not reached {what}: the daemon doesn't answer")), "{told}");
        assert!(front.runs());
        send(&front.program, last);
        assert_eq!(front.code(), code);
        front.err.contains("which is left as it is\n").await;
    }
}

#[test]
fn a_daemon_that_hangs_keeps_nobody_in_front_of_a_container() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let mut fronts = fronts(&daemon).await;
        let pids = [pid(&daemon, "box"), pid(&daemon, "other")];
        let hung = Hung::new(&daemon);
        leave(&mut fronts, 143, Signal::SIGTERM).await;
        drop(hung);
        // With --rm too: it was started.
        assert_eq!([pid(&daemon, "box"), pid(&daemon, "other")], pids);
        ok(&daemon, &["rm", "-f", "box", "other"]);
    });
    daemon.settles(&before);
}

#[test]
fn nor_does_one_that_is_away_but_a_signal_reaches_what_runs_when_it_is_back() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let mut fronts = fronts(&daemon).await;
        let pids = [pid(&daemon, "box"), pid(&daemon, "other")];
        let mut waits = front(&daemon, &["exec", "box", "sh", "-c", DEAF]);
        waits.out.contains("listens").await;
        waits.passes();
        daemon.kill9();
        send(&waits.program, Signal::SIGTERM);
        leave(&mut fronts, 130, Signal::SIGINT).await;
        waits.err.contains("SIGTERM has not reached").await;
        daemon.restart();
        assert_eq!(waits.code(), 143);
        assert!(!waits.err.text().await.contains("left as it is"), "the command has ended by it");
        assert_eq!([pid(&daemon, "box"), pid(&daemon, "other")], pids);
        ok(&daemon, &["rm", "-f", "box", "other"]);
    });
    daemon.settles(&before);
}

#[test]
fn what_has_not_begun_is_given_up_by_one_signal() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    idle(&daemon, "box");
    bounded(async {
        let begin = || {
            [
                front(&daemon, &["run", "--rm", "--name", "never", BUSYBOX, "sleep", "1000"]),
                front(&daemon, &["exec", "box", "sleep", "1000"]),
                front(&daemon, &["image", "import", "-"]),
            ]
        };
        let hung = Hung::new(&daemon);
        let mut fronts = begin();
        for front in &fronts {
            listens(&front.program);
            send(&front.program, Signal::SIGINT);
        }
        assert_eq!(fronts.each_mut().map(Front::code), [130; 3]);
        for front in &fronts[..2] {
            front.err.contains("given up, but the daemon doesn't answer").await;
        }
        let said = fronts[2].err.text().await;
        assert!(said.contains("the daemon has not said that the job is cancelled"), "{said}");
        // The second one doesn't wait for that, nor for anything else.
        let import = &mut front(&daemon, &["image", "import", "-"]);
        listens(&import.program);
        send(&import.program, Signal::SIGTERM);
        send(&import.program, Signal::SIGINT);
        assert_eq!(import.code(), 130);
        drop(hung);
        until("what it had been asked for is undone", || {
            let processes = json(&daemon, &["top", "box"]).as_array().unwrap().len();
            (ok(&daemon, &["ps", "-aq"]) == "box\n" && processes == 1).then_some(())
        });

        // One that is away is looked for until then.
        let hung = Hung::new(&daemon);
        let [mut run, mut exec, mut import] = begin();
        for front in [&run, &exec, &import] {
            listens(&front.program);
        }
        daemon.kill9();
        drop(hung);
        assert_eq!(import.code(), 1, "a job is not begun anew");
        for front in [&mut run, &mut exec] {
            assert!(front.runs());
            send(&front.program, Signal::SIGTERM);
            assert_eq!(front.code(), 143);
            front.err.contains("given up, but the daemon is away").await;
        }
        daemon.restart();
        // It may have come to the making of one, which goes once it is found.
        until("nothing is left of it", || (ok(&daemon, &["ps", "-aq"]) == "box\n").then_some(()));
    });
    ok(&daemon, &["rm", "-f", "box"]);
    daemon.settles(&before);
}

/// What a runtime of others is at work on dies when that has begun it, and is gone if it comes to that meanwhile.
#[test]
fn a_command_that_is_being_started_is_given_up() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let [runtime, mark, hold, go] = ["runtime", "begun", "hold", "go"].map(|name| daemon.path().join(name));
    // By itself it goes on soon after coffer has given up.
    let text = format!(
        "#!/bin/sh\ncase \" $* \" in *' exec '*) touch {mark}\n\
         if [ -e {hold} ]; then while [ ! -e {go} ]; do sleep 0.01; done; else sleep 1.1; fi ;; esac\nexec runc \"$@\"\n",
        mark = mark.display(),
        hold = hold.display(),
        go = go.display(),
    );
    script(&runtime, &text);
    ok(&daemon, &["run", "-d", "--runtime", runtime.to_str().unwrap(), "--name", "box", BUSYBOX, "sleep", "1000"]);
    let records = || {
        let shims = std::fs::read_dir(daemon.state().join("shims")).unwrap();
        // Shims that nobody has yet come and go.
        let files = shims.flatten().flat_map(|shim| std::fs::read_dir(shim.path())).flatten().flatten();
        let lives = files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "life"));
        let lives = lives.map(|path| cofferdam_wire::life::decode(&std::fs::read(path).unwrap()).unwrap());
        lives.filter(|life| !life.id.is_empty()).collect::<Vec<_>>()
    };
    let give_up = || {
        let _ = std::fs::remove_file(&mark);
        let mut exec = front(&daemon, &["exec", "box", "sleep", "1000"]);
        until("it is being started", || mark.exists().then_some(()));
        send(&exec.program, Signal::SIGINT);
        assert_eq!(exec.code(), 130);
        exec
    };
    bounded(async {
        // It is in time at one time or another: the machine may be busy.
        until("nothing is left of one", || {
            let left = records().len();
            drop(give_up());
            (records().len() == left).then_some(())
        });
        // And never here.
        std::fs::write(&hold, "").unwrap();
        let exec = give_up();
        exec.err.contains("it is being started, is killed when that is done").await;
        std::fs::write(&go, "").unwrap();
        let died = || records().iter().all(|life| life.exited.0 != 0 && life.status == 137).then_some(());
        until("all have died of that", died);
    });
    ok(&daemon, &["rm", "-f", "box"]);
    daemon.settles(&before);
}

#[test]
fn a_job_that_is_given_up_is_cancelled() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let mut import = front(&daemon, &["image", "import", "-"]);
        until("it has begun", || (!json(&daemon, &["job", "ls"]).as_array().unwrap().is_empty()).then_some(()));
        listens(&import.program);
        send(&import.program, Signal::SIGINT);
        assert_eq!(import.code(), 130);
        assert_eq!(import.err.text().await, "coffer: cancelled\n");
        let jobs = json(&daemon, &["job", "ls"]);
        assert!(jobs.as_array().unwrap().iter().all(|job| job["state"] != "running"), "{jobs}");
    });
}

/// Whether keys are lines that can be edited.
fn cooked(seat: &Seat) -> bool {
    tcgetattr(&seat.keyboard).unwrap().local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO)
}

#[test]
fn a_terminal_is_given_back_though_the_daemon_hangs() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let sit = async |args: &[&str]| {
            let seat = coffer(&daemon, args);
            write(&seat.keyboard, "echo he''re\r");
            seat.screen.contains("here\r\n").await;
            assert!(!cooked(&seat));
            seat
        };
        let mut seats = [
            (sit(&["run", "-it", "--name", "box", BUSYBOX, "sh"]).await, None),
            (sit(&["attach", "box"]).await, None),
            (sit(&["run", "-it", "--rm", "--name", "two", BUSYBOX, "sh"]).await, Some(Signal::SIGTERM)),
            (sit(&["attach", "two"]).await, Some(Signal::SIGHUP)),
            (sit(&["exec", "-it", "box", "sh"]).await, None),
            (sit(&["exec", "-it", "box", "sh"]).await, Some(Signal::SIGINT)),
        ];
        let mut over = sit(&["exec", "-it", "box", "sh"]).await;
        let hung = Hung::new(&daemon);
        // It ends, and nobody hears of it.
        write(&over.keyboard, "echo la''st; exit 5\r");
        over.screen.contains("last\r\n").await;
        write(&over.keyboard, "\x10\x11");
        assert_eq!(over.ends(), 0);
        assert!(cooked(&over));
        for (seat, signal) in &mut seats {
            match signal {
                // ctrl-p ctrl-q
                None => write(&seat.keyboard, "\x10\x11"),
                Some(signal) => {
                    send(&seat.program, *signal);
                    seat.screen.contains("leaves it running and ends coffer\r\n").await;
                    send(&seat.program, *signal);
                }
            }
            assert_eq!(seat.ends(), signal.map_or(0, |signal| 128 + signal as i32));
            assert!(cooked(seat), "{signal:?}");
        }
        drop(hung);
        ok(&daemon, &["rm", "-f", "box", "two"]);
    });
    daemon.settles(&before);
}
