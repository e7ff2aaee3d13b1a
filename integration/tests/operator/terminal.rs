//! `coffer run -it` and `attach`, at a terminal as a person has one.

use std::{
    os::fd::OwnedFd,
    process::{Child, Command},
};

use cofferdam_integration::{Arrivals, BUSYBOX, Daemon, Faults, Registry, bounded, until, write};

use crate::{json, ok};

/// Somebody at a terminal, and the program that has it.
pub struct Seat {
    pub keyboard: OwnedFd,
    pub screen: Arrivals,
    pub program: Child,
}

/// Runs a command in a session of its own, whose terminal is a new one.
fn sit_down(command: Command) -> Seat {
    let (keyboard, program) = open_window(command);
    Seat { screen: Arrivals::new(keyboard.try_clone().unwrap()), keyboard, program }
}

/// The same, with all of the terminal's other side in hand: who drops it closes the window.
fn open_window(mut command: Command) -> (OwnedFd, Child) {
    use std::os::unix::process::CommandExt as _;
    let size = nix::pty::Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(&size, None).unwrap();
    for fd in [&pty.master, &pty.slave] {
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).unwrap();
    }
    let slave = pty.slave;
    command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
    let enter = || {
        nix::unistd::setsid()?;
        // SAFETY: it takes a number; standard input is the terminal.
        let done = unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
        nix::errno::Errno::result(done)?;
        Ok(())
    };
    // SAFETY: only system calls that may follow a fork.
    let program = unsafe { command.pre_exec(enter) }.spawn().unwrap();
    drop(command);
    (pty.master, program)
}

/// Runs something that says `ready`, and closes the window then.
fn close_window(daemon: &Daemon, args: &[&str]) -> i32 {
    let mut command = daemon.command();
    command.args(args);
    let (window, mut program) = open_window(command);
    let mut window = std::fs::File::from(window);
    let (mut seen, mut buffer) = (Vec::new(), [0; 256]);
    while !String::from_utf8_lossy(&seen).contains("ready") {
        let n = std::io::Read::read(&mut window, &mut buffer).unwrap();
        seen.extend_from_slice(&buffer[..n]);
    }
    drop(window);
    until("it ends", || program.try_wait().unwrap()).code().expect("no signal ended it")
}

impl Seat {
    fn resize(&self, rows: u16, columns: u16) {
        use std::os::fd::AsRawFd as _;
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: it reads that struct; the descriptor is a terminal's.
        assert_eq!(unsafe { libc::ioctl(self.keyboard.as_raw_fd(), libc::TIOCSWINSZ, &size) }, 0);
    }

    pub fn ends(&mut self) -> i32 {
        let program = &mut self.program;
        until("it ends", || program.try_wait().unwrap()).code().unwrap()
    }
}

pub fn coffer(daemon: &Daemon, args: &[&str]) -> Seat {
    let mut command = daemon.command();
    command.args(args);
    sit_down(command)
}

#[test]
fn a_run_shows_how_its_pull_gets_on() {
    let registry = Registry::start(&[], &["busybox"]);
    let proxy = Faults::before(registry.host());
    // Its layer takes some seconds.
    proxy.pace(256 << 10);
    let daemon = Daemon::start();
    bounded(async {
        let mut seat = coffer(&daemon, &["run", "--rm", &proxy.reference("busybox"), "echo", "ran"]);
        seat.screen.contains("fetching").await;
        proxy.pace(0);
        seat.screen.contains("ran\r\n").await;
        assert_eq!(seat.ends(), 0);
    });
}

