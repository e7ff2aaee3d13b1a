//! What a call leaves in the audit log: begun by the guard, told more by who serves the call, ended with its answer.

use std::{cell::RefCell, fmt, future::Future, rc::Rc, sync::Arc};

use cofferdam_audit::{Audit, Record, Verdict};
use cofferdam_types::{Code, Error, GrantId, Namespace};
use cofferdam_wire::{
    error::to_rpc,
    needs::{METHODS, Trail as Leaves, leaves},
};

use super::session::Held;

/// What an object is, for the log.
#[derive(Clone, Default)]
pub struct About {
    /// Where it lies.
    pub namespace: Option<Namespace>,
    /// Kind and name.
    pub object: Option<Rc<str>>,
}

/// What who serves a call has to say of it.
#[derive(Default)]
struct Notes {
    object: RefCell<Option<String>>,
    detail: RefCell<String>,
    grants: RefCell<Option<Arc<[GrantId]>>>,
}

tokio::task_local! {
    /// Of the call that is being served, where it leaves a record.
    static NOTES: Rc<Notes>;
}

/// Says what a call is about. Costs nothing where it leaves no record.
pub fn note<T: fmt::Display>(what: impl FnOnce() -> T) {
    let add = |notes: &Rc<Notes>| {
        let (what, mut detail) = (what().to_string(), notes.detail.borrow_mut());
        if !detail.is_empty() && !what.is_empty() {
            detail.push_str(", ");
        }
        detail.push_str(&what);
    };
    let _ = NOTES.try_with(add);
}

/// Says which thing it is that a call makes, or names.
pub fn object(kind: &str, id: impl fmt::Display) {
    let _ = NOTES.try_with(|notes| *notes.object.borrow_mut() = Some(format!("{kind}/{id}")));
}

/// Says of which grant a call is that comes through none yet.
pub fn through(grants: &Arc<[GrantId]>) {
    let _ = NOTES.try_with(|notes| *notes.grants.borrow_mut() = Some(grants.clone()));
}

/// The record of a call under way. One that is dropped is that of a call whose caller went away.
pub struct Trail {
    audit: Audit,
    kind: Leaves,
    notes: Rc<Notes>,
    record: Option<Record>,
}

/// A call of which nothing more is known than what it was made on.
fn begun(held: &Held, own: u64, interface: u64, method: u16) -> Record {
    let same = |m: &&cofferdam_wire::needs::Method| (m.own, m.interface, m.method) == (own, interface, method);
    let authority = &held.authority;
    Record {
        grants: authority.grants.to_vec(),
        peer: authority.peer,
        namespace: held.about.namespace.as_ref().map(|name| name.to_string()).unwrap_or_default(),
        object: held.about.object.as_deref().unwrap_or_default().to_owned(),
        correlation: authority.correlation.as_deref().unwrap_or_default().to_owned(),
        ..Record::new(METHODS.iter().find(same).map_or("", |m| m.name), Verdict::Cut)
    }
}

fn said(error: &Error) -> String {
    format!("{}: {}", error.code.as_str(), error.message)
}

/// That a call was refused for want of authority, whatever it leaves otherwise.
pub fn refused(audit: &Audit, held: &Held, call: (u64, u64, u16), error: &Error) {
    let record = begun(held, call.0, call.1, call.2);
    audit.refused(Record { verdict: Verdict::Denied, error: said(error), ..record });
}

/// Whether an answer is such a refusal.
pub fn is_refusal(code: Code) -> bool {
    matches!(code, Code::Denied | Code::Revoked)
}

impl Trail {
    /// Of a call that leaves a record.
    pub fn begin(audit: &Audit, held: &Held, (own, interface, method): (u64, u64, u16)) -> Option<Trail> {
        let kind = leaves(interface, method);
        (kind != Leaves::None).then(|| Trail {
            audit: audit.clone(),
            kind,
            notes: Rc::default(),
            record: Some(begun(held, own, interface, method)),
        })
    }

    /// Whether it must not be served as it is: it gives authority, and there may be no room to record it.
    pub fn must_wait(&self) -> Option<Audit> {
        (self.kind == Leaves::Give && self.audit.is_full()).then(|| self.audit.clone())
    }

    /// Begins to serve it.
    pub fn serve<T>(&self, serve: impl FnOnce() -> T) -> T {
        NOTES.sync_scope(self.notes.clone(), serve)
    }

    /// Goes on serving it.
    pub fn within<F: Future>(&self, serving: F) -> impl Future<Output = F::Output> + use<F> {
        NOTES.scope(self.notes.clone(), serving)
    }

