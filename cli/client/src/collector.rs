//! The collector, and why things stay.

use std::{collections::BTreeMap, rc::Rc};

use cofferdam_types::Result;
use cofferdam_wire::{
    convert::{text, texts},
    error::malformed,
    gc_capnp::{byte_owner, collected, collector, explanation},
};
use serde::Serialize;

use crate::{call::reply_by, connect::Link, cursor::Cursor};

/// Something that was collected, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Where it was.
    pub namespace: String,
    /// `content`, or `snapshots/` and the driver's name.
    #[serde(rename = "type")]
    pub kind: String,
    /// A digest, or a key.
    pub id: String,
    /// What goes from disk with it.
    pub bytes: u64,
}

/// What a collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CollectReport {
    /// How many blobs went.
    pub blobs: u64,
    /// How many snapshots.
    pub snapshots: u64,
    /// How many leases that had ended.
    pub leases: u64,
    /// Bytes that nobody has any more.
    pub bytes: u64,
    /// Nanoseconds that it took to find out.
    pub mark: u64,
    /// And to remove it.
    pub sweep: u64,
    /// The longest of these that writers waited at once.
    pub longest: u64,
    /// Records that can't be read: where one of them may refer to something, all stays in its namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

/// Who keeps bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ByteOwner {
    /// Where.
    pub namespace: String,
    /// `image`, `container`, `lease`, `hand`, `label`, or `nothing`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its name.
    pub id: String,
    /// Bytes that nobody else keeps.
    pub alone: u64,
    /// Bytes that others keep too.
    pub shared: u64,
}

/// Whose the bytes below the root are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskUsage {
    /// All of it.
    pub total: u64,
    /// What several owners keep, counted once.
    pub shared: u64,
    /// What is no owner's, by what it is for.
    pub areas: BTreeMap<String, u64>,
}

fn owner(reader: byte_owner::Reader<'_>) -> Result<ByteOwner> {
    Ok(ByteOwner {
        namespace: text(reader.get_namespace())?.to_owned(),
        kind: text(reader.get_type())?.to_owned(),
        id: text(reader.get_id())?.to_owned(),
        alone: reader.get_alone(),
        shared: reader.get_shared(),
    })
}

/// A link of the chain that keeps something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReferenceStep {
    /// `image`, `container`, `lease`, `hand`, `label`; behind these `content`, or `snapshots/` and the driver's name.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its name.
    pub id: String,
    /// How the one before it leads here.
    pub by: String,
}

/// Why something stays, or goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Whether the next collection leaves it.
    pub stays: bool,
    /// In a sentence.
    pub why: String,
    /// The shortest way to it from what keeps itself.
    pub chain: Vec<ReferenceStep>,
    /// How many blobs it keeps in its turn.
    pub blobs: u64,
    /// How many snapshots.
    pub snapshots: u64,
    /// Bytes of these.
    pub bytes: u64,
}

fn item(reader: collected::Reader<'_>) -> Result<Collected> {
    Ok(Collected {
        namespace: text(reader.get_namespace())?.to_owned(),
        kind: text(reader.get_type())?.to_owned(),
        id: text(reader.get_id())?.to_owned(),
        bytes: reader.get_bytes(),
    })
}

pub(crate) fn explained(reader: explanation::Reader<'_>) -> Result<Explanation> {
    let step = |step: cofferdam_wire::gc_capnp::reference_step::Reader<'_>| {
        Ok(ReferenceStep {
            kind: text(step.get_type())?.to_owned(),
            id: text(step.get_id())?.to_owned(),
            by: text(step.get_by())?.to_owned(),
        })
    };
    Ok(Explanation {
        stays: reader.get_stays(),
        why: text(reader.get_why())?.to_owned(),
        chain: reader.get_chain().map_err(malformed)?.iter().map(step).collect::<Result<_>>()?,
        blobs: reader.get_blobs(),
        snapshots: reader.get_snapshots(),
        bytes: reader.get_bytes(),
    })
}

/// The collector.
#[derive(Clone)]
pub struct Collector {
    pub(crate) link: Rc<Link>,
    pub(crate) client: collector::Client,
}

impl Collector {
    /// Collects now, or with `rehearse` says what that would remove: the figures, and the first 10,000 things.
    pub async fn collect(&self, rehearse: bool) -> Result<(CollectReport, Cursor<Collected>)> {
        let mut request = self.client.collect_request();
        request.get().set_rehearse(rehearse);
        let (report, cursor) = reply_by(&self.link, &self.client, request, |answer| {
            let report = answer.get_report().map_err(malformed)?;
            let report = CollectReport {
                blobs: report.get_blobs(),
                snapshots: report.get_snapshots(),
                leases: report.get_leases(),
                bytes: report.get_bytes(),
                mark: report.get_mark(),
                sweep: report.get_sweep(),
                longest: report.get_longest(),
                unreadable: texts(report.get_unreadable())?,
            };
            Ok((report, answer.get_cursor().map_err(malformed)?))
        })
        .await?;
        Ok((report, Cursor::of(&self.link, cursor, item)))
    }

    /// Whose the bytes below the root are: the sums, and each owner.
    pub async fn usage(&self) -> Result<(DiskUsage, Cursor<ByteOwner>)> {
        let (usage, cursor) = reply_by(&self.link, &self.client, self.client.usage_request(), |answer| {
            let usage = answer.get_usage().map_err(malformed)?;
            let mut areas = BTreeMap::new();
            for area in usage.get_areas().map_err(malformed)? {
                areas.insert(text(area.get_name())?.to_owned(), area.get_bytes());
            }
            let usage = DiskUsage { total: usage.get_total(), shared: usage.get_shared(), areas };
            Ok((usage, answer.get_cursor().map_err(malformed)?))
        })
        .await?;
        Ok((usage, Cursor::of(&self.link, cursor, owner)))
    }
}
