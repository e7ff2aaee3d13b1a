//! How registries are reached: the operator's table of hosts, what is stored for them, docker's config file, and proxies.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    process::{Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use cofferdam_client::{
    ContainerRequest, CredentialInfo, CredentialKind, GrantOptions, PullOptions, PushOptions, Secret,
};
use cofferdam_integration::{Daemon, bounded};
use cofferdam_types::Code;
use serde_json::Value;

use crate::support::{
    craft::Picture,
    server::{Response, Server, serve_picture},
    world::{Registry, World},
};

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A registry's directory in the table.
fn dir_of(host: &str) -> String {
    format!("{}_", host.replace(':', "_"))
}

async fn store(world: &World, host: &str, user: &str, secret: &str) {
    let info = CredentialInfo { host: host.into(), user: user.into(), ..CredentialInfo::default() };
    world.ns.credentials().put(&info, &Secret(secret.into())).await.unwrap();
}

#[test]
fn a_mirror_is_pulled_from_and_the_registry_itself_is_not_asked() {
    bounded(async {
        let registry = Registry::start(&[], &["busybox"]);
        let world = World::with(Daemon::start()).await;
        let host = |text: &str| world.daemon.set_hosts("registry.invalid", text);
        host(&format!("[host.\"http://127.0.0.1:1\"]\n[host.\"{}\"]\n", registry.address));
        let before = world.holdings().await;
        // It has no such image, and the name leads nowhere: nobody says that the registry itself may be asked (D7).
        let job = world.pull("registry.invalid/nothing:1");
        let error = world.refused("not there", &before, job, Code::NotFound, "check the name").await;
        assert!(error.message.contains("(before that: 127.0.0.1:1 cannot be reached"), "{error}");
        // The second is asked since the first is dead. What is pulled has the name that was asked for.
        let names = world.pull("registry.invalid/busybox:latest").wait().await.unwrap();
        assert_eq!(names, ["registry.invalid/busybox:latest"]);
        assert_eq!(world.run(&names[0], &["echo", "hi"]).await.unwrap(), (0, "hi\n".into()));
        let log = world.daemon.log();
        assert!(log.contains("the next host of the route is asked"), "it isn't silent: {log}");
        // A change of the table counts from the next pull on, and what can't be read is said with its line.
        host("server = \"https://registry.invalid\"\nskip-verify = true\n");
        let error = world.pull("registry.invalid/busybox:latest").wait().await.unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition);
        assert!(
            error.id.ends_with("registry.invalid/hosts.toml:2") && error.message.contains("skip-verify"),
            "{error}"
        );
    });
}

#[test]
fn the_way_is_explained_and_nobody_is_asked() {
    bounded(async {
        let world = World::with(Daemon::with_variables(&[
            ("HTTPS_PROXY", "http://me:proxys-own@127.0.0.1:9"),
            ("NO_PROXY", "registry.invalid"),
        ]))
        .await;
        let server = Server::start(|_| Response::new(500, ""));
        let text = format!(
            "server = \"https://registry.invalid\"\nca = \"own.crt\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n\
             [host.\"https://second.invalid:5000\"]\nskip_verify = true\n[host.\"https://second.invalid:5000\".header]\n\
             authorization = \"Bearer headers-own\"\n",
            server.address()
        );
        world.daemon.set_hosts("registry.invalid", &text);
        store(&world, "registry.invalid", "me", "stored-one").await;
        let report = world.ns.images().explain_route("registry.invalid/team/app").await.unwrap();
        assert_eq!(report.reference, "registry.invalid/team/app:latest");
        let shown: Vec<_> = report
            .steps
            .iter()
            .map(|step| (step.host.as_str(), step.credential.as_str(), step.proxy.as_str(), step.own, step.unverified))
            .collect();
        let mirror = format!("http://{}/v2", server.address());
        let want = [
            (mirror.as_str(), "none", "", false, false),
            ("https://second.invalid:5000/v2", "file", "http://127.0.0.1:9", false, true),
            ("https://registry.invalid/v2", "stored", "", true, false),
        ];
        assert_eq!(shown, want);
        assert!(report.steps[0].when.contains("only for what a digest names"), "{report:?}");
        assert!(report.steps[1].when.contains("not where that refuses"), "{report:?}");
        assert!(report.steps[2].tls[0].ends_with("registry.invalid/own.crt"), "{report:?}");
        assert!(report.files[0].ends_with("registry.invalid/hosts.toml"), "{report:?}");

        let text = said(&world.daemon.coffer(&["image", "explain-route", "registry.invalid/team/app"]));
        for word in
            ["1. ", "it is asked first", "what is stored for it", "not verified", "by the proxy: http://127.0.0.1:9"]
        {
            assert!(text.contains(word), "{word}: {text}");
        }
        let json: Value =
            serde_json::from_str(&said(&world.daemon.coffer(&["-o", "json", "image", "explain-route", "redis"])))
                .unwrap();
        assert_eq!(json["steps"][0]["host"], "https://registry-1.docker.io/v2");
        assert_eq!(json["steps"][0]["proxy"], "http://127.0.0.1:9");
        for secret in ["proxys-own", "headers-own", "stored-one"] {
            assert!(
                !text.contains(secret)
                    && !format!("{report:?}").contains(secret)
                    && !world.daemon.log().contains(secret)
            );
        }
        assert!(server.seen().is_empty());
    });
}

