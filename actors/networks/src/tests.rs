//! Plugins that are scripts, in real network namespaces, around crashes.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use cofferdam_kernel::{Kernel, Placement};
use cofferdam_metadata::{
    Metadata,
    records::attachments::{self, Stage},
};
use cofferdam_net::{Plugins, Port, Protocol, Wish};
use cofferdam_types::{Authority, Code, Id, Namespace};

use crate::{Attach, Config, Networks};

const DEADLINE: Duration = Duration::from_secs(20);
const SHARED: Placement = Placement::Shared("test");

struct World {
    dir: tempfile::TempDir,
    kernel: Kernel,
    metadata: Metadata,
    networks: Networks,
}

/// Starts the actors on what lies in `dir`.
async fn actors(dir: &Path) -> (Kernel, Metadata, Networks) {
    let kernel = Kernel::new().unwrap();
    let metadata = Metadata::start(&kernel, Placement::Own, &dir.join("meta.redb")).unwrap();
    let plugins = Plugins { dirs: vec![dir.join("bin")], deadline: Duration::from_secs(2) };
    let config = Config { configs: dir.join("net.d"), plugins, pins: dir.join("netns") };
    let networks = Networks::start(&kernel, SHARED, metadata.clone(), config).unwrap();
    kernel.ready().await.unwrap();
    (kernel, metadata, networks)
}

impl World {
    /// One network, `net`, whose plugin notes its calls, fails for as long as `fail-<command>` is there, and hangs for as
    /// long as `hang-<command>` is.
    async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        for name in ["bin", "net.d"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let conf =
            r#"{"cniVersion":"1.0.0","name":"net","type":"plug","capabilities":{"portMappings":true,"ips":true}}"#;
        std::fs::write(dir.path().join("net.d/net.conf"), conf).unwrap();
        let at = dir.path().display();
        let script = format!(
            "#!/bin/sh\ncd {at}\ncat > input\n[ -s /proc/self/ns/net ]\necho $CNI_COMMAND $CNI_CONTAINERID >> log\n\
             [ -e hang-$CNI_COMMAND ] && exec sleep 1000\n\
             [ -e needs-nsfs -a -n \"$CNI_NETNS\" ] && ! nsenter --net=\"$CNI_NETNS\" true && exit 1\n\
             [ -e fail-$CNI_COMMAND ] && {{ echo '{{\"code\":7,\"msg\":\"as told\"}}'; exit 1; }}\n\
             [ $CNI_COMMAND = ADD ] && echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.1.0.2/16\"}}]}}'\nexit 0\n"
        );
        // Written by somebody else: a descriptor of ours that a program started meanwhile inherits would keep it from
        // being executed.
        let mut write = Command::new("sh");
        write.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(dir.path().join("bin/plug")).stdin(Stdio::piped());
        let mut writer = write.spawn().unwrap();
        writer.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
        let (kernel, metadata, networks) = actors(dir.path()).await;
        World { dir, kernel, metadata, networks }
    }

    /// A daemon that ended, and the next one.
    async fn again(self) -> World {
        let World { dir, kernel, metadata, networks } = self;
        kernel.stop().await;
        drop((metadata, networks));
        let (kernel, metadata, networks) = actors(dir.path()).await;
        World { dir, kernel, metadata, networks }
    }

    fn touch(&self, name: &str) {
        std::fs::write(self.dir.path().join(name), "").unwrap();
    }

    fn rm(&self, name: &str) {
        std::fs::remove_file(self.dir.path().join(name)).unwrap();
    }

    fn pin(&self, id: &str) -> PathBuf {
        self.dir.path().join("netns").join(id)
    }

    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn stage(&self, id: &str) -> Option<Stage> {
        attachments::find(&self.metadata.read().unwrap(), id).unwrap().map(|a| a.stage)
    }

    async fn attach(&self, id: &str, wish: Wish) -> cofferdam_types::Result<crate::Connected> {
        let (namespace, container) = (Namespace::default_namespace(), Id::new(format!("of-{id}")).unwrap());
        let id = Id::new(id).unwrap();
        let network = "net".to_owned();
        let authority = Authority::system();
        self.networks.attach(Attach { authority, id, namespace, container, network, wish }).await
    }

    async fn give_up(&self, id: &str) {
        self.networks.give_up(vec![Id::new(id).unwrap()]).await;
    }

