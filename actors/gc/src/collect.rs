//! One collection, from its mark to the last file.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cofferdam_content::{Content, Removing};
use cofferdam_kernel::block_on;
use cofferdam_metadata::{
    Changes, Metadata, Read, Tx, View,
    graph::{Graph, Sweep, Swept, end_leases},
    records::{Resource, content, namespaces, snapshots},
};
use cofferdam_snapshots::Snapshots;
use cofferdam_types::{Authority, Code, Error, Name, Namespace, Result, Timestamp};

/// Records that one commit removes: a writer whose commit it is too, or who comes behind it, waits for that.
const SLICE: usize = 8;
/// What a report lists; its figures count all.
pub const LISTED: usize = 10_000;

/// Something that was removed, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Where.
    pub namespace: Namespace,
    /// What.
    pub resource: Resource,
    /// The bytes on disk that go with it; of a snapshot that isn't committed they are not known.
    pub bytes: u64,
}

/// What a collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The first [`LISTED`] things that went.
    pub items: Vec<Item>,
    /// How many blobs went from their namespaces.
    pub blobs: u64,
    /// How many snapshots.
    pub snapshots: u64,
    /// How many leases that had ended.
    pub leases: u64,
    /// Bytes that nobody has any more.
    pub bytes: u64,
    /// How long it took to find out.
    pub mark: Duration,
    /// How long the removal took.
    pub sweep: Duration,
    /// How many commits that took.
    pub commits: u64,
    /// The longest that it kept writers waiting.
    pub longest: Duration,
    /// When the next lease ends.
    pub next_end: Option<Timestamp>,
    /// Records that can't be read, in words, the first [`LISTED`]: where there is one that may refer to something, all stays.
    pub unreadable: Vec<String>,
}

impl Report {
    fn add(&mut self, namespace: &Namespace, resource: Resource, bytes: u64) {
        match resource {
            Resource::Content(_) => self.blobs += 1,
            Resource::Snapshot { .. } => self.snapshots += 1,
        }
        self.bytes += bytes;
        if self.items.len() < LISTED {
            self.items.push(Item { namespace: namespace.clone(), resource, bytes });
        }
    }

    fn unread(&mut self, namespace: &Namespace, error: &Error) {
        if self.unreadable.len() < LISTED {
            self.unreadable.push(format!("{namespace}: {error}"));
        }
    }
}

/// Whose records and bytes are collected.
#[derive(Clone)]
pub struct Stores {
    pub meta: Metadata,
    pub content: Content,
    pub snapshots: Snapshots,
}

/// What a mark leaves of one namespace.
struct Left {
    sweep: Sweep,
    ended: Vec<Name>,
}

/// Marks all namespaces over one view.
fn mark(view: &View, collection: u64, report: &mut Report) -> Result<Vec<Left>> {
    let mut left = Vec::new();
    for namespace in namespaces::names(view)? {
        let graph = Graph::read(view, &namespace, Timestamp::now())?;
        report.next_end = report.next_end.into_iter().chain(graph.next_end()).min();
        graph.unreadable().iter().for_each(|error| report.unread(&namespace, error));
        let ended = graph.ended().to_vec();
        let sweep = Sweep::new(collection, namespace, &graph);
        if !sweep.is_done() || !ended.is_empty() {
            left.push(Left { sweep, ended });
        }
    }
    Ok(left)
}

impl Stores {
    /// What a collection would remove now.
    pub fn rehearse(&self) -> Result<Report> {
        let (begun, mut report, view) = (Instant::now(), Report::default(), self.meta.read()?);
        let left = mark(&view, 0, &mut report)?;
        // What has several links goes with the last of them.
        let mut links = HashMap::new();
        for Left { sweep, ended } in left {
            report.leases += ended.len() as u64;
            let namespace = sweep.namespace();
            for resource in sweep.left() {
                match bytes(&view, namespace, resource) {
                    Ok((key, count, size)) => {
                        let links: &mut u64 = links.entry(key).or_default();
                        *links += 1;
                        report.add(namespace, resource.clone(), if *links == count { size } else { 0 });
                    }
                    Err(error) if error.code == Code::DataLoss => report.unread(namespace, &error),
                    Err(error) => return Err(error),
                }
            }
        }
        report.mark = begun.elapsed();
        Ok(report)
    }

