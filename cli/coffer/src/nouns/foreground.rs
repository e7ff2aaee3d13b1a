//! What `run`, `exec` and `attach` share: streams, waiting while signals and window sizes are passed on, and how it is told
//! that something ended.

use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use cofferdam_client::{Exit, Input, Output, Stdio};
use nix::sys::signal::Signal;

use crate::{
    args::Args,
    cx::say,
    failure::Failure,
    signals::Signals,
    terminal,
    units::{self, HostStream},
};

/// How long what ran at a terminal that is gone has to end by the signal for that.
const HANG_UP: Duration = Duration::from_secs(2);

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

/// coffer's own streams, for a process.
pub fn stdio(interactive: bool, tty: bool) -> cofferdam_types::Result<Stdio> {
    let size = terminal::size().filter(|_| tty).unwrap_or_default();
    Ok(Stdio { size, ..Stdio::inherit(interactive)? })
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

/// Waits, and passes on meanwhile what arrives. A terminal that is gone ends that.
pub async fn attended<T, F>(
    signals: &Signals,
    tty: bool,
    wait: impl Future<Output = cofferdam_types::Result<T>>,
    pass: impl Fn(Passed) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = cofferdam_types::Result<()>> + 'static,
{
    tokio::pin!(wait);
    loop {
        let signal = tokio::select! {
            ended = &mut wait => return Ok(ended?),
            signal = signals.next() => signal?,
        };
        let passed = if signal == Signal::SIGWINCH as u32 {
            match terminal::size() {
                Some((rows, columns)) if tty => Passed::Size(rows, columns),
                _ => continue,
            }
        } else {
            Passed::Signal(signal)
        };
        let passing = pass(passed);
        // Beside the wait and not in front of it: it may have to find the daemon again first. That it fails because the
        // process has ended is seen in the wait.
        tokio::task::spawn_local(async move { drop(passing.await) });
        if signal == Signal::SIGHUP as u32 && terminal::hung_up() {
            let left = || Failure {
                text: "the terminal is gone; what ran at it goes on".to_owned(),
                code: Some(128 + Signal::SIGHUP as i32),
            };
            return Ok(tokio::time::timeout(HANG_UP, wait).await.map_err(|_| left())??);
        }
    }
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
