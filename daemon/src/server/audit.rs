//! `Audit` (audit.capnp).

use std::rc::Rc;

use cofferdam_audit::{Filter, Found, Place, Verdict};
use cofferdam_types::{Peer, Result, Timestamp};
use cofferdam_wire::{
    audit_capnp::{audit, audit_cursor, audit_filter, audit_record},
    convert::{set_texts, text},
};
use tokio::sync::Mutex;

use super::{
    rpc,
    session::{Held, Session},
};

/// The audit log.
pub struct Audit(pub Rc<Session>, pub Held);

/// The most records in one answer.
const BLOCK: usize = 100;

fn filter(reader: audit_filter::Reader<'_>) -> Result<Filter> {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let grant = text(reader.get_grant())?;
    let verdict = text(reader.get_verdict())?;
    Ok(Filter {
        namespace: some(text(reader.get_namespace())?),
        grant: (!grant.is_empty()).then(|| grant.parse()).transpose()?,
        method: some(text(reader.get_method())?),
        verdict: (!verdict.is_empty()).then(|| Verdict::parse(verdict)).transpose()?,
        since: Timestamp(reader.get_since()),
    })
}

fn set_record(mut builder: audit_record::Builder<'_>, found: &Found) {
    builder.set_sequence(found.number);
    let Some(record) = &found.record else {
        builder.set_verdict("altered");
        return;
    };
    builder.set_time(record.time.0);
    let grants: Vec<String> = record.grants.iter().map(ToString::to_string).collect();
    set_texts(builder.reborrow().init_grants(grants.len() as u32), &grants);
    if let Some(Peer::Unix { uid, gid, pid }) = record.peer {
        builder.set_uid(uid);
        builder.set_gid(gid);
        builder.set_pid(pid);
    }
    builder.set_namespace(&record.namespace);
    builder.set_object(&record.object);
    builder.set_method(&*record.method);
    builder.set_detail(&record.detail);
    builder.set_verdict(record.verdict.as_str());
    builder.set_error(&record.error);
    builder.set_correlation_id(&record.correlation);
    builder.set_times(record.times);
}

impl audit::Server for Audit {
    async fn read(self: Rc<Self>, params: audit::ReadParams, mut results: audit::ReadResults) -> capnp::Result<()> {
        let params = params.get()?;
        let log = &self.0.services.audit;
        let after = match params.get_after() {
            u64::MAX => *log.last().borrow(),
            after => after,
        };
        let filter = rpc(filter(params.get_filter()?))?;
        let cursor = AuditCursor { log: log.clone(), filter, place: Mutex::new(Place::after(after)) };
        results.get().set_cursor(self.0.hand_out(cursor, &self.1));
        Ok(())
    }

    async fn verify(self: Rc<Self>, _: audit::VerifyParams, mut results: audit::VerifyResults) -> capnp::Result<()> {
        let report = rpc(self.0.services.audit.verify().await)?;
        let mut builder = results.get().init_report();
        builder.set_first(report.first);
        builder.set_last(report.last);
        builder.set_sound(report.sound);
        builder.set_head(report.hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let mut faults = builder.init_faults(report.broken.len() as u32);
        for (n, broken) in report.broken.iter().enumerate() {
            let mut fault = faults.reborrow().get(n as u32);
            fault.set_sequence(broken.number);
            fault.set_message(&broken.message);
        }
        Ok(())
    }
}

/// A place in the log. Who asks for more blocks than one at once gets them one after the other.
struct AuditCursor {
    log: cofferdam_audit::Audit,
    filter: Filter,
    place: Mutex<Place>,
}

impl audit_cursor::Server for AuditCursor {
    async fn next(
        self: Rc<Self>,
        params: audit_cursor::NextParams,
        mut results: audit_cursor::NextResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let (max, wait) = (usize::from(params.get_max()).clamp(1, BLOCK), params.get_wait());
        let mut place = self.place.lock().await;
        let mut last = self.log.last();
        loop {
            let seen = *last.borrow_and_update();
            let (found, now, end) = rpc(self.log.read(*place, max, self.filter.clone()).await)?;
            *place = now;
            if !found.is_empty() || end && !wait {
                let mut answer = results.get();
                answer.set_end(end);
                let mut items = answer.init_items(found.len() as u32);
                for (n, found) in found.iter().enumerate() {
                    set_record(items.reborrow().get(n as u32), found);
                }
                return Ok(());
            }
            if end && last.wait_for(|last| *last > seen).await.is_err() {
                return Ok(());
            }
        }
    }
}
