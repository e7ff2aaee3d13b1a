//! Signals as data.

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::failure::Failure;

/// The signals that coffer takes instead of ending by them. They stay blocked: coffer starts no other program.
pub struct Signals(AsyncFd<SignalFd>);

impl Signals {
    /// From now on these signals arrive here alone.
    pub fn take(signals: &[Signal]) -> Result<Signals, Failure> {
        let io = |e: nix::Error| Failure::io("signals", e);
        let set: SigSet = signals.iter().copied().collect();
        set.thread_block().map_err(io)?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(io)?;
        // SAFETY: a SignalFd owns its descriptor and gives the same one until it is dropped.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        fd.map(Signals).map_err(|e| Failure::io("signals", e))
    }

    /// The next signal's number.
    pub async fn next(&self) -> Result<u32, Failure> {
        let io = |e: std::io::Error| Failure::io("signals", e);
        loop {
            let mut ready = self.0.readable().await.map_err(io)?;
            match ready.get_inner().read_signal().map_err(|e| io(e.into()))? {
                Some(info) => return Ok(info.ssi_signo),
                None => ready.clear_ready(),
            }
        }
    }

    /// The next of those by which a user ends something.
    pub async fn ending(&self) -> Result<u32, Failure> {
        loop {
            let signal = self.next().await?;
            if ends(signal) {
                return Ok(signal);
            }
        }
    }
}

/// What is passed on to a container, and the news that the window has another size.
pub const FORWARDED: &[Signal] = &[
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// By these a user ends something.
pub const ENDING: &[Signal] = &[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Whether the signal is one of them.
pub fn ends(signal: u32) -> bool {
    ENDING.iter().any(|ending| *ending as u32 == signal)
}

/// Its name, for people.
pub fn name(signal: u32) -> &'static str {
    Signal::try_from(signal as i32).map_or("the signal", Signal::as_str)
}
