//! The guard around every object that a client can reach.
//!
//! It is a Cap'n Proto server around the generated dispatcher: it checks the grant (one atomic load) and what that lets
//! through (`reach.rs`), counts and bounds what the connection has under way, catches panics (an unguarded one ends the connection and leaks its objects),
//! ends calls when the grant is revoked or the deadline passes, and otherwise delegates with the same parameters and
//! results, without a copy. `as_ptr` is the inner one, so that our objects are recognised when they are passed back.

use std::{
    future::{Future, poll_fn},
    ops::Deref,
    panic::AssertUnwindSafe,
    rc::Rc,
    sync::{Arc, LazyLock},
    task::Poll,
    time::Duration,
};

use capnp::{
    any_pointer,
    capability::{DispatchCallResult, FromClientHook, FromServer, Params, Promise, Results, Server},
    private::capability::ClientHook,
    traits::HasTypeId,
};
use cofferdam_audit::Audit;
use cofferdam_grants::End;
use cofferdam_types::{Authority, Code, Error, Right};
use cofferdam_wire::{
    audit_capnp, container_capnp,
    error::to_rpc,
    event_capnp, image_capnp, job_capnp,
    needs::{METHODS, Method, needs},
    system_capnp,
};
use futures::FutureExt as _;
use tracing::{Instrument as _, Span};

use super::{
    chained,
    meter::{Counted, Meter},
    session::Held,
    trail::{self, Trail},
};
use crate::full::Full;

/// Methods that wait for something to happen: no deadline is laid on them.
const PATIENT: [(u64, u16); 10] = [
    (<audit_capnp::audit_cursor::Client as HasTypeId>::TYPE_ID, 0),
    (<system_capnp::finding_cursor::Client as HasTypeId>::TYPE_ID, 0),
    (<container_capnp::process::Client as HasTypeId>::TYPE_ID, 1),
    (<container_capnp::attachment::Client as HasTypeId>::TYPE_ID, 0),
    (<container_capnp::container::Client as HasTypeId>::TYPE_ID, 4),
    (<container_capnp::container::Client as HasTypeId>::TYPE_ID, 5),
    (<event_capnp::event_cursor::Client as HasTypeId>::TYPE_ID, 0),
    (<job_capnp::job::Client as HasTypeId>::TYPE_ID, 1),
    (<job_capnp::job::Client as HasTypeId>::TYPE_ID, 2),
    (<image_capnp::images::Client as HasTypeId>::TYPE_ID, 1),
];

/// What answers have room for while they are made. Few are so large, and one that is larger counts as what it is when it is made.
const RECORDS: usize = 256 << 10;
const DOCUMENTS: usize = 1 << 20;

/// What the guard of one object knows.
pub struct State<D> {
    dispatch: D,
    /// The object's interface.
    own: u64,
    meter: Rc<Meter>,
    held: Rc<Held>,
    full: Option<Arc<Full>>,
    audit: Option<Audit>,
    _counted: (Counted, Option<Counted>),
}

/// The generated dispatchers are cheap to clone, and so is this.
pub struct Dispatch<D>(Rc<State<D>>);

impl<D> Clone for Dispatch<D> {
    fn clone(&self) -> Dispatch<D> {
        Dispatch(self.0.clone())
    }
}

impl<D> Deref for Dispatch<D> {
    type Target = State<D>;
    fn deref(&self) -> &State<D> {
        &self.0
    }
}

/// Any capability: capnp-rpc makes clients of servers only by way of such a type.
pub struct Guarded(Box<dyn ClientHook>);

impl FromClientHook for Guarded {
    fn new(hook: Box<dyn ClientHook>) -> Guarded {
        Guarded(hook)
    }
    fn into_client_hook(self) -> Box<dyn ClientHook> {
        self.0
    }
    fn as_client_hook(&self) -> &dyn ClientHook {
        &*self.0
    }
}

// What is made of a `State` is made by the guard alone, and what of a `Coming` is a container.
impl HasTypeId for Guarded {
    const TYPE_ID: u64 = <container_capnp::container::Client as HasTypeId>::TYPE_ID;
}

impl<D: Server + Clone + 'static> FromServer<State<D>> for Guarded {
    type Dispatch = Dispatch<D>;
    fn from_server(state: Rc<State<D>>) -> Dispatch<D> {
        Dispatch(state)
    }
}

/// Puts the guard around an object's dispatcher. Only `Session::hand_out` calls it.
pub(super) fn guard<D: Server + Clone + 'static>(
    dispatch: D,
    own: u64,
    meter: Rc<Meter>,
    counted: (Counted, Option<Counted>),
    held: Rc<Held>,
    full: Option<Arc<Full>>,
    audit: Option<Audit>,
) -> Guarded {
    capnp_rpc::new_client(State { dispatch, own, meter, held, full, audit, _counted: counted })
}

