//! Checkpoints, by criu: what was restored goes on at the very number at which it stood.

use cofferdam_client::{CheckpointOptions, Container, ContainerRequest, Image, Status, Task};
use cofferdam_integration::{Arrivals, until_async};

use crate::place::{Place, end, heard};

const COUNT: &str = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done";

/// The numbers that arrived, as far as their lines are whole.
fn numbers(text: &str) -> Vec<u64> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| line.parse().unwrap()).collect()
}

async fn counted(arrivals: &Arrivals) -> Vec<u64> {
    until_async("it counts", async || {
        let numbers = numbers(&String::from_utf8_lossy(&arrivals.so_far()));
        (numbers.len() > 2).then_some(numbers)
    })
    .await
}

/// A container that counts, and is checkpointed and ended: the last number that it said.
async fn checkpointed(place: &Place) -> (Container, Image, u64) {
    let container = place.container(COUNT);
    let (stdio, said) = heard();
    let task = container.create_task(stdio, false);
    task.start().await.unwrap();
    counted(&said).await;
    let image = checkpoint(place, &task, false).await;
    assert_eq!(task.wait().await.unwrap().status, 137);
    task.delete().await.unwrap();
    (container, image, *numbers(&said.text().await).last().unwrap())
}

async fn checkpoint(place: &Place, task: &Task, leave_running: bool) -> Image {
    let options = CheckpointOptions { name: "test/checkpoint".into(), leave_running, ..CheckpointOptions::default() };
    let names = task.checkpoint(&options).wait().await.unwrap();
    place.namespace.images().get(&names[0])
}

/// What goes on says the numbers behind the last one. It is ended then.
async fn goes_on(container: &Container, image: &Image, last: u64) {
    let (stdio, said) = heard();
    let task = container.create_task_from(image, stdio, false);
    task.start().await.unwrap();
    let numbers = counted(&said).await;
    assert_eq!(numbers, (last + 1..).take(numbers.len()).collect::<Vec<_>>());
    end(&task).await;
}

pub async fn checkpoint_restore(place: &Place) {
    let (container, image, last) = checkpointed(place).await;
    goes_on(&container, &image, last).await;
}

pub async fn checkpoint_restore_new_container(place: &Place) {
    let (container, image, last) = checkpointed(place).await;
    container.remove(false).await.unwrap();
    let request = ContainerRequest { id: "another".into(), checkpoint: true, ..ContainerRequest::default() };
    let container = place.namespace.containers().create(&image, &request);
    goes_on(&container, &image, last).await;
}

pub async fn checkpoint_leave_running(place: &Place) {
    let container = place.container(COUNT);
    let (stdio, said) = heard();
    let task = container.create_task(stdio, false);
    let pid = task.start().await.unwrap();
    let before = counted(&said).await.len();
    checkpoint(place, &task, true).await;
    let state = task.state().await.unwrap();
    assert_eq!((state.status, state.pid), (Status::Running, pid));
    until_async("it goes on", async || {
        (numbers(&String::from_utf8_lossy(&said.so_far())).len() > before + 2).then_some(())
    })
    .await;
    end(&task).await;
}
