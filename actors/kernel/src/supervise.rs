//! The loop that keeps one slot's actor alive: a task of the kernel's own arbiter.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use actix::{ActorContext, Addr, Context};
use cofferdam_types::Error;
use futures::FutureExt;
use tokio::{
    sync::{Semaphore, oneshot, watch},
    time::{sleep, timeout},
};

use crate::{
    backoff::Backoff,
    host::{Down, Hosts, Placement, Seat},
    panics::panic_text,
    slot::{Health, Hosted, Inner, Life, Work},
};

/// A start may repair a database or sweep a directory before it answers for the first time.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// What an actor may take to end after it was asked to.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

pub(crate) struct Supervisor<A: Hosted> {
    pub(crate) inner: Arc<Inner<A>>,
    pub(crate) hosts: Arc<Hosts>,
    pub(crate) placement: Placement,
    pub(crate) heartbeat: Duration,
    pub(crate) factory: Arc<dyn Fn() -> A + Send + Sync>,
}

/// How a life ended.
enum End {
    Stopped,
    Crashed { why: String, up: Option<Instant> },
}

impl<A: Hosted> Supervisor<A> {
    /// Starts the actor once `previous` has settled, and again after each crash, until it is stopped or given up.
    pub(crate) async fn run(self, previous: Option<watch::Receiver<Health>>) {
        let mut stop = self.inner.stop.subscribe();
        if let Some(mut previous) = previous {
            tokio::select! {
                _ = previous.wait_for(Health::settled) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        }
        let name = self.inner.name;
        let mut backoff = Backoff::new();
        while !*stop.borrow() {
            let (why, up) = match self.live(&mut stop).await {
                End::Stopped => break,
                End::Crashed { why, up } => (why, up),
            };
            self.inner.crashed(&why);
            let Some(wait) = backoff.next(up, Instant::now()) else {
                tracing::error!(actor = name, "gave up after too many crashes: {why}");
                self.inner.health.send_replace(Health::Failed { why });
                return;
            };
            tracing::error!(actor = name, restart_in_ms = wait.as_millis() as u64, "crashed: {why}");
            self.inner.health.send_replace(Health::Down { why });
            tokio::select! {
                () = sleep(wait) => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
            self.inner.restarts.fetch_add(1, Ordering::Relaxed);
        }
        self.inner.health.send_replace(Health::Stopped);
    }

    /// One life, from the factory to the end.
    async fn live(&self, stop: &mut watch::Receiver<bool>) -> End {
        let crashed = |why: &str| End::Crashed { why: why.to_owned(), up: None };
        let mut seat = match self.hosts.seat(self.placement) {
            Ok(seat) => seat,
            Err(error) => return crashed(&error.message),
        };
        let down = Arc::new(watch::Sender::new(None));
        let (addr, mut end) = self.launch(&seat, down.clone());
        // The first answer: `started` has run.
        let started = async {
            let addr = addr.await.ok()?;
            ping(&addr).await.then_some(addr)
        };
        let hung = |what: &str| Arc::<str>::from(format!("hung: {what}"));
        let addr = tokio::select! {
            biased;
            ended = &mut end => return self.ended(seat, ended, None),
            _ = evicted(&mut seat) => return crashed("its arbiter was restarted"),
            _ = stop.wait_for(|stop| *stop) => {
                self.hang(seat, &down, &hung("it was stopped before it had started"), None);
                return End::Stopped;
            }
            started = timeout(START_DEADLINE, started) => match started {
                Ok(Some(addr)) => addr,
                Ok(None) => {
                    let ended = (&mut end).await;
                    return self.ended(seat, ended, None);
                }
                Err(_) => return self.hang(seat, &down, &hung("it did not start within two minutes"), None),
            },
        };
        let up = Instant::now();
        let gate = Arc::new(Semaphore::new(self.inner.bound));
        self.inner.begin_life(Life { addr: addr.clone(), down: down.clone(), gate });
        self.inner.health.send_replace(Health::Up);
        tracing::debug!(actor = self.inner.name, "up");
        loop {
            let beat = async {
                sleep(self.heartbeat).await;
                timeout(self.heartbeat, ping(&addr)).await
            };
            tokio::select! {
                biased;
                ended = &mut end => {
                    self.inner.end_life(&down);
                    return self.ended(seat, ended, Some(up));
                }
                why = evicted(&mut seat) => {
                    self.inner.end_life(&down);
                    down.send_replace(Some(why.clone()));
                    return End::Crashed { why: why.to_string(), up: Some(up) };
                }
                _ = stop.wait_for(|stop| *stop) => {
                    self.inner.end_life(&down);
                    addr.do_send(Work::new(|_, ctx: &mut Context<A>| ctx.stop()));
                    drop(addr);
                    return match timeout(STOP_DEADLINE, &mut end).await {
                        Ok(_) => {
                            self.hosts.leave(seat);
                            End::Stopped
                        }
                        Err(_) => {
                            let why = hung("it did not stop when it was asked to");
                            tracing::error!(actor = self.inner.name, "{why}");
                            self.hang(seat, &down, &why, Some(up));
                            End::Stopped
                        }
                    };
                }
                beat = beat => if beat.is_err() {
                    let why = hung(&format!("no heartbeat within {:?}", self.heartbeat));
                    return self.hang(seat, &down, &why, Some(up));
                }
            }
        }
    }

    /// Builds and runs the actor on its seat. The first channel gives its address, the second says how it ended.
    fn launch(
        &self,
        seat: &Seat,
        down: Arc<watch::Sender<Down>>,
    ) -> (oneshot::Receiver<Addr<A>>, oneshot::Receiver<Option<String>>) {
        let (send_addr, addr) = oneshot::channel();
        let (send_end, end) = oneshot::channel();
        let factory = self.factory.clone();
        let inner = self.inner.clone();
        seat.arbiter.spawn_fn(move || {
            actix_rt::spawn(async move {
                let mut future = match catch_unwind(AssertUnwindSafe(|| factory())) {
                    Ok(actor) => Box::pin(Context::<A>::new().into_future(actor)),
                    Err(payload) => {
                        let _ = send_end.send(Some(panic_text(&*payload)));
                        return;
                    }
                };
                let _ = send_addr.send(future.address());
                // The future is borrowed, so that a panic does not drop it, and the mailbox within, on its way here.
                let end = AssertUnwindSafe(future.as_mut()).catch_unwind().await;
                let panic = end.err().map(|payload| panic_text(&*payload));
                // In this order: whoever loses an answer when the mailbox is dropped must find the reason.
                inner.end_life(&down);
                down.send_replace(Some(panic.as_deref().unwrap_or("it stopped").into()));
                // The drop of a broken state may panic again.
                let _ = catch_unwind(AssertUnwindSafe(move || drop(future)));
                let _ = send_end.send(panic);
            });
        });
        (addr, end)
    }

    fn ended(&self, seat: Seat, end: Result<Option<String>, oneshot::error::RecvError>, up: Option<Instant>) -> End {
        self.hosts.leave(seat);
        match end {
            Ok(Some(why)) => End::Crashed { why, up },
            Ok(None) if *self.inner.stop.borrow() => End::Stopped,
            // A slot is stopped by its kernel; an actor that stops by itself has no other word for "start me again".
            Ok(None) => End::Crashed { why: "it stopped by itself".into(), up },
            Err(_) => End::Crashed { why: "its arbiter is gone".into(), up },
        }
    }

    fn hang(&self, seat: Seat, down: &Arc<watch::Sender<Down>>, why: &Arc<str>, up: Option<Instant>) -> End {
        self.inner.end_life(down);
        self.hosts.abandon(seat, why);
        down.send_replace(Some(why.clone()));
        End::Crashed { why: why.to_string(), up }
    }
}

/// Whether the actor answered; it does not answer when it ends first. Sets no deadline.
async fn ping<A: Hosted>(addr: &Addr<A>) -> bool {
    let (pong, answer) = oneshot::channel();
    addr.do_send(Work::new(move |_: &mut A, _| {
        let _ = pong.send(());
    }));
    answer.await.is_ok()
}

/// Waits until the arbiter under the seat is given up.
async fn evicted(seat: &mut Seat) -> Arc<str> {
    let why = pin!(seat.evicted.wait_for(Option::is_some)).await.ok().and_then(|why| why.clone());
    match why {
        Some(why) => why,
        None => std::future::pending().await,
    }
}

/// Panics the actor, as a defect of its own would.
pub(crate) fn poison<A: Hosted>(inner: &Inner<A>) -> cofferdam_types::Result<()> {
    let life = inner.life.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    let life = life.as_ref().ok_or_else(|| Error::unavailable("actor", inner.name, "is not up"))?;
    // PANIC: what was asked for; it happens in the actor, and its life ends as it would after any other.
    life.addr.do_send(Work::new(|_: &mut A, _| panic!("poisoned on request")));
    Ok(())
}