impl<D: Server + Clone + 'static> Server for Dispatch<D> {
    fn dispatch_call(
        self,
        interface_id: u64,
        method_id: u16,
        params: Params<any_pointer::Owned>,
        results: Results<any_pointer::Owned>,
    ) -> DispatchCallResult {
        let state = self.0.clone();
        let call = (state.own, interface_id, method_id);
        let (results, answer) = chained::lend(results, interface_id, method_id);
        let refuse = |results: Option<Results<any_pointer::Owned>>, error: Error| {
            let error = to_rpc(error);
            drop(results);
            answer.iter().for_each(|answer| answer.fails(&error));
            DispatchCallResult::new(Promise::err(error), false)
        };
        if let Some(end) = state.held.grant.end() {
            if end != End::Closed {
                state.refused(call, &end.error());
            }
            return refuse(Some(results), end.error());
        }
        let may = state.held.reach.check(state.own, interface_id, method_id);
        if let Err(why) = may.and_then(|()| state.held.check.as_ref().map_or(Ok(()), |check| check())) {
            if trail::is_refusal(why.code) {
                state.refused(call, &why);
            }
            return refuse(Some(results), why);
        }
        // What has begun is fed, and led on, whatever else is under way.
        let is_bounded = !state.held.calls.is_free() && needs(interface_id, method_id) != Some(Right::None);
        let bounded = match is_bounded.then(|| state.held.calls.begin()).transpose() {
            Ok(bounded) => bounded,
            Err(why) => return refuse(Some(results), why),
        };
        let Some(counted) = state.meter.begin_call() else {
            let why = Error::resource_exhausted("connection", "", "has too many calls under way and is cut");
            return refuse(Some(results), why);
        };
        let inner = state.dispatch.clone();
        let span = span(&state.held.authority, interface_id, method_id);
        let trail = state.audit.as_ref().and_then(|audit| Trail::begin(audit, &state.held, call)).map(Box::new);
        let large = large(interface_id, method_id).map(|room| (state.meter.clone(), room));
        // The synchronous part runs here and now: that keeps the order of calls.
        let started = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let serve = move || inner.dispatch_call(interface_id, method_id, params, results);
            let serve = move || match large {
                None => serve(),
                Some((meter, room)) => in_turn(meter, room, serve),
            };
            span.in_scope(|| match &trail {
                None => serve(),
                Some(trail) => recorded(trail, serve),
            })
        }));
        let DispatchCallResult { promise, is_streaming } = match started {
            Ok(started) => started,
            Err(_) => return refuse(None, panicked()),
        };
        let waits = PATIENT.contains(&(interface_id, method_id));
        let deadline = state.held.deadline.filter(|_| !waits);
        let under_way = UnderWay { state, call, answer, trail, waits, is_streaming, deadline };
        let work = async move {
            let (_counted, _room, mut promise) = (counted, bounded, promise);
            // Most are done at once: what the others need is made for these alone.
            match under_way.at_once(&mut promise).await {
                Some(Ok(())) => Ok(()),
                done => Box::pin(under_way.done(done, promise)).await,
            }
        };
        let work = if span.is_none() { boxed(work) } else { boxed(work.instrument(span)) };
        DispatchCallResult::new(work, is_streaming)
    }

    fn as_ptr(&self) -> usize {
        self.0.dispatch.as_ptr()
    }
}

/// A call that is being served.
struct UnderWay<D> {
    state: Rc<State<D>>,
    call: (u64, u64, u16),
    answer: Option<chained::Answer>,
    trail: Option<Box<Trail>>,
    /// It waits for something to happen.
    waits: bool,
    is_streaming: bool,
    deadline: Option<Duration>,
}

impl<D> UnderWay<D> {
    /// Serves it as far as it goes without waiting: how it ended, if that was so far.
    async fn at_once(&self, promise: &mut Promise<(), capnp::Error>) -> Option<capnp::Result<()>> {
        // Of what waits its end comes first, and of what leaves a record that.
        if self.waits || self.trail.is_some() {
            return None;
        }
        let polled = poll_fn(|cx| Poll::Ready(std::panic::catch_unwind(AssertUnwindSafe(|| promise.poll_unpin(cx)))));
        match polled.await {
            Ok(Poll::Ready(done)) => Some(done),
            Ok(Poll::Pending) => None,
            Err(_) => Some(Err(to_rpc(panicked()))),
        }
    }