#[test]
fn what_is_stored_is_shown_to_its_host_alone_and_cant_be_read_again() {
    bounded(async {
        let registry = Registry::start(&["--tls", "--user", "me:hunter22"], &["busybox"]);
        let mut world = World::with(Daemon::start()).await;
        let (host, name) = (registry.host().to_owned(), registry.reference("busybox"));
        world.daemon.set_hosts(&dir_of(&host), "ca = \"ca.crt\"");
        std::fs::write(world.daemon.hosts().join(dir_of(&host)).join("ca.crt"), registry.authority()).unwrap();
        let before = world.holdings().await;
        world.refused("nothing is stored", &before, world.pull(&name), Code::Denied, "give a user and a secret").await;

        let mut login = world.daemon.command();
        let child =
            login.args(["login", "-u", "me", "--password-stdin", &host]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = child.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"hunter22\n").unwrap();
        assert_eq!(said(&child.wait_with_output().unwrap()), format!("{host}\n"));
        world.pull(&name).wait().await.unwrap();
        let pushed = PushOptions { reference: registry.reference("mine:1"), ..PushOptions::default() };
        world.ns.images().get(&name).push(&pushed).wait().await.unwrap();

        // It lasts, and nowhere stands what it is.
        world.daemon.kill9();
        world.daemon.restart();
        world.connect().await;
        world.ns.images().remove(&name).await.unwrap();
        world.pull(&name).wait().await.unwrap();
        let info = world.ns.credentials().get(&host).await.unwrap();
        assert_eq!((info.host.as_str(), info.user.as_str(), info.kind), (&*host, "me", CredentialKind::Password));
        let listed = said(&world.daemon.coffer(&["-o", "json", "credential", "ls"]));
        assert!(listed.contains(&host) && !listed.contains("hunter22"), "{listed}");
        let told = said(&world.daemon.coffer(&["-o", "json", "audit"]));
        assert!(told.contains("Credentials.put") && told.contains(&format!("credential/{host}")), "{told}");
        assert!(!told.contains("hunter22"));
        assert!(!world.daemon.log().contains("hunter22") && !world.daemon.log().contains("bWU6aHVudGVyMjI="));
        let tables = std::fs::metadata(world.daemon.root().join("meta.redb")).unwrap();
        assert_eq!(tables.permissions().mode() & 0o777, 0o600);

        // A caller's way is none for it: whoever answers there may be anybody.
        let away = |options: PullOptions| world.ns.images().pull(&PullOptions { reference: name.clone(), ..options });
        let anybody = Registry::start(&["--tls"], &[]);
        let mine = [registry.authority(), anybody.authority()].concat();
        let error = away(PullOptions { ca_certificates: mine, ..PullOptions::default() }).wait().await.unwrap_err();
        assert_eq!(error.code, Code::Denied);
        assert!(error.message.contains("what is stored for it isn't shown"), "{error}");

        // Another registry gets nothing of it, nor does the same host at another port.
        let other = Server::start(|_| Response::new(401, "{}").with("www-authenticate", "Basic realm=x"));
        let error = world.pull(&other.reference()).wait().await.unwrap_err();
        assert_eq!(error.code, Code::Denied);
        assert!(other.seen().iter().all(|seen| !seen.headers.contains_key("authorization")), "D1");

        assert_eq!(said(&world.daemon.coffer(&["logout", &host])), format!("{host}\n"));
        world.ns.images().remove(&name).await.unwrap();
        let error = world.pull(&name).wait().await.unwrap_err();
        assert_eq!(error.code, Code::Denied, "{error}");
        assert_eq!(world.daemon.coffer(&["logout", &host]).status.code(), Some(1));
    });
}

