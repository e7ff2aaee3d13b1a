//! Containers without an image, on a directory of the host.

use std::{
    os::unix::fs::{MetadataExt as _, symlink},
    path::Path,
    process::Command,
};

use cofferdam_client::{
    BindMount, CheckpointOptions, Container, ContainerRequest, IdMap, MountSource, Namespace, Stdio,
};
use cofferdam_integration::{BUSYBOX, Daemon, bounded, images, output};
use cofferdam_types::Code;
use serde_json::json;

/// A root file system of its own, with a user whom nobody else knows behind a link that leads elsewhere on the host.
fn directory() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("rootfs-").tempdir().unwrap();
    let from = images().join("rootfs/busybox/.");
    assert!(Command::new("cp").arg("-a").args([&from, dir.path()]).status().unwrap().success());
    let etc = dir.path().join("etc");
    std::fs::write(etc.join("users"), "root:x:0:0::/root:/bin/sh\nsailor:x:4242:4343::/home/sailor:/bin/sh\n").unwrap();
    std::fs::remove_file(etc.join("passwd")).unwrap();
    symlink("/etc/users", etc.join("passwd")).unwrap();
    dir
}

fn on(namespace: &Namespace, dir: &Path, script: &str, change: impl FnOnce(&mut ContainerRequest)) -> Container {
    let mut request =
        ContainerRequest { id: "box".into(), rootfs: dir.to_str().unwrap().into(), ..ContainerRequest::default() };
    request.options.args = vec!["sh".into(), "-c".into(), script.into()];
    change(&mut request);
    namespace.containers().create_on_rootfs(&request)
}

/// Runs its task to the end and deletes that.
async fn said(container: &Container) -> String {
    let (stdout, arrivals) = output();
    let task = container.create_task(Stdio { stdout, ..Stdio::default() }, false);
    task.start().await.unwrap();
    task.wait().await.unwrap();
    task.delete().await.unwrap();
    arrivals.text().await
}

#[test]
fn a_directory_is_the_root_itself_and_stays() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let dir = directory();
    bounded(async {
        let namespace = daemon.open().await;
        for runtime in ["native", "runc"] {
            let script = "id -u; id -g; echo $HOME; cat /made; echo again >> /made";
            let container = on(&namespace, dir.path(), script, |c| {
                c.runtime = runtime.into();
                c.options.user = "sailor".into();
            });
            let info = container.info().await.unwrap();
            assert_eq!((Path::new(&info.rootfs), &*info.image, &*info.snapshot_key), (dir.path(), "", ""));
            let made = dir.path().join("made");
            std::fs::write(&made, "here\n").unwrap();
            std::os::unix::fs::chown(&made, Some(4242), None).unwrap();
            assert_eq!(said(&container).await, "4242\n4343\n/home/sailor\nhere\n", "{runtime}");
            // The same again, with what the first task left.
            assert_eq!(said(&container).await, "4242\n4343\n/home/sailor\nhere\nagain\n", "{runtime}");
            container.remove(false).await.unwrap();
            assert_eq!(std::fs::read_to_string(made).unwrap(), "here\nagain\nagain\n");
        }
    });
    daemon.settles(&before);
}

