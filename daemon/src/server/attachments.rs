//! `Attachment` (container.capnp).

use std::{
    cell::RefCell,
    rc::{Rc, Weak},
};

use cofferdam_tasks::Attached;
use cofferdam_types::Error;
use cofferdam_wire::container_capnp::attachment;
use tokio::sync::oneshot;

/// A client that follows a process. Its end is the detach, and so is the end of what the connection has of its grant, and that the
/// grant chooses the container no more.
pub struct Attachment {
    attached: RefCell<Option<Attached>>,
    /// Falls with it, and so ends who waits for the other end.
    _there: oneshot::Sender<()>,
}

impl Attachment {
    /// Until `over`.
    pub fn until(over: impl Future<Output = Error> + 'static, attached: Attached) -> Rc<Attachment> {
        let (there, gone) = oneshot::channel();
        let object = Rc::new(Attachment { attached: RefCell::new(Some(attached)), _there: there });
        let weak: Weak<Attachment> = Rc::downgrade(&object);
        tokio::task::spawn_local(async move {
            tokio::select! {
                _ = gone => {}
                _ = over => {
                    if let Some(object) = weak.upgrade() {
                        object.attached.take();
                    }
                }
            }
        });
        object
    }
}

impl attachment::Server for Attachment {
    async fn wait(
        self: Rc<Self>,
        _: attachment::WaitParams,
        mut results: attachment::WaitResults,
    ) -> capnp::Result<()> {
        let over = self.attached.borrow().as_ref().map(|attached| attached.over.clone());
        let reason = match over {
            Some(mut over) => over.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone()),
            None => None,
        };
        results.get().set_reason(reason.as_deref().unwrap_or("detached"));
        Ok(())
    }
}
