//! Several daemons on one host, and what is left on it when their containers are gone.

use std::path::PathBuf;

use cofferdam_client::{ContainerRequest, Namespace, Stdio, Task};
use cofferdam_integration::{BUSYBOX, Daemon, bounded, until};
use cofferdam_sys::cgroup::{Layout, below};

async fn idle(namespace: &Namespace, image: &str) -> Task {
    let mut request = ContainerRequest { id: "box".into(), ..ContainerRequest::default() };
    request.options.args = ["sleep", "1000"].map(String::from).into();
    let container = namespace.containers().create(&namespace.images().get(image), &request);
    let task = container.create_task(Stdio::default(), true);
    task.start().await.unwrap();
    task
}

#[test]
fn daemons_side_by_side_run_containers_of_one_name() {
    let (one, two) = (Daemon::with_busybox(), Daemon::start());
    let before = one.leftovers();
    bounded(async {
        let first = one.open().await;
        let task = idle(&first, BUSYBOX).await;
        // The other daemon's namespace of the same name.
        let client = two.client().await;
        client.namespaces().create(one.namespace(), &Default::default()).await.unwrap();
        let second = client.namespace(one.namespace());
        let source = std::fs::File::open(cofferdam_integration::images().join("oci/busybox")).unwrap();
        let options = cofferdam_client::ImportOptions { name: "box".into(), ..Default::default() };
        let name = second.images().import_fd(&options, source.into()).wait().await.unwrap().remove(0);
        let twin = idle(&second, &name).await;
        let groups = cofferdam_integration::cgroups(one.namespace());
        assert_eq!(groups.iter().filter(|group| group.ends_with("/box")).count(), 2, "{groups:?}");
        twin.kill(9, true).await.unwrap();
        assert_eq!(twin.wait().await.unwrap().status, 137);
        assert_eq!(task.state().await.unwrap().status, cofferdam_client::Status::Running);
        second.containers().get("box").remove(false).await.unwrap();
        second.images().remove(&name).await.unwrap();
        first.containers().get("box").remove(true).await.unwrap();
    });
    // Of the twin too: its cgroups have the name of the first one's namespace.
    one.settles(&before);
    let empty = |dir: PathBuf| std::fs::read_dir(dir).unwrap().next().is_none();
    until("the other is tidied up too", || {
        (empty(two.state().join("tasks")) && empty(two.root().join("logs"))).then_some(())
    });
}

/// The cgroups of a daemon have one name over its restarts, and go with the last container.
#[test]
fn the_name_of_the_cgroups_stays_and_what_a_crash_left_is_tidied() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        idle(&namespace, BUSYBOX).await;
        let group = daemon.cgroup("box");
        let parent = group.trim_end_matches("/box").to_owned();
        daemon.restart();
        let namespace = daemon.open().await;
        namespace.containers().get("box").remove(true).await.unwrap();
        idle(&namespace, BUSYBOX).await;
        assert_eq!(daemon.cgroup("box"), group);
        namespace.containers().get("box").remove(true).await.unwrap();
        // At its stop nothing waits any more to be tidied up.
        daemon.stop();
        let layout = Layout::detect().unwrap();
        let instance = parent.rsplit_once('/').unwrap().0;
        assert!(below(&layout, instance).unwrap().is_empty());
        // As a crash between a container's end and the removal of what held it leaves it.
        for dir in [daemon.root().join("logs"), daemon.state().join("tasks"), daemon.state().join("runc")] {
            std::fs::create_dir_all(dir.join(daemon.namespace())).unwrap();
        }
        for hierarchy in &layout.hierarchies {
            std::fs::create_dir_all(hierarchy.root.join(parent.trim_start_matches('/'))).unwrap();
        }
        daemon.restart();
    });
    daemon.settles(&before);
}
