//! Signals, and who is left after them.

use cofferdam_client::{Container, Stdio, Task};
use cofferdam_integration::until_async;
use cofferdam_types::Code;

use crate::place::{Place, end, runs};

pub async fn container_kill(place: &Place) {
    let (_, task) = place.asleep().await;
    end(&task).await;
    let error = task.kill(15, false).await.unwrap_err();
    assert_eq!(error.code, Code::NotFound, "{error}");
}

/// A shell and its child in the host's pid namespace, where the end of one is not the end of the other.
async fn family(place: &Place) -> (Container, Task, Vec<u32>) {
    let container = place.with("sleep 1000; exit 0", |request| {
        request.options.namespaces = vec![("pid".into(), "host".into())];
    });
    let task = container.create_task(Stdio::default(), false);
    task.start().await.unwrap();
    let pids = until_async("shell and child are there", async || {
        let pids = task.pids().await.unwrap();
        (pids.len() == 2).then_some(pids)
    })
    .await;
    (container, task, pids)
}

pub async fn container_kill_all(place: &Place) {
    let (container, task, pids) = family(place).await;
    task.kill(9, true).await.unwrap();
    assert_eq!(task.wait().await.unwrap().status, 137);
    until_async("both end", async || (!pids.iter().any(|pid| runs(*pid))).then_some(())).await;
    container.remove(false).await.unwrap();
}

pub async fn container_kill_init_pid_host(place: &Place) {
    let (container, task, pids) = family(place).await;
    end(&task).await;
    until_async("no orphan is left", async || (!pids.iter().any(|pid| runs(*pid))).then_some(())).await;
    task.delete().await.unwrap();
    container.remove(false).await.unwrap();
}
