//! Reads every blob again from time to time, and compares what is unpacked with it, at a pace that nobody notices.

use std::time::Duration;

use cofferdam_metadata::records::content;
use cofferdam_types::{Authority, Result, Timestamp};

use crate::services::Services;

/// What is read in a second: of the blobs; and then of the layers, each with its blob.
const RATE: u64 = 8 << 20;
/// How much of a blob is read at once.
const STEP: usize = 1 << 20;
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
    let mut pass = Some(services.content.scrub()?);
    let step = async || {
        let Some(mut own) = pass.take() else { return Ok(None) };
        let step = move || {
            let read = own.read(STEP)?;
            Ok((own, read))
        };
        let (own, read) = services.pool.run(step).await?;
        pass = Some(own);
        Ok(read)
    };
    paced(step).await?;
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

/// Takes step by step, until there is none, and after each one as much time as what it read is to take.
async fn paced(mut step: impl AsyncFnMut() -> Result<Option<usize>>) -> Result<()> {
    while let Some(read) = step().await? {
        tokio::time::sleep(Duration::from_secs_f64(read as f64 / RATE as f64)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use cofferdam_types::{Code, Error};
    use tokio::time::Instant;

    use super::*;

    /// A clock that goes on when all wait for it.
    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(test);
    }

    #[test]
    fn blobs_are_read_no_faster_than_they_may_be() {
        run(async {
            // Large ones, small ones, and what could be read no further.
            let steps = [STEP, STEP, 17, 0, STEP / 2, STEP, 1, STEP];
            let (began, left, read) = (Instant::now(), RefCell::new(steps.iter()), Cell::new(0));
            let may = || RATE as f64 * began.elapsed().as_secs_f64();
            let step = async || {
                // By when a step begins the ones before it have had their time; the clock counts milliseconds.
                assert!(f64::from(read.get()) <= may() + RATE as f64 / 1000.0, "{} of {}", read.get(), may());
                let next = left.borrow_mut().next().copied();
                read.set(read.get() + next.unwrap_or_default() as u32);
                Ok(next)
            };
            paced(step).await.unwrap();
            assert_eq!(read.get() as usize, steps.iter().sum::<usize>());
            // Nor much slower: a millisecond is lost with each.
            let over = began.elapsed().as_secs_f64() - f64::from(read.get()) / RATE as f64;
            assert!((0.0..0.01).contains(&over), "{over}");
            assert!(STEP as u64 * 8 <= RATE, "no step is a burst");
        });
    }

    #[test]
    fn an_error_ends_a_pass() {
        run(async {
            let mut calls = 0;
            let step = async || {
                calls += 1;
                Err(Error::unavailable("content", "", "not now"))
            };
            assert_eq!(paced(step).await.unwrap_err().code, Code::Unavailable);
            assert_eq!(calls, 1);
        });
    }
}
