//! What the holder of a grant has under way that is no call: it ends with the grant all the same, also when the connection
//! through which it was begun has gone before.

use cofferdam_tasks::Tasks;
use cofferdam_transfer::Job;
use cofferdam_types::{Authority, Code, Id};

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

/// A process that was run in a container through this place: whoever has its streams would go on with it otherwise. A daemon
/// that is started later sees to it by what the shim knows (`end_with_grant` in `actors/tasks/src/follow.rs`).
pub fn exec(place: &Place, id: &Id, exec: &str) {
    let Some(given) = place.held.given.clone() else { return };
    let (tasks, namespace, id, exec) =
        (place.services().tasks.clone(), place.namespace.clone(), id.clone(), exec.to_owned());
    tokio::task::spawn_local(async move {
        let ended = tokio::select! {
            _ = Tasks::wait(&tasks, &namespace, &id, &exec) => return,
            _ = given.until_ended() => tasks.kill(&namespace, &id, Authority::system(), exec.clone(), libc::SIGKILL as u32, false).await,
        };
        match ended {
            Err(error) if error.code != Code::NotFound => {
                tracing::warn!(container = %id, exec, %error, "a process outlives the grant through which it was run");
            }
            _ => {}
        }
    });
}
