//! How fast bytes may come.

use std::{
    io::{self, Read},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::Cancel;

/// What wasn't used so lately may be used later.
const BURST: Duration = Duration::from_millis(100);
/// The least that is read at once, however slow it is to be.
const LEAST: usize = 4 << 10;

/// Bytes in a second, for all who share it.
#[derive(Debug)]
pub(crate) struct Rate {
    per_second: u64,
    /// When all that has come would have come at that rate.
    even: Mutex<Instant>,
}

impl Rate {
    /// 0: no limit.
    pub fn new(per_second: u64) -> Rate {
        Rate { per_second, even: Mutex::new(Instant::now()) }
    }

    /// How long whoever got so many bytes now has to wait.
    fn owed(&self, bytes: usize, now: Instant) -> Duration {
        if self.per_second == 0 {
            return Duration::ZERO;
        }
        let mut even = self.even.lock().unwrap_or_else(PoisonError::into_inner);
        let from = now.checked_sub(BURST).map_or(*even, |least| (*even).max(least));
        *even = from + Duration::from_secs_f64(bytes as f64 / self.per_second as f64);
        even.saturating_duration_since(now)
    }

    /// How much to ask for at once, so that waiting for it is no long silence.
    fn piece(&self) -> usize {
        match self.per_second {
            0 => usize::MAX,
            rate => usize::try_from(rate / 10).unwrap_or(usize::MAX).max(LEAST),
        }
    }
}

/// A stream that is read no faster than these let it.
pub(crate) struct Throttled<'a, R> {
    pub inner: R,
    pub rates: [&'a Rate; 2],
    pub word: &'a Cancel,
}

impl<R: Read> Read for Throttled<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.rates.iter().map(|rate| rate.piece()).fold(buffer.len(), usize::min);
        let count = self.inner.read(&mut buffer[..most])?;
        let now = Instant::now();
        let owed = self.rates.iter().map(|rate| rate.owed(count, now)).max().unwrap_or_default();
        if !owed.is_zero() {
            self.word.wait(owed).map_err(io::Error::other)?;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_faster_is_waited_for() {
        let rate = Rate::new(1000);
        let begin = Instant::now() + Duration::from_secs(10);
        // A tenth of a second's bytes are free after a pause; then each waits for those before it too.
        assert_eq!(rate.owed(100, begin), Duration::ZERO);
        assert_eq!(rate.owed(500, begin), Duration::from_millis(500));
        assert_eq!(rate.owed(500, begin), Duration::from_secs(1));
        assert_eq!(rate.owed(100, begin + Duration::from_secs(2)), Duration::ZERO);
        assert_eq!(Rate::new(0).owed(usize::MAX, begin), Duration::ZERO);
        assert_eq!((rate.piece(), Rate::new(10 << 20).piece()), (LEAST, 1 << 20));
    }

    #[test]
    fn a_wait_ends_when_the_job_does() {
        let (word, slow, free) = (Cancel::new(), Rate::new(1), Rate::new(0));
        let mut stream = Throttled { inner: &[0; 100_000][..], rates: [&free, &slow], word: &word };
        std::thread::scope(|scope| {
            let reading = scope.spawn(move || stream.read(&mut [0; 1000]));
            word.cancel();
            assert!(reading.join().unwrap().is_err());
        });
    }
}
