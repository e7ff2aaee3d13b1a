//! What a crash, a hang and an overload look like to everybody concerned.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use actix::{Actor, ActorContext, ActorFutureExt, Context, Handler, Message, ResponseActFuture, WrapFuture};
use cofferdam_types::{Code, Error, Result};
use tokio::{sync::oneshot, time::timeout};

use crate::{Health, Kernel, Placement, Slot, SlotConfig, hosted};

/// Runs a test within a system and a kernel, and stops both.
fn with_kernel<F: Future<Output = ()>>(test: impl FnOnce(Kernel) -> F) {
    actix_rt::System::new().block_on(async {
        let kernel = Kernel::new().unwrap();
        timeout(Duration::from_secs(60), test(kernel.clone())).await.expect("the test hangs");
        kernel.stop().await;
    });
}

/// Counts its messages; knows which life it is in.
struct Subject {
    life: u64,
    count: u64,
}

hosted!(Subject);

impl Actor for Subject {
    type Context = Context<Subject>;
}

macro_rules! message {
    ($name:ident $fields:tt -> $result:ty) => {
        struct $name $fields;
        impl Message for $name {
            type Result = Result<$result>;
        }
    };
}

message!(Count() -> (u64, u64));
message!(Crash() -> ());
message!(CrashLater(oneshot::Receiver<()>) -> ());
message!(CrashInside(oneshot::Receiver<()>) -> ());
message!(Refuse() -> ());
message!(StopYourself() -> ());
/// Blocks the thread: says that it does, and waits for the word.
struct Block(oneshot::Sender<()>, mpsc::Receiver<bool>);
impl Message for Block {
    type Result = Result<()>;
}

impl Handler<Count> for Subject {
    type Result = Result<(u64, u64)>;
    fn handle(&mut self, _: Count, _: &mut Context<Self>) -> Self::Result {
        self.count += 1;
        Ok((self.life, self.count))
    }
}

impl Handler<Crash> for Subject {
    type Result = Result<()>;
    fn handle(&mut self, _: Crash, _: &mut Context<Self>) -> Self::Result {
        panic!("a defect")
    }
}

impl Handler<CrashLater> for Subject {
    type Result = Pin<Box<dyn Future<Output = Result<()>>>>;
    fn handle(&mut self, m: CrashLater, _: &mut Context<Self>) -> Self::Result {
        Box::pin(async move {
            let _ = m.0.await;
            panic!("a defect in a future")
        })
    }
}

impl Handler<CrashInside> for Subject {
    type Result = ResponseActFuture<Self, Result<()>>;
    fn handle(&mut self, m: CrashInside, _: &mut Context<Self>) -> Self::Result {
        Box::pin(m.0.into_actor(self).map(|_, _, _| panic!("a defect in the actor's future")))
    }
}

impl Handler<Refuse> for Subject {
    type Result = Result<()>;
    fn handle(&mut self, _: Refuse, _: &mut Context<Self>) -> Self::Result {
        Err(Error::denied("subject", "x", "no"))
    }
}

impl Handler<StopYourself> for Subject {
    type Result = Result<()>;
    fn handle(&mut self, _: StopYourself, ctx: &mut Context<Self>) -> Self::Result {
        ctx.stop();
        Ok(())
    }
}

impl Handler<Block> for Subject {
    type Result = Result<()>;
    fn handle(&mut self, m: Block, _: &mut Context<Self>) -> Self::Result {
        let _ = m.0.send(());
        match m.1.recv() {
            Ok(true) => panic!("a defect after a while"),
            _ => Ok(()),
        }
    }
}

const SHARED: Placement = Placement::Shared("test");

fn config(name: &'static str, placement: Placement) -> SlotConfig {
    SlotConfig { bound: 8, ..SlotConfig::new(name, placement) }
}

fn subject(kernel: &Kernel, config: SlotConfig) -> Slot<Subject> {
    let lives = AtomicU64::new(0);
    kernel.spawn(config, move || Subject { life: 1 + lives.fetch_add(1, Ordering::SeqCst), count: 0 })
}

/// Waits until the slot has been down and is up again.
async fn restarted(kernel: &Kernel, slot: &Slot<Subject>, restarts: u64) {
    let mut watch = slot.watch();
    loop {
        let status = kernel.statuses().into_iter().find(|s| s.name == slot.name()).unwrap();
        if status.restarts >= restarts && *watch.borrow_and_update() == Health::Up {
            return;
        }
        watch.changed().await.unwrap();
    }
}

/// A handler that holds the actor's thread until the sender is used (`true`: it panics then) or dropped.
async fn hold(slot: &Slot<Subject>) -> (mpsc::Sender<bool>, tokio::task::JoinHandle<Result<()>>) {
    let (entered, inside) = oneshot::channel();
    let (release, word) = mpsc::channel();
    let slot = slot.clone();
    let held = actix_rt::spawn(async move { slot.call(Block(entered, word)).await });
    inside.await.unwrap();
    (release, held)
}

