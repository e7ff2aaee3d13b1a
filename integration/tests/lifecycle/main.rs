//! The life of containers, through the client library, against a real daemon.

#[test]
fn smoke() {
    let daemon = cofferdam_integration::Daemon::with_busybox();
    let before = daemon.leftovers();
    cofferdam_integration::bounded(async {
        let client = daemon.client().await;
        let mut request = daemon.run("one", ["sh", "-c", "exit 3"]);
        request.container.remove_on_exit = true;
        assert_eq!(client.run(request).unwrap().wait().await.unwrap().status, 3);
    });
    daemon.settles(&before);
}
