//! The handle that callers hold on an actor: stable over its restarts, bounded, never waiting for the dead.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use actix::{Actor, Addr, Context, Handler, Message, dev::MessageResponse};
use cofferdam_types::{COMES_BACK, Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::{host::Down, panics::panic_text};

/// How a slot's actor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It has not been up yet.
    Starting,
    /// It answers.
    Up,
    /// It crashed or hangs, and will be started again.
    Down {
        /// What happened.
        why: String,
    },
    /// It crashed too often and stays down until the daemon is restarted.
    Failed {
        /// What happened last.
        why: String,
    },
    /// It was stopped on purpose.
    Stopped,
}

impl Health {
    /// Up, or never to be up: nothing that an ordered start has to wait for.
    pub(crate) fn settled(&self) -> bool {
        matches!(self, Health::Up | Health::Failed { .. } | Health::Stopped)
    }
}

/// Something to do inside an actor: how every message of a slot, a heartbeat and a stop travel.
pub struct Work<A: Actor>(Job<A>);

type Job<A> = Box<dyn FnOnce(&mut A, &mut <A as Actor>::Context) + Send>;

impl<A: Actor> Work<A> {
    pub(crate) fn new(job: impl FnOnce(&mut A, &mut A::Context) + Send + 'static) -> Work<A> {
        Work(Box::new(job))
    }

    /// Does it; called by what [`hosted!`](crate::hosted) writes.
    pub fn run(self, actor: &mut A, ctx: &mut A::Context) {
        (self.0)(actor, ctx);
    }
}

impl<A: Actor> Message for Work<A> {
    type Result = ();
}

/// An actor that a slot can host. [`hosted!`](crate::hosted) implements what is missing.
pub trait Hosted: Actor<Context = Context<Self>> + Handler<Work<Self>> {}

/// Makes actors fit to be hosted: `hosted!(MyActor);`
#[macro_export]
macro_rules! hosted {
    ($($actor:ty),+ $(,)?) => {$(
        impl ::actix::Handler<$crate::Work<$actor>> for $actor {
            type Result = ();
            fn handle(&mut self, work: $crate::Work<$actor>, ctx: &mut ::actix::Context<$actor>) {
                work.run(self, ctx);
            }
        }
        impl $crate::Hosted for $actor {}
    )+};
}

/// A stable handle on a mortal actor. Cheap to clone; valid across restarts.
pub struct Slot<A: Actor>(pub(crate) Arc<Inner<A>>);

impl<A: Actor> Clone for Slot<A> {
    fn clone(&self) -> Slot<A> {
        Slot(self.0.clone())
    }
}

impl<A: Actor> fmt::Debug for Slot<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({}, {:?})", self.0.name, self.health())
    }
}

/// One life of the actor.
pub(crate) struct Life<A: Actor> {
    pub(crate) addr: Addr<A>,
    /// Turns `Some` before the actor's mailbox is dropped, so whoever loses an answer finds the reason here.
    pub(crate) down: Arc<watch::Sender<Down>>,
    /// One permit per message that waits or is worked on. actix's mailbox would let every fresh sender exceed its
    /// bound by one. Each life has its own: what waits for an actor that hangs takes no room from its successor.
    pub(crate) gate: Arc<Semaphore>,
}

impl<A: Actor> Clone for Life<A> {
    fn clone(&self) -> Life<A> {
        Life { addr: self.addr.clone(), down: self.down.clone(), gate: self.gate.clone() }
    }
}

/// A call, as its caller and its message hold it.
struct Ticket {
    _permit: OwnedSemaphorePermit,
    /// By the first who took it: the actor, which then works on it, or the caller, who then knows that it won't.
    taken: AtomicBool,
}

pub(crate) struct Inner<A: Actor> {
    pub(crate) name: &'static str,
    pub(crate) bound: usize,
    pub(crate) life: RwLock<Option<Life<A>>>,
    pub(crate) health: watch::Sender<Health>,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) restarts: AtomicU64,
    pub(crate) last_panic: Mutex<Option<String>>,
}

impl<A: Actor> Inner<A> {
    pub(crate) fn begin_life(&self, life: Life<A>) {
        *self.life.write().unwrap_or_else(PoisonError::into_inner) = Some(life);
    }