#[track_caller]
fn unavailable<T: std::fmt::Debug>(result: Result<T>, text: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error}");
    assert!(error.message.contains(text), "{error}");
}

#[test]
fn a_panic_is_the_callers_error_and_the_actor_starts_again() {
    with_kernel(|kernel| async move {
        for placement in [Placement::Own, SHARED] {
            let name = if placement == SHARED { "shared" } else { "own" };
            let slot = subject(&kernel, config(name, placement));
            kernel.ready().await.unwrap();
            assert_eq!(slot.call(Count()).await.unwrap(), (1, 1));
            unavailable(slot.call(Crash()).await, "crashed while it worked: a defect");
            restarted(&kernel, &slot, 1).await;
            assert_eq!(slot.call(Count()).await.unwrap(), (2, 1));
            let status = kernel.statuses().pop().unwrap();
            assert_eq!((status.restarts, status.waiting), (1, 0));
            assert_eq!(status.last_panic.as_deref(), Some("a defect"));
        }
    });
}

#[test]
fn the_handlers_own_error_passes_unchanged() {
    with_kernel(|kernel| async move {
        let slot = subject(&kernel, config("subject", SHARED));
        kernel.ready().await.unwrap();
        assert_eq!(slot.call(Refuse()).await.unwrap_err().code, Code::Denied);
    });
}

#[test]
fn a_panic_in_a_response_future_costs_that_answer_alone() {
    with_kernel(|kernel| async move {
        let slot = subject(&kernel, config("subject", SHARED));
        kernel.ready().await.unwrap();
        let (go, wait) = oneshot::channel();
        let (doomed, counted, ()) = tokio::join!(slot.call(CrashLater(wait)), slot.call(Count()), async {
            go.send(()).unwrap();
        });
        unavailable(doomed, "crashed while it worked");
        assert_eq!(counted.unwrap(), (1, 1));
        assert_eq!(slot.call(Count()).await.unwrap(), (1, 2), "the actor lives");
        assert_eq!(kernel.statuses()[0].restarts, 0);
    });
}

#[test]
fn a_panic_in_an_actor_future_crashes_the_actor() {
    with_kernel(|kernel| async move {
        let slot = subject(&kernel, config("subject", SHARED));
        kernel.ready().await.unwrap();
        // Both are in flight when one of them panics.
        let (go, wait) = oneshot::channel();
        let (_never, forever) = oneshot::channel();
        let (doomed, other, ()) =
            tokio::join!(slot.call(CrashInside(wait)), slot.call(CrashInside(forever)), async { go.send(()).unwrap() });
        unavailable(doomed, "a defect in the actor's future");
        unavailable(other, "a defect in the actor's future");
        restarted(&kernel, &slot, 1).await;
        assert_eq!(slot.call(Count()).await.unwrap(), (2, 1));
    });
}

#[test]
fn who_waits_in_the_queue_is_told_why_and_neighbours_keep_their_state() {
    with_kernel(|kernel| async move {
        let slot = subject(&kernel, config("subject", SHARED));
        let neighbour = subject(&kernel, config("neighbour", SHARED));
        kernel.ready().await.unwrap();
        assert_eq!(neighbour.call(Count()).await.unwrap(), (1, 1));
        let (release, held) = hold(&slot).await;
        let queued = [slot.call(Count()), slot.call(Count()), slot.call(Count())];
        let (answers, ()) = tokio::join!(futures::future::join_all(queued), async {
            release.send(true).unwrap();
        });
        for answer in answers {
            unavailable(answer, "is down and will be started again: a defect after a while");
        }
        unavailable(held.await.unwrap(), "crashed while it worked: a defect after a while");
        restarted(&kernel, &slot, 1).await;
        assert_eq!(neighbour.call(Count()).await.unwrap(), (1, 2));
    });
}

#[test]
fn the_bound_is_exact_and_a_caller_that_leaves_keeps_its_place_taken() {
    with_kernel(|kernel| async move {
        let slot = subject(&kernel, SlotConfig { bound: 3, ..config("subject", Placement::Own) });
        kernel.ready().await.unwrap();
        let (release, held) = hold(&slot).await;
        let mut second = Box::pin(slot.call(Count()));
        let mut third = Box::pin(slot.call(Count()));
        assert!(futures::poll!(&mut second).is_pending());
        assert!(futures::poll!(&mut third).is_pending());
        unavailable(slot.call(Count()).await, "overloaded: 3 messages wait");
        drop(third);
        unavailable(slot.call(Count()).await, "overloaded");
        assert_eq!(kernel.statuses()[0].waiting, 3);
        drop(release);
        assert_eq!(second.await.unwrap(), (1, 1));
        held.await.unwrap().unwrap();
        assert_eq!(slot.call(Count()).await.unwrap(), (1, 3), "the message whose caller left was handled");
        assert_eq!(kernel.statuses()[0].waiting, 0);
    });
}

