//! The actor: owns the journal and moves the outbox into it. Reads and syncs are jobs of its pool.

use std::{sync::Arc, time::Duration};

use actix::{Actor, AsyncContext, Context, Handler, ResponseFuture, WrapFuture};
use cofferdam_kernel::{Pool, hosted};
use cofferdam_metadata::{Metadata, records};
use cofferdam_types::{Authority, Result};

use crate::{
    journal::{Chunk, Cursor, Damage, Journal},
    messages::{Check, ReadJournal, Settle},
};

/// Events lie in the outbox for so long before they are moved. They are durable there, and everybody sees them: the
/// delay only makes one sync, and one commit that trims the outbox, out of many.
const DELAY: Duration = Duration::from_secs(1);
/// Events that are moved at once.
const BATCH: usize = 512;
const BYTES: usize = 1 << 20;

/// Keeps the journal. A new one opens it where the old one crashed; what was not yet moved is in the outbox.
pub struct EventsActor {
    meta: Metadata,
    journal: Arc<Journal>,
    pool: Pool,
}

impl EventsActor {
    pub(crate) fn new(meta: Metadata, journal: Arc<Journal>, pool: Pool) -> EventsActor {
        EventsActor { meta, journal, pool }
    }

    fn settling(&self) -> impl Future<Output = Result<u64>> + use<> {
        let (meta, journal, pool) = (self.meta.clone(), self.journal.clone(), self.pool.clone());
        async move { pool.run(move || settle(&meta, &journal)).await }
    }
}

hosted!(EventsActor);

impl Actor for EventsActor {
    type Context = Context<EventsActor>;

    fn started(&mut self, ctx: &mut Context<EventsActor>) {
        if self.meta.writable().is_err() {
            return;
        }
        let mut outbox = self.meta.outbox();
        let mut settled = self.journal.last();
        let (meta, journal, pool) = (self.meta.clone(), self.journal.clone(), self.pool.clone());
        let follow = async move {
            while outbox.wait_for(|last| *last > settled).await.is_ok() {
                actix_rt::time::sleep(DELAY).await;
                // The last of them may be one that can't be read, and never gets there.
                let committed = *outbox.borrow_and_update();
                let (theirs, journal) = (meta.clone(), journal.clone());
                match pool.run(move || settle(&theirs, &journal)).await {
                    Ok(last) => settled = last.max(committed),
                    // Nothing is lost: it stays in the outbox. A full disk may be empty the next time.
                    Err(error) => tracing::error!(%error, "events can't be moved into the journal"),
                }
                // Nor can they be as long as this daemon lives.
                if meta.writable().is_err() {
                    return;
                }
            }
        };
        ctx.spawn(follow.into_actor(self));
    }
}

/// Moves what the outbox holds into the journal, then trims it. Whatever the crash comes between is done again and
/// changes nothing the second time.
fn settle(meta: &Metadata, journal: &Journal) -> Result<u64> {
    meta.writable()?;
    let mut moved = false;
    loop {
        let events = records::events::outbox_block(&meta.read()?, journal.last(), BATCH, BYTES)?;
        if events.is_empty() {
            break;
        }
        journal.append(&events)?;
        moved = true;
    }
    let last = journal.last();
    // After a crash the journal may have what the outbox still holds.
    if moved || !records::events::outbox_after(&meta.read()?, 0, 1)?.is_empty() {
        meta.write_blocking(&Authority::system(), move |tx| records::events::outbox_trim(tx, last))?;
    }
    Ok(last)
}

impl Handler<ReadJournal> for EventsActor {
    type Result = ResponseFuture<Result<(Chunk, Cursor)>>;

    fn handle(&mut self, message: ReadJournal, _: &mut Context<EventsActor>) -> Self::Result {
        let (journal, pool) = (self.journal.clone(), self.pool.clone());
        Box::pin(async move {
            pool.run(move || {
                let mut cursor = message.cursor;
                let chunk = journal.read(&mut cursor, message.max)?;
                Ok((chunk, cursor))
            })
            .await
        })
    }
}

impl Handler<Check> for EventsActor {
    type Result = ResponseFuture<Result<Vec<Damage>>>;

    fn handle(&mut self, _: Check, _: &mut Context<EventsActor>) -> Self::Result {
        let (journal, pool) = (self.journal.clone(), self.pool.clone());
        Box::pin(async move { pool.run(move || journal.damage()).await })
    }
}

impl Handler<Settle> for EventsActor {
    type Result = ResponseFuture<Result<u64>>;

    fn handle(&mut self, _: Settle, _: &mut Context<EventsActor>) -> Self::Result {
        Box::pin(self.settling())
    }
}
