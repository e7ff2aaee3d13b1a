//! What a call gives that failed: objects that say why.
//!
//! Calls that were made on its answer are to fail as it did. The RPC library sees to that for as long as the client holds the answer;
//! but who chains calls lets go of those in the middle at once, and what was made on them would be told that there is no object.

use std::{cell::RefCell, ops::Deref, rc::Rc};

use capnp::{
    any_pointer,
    capability::{DispatchCallResult, FromClientHook, FromServer, Params, Promise, Results, Server},
    private::{
        capability::{ClientHook, PipelineHook, PipelineOp, RequestHook, ResultsHook},
        layout::{PointerBuilder, StructBuilder, StructSize},
    },
    traits::FromPointerBuilder,
};
use cofferdam_wire::needs::gives;

use super::guard::Guarded;

/// Where the results of a call are when who served it is done with them.
type Back = Rc<RefCell<Option<Box<dyn ResultsHook>>>>;

/// The answer to a call that gives objects.
pub struct Answer {
    back: Back,
    /// Where these stand in it.
    gives: &'static [(u32, u64)],
}

/// The results of a call for who serves it, and what is to be told if it fails; nothing where it gives no objects.
pub fn lend(
    results: Results<any_pointer::Owned>,
    interface_id: u64,
    method_id: u16,
) -> (Results<any_pointer::Owned>, Option<Answer>) {
    let gives = gives(interface_id, method_id);
    if gives.is_empty() {
        return (results, None);
    }
    let back = Back::default();
    let lent = Lent { hook: Some(results.hook), back: back.clone() };
    (Results::new(Box::new(lent)), Some(Answer { back, gives }))
}

impl Answer {
    /// It failed, and who served it has let go of it. Objects that were given before stay: they say themselves what is wrong.
    pub fn fails(&self, error: &capnp::Error) {
        let mut back = self.back.borrow_mut();
        let Some(Ok(results)) = back.as_mut().map(|hook| hook.get()) else { return };
        let pointers = self.gives.iter().map(|(at, _)| at + 1).max().unwrap_or_default();
        // What was begun is gone on with: the library can't clear a place in which an object is.
        let slots = if results.is_null() { Ok(results.initn_as(pointers)) } else { results.get_as() };
        let Ok(Slots(mut slots)) = slots else { return };
        for (at, _) in self.gives {
            let mut slot = slots.reborrow().get_pointer_field(*at as usize);
            if slot.is_null() {
                let failing: Guarded = capnp_rpc::new_client(Failing(error.clone()));
                slot.set_capability(failing.into_client_hook());
            }
        }
    }
}

/// An object that was not given: whatever it is asked fails as the call did that was to give it, and so does what is asked of what
/// that was to give. The library's own kind of it lets go of the results first, and what was called on those finds nothing.
pub struct Failing(capnp::Error);

/// See [`Failing`].
#[derive(Clone)]
pub struct Fails(Rc<Failing>);

impl Deref for Fails {
    type Target = Failing;
    fn deref(&self) -> &Failing {
        &self.0
    }
}

impl FromServer<Failing> for Guarded {
    type Dispatch = Fails;
    fn from_server(failing: Rc<Failing>) -> Fails {
        Fails(failing)
    }
}

impl Server for Fails {
    fn dispatch_call(
        self,
        interface_id: u64,
        method_id: u16,
        _: Params<any_pointer::Owned>,
        results: Results<any_pointer::Owned>,
    ) -> DispatchCallResult {
        let error = self.0.0.clone();
        let (results, answer) = lend(results, interface_id, method_id);
        drop(results);
        answer.iter().for_each(|answer| answer.fails(&error));
        DispatchCallResult::new(Promise::err(error), false)
    }

    fn as_ptr(&self) -> usize {
        Rc::as_ptr(&self.0).addr()
    }
}

/// Results as nothing but pointers: so many.
struct Slots<'a>(StructBuilder<'a>);

impl<'a> FromPointerBuilder<'a> for Slots<'a> {
    fn init_pointer(builder: PointerBuilder<'a>, pointers: u32) -> Slots<'a> {
        Slots(builder.init_struct(StructSize { data: 0, pointers: pointers as u16 }))
    }

    /// What a method has begun is as large as the schema says, with all its pointers.
    fn get_from_pointer(builder: PointerBuilder<'a>, _: Option<&'a [capnp::Word]>) -> capnp::Result<Slots<'a>> {
        builder.get_struct(StructSize { data: 0, pointers: 0 }, None).map(Slots)
    }
}

/// Results that go back when who has them lets go.
struct Lent {
    hook: Option<Box<dyn ResultsHook>>,
    back: Back,
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.back.borrow_mut() = self.hook.take();
    }
}

impl Lent {
    fn hook(&mut self) -> capnp::Result<&mut (dyn ResultsHook + 'static)> {
        self.hook.as_deref_mut().ok_or_else(|| capnp::Error::failed("the results of a call have gone back".into()))
    }
}

impl ResultsHook for Lent {
    fn get(&mut self) -> capnp::Result<any_pointer::Builder<'_>> {
        self.hook()?.get()
    }

    fn set_pipeline(&mut self) -> capnp::Result<()> {
        self.hook()?.set_pipeline()
    }

    fn allow_cancellation(&self) {
        if let Some(hook) = &self.hook {
            hook.allow_cancellation();
        }
    }

    fn tail_call(self: Box<Self>, _: Box<dyn RequestHook>) -> Promise<(), capnp::Error> {
        Promise::err(tail())
    }

    fn direct_tail_call(
        self: Box<Self>,
        _: Box<dyn RequestHook>,
    ) -> (Promise<(), capnp::Error>, Box<dyn PipelineHook>) {
        (Promise::err(tail()), Box::new(Nothing))
    }
}

/// What is on no answer.
struct Nothing;

impl PipelineHook for Nothing {
    fn add_ref(&self) -> Box<dyn PipelineHook> {
        Box::new(Nothing)
    }

    fn get_pipelined_cap(&self, _: &[PipelineOp]) -> Box<dyn ClientHook> {
        capnp_rpc::new_broken_cap(tail()).hook
    }
}

/// No object of ours answers by another's answer, and the RPC library knows only one way of doing that.
fn tail() -> capnp::Error {
    capnp::Error::unimplemented("an answer is not that of another call".into())
}
