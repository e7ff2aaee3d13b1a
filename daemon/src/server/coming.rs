//! A container whose record is being committed, as the calls see it that were sent behind its making: its task is made
//! meanwhile, and all else waits for the commit.

use std::{ops::Deref, rc::Rc};

use capnp::{
    any_pointer,
    capability::{DispatchCallResult, FromServer, Params, Promise, Results, Server},
    traits::HasTypeId,
};
use cofferdam_types::{Error, Result};
use cofferdam_wire::{container_capnp::container, error::to_rpc};
use tokio::sync::watch;

use super::guard::Guarded;

/// `Container.createTask`.
const AT_ONCE: (u64, u16) = (<container::Client as HasTypeId>::TYPE_ID, 1);

/// What became of the commit, once it is known.
pub type Made = watch::Receiver<Option<Result<()>>>;

/// The generated dispatcher, and what it waits for.
pub struct Coming<D> {
    pub dispatch: D,
    pub made: Made,
}

/// Cheap to clone.
pub struct Dispatch<D>(Rc<Coming<D>>);

impl<D> Clone for Dispatch<D> {
    fn clone(&self) -> Dispatch<D> {
        Dispatch(self.0.clone())
    }
}

impl<D> Deref for Dispatch<D> {
    type Target = Coming<D>;
    fn deref(&self) -> &Coming<D> {
        &self.0
    }
}

impl<D: Server + Clone + 'static> FromServer<Coming<D>> for Guarded {
    type Dispatch = Dispatch<D>;
    fn from_server(coming: Rc<Coming<D>>) -> Dispatch<D> {
        Dispatch(coming)
    }
}

impl<D: Server + Clone + 'static> Server for Dispatch<D> {
    fn dispatch_call(
        self,
        interface_id: u64,
        method_id: u16,
        params: Params<any_pointer::Owned>,
        results: Results<any_pointer::Owned>,
    ) -> DispatchCallResult {
        let (inner, mut made) = (self.0.dispatch.clone(), self.0.made.clone());
        let outcome = async move {
            let given_up = |_| to_rpc(Error::unavailable("container", "", "was given up while it was made"));
            let outcome = made.wait_for(Option::is_some).await.map_err(given_up)?.clone();
            outcome.unwrap_or(Ok(())).map_err(to_rpc)
        };
        if (interface_id, method_id) == AT_ONCE {
            let DispatchCallResult { promise, is_streaming } =
                inner.dispatch_call(interface_id, method_id, params, results);
            let told = async move {
                match promise.await {
                    Ok(()) => Ok(()),
                    // Why there is no container is what became of its task too.
                    Err(error) => Err(outcome.await.err().unwrap_or(error)),
                }
            };
            return DispatchCallResult::new(Promise::from_future(told), is_streaming);
        }
        let later = async move {
            outcome.await?;
            inner.dispatch_call(interface_id, method_id, params, results).promise.await
        };
        DispatchCallResult::new(Promise::from_future(later), false)
    }

    fn as_ptr(&self) -> usize {
        self.0.dispatch.as_ptr()
    }
}
