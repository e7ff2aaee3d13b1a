//! What was run through a grant ends with it: the processes, all that they have begun, and the streams that a container was given
//! by who made it. So it does in a container that the grant no longer chooses. Through which grants something was
//! run stands in the life records of its shim: so an end that comes while there is no daemon, or no actor, is made good by the next.

use std::rc::Rc;

use cofferdam_types::{Code, Error, Result, Timestamp};
use cofferdam_wire::convert::life;

use crate::{
    actor::Ctx,
    entry::{Entry, Process},
    follow::Pauses,
    shim::from_shim,
};

impl Ctx {
    /// Of a task that was found again, or was just made.
    pub(crate) fn end_all_with_their_grants(&self, entry: &Rc<Entry>) {
        let mut grants: Vec<String> = entry.granted.borrow().keys().cloned().collect();
        grants.push(entry.init.life.borrow().grant.clone());
        grants.extend(entry.execs.borrow().values().map(|process| process.life.borrow().grant.clone()));
        grants.into_iter().for_each(|grant| self.end_with_grant(entry, grant));
    }

    /// Something is run through a grant. Nobody who asked for it need be there any more: it is the actor that sees to its end.
    pub(crate) fn end_with_grant(&self, entry: &Rc<Entry>, grant: String) {
        // Of damaged tables nobody knows whether the grant was among what is lost.
        if grant.is_empty() || self.deps.metadata.writable().is_err() {
            return;
        }
        if entry.granted.borrow_mut().insert(grant.clone(), true) == Some(true) {
            return;
        }
        let (ctx, entry) = (self.clone(), entry.clone());
        tokio::task::spawn_local(async move {
            let mut over = entry.init.exit.subscribe();
            let ended = async {
                // What is no id is that of no grant.
                if let Ok(id) = grant.parse() {
                    ctx.deps.grants.until_out_of_reach(id, &entry.id).await;
                }
                // What comes behind this has to be ended once more.
                entry.granted.borrow_mut().insert(grant.clone(), false);
                let mut pauses = Pauses::new();
                while let Err(error) = ctx.end_granted(&entry, &grant).await {
                    tracing::warn!(container = %entry.id, grant, %error, "what was run through a grant outlives it");
                    pauses.pass().await;
                }
                let mut granted = entry.granted.borrow_mut();
                if granted.get(&grant) == Some(&false) {
                    granted.remove(&grant);
                }
            };
            tokio::select! {
                _ = over.wait_for(Option::is_some) => {}
                () = entry.link.lost() => {}
                () = ended => {}
            }
        });
    }

    /// Has the shim end what was run through a grant that has ended.
    async fn end_granted(&self, entry: &Rc<Entry>, grant: &str) -> Result<()> {
        let remote = entry.remote().await?;
        let mut request = remote.container.end_grant_request();
        request.get().set_grant(grant);
        // It is waited for without a limit: behind whatever of it is being started.
        match request.send().promise.await.map_err(from_shim) {
            Err(error) if matches!(error.code, Code::Unimplemented | Code::InvalidArgument) => {
                return end_each(entry, grant).await;
            }
            answer => answer.map(drop)?,
        }
        // Of what was never started nobody watches the end.
        let answer = remote.container.state_request().send().promise.await.map_err(from_shim)?;
        for found in answer.get().and_then(|answer| answer.get_processes()).map_err(from_shim)?.iter() {
            let life = life(found)?;
            let Ok(process) = entry.process(&life.id) else { continue };
            if life.id.is_empty() {
                continue;
            }
            let same = life.grant == grant && life.created == process.life.borrow().created;
            if same && life.started == Timestamp(0) && life.exited != Timestamp(0) && process.ended().is_none() {
                let exec = life.id.clone();
                process.update(life);
                self.exec_ended(entry, exec, process);
            }
        }
        Ok(())
    }
}

/// With a shim that is older than that: each process, and nothing that it has begun.
async fn end_each(entry: &Rc<Entry>, grant: &str) -> Result<()> {
    let of = |process: &Process| process.ended().is_none() && process.life.borrow().grant == grant;
    let all: Vec<String> =
        entry.execs.borrow().iter().filter(|(_, process)| of(process)).map(|(exec, _)| exec.clone()).collect();
    for exec in all {
        match entry.kill(&exec, libc::SIGKILL as u32, false).await {
            // It has ended; or was never started, and nobody can do that any more through the grant.
            Err(Error { code: Code::NotFound | Code::FailedPrecondition, .. }) => {}
            killed => killed?,
        }
    }
    Ok(())
}
