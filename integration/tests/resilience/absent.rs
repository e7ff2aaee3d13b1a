//! Who makes a container that goes with its task, and goes before the task has started.

use cofferdam_client::{Client, ContainerRequest, Status, Stdio, block_on};
use cofferdam_integration::{BUSYBOX, Daemon, bounded};
use cofferdam_types::Code;

fn goes_with_its_task(id: &str) -> ContainerRequest {
    let mut request = ContainerRequest { id: id.into(), remove_on_exit: true, ..ContainerRequest::default() };
    request.options.args = ["sleep", "1000"].map(String::from).into();
    request
}

/// Makes them on a connection that ends with this: `bare` without a task, `made` with one.
fn make_and_go(daemon: &Daemon, stopped: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let maker = scope.spawn(|| {
            block_on(async {
                let namespace = Client::connect(daemon.socket()).await.unwrap().namespace(daemon.namespace());
                let (containers, image) = (namespace.containers(), namespace.images().get(BUSYBOX));
                containers.create(&image, &goes_with_its_task("bare")).info().await.unwrap();
                let task = containers.create(&image, &goes_with_its_task("made")).create_task(Stdio::default(), true);
                assert_eq!(task.state().await.unwrap().status, Status::Created);
                stopped();
            })
            .unwrap();
        });
        maker.join().unwrap();
    });
}

#[test]
fn what_was_not_started_goes_with_its_maker() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let here = daemon.open().await;
        let (containers, image) = (here.containers(), here.images().get(BUSYBOX));
        let stays = containers.create(&image, &goes_with_its_task("stays"));
        stays.info().await.unwrap();
        make_and_go(&daemon, || ());
        // Somebody who is there takes this one over, and has all the time that he wants.
        let task = containers.get("bare").create_task(Stdio::default(), false);
        task.state().await.unwrap();
        containers.get("made").removed().await.unwrap();
        // A crash of the actor doesn't make it forget who is there.
        make_and_go_bare(&daemon, "again");
        daemon.client().await.system().crash("tasks").await.unwrap();
        until_gone(&daemon, "again").await;
        for container in [stays.create_task(Stdio::default(), false), task] {
            container.start().await.unwrap();
        }
        for id in ["stays", "bare"] {
            containers.get(id).remove(true).await.unwrap();
        }
    });
    daemon.settles(&before);
}

fn make_and_go_bare(daemon: &Daemon, id: &str) {
    std::thread::scope(|scope| {
        let maker = scope.spawn(|| {
            block_on(async {
                let namespace = Client::connect(daemon.socket()).await.unwrap().namespace(daemon.namespace());
                let container =
                    namespace.containers().create(&namespace.images().get(BUSYBOX), &goes_with_its_task(id));
                container.info().await.unwrap();
            })
            .unwrap();
        });
        maker.join().unwrap();
    });
}

async fn until_gone(daemon: &Daemon, id: &str) {
    let containers = daemon.open().await.containers();
    loop {
        match containers.get(id).removed().await {
            Ok(()) => return,
            Err(error) if error.code == Code::NotFound => return,
            Err(error) => assert_eq!(error.code, Code::Unavailable, "{error}"),
        }
    }
}

#[test]
fn what_was_not_started_goes_though_the_daemon_went_first() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    make_and_go(&daemon, || daemon.kill9());
    daemon.restart();
    bounded(async {
        for id in ["bare", "made"] {
            until_gone(&daemon, id).await;
        }
    });
    daemon.settles(&before);
}
