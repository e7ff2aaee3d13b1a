//! What the holder of a grant has under way that is no call: it ends with the grant all the same, also when the connection
//! through which it was begun has gone before. (With processes that were run in a container the actor does so itself:
//! `actors/tasks/src/granted.rs`.)

use cofferdam_transfer::Job;

use super::Place;

/// A job that was begun through this place.
pub fn job(place: &Place, job: &Job) {
    let Some(given) = place.held.given.clone() else { return };
    let job = job.clone();
    tokio::task::spawn_local(async move {
        tokio::select! {
            _ = job.wait() => {}
            _ = given.until_ended() => job.cancel(),
        }
    });
}
