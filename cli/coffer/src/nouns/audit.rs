//! The audit log.

use std::cell::Cell;

use cofferdam_client::{AuditFilter, AuditRecord, Client};
use cofferdam_types::Timestamp;

use crate::{
    args::{Command, switch, value},
    cx::{Cx, line},
    failure::Failure,
    units::{counted, moment, number},
};

/// `coffer audit`.
pub static AUDIT: Command = Command {
    path: &["audit"],
    about: "show who used which authority for what",
    positionals: &[],
    flags: &[
        switch("follow", Some('f'), "go on with what is to come"),
        value("grant", None, "ID", "what came through it or those that come from it, and what was done to it"),
        value("method", None, "METHOD", "such as Task.exec, or Grant.* for all of an interface"),
        value("verdict", None, "VERDICT", "allowed, denied, failed or cut"),
        value("since", None, "WHEN", "since then: a time, or a span ago such as 30m"),
        value("after", None, "SEQUENCE", "behind that record"),
    ],
    notes: "A line for each: sequence, time, who (uid, pid), verdict, namespace, method, object, through which grant, and what\n\
            it was about. With -o json: a JSON object on each line. With --namespace what happened there. Changes of authority\n\
            are on disk before they are answered, and all else within 100 ms; docs/audit.md says what is recorded.",
    failure: 1,
    action: |cx| Box::pin(audit(cx)),
};

fn filter(cx: &Cx) -> Result<AuditFilter, Failure> {
    let args = &cx.args;
    Ok(AuditFilter {
        // Not that of the environment: who looks through the log means all of it.
        namespace: args.text("namespace"),
        grant: args.text("grant"),
        method: args.text("method"),
        verdict: args.text("verdict"),
        since: args.read("since", moment)?.unwrap_or_default(),
    })
}

async fn audit(cx: Cx) -> Result<i32, Failure> {
    let filter = filter(&cx)?;
    let after = cx.args.read("after", number)?.unwrap_or_default();
    let client = cx.client().await?;
    let seen = Cell::new(after);
    let show = |records: Vec<AuditRecord>| {
        records.iter().try_for_each(|record| {
            seen.set(record.sequence);
            if cx.json { cx.document(record) } else { line(&text(record)) }
        })
    };
    if !cx.args.has("follow") {
        let mut cursor = client.audit().read(after, &filter);
        loop {
            match cursor.next().await? {
                records if records.is_empty() => return Ok(0),
                records => show(records)?,
            }
        }
    }
    let follow = async |client: Client| {
        let mut cursor = client.audit().read(seen.get(), &filter);
        loop {
            if let Err(failure) = show(cursor.wait().await?) {
                return Ok(failure);
            }
        }
    };
    Err(client.persist(follow).await?)
}

/// A record on one line, whatever is in it.
fn text(record: &AuditRecord) -> String {
    if record.verdict == "altered" {
        return format!("{} altered: it is not what was written", record.sequence);
    }
    let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let time = if record.time == Timestamp::default() { "-".to_owned() } else { record.time.to_rfc3339() };
    let who = if record.pid == 0 { "daemon".to_owned() } else { format!("uid {} pid {}", record.uid, record.pid) };
    let mut words = vec![
        record.sequence.to_string(),
        time,
        who,
        record.verdict.clone(),
        dash(&record.namespace),
        record.method.clone(),
        dash(&record.object),
    ];
    let mut more = |name: &str, text: &str| {
        if !text.is_empty() {
            // Arguments of somebody else's, which go to a terminal.
            words.push(format!("{name}{}", text.escape_debug()));
        }
    };
    more("through ", record.grants.last().map_or("", String::as_str));
    more("id ", &record.correlation_id);
    more("", &record.detail);
    more("! ", &record.error);
    if record.times > 1 {
        words.push(format!("({} times)", record.times));
    }
    words.join("  ")
}

/// `coffer audit verify`.
pub static VERIFY: Command = Command {
    path: &["audit", "verify"],
    about: "read the whole audit log again, and say where it is not what was written",
    positionals: &[],
    flags: &[],
    notes: "A line for each place where the chain is broken. The last line has what the chain comes to: noted elsewhere, it\n\
            shows later that nothing before it was rewritten.\n\
            exit code: 0 if it is whole, 1 if it isn't",
    failure: 1,
    action: |cx| Box::pin(verify(cx)),
};

async fn verify(cx: Cx) -> Result<i32, Failure> {
    let report = cx.client().await?.audit().verify().await?;
    if cx.json {
        cx.document(&report)?;
    } else {
        for fault in &report.faults {
            line(&format!("{}: {}", fault.sequence, fault.message))?;
        }
        let range = format!("{} to {}", report.first, report.last);
        line(&match report.faults.len() {
            0 if report.sound == 0 => "there are no records yet".to_owned(),
            0 => format!("records {range} are what was written; the chain comes to {}", report.head),
            n => format!("of records {range} {} are what was written: {}", report.sound, counted(n as u64, "fault")),
        })?;
    }
    Ok(i32::from(!report.faults.is_empty()))
}