#[test]
fn credentials_are_a_namespaces_own_and_go_with_it() {
    bounded(async {
        let world = World::with(Daemon::start()).await;
        let (first, second) = ("h.invalid", "z.invalid:5000");
        store(&world, second, "me", "secret-two").await;
        store(&world, first, "me", "secret-one").await;
        let credentials = world.ns.credentials();
        let hosts = |list: Vec<CredentialInfo>| list.into_iter().map(|info| info.host).collect::<Vec<_>>();
        assert_eq!(hosts(credentials.list().all().await.unwrap()), [first, second]);
        // Replaced, by its one name.
        let info = CredentialInfo { host: "H.invalid".into(), kind: CredentialKind::Identity, ..Default::default() };
        credentials.put(&info, &Secret("token".into())).await.unwrap();
        let found = credentials.get(first).await.unwrap();
        assert_eq!((found.user.as_str(), found.kind), ("", CredentialKind::Identity));
        for (host, user, secret) in [
            ("https://h.invalid", "me", "x"),
            ("h.invalid/team", "me", "x"),
            ("h.invalid", "", "x"),
            ("h.invalid", "me:too", "x"),
            ("h.invalid", "me", ""),
            ("h.invalid", "me", "a\nb"),
        ] {
            let info = CredentialInfo { host: host.into(), user: user.into(), ..CredentialInfo::default() };
            let error = credentials.put(&info, &Secret(secret.into())).await.unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument, "{host} {user}: {error}");
        }
        world.client.namespaces().create("beside", &Default::default()).await.unwrap();
        let beside = world.client.namespace("beside");
        assert!(beside.credentials().list().all().await.unwrap().is_empty());
        assert_eq!(beside.credentials().get(first).await.unwrap_err().code, Code::NotFound);
        let info = CredentialInfo { host: first.into(), user: "me".into(), ..CredentialInfo::default() };
        beside.credentials().put(&info, &Secret("secret-three".into())).await.unwrap();
        world.client.namespaces().remove("beside").await.unwrap();
        world.client.namespaces().create("beside", &Default::default()).await.unwrap();
        assert!(world.client.namespace("beside").credentials().list().all().await.unwrap().is_empty());
        assert_eq!(credentials.list().all().await.unwrap().len(), 2);
    });
}

#[test]
fn z_a_puller_for_one_route_learns_of_no_other_and_of_no_credential() {
    bounded(async {
        let registry = Registry::start(&["--tls", "--user", "me:hunter22"], &["busybox"]);
        let world = World::with(Daemon::start()).await;
        let host = registry.host().to_owned();
        world.daemon.set_hosts(&dir_of(&host), "ca = \"ca.crt\"");
        std::fs::write(world.daemon.hosts().join(dir_of(&host)).join("ca.crt"), registry.authority()).unwrap();
        store(&world, &host, "me", "hunter22").await;
        store(&world, "other.invalid", "me", "other-secret").await;
        let options = GrantOptions {
            facets: vec!["pull".into()],
            images: vec![format!("{host}/busy*")],
            may_save: true,
            ..GrantOptions::default()
        };
        let token = world.ns.grants().create(&options).save(None).await.unwrap();
        let holder = cofferdam_client::Client::restore(world.daemon.socket(), &token).await.unwrap();
        let ns = holder.namespace("");
        // It pulls with what is stored, which it can neither see nor change.
        ns.images()
            .pull(&PullOptions { reference: registry.reference("busybox"), ..PullOptions::default() })
            .wait()
            .await
            .unwrap();
        ns.images().explain_route(&registry.reference("busybox")).await.unwrap();
        let credentials = ns.credentials();
        let info = CredentialInfo { host: host.clone(), user: "you".into(), ..CredentialInfo::default() };
        for error in [
            credentials.list().all().await.map(drop),
            credentials.get(&host).await.map(drop),
            credentials.put(&info, &Secret("mine".into())).await,
            credentials.remove(&host).await,
            ns.images().explain_route("other.invalid/app:1").await.map(drop),
            ns.images().explain_route(&registry.reference("other")).await.map(drop),
        ] {
            assert_eq!(error.unwrap_err().code, Code::Denied);
        }
        assert_eq!(world.ns.credentials().list().all().await.unwrap().len(), 2);
    });
}