#[test]
fn a_place_is_free_before_its_answer_is_there() {
    with_kernel(|kernel| async move {
        let slot = subject(&kernel, SlotConfig { bound: 1, ..config("subject", Placement::Own) });
        kernel.ready().await.unwrap();
        for n in 1..=2000 {
            assert_eq!(slot.call(Count()).await.unwrap(), (1, n));
        }
    });
}

#[test]
fn a_hang_on_an_own_thread_is_abandoned() {
    with_kernel(|kernel| async move {
        let heartbeat = Duration::from_millis(50);
        let slot = subject(&kernel, SlotConfig { heartbeat, bound: 2, ..config("subject", Placement::Own) });
        kernel.ready().await.unwrap();
        let (release, held) = hold(&slot).await;
        let queued = slot.call(Count()).await;
        unavailable(queued, "hung: no heartbeat");
        unavailable(held.await.unwrap(), "hung: no heartbeat");
        restarted(&kernel, &slot, 1).await;
        assert_eq!(slot.call(Count()).await.unwrap(), (2, 1));
        assert_eq!(kernel.abandoned_threads(), 1);
        // The thread comes back after all: it must end, and not disturb its successor.
        drop(release);
        while kernel.abandoned_threads() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(slot.call(Count()).await.unwrap(), (2, 2));
    });
}

#[test]
fn a_hang_on_a_shared_arbiter_restarts_all_that_live_there() {
    with_kernel(|kernel| async move {
        let heartbeat = Duration::from_millis(50);
        let slot = subject(&kernel, SlotConfig { heartbeat, ..config("subject", SHARED) });
        let neighbour = subject(&kernel, SlotConfig { heartbeat: heartbeat * 100, ..config("neighbour", SHARED) });
        let elsewhere = subject(&kernel, config("elsewhere", Placement::Shared("other")));
        kernel.ready().await.unwrap();
        let (release, held) = hold(&slot).await;
        unavailable(neighbour.call(Count()).await, "hung");
        unavailable(held.await.unwrap(), "hung");
        restarted(&kernel, &slot, 1).await;
        restarted(&kernel, &neighbour, 1).await;
        assert_eq!(slot.call(Count()).await.unwrap(), (2, 1));
        assert_eq!(neighbour.call(Count()).await.unwrap(), (2, 1));
        assert_eq!(elsewhere.call(Count()).await.unwrap(), (1, 1));
        assert_eq!(kernel.abandoned_threads(), 1);
        drop(release);
    });
}

#[test]
fn an_actor_that_stops_by_itself_starts_again() {
    with_kernel(|kernel| async move {
        let slot = subject(&kernel, config("subject", SHARED));
        kernel.ready().await.unwrap();
        slot.call(StopYourself()).await.unwrap();
        restarted(&kernel, &slot, 1).await;
        assert_eq!(slot.call(Count()).await.unwrap(), (2, 1));
    });
}

#[test]
fn poison_crashes_the_one_that_is_named() {
    with_kernel(|kernel| async move {
        let slot = subject(&kernel, config("subject", SHARED));
        let other = subject(&kernel, config("other", SHARED));
        kernel.ready().await.unwrap();
        kernel.poison("subject").unwrap();
        restarted(&kernel, &slot, 1).await;
        assert_eq!(slot.call(Count()).await.unwrap(), (2, 1));
        assert_eq!(other.call(Count()).await.unwrap(), (1, 1));
        let unknown = kernel.poison("nobody").unwrap_err();
        assert_eq!(
            (unknown.code, unknown.message.as_str()),
            (Code::NotFound, "does not exist; there are subject, other")
        );
    });
}

#[test]
fn what_was_never_begun_can_be_asked_again() {
    with_kernel(|kernel| async move {
        let slot = subject(&kernel, config("subject", SHARED));
        kernel.ready().await.unwrap();
        let (release, held) = hold(&slot).await;
        kernel.poison("subject").unwrap();
        // It lies in the mailbox behind what ends the actor.
        let (behind, ()) = tokio::join!(slot.call(Count()), async { release.send(false).unwrap() });
        let error = behind.unwrap_err();
        assert!(error.comes_back(), "{error}");
        held.await.unwrap().unwrap();
        restarted(&kernel, &slot, 1).await;
        assert_eq!(slot.call(Count()).await.unwrap(), (2, 1));
        let error = slot.call(Crash()).await.unwrap_err();
        assert!(!error.comes_back(), "it was begun: {error}");
    });
}

