//! What the holder of a grant has under way that is no call: it ends with the grant all the same, also when the connection
//! through which it was begun has gone before. (With processes that were run in a container the actor does so itself:
//! `actors/tasks/src/granted.rs`.)

use std::sync::Arc;

use cofferdam_grants::Live;
use cofferdam_transfer::Job;
use cofferdam_types::Error;

use super::{Place, session::Gone};

/// Waits until the grant of a place ends, or chooses the container no more that the place is of; what comes through none stays.
pub fn of(place: &Place) -> impl Future<Output = Error> + use<> {
    let (given, gone) = (place.held.given.clone(), place.held.gone.clone());
    async move {
        match given {
            Some(given) => either(given, gone).await,
            None => std::future::pending().await,
        }
    }
}

/// Waits for the end of a grant, or of what is beside it.
pub async fn either(grant: Arc<Live>, gone: Option<Gone>) -> Error {
    let gone = async {
        match gone {
            Some(gone) => gone().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        end = grant.until_ended() => end.error(),
        why = gone => why,
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