// A registry of one's own may name what it hasn't.
#[test]
fn z_a_puller_for_one_route_gets_nothing_of_other_images_by_their_digests() {
    bounded(async {
        let world = World::with(Daemon::start()).await;
        let hidden = Picture::sample("hidden", 10_000);
        let theirs = Server::of(hidden.clone());
        world.pull(&theirs.reference()).wait().await.unwrap();
        let has = Arc::new(AtomicBool::new(false));
        let evil = Server::start({
            let has = has.clone();
            move |request| {
                let answer = serve_picture(&hidden, request)
                    .filter(|_| !request.path.contains("/blobs/") || has.load(Ordering::SeqCst));
                answer.unwrap_or_else(|| Response::new(404, ""))
            }
        });
        let before = world.holdings().await;
        let options = GrantOptions {
            facets: vec!["pull".into(), "deploy".into()],
            images: vec![format!("{}/pub/*", evil.address())],
            may_save: true,
            ..GrantOptions::default()
        };
        let token = world.ns.grants().create(&options).save(None).await.unwrap();
        let holder = cofferdam_client::Client::restore(world.daemon.socket(), &token).await.unwrap();
        let name = format!("{}/pub/evil:latest", evil.address());
        let pull = || {
            let options = PullOptions { reference: name.clone(), ..PullOptions::default() };
            holder.namespace("").images().pull(&options)
        };
        world.refused("only named", &before, pull(), Code::NotFound, "").await;
        // Who has it, shows it, and makes containers of it.
        has.store(true, Ordering::SeqCst);
        assert_eq!(pull().wait().await.unwrap(), [name.as_str()]);
        let images = holder.namespace("").images();
        let mut request = ContainerRequest { id: "shown".into(), ..ContainerRequest::default() };
        request.options.args = vec!["/bin/true".into()];
        holder.namespace("").containers().create(&images.get(&name), &request).info().await.unwrap();
    });
}

#[test]
fn dockers_config_file_and_its_helpers_are_read_by_who_calls() {
    bounded(async {
        let registry = Registry::start(&["--tls", "--user", "me:hunter22"], &["busybox"]);
        let world = World::with(Daemon::start()).await;
        let (host, name) = (registry.host().to_owned(), registry.reference("busybox"));
        world.daemon.set_hosts(&dir_of(&host), "ca = \"ca.crt\"");
        std::fs::write(world.daemon.hosts().join(dir_of(&host)).join("ca.crt"), registry.authority()).unwrap();
        let docker = world.daemon.path().join("docker");
        std::fs::create_dir(&docker).unwrap();
        let config = |text: String| std::fs::write(docker.join("config.json"), text).unwrap();
        config(format!("{{\"auths\":{{\"https://{host}\":{{\"auth\":\"bWU6aHVudGVyMjI=\"}}}}}}"));
        let explained = said(&world.daemon.coffer(&["image", "explain-route", &name]));
        assert!(explained.contains("docker-config") && !explained.contains("hunter22"), "{explained}");
        said(&world.daemon.coffer(&["image", "pull", &name]));
        world.ns.images().remove(&name).await.unwrap();
        let output = world.daemon.coffer(&["image", "pull", "--no-docker-config", &name]);
        assert!(String::from_utf8_lossy(&output.stderr).contains("give a user and a secret"), "{output:?}");

        // A helper of the caller's: it runs as he does, and hears of the one registry.
        let helper = docker.join("docker-credential-test");
        let script = format!(
            "#!/bin/sh\nread server\necho \"$1 $server $PPID\" > {}/asked\necho '{{\"Username\":\"me\",\"Secret\":\"hunter22\"}}'\n",
            docker.display()
        );
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        config(format!("{{\"credHelpers\":{{\"{host}\":\"test\",\"other.invalid\":\"absent\"}}}}"));
        let path = format!("{}:{}", docker.display(), std::env::var("PATH").unwrap());
        let mut pull = world.daemon.command();
        let child = pull.args(["image", "pull", &name]).env("PATH", &path).stdout(Stdio::piped()).spawn().unwrap();
        let id = child.id();
        said(&child.wait_with_output().unwrap());
        assert_eq!(
            std::fs::read_to_string(docker.join("asked")).unwrap(),
            format!("get {host} {id}\n"),
            "coffer ran it"
        );
        // A run pulls in the same way, and asks no helper about what is here.
        let asked = || std::fs::read_to_string(docker.join("asked"));
        let run = |flags: &[&str]| {
            let mut run = world.daemon.command();
            run.arg("run").args(flags).args(["--rm", &name, "echo", "ran"]).env("PATH", &path);
            run.stdin(Stdio::null()).output().unwrap()
        };
        world.ns.images().remove(&name).await.unwrap();
        std::fs::remove_file(docker.join("asked")).unwrap();
        let output = run(&["--no-docker-config"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(125) && errors.contains("give a user and a secret"), "{output:?}");
        assert!(asked().is_err(), "no helper was run");
        assert_eq!(said(&run(&[])), "ran\n");
        assert!(asked().unwrap().starts_with(&format!("get {host} ")));
        std::fs::remove_file(docker.join("asked")).unwrap();
        assert_eq!(said(&run(&[])), "ran\n");
        assert!(asked().is_err(), "the image is here");
        assert_eq!(said(&run(&["--pull=always"])), "ran\n");
        assert!(asked().is_ok(), "it is pulled again");
        // One that isn't there is an error, and nothing is shown instead.
        let output = world.daemon.coffer(&["image", "pull", "other.invalid/app:1"]);
        assert!(String::from_utf8_lossy(&output.stderr).contains("docker-credential-absent"), "{output:?}");
        // And into the store, for those who have no such file.
        let mut login = world.daemon.command();
        said(&login.args(["login", "--docker-config", &host]).env("PATH", &path).output().unwrap());
        world.ns.images().remove(&name).await.unwrap();
        world.pull(&name).wait().await.unwrap();
    });
}

/// A proxy that leads everywhere to one address; what it was asked.
fn proxy(to: String) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (at, asked) = (listener.local_addr().unwrap().to_string(), Arc::new(Mutex::new(Vec::new())));
    let log = asked.clone();
    // It ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut client) = stream else { return };
            let mut reader = BufReader::new(client.try_clone().unwrap());
            let (mut head, mut line) = (String::new(), String::new());
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                head += &std::mem::take(&mut line);
            }
            log.lock().unwrap().push(head);
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let mut server = TcpStream::connect(&to).unwrap();
            let mut back = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut reader, &mut server);
                let _ = server.shutdown(Shutdown::Write);
            });
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut back.0, &mut back.1);
                let _ = back.1.shutdown(Shutdown::Both);
            });
        }
    });
    (at, asked)
}

