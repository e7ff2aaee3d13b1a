//! Jobs: pulls and imports with progress.

use std::{rc::Rc, time::Duration};

use cofferdam_types::{Error, Result, Timestamp};
use cofferdam_wire::{
    convert::{text, texts},
    error::malformed,
    job_capnp::{job, job_info, jobs},
};
use serde::Serialize;

use crate::{
    call::{Reply, done_by, reply_by},
    connect::Link,
    cursor::Cursor,
};

/// One part of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobItem {
    /// A digest, or what the step is called.
    pub name: String,
    /// waiting, elsewhere (another job has it in hand), fetching, unpacking, done or exists.
    pub phase: String,
    /// Bytes so far.
    pub done: u64,
    /// Bytes in all; 0 is unknown.
    pub total: u64,
}

/// How a job stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobInfo {
    /// Its id.
    pub id: String,
    /// pull, import, checkpoint, commit, export, push, convert or unpack.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// Since when it runs.
    #[serde(serialize_with = "crate::json::time")]
    pub started: Timestamp,
    /// running, done, failed or cancelled.
    pub state: String,
    /// Why it failed.
    pub error: String,
    /// Its parts.
    pub items: Vec<JobItem>,
    /// What it is at as a whole, in words.
    pub stage: String,
}

fn info(reader: job_info::Reader<'_>) -> Result<JobInfo> {
    let items = reader.get_items().map_err(malformed)?.iter().map(|item| {
        Ok(JobItem {
            name: text(item.get_name())?.to_owned(),
            phase: text(item.get_phase())?.to_owned(),
            done: item.get_done(),
            total: item.get_total(),
        })
    });
    let reason = text(reader.get_error())?;
    Ok(JobInfo {
        items: items.collect::<Result<_>>()?,
        id: text(reader.get_id())?.to_owned(),
        stage: text(reader.get_stage())?.to_owned(),
        kind: text(reader.get_kind())?.to_owned(),
        subject: text(reader.get_subject())?.to_owned(),
        started: Timestamp(reader.get_started()),
        state: text(reader.get_state())?.to_owned(),
        error: if reason.is_empty() { String::new() } else { Error::from_reason(reason).to_string() },
    })
}

/// A piece of work that goes on even if you disappear.
#[derive(Clone)]
pub struct Job {
    pub(crate) link: Rc<Link>,
    pub(crate) client: job::Client,
}

impl Job {
    /// How it stands.
    pub fn info(&self) -> Reply<JobInfo> {
        reply_by(&self.link, &self.client, self.client.info_request(), |answer| {
            info(answer.get_info().map_err(malformed)?)
        })
    }

    /// How it stands once that changed, at least `after` behind the last answer.
    pub fn watch(&self, after: Duration) -> Reply<JobInfo> {
        let mut request = self.client.watch_request();
        request.get().set_after_millis(u32::try_from(after.as_millis()).unwrap_or(u32::MAX));
        reply_by(&self.link, &self.client, request, |answer| info(answer.get_info().map_err(malformed)?))
    }

    /// Waits for its end: the names of the images that it made.
    pub fn wait(&self) -> Reply<Vec<String>> {
        reply_by(&self.link, &self.client, self.client.wait_request(), |answer| texts(answer.get_names()))
    }

    /// Waits for its end and shows its progress meanwhile, at most once in `every`.
    pub async fn follow(&self, every: Duration, mut show: impl FnMut(&JobInfo)) -> Result<Vec<String>> {
        loop {
            let info = self.watch(every).await?;
            show(&info);
            if info.state != "running" {
                return self.wait().await;
            }
        }
    }

    /// Ends it; returns when it has left nothing behind.
    pub fn cancel(&self) -> Reply<()> {
        done_by(&self.link, &self.client, self.client.cancel_request())
    }
}

/// The jobs of a namespace.
#[derive(Clone)]
pub struct Jobs {
    pub(crate) link: Rc<Link>,
    pub(crate) client: jobs::Client,
}

impl Jobs {
    /// All of them.
    pub fn list(&self) -> Cursor<JobInfo> {
        Cursor::of(&self.link, self.client.list_request().send().pipeline.get_cursor(), info)
    }

    /// One of them.
    pub fn get(&self, id: &str) -> Job {
        let mut request = self.client.get_request();
        request.get().set_id(id);
        Job { link: self.link.clone(), client: request.send().pipeline.get_job() }
    }
}
