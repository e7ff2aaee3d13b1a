//! Gives memory back once the daemon has become quiet.
//!
//! The allocator keeps what was freed for the next one who asks: after a thousand connections that is most of an idle
//! daemon. While anything happens nothing is given back, and a daemon that idles is not woken for this.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use cofferdam_kernel::Pool;
use tokio::sync::Notify;

/// How long nothing must have happened.
const QUIET: Duration = Duration::from_secs(2);

/// Hears that something happens, from any thread.
#[derive(Debug, Default)]
pub struct Quiet {
    stirs: AtomicU64,
    /// Whether the watch waits for the next stir.
    asleep: AtomicBool,
    wake: Notify,
}

impl Quiet {
    /// Something happened that may have taken memory, or left some free.
    pub fn stir(&self) {
        self.stirs.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    /// Calls `settled` each time that something has happened and then nothing for a while. Never returns.
    pub async fn watch(&self, settled: impl AsyncFn()) {
        let mut seen = self.stirs.load(Ordering::SeqCst);
        loop {
            self.asleep.store(true, Ordering::SeqCst);
            if self.stirs.load(Ordering::SeqCst) == seen {
                self.wake.notified().await;
            }
            self.asleep.store(false, Ordering::SeqCst);
            loop {
                seen = self.stirs.load(Ordering::SeqCst);
                tokio::time::sleep(QUIET).await;
                if self.stirs.load(Ordering::SeqCst) == seen {
                    break;
                }
            }
            settled().await;
        }
    }
}

/// Gives the memory back, on a thread of the pool: it takes a lock of the allocator.
pub async fn trim(pool: &Pool) {
    let trim = || {
        cofferdam_sys::memory::trim();
        Ok(())
    };
    // A pool with no room has no quiet daemon around it: there will be another time.
    let _ = pool.run(trim).await;
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc, sync::Arc};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_settles_once_after_each_time_of_work() {
        let local = tokio::task::LocalSet::new();
        let quiet = Arc::new(Quiet::default());
        let settled = Rc::new(Cell::new(0));
        let (watched, count) = (quiet.clone(), settled.clone());
        local.spawn_local(async move { watched.watch(async || count.set(count.get() + 1)).await });
        local
            .run_until(async {
                let after = async |millis| tokio::time::sleep(Duration::from_millis(millis)).await;
                after(60_000).await;
                assert_eq!(settled.get(), 0, "nothing happened");
                for _ in 0..10 {
                    quiet.stir();
                    after(1500).await;
                }
                assert_eq!(settled.get(), 0, "it is not quiet yet");
                after(5000).await;
                assert_eq!(settled.get(), 1);
                after(60_000).await;
                assert_eq!(settled.get(), 1, "nothing has happened since");
                quiet.stir();
                after(5000).await;
                assert_eq!(settled.get(), 2);
            })
            .await;
    }
}