#[test]
fn one_that_cannot_start_fails_and_the_others_serve() {
    with_kernel(|kernel| async move {
        let broken: Slot<Subject> = kernel.spawn(config("broken", SHARED), || panic!("cannot open"));
        let other = subject(&kernel, config("other", SHARED));
        unavailable(kernel.ready().await, "cannot open");
        assert_eq!(broken.health(), Health::Failed { why: "cannot open".into() });
        unavailable(broken.call(Count()).await, "has failed; restart the daemon: cannot open");
        let mut watch = other.watch();
        watch.wait_for(|h| *h == Health::Up).await.unwrap();
        assert_eq!(other.call(Count()).await.unwrap(), (1, 1));
        assert_eq!(kernel.statuses()[0].restarts, 8);
    });
}

/// Notes when it starts and stops.
struct Noting(&'static str, Arc<Mutex<Vec<String>>>);

hosted!(Noting);

impl Actor for Noting {
    type Context = Context<Noting>;
    fn started(&mut self, _: &mut Self::Context) {
        self.1.lock().unwrap().push(format!("{} starts", self.0));
    }
    fn stopped(&mut self, _: &mut Self::Context) {
        self.1.lock().unwrap().push(format!("{} stops", self.0));
    }
}

#[test]
fn start_and_stop_are_in_order() {
    let notes = Arc::new(Mutex::new(Vec::new()));
    let noted = notes.clone();
    with_kernel(|kernel| async move {
        let mut slots = Vec::new();
        for (name, placement) in [("a", Placement::Own), ("b", SHARED), ("c", Placement::Own)] {
            let notes = noted.clone();
            slots.push(kernel.spawn(config(name, placement), move || Noting(name, notes.clone())));
        }
        kernel.ready().await.unwrap();
        kernel.stop().await;
        assert!(slots.iter().all(|slot| slot.health() == Health::Stopped));
    });
    assert_eq!(*notes.lock().unwrap(), ["a starts", "b starts", "c starts", "c stops", "b stops", "a stops"]);
}

#[test]
fn a_hang_does_not_stop_the_stop() {
    with_kernel(|kernel| async move {
        let heartbeat = Duration::from_millis(20);
        let slot = subject(&kernel, SlotConfig { heartbeat, ..config("subject", Placement::Own) });
        kernel.ready().await.unwrap();
        let (release, held) = hold(&slot).await;
        kernel.stop().await;
        unavailable(held.await.unwrap(), "");
        assert_eq!(slot.health(), Health::Stopped);
        unavailable(slot.call(Count()).await, "is stopped");
        drop(release);
    });
}

#[test]
fn a_thread_without_a_runtime_can_call() {
    with_kernel(|kernel| async move {
        let slot = subject(&kernel, config("subject", SHARED));
        kernel.ready().await.unwrap();
        let (answer, answered) = oneshot::channel();
        std::thread::spawn(move || {
            let _ = answer.send((slot.call_blocking(Count()), slot.call_blocking(Crash())));
        });
        let (counted, crashed) = answered.await.unwrap();
        assert_eq!(counted.unwrap(), (1, 1));
        unavailable(crashed, "a defect");
    });
}

#[test]
fn calls_can_move_between_threads() {
    fn send<T: Send>(_: &T) {}
    with_kernel(|kernel| async move {
        let slot = subject(&kernel, config("subject", SHARED));
        kernel.ready().await.unwrap();
        let call = slot.call(Count());
        send(&call);
        call.await.unwrap();
    });
}

#[test]
fn under_load_every_call_is_answered_across_restarts() {
    with_kernel(|kernel| async move {
        let slot = subject(&kernel, SlotConfig { bound: 64, ..config("subject", Placement::Own) });
        kernel.ready().await.unwrap();
        let (answered, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let caller = || {
            let (slot, kernel, answered, refused) = (slot.clone(), kernel.clone(), answered.clone(), refused.clone());
            std::thread::spawn(move || {
                while kernel.statuses()[0].restarts < 5 {
                    match slot.call_blocking(Count()) {
                        Ok(_) => answered.fetch_add(1, Ordering::SeqCst),
                        Err(e) if e.code == Code::Unavailable => refused.fetch_add(1, Ordering::SeqCst),
                        Err(e) => panic!("{e}"),
                    };
                }
            })
        };
        let callers = [caller(), caller(), caller(), caller()];
        for restarts in 1..=5 {
            let before = answered.load(Ordering::SeqCst);
            while answered.load(Ordering::SeqCst) < before + 10 {
                tokio::task::yield_now().await;
            }
            kernel.poison("subject").unwrap();
            restarted(&kernel, &slot, restarts).await;
        }
        for caller in callers {
            caller.join().unwrap();
        }
        assert!(refused.load(Ordering::SeqCst) > 0);
        assert_eq!(kernel.statuses()[0].waiting, 0, "no permit is lost to a crash");
    });
}
