//! What `run`, `exec` and `attach` share: streams, waiting while signals and window sizes are passed on, and how it is told
//! that something ended.

use std::{
    collections::VecDeque,
    io::{IsTerminal as _, Write as _},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use cofferdam_client::{Exit, Input, Output, Stdio};
use cofferdam_types::{Code, Error};
use nix::sys::signal::Signal;
use tokio::task::JoinSet;

use crate::{
    args::Args,
    cx::say,
    failure::Failure,
    keys::Keyboard,
    screen::Screen,
    signals::{Signals, ends, name},
    terminal::{self, Raw},
    units::{self, HostStream},
};

/// How long what ran at a terminal that is gone has to end by the signal for that.
const HANG_UP: Duration = Duration::from_secs(2);
/// How long giving up may take that has nothing to undo.
const GIVE_UP: Duration = Duration::from_secs(1);
/// How long the daemon may take to pass a signal on.
const OVERDUE: Duration = Duration::from_secs(1);
/// How many signals and sizes may be on their way to it. Beyond that they are lost.
const UNDER_WAY: usize = 32;

/// The streams that are named by paths of the daemon's host.
#[derive(Clone)]
pub struct HostStreams {
    stdin: Option<HostStream>,
    stdout: Option<HostStream>,
    stderr: Option<HostStream>,
}

impl HostStreams {
    /// Those of the flags `--stdin`, `--stdout` and `--stderr`.
    pub fn read(args: &Args) -> Result<HostStreams, Failure> {
        let one = |name| args.read(name, units::host_stream);
        Ok(HostStreams { stdin: one("stdin")?, stdout: one("stdout")?, stderr: one("stderr")? })
    }

    /// In place of others.
    pub fn over(&self, mut streams: Stdio) -> cofferdam_types::Result<Stdio> {
        let output = |stream: &HostStream| match stream.clone() {
            HostStream::Fifo(path) => Output::Fifo(path),
            HostStream::File(path) => Output::File(path),
        };
        match &self.stdin {
            Some(HostStream::Fifo(path)) => streams.stdin = Input::Fifo(path.clone()),
            Some(HostStream::File(path)) => streams.stdin = Input::File(path.clone()),
            None => {}
        }
        if let Some(stream) = &self.stdout {
            streams.stdout = output(stream);
        }
        if let Some(stream) = &self.stderr {
            streams.stderr = output(stream);
        }
        Ok(streams)
    }
}

/// The far ends of what stands between coffer's own streams and a process: who leaves has handed nothing over.
pub struct Ends {
    input: Option<OwnedFd>,
    outputs: Option<[OwnedFd; 2]>,
}

impl Ends {
    /// Where there is neither of them, coffer's own streams go to the process as they are.
    pub fn of(keyboard: Option<&Keyboard>, screen: Option<&Screen>) -> Result<Ends, Failure> {
        Ok(Ends {
            input: keyboard.map(Keyboard::input).transpose()?,
            outputs: screen.map(Screen::outputs).transpose()?,
        })
    }

    /// The streams of a process.
    pub fn stdio(&self, interactive: bool, tty: bool) -> cofferdam_types::Result<Stdio> {
        let size = terminal::size().filter(|_| tty).unwrap_or_default();
        let mut streams = Stdio { size, ..Stdio::inherit(interactive && self.input.is_none())? };
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(|e| Error::io("pipe", "", "can't be duplicated", &e));
        if let Some(input) = self.input.as_ref().filter(|_| interactive) {
            streams.stdin = Input::Fd(copy(input)?);
        }
        if let Some([out, err]) = &self.outputs {
            (streams.stdout, streams.stderr) = (Output::Fd(copy(out)?), Output::Fd(copy(err)?));
        }
        Ok(streams)
    }
}

/// Who wants a terminal to type at must have one: keys that come from elsewhere would be echoed, and a ctrl-c in them
/// would be a signal.
pub fn needs_terminal(command: &str, wanted: bool) -> Result<(), Failure> {
    if wanted && !std::io::stdin().is_terminal() {
        let why = "-i and -t together need a terminal as standard input, and it is none: leave out -t, or -i";
        return Err(Failure::usage(format!("{command}: {why}")));
    }
    Ok(())
}

/// What is passed on to a process.
pub enum Passed {
    /// A signal.
    Signal(u32),
    /// The window has so many rows and columns now.
    Size(u16, u16),
}

/// A signal as it is passed on; nothing where it tells of the size of a window that is not the process's.
fn passed(signal: u32, tty: bool) -> Option<Passed> {
    if signal != Signal::SIGWINCH as u32 {
        return Some(Passed::Signal(signal));
    }
    terminal::size().filter(|_| tty).map(|(rows, columns)| Passed::Size(rows, columns))
}

/// Waits for a start, which its user may give up by a signal: then it is undone. Gives what is to be passed on to what was
/// started.
pub async fn started(
    signals: &Signals,
    tty: bool,
    start: impl Future<Output = Result<(), Failure>>,
    undo: impl Future<Output = cofferdam_types::Result<()>>,
) -> Result<Vec<Passed>, Failure> {
    tokio::pin!(start);
    let mut arrived = Vec::new();
    let signal = loop {
        let signal = tokio::select! {
            started = &mut start => return started.map(|()| arrived),
            signal = signals.next() => signal?,
        };
        arrived.extend(passed(signal, tty).filter(|_| arrived.len() < UNDER_WAY));
        if ends(signal) {
            break signal;
        }
    };
    // It may run already, with the answer on its way.
    if let Ok(started) = tokio::time::timeout(GIVE_UP, &mut start).await {
        return started.map(|()| arrived);
    }
    let text = match tokio::time::timeout(GIVE_UP, undo).await {
        Err(_) => "given up, but the daemon doesn't answer: what it was asked for may still be made",
        Ok(Err(error)) if error.code == Code::Unavailable => {
            "given up, but the daemon is away: what it was asked for may be made"
        }
        // A runtime of others that is at work is not interrupted.
        Ok(Err(error)) if (error.code, &*error.kind) == (Code::FailedPrecondition, "process") => {
            "given up: it is being started, is killed when that is done, and is not deleted"
        }
        // What is not there needs no undoing.
        Ok(_) => "given up",
    };
    Err(Failure::signal(text, signal))
}

/// Waits, and passes on meanwhile what arrives, beginning with what did `before`. A terminal that is gone ends that; so
/// does a user whose signal the daemon doesn't pass on.
pub async fn attended<T, F>(
    signals: &Signals,
    what: &str,
    tty: bool,
    before: Vec<Passed>,
    wait: impl Future<Output = cofferdam_types::Result<T>>,
    pass: impl Fn(Passed) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = cofferdam_types::Result<()>> + 'static,
{
    tokio::pin!(wait);
    let mut orders = Orders::default();
    let mut hang_up = None;
    let mut arrived = VecDeque::from(before);
    // Beside the wait and not in front of it: it may have to find the daemon again first.
    let mut under_way = JoinSet::new();
    loop {
        while let Some(next) = arrived.pop_front() {
            let order = match next {
                Passed::Signal(signal) if ends(signal) => Some(signal),
                _ => None,
            };
            if order.is_some_and(|signal| orders.give(signal, Instant::now())) {
                return Err(orders.leave(what));
            }
            if under_way.len() < UNDER_WAY {
                let passing = pass(next);
                under_way.spawn_local(async move { (order.is_some(), passing.await) });
            }
        }
        tokio::select! {
            ended = &mut wait => return Ok(ended?),
            signal = signals.next() => {
                let signal = signal?;
                arrived.extend(passed(signal, tty));
                if signal == Signal::SIGHUP as u32 && terminal::hung_up() {
                    hang_up = Some(Instant::now() + HANG_UP);
                }
            }
            Some(Ok((true, answer))) = under_way.join_next() => orders.answered(answer),
            () = at(orders.due()) => match orders.overdue(what) {
                Some(text) => say(&text),
                None => return Err(orders.leave(what)),
            },
            () = at(hang_up) => {
                return Err(Failure::signal("the terminal is gone; what ran at it goes on", Signal::SIGHUP as u32));
            }
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// The signals by which a user ends what runs, until the daemon has passed them on.
#[derive(Default)]
struct Orders {
    /// How many it has not.
    pending: usize,
    /// The last of them.
    signal: u32,
    /// When the first of them came.
    since: Option<Instant>,
    /// The user was told.
    told: bool,
    /// There was another before that: there is no patience left.
    again: bool,
    /// Why one was not taken, if something was said.
    refused: Option<String>,
}

impl Orders {
    /// One came. Whether it is coffer's own, because the user knows that none gets through.
    fn give(&mut self, signal: u32, now: Instant) -> bool {
        self.again |= self.pending > 0;
        self.pending += 1;
        self.signal = signal;
        self.since.get_or_insert(now);
        self.told
    }

    /// One was passed on, or can't be. That it isn't since the process has ended is seen in the wait.
    fn answered(&mut self, answer: cofferdam_types::Result<()>) {
        match answer {
            Err(error) if error.code == Code::Unavailable => self.refused = Some(Failure::from(error).text),
            _ => self.pending = self.pending.saturating_sub(1),
        }
        if self.pending == 0 {
            *self = Orders::default();
        }
    }

    /// When something must be done about the daemon's silence.
    fn due(&self) -> Option<Instant> {
        self.since.filter(|_| !self.told).map(|since| since + OVERDUE)
    }

    /// What the user is told then; nothing where that has been answered already.
    fn overdue(&mut self, what: &str) -> Option<String> {
        self.told = true;
        let why = self.refused.as_deref().unwrap_or("the daemon doesn't answer");
        let signal = name(self.signal);
        let text =
            format!("{signal} has not reached {what}: {why}. Once more (ctrl-c) leaves it running and ends coffer");
        Some(text).filter(|_| !self.again)
    }

    fn leave(&self, what: &str) -> Failure {
        Failure::signal(format!("{} has not reached {what}, which is left as it is", name(self.signal)), self.signal)
    }
}

/// Without a screen it never returns.
pub async fn show(screen: Option<&Screen>) -> Failure {
    match screen {
        Some(screen) => screen.show().await,
        None => std::future::pending().await,
    }
}

/// Shows what a container that has ended wrote last, says how it ended, and gives coffer's exit code: `failure` where not
/// all could be shown and the container has not failed itself.
pub async fn ended(
    signals: &Signals,
    screen: Option<Screen>,
    raw: Option<Raw>,
    id: &str,
    exit: &Exit,
    failure: i32,
) -> Result<i32, Failure> {
    let whole = match screen {
        None => true,
        Some(screen) => tokio::select! {
            whole = screen.rest() => whole?,
            signal = signals.ending() => return Err(Failure::signal("", signal?)),
        },
    };
    drop(raw);
    let code = tell(id, exit);
    Ok(if whole || code != 0 { code } else { failure })
}

/// Says how something ended that did not end by itself, and gives coffer's exit code.
pub fn tell(id: &str, exit: &Exit) -> i32 {
    if !exit.reason.is_empty() {
        say(&format!("container {id}: {}", exit.reason));
    }
    exit.status as i32
}

/// Says that the user has left and the container goes on, below what it has written.
pub fn tell_detached(id: &str) {
    let _ = std::io::stderr().write_all(b"\n");
    say(&format!("detached from {id}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    const INT: u32 = Signal::SIGINT as u32;
    const TERM: u32 = Signal::SIGTERM as u32;

    #[test]
    fn a_signal_that_gets_through_is_no_reason_to_leave() {
        let (mut orders, now) = (Orders::default(), Instant::now());
        for _ in 0..2 {
            assert!(!orders.give(INT, now));
            assert_eq!(orders.due(), Some(now + OVERDUE));
            orders.answered(Ok(()));
            assert_eq!(orders.due(), None);
        }
        assert!(!orders.give(INT, now));
        // It has ended: the wait sees it.
        orders.answered(Err(Error::not_found("process", "", "has ended")));
        assert_eq!(orders.due(), None);
    }

    #[test]
    fn the_second_that_does_not_get_through_is_coffers_own() {
        let (mut orders, now) = (Orders::default(), Instant::now());
        assert!(!orders.give(INT, now));
        let told = orders.overdue("container web").unwrap();
        assert!(told.starts_with("SIGINT has not reached container web: the daemon doesn't answer."), "{told}");
        assert_eq!(orders.due(), None, "it is told once");
        assert!(orders.give(TERM, now));
        assert_eq!(orders.leave("container web").code, Some(128 + TERM as i32));

        // Two at once are no impatience of somebody who was told; but then nobody needs to be.
        let mut orders = Orders::default();
        assert!(!orders.give(INT, now) && !orders.give(INT, now));
        assert_eq!(orders.overdue("it"), None);
        assert_eq!(orders.leave("it").code, Some(130));
    }

    #[test]
    fn a_daemon_that_is_away_has_passed_nothing_on() {
        let (mut orders, now) = (Orders::default(), Instant::now());
        assert!(!orders.give(INT, now));
        orders.answered(Err(Error::unavailable("connection", "", "is lost")));
        assert!(orders.overdue("it").unwrap().contains("connection: is lost (is cofferd running?)"));
        assert!(orders.give(INT, now));
    }
}
