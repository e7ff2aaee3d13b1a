//! Whether every bundle has a task, and every log a container.

use actix::{Context, Handler, ResponseFuture};
use cofferdam_metadata::records::{containers, tasks};
use cofferdam_types::{Fault, Finding, Findings, Id, Namespace, Result};

use crate::{
    actor::{Ctx, TasksActor},
    layout,
    messages::Check,
    recover,
};

impl Ctx {
    async fn check(&self, repair: bool) -> Result<Vec<Finding>> {
        let mut found = Findings::beside(self.deps.metadata.writable().is_ok());
        let (bundles, logs) = self.deps.layout.kept();
        // Whose the bundles are must be known of each task.
        let blind = recover::all(&self.deps)?.blind;
        for (ns, id) in bundles.into_iter().filter(|_| !blind) {
            // Who makes a task or removes it has the turn until all of it is there, or gone.
            let _turn = self.turn(&ns, &id).await;
            let dir = self.deps.layout.bundle(&ns, &id);
            if !dir.exists() || self.has_task(&ns, &id)? {
                continue;
            }
            let removed = repair.then(|| layout::remove(&dir));
            found.stray(Fault::BundleUnrecorded, format!("task/{ns}/{id}"), "no task has this bundle", removed);
        }
        for (ns, id) in logs {
            let _turn = self.turn(&ns, &id).await;
            let dir = self.deps.layout.log_dir(&ns, &id);
            if !dir.exists() || containers::exists(&self.deps.metadata.read()?, &ns, &id)? {
                continue;
            }
            let removed = repair.then(|| layout::remove(&dir));
            found.stray(Fault::LogUnrecorded, format!("log/{ns}/{id}"), "no container has this log", removed);
        }
        Ok(found.done())
    }

    fn has_task(&self, ns: &Namespace, id: &Id) -> Result<bool> {
        let known = self.entries.borrow().contains_key(&(ns.clone(), id.clone()));
        Ok(known || tasks::exists(&self.deps.metadata.read()?, ns, id)?)
    }
}

impl Handler<Check> for TasksActor {
    type Result = ResponseFuture<Result<Vec<Finding>>>;
    fn handle(&mut self, Check(repair): Check, _: &mut Context<Self>) -> Self::Result {
        let ctx = self.ctx.clone();
        Box::pin(async move { ctx.check(repair).await })
    }
}