#[test]
fn the_options_are_those_of_an_image() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let dir = directory();
    bounded(async {
        let namespace = daemon.open().await;
        let script = "touch /x 2>/dev/null || echo no; cat /mnt/users | wc -l; pwd; hostname; grep -c ^Seccomp:.2 /proc/self/status";
        let container = on(&namespace, dir.path(), script, |c| {
            c.options.read_only = true;
            c.options.workdir = "/tmp".into();
            c.options.hostname = "ship".into();
            c.options.mounts = vec![BindMount {
                target: "/mnt".into(),
                source: MountSource::Host(dir.path().join("etc").to_str().unwrap().into()),
                read_only: true,
                options: Vec::new(),
            }];
        });
        assert_eq!(said(&container).await, "no\n2\n/tmp\nship\n1\n");
        container.remove(false).await.unwrap();

        // What it mounts is its own, wherever the directory lies.
        let script = "mount -t tmpfs inside /mnt && touch /mnt/inside && ls /mnt";
        let container = on(&namespace, dir.path(), script, |c| c.options.cap_add = vec!["SYS_ADMIN".into()]);
        assert_eq!(said(&container).await, "inside\n");
        assert!(!dir.path().join("mnt/inside").exists());
        container.remove(false).await.unwrap();

        // In a user namespace the files keep their ids.
        let container = on(&namespace, dir.path(), "stat -c %u:%g /etc/users; echo x > /mapped", |c| {
            c.options.userns = vec![IdMap { container: 0, host: 100_000, size: 65_536 }];
        });
        assert_eq!(said(&container).await, "0:0\n");
        assert_eq!(std::fs::metadata(dir.path().join("mapped")).unwrap().uid(), 0);
        container.remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

#[test]
fn what_is_no_root_is_refused_and_leaves_nothing() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let dir = directory();
    bounded(async {
        let namespace = daemon.open().await;
        let file = dir.path().join("etc/users");
        for (path, code, why) in [
            (Path::new("relative/root"), Code::InvalidArgument, "not absolute"),
            (Path::new("/nonexistent/root"), Code::NotFound, "make it first"),
            (&file, Code::InvalidArgument, "not a directory"),
        ] {
            let error = on(&namespace, path, "true", |_| {}).info().await.unwrap_err();
            assert_eq!((error.code, &*error.kind, Path::new(&error.id)), (code, "rootfs", path), "{error}");
            assert!(error.message.contains(why), "{error}");
        }
        let error = on(&namespace, dir.path(), "true", |c| c.options.user = "app".into()).info().await.unwrap_err();
        assert!(error.code == Code::NotFound && error.message.contains("passwd"), "{error}");
        let error = on(&namespace, dir.path(), "true", |c| c.driver = "overlay".into()).info().await.unwrap_err();
        assert!(error.code == Code::InvalidArgument && error.message.contains("snapshot driver"), "{error}");
        let error = on(&namespace, dir.path(), "true", |c| c.checkpoint = true).info().await.unwrap_err();
        assert!(error.code == Code::InvalidArgument && error.message.contains("checkpoint"), "{error}");
        let error = on(&namespace, dir.path(), "", |c| c.options.args.clear()).info().await.unwrap_err();
        assert!(error.code == Code::InvalidArgument && error.message.contains("say what to run"), "{error}");

        let request = ContainerRequest { rootfs: dir.path().to_str().unwrap().into(), ..ContainerRequest::default() };
        let image = namespace.images().get(BUSYBOX);
        let error = namespace.containers().create(&image, &request).info().await.unwrap_err();
        assert!(error.code == Code::InvalidArgument && error.message.contains("leave out one"), "{error}");
        let spec = json!({"ociVersion": "1.2.0"}).to_string();
        let error = namespace.containers().create_from_spec(None, &request, spec.as_bytes()).info().await.unwrap_err();
        assert!(error.code == Code::InvalidArgument && error.message.contains("root.path"), "{error}");
        assert!(namespace.containers().list::<&str>(&[]).all().await.unwrap().is_empty());

        // Nor is there an image that a checkpoint could be of.
        let container = on(&namespace, dir.path(), "exec sleep 1000", |_| {});
        let task = container.create_task(Stdio::default(), false);
        task.start().await.unwrap();
        let options = CheckpointOptions { name: "kept".into(), ..CheckpointOptions::default() };
        let error = task.checkpoint(&options).wait().await.unwrap_err();
        assert!(error.code == Code::FailedPrecondition && error.message.contains("without an image"), "{error}");
        container.remove(true).await.unwrap();

        // Gone since it was made.
        let away = directory();
        let container = on(&namespace, away.path(), "true", |_| {});
        container.info().await.unwrap();
        drop(away);
        let error = container.create_task(Stdio::default(), false).start().await.unwrap_err();
        assert!(error.to_string().contains("rootfs-"), "{error}");
        container.remove(false).await.unwrap();
    });
    daemon.settles(&before);
}
