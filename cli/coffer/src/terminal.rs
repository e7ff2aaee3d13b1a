//! The terminal that coffer was started on.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::termios::{LocalFlags, OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::failure::Failure;

/// A terminal in raw mode: every key goes to the container. Dropping it puts back what was.
///
/// Every way out passes the drop: signals that end a program are read as data meanwhile (`signals`). A panic, which drops
/// nothing, has a hook.
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Sets standard input raw but for the keys that make signals, which can still give up what has not started;
    /// `None` if that is no terminal.
    pub fn stdin() -> Result<Option<Raw>, Failure> {
        let stdin = std::io::stdin();
        let Ok(before) = tcgetattr(&stdin) else { return Ok(None) };
        let terminal = stdin.as_fd().try_clone_to_owned().map_err(|e| Failure::io("the terminal", e))?;
        let (was, others) = (libc::termios::from(before.clone()), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &was.into());
            others(panic);
        }));
        let raw = Raw { terminal, before };
        raw.set(LocalFlags::ISIG)?;
        Ok(Some(raw))
    }

    /// Gives the container those keys as well.
    pub fn started(&self) -> Result<(), Failure> {
        match self.set(LocalFlags::empty()) {
            // Who runs this hears of it by a signal, and passes that on.
            Err(_) if hung_up() => Ok(()),
            other => other,
        }
    }

    fn set(&self, keep: LocalFlags) -> Result<(), Failure> {
        let mut raw = self.before.clone();
        cfmakeraw(&mut raw);
        raw.local_flags |= keep;
        tcsetattr(&self.terminal, SetArg::TCSANOW, &raw).map_err(|e| Failure::io("the terminal", e))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

/// Whether this is a terminal that shows what is written to it as it is.
pub fn is_raw(fd: impl AsFd) -> bool {
    tcgetattr(fd).is_ok_and(|now| !now.output_flags.contains(OutputFlags::OPOST))
}

/// Whether the terminal that coffer was started on is gone, as when its window is closed.
pub fn hung_up() -> bool {
    use nix::{
        poll::{PollFd, PollFlags, PollTimeout, poll},
        sys::stat::{SFlag, fstat},
    };
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()].into_iter().any(|fd| {
        // A pipe hangs up too, when its writer has ended.
        let device = fstat(fd).is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits());
        let mut asked = [PollFd::new(fd, PollFlags::empty())];
        device
            && poll(&mut asked, PollTimeout::ZERO).is_ok()
            && asked[0].revents().is_some_and(|seen| seen.contains(PollFlags::POLLHUP))
    })
}

nix::ioctl_read_bad!(window, libc::TIOCGWINSZ, libc::winsize);

/// Rows and columns of the first of the standard descriptors that is a terminal.
pub fn size() -> Option<(u16, u16)> {
    (0..3).find_map(|fd| {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCGWINSZ writes a winsize, and `size` is one; on any other descriptor the call fails.
        let asked = unsafe { window(fd, &mut size) };
        (asked.is_ok() && size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
    })
}