#[test]
fn a_daemon_reaches_registries_by_the_proxy_of_its_environment() {
    bounded(async {
        let registry = Registry::start(&[], &["busybox"]);
        let (at, asked) = proxy(registry.host().to_owned());
        let variables = [("HTTP_PROXY", &*format!("http://me:proxys-own@{at}")), ("NO_PROXY", "direct.invalid")];
        let world = World::with(Daemon::with_variables(&variables)).await;
        let plain =
            |reference: &str| PullOptions { reference: reference.into(), plain_http: true, ..PullOptions::default() };
        world.pull_with(plain("registry.invalid/busybox:latest")).wait().await.unwrap();
        let heads = asked.lock().unwrap().clone();
        assert!(
            heads[0].starts_with("CONNECT registry.invalid:80 ") && heads[0].contains("Proxy-Authorization: Basic "),
            "{heads:?}"
        );
        let error = world.pull_with(plain("direct.invalid/busybox:latest")).wait().await.unwrap_err();
        assert_eq!(error.code, Code::Unavailable, "{error}");
        assert_eq!(asked.lock().unwrap().len(), heads.len(), "NO_PROXY is kept to");
        assert!(!world.daemon.log().contains("proxys-own") && !registry.log().contains("roxy-"), "D8");
    });
}

#[test]
fn a_registry_that_asks_to_be_left_alone_is_left_alone() {
    bounded(async {
        let picture = Picture::sample("busy", 100_000);
        let count = Mutex::new(0);
        let server = Server::start(move |request| {
            let mut count = count.lock().unwrap();
            *count += 1;
            match *count {
                1 => Response::new(429, "{}").with("retry-after", 1),
                3 => Response::new(503, "{}").with("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
                _ => serve_picture(&picture, request).unwrap_or_else(|| Response::new(404, "{}")),
            }
        });
        let world = World::with(Daemon::start()).await;
        let begun = std::time::Instant::now();
        world.pull(&server.reference()).wait().await.unwrap();
        assert!(begun.elapsed() >= std::time::Duration::from_millis(900), "{:?}", begun.elapsed());
        let busy = Server::start(|_| Response::new(429, "{}").with("retry-after", 3600));
        let error = world.pull(&busy.reference()).wait().await.unwrap_err();
        assert!(error.code == Code::Unavailable && error.message.contains("left alone, for 3600 s"), "{error}");
    });
}
