//! What was run through a grant, and ends with it: the processes themselves, and all that they have begun, which is found by
//! the group that they are in, whoever its parent is by now. A container that was made through it goes on, without the
//! streams that its maker gave it.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use cofferdam_oci as oci;
use cofferdam_types::{GrantId, Result};

use super::{Container, ending::KILLED};
use crate::process::Process;

/// The grants by which there is a group.
#[derive(Default)]
pub struct Granted(RefCell<BTreeSet<String>>);

/// The name of its group.
fn group(grant: &str) -> Result<String> {
    // It becomes part of a path.
    grant.parse::<GrantId>()?;
    Ok(format!("grant-{grant}"))
}

impl Container {
    /// The group of what is run through a grant, where it is one. Whoever calls it has the turn: of those that nobody is in
    /// any more none is left to pile up. Nor is its own one taken again, if all in it were killed: the kernel (6.18) kills what is
    /// born into a group that was ever killed, where its parent is in another.
    pub(super) fn enter(&self, made: &oci::Container, grant: &str) -> Result<Option<String>> {
        if grant.is_empty() {
            return Ok(None);
        }
        let name = group(grant)?;
        let empty = |other: &String| group(other).and_then(|name| made.remove_group(&name)).unwrap_or_default();
        self.granted.0.borrow_mut().retain(|other| !empty(other));
        self.granted.0.borrow_mut().insert(grant.to_owned());
        Ok(Some(name))
    }

    /// The grants through which something was run that may still be there.
    pub fn grants(&self) -> Vec<String> {
        self.granted.0.borrow().iter().cloned().collect()
    }

    /// Those that were run through it themselves, and have not ended.
    fn run_through(&self, grant: &str) -> Vec<Rc<Process>> {
        let execs = self.execs.borrow();
        let all = execs.values().map(|exec| &exec.process);
        all.filter(|process| process.alive() && process.life().grant == grant).cloned().collect()
    }

    /// Ends what was run through a grant, with all that came of it. What was not started can't be any more.
    pub async fn end_grant(&self, grant: &str) -> Result<()> {
        let name = group(grant)?;
        if self.init.life().grant == grant {
            self.init.cut();
        }
        // At once, whoever has the turn; and once more behind him: what he was starting is there then.
        self.kill_granted(grant, &name).await?;
        let _turn = self.turn.lock().await;
        let waiting: Vec<_> = {
            let mut execs = self.execs.borrow_mut();
            let of = execs.values_mut().filter(|exec| exec.process.life().grant == grant);
            of.filter_map(|exec| exec.pending.take().map(|_| exec.process.clone())).collect()
        };
        waiting.iter().for_each(|process| process.exited(KILLED, "its grant has ended"));
        self.kill_granted(grant, &name).await
    }

    async fn kill_granted(&self, grant: &str, name: &str) -> Result<()> {
        self.run_through(grant).iter().for_each(|process| process.doom());
        let Some(made) = self.made.borrow().clone() else { return Ok(()) };
        let name = name.to_owned();
        // Not `act`: see `kill_all`.
        self.calls.make(true, &Default::default(), move || made.kill_group(&name)).await?;
        // A program of others may not have come to put its own into the group.
        for process in self.run_through(grant) {
            match process.kill(libc::SIGKILL) {
                Err(error) if process.alive() && !process.has_ended() => return Err(error),
                Ok(()) if self.is_frozen() => self.made()?.let_die(process.life().pid as i32)?,
                _ => {}
            }
        }
        Ok(())
    }
}
