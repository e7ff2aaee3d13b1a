//! The check of everything: each owner compares what it owns with the records, one after the other. It stands above all
//! actors and has no state of its own but how far it is.

use std::collections::VecDeque;

use cofferdam_audit::Broken;
use cofferdam_metadata::{Metadata, records};
use cofferdam_types::{Authority, Error, Fault, Finding, Findings, Result};

use crate::services::Services;

/// The parts, in their order.
const PARTS: [&str; 7] = ["records", "content", "layers", "snapshots", "tasks", "audit", "events"];

/// What keeps one of them from its end keeps nobody from the others.
fn unchecked(part: usize, error: &Error) -> Vec<Finding> {
    let mut found = Findings::default();
    found.unchecked(format!("check/{}", PARTS.get(part).copied().unwrap_or_default()), error);
    found.done()
}

/// A check under way.
pub struct Check {
    services: Services,
    repair: bool,
    part: usize,
    ready: VecDeque<Finding>,
}

impl Check {
    /// One that has not begun.
    pub fn new(services: Services, repair: bool) -> Check {
        Check { services, repair, part: 0, ready: VecDeque::new() }
    }

    /// At most so many findings more, and whether they are the last. Goes on only as far as it must for them.
    pub async fn next(&mut self, max: usize) -> Result<(Vec<Finding>, bool)> {
        while self.ready.is_empty()
            && let Some(found) = self.part(self.part).await
        {
            self.ready.extend(found.unwrap_or_else(|error| unchecked(self.part, &error)));
            self.part += 1;
        }
        let count = max.min(self.ready.len());
        let block: Vec<Finding> = self.ready.drain(..count).collect();
        Ok((block, count == 0))
    }

    /// The records come first: the others believe them.
    async fn part(&self, part: usize) -> Option<Result<Vec<Finding>>> {
        let (services, repair) = (&self.services, self.repair);
        let found = match part {
            0 => self.records().await,
            1 => services.content.check(repair).await,
            // What can be unpacked again is, before what is gone is taken off the records.
            2 => Ok(services.images.check_layers(repair).await),
            3 => services.snapshots.check(repair).await,
            4 => services.tasks.check(repair).await,
            5 => self.audit().await,
            6 => services.events.check().await,
            _ => return None,
        };
        Some(found)
    }

    /// Nothing of it is put right: it says what happened to it.
    async fn audit(&self) -> Result<Vec<Finding>> {
        let report = self.services.audit.verify().await?;
        let finding = |broken: Broken| Finding {
            fault: Fault::AuditBroken,
            id: format!("audit/{}", broken.number),
            message: broken.message,
            repaired: false,
        };
        Ok(report.broken.into_iter().map(finding).collect())
    }

    async fn records(&self) -> Result<Vec<Finding>> {
        let metadata = self.services.metadata.clone();
        if let Err(error) = metadata.writable() {
            let mut found = self.services.pool.run(move || read(&metadata)).await?;
            let (fault, id) = (Fault::RecordUnreadable, "meta.redb".to_owned());
            found.insert(0, Finding { fault, id, message: error.message, repaired: false });
            return Ok(found);
        }
        let found = self.services.pool.run(move || read(&metadata)).await?;
        if found.is_empty() || !self.repair {
            return Ok(found);
        }
        // Only now: a writer that reads all tables keeps the others waiting.
        let mut mended = self.services.metadata.write(&Authority::system(), records::check::mend).await?;
        tracing::warn!(
            found = mended.len(),
            "records contradicted each other, and were put right where that is possible"
        );
        let metadata = self.services.metadata.clone();
        mended.extend(self.services.pool.run(move || records::unreadable(&metadata.read()?)).await?);
        Ok(mended)
    }
}

fn read(metadata: &Metadata) -> Result<Vec<Finding>> {
    let view = metadata.read()?;
    let mut found = records::check::all(&view)?;
    found.extend(records::unreadable(&view)?);
    Ok(found)
}