    /// Waits until an attachment is gone, with its namespace.
    async fn gone(&self, id: &str) {
        let end = Instant::now() + DEADLINE;
        while self.stage(id).is_some() || self.pin(id).exists() {
            assert!(Instant::now() < end, "{id} is still there: {:?}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn run(test: impl Future<Output = ()>) {
    actix_rt::System::new().block_on(test);
}

fn port(host_port: u16) -> Wish {
    let port = Port { host_port, container_port: 80, protocol: Protocol::Tcp, host_ip: None };
    Wish { ports: vec![port], ..Wish::default() }
}

#[test]
fn what_is_connected_is_disconnected() {
    run(async {
        let world = World::new().await;
        let connected = world.attach("one", port(80)).await.unwrap();
        assert_eq!(
            (&connected.netns, &*connected.outcome.addresses),
            (&world.pin("one"), &["10.1.0.2/16".to_owned()][..])
        );
        assert_eq!(world.stage("one"), Some(Stage::Attached));
        let view = world.metadata.read().unwrap();
        assert_eq!(world.networks.connected(&view, &Id::new("one").unwrap()).unwrap(), Some(connected));
        assert_eq!(world.networks.orphans().unwrap(), [Id::new("one").unwrap()], "no task has it");
        world.give_up("one").await;
        assert_eq!(world.log(), ["ADD one", "DEL one"]);
        assert!(world.stage("one").is_none() && !world.pin("one").exists());
        world.give_up("one").await;
        assert_eq!(world.log().len(), 2);
        world.kernel.stop().await;
    });
}

#[test]
fn an_add_that_fails_has_its_del() {
    run(async {
        let world = World::new().await;
        world.touch("fail-ADD");
        let error = world.attach("one", Wish::default()).await.unwrap_err();
        assert_eq!((error.code, &*error.kind), (Code::FailedPrecondition, "plugin"), "{error}");
        assert!(error.message.contains("as told"), "{error}");
        world.gone("one").await;
        assert_eq!(world.log(), ["ADD one", "DEL one"]);
        world.kernel.stop().await;
    });
}

#[test]
fn a_plugin_that_hangs_holds_up_nobody_else() {
    run(async {
        let world = World::new().await;
        world.touch("hang-ADD");
        let mut hangs = std::pin::pin!(world.attach("one", Wish::default()));
        let end = Instant::now() + DEADLINE;
        while world.log().is_empty() {
            assert!(tokio::time::timeout(Duration::from_millis(5), &mut hangs).await.is_err() && Instant::now() < end);
        }
        world.rm("hang-ADD");
        world.attach("two", Wish::default()).await.unwrap();
        assert_eq!(world.stage("one"), Some(Stage::Attaching), "it hangs still");
        let error = hangs.await.unwrap_err();
        assert_eq!((error.code, &*error.kind), (Code::DeadlineExceeded, "plugin"));
        world.gone("one").await;
        world.give_up("two").await;
        assert_eq!(world.log(), ["ADD one", "ADD two", "DEL one", "DEL two"]);
        world.kernel.stop().await;
    });
}

#[test]
fn a_del_that_fails_is_done_again() {
    run(async {
        let world = World::new().await;
        world.attach("one", Wish::default()).await.unwrap();
        world.touch("fail-DEL");
        world.give_up("one").await;
        assert_eq!(world.stage("one"), Some(Stage::Releasing));
        assert!(world.pin("one").exists(), "what DEL needs is kept");
        world.rm("fail-DEL");
        world.gone("one").await;
        // Also by the next daemon.
        world.attach("two", Wish::default()).await.unwrap();
        world.touch("fail-DEL");
        world.give_up("two").await;
        let world = world.again().await;
        world.rm("fail-DEL");
        world.gone("two").await;
        assert_eq!(world.log().last().unwrap(), "DEL two");
        world.kernel.stop().await;
    });
}

#[test]
fn a_daemon_that_died_between_add_and_its_record_is_made_up_for() {
    run(async {
        let world = World::new().await;
        world.touch("hang-ADD");
        let mut hangs = Box::pin(world.attach("one", Wish::default()));
        let end = Instant::now() + DEADLINE;
        while world.log().is_empty() {
            assert!(tokio::time::timeout(Duration::from_millis(5), &mut hangs).await.is_err() && Instant::now() < end);
        }
        // Nobody waits for it any more, and nobody will hear of its end.
        drop(hangs);
        world.rm("hang-ADD");
        let world = world.again().await;
        assert_eq!(world.stage("one"), Some(Stage::Attaching));
        assert_eq!(world.networks.orphans().unwrap(), [Id::new("one").unwrap()]);
        world.give_up("one").await;
        world.gone("one").await;
        assert_eq!(world.log(), ["ADD one", "DEL one"]);
        world.kernel.stop().await;
    });
}

#[test]
fn what_the_host_forgot_is_released_all_the_same() {
    run(async {
        let world = World::new().await;
        world.attach("one", Wish::default()).await.unwrap();
        // A reboot: the state directory is gone, and what was mounted there.
        cofferdam_sys::network::unpin(&world.pin("one")).unwrap();
        std::fs::remove_dir(world.dir.path().join("netns")).unwrap();
        // A namespace that no row knows is nobody's.
        let world = world.again().await;
        world.give_up("one").await;
        world.gone("one").await;
        assert_eq!(world.log(), ["ADD one", "DEL one"]);
        cofferdam_sys::network::pin(&world.pin("stray")).unwrap();
        let world = world.again().await;
        world.gone("stray").await;
        world.kernel.stop().await;
    });
}

#[test]
fn a_port_of_the_host_is_given_once() {
    run(async {
        let world = World::new().await;
        world.attach("one", port(80)).await.unwrap();
        let error = world.attach("two", port(80)).await.unwrap_err();
        assert_eq!((error.code, &*error.kind, &*error.id), (Code::AlreadyExists, "port", "80/tcp"));
        assert!(error.message.contains("container of-one"), "{error}");
        world.attach("three", port(81)).await.unwrap();
        let address = || Wish { addresses: vec!["10.1.0.9".into()], ..Wish::default() };
        world.attach("four", address()).await.unwrap();
        let error = world.attach("five", address()).await.unwrap_err();
        assert_eq!((error.code, &*error.kind, &*error.id), (Code::AlreadyExists, "address", "10.1.0.9"));
        assert_eq!(world.log().len(), 3, "nothing was run for those that were refused");
        // However it is written.
        let address = |text: &str| Wish { addresses: vec![text.into()], ..Wish::default() };
        world.attach("six", address("fd00::3/64")).await.unwrap();
        for text in ["fd00:0::3", "FD00::3/128", "fd00:0:0:0:0:0:0:3"] {
            let error = world.attach("seven", address(text)).await.unwrap_err();
            assert_eq!((error.code, &*error.kind, &*error.id), (Code::AlreadyExists, "address", text));
        }
        world.attach("eight", address("fd00::4")).await.unwrap();
        // One that is just being taken away is waited for.
        world.touch("fail-DEL");
        world.give_up("one").await;
        let mut waits = std::pin::pin!(world.attach("two", port(80)));
        assert!(tokio::time::timeout(Duration::from_millis(100), &mut waits).await.is_err());
        world.rm("fail-DEL");
        waits.await.unwrap();
        for id in ["two", "three", "four", "six", "eight"] {
            world.give_up(id).await;
        }
        world.kernel.stop().await;
    });
}

#[test]
fn what_is_not_configured_or_not_installed_is_named() {
    run(async {
        let world = World::new().await;
        world.rm("bin/plug");
        let error = world.attach("one", Wish::default()).await.unwrap_err();
        assert_eq!((error.code, &*error.kind, &*error.id), (Code::FailedPrecondition, "plugin", "plug"));
        world.rm("net.d/net.conf");
        let error = world.attach("two", Wish::default()).await.unwrap_err();
        assert_eq!((error.code, &*error.kind, &*error.id), (Code::NotFound, "network", "net"));
        // The DEL of the first waits for its plugin to come back.
        assert_eq!((world.stage("one"), world.stage("two")), (Some(Stage::Releasing), None));
        cofferdam_sys::network::unpin(&world.pin("one")).unwrap();
        world.kernel.stop().await;
    });
}

/// SIGKILL between the two steps of a pin: what is there is no namespace, and DEL is not told of one.
#[test]
fn a_namespace_that_was_half_made_is_released() {
    run(async {
        let world = World::new().await;
        world.touch("hang-ADD");
        let mut hangs = Box::pin(world.attach("one", port(80)));
        let end = Instant::now() + DEADLINE;
        while world.log().is_empty() {
            assert!(tokio::time::timeout(Duration::from_millis(5), &mut hangs).await.is_err() && Instant::now() < end);
        }
        drop(hangs);
        let world = world.again().await;
        let pin = world.pin("one");
        cofferdam_sys::network::unpin(&pin).unwrap();
        std::fs::write(&pin, "").unwrap();
        world.touch("needs-nsfs");
        world.give_up("one").await;
        world.gone("one").await;
        // What it had is free.
        world.rm("hang-ADD");
        world.attach("two", port(80)).await.unwrap();
        world.give_up("two").await;
        world.kernel.stop().await;
    });
}

/// As many as there are threads.
#[test]
fn a_network_whose_plugins_hang_leaves_room_for_others() {
    run(async {
        let world = World::new().await;
        let conf = std::fs::read_to_string(world.dir.path().join("net.d/net.conf")).unwrap();
        std::fs::write(world.dir.path().join("net.d/other.conf"), conf.replace("\"net\"", "\"other\"")).unwrap();
        let request = |id: &str, network: &str| Attach {
            authority: Authority::system(),
            id: Id::new(id).unwrap(),
            namespace: Namespace::default_namespace(),
            container: Id::new(format!("of-{id}")).unwrap(),
            network: network.to_owned(),
            wish: Wish::default(),
        };
        world.touch("hang-ADD");
        let ids: Vec<_> = (0..crate::handle::THREADS).map(|n| format!("hangs{n}")).collect();
        let mut hang = Vec::new();
        for id in &ids {
            let (networks, request) = (world.networks.clone(), request(id, "net"));
            hang.push(actix_rt::spawn(async move { networks.attach(request).await }));
        }
        let end = Instant::now() + DEADLINE;
        while world.log().len() < crate::attach::SHARE {
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert!(Instant::now() < end, "{:?}", world.log());
        }
        world.rm("hang-ADD");
        world.networks.attach(request("other", "other")).await.unwrap();
        assert!(!hang.iter().any(|attach| attach.is_finished()), "those hang still");
        world.give_up("other").await;
        // They come to their deadline, or to their turn.
        for (attach, id) in hang.into_iter().zip(&ids) {
            let _ = attach.await.unwrap();
            world.give_up(id).await;
            world.gone(id).await;
        }
        world.kernel.stop().await;
    });
}

/// Puts what is no attachment in the place of the row of this id.
fn spoil(dir: &Path, id: &str) {
    let database = redb::Database::open(dir.join("meta.redb")).unwrap();
    let write = database.begin_write().unwrap();
    {
        let table = redb::TableDefinition::<&[u8], &[u8]>::new("attachments");
        let mut table = write.open_table(table).unwrap();
        assert!(table.insert(id.as_bytes(), &b"\xff"[..]).unwrap().is_some(), "{id} was there");
    }
    write.commit().unwrap();
}

#[test]
fn a_row_that_cant_be_read_keeps_its_namespace_and_stands_in_nobodys_way() {
    run(async {
        let world = World::new().await;
        world.attach("a", port(80)).await.unwrap();
        world.attach("b", port(81)).await.unwrap();
        world.attach("c", Wish::default()).await.unwrap();
        world.touch("fail-DEL");
        world.give_up("c").await;
        let World { dir, kernel, metadata, networks } = world;
        kernel.stop().await;
        drop((kernel, metadata, networks));
        spoil(dir.path(), "b");
        std::fs::remove_file(dir.path().join("fail-DEL")).unwrap();
        cofferdam_sys::network::pin(&dir.path().join("netns/stray")).unwrap();
        let (kernel, metadata, networks) = actors(dir.path()).await;
        let world = World { dir, kernel, metadata, networks };
        // What was to be undone is, and what nobody has is swept.
        world.gone("c").await;
        world.gone("stray").await;
        assert!(world.pin("b").exists(), "it may be a running container's");
        assert_eq!(world.networks.orphans().unwrap(), [Id::new("a").unwrap()]);
        let error = world.attach("d", port(80)).await.unwrap_err();
        assert_eq!((error.code, &*error.kind, &*error.id), (Code::AlreadyExists, "port", "80/tcp"));
        world.attach("e", port(82)).await.unwrap();
        for id in ["a", "e"] {
            world.give_up(id).await;
            world.gone(id).await;
        }
        world.kernel.stop().await;
        cofferdam_sys::network::unpin(&world.pin("b")).unwrap();
    });
}
