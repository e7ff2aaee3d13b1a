//! Tasks that were lost before their start and went with their container. Who asked for the start in one burst with the
//! rest may come a moment later, and is to hear what became of it.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use cofferdam_metadata::records::tasks::Exit;
use cofferdam_types::{Error, Id, Namespace, Timestamp};

use crate::entry::Entry;

/// A burst is over in milliseconds.
const KEPT: usize = 64;

#[derive(Clone, Default)]
pub(crate) struct Departed(Rc<RefCell<VecDeque<Gone>>>);

struct Gone {
    namespace: Namespace,
    id: Id,
    shim: String,
    exit: Exit,
}

impl Departed {
    /// One is gone; what was started is not of interest here.
    pub fn note(&self, entry: &Entry) {
        let Some(exit) = entry.init.ended().filter(|_| entry.init.life.borrow().started == Timestamp(0)) else {
            return;
        };
        let (namespace, id, shim) = (entry.namespace.clone(), entry.id.clone(), entry.shim.clone());
        let mut all = self.0.borrow_mut();
        all.truncate(KEPT - 1);
        all.push_front(Gone { namespace, id, shim, exit });
    }

    /// Another container has that name now.
    pub fn forget(&self, namespace: &Namespace, id: &Id) {
        self.0.borrow_mut().retain(|gone| (&gone.namespace, &gone.id) != (namespace, id));
    }

    /// How it ended.
    pub fn exit(&self, namespace: &Namespace, id: &Id) -> Option<Exit> {
        self.look(namespace, id, |gone| gone.exit.clone())
    }

    /// Why it can't be started.
    pub fn refusal(&self, namespace: &Namespace, id: &Id) -> Option<Error> {
        self.look(namespace, id, |gone| {
            Error::unavailable("shim", &gone.shim, "ended before the start of its container")
        })
    }

    fn look<T>(&self, namespace: &Namespace, id: &Id, what: impl Fn(&Gone) -> T) -> Option<T> {
        let all = self.0.borrow();
        all.iter().find(|gone| (&gone.namespace, &gone.id) == (namespace, id)).map(what)
    }
}
