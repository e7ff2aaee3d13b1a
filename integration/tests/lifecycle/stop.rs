//! What asks a container to end.

use std::fs::File;

use cofferdam_client::{ContainerRequest, ImportOptions, Stdio};
use cofferdam_integration::{Daemon, bounded, images, output};

use crate::{container, with};

/// The image's `user` asks for SIGUSR1.
const TRAPS: &str = "trap 'exit 7' TERM; trap 'exit 8' USR1; sleep 1000 & echo ready; wait";

#[test]
fn the_signal_of_the_image_is_kept_with_the_container() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let source = File::open(images().join("oci/user")).unwrap();
        let options = ImportOptions { name: "test/user".into(), ..ImportOptions::default() };
        let name = namespace.images().import_fd(&options, source.into()).wait().await.unwrap().remove(0);
        let mut request = ContainerRequest { id: "usr1".into(), ..ContainerRequest::default() };
        request.options.entrypoint = Some(Vec::new());
        request.options.args = ["sh", "-c", TRAPS].map(String::from).into();
        let usr1 = namespace.containers().create(&namespace.images().get(&name), &request);
        assert_eq!(usr1.info().await.unwrap().stop_signal, 10);
        let term = container(&namespace, "term", TRAPS);
        assert_eq!(term.info().await.unwrap().stop_signal, 15);
        // What becomes of the image later is no matter.
        namespace.images().remove(&name).await.unwrap();
        for (container, status) in [(&usr1, 8), (&term, 7)] {
            let (stdout, arrivals) = output();
            let task = container.create_task(Stdio { stdout, ..Stdio::default() }, false);
            task.start().await.unwrap();
            arrivals.contains("ready").await;
            let id = container.info().await.unwrap().id;
            let stopped = daemon.coffer(&["stop", &id]);
            assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
            assert_eq!(task.wait().await.unwrap().status, status);
        }
    });
}

/// What stands still takes the signal when it goes on; what has not begun takes none, and is not waited for.
#[test]
fn what_is_paused_is_asked_and_what_has_not_begun_ends_at_once() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        for runtime in ["native", "runc"] {
            let paused = with(&namespace, "paused", TRAPS, |c| c.runtime = runtime.into());
            let (stdout, arrivals) = output();
            let task = paused.create_task(Stdio { stdout, ..Stdio::default() }, false);
            task.start().await.unwrap();
            arrivals.contains("ready").await;
            task.pause().await.unwrap();
            let created = with(&namespace, "created", TRAPS, |c| c.runtime = runtime.into());
            let made = created.create_task(Stdio::default(), false);
            made.state().await.unwrap();
            // Far longer than this test may take.
            let stopped = daemon.coffer(&["stop", "-t", "1000", "paused", "created"]);
            assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
            assert_eq!(task.wait().await.unwrap().status, 7, "{runtime}");
            assert_eq!(made.wait().await.unwrap().status, 137, "{runtime}");
            paused.remove(false).await.unwrap();
            created.remove(false).await.unwrap();
        }
    });
    daemon.settles(&before);
}
