//! The audit log: who used which authority for what. It is the operator's.

use std::{cell::Cell, rc::Rc};

use cofferdam_types::{Result, Timestamp};
use cofferdam_wire::{
    audit_capnp::{audit, audit_cursor, audit_filter, audit_record, audit_report},
    convert::{text, texts},
    error::malformed,
};
use serde::Serialize;

use crate::{
    call::{Reply, reply, reply_by},
    connect::Link,
    cursor::BLOCK,
};

/// A record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditRecord {
    /// Counted from 1.
    pub sequence: u64,
    /// When the call began.
    #[serde(serialize_with = "crate::json::time")]
    pub time: Timestamp,
    /// The grants through which it came, the outermost first; none: the operator.
    pub grants: Vec<String>,
    /// The user at the other end.
    pub uid: u32,
    /// His group.
    pub gid: u32,
    /// His process; 0: the daemon itself.
    pub pid: i32,
    /// Where it happened.
    pub namespace: String,
    /// Kind and name of what was called, as `container/web`.
    pub object: String,
    /// The method, as `Task.exec`.
    pub method: String,
    /// What it was about.
    pub detail: String,
    /// `allowed`, `denied`, `failed`, `cut`; or `altered`: then nothing else is told.
    pub verdict: String,
    /// Why, but of what was allowed.
    pub error: String,
    /// Of the call's context.
    pub correlation_id: String,
    /// How many such calls it stands for.
    pub times: u32,
}

/// Which records are wanted; what is empty lets all through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Of this namespace.
    pub namespace: String,
    /// That came through this grant or those that come from it, and what was done to it.
    pub grant: String,
    /// Of this method; `Task.*` is all of an interface.
    pub method: String,
    /// That ended so.
    pub verdict: String,
    /// That began then or later.
    pub since: Timestamp,
}

/// A place where the log is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditFault {
    /// The record there.
    pub sequence: u64,
    /// What is wrong.
    pub message: String,
}

/// What became of reading the whole log again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// The first record that there should be.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// How many are what was written.
    pub sound: u64,
    /// What the chain comes to, in hexadecimal digits.
    pub head: String,
    /// Where it is broken.
    pub faults: Vec<AuditFault>,
}

fn record(reader: audit_record::Reader<'_>) -> Result<AuditRecord> {
    Ok(AuditRecord {
        sequence: reader.get_sequence(),
        time: Timestamp(reader.get_time()),
        grants: texts(reader.get_grants())?,
        uid: reader.get_uid(),
        gid: reader.get_gid(),
        pid: reader.get_pid(),
        namespace: text(reader.get_namespace())?.to_owned(),
        object: text(reader.get_object())?.to_owned(),
        method: text(reader.get_method())?.to_owned(),
        detail: text(reader.get_detail())?.to_owned(),
        verdict: text(reader.get_verdict())?.to_owned(),
        error: text(reader.get_error())?.to_owned(),
        correlation_id: text(reader.get_correlation_id())?.to_owned(),
        times: reader.get_times(),
    })
}

fn report(reader: audit_report::Reader<'_>) -> Result<AuditReport> {
    let faults =
        reader.get_faults().map_err(malformed)?.iter().map(|fault| {
            Ok(AuditFault { sequence: fault.get_sequence(), message: text(fault.get_message())?.to_owned() })
        });
    Ok(AuditReport {
        faults: faults.collect::<Result<_>>()?,
        first: reader.get_first(),
        last: reader.get_last(),
        sound: reader.get_sound(),
        head: text(reader.get_head())?.to_owned(),
    })
}

fn set_filter(mut builder: audit_filter::Builder<'_>, filter: &AuditFilter) {
    builder.set_namespace(&filter.namespace);
    builder.set_grant(&filter.grant);
    builder.set_method(&filter.method);
    builder.set_verdict(&filter.verdict);
    builder.set_since(filter.since.0);
}

/// The log.
#[derive(Clone)]
pub struct Audit {
    pub(crate) link: Rc<Link>,
    pub(crate) client: audit::Client,
}

impl Audit {
    /// The records behind a sequence number that pass. [`crate::FROM_NOW`]: what is to come.
    pub fn read(&self, after: u64, filter: &AuditFilter) -> AuditCursor {
        let mut request = self.client.read_request();
        request.get().set_after(after);
        set_filter(request.get().init_filter(), filter);
        let client = request.send().pipeline.get_cursor();
        AuditCursor { log: self.clone(), client, end: Rc::default() }
    }

    /// Reads the whole log again, and says where it is not what was written.
    pub fn verify(&self) -> Reply<AuditReport> {
        let read = |answer: audit::verify_results::Reader<'_>| report(answer.get_report().map_err(malformed)?);
        reply_by(&self.link, &self.client, self.client.verify_request(), read)
    }
}

/// A place in the log.
pub struct AuditCursor {
    log: Audit,
    client: audit_cursor::Client,
    end: Rc<Cell<bool>>,
}

impl AuditCursor {
    fn ask(&self, wait: bool) -> Reply<Vec<AuditRecord>> {
        let mut request = self.client.next_request();
        request.get().set_max(BLOCK);
        request.get().set_wait(wait);
        let end = self.end.clone();
        reply(&self.log.link, request, move |answer| {
            end.set(answer.get_end());
            answer.get_items().map_err(malformed)?.iter().map(record).collect()
        })
    }

    /// Some more; none behind the last that there is.
    pub async fn next(&mut self) -> Result<Vec<AuditRecord>> {
        while !self.end.get() {
            let some = self.ask(false).await?;
            if !some.is_empty() {
                return Ok(some);
            }
        }
        Ok(Vec::new())
    }

    /// At least one more, as soon as there is one.
    pub async fn wait(&mut self) -> Result<Vec<AuditRecord>> {
        self.ask(true).await
    }

    /// All that there are.
    pub async fn all(mut self) -> Result<Vec<AuditRecord>> {
        let mut all = Vec::new();
        loop {
            match self.next().await? {
                some if some.is_empty() => return Ok(all),
                some => all.extend(some),
            }
        }
    }
}