    /// Serves what is left of it, and ends it.
    async fn done(self, done: Option<capnp::Result<()>>, promise: Promise<(), capnp::Error>) -> capnp::Result<()> {
        let UnderWay { state, call, answer, trail, waits, is_streaming, deadline } = self;
        let guarded = AssertUnwindSafe(promise).catch_unwind();
        let limited = async {
            match (done, deadline) {
                (Some(done), _) => Ok(done),
                (None, None) => guarded.await,
                (None, Some(limit)) => tokio::time::timeout(limit, guarded).await.unwrap_or_else(|_| {
                    let why = "the deadline of the call's context passed";
                    Ok(Err(to_rpc(Error::deadline_exceeded("call", "", why))))
                }),
            }
        };
        let over = || async { to_rpc(state.held.until_over().await) };
        let (done, answered) = tokio::select! {
            biased;
            // What is waited for may come of the grant's end: that is the answer then.
            why = over(), if waits => (Err(why), false),
            done = limited => (done.unwrap_or_else(|_| Err(to_rpc(panicked()))), true),
            // A piece of a stream may wait too, for who takes it. What else is under way was let through, and is done soon.
            why = over(), if is_streaming => (Err(why), false),
            end = state.held.grant.until_ended() => (Err(to_rpc(end.error())), false),
        };
        // Others may have heard first that the object is out of reach, and have ended what is waited for: that is the answer, too.
        let done = match &state.held.check {
            Some(check) if waits && done.is_ok() => check().map_err(to_rpc),
            _ => done,
        };
        let done = match trail {
            Some(trail) => trail.end(done).await,
            None => {
                // What was under way when its grant ended was let through.
                if let (Err(error), true) = (&done, answered) {
                    let error = Error::from_reason(&error.extra);
                    if error.code == Code::Denied {
                        state.refused(call, &error);
                    }
                }
                done
            }
        };
        let done = match (done, &state.full) {
            (Err(error), Some(full)) => Err(explained(error, full).await),
            (done, _) => done,
        };
        if let (Err(error), Some(answer)) = (&done, &answer) {
            answer.fails(error);
        }
        done
    }
}

impl<D> State<D> {
    fn refused(&self, call: (u64, u64, u16), error: &Error) {
        if let Some(audit) = &self.audit {
            trail::refused(audit, &self.held, call, error);
        }
    }
}

/// Serves a call that leaves a record. What may not be done unrecorded waits until it is known that there is room.
fn recorded(trail: &Trail, serve: impl FnOnce() -> DispatchCallResult + 'static) -> DispatchCallResult {
    let Some(audit) = trail.must_wait() else {
        let DispatchCallResult { promise, is_streaming } = trail.serve(serve);
        return DispatchCallResult::new(boxed(trail.within(promise)), is_streaming);
    };
    let later = async move {
        audit.room().await.map_err(to_rpc)?;
        serve().promise.await
    };
    DispatchCallResult::new(boxed(trail.within(later)), false)
}

/// What the answer to a call has room for while it is made, where that may be large: a record as others have filled it, a block of
/// these, an image's documents. Others are small, or wait for something.
fn large(interface_id: u64, method_id: u16) -> Option<usize> {
    static LARGE: LazyLock<Vec<(u64, u16, usize)>> = LazyLock::new(|| {
        let room = |method: &Method| match method.name {
            "Image.detail" | "Image.report" => Some(DOCUMENTS),
            name if name.ends_with("Cursor.next") || name.ends_with(".info") => Some(RECORDS),
            _ => None,
        };
        let waits = |method: &&Method| PATIENT.contains(&(method.interface, method.method));
        let all = METHODS.iter().filter(|method| !waits(method));
        let mut large: Vec<_> = all.filter_map(|m| Some((m.interface, m.method, room(m)?))).collect();
        large.sort_unstable();
        large.dedup();
        large
    });
    let found = LARGE.binary_search_by_key(&(interface_id, method_id), |(interface, method, _)| (*interface, *method));
    found.ok().map(|at| LARGE[at].2)
}

/// Serves a call when there is room for its answer: who asks for hundreds and reads none has few made. They take turns, which keeps
/// their order.
fn in_turn(meter: Rc<Meter>, room: usize, serve: impl FnOnce() -> DispatchCallResult + 'static) -> DispatchCallResult {
    if let Some(room) = meter.try_room(room) {
        let DispatchCallResult { promise, is_streaming } = serve();
        let held = async move {
            let _room = room;
            promise.await
        };
        return DispatchCallResult::new(boxed(held), is_streaming);
    }
    let queued = meter.queue();
    let later = async move {
        let _room = meter.room(room).await;
        drop(queued);
        serve().promise.await
    };
    DispatchCallResult::new(boxed(later), false)
}

/// What the logs say about a call that came with a context: the caller's own names for it. Others have none.
fn span(authority: &Authority, interface_id: u64, method_id: u16) -> Span {
    let (correlation, trace) = (authority.correlation.as_deref(), authority.trace.as_deref());
    if correlation.is_none() && trace.is_none() {
        return Span::none();
    }
    let span =
        tracing::info_span!("call", interface = format_args!("{interface_id:016x}"), method_id, correlation, trace);
    span.in_scope(|| tracing::debug!("begins"));
    span
}

fn boxed(work: impl Future<Output = capnp::Result<()>> + 'static) -> Promise<(), capnp::Error> {
    Promise::from_future(work)
}

/// An error as the client gets it.
async fn explained(error: capnp::Error, full: &Arc<Full>) -> capnp::Error {
    let domain = Error::from_reason(&error.extra);
    if domain.is_full_disk() { to_rpc(full.explain(domain).await) } else { error }
}

fn panicked() -> Error {
    Error::internal("method", "", "panicked; the daemon's log says where")
}

#[cfg(test)]
mod tests;
