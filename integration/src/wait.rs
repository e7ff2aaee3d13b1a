//! Waiting: always with a deadline, for a state rather than for a time. And how long a test may go on.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// What anything may take in a test, on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(2);

/// Whether there is time for the full counts.
pub fn is_long() -> bool {
    std::env::var_os("COFFERDAM_LONG").is_some()
}

/// The full count, or that of every day.
pub fn count(long: u64, short: u64) -> u64 {
    if is_long() { long } else { short }
}

/// Runs a test that talks to a daemon; one that hangs fails.
pub fn bounded<T>(test: impl Future<Output = T>) -> T {
    let limit = DEADLINE * count(45, 6) as u32;
    let limited = async { tokio::time::timeout(limit, test).await };
    cofferdam_client::block_on(limited).expect("a runtime").expect("the test hangs")
}

/// Looks again and again until `look` gives something.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(LOOK);
    }
}

/// [`until`] for what has to be asked for.
pub async fn until_async<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Says that a test showed nothing on this host, past the harness, which keeps what a passed one prints: `deploy/test` counts
/// it.
pub fn skipped(why: &str) {
    use std::io::Write as _;
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // `eprintln` is what the harness keeps.
    let mut past = std::io::stderr();
    writeln!(past, "\nskipped here: {test}: {why}").unwrap();
}