    /// Its answer. Of what changed authority it is given when that is on record.
    pub async fn end(mut self, done: capnp::Result<()>) -> capnp::Result<()> {
        let Some(mut record) = self.told() else { return done };
        let error = done.as_ref().err().map(|error| Error::from_reason(&error.extra));
        record.error = error.as_ref().map(said).unwrap_or_default();
        record.verdict = match &error {
            None => Verdict::Allowed,
            Some(error) if is_refusal(error.code) => Verdict::Denied,
            Some(_) => Verdict::Failed,
        };
        let (done_so, why) = match (self.kind, record.verdict) {
            (_, Verdict::Denied) => {
                self.audit.refused(record);
                return done;
            }
            (Leaves::Give, Verdict::Allowed) => (true, "was done, and can't be put on record: take it back"),
            (Leaves::Take, verdict) => (verdict == Verdict::Allowed, "is done, but can't be put on record"),
            _ => {
                self.audit.add(record);
                return done;
            }
        };
        match self.audit.record(record).await {
            Err(error) if done_so => Err(to_rpc(error.context(why))),
            _ => done,
        }
    }

    /// With what was noted meanwhile.
    fn told(&mut self) -> Option<Record> {
        let mut record = self.record.take()?;
        if let Some(object) = self.notes.object.take() {
            record.object = object;
        }
        if let Some(grants) = self.notes.grants.take() {
            record.grants = grants.to_vec();
        }
        record.detail = self.notes.detail.take();
        Some(record)
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        if let Some(record) = self.told() {
            self.audit.add(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use capnp::traits::HasTypeId as _;
    use cofferdam_grants::Live;
    use cofferdam_kernel::{Kernel, Placement};
    use cofferdam_metadata::Metadata;
    use cofferdam_types::{Authority, Peer};
    use cofferdam_wire::container_capnp::{container, task};

    use super::*;
    use crate::server::reach::Reach;

    /// With an audit log, and what an object holds that somebody has.
    fn with(test: impl AsyncFnOnce(Audit, Held)) {
        let dir = tempfile::tempdir().unwrap();
        actix_rt::System::new().block_on(async {
            let kernel = Kernel::new().unwrap();
            let meta = Metadata::start(&kernel, Placement::Own, &dir.path().join("meta.redb")).unwrap();
            let root = dir.path().join("audit");
            std::fs::create_dir(&root).unwrap();
            let (root, kept) = (std::fs::File::open(root).unwrap().into(), cofferdam_audit::RETENTION);
            let audit = Audit::start(&kernel, Placement::Shared("kernel"), meta, root, kept).unwrap();
            kernel.ready().await.unwrap();
            let held = Held {
                authority: Authority { peer: Some(PEER), ..Authority::system() },
                grant: Live::new(),
                given: None,
                reach: Reach::everything(),
                check: None,
                gone: None,
                deadline: None,
                calls: Default::default(),
                about: About { namespace: Some(Namespace::default_namespace()), object: Some("container/web".into()) },
            };
            test(audit, held).await;
            kernel.stop().await;
        });
    }

    const PEER: Peer = Peer::Unix { uid: 1, gid: 2, pid: 3 };
    const EXEC: (u64, u64, u16) = (task::Client::TYPE_ID, task::Client::TYPE_ID, 0);
    const INFO: (u64, u64, u16) = (container::Client::TYPE_ID, container::Client::TYPE_ID, 0);

    async fn call(audit: &Audit, held: &Held) {
        let trail = Trail::begin(audit, held, EXEC).unwrap();
        trail.serve(|| note(|| "sh -c id"));
        trail.end(Ok(())).await.unwrap();
    }

    #[test]
    fn a_record_has_what_was_said_of_the_call_and_reading_leaves_none() {
        with(async |audit, held| {
            assert!(Trail::begin(&audit, &held, INFO).is_none());
            call(&audit, &held).await;
            audit.record(Record::new("test", Verdict::Allowed)).await.unwrap();
            let (found, ..) = audit.read(cofferdam_audit::Place::after(1), 1, Default::default()).await.unwrap();
            let record = found[0].record.clone().unwrap();
            assert_eq!(
                (record.method.as_ref(), record.object.as_str(), record.detail.as_str()),
                ("Task.exec", "container/web", "sh -c id")
            );
            let (peer, verdict) = (Some(PEER), Verdict::Allowed);
            assert_eq!((record.peer, record.verdict, record.namespace.as_str()), (peer, verdict, "default"));
        });
    }

    #[test]
    #[ignore = "timed: integration/benches/figures runs it, on a machine that is quiet"]
    fn a_record_takes_a_few_microseconds_of_its_call() {
        with(async |audit, held| {
            let mut samples = Vec::new();
            for _ in 0..20 {
                let begun = Instant::now();
                for _ in 0..100 {
                    call(&audit, &held).await;
                }
                samples.push(begun.elapsed().as_secs_f64() * 1e6 / 100.0);
            }
            samples.sort_by(f64::total_cmp);
            let (min, median, max) = (samples[0], samples[10], samples[19]);
            println!(
                r#"{{"peer":"cofferd","what":"record","unit":"us","n":20,"min":{min},"median":{median},"max":{max},"samples":{samples:?}}}"#
            );
            assert!(median <= 20.0, "{median} us");
        });
    }
}
