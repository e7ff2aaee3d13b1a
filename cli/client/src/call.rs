//! How a call is sent and its answer awaited.

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use capnp::{
    capability::{FromTypelessPipeline, RemotePromise, Request},
    traits::{Owned, Pipelined},
};
use cofferdam_types::{Error, Result};
use cofferdam_wire::error::from_rpc;
use futures::{
    FutureExt as _,
    future::{LocalBoxFuture, Shared},
};

use crate::connect::Link;

/// The answer to a call that is already on its way. Dropping it cancels the call where it waits.
#[must_use = "dropping it cancels the call"]
pub struct Reply<T>(LocalBoxFuture<'static, Result<T>>);

impl<T: 'static> Reply<T> {
    /// A reply that something else than a single call makes.
    pub(crate) fn new(future: impl Future<Output = Result<T>> + 'static) -> Reply<T> {
        Reply(Box::pin(future))
    }

    /// The same, for so long at most: then the call is cancelled where it waits, and `deadline_exceeded`. This is the caller's own
    /// clock, for a daemon that answers nothing at all; the daemon's is that of a [`Context`](crate::Context).
    pub fn within(self, limit: Duration) -> Reply<T> {
        Reply::new(async move {
            tokio::time::timeout(limit, self).await.unwrap_or_else(|_| {
                let why = format!("was not answered within {limit:?}: what was begun may have been done");
                Err(Error::deadline_exceeded("call", "", why))
            })
        })
    }

    /// Keeps the handle that was asked until the answer is there: the call that gave it may still be under way, and is not let go of
    /// while it is needed.
    pub(crate) fn keeping(self, handle: &(impl Clone + 'static)) -> Reply<T> {
        let handle = handle.clone();
        Reply::new(async move {
            let answer = self.await;
            drop(handle);
            answer
        })
    }
}

impl<T> Future for Reply<T> {
    type Output = Result<T>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        self.0.as_mut().poll(cx)
    }
}

/// Sends a request, and reads its answer with `read`. The connection stays open until it is there, whatever becomes of
/// the handle.
pub(crate) fn reply<P, R, T>(
    link: &Rc<Link>,
    request: Request<P, R>,
    read: impl for<'a> FnOnce(R::Reader<'a>) -> Result<T> + 'static,
) -> Reply<T>
where
    R: Pipelined<Pipeline: FromTypelessPipeline> + Owned + Unpin + 'static,
    T: 'static,
{
    let (promise, link) = (request.send().promise, link.clone());
    Reply::new(async move {
        let _link = link;
        let response = promise.await.map_err(from_rpc)?;
        read(response.get().map_err(from_rpc)?)
    })
}

/// [`reply`] of a method of `client`, which is kept until the answer is there: the call that gave it may still be under way. Where that
/// fails, or one before it that nobody holds any more, this fails with the same error.
pub(crate) fn reply_by<P, R, T>(
    link: &Rc<Link>,
    client: &(impl Clone + 'static),
    request: Request<P, R>,
    read: impl for<'a> FnOnce(R::Reader<'a>) -> Result<T> + 'static,
) -> Reply<T>
where
    R: Pipelined<Pipeline: FromTypelessPipeline> + Owned + Unpin + 'static,
    T: 'static,
{
    reply(link, request, read).keeping(client)
}

/// The same for an answer that is empty.
pub(crate) fn done_by<P, R>(link: &Rc<Link>, client: &(impl Clone + 'static), request: Request<P, R>) -> Reply<()>
where
    R: Pipelined<Pipeline: FromTypelessPipeline> + Owned + Unpin + 'static,
{
    reply_by(link, client, request, |_| Ok(()))
}

/// How the call ended that gave a handle; it can be asked again and again.
#[derive(Clone)]
pub(crate) struct Made(Shared<LocalBoxFuture<'static, Result<()>>>);

impl Made {
    /// Waits for it.
    pub(crate) fn reply(&self, link: &Rc<Link>) -> Reply<()> {
        let (made, link) = (self.0.clone(), link.clone());
        Reply::new(async move {
            let _link = link;
            made.await
        })
    }
}

/// Sends a request that gives a handle, which can be used before the answer is there.
pub(crate) fn make<P, R>(request: Request<P, R>) -> (R::Pipeline, Made)
where
    R: Pipelined<Pipeline: FromTypelessPipeline> + Owned + Unpin + 'static,
{
    let RemotePromise { promise, pipeline } = request.send();
    let made = async move { promise.await.map(drop).map_err(from_rpc) };
    (pipeline, Made(made.boxed_local().shared()))
}
