//! A whole run is one exchange: everything is asked before anything is answered.

use std::sync::atomic::Ordering::SeqCst;

use cofferdam_client::Client;
use cofferdam_integration::{Daemon, bounded, output};

use crate::proxy;

/// Not a byte of the daemon's reaches the client, and the container runs to its end: so connect, hello, enter, the
/// image, create, createTask, start and wait had all been sent.
#[test]
fn a_container_ends_before_the_client_has_read_a_byte() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let direct = daemon.open().await;
        let last = direct.events().last().await.unwrap();
        let filter = "topic==\"/tasks/exit\",event.container_id==\"burst\"";
        let mut events = direct.events().subscribe(last, &[filter]);

        let (path, traffic) = proxy::between(daemon.path(), daemon.socket());
        let client = Client::connect(&path).await.unwrap();
        let (stdout, arrivals) = output();
        let mut request = daemon.run("burst", ["sh", "-c", "echo ran; exit 17"]);
        request.container.remove_on_exit = true;
        request.stdio.stdout = stdout;
        let run = client.run(request).unwrap();
        let mut wait = std::pin::pin!(run.wait());
        assert!(futures::poll!(wait.as_mut()).is_pending());

        let exit = events.next().await.unwrap().unwrap();
        assert_eq!(exit.payload["exit_status"], 17);
        assert_eq!(arrivals.text().await, "ran\n");
        let asked = traffic.asked.load(SeqCst);
        assert_eq!(traffic.answered.load(SeqCst), 0, "nothing was let through");
        assert_eq!(traffic.descriptors.load(SeqCst), 1);
        assert!(futures::poll!(wait.as_mut()).is_pending(), "it can't know");

        traffic.let_go();
        assert_eq!(wait.await.unwrap().status, 17);
        println!(
            "{asked} bytes asked in one burst; {} more behind the answers, {} bytes answered",
            traffic.asked.load(SeqCst) - asked,
            traffic.answered.load(SeqCst)
        );
    });
    daemon.settles(&before);
}