    /// Removes what nothing keeps. Says too what had been written when it began.
    pub fn collect(&self) -> Result<(Report, Changes)> {
        let (begun, mut report) = (Instant::now(), Report::default());
        let (collection, seen) = block_on(self.meta.begin_collection())?;
        let ended = Ends(&self.meta, collection);
        // Only now: what was written before is in it, and what is written behind it is noted.
        let view = self.meta.read()?;
        let left = mark(&view, collection, &mut report)?;
        drop(view);
        report.mark = begun.elapsed();
        let begun = Instant::now();
        for Left { sweep, ended } in left {
            let namespace = sweep.namespace().clone();
            self.end(&namespace, ended, &mut report)?;
            let sweep = Arc::new(Mutex::new(sweep));
            let mut max = SLICE;
            while !lock(&sweep).is_done() {
                let removing = block_on(self.content.removing());
                let (theirs, begun) = (sweep.clone(), Instant::now());
                let swept = match self.write(move |tx| lock(&theirs).slice(tx, max)) {
                    // A row that goes along can't be read. One by one it is found which, and left where it is; what lies behind
                    // it goes as before.
                    Err(error) if error.code == Code::DataLoss => {
                        if max == 1 {
                            lock(&sweep).skip();
                            report.unread(&namespace, &error);
                        }
                        max = if max == 1 { SLICE } else { 1 };
                        continue;
                    }
                    swept => swept?,
                };
                report.commits += 1;
                report.longest = report.longest.max(begun.elapsed());
                lock(&sweep).done(&swept, max);
                self.discard(&namespace, swept, removing, &mut report);
            }
        }
        drop(ended);
        report.sweep = begun.elapsed();
        Ok((report, seen))
    }

    /// Nobody waits for it: who does write is not to wait for it either.
    fn write<R: Send + 'static>(&self, f: impl Fn(&mut Tx<'_>) -> Result<R> + Send + 'static) -> Result<R> {
        block_on(self.meta.write_patiently(&Authority::system(), f))
    }

    fn end(&self, namespace: &Namespace, ended: Vec<Name>, report: &mut Report) -> Result<()> {
        for ids in ended.chunks(SLICE) {
            let (namespace, ids) = (namespace.clone(), ids.to_vec());
            report.leases += self.write(move |tx| end_leases(tx, &namespace, &ids))?;
        }
        Ok(())
    }

    /// The records are gone; now the bytes. What can't be removed now the next start sweeps.
    fn discard(&self, namespace: &Namespace, swept: Swept, removing: Removing, report: &mut Report) {
        for (resource, bytes) in swept.removed {
            report.add(namespace, resource, bytes);
        }
        if !swept.blobs.is_empty()
            && let Err(error) = block_on(self.content.discard(swept.blobs, removing))
        {
            tracing::warn!(%error, "collected blobs stay on disk until the next start");
        }
        for snapshot in swept.snapshots.into_iter().filter(|snapshot| snapshot.unreferenced) {
            if let Err(error) = block_on(self.snapshots.discard(snapshot)) {
                tracing::warn!(%error, "a collected snapshot stays on disk until the next start");
            }
        }
    }
}

/// The bytes behind something, how many names they have, and what tells them from others.
fn bytes(view: &dyn Read, ns: &Namespace, resource: &Resource) -> Result<(String, u64, u64)> {
    match resource {
        Resource::Content(digest) => {
            let blob = content::counted(view, &content::get(view, ns, digest)?)?;
            Ok((digest.to_string(), blob.links, blob.size))
        }
        Resource::Snapshot { driver, key } => {
            let found = snapshots::get(view, ns, driver, key)?;
            let count = snapshots::dir_references(view, driver, found.dir)?;
            Ok((format!("{driver}/{}", found.dir), count, found.usage.size))
        }
    }
}

/// Ends a collection however it ends.
struct Ends<'a>(&'a Metadata, u64);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.end_collection(self.1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