    /// Ends the life that this word belongs to. One that was given up because it hung may end after its successor
    /// has begun, and must not take that with it.
    pub(crate) fn end_life(&self, down: &Arc<watch::Sender<Down>>) {
        let mut life = self.life.write().unwrap_or_else(PoisonError::into_inner);
        if life.as_ref().is_some_and(|life| Arc::ptr_eq(&life.down, down)) {
            *life = None;
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        let life = self.life.read().unwrap_or_else(PoisonError::into_inner);
        life.as_ref().map_or(0, |life| self.bound - life.gate.available_permits())
    }

    pub(crate) fn last_panic(&self) -> Option<String> {
        self.last_panic.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn crashed(&self, why: &str) {
        *self.last_panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
    }

    /// The present life, or the error that a caller gets instead.
    fn live(&self) -> Result<Life<A>> {
        if let Some(life) = &*self.life.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(life.clone());
        }
        Err(self.down(match &*self.health.borrow() {
            Health::Starting => "is starting: try again".to_owned(),
            // It has just ended.
            Health::Up => format!("is down and {COMES_BACK}"),
            Health::Down { why } => format!("is down and {COMES_BACK}: {why}"),
            Health::Failed { why } => format!("has failed; restart the daemon: {why}"),
            Health::Stopped => "is stopped".to_owned(),
        }))
    }

    fn down(&self, message: impl Into<String>) -> Error {
        Error::unavailable("actor", self.name, message)
    }
}

impl<A> Slot<A>
where
    A: Actor<Context = Context<A>> + Handler<Work<A>>,
{
    /// Sends a message and waits for the answer. `unavailable`: the actor is down, overloaded (as many messages as
    /// the slot's bound wait already), or crashed while it worked. Needs no tokio context and sets no timer.
    pub async fn call<M, R>(&self, message: M) -> Result<R>
    where
        A: Handler<M>,
        M: Message<Result = Result<R>> + Send + 'static,
        R: Send + 'static,
    {
        let inner = &self.0;
        let Life { addr, down, gate } = inner.live()?;
        let mut down = down.subscribe();
        let permit = gate
            .try_acquire_owned()
            .map_err(|_| inner.down(format!("overloaded: {} messages wait; try again", inner.bound)))?;
        // The message and its caller each hold the permit: a caller that goes away frees no room for as long as its
        // message waits.
        let ticket = Arc::new(Ticket { _permit: permit, taken: AtomicBool::new(false) });
        let held = ticket.clone();
        let name = inner.name;
        let (answer, answered) = oneshot::channel();
        let work = Work::new(move |actor: &mut A, ctx: &mut Context<A>| {
            if held.taken.swap(true, Ordering::AcqRel) {
                // Its caller was told that nothing will be done: the actor hung, and woke up after it was given up.
                return;
            }
            let handled = catch_unwind(AssertUnwindSafe(|| <A as Handler<M>>::handle(actor, message, ctx)));
            // Before the answer: who has it may call again at once, and must find his place free.
            drop(held);
            match handled {
                Ok(response) => response.handle(ctx, Some(answer)),
                Err(payload) => {
                    let why = format!("crashed while it worked: {}", panic_text(&*payload));
                    let _ = answer.send(Err(Error::unavailable("actor", name, why)));
                    resume_unwind(payload);
                }
            }
        });
        // `do_send` passes over the mailbox's bound; the gate above is the bound.
        addr.do_send(work);
        drop(addr);
        let news = down.clone();
        let ended = async move { down.wait_for(Option::is_some).await.ok().and_then(|why| why.clone()) };
        let lost = tokio::select! {
            biased;
            answer = answered => match answer {
                Ok(answer) => return answer,
                Err(_) => news.borrow().clone(),
            },
            why = ended => why,
        };
        let begun = ticket.taken.swap(true, Ordering::AcqRel);
        drop(ticket);
        Err(match lost {
            Some(why) if !begun => inner.down(format!("is down and {COMES_BACK}: {why}")),
            Some(why) => inner.down(format!("went down before it answered: {why}")),
            // The actor lives: it was the future of this one answer that panicked, or that dropped its sender.
            None => inner.down("crashed while it worked on this request; the log has the panic"),
        })
    }

    /// [`Slot::call`] for worker threads. Blocks the thread: never from inside an actor or an async task.
    pub fn call_blocking<M, R>(&self, message: M) -> Result<R>
    where
        A: Handler<M>,
        M: Message<Result = Result<R>> + Send + 'static,
        R: Send + 'static,
    {
        futures::executor::block_on(self.call(message))
    }
}

impl<A: Actor> Slot<A> {
    /// The name it was spawned with.
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// How the actor is now.
    pub fn health(&self) -> Health {
        self.0.health.borrow().clone()
    }

    /// News about how it is.
    pub fn watch(&self) -> watch::Receiver<Health> {
        self.0.health.subscribe()
    }
}
