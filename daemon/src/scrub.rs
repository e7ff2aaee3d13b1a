//! Reads every blob again from time to time, and compares what is unpacked with it, at a pace that nobody notices.

use std::time::Duration;

use cofferdam_metadata::records::content;
use cofferdam_types::{Authority, Result, Timestamp};

use crate::services::Services;

/// How much is read at once, and the least time from one to the next: 8 MiB in a second.
const STEP: usize = 1 << 20;
const PAUSE: Duration = Duration::from_millis(125);
/// What is read of a layer and of its blob in a second.
const RATE: u64 = 8 << 20;
/// A daemon that starts has other things to do, even if a pass is due.
const FIRST: Duration = Duration::from_secs(600);

/// Makes a pass each time that so much time has gone by since the one before it, whichever daemon made that. Never
/// returns.
pub async fn watch(services: Services, period: Duration) {
    let mut wait = FIRST.min(period);
    loop {
        tokio::time::sleep(wait).await;
        wait = match round(&services, period).await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::warn!(%error, "blobs and layers can't be compared with their digests; it is tried again");
                FIRST.min(period)
            }
        };
    }
}

/// Makes a pass if it is due, and gives the time to the next.
async fn round(services: &Services, period: Duration) -> Result<Duration> {
    if let Some(last) = content::scrubbed(&services.metadata.read()?)? {
        let since = Duration::from_nanos(Timestamp::now().0.saturating_sub(last.0));
        if let Some(left) = period.checked_sub(since).filter(|left| !left.is_zero()) {
            return Ok(left);
        }
    }
    let mut pass = services.content.scrub()?;
    loop {
        let step = move || {
            let read = pass.read(STEP)?;
            Ok((pass, read))
        };
        let (back, read) = services.pool.run(step).await?;
        pass = back;
        let Some(read) = read else { break };
        tokio::time::sleep(PAUSE.mul_f64(read as f64 / STEP as f64)).await;
    }
    // Behind the blobs, since it believes them.
    let layers = services.images.unpacked().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "layers can't be compared with their blobs; it is tried again with the next pass");
        Vec::new()
    });
    for layer in layers {
        if let Err(error) = services.images.examine(layer, RATE).await {
            tracing::warn!(%error, "a layer can't be compared with its blob; it is tried again with the next pass");
        }
    }
    services.metadata.write(&Authority::system(), content::set_scrubbed).await?;
    Ok(period)
}