#[test]
fn a_shell_is_there_to_be_typed_at_and_outlives_the_daemon() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let mut seat = coffer(&daemon, &["run", "-it", "--rm", BUSYBOX, "sh"]);
        write(&seat.keyboard, "stty size; echo he''re\r");
        assert!(seat.screen.contains("here\r\n").await.contains("30 100\r\n"));
        seat.resize(40, 120);
        write(&seat.keyboard, "while [ \"$(stty size)\" != '40 120' ]; do :; done; echo grow''n\r");
        seat.screen.contains("grown\r\n").await;

        daemon.kill9();
        write(&seat.keyboard, "echo with''out\r");
        seat.screen.contains("without\r\n").await;
        daemon.restart();
        write(&seat.keyboard, "echo a''gain\r");
        seat.screen.contains("again\r\n").await;
        // The new daemon passes the size on as well; the client is with it as soon as it has found it.
        until("the client is there again", || {
            (json(&daemon, &["system", "status"])["connections"].as_u64() >= Some(2)).then_some(())
        });
        seat.resize(50, 140);
        write(&seat.keyboard, "while [ \"$(stty size)\" != '50 140' ]; do :; done; echo lar''ger\r");
        seat.screen.contains("larger\r\n").await;
        write(&seat.keyboard, "exit 6\r");
        assert_eq!(seat.ends(), 6);
    });
    daemon.settles(&before);
}

#[test]
fn who_attaches_can_leave_again() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        ok(&daemon, &["run", "-d", "-t", "-i", "--name", "box", BUSYBOX, "sh"]);
        let mut seat = coffer(&daemon, &["attach", "box"]);
        write(&seat.keyboard, "echo at''tached\r");
        seat.screen.contains("attached\r\n").await;
        // ctrl-p ctrl-q
        write(&seat.keyboard, "\x10\x11");
        assert_eq!(seat.ends(), 0);
        assert_eq!(ok(&daemon, &["ps", "-q"]), "box\n");

        let mut seat = coffer(&daemon, &["attach", "box"]);
        write(&seat.keyboard, "exit 8\r");
        assert_eq!(seat.ends(), 8);
        ok(&daemon, &["rm", "box"]);
    });
}

#[test]
fn who_runs_can_leave_and_sees_no_more_of_it() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let mut seat = coffer(&daemon, &["run", "-it", "--name", "box", "--detach-keys", "ctrl-a,d", BUSYBOX, "sh"]);
        write(&seat.keyboard, "echo he''re\r");
        seat.screen.contains("here\r\n").await;
        write(&seat.keyboard, "\x01");
        write(&seat.keyboard, "d");
        assert_eq!(seat.ends(), 0);
        assert_eq!(ok(&daemon, &["ps", "-q"]), "box\n");
        ok(&daemon, &["exec", "box", "sh", "-c", "echo unseen > /dev/console"]);
        let mut seat_again = coffer(&daemon, &["attach", "box"]);
        write(&seat_again.keyboard, "echo ba''ck\r");
        seat_again.screen.contains("back\r\n").await;
        assert!(!String::from_utf8_lossy(&seat.screen.so_far()).contains("unseen"));
        write(&seat_again.keyboard, "exit 3\r");
        assert_eq!(seat_again.ends(), 3);
        ok(&daemon, &["rm", "box"]);
    });
}

#[test]
fn a_window_that_is_closed_ends_it() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    // What ran there hears of it, and its end is coffer's.
    let listens = "trap 'exit 7' HUP; echo rea''dy; while :; do sleep 0.02; done";
    assert_eq!(close_window(&daemon, &["run", "-it", "--rm", BUSYBOX, "sh", "-c", listens]), 7);
    daemon.settles(&before);
    // What doesn't listen goes on, without coffer.
    let deaf = "trap '' HUP; echo rea''dy; while :; do sleep 0.02; done";
    assert_eq!(close_window(&daemon, &["run", "-it", "--name", "box", BUSYBOX, "sh", "-c", deaf]), 129);
    assert_eq!(close_window(&daemon, &["exec", "-it", "box", "sh", "-c", deaf]), 129);
    assert_eq!(ok(&daemon, &["ps", "-q"]), "box\n");
    ok(&daemon, &["rm", "-f", "box"]);
    daemon.settles(&before);
}
