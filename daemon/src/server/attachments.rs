//! `Attachment` (container.capnp).

use std::{cell::RefCell, rc::Rc};

use cofferdam_tasks::Attached;
use cofferdam_wire::container_capnp::attachment;

/// A client that follows a process. Its end is the detach.
pub struct Attachment(pub RefCell<Attached>);

impl attachment::Server for Attachment {
    async fn wait(
        self: Rc<Self>,
        _: attachment::WaitParams,
        mut results: attachment::WaitResults,
    ) -> capnp::Result<()> {
        let mut over = self.0.borrow().over.clone();
        let reason = over.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        results.get().set_reason(reason.as_deref().unwrap_or("detached"));
        Ok(())
    }
}
