//! The writer: collects what waits, commits it at once, answers each.

use std::{
    future::Future,
    pin::Pin,
    time::{Duration, Instant},
};

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Running, SpawnHandle, WrapFuture};
use cofferdam_kernel::hosted;
use cofferdam_types::{Error, Result};
use tokio::sync::oneshot;

use crate::{
    messages::{Patience, Write},
    store::Store,
};

/// The actor that owns meta.redb. On restart it opens the file again; what it had answered is in it.
pub struct Writer {
    store: Store,
    waiting: Vec<(Write, oneshot::Sender<Result<()>>)>,
    /// How many are worth waiting for.
    expected: usize,
    /// Those of the waiting that are not patient.
    prompt: usize,
    /// Told when so many are there.
    gathered: Option<oneshot::Sender<()>>,
    /// The end of patience.
    timer: Option<(Instant, SpawnHandle)>,
    /// When somebody came last who was not patient.
    last: Option<Instant>,
    /// How long a commit took last.
    took: Duration,
    /// Whether the reserve is being made.
    making: bool,
}

/// Writes in one transaction: enough to make the fsync cheap, few enough that running a batch again stays cheap.
const MAX_BATCH: usize = 64;
/// How long after the start, and after it was given up, the reserve for removals is made; and the longest time to another
/// attempt at that.
const MAKE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Whoever was answered by a batch comes back with the next write, one after the other. Were the first of them committed
/// alone, all others would wait for that: so a batch waits a moment for as many as the last one had, on a disk where a
/// commit takes longer than that by far.
const MOMENT: Duration = Duration::from_millis(1);
const SLOW: Duration = Duration::from_millis(2);
/// It is quiet once nobody has written for so many commits' time, within these bounds. A writer that came then, and met a
/// commit of what waits for quiet, would wait for that and then for its own.
const QUIET: (u32, Duration, Duration) = (10, Duration::from_millis(10), Duration::from_millis(100));

impl Writer {
    pub(crate) fn new(store: Store) -> Writer {
        Writer {
            store,
            waiting: Vec::new(),
            expected: 1,
            prompt: 0,
            gathered: None,
            timer: None,
            last: None,
            took: Duration::ZERO,
            making: false,
        }
    }

    fn flush(&mut self, ctx: &mut Context<Writer>) {
        self.prompt = 0;
        if let Some((_, timer)) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        while !self.waiting.is_empty() {
            let rest = self.waiting.split_off(self.waiting.len().min(MAX_BATCH));
            let (writes, answers): (Vec<_>, Vec<_>) = std::mem::replace(&mut self.waiting, rest).into_iter().unzip();
            let begun = Instant::now();
            let results = self.store.commit(&writes);
            self.took = begun.elapsed();
            self.expected = if self.took >= SLOW { prompt(&writes).max(1) } else { 1 };
            for (answer, result) in answers.into_iter().zip(results) {
                let _ = answer.send(result);
            }
            if self.store.shared().known().spent() {
                self.make_reserve(ctx);
            }
            if let Err(error) = self.store.recover() {
                // PANIC: crash-only: the slot restarts this actor, with back-off, until the file opens again.
                panic!("opening meta.redb after a storage error: {error}");
            }
        }
    }

    /// Sees to it that who is patient is written then, whoever comes.
    fn flush_at(&mut self, due: Instant, ctx: &mut Context<Writer>) {
        if self.prompt > 0 || self.timer.as_ref().is_some_and(|(sooner, _)| *sooner <= due) {
            return;
        }
        let timer = ctx.run_later(due.saturating_duration_since(Instant::now()), Writer::flush);
        if let Some((_, later)) = self.timer.replace((due, timer)) {
            ctx.cancel_future(later);
        }
    }

    /// Has the reserve made, beside all else. While the disk is full that is tried again and again.
    fn make_reserve(&mut self, ctx: &mut Context<Writer>) {
        if std::mem::replace(&mut self.making, true) {
            return;
        }
        let reserve = self.store.shared().known().reserve().clone();
        let make = async move {
            let mut pause = MAKE.0;
            loop {
                tokio::time::sleep(pause).await;
                pause = MAKE.1.min(pause * 2);
                let reserve = reserve.clone();
                if tokio::task::spawn_blocking(move || reserve.make()).await.unwrap_or(true) {
                    return;
                }
            }
        };
        ctx.spawn(make.into_actor(self).map(|(), writer, _| writer.making = false));
    }
}

/// When the patience of a write ends that comes `now`; `None`: it has none. `last`: when somebody came who had none; `took`: how long
/// a commit takes.
fn due(patience: Patience, now: Instant, last: Option<Instant>, took: Duration) -> Option<Instant> {
    match patience {
        Patience::None => None,
        Patience::For(time) => Some(now + time),
        Patience::UntilQuiet => {
            let (times, least, most) = QUIET;
            let quiet = took.saturating_mul(times).clamp(least, most);
            Some(last.map_or(now, |last| now.max(last + quiet)))
        }
    }
}

fn prompt(writes: &[Write]) -> usize {
    writes.iter().filter(|write| write.patience == Patience::None).count()
}

hosted!(Writer);

impl Actor for Writer {
    type Context = Context<Writer>;

    fn started(&mut self, ctx: &mut Context<Writer>) {
        self.make_reserve(ctx);
    }

    fn stopping(&mut self, ctx: &mut Context<Writer>) -> Running {
        // Those that were patient are nobody's to repeat.
        self.flush(ctx);
        Running::Stop
    }
}

impl Handler<Write> for Writer {
    type Result = Pin<Box<dyn Future<Output = Result<()>>>>;

    fn handle(&mut self, write: Write, ctx: &mut Context<Writer>) -> Self::Result {
        let (answer, answered) = oneshot::channel();
        let due = due(write.patience, Instant::now(), self.last, self.took);
        self.waiting.push((write, answer));
        if let Some(due) = due {
            self.flush_at(due, ctx);
        } else {
            if self.prompt == 0 {
                let (gathered, all) = oneshot::channel();
                self.gathered = Some(gathered);
                let gather = async move {
                    // A context polls its futures after its mailbox is empty: by then everybody who waits is here.
                    let _ = tokio::time::timeout(MOMENT, all).await;
                };
                ctx.spawn(gather.into_actor(self).map(|(), writer, ctx| writer.flush(ctx)));
            }
            self.prompt += 1;
            self.last = Some(Instant::now());
        }
        if self.prompt >= self.expected {
            self.gathered = None;
        }
        Box::pin(async move {
            answered.await.unwrap_or_else(|_| {
                Err(Error::unavailable("metadata", "", "the writer crashed; whether it had committed is open"))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_quiet_when_nobody_came_for_ten_commits_within_bounds() {
        let ms = Duration::from_millis;
        let now = Instant::now() + ms(1000);
        let wait = |ago: Option<Duration>, took| {
            let last = ago.map(|ago| now - ago);
            due(Patience::UntilQuiet, now, last, took).map(|due| due - now)
        };
        // Nobody ever came.
        assert_eq!(wait(None, ms(5)), Some(ms(0)));
        for (ago, took, left) in
            [(0, 5, 50), (20, 5, 30), (50, 5, 0), (60, 5, 0), (0, 0, 10), (3, 1, 7), (0, 500, 100), (99, 500, 1)]
        {
            assert_eq!(wait(Some(ms(ago)), ms(took)), Some(ms(left)), "{ago} ms ago, where a commit takes {took} ms");
        }
        assert_eq!(due(Patience::For(ms(7)), now, Some(now), ms(5)), Some(now + ms(7)));
        assert_eq!(due(Patience::None, now, None, ms(5)), None);
    }
}
