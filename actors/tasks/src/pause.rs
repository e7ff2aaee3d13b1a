//! A container that stands still, or goes on: in truth first, then on record, with an event, each in its order.

use std::rc::Rc;

use cofferdam_metadata::{
    Tx,
    records::{
        events,
        tasks::{self, State},
    },
};
use cofferdam_types::{Authority, Error, Event, Result};
use futures::FutureExt as _;

use crate::{
    actor::Ctx,
    entry::Entry,
    follow::Pauses,
    link::Remote,
    recover::{ANSWER, SILENT},
    shim::from_shim,
};

pub(crate) const PAUSED: &str = "/tasks/paused";
pub(crate) const RESUMED: &str = "/tasks/resumed";

/// How much news of one container waits for room; even.
const NEWS: usize = 64;

impl Ctx {
    /// Has the shim freeze it, or let it go on. What that does later than it is waited for is told then.
    pub(crate) async fn pause(&self, entry: &Rc<Entry>, remote: &Remote, auth: Authority, pause: bool) -> Result<()> {
        let mut answer = if pause {
            let asked = remote.container.pause_request().send().promise;
            async move { asked.await.map(drop).map_err(from_shim) }.boxed_local()
        } else {
            let asked = remote.container.resume_request().send().promise;
            async move { asked.await.map(drop).map_err(from_shim) }.boxed_local()
        };
        let topic = if pause { PAUSED } else { RESUMED };
        if let Ok(answer) = tokio::time::timeout(ANSWER, &mut answer).await {
            answer?;
            entry.paused.set(pause);
            self.tell(entry, &auth, topic).await;
            return Ok(());
        }
        entry.silent(remote);
        let (ctx, entry) = (self.clone(), entry.clone());
        let late = Error::unavailable("task", &entry.id, SILENT);
        tokio::task::spawn_local(async move {
            if answer.await.is_ok() {
                entry.paused.set(pause);
                ctx.tell(&entry, &auth, topic).await;
            }
        });
        Err(late)
    }

    /// Tells that it stands still, or goes on. It does so already, and who asked for that is not told otherwise for want of
    /// room: the news comes when there is some, in order.
    pub(crate) async fn tell(&self, entry: &Rc<Entry>, auth: &Authority, topic: &'static str) {
        let is_first = {
            let mut news = entry.news.borrow_mut();
            if news.len() == NEWS {
                // One and its opposite, which follow each other.
                tracing::error!(container = %entry.id, "that it was paused and resumed can't be recorded any more");
                news.drain(1..3);
            }
            news.push_back(topic);
            news.len() == 1
        };
        if is_first && let Err(error) = self.write_news(entry, auth).await {
            tracing::error!(container = %entry.id, topic, %error, "it can't be recorded yet");
            let (ctx, entry) = (self.clone(), entry.clone());
            tokio::task::spawn_local(async move {
                let mut pauses = Pauses::new();
                loop {
                    pauses.pass().await;
                    let written = ctx.write_news(&entry, &Authority::system()).await;
                    if written.is_ok() || entry.removing.get() {
                        return;
                    }
                }
            });
        }
    }

    async fn write_news(&self, entry: &Entry, auth: &Authority) -> Result<()> {
        loop {
            let Some(topic) = entry.news.borrow().front().copied() else { return Ok(()) };
            let (ns, id, shim) = (entry.namespace.clone(), entry.id.clone(), entry.shim.clone());
            let write = move |tx: &mut Tx<'_>| {
                if let Some(mut task) =
                    tasks::find(tx, &ns, &id)?.filter(|task| task.shim == shim && task.exit.is_none())
                {
                    // By this a daemon that comes later knows what was told.
                    task.state = if topic == PAUSED { State::Paused } else { State::Running };
                    tasks::update(tx, &ns, task)?;
                }
                events::emit(tx, Event::new(&ns, topic, serde_json::json!({ "container_id": id })))
            };
            self.deps.metadata.write(auth, write).await?;
            entry.news.borrow_mut().pop_front();
        }
    }
}
