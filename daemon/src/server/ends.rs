//! What the holder of a grant has under way that is no call: it ends with the grant all the same, also when the connection
//! through which it was begun has gone before. (With processes that were run in a container the actor does so itself:
//! `actors/tasks/src/granted.rs`.)

use cofferdam_transfer::Job;
use cofferdam_types::Error;

use super::Place;

/// Waits until the grant of a place ends; what comes through none stays.
pub fn of(place: &Place) -> impl Future<Output = Error> + use<> {
    let given = place.held.given.clone();
    async move {
        match given {
            Some(given) => given.until_ended().await.error(),
            None => std::future::pending().await,
        }
    }
}

/// A job that was begun through this place.
pub fn job(place: &Place, job: &Job) {
    let (ended, job) = (of(place), job.clone());
    tokio::task::spawn_local(async move {
        tokio::select! {
            _ = job.wait() => {}
            _ = ended => job.cancel(),
        }
    });
}
